"""The engine: models that come and go within a budget of memory."""

import gc
import shutil
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from tokenizers import Tokenizer
from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.task import deferLater
from twisted.python.threadpool import ThreadPool

from osaurus.chat import (
    ContextLengthExceeded,
    Event,
    Failed,
    Finished,
    ModelLoadFailed,
    NoRoomYet,
)
from osaurus.engine.backend import Backend
from osaurus.engine.runner import MLXRunner, Row
from osaurus.figures import Figures

from .conftest import ARCHITECTURES, write_tiny_model
from .desk import GREEDY, PROMPTS, Desk, another


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


def test_what_a_token_takes_is_what_its_keys_and_values_take(sizes: tuple[int, int], backend: Backend) -> None:
    # Keys and values, two layers, two heads of sixteen float32, or float16 with the kernels.
    assert sizes[1] == 2 * 2 * 2 * 16 * (4 if backend.kernels is None else 2)


def nbytes(cache: Any) -> int:
    """What a cache takes, of one row or of several."""
    members = getattr(cache, "caches", None)
    return int(cache.nbytes) if members is None else sum(map(nbytes, members))


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_what_rows_claim_is_what_their_caches_take(
    backend: Backend, tmp_path: Path, tiny_tokenizer: Tokenizer, name: str
) -> None:
    write_tiny_model(tmp_path / "tests" / name, tiny_tokenizer, architecture=ARCHITECTURES[name])
    desk = another(backend, tmp_path)
    # Short answers; the prompts begin unlike, so that none waits for another.
    for number in range(8):
        desk.add(number, f"{number} Hello", name=name)
    [(_, batch)] = desk.engine._resident.values()
    most = 0.0
    while desk.engine.busy:
        desk.step()
        taken = sum(map(nbytes, [*batch._caches, *(cache for row in batch._reading.readers for cache in row.cache)]))
        assert taken <= batch.claimed
        most = max(most, taken / max(batch.claimed, 1))
    assert most > 0.25


def test_the_state_of_a_row_has_its_place_in_memory(backend: Backend, whole_models: Path) -> None:
    loaded = another(backend, whole_models).engine.load("recurrent", whole_models / "tests" / "recurrent")
    assert loaded.row_nbytes > 0
    beside = loaded.nbytes + 300 * loaded.token_nbytes
    assert (
        limited(backend, whole_models, beside + loaded.row_nbytes)
        .engine.load("recurrent", whole_models / "tests" / "recurrent")
        .context_length
        == 300
    )
    desk = limited(backend, whole_models, beside)
    with pytest.raises(ContextLengthExceeded, match=r"GiB of weights and \d+\.\d+ GiB of an answer's state"):
        desk.add(1, "x" * 400, name="recurrent")


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
    desk = limited(backend, tmp_path, 2 * weights + 256 * token)
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
    with pytest.raises(ContextLengthExceeded, match=f"context is 40 tokens here: each token takes {token} bytes"):
        desk.add(1, "x" * 300)


def test_what_is_kept_of_prefixes_makes_room_for_rows(
    backend: Backend, tiny_models: Path, sizes: tuple[int, int]
) -> None:
    weights, token = sizes
    desk = limited(backend, tiny_models, weights + 700 * token)
    for letter in "yz":
        desk.alone(letter * 200)
    kept = desk.engine._prefixes.nbytes
    assert kept > 300 * token
    desk.add(1, "x" * 100, max_tokens=400)
    desk.step()
    [(_, batch)] = desk.engine._resident.values()
    assert batch.claimed > 400 * token
    assert 0 < desk.engine._prefixes.nbytes <= 700 * token - batch.claimed < kept


def test_of_two_models_whose_rows_wait_for_each_other_one_is_answered(
    backend: Backend, tiny_models: Path, sizes: tuple[int, int]
) -> None:
    weights, token = sizes
    desk = limited(backend, tiny_models, 2 * weights + 100 * token)
    for number in range(2):
        desk.add(number, "Hello", max_tokens=200)
        desk.add(number + 2, "Hello", name="other", max_tokens=200)
    desk.finish()
    assert set(desk.ends) == {0, 1, 2, 3}
    # Those of the other come again, as its room is taken now.
    assert sum(isinstance(end, Finished) for end in desk.ends.values()) == 2


