"""How much may be read between two steps."""

import pytest

from osaurus.engine.backend import Backend


@pytest.fixture(autouse=True)
def _prepared(backend: Backend) -> None:
    """MLX may be imported."""


def test_while_nobody_writes_reading_goes_in_the_largest_chunks() -> None:
    from osaurus.engine.pace import Pace

    assert Pace(128).chunk(0) == 128


def test_before_anything_is_known_reading_beside_writers_is_careful() -> None:
    from osaurus.engine.pace import LEAST_CHUNK, Pace

    assert Pace(128).chunk(1) == LEAST_CHUNK


@pytest.mark.parametrize(("token", "allowed"), [(0.001, 128), (0.005, 60), (1.0, 16)])
def test_reading_takes_a_few_steps_time(token: float, allowed: int) -> None:
    from osaurus.engine.pace import Pace

    pace = Pace(128)
    for _ in range(50):
        pace.took(0.1, 1, 0)
        pace.took(0.1 + 50 * token, 1, 50)
    # Three steps of a tenth of a second, in tokens.
    assert abs(pace.chunk(1) - allowed) <= 1


def test_what_is_learnt_while_nobody_writes_counts_too() -> None:
    from osaurus.engine.pace import Pace

    pace = Pace(128)
    pace.took(1.0, 0, 100)
    pace.took(0.1, 1, 0)
    assert abs(pace.chunk(1) - 30) <= 1


def test_a_step_beside_reading_tells_what_steps_cost_when_nothing_else_did() -> None:
    from osaurus.engine.pace import Pace

    pace = Pace(128)
    pace.took(1.0, 0, 100)
    pace.took(0.26, 1, 16)
    assert abs(pace.chunk(1) - 30) <= 1


def test_a_few_tokens_tell_nothing_of_the_price_of_many() -> None:
    from osaurus.engine.pace import Pace

    pace = Pace(128)
    pace.took(1.0, 0, 100)
    pace.took(0.1, 1, 0)
    pace.took(0.1, 1, 5)
    assert abs(pace.chunk(1) - 30) <= 1
