"""What has been read already, for models whose caches cannot be cut: whole copies of them, at chosen places.

A rotating cache has forgotten what left its window, and a recurrent one holds nothing but its latest state. Of what a
row has read, only the whole serves another row, and only one that begins with exactly these tokens. So the difficulty
is where to copy. Rows stop reading at the boundaries of their prompts (`PromptEncoder`): behind the system message,
behind the message before the last answer, behind the last message. There a copy is kept, and another at the end of the
prompt and where the row leaves. A row starts behind the longest copy that it begins with.

Rejected: copies every so many tokens (each is as large as a whole cache, and conversations do not branch there), and
keeping the text behind a copy in order to read it again (that is what a miss does).

A checkpoint is named by a hash of the model and its tokens. Which one is the longest is found in one pass over a row's
tokens: the hash goes on from each length that some checkpoint has to the next.

Files hold arrays only. What class a cache is of, and everything else about it, comes from the model and from the number
of tokens; the arrays must have the shapes that the model gives them. Nothing in a file decides what is done with it.

Everything here runs on the thread that owns MLX.
"""

import sys
from array import array
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from hashlib import sha256
from typing import Any

import mlx.core as mx
from attrs import define, field, frozen
from mlx_lm.models.cache import ArraysCache, CacheList, KVCache, RotatingKVCache, make_prompt_cache
from twisted.logger import Logger

from .prefix_files import MOST_BACKLOG, PrefixFiles, root

log = Logger()

Shape = tuple[int, ...]


@frozen(eq=False)
class Layout:
    """What the caches of one model are made of.

    `made_of` has for each array its shape, its type, and how many tokens its third axis counts at most; 0 if no axis
    counts tokens.
    """

    _make: Callable[[], list[Any]]
    _made_of: list[tuple[Shape, mx.Dtype, int]]

    @classmethod
    def of(cls, network: Any, read: Sequence[Any]) -> "Layout | None":
        """Return the layout of a network whose caches have `read` a token.

        None if they are plain keys and values, which the PrefixCache cuts, or of a kind that is not known here.
        """
        single = single_caches(read)
        if all(type(cache) is KVCache for cache in read) or not all(_known(cache) for cache in single):
            return None
        made_of = [(values.shape, values.dtype, _most(cache)) for cache in single for values in _arrays(cache)]
        return cls(lambda: make_prompt_cache(network), made_of)

    def take_apart(self, caches: Sequence[Any], length: int) -> list[mx.array]:
        """Return the arrays of the caches of one row that has read so many tokens, as copies not yet evaluated.

        Raises ValueError if the caches are not what they should be.
        """
        single = single_caches(caches)
        if any(getattr(cache, "offset", length) != length for cache in single):
            raise ValueError(f"not all caches hold {length} tokens")
        arrays = [values for cache in single for values in _arrays(cache)]
        self.check(arrays, length)
        return [mx.contiguous(values) for values in arrays]

    def put_together(self, arrays: Iterable[mx.array], length: int) -> list[Any]:
        """Return caches that hold so many tokens, from their arrays."""
        caches = self._make()
        # Caches write into their arrays: each has its own, and memory is copied when that happens.
        rest = iter([mx.array(values) for values in arrays])
        for cache in single_caches(caches):
            if type(cache) is ArraysCache:
                cache.cache = [next(rest) for _ in cache.cache]
                continue
            cache.keys, cache.values, cache.offset = next(rest), next(rest), length
            if type(cache) is RotatingKVCache:
                cache._idx = cache.keys.shape[2]
        return caches

    def check(self, arrays: Sequence[mx.array], length: int) -> None:
        """Raise ValueError unless these can be the arrays of caches that hold so many tokens."""
        if len(arrays) != len(self._made_of):
            raise ValueError(f"{len(arrays)} arrays, and the model's caches have {len(self._made_of)}")
        for values, (shape, dtype, most) in zip(arrays, self._made_of, strict=True):
            expected = (*shape[:2], min(length, most), *shape[3:]) if most else shape
            found = None if values is None else (values.shape, values.dtype)
            if found != (expected, dtype):
                raise ValueError(f"{found} in the place of {(expected, dtype)}")


def single_caches(caches: Iterable[Any]) -> list[Any]:
    """Return caches with the members of lists of caches in the place of these."""
    return [one for cache in caches for one in (single_caches(cache.caches) if type(cache) is CacheList else [cache])]


def _known(cache: Any) -> bool:
    """Tell whether a cache that has read is of a kind that can be copied, with nothing missing.

    Merging a rotating cache that keeps its first tokens forgets that it does.
    """
    if type(cache) is ArraysCache:
        return all(values is not None for values in cache.cache)
    return type(cache) in (KVCache, RotatingKVCache) and not cache.empty() and not getattr(cache, "keep", 0)


def _most(cache: Any) -> int:
    """Return how many tokens the third axis of a cache's arrays may come to count, 0 if it counts none."""
    if type(cache) is ArraysCache:
        return 0
    return getattr(cache, "max_size", sys.maxsize)


def _arrays(cache: Any) -> list[mx.array]:
    """Return the arrays of a cache, without room for more and in the order of their tokens."""
    if type(cache) is ArraysCache:
        return list(cache.cache)
    if type(cache) is RotatingKVCache:
        # While it reads it holds more than its window, and when it writes it goes round.
        return [cache._temporal_order(values)[:, :, -cache.size() :] for values in (cache.keys, cache.values)]
    return [values[:, :, : cache.offset] for values in (cache.keys, cache.values)]