def test_a_row_is_not_kept_out_by_those_of_another_model_that_come_later(
    backend: Backend, tiny_models: Path, sizes: tuple[int, int]
) -> None:
    weights, token = sizes
    desk = limited(backend, tiny_models, 2 * weights + 600 * token)
    desk.add(0, "Hello", name="other", max_tokens=60)
    desk.step()
    # It fits by itself only, two of the others fit together.
    desk.add(1, "Hello", max_tokens=440)
    for number in range(2, 8):
        desk.add(number, f"Hi {number}", name="other", max_tokens=40)
        for _ in range(20):
            desk.step()
    desk.finish()
    assert all(isinstance(end, Finished) for end in desk.ends.values())
    assert list(desk.ends)[:2] == [0, 1]


@pytest.mark.parametrize("on_disk", [False, True])
def test_a_row_waits_for_room_that_one_has_which_stands_still(
    backend: Backend, tiny_models: Path, sizes: tuple[int, int], tmp_path: Path, on_disk: bool
) -> None:
    """Even where there are steps to do, as what was read is to be written to the disk."""
    from osaurus.engine.mlx_engine import MLXEngine
    from osaurus.engine.prefix_files import PrefixFiles
    from osaurus.engine.prefixes import PrefixCache

    weights, token = sizes
    files = PrefixFiles(tmp_path / "p", 2**30, lambda thunk: thunk()) if on_disk else None
    desk = Desk(MLXEngine(backend, PrefixCache(2**24, files), 2 * weights + 400 * token), tiny_models)
    alone = another(backend, tiny_models).alone("Hello", name="other", max_tokens=160)
    desk.add(1, "Hello", max_tokens=450)
    for _ in range(4):
        desk.step()
    desk.engine.park(1)
    desk.add(2, "Hello", name="other", max_tokens=160)
    for _ in range(120):
        desk.step()
    desk.engine.park(2)
    desk.engine.unpark(1)
    desk.finish()
    # There is no step to do until the other goes on, or has gone.
    assert desk.ends == {}
    desk.engine.unpark(2)
    desk.finish()
    assert all(isinstance(desk.ends[number], Finished) for number in (1, 2))
    assert desk.texts[2] == alone


