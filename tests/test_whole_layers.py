"""Layers that are computed as a whole: exactly what their own code computes, for every kind of step."""

from collections.abc import Callable, Iterator
from importlib import import_module
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from osaurus.engine.backend import Backend

from .conftest import ROTATING_CONFIG, TINY_CONFIG
from .test_kernels import BIASED, CAPPED, MIXTURE, SCALED, random_network

Halves = npt.NDArray[np.float16]

DENSE = TINY_CONFIG | {"model_type": "qwen3", "head_dim": 16, "tie_word_embeddings": False}
KNOWN = {
    "llama": TINY_CONFIG,
    "llama with biases and scaled rotation": SCALED,
    "qwen2": BIASED,
    "qwen3": DENSE,
}
OTHERS = {"gemma2": CAPPED, "gemma3": ROTATING_CONFIG, "a mixture of experts": MIXTURE}


@pytest.fixture
def whole_layers(backend: Backend) -> Any:
    pytest.importorskip("osaurus_cpu", exc_type=ImportError)
    return import_module("osaurus.engine.whole_layers")


def installed(config: dict[str, Any]) -> Any:
    """Return such a network, computed by the kernels."""
    made = random_network(config, 8)
    import_module("osaurus.engine.kernels").install(made)
    return made


@pytest.fixture(params=KNOWN)
def known(request: pytest.FixtureRequest, whole_layers: Any) -> Any:
    return installed(KNOWN[request.param])


@pytest.fixture
def by_hand(whole_layers: Any, monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[], Any]], Any]:
    """Returns what something returns while layers are computed by their own code."""

    def call(something: Callable[[], Any]) -> Any:
        with monkeypatch.context() as patch:
            patch.setattr(whole_layers.WholeLayer, "step", lambda *_: None)
            return something()

    return call


def caches_of(made: Any) -> Any:
    from mlx_lm.models.cache import make_prompt_cache

    return make_prompt_cache(made)


def logits(made: Any, caches: Any, *rows: list[int]) -> npt.NDArray[np.float32]:
    import mlx.core as mx

    return np.array(made(mx.array(rows), cache=caches))


def kept(caches: Any) -> list[tuple[Halves, Halves]]:
    """Return what caches hold; padding, which nobody sees, included."""
    import mlx.core as mx

    assert all(cache.keys.dtype == mx.float16 for cache in caches)
    return [tuple(np.array(part) for part in cache.keys_and_values()) for cache in caches]  # type: ignore[misc]


def same(found: Any, expected: Any) -> bool:
    """Tell whether two nests of arrays are the same to the last bit."""
    if isinstance(found, np.ndarray):
        return bool(np.array_equal(found, expected))
    return len(found) == len(expected) and all(map(same, found, expected))


def conversation(made: Any) -> Iterator[Any]:
    """Read a prompt in pieces, write token by token beyond the room that a cache begins with, and go back."""
    caches = caches_of(made)
    yield logits(made, caches, list(range(1, 40)))
    yield logits(made, caches, list(range(40, 57)))
    for token in (3, 199, 0):
        yield logits(made, caches, [token])
    for cache in caches:
        cache.trim(2)
    yield logits(made, caches, [7, 8, 9, 10])
    yield logits(made, caches, [token % 200 for token in range(198)])
    yield logits(made, caches, [11])
    yield kept(caches)


def test_what_it_computes_and_keeps_is_what_its_own_code_does(known: Any, by_hand: Any) -> None:
    found, expected = list(conversation(known)), by_hand(lambda: list(conversation(known)))
    assert same(found, expected)


