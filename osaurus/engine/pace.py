"""What steps and tokens cost on this machine, and what may be done in a step for that price.

Nothing here imports MLX.
"""

from math import ceil

from attrs import define, field

# While rows write, a step may take so many times as long with what others read, and so many with what others draft.
READING_SHARE = 3.5
DRAFTING_SHARE = 2.0
LEAST_CHUNK = 4
# While none do, more than usual is read at once if that takes no longer, in seconds: each pass has its price, but who
# comes waits for its end, and the row of a client that leaves stays until then. Beyond so many tokens little is gained.
LONGEST_READING = 0.3
MOST_AT_ONCE = 512
# What a draft must be expected to gain: expectations err.
LEAST_GAIN = 1.1
# What took longer than so many times what was expected was held up by something else, a model that was loaded perhaps.
MOST_SURPRISING = 4.0
# How much of the price of drafts is forgotten with each step without any: where they seem too dear, none would tell.
FORGOTTEN = 0.02


@define
class Pace:
    """What things cost here, in seconds, as averages that follow the machine.

    What a token costs depends on how many stand before it, and how many are read with it: one of a large chunk is
    cheap. So there is a price for those that are read while nobody writes, one for those read beside writers, and one
    for drafts. That of reading beside writers is a share of all that it took: what a pass costs before it has read
    anything is much on one machine and little on another, and where too much was taken off for it chunks grew until one
    was a gap. So chunks grow or shrink towards what fills the time, and not beyond. `usual_chunk` tokens are read in a
    step whatever that takes, unless rows write.
    """

    _usual_chunk: int
    _steps: dict[int, float] = field(factory=dict, init=False)
    """What a step takes, by the binary magnitude of how many rows write in it."""
    _alone: float = field(default=0.0, init=False)
    _beside: float = field(default=0.0, init=False)
    _drafted: float = field(default=0.0, init=False)

    def chunk(self, writing: int, width: int = 1) -> int:
        """Return how many tokens one pass may read in this step, while so many rows write so many tokens each."""
        if not writing:
            at_once = int(LONGEST_READING / self._alone) if self._alone else 0
            return max(self._usual_chunk, min(MOST_AT_ONCE, at_once))
        step = self._step(writing)
        if not self._beside or not step:
            return LEAST_CHUNK
        time = (READING_SHARE - 1) * step - self._draft(writing) * writing * (width - 1)
        return max(LEAST_CHUNK, min(self._usual_chunk, ceil(time / self._beside)))

    @property
    def price(self) -> int:
        """What a pass beside writers costs at most before it has read anything, in tokens that could be read instead.

        That is what a step of one row does.
        """
        return int(self._step(1) / self._beside) if self._beside else 0

    def widest(self, rows: int) -> int:
        """Return how many tokens of each row a pass may take where another has no use for more than its own, or reads.

        So it waits no longer than a few steps.
        """
        step = self._step(rows)
        return 1 + int((DRAFTING_SHARE - 1) * step / (self._draft(rows) * rows)) if step else 1

    def worth(self, rows: int, width: int, expected: float) -> bool:
        """Tell whether a pass over so many tokens of each row pays, if it is expected to yield so many in all."""
        return self.gain(rows, width, expected) > LEAST_GAIN

    def gain(self, rows: int, width: int, expected: float) -> float:
        """Return how many times as fast as one token of each row that is; 0 where nothing is known."""
        step = self._step(rows)
        if not step:
            return 0
        return expected * step / (step + self._draft(rows) * rows * (width - 1)) / rows

    def _step(self, writing: int) -> float:
        """Return what a step of so many rows takes; of about as many, where that is not known yet, and 0 of none."""
        if not self._steps:
            return 0.0
        return self._steps[min(self._steps, key=lambda known: abs(known - writing.bit_length()))]

    def _draft(self, rows: int) -> float:
        """Return what a token of a draft costs, as far as is known."""
        return self._drafted or self._usual_draft(rows)

    def _usual_draft(self, rows: int) -> float:
        return self._alone or self._step(rows) / 8

    def took(self, seconds: float, writing: int, read: int, passes: int, width: int = 1) -> None:
        """Learn from a step.

        `writing` rows wrote, with a pass over `width` tokens of each, and `read` tokens were read in `passes` passes.
        """
        if 0 < read < LEAST_CHUNK or not (read or writing):
            # A few tokens tell nothing of the price of many.
            return
        more, step = writing * (width - 1), self._step(writing)
        if not writing:
            # The price is that of all there is.
            self._alone = _average(self._alone, seconds / read)
        elif not read and not more:
            self._learn_step(writing, seconds)
            if self._drafted:
                self._drafted += FORGOTTEN * (self._usual_draft(writing) - self._drafted)
        elif writing.bit_length() not in self._steps:
            spent = self._alone * read + self._draft(writing) * more
            self._learn_step(writing, _left(seconds, spent) / (passes + 1))
        elif not read:
            self._drafted = _average(self._draft(writing), _left(seconds, step) / more)
        else:
            # A price that rises is believed at once: the gap is somebody's.
            spent = step + self._draft(writing) * more
            now = _credible(self._beside, _left(seconds, spent) / read)
            self._beside = max(now, _average(self._beside, now))

    def _learn_step(self, writing: int, seconds: float) -> None:
        nearest, magnitude = self._step(writing), writing.bit_length()
        if magnitude in self._steps:
            self._steps[magnitude] = _average(nearest, seconds)
        else:
            self._steps[magnitude] = _credible(writing * nearest, seconds)


def _left(seconds: float, spent: float) -> float:
    """Return what is left of a time beside what is known to have been spent; a part of it at least."""
    return max(seconds - spent, seconds / 10)


def _credible(before: float, now: float) -> float:
    """Return how much of a time is to be believed where another was expected, if any was."""
    return min(now, MOST_SURPRISING * before) if before else now


def _average(before: float, now: float) -> float:
    return 0.75 * before + 0.25 * _credible(before, now) if before else now
