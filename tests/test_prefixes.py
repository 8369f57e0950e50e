"""What was read is found again: by conversations that go on, branch, and compete for room."""

from pathlib import Path
from typing import Any

import pytest

from osaurus.chat import Finished, GenerationRequest, Message
from osaurus.engine.backend import Backend

from .desk import Desk

SYSTEM = "You are an assistant. " * 8


@pytest.fixture
def desk(backend: Backend, tiny_models: Path) -> Desk:
    return new_desk(backend, tiny_models, 2**26)


def new_desk(backend: Backend, models: Path, budget: int) -> Desk:
    from osaurus.engine.mlx_engine import MLXEngine
    from osaurus.engine.prefixes import PrefixCache

    return Desk(MLXEngine(backend, PrefixCache(budget), 2**32), models)


def ask(desk: Desk, content: str | tuple[Message, ...], **changes: Any) -> tuple[str, int]:
    """Return an answer and how many tokens of its prompt had been read before."""
    desk.add(1, content, **changes)
    desk.finish()
    end = desk.ends.pop(1)
    assert isinstance(end, Finished)
    return desk.texts.pop(1, ""), end.usage.cached_tokens


def test_a_prompt_is_not_read_twice_and_the_answer_is_the_same(desk: Desk) -> None:
    from osaurus.engine.prefixes import BLOCK

    cold, none = ask(desk, SYSTEM)
    warm, cached = ask(desk, SYSTEM)
    assert none == 0
    assert cached >= BLOCK
    assert warm == cold


def test_conversations_that_branch_share_what_they_have_in_common(
    desk: Desk, backend: Backend, tiny_models: Path
) -> None:
    fresh = new_desk(backend, tiny_models, 1)
    questions = [SYSTEM + end for end in ("What is a fox?", "What is a dog, then?", "Name a number between 1 and 9.")]
    alone = [ask(fresh, question) for question in questions]
    assert [cached for _, cached in alone] == [0, 0, 0]
    together = [ask(desk, question) for question in questions]
    assert [text for text, _ in together] == [text for text, _ in alone]
    assert together[1][1] >= together[2][1] > 100


def test_rows_that_begin_alike_at_the_same_time_say_what_each_says_alone(desk: Desk) -> None:
    questions = [SYSTEM + end for end in ("one", "two and three", "four")]
    alone = [desk.alone(question) for question in questions]
    for number, question in enumerate(questions):
        desk.add(number, question)
    texts = desk.finish()
    assert [texts[number] for number in range(3)] == alone


def test_what_was_answered_is_not_read_again_either(desk: Desk) -> None:
    from osaurus.engine.prefixes import BLOCK

    desk.add(1, "Hello", max_tokens=100)
    desk.finish()
    end = desk.ends[1]
    assert isinstance(end, Finished)
    kept = desk.engine._prefixes.nbytes
    blocks = (end.usage.prompt_tokens + end.usage.completion_tokens - 1) // BLOCK
    one = kept // blocks
    assert kept == blocks * one
    assert blocks > end.usage.prompt_tokens // BLOCK


def test_what_is_shared_is_shared_to_the_token(desk: Desk) -> None:
    def tokens(text: str) -> list[int]:
        request = GenerationRequest(
            model="tiny", messages=(Message("user", text),), max_tokens=1, max_tokens_may_shrink=True
        )
        encoded: list[int] = desk.engine.load("tiny", desk.folder("tiny")).prompt.encode(request).tokens
        return encoded

    first, second = SYSTEM + " zq 12345 one and more of it", SYSTEM + " xw 98765 two and more of it"
    alone = ask(desk, second)[0]
    desk.engine.unload("tiny")
    ask(desk, first)
    whole = next(
        place for place, pair in enumerate(zip(tokens(first), tokens(second), strict=False)) if len({*pair}) > 1
    )
    assert ask(desk, second) == (alone, whole)


def test_two_models_never_share(desk: Desk) -> None:
    alone = desk.alone(SYSTEM, name="other")
    desk.add(1, SYSTEM)
    desk.add(2, SYSTEM, name="other")
    assert desk.finish()[2] == alone


def test_a_row_that_is_cancelled_leaves_what_it_read(desk: Desk) -> None:
    desk.add(7, SYSTEM * 2, max_tokens=2)
    desk.step()
    desk.engine.remove(7)
    _, cached = ask(desk, SYSTEM * 2)
    assert cached > 0


def test_unloading_a_model_gives_back_its_prefixes(desk: Desk) -> None:
    ask(desk, SYSTEM)
    assert desk.engine._prefixes.nbytes > 0
    desk.engine.unload("tiny")
    assert desk.engine._prefixes.nbytes == 0


def test_the_budget_holds_and_what_was_used_last_stays(backend: Backend, tiny_models: Path) -> None:
    desk = new_desk(backend, tiny_models, 2**26)
    ask(desk, SYSTEM)
    one = desk.engine._prefixes.nbytes
    desk = new_desk(backend, tiny_models, one * 3)
    ask(desk, "a" + SYSTEM)
    for letter in "bcdef":
        ask(desk, letter + SYSTEM)
        assert ask(desk, "a" + SYSTEM)[1] > 0
        assert desk.engine._prefixes.nbytes <= one * 3
    # Nothing but what the template puts before every message.
    assert ask(desk, "b" + SYSTEM)[1] < 10


def test_a_budget_that_holds_nothing_costs_nothing_but_speed(backend: Backend, tiny_models: Path) -> None:
    desk = new_desk(backend, tiny_models, 1)
    first, second = ask(desk, SYSTEM), ask(desk, SYSTEM)
    assert first == second
    assert second[1] == 0
    assert desk.engine._prefixes.nbytes == 0


def test_owners_never_share(desk: Desk) -> None:
    cold, _ = ask(desk, SYSTEM, owner="a")
    other, cached = ask(desk, SYSTEM, owner="b")
    assert (other, cached) == (cold, 0)
    assert ask(desk, SYSTEM, owner="a")[1] > 0


def test_owners_do_not_wait_for_each_other(desk: Desk) -> None:
    for number, owner in enumerate("ab"):
        desk.add(number, SYSTEM, owner=owner)
    desk.finish()
    ends = [desk.ends[number] for number in (0, 1)]
    assert [end.usage.cached_tokens for end in ends if isinstance(end, Finished)] == [0, 0]


def test_what_could_not_be_computed_is_not_kept(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    import mlx.core as mx
    from mlx_lm.models.cache import KVCache

    from osaurus.engine.prefixes import BLOCK, BlockLayout

    cache = KVCache()
    cache.update_and_fetch(mx.ones((1, 2, 2 * BLOCK, 8)), mx.ones((1, 2, 2 * BLOCK, 8)))
    layout = BlockLayout.of([cache])
    assert layout is not None
    prefixes, tokens = desk.engine._prefixes, list(range(2 * BLOCK))

    def fail(*_: Any) -> None:
        raise MemoryError("injected")

    with monkeypatch.context() as patch:
        patch.setattr("osaurus.engine.prefixes.mx.eval", fail)
        with pytest.raises(MemoryError):
            prefixes.put("model", tokens, [cache])
    assert prefixes.nbytes == 0
    assert prefixes.take("model", tokens, layout) == (0, [])
    prefixes.put("model", tokens, [cache])
    assert prefixes.take("model", tokens, layout)[0] == 2 * BLOCK
