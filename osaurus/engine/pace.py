"""What steps and tokens cost on this machine, and what may be done in a step for that price.

Nothing here imports MLX.
"""

from math import ceil

from attrs import define, field

# While rows write, a step may take so many times as long with what others read, and so many with what others draft.
READING_SHARE = 3.0
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
# After so many steps with reading comes one without: what a step takes by itself may have changed meanwhile.
MOST_UNSEEN = 32
# How much of the price of drafts is forgotten with each step without any: where they seem too dear, none would tell.
FORGOTTEN = 0.02


@define
class Pace:
    """What things cost here, in seconds, as averages that follow the machine.

    What a token costs depends on how many stand before it, and how many are read with it: one of a large chunk is
    cheap. So there is a price for those that are read while nobody writes, and one for drafts; and for those read
    beside writers one for each size of chunk, what the pass costs before it has read anything shared among them. That
    is much on one machine and little on another: with a price of its own, chunks grew until one was a gap where it was
    little; with one price for all sizes, the end of a prompt made the next one's chunks small. `usual_chunk` tokens are
    read in a step whatever that takes, unless rows write.
    """

    _usual_chunk: int
    _steps: dict[int, float] = field(factory=dict, init=False)
    """What a step takes, by the binary magnitude of how many rows write in it."""
    _alone: float = field(default=0.0, init=False)
    _beside: dict[int, float] = field(factory=dict, init=False)
    """What a token takes that is read beside writers, by the binary magnitude of how many are read."""
    _drafted: float = field(default=0.0, init=False)
    _unseen: int = field(default=0, init=False)
    """How many steps ago it was last seen what one takes."""

    def chunk(self, writing: int, width: int = 1) -> int:
        """Return how many tokens may be read in this step, while so many rows write so many tokens each."""
        if not writing:
            at_once = int(LONGEST_READING / self._alone) if self._alone else 0
            return max(self._usual_chunk, min(MOST_AT_ONCE, at_once))
        if self._unseen >= MOST_UNSEEN and width == 1:
            return 0
        time = (READING_SHARE - 1) * self._step(writing) - self._draft(writing) * writing * (width - 1)
        most = 0
        for magnitude, price in sorted(self._beside.items()):
            fitting, least = ceil(time / price), 1 << magnitude - 1
            if fitting < least:
                # A smaller chunk's tokens cost more; how much, may be known.
                most = min(most, least - 1) if most else fitting
                break
            most = fitting
        return max(LEAST_CHUNK, min(self._usual_chunk, most))

    def widest(self, rows: int) -> int:
        """Return how many tokens of each row a pass may take where another has no use for more than its own, or reads.

        So it waits no longer than for a step more.
        """
        if not self._drafted:
            # As many as tell what they cost.
            return 2 if self._steps else 1
        return 1 + int((DRAFTING_SHARE - 1) * self._step(rows) / (self._drafted * rows))

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
        return _nearest(self._steps, writing)

    def _draft(self, rows: int) -> float:
        """Return what a token of a draft costs, as far as is known."""
        return self._drafted or self._usual_draft(rows)

    def _usual_draft(self, rows: int) -> float:
        return self._alone or self._step(rows) / 8

    def took(self, seconds: float, writing: int, read: int, width: int = 1) -> None:
        """Learn from a step: so many rows wrote, with a pass over `width` tokens of each, and so much was read."""
        more, step = writing * (width - 1), self._step(writing)
        if read and writing:
            self._unseen += 1
        elif not more:
            self._unseen = 0
        if not writing:
            # The price is that of all there is. A few tokens tell nothing of the price of many.
            if read >= LEAST_CHUNK:
                self._alone = _average(self._alone, seconds / read)
        elif not read and not more:
            self._learn_step(writing, seconds)
            if self._drafted:
                self._drafted += FORGOTTEN * (self._usual_draft(writing) - self._drafted)
        elif writing.bit_length() not in self._steps:
            known = self._price(read)
            left = _left(seconds, (known or self._alone) * read + self._draft(writing) * more)
            # Until it is known what a pass costs that reads, it counts as much as the step.
            self._learn_step(writing, left if known or not read else left / 2)
        elif not read:
            self._drafted = _average(self._draft(writing), _left(seconds, step) / more)
        else:
            self._learn_chunk(read, _left(seconds, step + self._draft(writing) * more) / read)

    def _price(self, read: int) -> float:
        """Return what a token takes that is read beside writers, with so many; 0 where nothing is known."""
        return _nearest(self._beside, read)

    def _learn_chunk(self, read: int, price: float) -> None:
        magnitude, now = read.bit_length(), _credible(self._price(read), price)
        # A price that rises is believed at once: the gap is somebody's.
        self._beside[magnitude] = learnt = max(now, _average(self._beside.get(magnitude, 0.0), now))
        # Among more tokens one is no dearer, whatever held up the chunk that told so; among fewer it is no cheaper.
        for other, known in self._beside.items():
            self._beside[other] = _average(known, min(known, learnt)) if other > magnitude else max(known, learnt)

    def _learn_step(self, writing: int, seconds: float) -> None:
        nearest, magnitude = self._step(writing), writing.bit_length()
        if magnitude in self._steps:
            self._steps[magnitude] = _average(nearest, seconds)
        else:
            self._steps[magnitude] = _credible(writing * nearest, seconds)


def _nearest(known: dict[int, float], count: int) -> float:
    """Return what is known of so many, or of about as many, by their binary magnitude; 0 where nothing is."""
    return known[min(known, key=lambda magnitude: abs(magnitude - count.bit_length()))] if known else 0.0


def _left(seconds: float, spent: float) -> float:
    """Return what is left of a time beside what is known to have been spent; a part of it at least."""
    return max(seconds - spent, seconds / 10)


def _credible(before: float, now: float) -> float:
    """Return how much of a time is to be believed where another was expected, if any was."""
    return min(now, MOST_SURPRISING * before) if before else now


def _average(before: float, now: float) -> float:
    return 0.75 * before + 0.25 * _credible(before, now) if before else now
