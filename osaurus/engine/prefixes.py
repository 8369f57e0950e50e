"""What has been read already: keys and values of token sequences, shared by all that begin alike.

Agents send a long conversation again with each turn, and many clients one system prompt. What a row read and wrote is
kept, and a row that begins the same way starts behind it.

Sequences are cut into blocks of `BLOCK` tokens, the nodes of a tree: each is reached by the tokens of its path, and
holds the keys and values of its own tokens only, so that conversations that branch share their trunk. Arrays are
copies: a slice would keep the whole batch that it was cut from in memory. When the budget is exceeded, the leaf that
was used least recently goes. Models and rows come before what is kept here: they squeeze it.

Only caches that are plain keys and values, one pair for each token, can be cut and put together (mlx_lm's KVCache).
Of rotating and recurrent caches `Checkpoints` keeps whole copies, within the same budget.

`PrefixFiles` keeps both beyond the end of the process. What waits to be written is in the budget like all else: what
has to go before is handed to the files at once, as far as they take it.

Everything here runs on the thread that owns MLX.
"""

import sys
from collections.abc import Iterator, Sequence
from heapq import heapify, heappop, heappush
from itertools import count
from typing import Any

import mlx.core as mx
from attrs import define, field, frozen
from mlx_lm.models.cache import KVCache

from .checkpoints import Checkpoints, Layout
from .prefix_files import PrefixFiles, link, root
from .prompt import in_common

BLOCK = 32
# Blocks that wait to be written; what comes beyond stays in memory only.
MOST_UNWRITTEN = 256
# Blocks that come from files before there is a look at how much memory everything takes.
READ_AT_ONCE = 8

Tokens = tuple[int, ...]


@frozen
class BlockLayout:
    """What the keys and values of a model's blocks are like: shapes (layers, heads, BLOCK, dimensions), and types."""

    _keys: tuple[int, ...]
    _values: tuple[int, ...]
    _dtypes: tuple[mx.Dtype, mx.Dtype]

    @classmethod
    def of(cls, read: Sequence[Any]) -> "BlockLayout | None":
        """Return the layout for caches that have `read` a token; None if they cannot be cut into blocks."""
        if not keepable(read):
            return None
        keys, values = read[0].keys, read[0].values
        shapes = [(len(read), array.shape[1], BLOCK, array.shape[3]) for array in (keys, values)]
        return cls(shapes[0], shapes[1], (keys.dtype, values.dtype))

    def taken(self, arrays: dict[str, mx.array]) -> tuple[mx.array, mx.array]:
        """Return keys and values of what a file held. Raises KeyError, ValueError if it is no block of this model."""
        keys, values = arrays["keys"], arrays["values"]
        found = (keys.shape, values.shape, (keys.dtype, values.dtype))
        if found != (self._keys, self._values, self._dtypes):
            raise ValueError(f"it holds {found}, which is no block of this model")
        return keys, values


@define(eq=False)
class _Node:
    """One block: keys and values, each of shape (layers, heads, BLOCK, dimensions)."""

    name: bytes
    parent: "_Node | None"
    siblings: dict[Tokens, "_Node"]
    tokens: Tokens
    keys: mx.array
    values: mx.array
    used: int
    children: dict[Tokens, "_Node"] = field(factory=dict)

    @property
    def nbytes(self) -> int:
        """The memory that its arrays take."""
        return self.keys.nbytes + self.values.nbytes

    @property
    def gone(self) -> bool:
        """Whether it is in the tree no longer."""
        return self.siblings.get(self.tokens) is not self


