"""Drafts: what is looked up, when it is given up, and that no answer changes."""

from pathlib import Path
from random import Random
from typing import Any

import pytest
from attrs import define, field
from hypothesis import given
from hypothesis import strategies as st

from osaurus.chat import Finished, Sampling
from osaurus.engine.backend import Backend
from osaurus.engine.speculation import MOST_DRAFTED, NGRAM, Drafter

from .desk import Desk

TEXTS = ["aaaa bbbb aaaa bbbb " * 6, "def f(x):\n    return x\n\n" * 5, "no repetition here", "1 2 3 1 2 3 1 2 3"]


def test_what_followed_the_last_tokens_before_is_the_draft() -> None:
    assert Drafter().draft([1, 2, 3, 4, 5, 6, 1, 2, 3], 2) == [4, 5]


def test_the_latest_occurrence_counts() -> None:
    assert Drafter().draft([1, 2, 3, 4, 1, 2, 3, 5, 1, 2, 3], 1) == [5]


def test_what_repeats_at_the_end_repeats_again() -> None:
    assert Drafter().draft([1, 2, 3, 1, 2, 3], 5) == [1, 2, 3, 1, 2]


@pytest.mark.parametrize("sequence", [[], [1], [1, 2, 3], [1, 2, 3, 4, 5]])
def test_what_never_occurred_has_no_draft(sequence: list[int]) -> None:
    assert Drafter().draft(sequence, 8) == []


@given(sequence=st.lists(st.integers(0, 3), max_size=60), most=st.integers(0, 20))
def test_a_draft_has_followed_the_same_tokens_before(sequence: list[int], most: int) -> None:
    draft = Drafter().draft(sequence, most)
    assert len(draft) <= min(most, MOST_DRAFTED)
    if draft:
        wanted = [*sequence[-NGRAM:], *draft]
        whole = sequence + draft
        assert any(whole[start : start + len(wanted)] == wanted for start in range(len(sequence) - NGRAM))


@given(sequence=st.lists(st.integers(0, 2), min_size=1, max_size=40))
def test_a_sequence_that_grows_is_drafted_like_one_that_is_new(sequence: list[int]) -> None:
    growing = Drafter()
    for end in range(1, len(sequence) + 1):
        assert growing.draft(sequence[:end], 4) == Drafter().draft(sequence[:end], 4)


def test_bad_drafts_are_given_up_for_longer_each_time_and_good_ones_are_not() -> None:
    drafter, repeating = Drafter(), [1, 2, 3, 4, 1, 2, 3]
    pauses: list[int] = []
    for _ in range(10):
        pause = 0
        while not drafter.draft(repeating, 1):
            pause += 1
        drafter.checked(1, 0)
        pauses.append(pause)
    assert pauses == [0, 0, 4, 8, 16, 32, 64, 64, 64, 64]
    for _ in range(20):
        drafter.checked(1, 1)
    for _ in range(65):
        drafter.draft(repeating, 1)
    assert drafter.draft(repeating, 1) == [4]


def desk(backend: Backend, models: Path, *, speculation: bool) -> Desk:
    from osaurus.engine.mlx_engine import MLXEngine
    from osaurus.engine.prefixes import PrefixCache

    return Desk(MLXEngine(backend, PrefixCache(2**24), 2**32, speculation), models)


@define
class Oracle:
    """Knows how rows go on, since it has seen them, and drafts that, with a mistake here and there."""

    seen: list[list[int]] = field(factory=list)
    checked: list[tuple[int, int]] = field(factory=list)
    random: Random = field(factory=lambda: Random(0))

    def draft(self, sequence: list[int], most: int) -> list[int]:
        found = next((whole for whole in self.seen if whole[: len(sequence)] == sequence), [])
        draft = found[len(sequence) : len(sequence) + min(most, self.random.randint(0, 6))]
        if draft and self.random.random() < 0.6:
            draft[self.random.randrange(len(draft))] += 1
        return draft


