"""What steps and tokens cost on this machine, and what may be done in a step for that price.

Nothing here imports MLX.
"""

from attrs import define

# While rows write, what others read, or draft, may make a step take so many times as long.
READING_SHARE = 2.5
LEAST_CHUNK = 6
# While none do, more than usual is read at once if that takes no longer, in seconds: each pass has its price, but who
# comes waits for its end, and the row of a client that leaves stays until then. Beyond so many tokens little is gained.
LONGEST_READING = 0.3
MOST_AT_ONCE = 512
# What a draft must be expected to gain: expectations err.
LEAST_GAIN = 1.1


@define
class Pace:
    """What things cost here, in seconds, as averages that follow the machine.

    A pass that reads costs about what a step does, however little it reads, and so much more for each token. What a
    token costs depends on how many stand before it, and how many are read with it: one of a large chunk is cheap. So
    there is a price for those that are read while nobody writes, one for those read beside writers, and one for drafts.
    `usual_chunk` tokens are read in a step whatever that takes, unless rows write.
    """

    _usual_chunk: int
    _step: float = 0.0
    _alone: float = 0.0
    _beside: float = 0.0
    _drafted: float = 0.0

    def chunk(self, writing: int, width: int = 1) -> int:
        """Return how many tokens one pass may read in this step, while so many rows write so many tokens each."""
        if not writing:
            at_once = int(LONGEST_READING / self._alone) if self._alone else 0
            return max(self._usual_chunk, min(MOST_AT_ONCE, at_once))
        if not self._beside or not self._step:
            return LEAST_CHUNK
        time = (READING_SHARE - 1) * (self._step + self._draft * writing * (width - 1))
        return max(LEAST_CHUNK, min(self._usual_chunk, int(time / self._beside)))

    @property
    def price(self) -> int:
        """What a pass beside writers costs before it has read anything, in tokens that could be read instead."""
        return int(self._step / self._beside) if self._beside else 0

    def widest(self, rows: int) -> int:
        """Return how many tokens of each row a pass may take where one of them has no use for more than its own.

        It waits no longer than it would beside reading.
        """
        return 1 + int((READING_SHARE - 1) * self._step / (self._draft * rows)) if self._step else 1

    def worth(self, rows: int, width: int, expected: float) -> bool:
        """Tell whether a pass over so many tokens of each row pays, if it is expected to yield so many in all."""
        return self.gain(rows, width, expected) > LEAST_GAIN

    def gain(self, rows: int, width: int, expected: float) -> float:
        """Return how many times as fast as one token of each row that is; 0 where nothing is known."""
        if not self._step:
            return 0
        return expected * self._step / (self._step + self._draft * rows * (width - 1)) / rows

    @property
    def _draft(self) -> float:
        """What a token of a draft costs, as far as is known."""
        return self._drafted or self._alone or self._step / 8

    def took(self, seconds: float, writing: int, read: int, passes: int, width: int = 1) -> None:
        """Learn from a step.

        `writing` rows wrote, with a pass over `width` tokens of each, and `read` tokens were read in `passes` passes.
        """
        if 0 < read < LEAST_CHUNK or not (read or writing):
            # A few tokens tell nothing of the price of many.
            return
        more = writing * (width - 1)
        if not writing:
            # The price is that of all there is.
            self._alone = _average(self._alone, seconds / read)
        elif not read and not more:
            self._step = _average(self._step, seconds)
        elif not self._step:
            spent = self._alone * read + self._draft * more
            self._step = max(seconds - spent, seconds / 10) / (passes + 1)
        elif not read:
            self._drafted = _average(self._drafted, max(seconds - self._step, seconds / 10) / more)
        else:
            # A price that rises is believed at once: the gap is somebody's.
            spent = self._step * (passes + 1) + self._draft * more
            now = max(seconds - spent, seconds / 10) / read
            self._beside = max(now, _average(self._beside, now))


def _average(before: float, now: float) -> float:
    return 0.75 * before + 0.25 * now if before else now