@define(eq=False)
class PrefixCache:
    """Blocks and checkpoints of several models, within one budget in bytes.

    A model is named by its key, with the owner of what was read behind it.
    What `files` hold is found as well, and comes into memory when it is needed.
    """

    _budget: int
    _files: PrefixFiles | None = None
    _room: int = field(default=sys.maxsize, init=False)
    _roots: dict[str, dict[Tokens, _Node]] = field(factory=dict, init=False)
    _clock: Iterator[int] = field(factory=count, init=False)
    _unwritten: dict[bytes, _Node] = field(factory=dict, init=False)
    _blocks_nbytes: int = field(default=0, init=False)
    _checkpoints: Checkpoints = field(init=False)

    @_checkpoints.default
    def _make_checkpoints(self) -> Checkpoints:
        return Checkpoints(self._clock, self._files)

    @property
    def nbytes(self) -> int:
        """The memory that everything takes."""
        return self._blocks_nbytes + self._checkpoints.nbytes

    @property
    def files_nbytes(self) -> int:
        """What the files take of the disk, all of them, those of models that are not in memory as well."""
        return 0 if self._files is None else self._files.nbytes

    @property
    def unwritten(self) -> bool:
        """Whether there is something that should still be written to files."""
        return bool(self._unwritten) or self._checkpoints.unwritten

    def tell(self, *, quiet: bool) -> None:
        """Tell those who write files whether the engine has nothing else to do."""
        if self._files is not None:
            (self._files.quiet.set if quiet else self._files.quiet.clear)()

    def write_one(self) -> None:
        """Hand something to the files. One at a time: a long prompt's would be a gap in everybody's stream."""
        if self._unwritten:
            self._write(next(iter(self._unwritten.values())))
        else:
            self._checkpoints.write_one()

    def _write(self, node: _Node) -> None:
        """Hand a block to the files, if it is not there yet."""
        if self._unwritten.pop(node.name, None) is not None and self._files is not None:
            self._files.write(node.name, {"keys": node.keys, "values": node.values})

    def take(self, model: str, tokens: Sequence[int], layout: BlockLayout) -> tuple[int, list[KVCache]]:
        """Return how many of the tokens were read before, and caches that hold them, one for each layer.

        The caches are the caller's own; without a common beginning there are none.
        """
        path = self._path(model, tokens)
        self._read_on(model, tokens, path, layout)
        rest = tokens[len(path) * BLOCK :]
        siblings = path[-1].children if path else self._roots.get(model, {})
        # Of the next block the part before the branch serves as well.
        nearest = max(siblings.values(), key=lambda node: in_common(node.tokens, rest), default=None)
        part = 0 if nearest is None else in_common(nearest.tokens, rest)
        if nearest is not None and part:
            path.append(nearest)
        if not path:
            return 0, []
        length = len(tokens) - len(rest) + part
        caches = []
        for layer in range(path[0].keys.shape[0]):
            cache = KVCache()
            cache.keys = _with_room([node.keys[layer : layer + 1] for node in path], len(tokens))
            cache.values = _with_room([node.values[layer : layer + 1] for node in path], len(tokens))
            # What is beyond is written over.
            cache.offset = length
            caches.append(cache)
        self._evict()
        return length, caches

    def put(self, model: str, tokens: Sequence[int], caches: Sequence[Any]) -> None:
        """Keep what the caches of one row hold for these tokens, as far as it is not there yet."""
        if not keepable(caches):
            return
        path = self._path(model, tokens)
        known, whole = len(path) * BLOCK, len(tokens) // BLOCK * BLOCK
        if known == whole:
            return
        blocks = []
        for start in range(known, whole, BLOCK):
            end = start + BLOCK
            # Of a single layer's it would make no copy.
            keys = mx.contiguous(mx.concatenate([cache.keys[..., start:end, :] for cache in caches]))
            values = mx.contiguous(mx.concatenate([cache.values[..., start:end, :] for cache in caches]))
            blocks.append((tuple(tokens[start:end]), keys, values))
        # Before others can find them: where this fails they hold nothing.
        mx.eval([array for _, *arrays in blocks for array in arrays])
        parent = path[-1] if path else None
        added = []
        for block, keys, values in blocks:
            parent = self._add(model, parent, block, keys, values)
            added.append(parent)
        if self._files is not None:
            self._unwritten |= {node.name: node for node in added[: MOST_UNWRITTEN - len(self._unwritten)]}
        self._evict()

    def take_whole(
        self, model: str, tokens: Sequence[int], boundaries: Sequence[int], layout: Layout
    ) -> tuple[int, list[Any]]:
        """Return the same as `take`, of a model whose caches cannot be cut."""
        taken = self._checkpoints.take(model, tokens, boundaries, layout, min(self._budget, self._room))
        self._evict()
        return taken

    def put_whole(
        self, model: str, tokens: Sequence[int], caches: Sequence[Any], layout: Layout, *, lasting: bool
    ) -> None:
        """Keep the caches of one row, which hold these tokens; in files as well if they are to be `lasting`."""
        self._checkpoints.put(model, tokens, caches, layout, min(self._budget, self._room), lasting)
        self._evict()

    def squeeze(self, room: int) -> None:
        """Take no more memory than this from now on, if that is less than the budget."""
        self._room = room if self._files is None else room - self._files.backlog
        self._evict()

    def forget(self, model: str) -> None:
        """Give back everything of a model, whoever it belongs to."""
        for scope in [scope for scope in self._roots if scope.startswith(model)]:
            for node in _below(self._roots.pop(scope)):
                self._blocks_nbytes -= node.nbytes
                self._write(node)
        self._checkpoints.forget(model)

    def _path(self, model: str, tokens: Sequence[int]) -> list[_Node]:
        """Return the nodes that the tokens lead through, marked as used."""
        children, path = self._roots.get(model, {}), []
        for start in range(0, len(tokens) - BLOCK + 1, BLOCK):
            node = children.get(tuple(tokens[start : start + BLOCK]))
            if node is None:
                break
            node.used = next(self._clock)
            path.append(node)
            children = node.children
        return path

    def fetch(self, model: str, tokens: Sequence[int], layout: BlockLayout, most: int) -> bool:
        """Bring so many blocks of these tokens, at most, from the files into memory; return whether that was all."""
        return self._read_on(model, tokens, self._path(model, tokens), layout, most)

    def _read_on(
        self, model: str, tokens: Sequence[int], path: list[_Node], layout: BlockLayout, most: int = sys.maxsize
    ) -> bool:
        """Append to the path so many blocks of what the files hold behind it; return whether that was all.

        All means as many as there is memory for, which others give up for them.
        """
        if self._files is None:
            return True
        most += len(path)
        for start in range(len(path) * BLOCK, len(tokens) - BLOCK + 1, BLOCK):
            block = tuple(tokens[start : start + BLOCK])
            parent = path[-1] if path else None
            name = link(parent.name if parent else root(model), block)
            found = self._files.read(name, layout.taken)
            if found is None:
                return True
            path.append(self._add(model, parent, block, *found))
            if len(path) % READ_AT_ONCE == 0:
                self._evict()
                if path[-1].gone:
                    # From the end: those before are what it hangs on.
                    while path and path[-1].gone:
                        path.pop()
                    return True
            if len(path) == most:
                return False
        return True

    def _add(self, model: str, parent: _Node | None, block: Tokens, keys: mx.array, values: mx.array) -> _Node:
        siblings = parent.children if parent else self._roots.setdefault(model, {})
        name = link(parent.name if parent else root(model), block)
        node = siblings[block] = _Node(name, parent, siblings, block, keys, values, next(self._clock))
        self._blocks_nbytes += node.nbytes
        return node

    def _evict(self) -> None:
        budget = min(self._budget, self._room)
        if self.nbytes <= budget:
            return
        everything = [node for root in self._roots.values() for node in _below(root)]
        leaves = [(node.used, id(node), node) for node in everything if not node.children]
        heapify(leaves)
        while self.nbytes > budget and (leaves or self._checkpoints):
            if self._checkpoints and (not leaves or self._checkpoints.oldest < leaves[0][0]):
                self._checkpoints.drop_oldest()
                continue
            _, _, leaf = heappop(leaves)
            del leaf.siblings[leaf.tokens]
            self._write(leaf)
            self._blocks_nbytes -= leaf.nbytes
            if leaf.parent is not None and not leaf.siblings:
                heappush(leaves, (leaf.parent.used, id(leaf.parent), leaf.parent))


def _with_room(blocks: list[mx.array], length: int) -> mx.array:
    """Return blocks behind each other, with room for so many tokens and one more, in whole steps as KVCache has it.

    Else they would all be copied again when the rest is read.
    """
    rows, heads, _, dimensions = blocks[0].shape
    held = len(blocks) * BLOCK
    capacity = (max(held, length) // KVCache.step + 1) * KVCache.step
    room = mx.zeros((rows, heads, capacity - held, dimensions), blocks[0].dtype)
    return mx.concatenate([*blocks, room], axis=2)


def _below(root: dict[Tokens, _Node]) -> list[_Node]:
    """Return all nodes below a root."""
    found = list(root.values())
    # The list grows while it is read.
    for node in found:
        found.extend(node.children.values())
    return found


def keepable(caches: Sequence[Any]) -> bool:
    """Tell whether the caches of one row are plain keys and values, of one shape in every layer."""
    if not caches or any(type(cache) is not KVCache or cache.keys is None for cache in caches):
        return False
    heads = {cache.keys.shape[:2] + cache.keys.shape[3:] for cache in caches}
    dimensions = {cache.values.shape[:2] + cache.values.shape[3:] for cache in caches}
    return len(heads) == len(dimensions) == 1
