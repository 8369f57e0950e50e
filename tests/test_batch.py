"""The rows of one model, on a tiny real one: real weights, real tokenizer, mlx_lm's own caches."""

import json
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer

from osaurus.chat import (
    Failed,
    Finished,
    GenerationRequest,
    InternalError,
    Message,
    Piece,
    Sampling,
    Tokens,
)
from osaurus.engine.answer import Answer
from osaurus.engine.backend import Backend
from osaurus.engine.pace import Pace

from .conftest import write_tiny_model
from .desk import PROMPTS, Desk, another


def test_a_model_answers_and_says_why_it_ended(desk: Desk) -> None:
    desk.add(1, "Hello", max_tokens=5)
    desk.finish()
    end = desk.ends[1]
    assert isinstance(end, Finished)
    assert end.usage.completion_tokens <= 5
    assert end.reason in ("stop", "length")
    assert end.timings.prompt > 0
    assert end.timings.generation > 0


def test_different_prompts_are_answered_differently(desk: Desk) -> None:
    assert len({desk.alone(prompt) for prompt in PROMPTS}) == len(PROMPTS)


def test_rows_decoded_together_say_what_each_says_alone(desk: Desk) -> None:
    alone = [desk.alone(prompt) for prompt in PROMPTS]
    for number, prompt in enumerate(PROMPTS):
        desk.add(number, prompt)
    together = desk.finish()
    assert [together[number] for number in range(len(PROMPTS))] == alone


def test_a_row_that_joins_in_the_middle_says_what_it_says_alone(desk: Desk) -> None:
    alone = [desk.alone(prompt) for prompt in PROMPTS]
    for number, prompt in enumerate(PROMPTS):
        desk.add(number, prompt)
        for _ in range(3):
            desk.step()
    together = desk.finish()
    assert [together[number] for number in range(len(PROMPTS))] == alone


def test_a_seed_repeats_an_answer_in_any_company(desk: Desk) -> None:
    seeded: dict[str, Any] = {"sampling": Sampling(temperature=1.5, top_p=0.95, seed=7)}
    alone = desk.alone("Hello", **seeded)
    assert desk.alone("Hello", sampling=Sampling(temperature=1.5, top_p=0.95, seed=8)) != alone
    desk.add(1, "something else", sampling=Sampling(temperature=1.0))
    desk.add(2, "Hello", **seeded)
    assert desk.finish()[2] == alone


def test_a_removed_row_is_silent_and_its_neighbours_do_not_notice(desk: Desk) -> None:
    alone = desk.alone(PROMPTS[0])
    desk.add(1, PROMPTS[0])
    desk.add(2, PROMPTS[1])
    for _ in range(4):
        desk.step()
    said = desk.texts.get(2, "")
    desk.engine.remove(2)
    desk.finish()
    assert desk.texts.get(2, "") == said
    assert 2 not in desk.ends
    assert desk.texts[1] == alone


def test_a_row_can_be_removed_before_its_prompt_is_read(desk: Desk) -> None:
    desk.add(1, PROMPTS[0])
    desk.engine.remove(1)
    assert not desk.engine.busy