@frozen(eq=False)
class Checkpoint:
    """What a model has made of the first `length` tokens of something."""

    name: bytes
    model: str
    length: int
    arrays: list[mx.array]

    @property
    def nbytes(self) -> int:
        """The memory that its arrays take."""
        return sum(values.nbytes for values in self.arrays)


@define(eq=False)
class Checkpoints:
    """Checkpoints of several models, by name; the one used least recently is the first.

    How much they may take is for the PrefixCache to say, whose `clock` tells when something was used.
    """

    _clock: Iterator[int]
    _files: PrefixFiles | None = None
    _kept: OrderedDict[bytes, tuple[int, Checkpoint]] = field(factory=OrderedDict, init=False)
    _unwritten: dict[bytes, Checkpoint] = field(factory=dict, init=False)
    nbytes: int = field(default=0, init=False)

    def __len__(self) -> int:
        return len(self._kept)

    @property
    def unwritten(self) -> bool:
        """Whether there are checkpoints that should still be written to files."""
        return bool(self._unwritten)

    @property
    def oldest(self) -> int:
        """When the one was used that was used least recently."""
        used, _ = next(iter(self._kept.values()))
        return used

    def drop_oldest(self) -> None:
        """Give back the one that was used least recently."""
        _, (_, checkpoint) = self._kept.popitem(last=False)
        self._write(checkpoint)
        self.nbytes -= checkpoint.nbytes

    def forget(self, model: str) -> None:
        """Give back everything of a model."""
        for _, checkpoint in list(self._kept.values()):
            if checkpoint.model.startswith(model):
                del self._kept[checkpoint.name]
                self._write(checkpoint)
                self.nbytes -= checkpoint.nbytes

    def write_one(self) -> None:
        """Hand one to the files."""
        if self._unwritten:
            self._write(next(iter(self._unwritten.values())))

    def _write(self, checkpoint: Checkpoint) -> None:
        """Hand a checkpoint to the files, if it waits for that."""
        if self._unwritten.pop(checkpoint.name, None) is not None and self._files is not None:
            arrays = {str(place): values for place, values in enumerate(checkpoint.arrays)}
            self._files.write(checkpoint.name, arrays)

    def take(
        self, model: str, tokens: Sequence[int], boundaries: Sequence[int], layout: Layout, most: int
    ) -> tuple[int, list[Any]]:
        """Return how many of the tokens were read before, and caches that hold them, the caller's own.

        Files are looked for at the boundaries. What comes from one is kept if it takes at most so many bytes.
        """
        lengths = {checkpoint.length for _, checkpoint in self._kept.values() if checkpoint.model == model}
        for length, name in reversed(list(_names(model, tokens, lengths.union(boundaries)))):
            checkpoint = self._kept[name][1] if name in self._kept else self._read(model, name, length, layout)
            if checkpoint is not None:
                if checkpoint.nbytes <= most:
                    self._keep(checkpoint)
                return length, layout.put_together(checkpoint.arrays, length)
        return 0, []

    def put(
        self, model: str, tokens: Sequence[int], caches: Sequence[Any], layout: Layout, most: int, lasting: bool
    ) -> None:
        """Keep what the caches of one row hold, which is these tokens, if it takes at most so many bytes.

        A `lasting` one is for the files as well: one at a boundary, where they are looked for.
        """
        [(length, name)] = _names(model, tokens, [len(tokens)])
        if name in self._kept:
            known = self._kept[name][1]
            self._keep(known)
            if lasting:
                self._write_later(known)
            return
        try:
            checkpoint = Checkpoint(name, model, length, layout.take_apart(caches, length))
        except ValueError as error:
            log.warn("What was read is not kept: {error}", error=error)
            return
        if checkpoint.nbytes > most:
            return
        mx.eval(checkpoint.arrays)
        self._keep(checkpoint)
        if lasting:
            self._write_later(checkpoint)

    def _write_later(self, checkpoint: Checkpoint) -> None:
        """Have a checkpoint written to the files, unless it waits already or too much does."""
        waiting = sum(other.nbytes for other in self._unwritten.values())
        if self._files is not None and waiting + checkpoint.nbytes <= MOST_BACKLOG:
            self._unwritten.setdefault(checkpoint.name, checkpoint)

    def _keep(self, checkpoint: Checkpoint) -> None:
        """Have a checkpoint as the one used last."""
        if self._kept.pop(checkpoint.name, None) is None:
            self.nbytes += checkpoint.nbytes
        self._kept[checkpoint.name] = next(self._clock), checkpoint

    def _read(self, model: str, name: bytes, length: int, layout: Layout) -> Checkpoint | None:
        def build(arrays: dict[str, mx.array]) -> Checkpoint:
            ordered = [arrays[str(place)] for place in range(len(arrays))]
            layout.check(ordered, length)
            return Checkpoint(name, model, length, ordered)

        return None if self._files is None else self._files.read(name, build)


def _names(model: str, tokens: Sequence[int], lengths: Iterable[int]) -> Iterator[tuple[int, bytes]]:
    """Yield those lengths that the tokens have, ascending, each with the name of its checkpoint."""
    chain, end = sha256(b"checkpoint" + root(model)), 0
    for length in sorted(lengths):
        if not 0 < length <= len(tokens):
            continue
        chain.update(array("Q", tokens[end:length]).tobytes())
        end = length
        yield length, chain.copy().digest()
