"""How much may be read between two steps."""

import pytest

from osaurus.engine.backend import Backend


@pytest.fixture(autouse=True)
def _prepared(backend: Backend) -> None:
    """MLX may be imported."""


def test_while_nobody_writes_and_nothing_is_known_reading_goes_in_chunks_of_the_usual_size() -> None:
    from osaurus.engine.pace import Pace

    assert Pace(128).chunk(0) == 128


@pytest.mark.parametrize(("token", "usual", "allowed"), [(0.0001, 128, 512), (0.001, 128, 300), (0.0001, 1024, 1024)])
def test_while_nobody_writes_as_much_is_read_at_once_as_takes_no_longer_than_anybody_should_wait(
    token: float, usual: int, allowed: int
) -> None:
    from osaurus.engine.pace import Pace

    pace = Pace(usual)
    pace.took(100 * token, 0, 100)
    assert abs(pace.chunk(0) - allowed) <= 1


def test_a_model_that_reads_slowly_still_reads_chunks_of_the_usual_size() -> None:
    from osaurus.engine.pace import Pace

    pace = Pace(128)
    pace.took(5.0, 0, 100)
    assert pace.chunk(0) == 128


def test_beside_writers_no_more_is_read_than_usual_however_fast_it_goes() -> None:
    from osaurus.engine.pace import Pace

    pace = Pace(128)
    pace.took(0.1, 1, 0)
    pace.took(0.201, 1, 100)
    assert pace.chunk(1) == 128


def test_before_anything_is_known_reading_beside_writers_is_careful() -> None:
    from osaurus.engine.pace import LEAST_CHUNK, Pace

    assert Pace(128).chunk(1) == LEAST_CHUNK


@pytest.mark.parametrize(("token", "allowed"), [(0.001, 128), (0.005, 40), (1.0, 4)])
def test_reading_takes_a_few_steps_time(token: float, allowed: int) -> None:
    from osaurus.engine.pace import Pace

    pace = Pace(128)
    for _ in range(50):
        pace.took(0.1, 1, 0)
        pace.took(0.1 + 50 * token, 1, 50)
    # Two steps of a tenth of a second, in tokens.
    assert abs(pace.chunk(1) - allowed) <= 1


@pytest.mark.parametrize("apiece", [0.0, 0.05, 0.1, 0.15])
def test_whatever_a_pass_costs_before_it_has_read_anything_no_step_takes_longer_than_it_may(apiece: float) -> None:
    from osaurus.engine.pace import READING_SHARE, Pace

    pace = Pace(128)
    pace.took(0.1, 1, 0)
    for _ in range(100):
        chunk = pace.chunk(1)
        took = 0.1 + apiece * (chunk > 0) + 0.002 * chunk
        assert took <= 0.1 * READING_SHARE + 0.002
        pace.took(took, 1, chunk)
    assert took > 0.1 * READING_SHARE - 0.02


def test_what_is_learnt_while_nobody_writes_is_not_told_of_small_chunks_beside_writers() -> None:
    from osaurus.engine.pace import LEAST_CHUNK, Pace

    pace = Pace(128)
    pace.took(0.001, 0, 100)
    pace.took(0.1, 1, 0)
    assert pace.chunk(1) == LEAST_CHUNK


def test_what_is_learnt_beside_writers_is_not_told_of_large_chunks() -> None:
    from osaurus.engine.pace import Pace

    pace = Pace(128)
    pace.took(0.1, 0, 100)
    before = pace.chunk(0)
    pace.took(0.1, 1, 0)
    pace.took(10.0, 1, 100)
    assert pace.chunk(0) == before


def test_a_step_beside_reading_tells_what_steps_cost_when_nothing_else_did() -> None:
    from osaurus.engine.pace import Pace

    pace = Pace(128)
    pace.took(1.0, 0, 100)
    pace.took(0.1 + 0.1 + 0.16, 1, 16)
    pace.took(0.1 + 0.16, 1, 16)
    assert abs(pace.chunk(1) - 20) <= 1


def test_a_few_tokens_tell_nothing_of_the_price_of_many() -> None:
    from osaurus.engine.pace import Pace

    pace = Pace(128)
    pace.took(0.1, 1, 0)
    pace.took(0.1 + 0.2, 1, 20)
    pace.took(0.1 + 0.1, 1, 3)
    assert abs(pace.chunk(1) - 20) <= 1