def test_room_for_a_model_is_asked_for_before_it_is_built_a_second_time(
    backend: Backend, tiny_models: Path, sizes: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlx_lm.utils import load_model

    desk = limited(backend, tiny_models, 2 * sizes[0] - 1)
    built: list[Path] = []

    def count(folder: Path, **options: Any) -> Any:
        built.append(folder)
        return load_model(folder, **options)

    monkeypatch.setattr("osaurus.engine.loader.load_model", count)
    desk.add(1, "Hello")
    for _ in range(3):
        with pytest.raises(NoRoomYet, match="GiB"):
            desk.engine.load("other", desk.folder("other"))
    assert [folder.name for folder in built] == ["tiny", "other"]
    desk.finish()
    desk.alone("Hello", name="other")


def test_a_model_that_makes_room_has_gone_when_its_room_is_taken(
    backend: Backend, tiny_models: Path, sizes: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    import mlx.core as mx

    weights, token = sizes
    desk = limited(backend, tiny_models, 2 * weights + 300 * token)
    desk.alone("Hello", name="other")
    network = weakref.ref(desk.engine._resident["other"][0].network)
    trimmed: list[bool] = []
    clear_cache = mx.clear_cache

    def look() -> None:
        trimmed.append(network() is None)
        clear_cache()

    desk.add(1, "Hello", max_tokens=400)
    with monkeypatch.context() as patch:
        patch.setattr(mx, "clear_cache", look)
        desk.step()
    assert trimmed[:1] == [True]
    desk.finish()


def test_unloading_waits_for_the_last_row(desk: Desk) -> None:
    desk.add(1, "Hello")
    desk.engine.unload("tiny")
    assert list(desk.engine._resident) == ["tiny"]
    desk.finish()
    assert list(desk.engine._resident) == []
    assert isinstance(desk.ends[1], Finished)


def test_what_a_model_brought_is_looked_through_for_garbage_only_when_one_goes(desk: Desk) -> None:
    gc.unfreeze()
    networks = [weakref.ref(desk.engine.load(name, desk.folder(name)).network) for name in ("tiny", "other")]
    assert gc.get_freeze_count()
    desk.engine.unload("tiny")
    assert [network() is None for network in networks] == [True, False]
    assert gc.get_freeze_count()
    desk.engine.unload("other")
    assert networks[1]() is None
    assert not gc.get_freeze_count()


@pytest_twisted.ensureDeferred
async def test_after_the_thread_died_the_next_one_serves_the_same_model(backend: Backend, tiny_models: Path) -> None:
    from osaurus.engine.mlx_engine import MLXEngine
    from osaurus.engine.prefixes import PrefixCache

    pool = ThreadPool(1, 2)
    pool.start()
    # The answer ends with an error when the step raises; the next one is a real answer.
    broken = [MemoryError("injected")]

    class Engine(MLXEngine):
        def step(self) -> Iterator[list[tuple[int, Event]]]:
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
    assert len(desk.engine._resident) == 2
    desk.finish()
    assert [desk.texts[1], desk.texts[2]] == expected
    assert [model.id for model in desk.engine.resident()] == ["changing"]


# Figures.


def states(figures: Figures) -> tuple[int, int, int, int]:
    return figures.waiting, figures.reading, figures.writing, figures.parked


def test_figures_tell_what_rows_do(desk: Desk) -> None:
    assert states(desk.engine.figures()) == (0, 0, 0, 0)
    desk.add(1, "Hello", max_tokens=50)
    assert states(desk.engine.figures()) == (1, 0, 0, 0)
    desk.step()
    assert states(desk.engine.figures()) == (0, 1, 0, 0)
    desk.step()
    desk.add(2, "x", name="other")
    assert states(desk.engine.figures()) == (1, 0, 1, 0)
    desk.engine.park(1)
    assert states(desk.engine.figures()) == (1, 0, 0, 1)
    desk.engine.unpark(1)
    desk.finish()
    assert states(desk.engine.figures()) == (0, 0, 0, 0)


def test_figures_tell_what_memory_is_for(desk: Desk, sizes: tuple[int, int]) -> None:
    weights, token = sizes
    desk.add(1, "a longer prompt than the others, " * 8, max_tokens=5)
    desk.step()
    figures = desk.engine.figures()
    assert figures.models_nbytes == {"tiny": weights}
    assert figures.rows_nbytes > 5 * token
    assert figures.memory_limit == 2**32
    desk.finish()
    figures = desk.engine.figures()
    assert figures.rows_nbytes == 0
    assert figures.prefixes_nbytes > 0
    desk.engine.unload("tiny")
    assert desk.engine.figures() == Figures(memory_limit=2**32)


def test_a_model_whose_files_were_replaced_keeps_its_name(
    backend: Backend, tmp_path: Path, tiny_models: Path, tiny_tokenizer: Tokenizer
) -> None:
    shutil.copytree(tiny_models / "tests" / "tiny", tmp_path / "tests" / "tiny")
    desk = another(backend, tmp_path)
    desk.add(1, "Hello", max_tokens=50)
    desk.step()
    before = desk.engine.figures().models_nbytes
    shutil.rmtree(tmp_path / "tests" / "tiny")
    write_tiny_model(tmp_path / "tests" / "tiny", tiny_tokenizer, seed=2)
    desk.add(2, "Hello", max_tokens=50)
    assert desk.engine.figures().models_nbytes == {"tiny": 2 * before["tiny"]}
    assert [(model.id, model.nbytes) for model in desk.engine.resident()] == [("tiny", 2 * before["tiny"])]
    desk.finish()
    assert [counts.name for counts in desk.engine._tally.counts()] == ["tiny"]