def test_an_answer_ends_before_its_stop_string(desk: Desk) -> None:
    whole = desk.alone("Hello")
    middle = whole[len(whole) // 2 : len(whole) // 2 + 3]
    desk.add(1, "Hello", stop=(middle,))
    desk.add(2, "Hello")
    texts = desk.finish()
    assert texts.get(1, "") == whole[: whole.index(middle)]
    assert texts[2] == whole
    assert isinstance(desk.ends[1], Finished)
    assert desk.ends[1].reason == "stop"


def test_max_tokens_is_exact(desk: Desk) -> None:
    for tokens in (1, 2, 7):
        desk.add(tokens, "def test_one(client):", max_tokens=tokens)
    desk.finish()
    for tokens in (1, 2, 7):
        end = desk.ends[tokens]
        assert isinstance(end, Finished)
        assert (end.usage.completion_tokens, end.reason) == (tokens, "length")


def test_a_step_that_fails_ends_its_rows_with_an_error_and_the_next_row_is_served(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    alone = desk.alone("Hello")
    desk.add(1, "Hello")
    for _ in range(4):
        desk.step()

    def fail(*_: Any) -> None:
        raise RuntimeError("injected")

    with monkeypatch.context() as patch:
        patch.setattr("osaurus.engine.batch.sample", fail)
        desk.step()
    assert isinstance(desk.ends[1], Failed)
    assert isinstance(desk.ends[1].error, InternalError)
    assert desk.alone("Hello") == alone


def test_a_row_that_waits_is_served_after_a_step_that_fails(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    alone = desk.alone("Hello")
    monkeypatch.setattr("osaurus.engine.reading.MOST_READING", 1)
    desk.add(1, "A prompt that nobody has read")
    desk.add(2, "Hello")
    desk.step()

    def fail(*_: Any) -> None:
        raise RuntimeError("injected")

    with monkeypatch.context() as patch:
        patch.setattr("osaurus.engine.batch.join", fail)
        desk.step()
    assert isinstance(desk.ends[1], Failed)
    desk.finish()
    assert isinstance(desk.ends[2], Finished)
    assert desk.texts[2] == alone


def test_a_step_that_fails_gives_back_what_it_held(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    import mlx.core as mx

    desk.engine.load("tiny", desk.folder("tiny"))
    before = mx.get_active_memory()
    desk.alone("A prompt that is kept for others. " * 8)
    assert desk.engine._prefixes.nbytes > 0
    desk.add(1, "Hello")
    while 1 not in desk.texts:
        desk.step()
    # It still reads when the other's step fails.
    monkeypatch.setattr(Pace, "chunk", lambda *_: 64)
    desk.add(2, "x" * 400)
    desk.step()

    def fail(logits: mx.array, *_: Any) -> None:
        mx.eval(logits + 1)
        raise MemoryError("injected")

    with monkeypatch.context() as patch:
        patch.setattr("osaurus.engine.batch.sample", fail)
        desk.step()
    assert all(isinstance(desk.ends[number], Failed) for number in (1, 2))
    assert desk.engine._prefixes.nbytes == 0
    assert mx.get_cache_memory() == 0
    assert mx.get_active_memory() <= before
    assert desk.alone("Hello") != ""


def test_a_short_prompt_does_not_wait_for_a_long_one(desk: Desk) -> None:
    desk.add(1, "x" * 450, max_tokens=4)
    desk.add(2, "Hello", max_tokens=4)
    desk.add(3, "Hello", max_tokens=60)
    while 2 not in desk.ends:
        desk.step()
    assert 1 not in desk.ends or 3 not in desk.ends


def test_models_whose_caches_cannot_be_merged_write_one_at_a_time(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    from mlx_lm.models.cache import KVCache

    alone = [desk.alone(prompt) for prompt in PROMPTS]
    # A batch made now finds that this kind of cache has no merge, as those of some models have not.
    desk.engine.unload("tiny")
    with monkeypatch.context() as patch:
        patch.delattr(KVCache, "merge")
        for number, prompt in enumerate(PROMPTS):
            desk.add(number, prompt)
        together = desk.finish()
    desk.engine.unload("tiny")
    assert [together[number] for number in range(len(PROMPTS))] == alone


def test_a_row_that_ended_in_a_step_that_fails_is_told_its_end(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    desk.add(1, "Hello", max_tokens=3)
    desk.add(2, "Hello", max_tokens=30)
    for _ in range(3):
        desk.step()
    _, batch = desk.engine._resident["tiny"]
    network = type(batch._model.network)

    def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError("injected")

    while not desk.ends:
        with monkeypatch.context() as patch:
            if batch._writing[0].written == 2:
                patch.setattr(network, "__call__", fail)
            desk.step()
    assert isinstance(desk.ends[1], Finished)
    assert isinstance(desk.ends[2], Failed)
    assert not desk.engine.busy


@pytest.mark.parametrize(
    "where",
    ["osaurus.engine.batch.join", "osaurus.engine.keeping.Keeper.taken", "osaurus.engine.keeping.Keeper.fetched"],
)
def test_a_row_is_told_of_a_failure_on_its_way_from_one_place_to_the_next(
    desk: Desk, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    alone = desk.alone("Hello")

    def fail(*_: Any) -> None:
        raise RuntimeError("injected")

    desk.add(1, "A prompt that nobody has read")
    desk.add(2, "Hello")
    with monkeypatch.context() as patch:
        patch.setattr(where, fail)
        desk.finish()
    assert all(isinstance(desk.ends[number], Failed) for number in (1, 2))
    assert desk.alone("Hello") == alone


class Panic(BaseException):
    """What Rust raises."""


@pytest.mark.parametrize("method", ["allowed", "take"])
@pytest.mark.parametrize("problem", [RuntimeError, Panic])
def test_an_answer_that_fails_ends_alone(
    desk: Desk, monkeypatch: pytest.MonkeyPatch, method: str, problem: type[BaseException]
) -> None:
    alone = desk.alone("Hello")
    for number in (1, 2, 3):
        desk.add(number, "Hello")
    for _ in range(4):
        desk.step()
    _, batch = desk.engine._resident["tiny"]
    failing, usual = batch._writing[1].answer, getattr(Answer, method)

    def fail(answer: Answer, *arguments: Any) -> Any:
        if answer is failing:
            raise problem("injected")
        return usual(answer, *arguments)

    monkeypatch.setattr(Answer, method, fail)
    desk.finish()
    assert isinstance(desk.ends[2], Failed)
    assert [desk.texts[number] for number in (1, 3)] == [alone, alone]
    assert all(isinstance(desk.ends[number], Finished) for number in (1, 3))


@pytest.mark.parametrize("method", ["remove", "park"])
def test_what_fails_when_a_row_leaves_is_told_to_those_that_wrote_with_it(
    desk: Desk, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    alone = desk.alone("Hello")
    desk.add(1, "Hello")
    desk.add(2, "Hello")
    for _ in range(4):
        desk.step()

    def fail(*_: Any) -> None:
        raise RuntimeError("injected")

    with monkeypatch.context() as patch:
        patch.setattr("osaurus.engine.keeping.Keeper.keep_written", fail)
        getattr(desk.engine, method)(1)
    desk.finish()
    assert isinstance(desk.ends[2], Failed)
    assert desk.alone("Hello") == alone


def test_log_probabilities_come_with_the_text_of_rows_that_asked(desk: Desk) -> None:
    pieces: dict[int, list[Piece]] = {1: [], 2: []}
    desk.add(1, "Hello", top_logprobs=2)
    desk.add(2, "Hello")
    while desk.engine.busy:
        for number, event in chain.from_iterable(desk.engine.step()):
            if isinstance(event, Piece):
                pieces[number].append(event)
    scores = [score for piece in pieces[1] for score in piece.scores]
    assert len(scores) == 24
    text = "".join(piece.text for piece in pieces[1])
    # What is left of a character at the end is scored, but not said.
    spelled = b"".join(score.token for score in scores).decode("utf-8", "replace")
    assert spelled.rstrip("\ufffd") == text.rstrip("\ufffd")
    # Greedy: what was drawn is the best of the alternatives.
    assert all(score.alternatives[0].token == score.token and len(score.alternatives) == 2 for score in scores)
    assert all(score.alternatives[0].logprob == score.logprob for score in scores)
    assert all(not piece.scores for piece in pieces[2])
    assert "".join(piece.text for piece in pieces[2]) == text


PROMPT = "A prompt whose tokens are scored, of which there are more than one pass reads. " * 2


def echoed(desk: Desk, number: int) -> tuple[Piece, list[Piece]]:
    """Finish; return what a row said first, and what it said then."""
    said: list[Piece] = []
    while desk.engine.busy:
        said += [
            event
            for row, event in chain.from_iterable(desk.engine.step())
            if row == number and isinstance(event, Piece)
        ]
    return said[0], said[1:]


@pytest.mark.parametrize("known", [False, True])
@pytest.mark.parametrize("accompanied", [False, True])
def test_the_tokens_of_a_prompt_are_scored_as_it_is_read(
    desk: Desk, monkeypatch: pytest.MonkeyPatch, known: bool, accompanied: bool
) -> None:
    """Whatever of it others have read before, in pieces, and beside others."""
    import mlx.core as mx
    import numpy as np
    from mlx_lm.models.cache import make_prompt_cache

    from osaurus.engine import reading

    monkeypatch.setattr(reading, "MOST_SCORED", 7)
    alone = desk.alone(PROMPT)
    if not known:
        desk = another(desk.engine._backend, desk.models)
    if accompanied:
        desk.add(2, "Hello", max_tokens=60)
        desk.add(3, PROMPT + "And on.")
    desk.add(1, PROMPT, top_logprobs=3, echo="the prompt")
    first, others = echoed(desk, 1)
    model = desk.engine.load("tiny", desk.folder("tiny"))
    tokens = model.prompt.encode(
        GenerationRequest(model="tiny", messages=(Message("user", PROMPT),), max_tokens=1, max_tokens_may_shrink=True)
    ).tokens
    read = model.network(mx.array([tokens]), cache=make_prompt_cache(model.network))[0]
    logits = np.array(read.astype(mx.float32))
    logprobs = logits - np.log(np.exp(logits - logits.max(-1, keepdims=True)).sum(-1, keepdims=True))
    logprobs -= logits.max(-1, keepdims=True)
    assert first.text == "the prompt"
    assert [score.token for score in first.scores] == [model.vocabulary.spelling(token) for token in tokens]
    assert first.scores[0].logprob is None
    for place, score in enumerate(first.scores[1:]):
        assert score.logprob == pytest.approx(logprobs[place, tokens[place + 1]], abs=0.05)
        best = [alternative.logprob for alternative in score.alternatives]
        assert best == pytest.approx(np.sort(logprobs[place])[:-4:-1].tolist(), abs=0.05)
    assert "".join(piece.text for piece in others) == alone
    assert len([score for piece in others for score in piece.scores]) == 24


def test_a_row_that_stood_still_does_not_tell_its_prompt_again(desk: Desk) -> None:
    desk.add(1, PROMPT, top_logprobs=0, echo="the prompt")
    for _ in range(6):
        desk.step()
    desk.engine.park(1)
    desk.step()
    desk.engine.unpark(1)
    assert desk.finish()[1].count("the prompt") == 1


def test_a_row_with_a_penalty_says_something_else_and_its_neighbour_does_not_notice(desk: Desk) -> None:
    alone = desk.alone("Hello")
    desk.add(1, "Hello", sampling=Sampling(temperature=0, repetition_penalty=10))
    desk.add(2, "Hello")
    texts = desk.finish()
    assert texts[2] == alone
    assert texts[1] != alone


@pytest.mark.parametrize("budget", [2**24, 1])
def test_a_parked_row_stands_still_and_then_says_what_it_would_have_said(
    backend: Backend, tiny_models: Path, desk: Desk, budget: int
) -> None:
    from osaurus.engine.mlx_engine import MLXEngine
    from osaurus.engine.prefixes import PrefixCache

    expected = desk.alone(PROMPTS[2], max_tokens=60), desk.alone("Hello", max_tokens=60)
    # With and without room for what it has read.
    desk = Desk(MLXEngine(backend, PrefixCache(budget), 2**32), tiny_models)
    desk.add(1, PROMPTS[2], max_tokens=60)
    desk.add(2, "Hello", max_tokens=60)
    for _ in range(20):
        desk.step()
    said = desk.texts[1]
    desk.engine.park(1)
    desk.finish()
    assert desk.texts == {1: said, 2: expected[1]}
    assert not desk.engine.busy
    desk.engine.unload("tiny")
    assert list(desk.engine._resident) == ["tiny"]
    desk.engine.unpark(1)
    desk.finish()
    assert desk.texts[1] == expected[0]
    end = desk.ends[1]
    assert isinstance(end, Finished)
    assert end.usage.cached_tokens == 0
    assert list(desk.engine._resident) == []


def test_a_parked_row_can_be_removed(desk: Desk) -> None:
    desk.add(1, "Hello")
    for _ in range(4):
        desk.step()
    desk.engine.park(1)
    desk.engine.unload("tiny")
    desk.engine.remove(1)
    desk.engine.unpark(1)
    assert list(desk.engine._resident) == []


def test_prompts_of_about_the_same_length_are_read_in_one_pass(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    prompts = {number: f"{number} " + "and so on, " * 4 for number in range(6)}
    alone = {number: desk.alone(prompt) for number, prompt in prompts.items()}
    desk.engine.unload("tiny")
    for number, prompt in prompts.items():
        desk.add(number, prompt)
    _, batch = desk.engine._resident["tiny"]
    passes: list[int] = []
    reading = type(batch._reading)
    read = reading._read_together

    def count(self: Any, group: list[Any], lengths: list[int]) -> None:
        passes.append(len(group))
        read(self, group, lengths)

    monkeypatch.setattr(reading, "_read_together", count)
    assert desk.finish() == alone
    assert max(passes) > 1
    assert len(passes) < 6


def test_rows_that_begin_alike_read_it_once(desk: Desk, backend: Backend, tiny_models: Path) -> None:
    """Several answers to one prompt, and a neighbour's that branches off."""
    shared = "They begin alike. " * 12
    alone = [desk.alone(content) for content in (shared, shared + "Or not?")]
    fresh = another(backend, tiny_models)
    rows = [shared, shared, shared, shared + "Or not?"]
    for number, content in enumerate(rows):
        fresh.add(number, content)
    fresh.finish()
    assert [fresh.texts[number] for number in range(4)] == [alone[0]] * 3 + [alone[1]]
    ends = [fresh.ends[number] for number in range(4)]
    usages = [end.usage for end in ends if isinstance(end, Finished)]
    assert usages[0].cached_tokens == 0
    from osaurus.engine.prefixes import BLOCK

    for usage in usages[1:3]:
        assert usage.prompt_tokens - usage.cached_tokens <= BLOCK
    assert usages[3].cached_tokens > usages[3].prompt_tokens // 2


def test_a_row_whose_reader_is_cancelled_reads_for_itself(desk: Desk, backend: Backend, tiny_models: Path) -> None:
    content = "They begin alike. " * 12
    alone = desk.alone(content)
    fresh = another(backend, tiny_models)
    fresh.add(1, content)
    fresh.add(2, content)
    fresh.step()
    fresh.engine.remove(1)
    fresh.finish()
    assert fresh.texts == {2: alone}


def test_the_tokens_of_prompt_and_answer_are_told_on_request(desk: Desk) -> None:
    desk.add(1, "Hello", max_tokens=3, tell_tokens=True)
    desk.add(2, "Hello", max_tokens=3)
    desk.finish()
    told, untold = desk.ends[1], desk.ends[2]
    assert isinstance(told, Finished)
    assert isinstance(untold, Finished)
    assert len(told.tokens) == told.usage.prompt_tokens + told.usage.completion_tokens
    assert untold.tokens == ()


def test_a_pass_of_reading_is_no_longer_than_allowed(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    from osaurus.engine.reading import LEAST_SHARE, MOST_READING, Reading

    for number in range(8):
        desk.add(number, "word " * (4 + 9 * number), max_tokens=4)
    read = Reading.read

    def check(self: Reading, writing: int, width: int) -> int:
        computed = read(self, writing, width)
        # What would be a pass's worth of crumbs is read along.
        assert computed <= self._pace.chunk(writing, width) + LEAST_SHARE * MOST_READING
        return computed

    monkeypatch.setattr(Reading, "read", check)
    desk.finish()
    assert all(isinstance(end, Finished) for end in desk.ends.values())
    assert len(desk.ends) == 8


def test_what_is_written_is_told_before_others_read_on(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    from osaurus.engine.reading import Reading

    told: list[str] = []
    read = Reading.read

    def remember(self: Reading, writing: int, width: int) -> int:
        told.append("read")
        return read(self, writing, width)

    monkeypatch.setattr(Reading, "read", remember)
    desk.add(1, "Hello")
    while 1 not in desk.texts:
        desk.step()
    desk.add(2, "word " * 60)
    told.clear()
    for events in desk.engine.step():
        told += ["wrote" for number, event in events if number == 1 and isinstance(event, Piece)]
    assert told == ["wrote", "read"]


def test_a_long_prompts_caches_have_room_for_all_of_it_from_the_first_pass(desk: Desk) -> None:
    # What grows with each pass is copied with each pass.
    desk.add(1, "Hello", max_tokens=400)
    while 1 not in desk.texts:
        desk.step()
    desk.add(2, "word " * 120)
    _, batch = desk.engine._resident["tiny"]
    capacities = set()
    while 2 not in desk.texts and 2 not in desk.ends:
        desk.step()
        for progress in batch._reading.readers:
            assert len(progress.sequence) > 256
            capacities |= {cache.keys.shape[2] for cache in progress.cache}
    assert len(capacities) == 1


@pytest.fixture(scope="module")
def thinkers(tmp_path_factory: pytest.TempPathFactory, tiny_tokenizer: Tokenizer, backend: Backend) -> Path:
    """A models folder with `tests/thinker`, whose prompts end within a thought."""
    folder = tmp_path_factory.mktemp("thinkers")
    tokenizer = Tokenizer.from_str(tiny_tokenizer.to_str())
    tokenizer.add_tokens(["<think>", "</think>"])
    write_tiny_model(folder / "tests" / "thinker", tokenizer)
    path = folder / "tests" / "thinker" / "tokenizer_config.json"
    settings = json.loads(path.read_text())
    settings["chat_template"] = settings["chat_template"].replace("assistant\n", "assistant\n<think>\n")
    path.write_text(json.dumps(settings))
    return folder


def test_what_is_thought_is_told_apart(backend: Backend, thinkers: Path, tiny_tokenizer: Tokenizer) -> None:
    desk = another(backend, thinkers)
    end = tiny_tokenizer.get_vocab_size() + 1
    desk.add(1, "Hello", "thinker", max_tokens=8)
    desk.add(2, "Hello", "thinker", max_tokens=3, sampling=Sampling(temperature=0, bias=((end, 1e4),)))
    desk.finish()
    thinking, answering = desk.ends[1], desk.ends[2]
    assert isinstance(thinking, Finished)
    assert isinstance(answering, Finished)
    assert desk.texts.get(1, "") == ""
    assert desk.thoughts[1] != ""
    assert thinking.usage.reasoning_tokens == thinking.usage.completion_tokens
    # It ends its thought at once; what comes behind is the answer.
    assert (desk.texts[2], desk.thoughts.get(2, "")) == ("</think></think>", "")
    assert answering.usage.reasoning_tokens == 1


# Learned positions.

LEARNED_CONFIG = {
    "architectures": ["GPT2LMHeadModel"],
    "model_type": "gpt2",
    "n_ctx": 96,
    "n_embd": 64,
    "n_head": 4,
    "n_layer": 2,
    "n_positions": 96,
    "layer_norm_epsilon": 1e-5,
    "num_key_value_heads": 4,
}


@pytest.mark.parametrize("others", [0, 6])
def test_no_pass_reads_positions_that_there_are_not(
    backend: Backend, tmp_path: Path, tiny_tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch, others: int
) -> None:
    """Where rows are filled up to as many tokens as others read or draft: MLX would read beyond its weights."""
    import mlx.core as mx
    import mlx.nn as nn

    write_tiny_model(tmp_path / "tests" / "learned", tiny_tokenizer, architecture=LEARNED_CONFIG)
    desk = another(backend, tmp_path)
    look_up, most = nn.Embedding.__call__, 0

    def looked_up(embedding: nn.Embedding, places: mx.array) -> mx.array:
        nonlocal most
        if embedding.weight.shape[0] == LEARNED_CONFIG["n_positions"]:
            most = max(most, int(places.max()))
        found: mx.array = look_up(embedding, places)
        return found

    monkeypatch.setattr(nn.Embedding, "__call__", looked_up)
    # As much is read at once, and drafted, as can be.
    monkeypatch.setattr(Pace, "chunk", lambda *_: 64)
    monkeypatch.setattr(Pace, "widest", lambda *_: 16)
    monkeypatch.setattr(Pace, "gain", lambda _, rows, width, expected: float(width))
    near, short = Tokens(tuple(range(5, 91))), Tokens((7, 8, 9, 10) * 10)
    desk.add(1, "", name="learned", raw=near, max_tokens=10)
    desk.step()
    desk.add(2, "", name="learned", raw=short, max_tokens=56)
    for number in range(3, 3 + others):
        desk.add(number, "", name="learned", raw=Tokens((number, 7, 8)), max_tokens=2)
    desk.finish()
    assert all(isinstance(desk.ends[number], Finished) for number in (1, 2))
    assert most < 96
