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
from osaurus.engine.speculation import MOST_DRAFTED, MOST_LEARNT, NGRAMS, Drafter

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
        whole = sequence + draft
        assert any(
            whole[start : start + length + len(draft)] == [*sequence[-length:], *draft]
            for length in NGRAMS
            for start in range(len(sequence) - length)
        )


@given(sequence=st.lists(st.integers(0, 2), min_size=1, max_size=40))
def test_a_sequence_that_grows_is_drafted_like_one_that_is_new(sequence: list[int]) -> None:
    growing = Drafter()
    for end in range(1, len(sequence) + 1):
        assert growing.draft(sequence[:end], 4) == Drafter().draft(sequence[:end], 4)


def foretold(drafter: Drafter, sequence: list[int], drafted: int) -> float:
    """How many tokens a pass with that much of a draft is expected to yield."""
    drafter.draft(sequence, drafted)
    return drafter.expected(drafted)


def test_more_is_expected_of_a_row_that_copies() -> None:
    copied = list(range(100, 160))
    drafter = Drafter()
    before = foretold(drafter, [*copied, *copied[:3]], 8)
    assert 1 < before < 8
    after = foretold(drafter, [*copied, *copied[:40]], 8)
    assert before < after < 9


def test_little_is_expected_of_a_row_that_goes_its_own_ways_and_more_soon_when_it_begins_to_copy() -> None:
    # What was said comes again and goes on otherwise each time.
    sequence = [token for number in range(40) for token in (1, 2, 3, 100 + number)]
    drafter = Drafter()
    foretold(drafter, sequence[:20], 8)
    drafter.draft(sequence, 8)
    at_a_loss = foretold(drafter, [*sequence, 1, 2, 3], 8)
    assert at_a_loss < 1.5
    copying = [*sequence, *sequence[:12]]
    assert foretold(drafter, copying, 8) > 2 * at_a_loss


def test_where_nothing_occurred_before_one_token_is_expected() -> None:
    assert foretold(Drafter(), [1, 2, 3, 4], 8) == 1


@given(sequence=st.lists(st.integers(0, 2), min_size=1, max_size=60), drafted=st.integers(0, 16))
def test_what_is_expected_grows_with_the_draft_and_is_never_more_than_it_holds(
    sequence: list[int], drafted: int
) -> None:
    drafter = Drafter()
    for end in range(1, len(sequence)):
        drafter.draft(sequence[:end], 4)
    assert foretold(drafter, sequence, drafted) <= drafter.expected(drafted + 1) <= drafted + 2


def test_a_very_long_prompt_is_taken_note_of_in_parts_and_drafted_from_then() -> None:
    prompt = [*range(3 * MOST_LEARNT), 1, 2, 3]
    drafter = Drafter()
    drafts = [drafter.draft(prompt, 2) for _ in range(4)]
    assert drafts == [[], [], [], [4, 5]]
    assert drafter.draft([*prompt, 4], 2) == [5, 6]
    # How well it could have been foretold is asked of what was written only.
    one = Drafter()
    one.draft([1, 2, 3, 1, 2, 3], 2)
    assert drafter.expected(2) > one.expected(2) > 1


def desk(backend: Backend, models: Path, *, speculation: bool) -> Desk:
    from osaurus.engine.mlx_engine import MLXEngine
    from osaurus.engine.prefixes import PrefixCache

    return Desk(MLXEngine(backend, PrefixCache(2**24), 2**32, speculation), models)


@define
class Oracle:
    """Knows how rows go on, since it has seen them, and drafts that, with a mistake here and there."""

    seen: list[list[int]] = field(factory=list)
    drafted: list[tuple[int, int]] = field(factory=list)
    """How long drafts were, and how much of each was right."""
    random: Random = field(factory=lambda: Random(0))

    def draft(self, sequence: list[int], most: int) -> list[int]:
        found = next((whole for whole in self.seen if whole[: len(sequence)] == sequence), [])
        draft = found[len(sequence) : len(sequence) + min(most, self.random.randint(0, 6))]
        right = len(draft)
        if draft and self.random.random() < 0.6:
            right = self.random.randrange(len(draft))
            draft[right] += 1
        if draft:
            self.drafted.append((len(draft), right))
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
    monkeypatch.setattr(Pace, "gain", lambda self, rows, width, expected: width)
    monkeypatch.setattr(Drafter, "draft", lambda _, sequence, most: oracle.draft(sequence, most))
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
    assert oracle.drafted == []
    drafting = desk(backend, tiny_models, speculation=True)
    assert [drafting.alone(text, **fields) for text in TEXTS] == expected
    together = desk(backend, tiny_models, speculation=True)
    for number, text in enumerate(TEXTS):
        together.add(number, text, **fields)
    together.finish()
    assert [together.texts.get(number, "") for number in range(len(TEXTS))] == expected
    # Some drafts were wholly right, some partly, some not at all.
    assert {0 if not right else 2 if right == drafted else 1 for drafted, right in oracle.drafted} >= {0, 2}


def test_a_model_that_repeats_itself_takes_fewer_steps(
    backend: Backend, tiny_models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from osaurus.engine.pace import Pace

    monkeypatch.setattr(Pace, "gain", lambda self, rows, width, expected: expected / rows)
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
    assert oracle.drafted


def test_what_was_drafted_and_kept_is_no_part_of_a_prefix(backend: Backend, tiny_models: Path, oracle: Oracle) -> None:
    plain = desk(backend, tiny_models, speculation=False)
    drafting = desk(backend, tiny_models, speculation=True)
    for text in TEXTS:
        said = drafting.alone(text, max_tokens=64)
        assert drafting.alone(text + said + " and", max_tokens=20) == plain.alone(text + said + " and", max_tokens=20)


@pytest.mark.parametrize(("drafting", "reading", "widest"), [({1, 2}, False, 7), ({1}, False, 3), ({1, 2}, True, 3)])
def test_drafts_are_short_beside_a_row_that_has_none_or_reads(
    backend: Backend,
    tiny_models: Path,
    monkeypatch: pytest.MonkeyPatch,
    drafting: set[int],
    reading: bool,
    widest: int,
) -> None:
    from osaurus.engine.batch import Batch
    from osaurus.engine.pace import Pace

    forced = {number: Sampling(temperature=0, bias=((40 + number, 100.0),)) for number in (1, 2)}
    monkeypatch.setattr(
        Drafter,
        "draft",
        lambda _, sequence, most: [sequence[-1]] * min(most, 6) if sequence[-1] - 40 in drafting else [],
    )
    monkeypatch.setattr(Drafter, "expected", lambda _, drafted: 1.0 + drafted)
    monkeypatch.setattr(Pace, "gain", lambda self, rows, width, expected: expected / rows)
    monkeypatch.setattr(Pace, "widest", lambda self, rows: 3)
    monkeypatch.setattr(Pace, "chunk", lambda self, writing, width: 6)
    launch, widths = Batch._launch, set()

    def see(self: Batch) -> int:
        width = launch(self)
        if len(self._writing) == 2 and all(row.written for row in self._writing) and bool(self._reading) == reading:
            widths.add(width)
        return width

    monkeypatch.setattr(Batch, "_launch", see)
    engine = desk(backend, tiny_models, speculation=True)
    for number, sampling in forced.items():
        engine.add(number, "Hello", sampling=sampling, max_tokens=40)
    while reading and not engine.texts.keys() >= {1, 2}:
        engine.step()
    if reading:
        engine.add(3, "another prompt " * 10, max_tokens=1)
    engine.finish()
    assert max(widths) == widest
