"""What steps and tokens cost on this machine, and what may be done in a step for that price.

Nothing here imports MLX.
"""

from attrs import define

# While rows write, reading may take this many times what a step of theirs takes.
READING_SHARE = 3.0
LEAST_CHUNK = 8
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
    token costs depends on how many stand before it. `usual_chunk` tokens are read in a step whatever that takes, unless
    rows write.
    """

    _usual_chunk: int
    _step: float = 0.0
    _token: float = 0.0

    def chunk(self, writing: int) -> int:
        """Return how many tokens one pass may read in this step, while so many rows write."""
        if not writing:
            at_once = int(LONGEST_READING / self._token) if self._token else 0
            return max(self._usual_chunk, min(MOST_AT_ONCE, at_once))
        if not self._token or not self._step:
            return LEAST_CHUNK
        return max(LEAST_CHUNK, min(self._usual_chunk, int((READING_SHARE - 1) * self._step / self._token)))

    @property
    def price(self) -> int:
        """What a pass costs before it has read anything, in tokens that could be read instead."""
        return int(self._step / self._token) if self._token else 0

    def worth(self, rows: int, width: int, expected: float) -> bool:
        """Tell whether a pass over so many tokens of each row pays, if it is expected to yield so many in all."""
        return self.gain(rows, width, expected) > LEAST_GAIN

    def gain(self, rows: int, width: int, expected: float) -> float:
        """Return how many times as fast as one token of each row that is; 0 where nothing is known."""
        if not self._step:
            return 0
        token = self._token or self._step / 8
        return expected * self._step / (self._step + token * rows * (width - 1)) / rows

    def took(self, seconds: float, writing: int, read: int, passes: int) -> None:
        """Learn from a step in which so many rows wrote, and so many tokens were read in so many passes."""
        if 0 < read < LEAST_CHUNK:
            # A few tokens tell nothing of the price of many.
            return
        beside = passes + (writing > 0)
        if not read:
            self._step = _average(self._step, seconds)
        elif not writing:
            # What a step costs is not known of these rows; the price is that of all there is.
            self._token = _average(self._token, seconds / read)
        elif self._step:
            # A price that rises is believed at once: the gap is somebody's.
            now = max(seconds - self._step * beside, seconds / 10) / read
            self._token = max(now, _average(self._token, now))
        elif self._token:
            self._step = max(seconds - self._token * read, seconds / 10) / beside


def _average(before: float, now: float) -> float:
    return 0.75 * before + 0.25 * now if before else now
