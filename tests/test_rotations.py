"""Which angles rotary embeddings turn by: shared by what turns alike, and not kept for ever."""

from importlib import import_module
from typing import Any

import pytest

from osaurus.engine.backend import Backend


@pytest.fixture
def rotations(backend: Backend) -> Any:
    pytest.importorskip("osaurus_cpu", exc_type=ImportError)
    return import_module("osaurus.engine.rotations").Rotations()


def test_frequencies_are_told_by_their_numbers(rotations: Any) -> None:
    import mlx.core as mx

    periods = mx.array([1.0, 10.0, 100.0, 1000.0])
    found = rotations.find(8, False, None, 1.0, periods)
    # Some networks make them anew in each call.
    assert rotations.find(8, False, None, 1.0, periods * 1) is found
    assert rotations.find(8, False, None, 1.0, mx.array([1000.0, 100.0, 10.0, 1.0])[::-1]) is found
    others = [
        rotations.find(8, False, None, 1.0, -periods),
        rotations.find(8, False, None, 0.5, periods),
        rotations.find(8, True, None, 1.0, periods),
        rotations.find(8, False, 10000.0, 1.0, None),
    ]
    assert len({id(one) for one in (found, *others)}) == 5


def test_of_frequencies_without_end_the_latest_are_kept(rotations: Any) -> None:
    # Some networks have others for each length of a text.
    found = [rotations.find(8, False, 10000.0 + length, 1.0, None) for length in range(200)]
    assert rotations.find(8, False, 10199.0, 1.0, None) is found[-1]
    assert rotations.find(8, False, 10000.0, 1.0, None) is not found[0]
