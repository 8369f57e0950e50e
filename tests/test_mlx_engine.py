"""The engine on a tiny real model: real weights, real tokenizer, mlx_lm's own batching."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from attrs import define, field
from tokenizers import Tokenizer
from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.task import deferLater
from twisted.python.threadpool import ThreadPool

from osaurus.chat import (
    ChatRequest,
    ContextLengthExceeded,
    Event,
    Failed,
    Finished,
    InternalError,
    Message,
    ModelLoadFailed,
    NoRoomYet,
    Piece,
    Sampling,
)
from osaurus.engine.backend import Backend
from osaurus.engine.runner import MLXRunner, Row

from .conftest import write_tiny_model

GREEDY = Sampling(temperature=0)
PROMPTS = ["Hello", "def test_one(client):", "a longer prompt than the others, " * 8, "x", "return None"]


@define
class Desk:
    """An engine, the models it can load, and what its rows have said."""

    engine: Any
    models: Path
    texts: dict[int, str] = field(factory=dict)
    thoughts: dict[int, str] = field(factory=dict)
    ends: dict[int, Event] = field(factory=dict)

    def add(self, number: int, content: str | tuple[Message, ...], name: str = "tiny", **changes: Any) -> None:
        fields: dict[str, Any] = {"max_tokens": 24, "sampling": GREEDY, "stop": ()} | changes
        messages = (Message("user", content),) if isinstance(content, str) else content
        request = ChatRequest(model=name, messages=messages, max_tokens_may_shrink=True, **fields)
        prompt = self.engine.load(name, self.folder(name)).prompt.encode(request)
        self.engine.add(
            name,
            self.folder(name),
            Row(
                id=number,
                prompt=prompt.tokens,
                max_tokens=prompt.max_tokens,
                sampling=request.sampling,
                stop=request.stop,
                arrived=0,
                load=0,
                top_logprobs=request.top_logprobs,
                tell_tokens=request.tell_tokens,
                owner=request.owner,
                boundaries=prompt.boundaries,
                thinking=prompt.thinking,
            ),
        )

    def folder(self, name: str) -> Path:
        return self.models / "tests" / name

    def step(self) -> None:
        for number, event in self.engine.step():
            match event:
                case Piece(text, reasoning=thought):
                    self.texts[number] = self.texts.get(number, "") + text
                    self.thoughts[number] = self.thoughts.get(number, "") + thought
                case _:
                    self.ends[number] = event

    def finish(self) -> dict[int, str]:
        while self.engine.busy:
            self.step()
        return self.texts

    def alone(self, content: str | tuple[Message, ...], **changes: Any) -> str:
        """What a prompt is answered when nobody else is there."""
        self.add(999, content, **changes)
        self.finish()
        self.ends.pop(999)
        return self.texts.pop(999, "")


@pytest.fixture
def desk(backend: Backend, tiny_models: Path) -> Desk:
    return another(backend, tiny_models)


def another(backend: Backend, tiny_models: Path) -> Desk:
    """A desk with an engine that has read nothing yet."""
    from osaurus.engine.mlx_engine import MLXEngine
    from osaurus.engine.prefixes import PrefixCache

    # Not closed: closing ends the thread's use of MLX, and all these tests share a thread.
    return Desk(MLXEngine(backend, PrefixCache(2**24), 2**32), tiny_models)


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


def test_two_models_answer_at_the_same_time(desk: Desk) -> None:
    alone = desk.alone("Hello"), desk.alone("Hello", name="other")
    assert alone[0] != alone[1]
    desk.add(1, "Hello")
    desk.add(2, "Hello", name="other")
    texts = desk.finish()
    assert (texts[1], texts[2]) == alone


def limited(backend: Backend, models: Path, limit: int) -> Desk:
    """A desk whose engine has this much memory."""
    from osaurus.engine.mlx_engine import MLXEngine
    from osaurus.engine.prefixes import PrefixCache

    return Desk(MLXEngine(backend, PrefixCache(2**24), limit), models)


@pytest.fixture
def sizes(desk: Desk) -> tuple[int, int]:
    """What the weights of the tiny model take, and each token of a row."""
    model = desk.engine.load("tiny", desk.folder("tiny"))
    return model.nbytes, model.token_nbytes


def test_what_a_token_takes_is_what_its_keys_and_values_take(sizes: tuple[int, int]) -> None:
    # Keys and values, two layers, two heads of sixteen float32.
    assert sizes[1] == 2 * 2 * 2 * 16 * 4


def test_models_stay_as_long_as_there_is_room(desk: Desk) -> None:
    desk.alone("Hello")
    desk.alone("Hello", name="other")
    assert set(desk.engine._resident) == {"tiny", "other"}


def test_a_model_with_nothing_to_do_makes_room_for_another(
    backend: Backend, tiny_models: Path, sizes: tuple[int, int]
) -> None:
    desk = limited(backend, tiny_models, 2 * sizes[0] - 1)
    desk.alone("Hello")
    desk.alone("Hello", name="other")
    assert list(desk.engine._resident) == ["other"]


def test_the_model_that_was_used_least_recently_goes_first(
    backend: Backend, tmp_path: Path, tiny_tokenizer: Tokenizer, sizes: tuple[int, int]
) -> None:
    weights, token = sizes
    for name in ("a", "b", "c"):
        write_tiny_model(tmp_path / "tests" / name, tiny_tokenizer)
    desk = limited(backend, tmp_path, 2 * weights + 100 * token)
    for name in ("a", "b", "a", "c"):
        desk.alone("Hello", name=name)
    assert set(desk.engine._resident) == {"a", "c"}


def test_a_model_in_use_makes_no_room_and_the_other_is_refused_for_now(
    backend: Backend, tiny_models: Path, sizes: tuple[int, int]
) -> None:
    desk = limited(backend, tiny_models, 2 * sizes[0] - 1)
    desk.add(1, "Hello")
    with pytest.raises(NoRoomYet, match="GiB"):
        desk.engine.load("other", desk.folder("other"))
    desk.finish()
    desk.alone("Hello", name="other")


def test_a_model_that_can_never_fit_is_refused_with_both_numbers(
    backend: Backend, tiny_models: Path, sizes: tuple[int, int]
) -> None:
    desk = limited(backend, tiny_models, sizes[0] // 2)
    with pytest.raises(ModelLoadFailed, match=r"take \d+\.\d+ GiB.*limit is \d+\.\d+ GiB"):
        desk.engine.load("tiny", desk.folder("tiny"))


def test_a_model_that_fails_to_load_costs_no_other_its_place(
    backend: Backend, tmp_path: Path, tiny_tokenizer: Tokenizer, sizes: tuple[int, int]
) -> None:
    write_tiny_model(tmp_path / "tests" / "tiny", tiny_tokenizer)
    write_tiny_model(tmp_path / "tests" / "broken", tiny_tokenizer)
    (tmp_path / "tests" / "broken" / "tokenizer.json").write_text("{}")
    desk = limited(backend, tmp_path, 2 * sizes[0] - 1)
    desk.alone("Hello")
    with pytest.raises(ModelLoadFailed):
        desk.engine.load("broken", desk.folder("broken"))
    assert list(desk.engine._resident) == ["tiny"]


def test_rows_that_do_not_fit_together_are_answered_one_after_the_other(
    backend: Backend, tiny_models: Path, desk: Desk, sizes: tuple[int, int]
) -> None:
    weights, token = sizes
    alone = {number: desk.alone(prompt) for number, prompt in enumerate(PROMPTS)}
    small = limited(backend, tiny_models, weights + 400 * token)
    for number, prompt in enumerate(PROMPTS):
        small.add(number, prompt)
    most = 0
    while small.engine.busy:
        small.step()
        [(_, batch)] = small.engine._resident.values()
        most = max(most, batch.claimed)
        assert weights + batch.claimed + small.engine._prefixes.nbytes <= weights + 400 * token
    assert most > 0
    assert small.texts == alone


def test_the_context_is_what_memory_holds(backend: Backend, tiny_models: Path, sizes: tuple[int, int]) -> None:
    weights, token = sizes
    desk = limited(backend, tiny_models, weights + 40 * token)
    with pytest.raises(ContextLengthExceeded, match="context is 40 tokens here: each token takes 512 bytes"):
        desk.add(1, "x" * 300)


def test_what_is_kept_of_prefixes_makes_room_for_rows(
    backend: Backend, tiny_models: Path, sizes: tuple[int, int]
) -> None:
    weights, token = sizes
    desk = limited(backend, tiny_models, weights + 850 * token)
    desk.alone("y" * 400)
    kept = desk.engine._prefixes.nbytes
    assert kept > 300 * token
    desk.add(1, "x" * 100, max_tokens=400)
    desk.step()
    [(_, batch)] = desk.engine._resident.values()
    assert batch.claimed > 400 * token
    assert 0 < desk.engine._prefixes.nbytes <= 850 * token - batch.claimed < kept


def test_two_models_whose_rows_wait_for_each_other_do_not_wait_for_ever(
    backend: Backend, tiny_models: Path, sizes: tuple[int, int]
) -> None:
    weights, token = sizes
    desk = limited(backend, tiny_models, 2 * weights + 100 * token)
    for number in range(2):
        desk.add(number, "Hello", max_tokens=200)
        desk.add(number + 2, "Hello", name="other", max_tokens=200)
    desk.finish()
    assert set(desk.ends) == {0, 1, 2, 3}


def test_unloading_waits_for_the_last_row(desk: Desk) -> None:
    desk.add(1, "Hello")
    desk.engine.unload("tiny")
    assert list(desk.engine._resident) == ["tiny"]
    desk.finish()
    assert list(desk.engine._resident) == []
    assert isinstance(desk.ends[1], Finished)


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


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("config.json", b'{"model_type": "no-such-architecture"}'),
        ("config.json", b'{"model_type": "llama", "model_file": "evil.py"}'),
        ("model.safetensors", b"not weights"),
        ("tokenizer.json", b"{}"),
    ],
)
def test_a_model_that_cannot_be_loaded_says_why_and_harms_nothing(
    desk: Desk, tmp_path: Path, tiny_tokenizer: Tokenizer, file: str, content: bytes
) -> None:
    alone = desk.alone("Hello")
    write_tiny_model(tmp_path / "broken", tiny_tokenizer)
    (tmp_path / "broken" / file).write_bytes(content)
    with pytest.raises(ModelLoadFailed, match="broken could not be loaded"):
        desk.engine.load("broken", tmp_path / "broken")
    assert desk.alone("Hello") == alone


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


def test_a_prompt_is_never_cut_whatever_the_tokenizer_file_says(
    desk: Desk, tmp_path: Path, tiny_tokenizer: Tokenizer
) -> None:
    folder = tmp_path / "cut"
    write_tiny_model(folder, tiny_tokenizer)
    cutting = Tokenizer.from_file(str(folder / "tokenizer.json"))
    cutting.enable_truncation(16)
    cutting.save(str(folder / "tokenizer.json"))
    request = ChatRequest(
        model="cut", messages=(Message("user", "word " * 40),), max_tokens=1, max_tokens_may_shrink=True
    )
    prompt = desk.engine.load("cut", folder).prompt.encode(request).tokens
    assert len(prompt) > 40


def test_no_code_of_a_models_own_is_run(desk: Desk, tmp_path: Path, tiny_tokenizer: Tokenizer) -> None:
    folder = tmp_path / "evil"
    write_tiny_model(folder, tiny_tokenizer)
    config = (folder / "config.json").read_text().replace("{", '{"model_file": "evil.py", ', 1)
    (folder / "config.json").write_text(config)
    (folder / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    with pytest.raises(ModelLoadFailed):
        desk.engine.load("evil", folder)
    assert not (tmp_path / "ran").exists()


@pytest_twisted.ensureDeferred
async def test_after_the_thread_died_the_next_one_serves_the_same_model(backend: Backend, tiny_models: Path) -> None:
    from osaurus.engine.mlx_engine import MLXEngine
    from osaurus.engine.prefixes import PrefixCache

    pool = ThreadPool(1, 2)
    pool.start()
    # The answer ends with an error when the step raises; the next one is a real answer.
    broken = [MemoryError("injected")]

    class Engine(MLXEngine):
        def step(self) -> list[tuple[int, Event]]:
            if broken:
                raise broken.pop()
            return super().step()

    runner = MLXRunner(
        pool.callInThread,
        reactor.callFromThread,  # type: ignore[attr-defined]
        lambda: Engine(backend, PrefixCache(2**20), 2**32),
        reactor,
    )
    runner.start()
    folder = tiny_models / "tests" / "tiny"
    try:
        ends = []
        for number in range(2):
            while runner.problem is not None:
                await deferLater(reactor, 0.01, lambda: None)
            ended: Deferred[Event] = Deferred()
            row = Row(id=number, prompt=[5, 6, 7], max_tokens=4, sampling=GREEDY, stop=(), arrived=0, load=0)

            def hear(event: Event, ended: Deferred[Event] = ended) -> None:
                if isinstance(event, (Finished, Failed)):
                    ended.callback(event)

            runner.submit("tiny", folder, row, hear)
            ends.append(await ended)
    finally:
        await runner.stop()
        pool.stop()
    assert [type(end) for end in ends] == [Failed, Finished]


def test_log_probabilities_come_with_the_text_of_rows_that_asked(desk: Desk) -> None:
    pieces: dict[int, list[Piece]] = {1: [], 2: []}
    desk.add(1, "Hello", top_logprobs=2)
    desk.add(2, "Hello")
    while desk.engine.busy:
        for number, event in desk.engine.step():
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
    read = type(batch)._read_together

    def count(self: Any, group: list[Any], lengths: list[int]) -> None:
        passes.append(len(group))
        read(self, group, lengths)

    monkeypatch.setattr(type(batch), "_read_together", count)
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
    from osaurus.engine.batch import LEAST_SHARE, MOST_READING

    for number in range(8):
        desk.add(number, "word " * (4 + 9 * number), max_tokens=4)
    _, batch = desk.engine._resident["tiny"]
    read = type(batch)._read

    def check(self: Any) -> int:
        computed: int = read(self)
        # What would be a pass's worth of crumbs is read along.
        assert computed <= self._pace.chunk(len(self._writing)) + LEAST_SHARE * MOST_READING
        return computed

    monkeypatch.setattr(type(batch), "_read", check)
    desk.finish()
    assert all(isinstance(end, Finished) for end in desk.ends.values())
    assert len(desk.ends) == 8


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


def test_a_model_whose_files_were_replaced_is_loaded_anew_and_its_rows_go_on(
    backend: Backend, tiny_models: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "tests" / "changing"
    shutil.copytree(tiny_models / "tests" / "tiny", folder)
    desk = another(backend, tmp_path)
    expected = [another(backend, tiny_models).alone("Hello", name=name) for name in ("tiny", "other")]
    desk.add(1, "Hello", "changing")
    desk.step()
    shutil.rmtree(folder)
    shutil.copytree(tiny_models / "tests" / "other", folder)
    desk.add(2, "Hello", "changing")
    assert len(desk.engine.resident()) == 2
    desk.finish()
    assert [desk.texts[1], desk.texts[2]] == expected
    assert [model.id for model in desk.engine.resident()] == ["changing"]