def batch(made: Any) -> Iterator[Any]:
    """Have rows of unequal lengths write together, one be wrong about its last tokens, and one leave."""
    from osaurus.engine.joining import line_up

    rows = [caches_of(made) for _ in range(3)]
    for caches, prompt in zip(rows, ([1, 2, 3, 4, 5], [6], list(range(30))), strict=True):
        logits(made, caches, prompt)
    together = [type(caches[0]).merge(list(caches)) for caches in zip(*rows, strict=True)]
    yield logits(made, together, [7], [8], [9])
    yield logits(made, together, [1, 2, 3], [4, 0, 0], [5, 6, 0])
    line_up(together, [0, 2, 1])
    yield logits(made, together, [7], [8], [9])
    for cache in together:
        cache.filter([0, 1])
    yield logits(made, together, [7], [8])
    yield kept(together)


def test_rows_that_are_computed_together_are_what_their_own_code_makes_of_them(known: Any, by_hand: Any) -> None:
    # What stands in the padding differs with what was in memory, and is never seen.
    found, expected = list(batch(known)), by_hand(lambda: list(batch(known)))
    assert same(found[:-1], expected[:-1])


def reading(made: Any, first: int) -> Iterator[Any]:
    """Have three rows read together, prompts of unequal lengths behind so many tokens each."""
    from osaurus.engine.joining import line_up

    rows = [caches_of(made) for _ in range(3)]
    for number, caches in enumerate(rows):
        if first:
            logits(made, caches, [number, *(token % 200 for token in range(1, first))])
    together = [type(caches[0]).merge(list(caches)) for caches in zip(*rows, strict=True)]
    yield logits(made, together, [1, 2, 3, 4], [5, 6, 0, 0], [7, 0, 0, 0])[:, 0]
    line_up(together, [0, 2, 3])
    for number in range(3):
        alone = [cache.extract(number) for cache in together]
        yield kept(alone)
        yield logits(made, alone, [9])


