"""What the rows of a model leave to those that come after them, and take from those before.

What rows have read and written is kept in the `PrefixCache`; a row that begins alike starts behind it. Where caches
cannot be cut, they are copied whole, at the boundaries of the prompt.
"""

from collections.abc import Sequence
from typing import Any

from attrs import define

from .loader import Model
from .prefixes import BLOCK, PrefixCache
from .progress import Progress

# Blocks of prompts that are brought from the disk in one step, while rows write.
MOST_FETCHED = 8


@define(eq=False)
class Keeper:
    """Keeps what rows of one model have read."""

    _model: Model
    _prefixes: PrefixCache

    def keep(self, progress: Progress, *, leaving: bool = False) -> None:
        """Keep what a row has read since. At once, bit by bit: a long prompt's copies would be a gap in all streams."""
        layout = self._model.layout
        if layout is None:
            if progress.read // BLOCK > progress.kept // BLOCK:
                self._prefixes.put(self._scope(progress), progress.sequence[: progress.read], progress.cache)
                progress.kept = progress.read
            return
        bounded = progress.read in progress.row.boundaries
        if progress.read > progress.kept and (bounded or not progress.unread or leaving):
            tokens = progress.sequence[: progress.read]
            self._prefixes.put_whole(self._scope(progress), tokens, progress.cache, layout, lasting=bounded)
            progress.kept = progress.read

    def keep_written(self, progress: Progress, caches: Sequence[Any], index: int) -> None:
        """Keep what a row that leaves has read and written; `caches` are those of all rows, it has this place."""
        layout, tokens = self._model.layout, progress.sequence[: progress.in_cache]
        if layout is not None:
            self._prefixes.put_whole(self._scope(progress), tokens, self._part(caches, index), layout, lasting=False)
        elif len(tokens) // BLOCK > len(progress.row.prompt) // BLOCK:
            self._prefixes.put(self._scope(progress), tokens, self._part(caches, index))

    def _part(self, caches: Sequence[Any], index: int) -> Sequence[Any]:
        """Return the caches of the row at this place; one that writes by itself has them to itself."""
        return [cache.extract(index) for cache in caches] if self._model.batchable else caches

    def taken(self, progress: Progress) -> tuple[int, list[Any]]:
        """Return how much of what a row is to read was read before, and caches that hold it."""
        model, tokens = self._model, progress.sequence[:-1]
        if model.block is not None:
            return self._prefixes.take(self._scope(progress), tokens, model.block)
        if model.layout is None:
            return 0, []
        return self._prefixes.take_whole(self._scope(progress), tokens, progress.row.boundaries, model.layout)

    def fetched(self, progress: Progress, writing: bool) -> bool:
        """Whether what the disk holds of a row's prompt is in memory. Bit by bit: it would be a gap in all streams."""
        most = len(progress.sequence) // BLOCK
        if self._model.block is None or not writing or progress.fetched > most:
            return True
        # Where memory does not hold what is fetched there is an end nevertheless.
        progress.fetched += MOST_FETCHED
        return self._prefixes.fetch(self._scope(progress), progress.sequence[:-1], self._model.block, MOST_FETCHED)

    def _scope(self, progress: Progress) -> str:
        """Return whose prefixes serve a row: those of its model, and of its owner alone.

        How fast an answer begins tells what was read before; nobody should learn that way what others ask.
        """
        return self._model.key + progress.row.owner