@pytest.fixture
def oracle(backend: Backend, monkeypatch: pytest.MonkeyPatch) -> Oracle:
    """Every row is drafted by an oracle, and every draft is checked, whatever it costs."""
    from osaurus.engine.pace import Pace
    from osaurus.engine.progress import Progress

    oracle = Oracle()
    finished = Progress.finished

    def see(progress: Progress, *rest: Any) -> Any:
        oracle.seen.append(list(progress.sequence))
        return finished(progress, *rest)

    monkeypatch.setattr(Progress, "finished", see)
    monkeypatch.setattr(Pace, "worth", lambda *_: True)
    monkeypatch.setattr(Drafter, "draft", lambda _, sequence, most: oracle.draft(sequence, most))
    monkeypatch.setattr(Drafter, "checked", lambda _, *counts: oracle.checked.append(counts))
    return oracle


@pytest.mark.parametrize(
    "changes",
    [
        {"sampling": Sampling(temperature=0)},
        {"sampling": Sampling(temperature=0.05, seed=4)},
        {"sampling": Sampling(temperature=0, frequency_penalty=0.05)},
        {"sampling": Sampling(temperature=0), "stop": ("aa",)},
        {"sampling": Sampling(temperature=0), "max_tokens": 5},
    ],
)
def test_answers_are_the_same_with_and_without_drafts(
    backend: Backend, tiny_models: Path, oracle: Oracle, changes: dict[str, Any]
) -> None:
    fields = {"max_tokens": 60, **changes}
    plain = desk(backend, tiny_models, speculation=False)
    expected = [plain.alone(text, **fields) for text in TEXTS]
    assert oracle.checked == []
    drafting = desk(backend, tiny_models, speculation=True)
    assert [drafting.alone(text, **fields) for text in TEXTS] == expected
    together = desk(backend, tiny_models, speculation=True)
    for number, text in enumerate(TEXTS):
        together.add(number, text, **fields)
    together.finish()
    assert [together.texts.get(number, "") for number in range(len(TEXTS))] == expected
    # Some drafts were wholly right, some partly, some not at all.
    assert {0 if not right else 2 if right == drafted else 1 for drafted, right in oracle.checked} >= {0, 2}


def test_a_model_that_repeats_itself_takes_fewer_steps(
    backend: Backend, tiny_models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from osaurus.engine.pace import Pace

    monkeypatch.setattr(Pace, "worth", lambda *_: True)
    # A bias makes the model say one token for ever: every draft is right.
    forced = Sampling(temperature=0, bias=((40, 100.0),))
    steps = []
    for speculation in (False, True):
        engine = desk(backend, tiny_models, speculation=speculation)
        engine.add(1, "Hello", sampling=forced, max_tokens=100)
        count = 0
        while engine.engine.busy:
            engine.step()
            count += 1
        steps.append(count)
        end = engine.ends[1]
        assert isinstance(end, Finished)
        assert end.usage.completion_tokens == 100
    assert steps[1] * 3 < steps[0]


def test_rows_that_leave_and_join_beside_drafts_say_what_they_say_alone(
    backend: Backend, tiny_models: Path, oracle: Oracle
) -> None:
    plain = desk(backend, tiny_models, speculation=False)
    expected = [plain.alone(text, max_tokens=30 + 10 * number) for number, text in enumerate(TEXTS)]
    together = desk(backend, tiny_models, speculation=True)
    for number, text in enumerate(TEXTS):
        together.add(number, text, max_tokens=30 + 10 * number)
        together.add(number + 10, text, max_tokens=200)
        for _ in range(5):
            together.step()
        together.engine.remove(number + 10)
    texts = together.finish()
    assert [texts.get(number, "") for number in range(len(TEXTS))] == expected
    assert oracle.checked


def test_what_was_drafted_and_kept_is_no_part_of_a_prefix(backend: Backend, tiny_models: Path, oracle: Oracle) -> None:
    plain = desk(backend, tiny_models, speculation=False)
    drafting = desk(backend, tiny_models, speculation=True)
    for text in TEXTS:
        said = drafting.alone(text, max_tokens=64)
        assert drafting.alone(text + said + " and", max_tokens=20) == plain.alone(text + said + " and", max_tokens=20)