@pytest.mark.parametrize("first", [0, 5, 254])
def test_rows_that_read_together_are_computed_as_a_whole(
    known: Any, by_hand: Any, whole_layers: Any, first: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = []
    step = whole_layers.WholeLayer.step

    def watched(*given: Any) -> Any:
        steps.append(step(*given))
        return steps[-1]

    with monkeypatch.context() as patch:
        patch.setattr(whole_layers.WholeLayer, "step", watched)
        found = list(reading(known, first))
    assert all(output is not None for output in steps)
    assert same(found, by_hand(lambda: list(reading(known, first))))


def test_biases_that_were_part_of_something_are_taken_as_they_are(whole_layers: Any, by_hand: Any) -> None:
    import mlx.core as mx

    made = random_network(SCALED, 8)
    for layer in made.layers:
        projection = layer.self_attn.q_proj
        projection.bias = mx.random.normal((2 * projection.bias.size,), mx.float32)[::2]
    import_module("osaurus.engine.kernels").install(made)
    assert same(logits(made, caches_of(made), [1, 2]), by_hand(lambda: logits(made, caches_of(made), [1, 2])))


def test_layers_of_the_known_kind_are_found_and_others_left_alone(whole_layers: Any) -> None:
    from osaurus.engine.packed import pack
    from osaurus.engine.rotations import Rotations

    def count(config: dict[str, Any]) -> int:
        made = random_network(config, 8)
        pack(made)
        return len(whole_layers.find(made, Rotations()))

    assert {name: count(config) for name, config in KNOWN.items()} == dict.fromkeys(KNOWN, 2)
    assert {name: count(config) for name, config in OTHERS.items()} == dict.fromkeys(OTHERS, 0)


def test_a_layer_whose_weights_are_not_quantised_is_left_alone(whole_layers: Any) -> None:
    from osaurus.engine.packed import pack
    from osaurus.engine.rotations import Rotations

    made, other = random_network(DENSE, 8), random_network(DENSE, 8)
    made.layers[0].mlp.down_proj = other.layers[0].mlp.down_proj.__class__(32, 32, bits=8, mode="mxfp8", group_size=32)
    pack(made)
    assert [layer for layer, _ in whole_layers.find(made, Rotations())] == made.layers[1:]


def address(array: Any) -> int:
    return int(np.array(array, copy=False).ctypes.data)


def test_keys_and_values_are_written_where_they_are_kept(known: Any) -> None:
    caches = caches_of(known)
    logits(known, caches, [1, 2, 3])
    before = [(address(cache.keys), address(cache.values)) for cache in caches]
    logits(known, caches, [4])
    assert [(address(cache.keys), address(cache.values)) for cache in caches] == before


def test_what_somebody_else_holds_stays_as_it_was(known: Any) -> None:
    caches = caches_of(known)
    logits(known, caches, [1, 2, 3])
    held = [(cache.keys, cache.values) for cache in caches]
    before = [(np.array(keys), np.array(values)) for keys, values in held]
    logits(known, caches, [4])
    assert same([(np.array(keys), np.array(values)) for keys, values in held], before)
    assert not same(kept(caches)[0][0][..., 3:4, :], before[0][0][..., 3:4, :])


def test_a_cache_of_another_kind_is_the_business_of_the_layer_itself(known: Any, by_hand: Any) -> None:
    from mlx_lm.models.cache import RotatingKVCache

    def read() -> list[Any]:
        caches = [RotatingKVCache(8, keep=2) for _ in known.layers]
        return [logits(known, caches, [1, 2, 3, 4, 5, 6]), *(logits(known, caches, [token]) for token in range(6))]

    assert same(read(), by_hand(read))


def test_parts_that_do_not_fit_together_are_refused(whole_layers: Any) -> None:
    import mlx.core as mx
    import osaurus_cpu as cpu

    def matrix(rows: int, columns: int) -> Any:
        quantised = mx.quantize(mx.zeros((rows, columns)), 32, 4)
        mx.eval(quantised)
        return cpu.pack(*quantised, 4, 32), None

    def layer(**changed: Any) -> Any:
        ones = mx.ones((64,))
        mx.eval(ones)
        norm = (ones, 1e-5)
        parts: dict[str, Any] = {
            "heads": 4,
            "scale": 0.25,
            "rotation": cpu.Rotation([1.0] * 8, False),
            "norms": (norm, norm),
            "head_norms": None,
            "projections": [matrix(64, 64), matrix(32, 64), matrix(32, 64), matrix(64, 64)],
            "network": [matrix(96, 64), matrix(96, 64), matrix(64, 96)],
            "gate": "silu",
        }
        return cpu.Layer(**(parts | changed))

    for changed in (
        {"heads": 3},
        {"heads": 0},
        {"rotation": cpu.Rotation([1.0] * 9, False)},
        {"norms": ((mx.ones((32,)), 1e-5), (mx.ones((64,)), 1e-5))},
        {"projections": [matrix(64, 64)] * 3},
        {"projections": [matrix(64, 64), matrix(32, 64), matrix(64, 64), matrix(64, 64)]},
        {"network": [matrix(96, 64), matrix(64, 64), matrix(64, 96)]},
        {"network": [matrix(96, 64), (None, None), matrix(64, 96)]},
        {"projections": [(None, None), matrix(32, 64), matrix(32, 64), matrix(64, 64)]},
        {"gate": "tanh"},
    ):
        with pytest.raises(ValueError, match="must"):
            layer(**changed)
    x, room = mx.zeros((1, 2, 64)), mx.zeros((1, 2, 4, 16), mx.float16)
    for arguments in (
        (x[0], room, room, 0),
        (x, room.astype(mx.float32), room, 0),
        (x, room[:, :1], room, 0),
        (x, room, room, 3),
        (x, room, room, -1),
        (x, room, room, 0, 0, mx.zeros((3,), mx.int32)),
    ):
        with pytest.raises(ValueError, match="must"):
            layer().begin(*arguments)
    for seen in (1, 5):
        with pytest.raises(ValueError, match="can be seen"):
            layer().finish(x, mx.zeros((1, 2, 128)), room, room, seen)