def test_a_price_that_rises_is_believed_at_once_and_one_that_falls_bit_by_bit() -> None:
    from osaurus.engine.pace import Pace

    pace = Pace(128)
    for _ in range(50):
        pace.took(0.1, 1, 0)
        pace.took(0.1 + 0.2, 1, 40)
    before = pace.chunk(1)
    pace.took(0.1 + 0.4, 1, 40)
    assert abs(pace.chunk(1) - before // 2) <= 1
    pace.took(0.1 + 0.2, 1, 40)
    assert before // 2 < pace.chunk(1) < before


def test_the_end_of_a_prompt_does_not_make_the_chunks_of_the_next_one_small() -> None:
    from osaurus.engine.pace import Pace

    pace = Pace(128)
    pace.took(0.1, 1, 0)
    for _ in range(50):
        pace.took(0.1 + 0.1 + 0.002 * 75, 1, 75)
    before = pace.chunk(1)
    pace.took(0.1 + 0.1 + 0.002 * 8, 1, 8)
    pace.took(0.1 + 0.1 + 0.002 * 3, 1, 3)
    assert pace.chunk(1) == before


def test_a_large_chunk_that_was_held_up_is_forgotten_by_smaller_ones() -> None:
    from osaurus.engine.pace import Pace

    def read(seconds: float = 0.0) -> int:
        chunk = pace.chunk(1)
        pace.took(0.1 + seconds + 0.05 + 0.002 * chunk, 1, chunk)
        return chunk

    pace = Pace(128)
    pace.took(0.1, 1, 0)
    for _ in range(30):
        before = read()
    read(seconds=10)
    assert read() < before
    for _ in range(60):
        after = read()
        pace.took(0.1, 1, 0)
    assert abs(after - before) <= 1


def test_now_and_then_a_step_reads_nothing_to_see_what_it_takes() -> None:
    from osaurus.engine.pace import Pace

    pace = Pace(128)
    pace.took(0.1, 1, 0)
    for _ in range(200):
        if chunk := pace.chunk(1):
            pace.took(0.05 + 0.01 * chunk, 1, chunk)
        else:
            pace.took(0.05, 1, 0)
    # The machine is twice as fast as it was.
    assert 0.05 + 0.01 * pace.chunk(1) < 0.22
    assert pace.chunk(1) > 0


def test_beside_drafts_no_step_is_without_reading() -> None:
    from osaurus.engine.pace import Pace

    pace = Pace(128)
    pace.took(0.1, 1, 0)
    for _ in range(200):
        pace.took(0.3, 1, 4, width=3)
        assert pace.chunk(1, 3)


def test_what_drafts_cost_is_learnt_from_passes_over_them() -> None:
    from osaurus.engine.pace import Pace

    pace = Pace(128)
    pace.took(0.1, 2, 0)
    for _ in range(50):
        pace.took(0.1 + 2 * 4 * 0.05, 2, 0, width=5)
    # Twice a step for four more tokens of each of two rows would be level with five in all.
    assert pace.gain(2, 5, 10) == pytest.approx(1)


def test_until_drafts_were_tried_a_token_of_theirs_costs_what_one_does_that_is_read() -> None:
    from osaurus.engine.pace import Pace

    pace = Pace(128)
    pace.took(1.0, 0, 100)
    pace.took(0.1, 1, 0)
    assert pace.gain(1, 11, 11) == pytest.approx(11 / 2)


def test_drafts_do_not_change_what_reading_beside_them_costs() -> None:
    from osaurus.engine.pace import Pace

    pace = Pace(128)
    pace.took(0.1, 1, 0)
    for _ in range(50):
        pace.took(0.1 + 8 * 0.05, 1, 0, width=9)
    pace.took(0.1 + 8 * 0.05 + 40 * 0.005, 1, 40, width=9)
    assert abs(pace.chunk(1) - 40) <= 1


def test_beside_drafts_there_is_less_time_for_reading() -> None:
    from osaurus.engine.pace import LEAST_CHUNK, Pace

    pace = Pace(128)
    pace.took(0.1, 1, 0)
    for _ in range(50):
        pace.took(0.1 + 2 * 0.05, 1, 0, width=3)
    pace.took(0.1 + 40 * 0.01, 1, 40)
    assert abs(pace.chunk(1) - 20) <= 1
    assert abs(pace.chunk(1, 3) - 10) <= 1
    assert pace.chunk(1, 16) == LEAST_CHUNK


def test_a_row_without_a_draft_waits_no_longer_for_those_of_others_than_for_a_step_more() -> None:
    from osaurus.engine.pace import Pace

    pace = Pace(128)
    assert pace.widest(4) == 1
    pace.took(0.1, 4, 0)
    # A draft of one token tells what they cost.
    assert pace.widest(4) == 2
    for _ in range(50):
        pace.took(0.1 + 4 * 3 * 0.01, 4, 0, width=4)
    # Four tokens for each width: in one more step there is time for two more of each row.
    assert pace.widest(4) == 3
    assert abs(pace.widest(1) - 11) <= 1


def test_a_pass_over_drafts_that_was_held_up_does_not_end_drafting() -> None:
    from osaurus.engine.pace import Pace

    pace = Pace(128)
    pace.took(0.6, 0, 100)
    pace.took(0.005, 1, 0)
    pace.took(1.0, 1, 0, width=2)
    assert not pace.worth(1, 16, 8)
    for _ in range(200):
        pace.took(0.0005 * 100, 0, 100)
        pace.took(0.005, 1, 0)
    assert pace.worth(1, 16, 8)


def test_a_step_that_was_held_up_says_little() -> None:
    from osaurus.engine.pace import Pace

    pace = Pace(128)
    for _ in range(50):
        pace.took(0.1, 1, 0)
        pace.took(0.1 + 40 * 0.01, 1, 40)
    pace.took(10.0, 1, 0)
    assert pace.chunk(1) <= 50
    pace.took(10.0, 1, 20)
    assert pace.chunk(1) >= 5


def test_what_a_step_of_many_rows_takes_is_learnt_though_others_read_all_the_time() -> None:
    from osaurus.engine.pace import Pace

    pace = Pace(128)
    pace.took(0.1, 0, 100)
    pace.took(0.005, 1, 0)
    for _ in range(30):
        pace.took(0.025 + 0.005 + 20 * 0.001, 16, 20)
    # With the step of a single row there would be time for five. What is not known apart is shared by both.
    assert pace.chunk(16) > 12
