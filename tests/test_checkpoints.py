"""What was read is found again where caches cannot be cut: at boundaries, in whole, and nothing else changes."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer

from osaurus.chat import Finished, GenerationRequest, Message, Sampling
from osaurus.engine.backend import Backend

from .conftest import CACHE
from .desk import Desk
from .test_prefixes import ask

# Longer than the window of the rotating model.
SYSTEM = Message("system", "You are an assistant who knows foxes. " * 3)
QUESTIONS = ["What is a fox?", "Is a dog one, then?", "Name a number between one and nine, please."]
KINDS = ["rotating", "recurrent"]
BUDGET = 2**26

Conversation = tuple[Message, ...]


def new_desk(backend: Backend, models: Path, budget: int = BUDGET, folder: Path | None = None) -> Desk:
    """A desk whose engine keeps what was read within a budget, and on the disk if there is a folder."""
    from osaurus.engine.mlx_engine import MLXEngine
    from osaurus.engine.prefix_files import PrefixFiles
    from osaurus.engine.prefixes import PrefixCache

    files = None if folder is None else PrefixFiles(folder, BUDGET, lambda thunk: thunk())
    return Desk(MLXEngine(backend, PrefixCache(budget, files), 2**32), models)


@pytest.fixture
def desk(backend: Backend, whole_models: Path) -> Desk:
    return new_desk(backend, whole_models)


@pytest.fixture
def forgetful(backend: Backend, whole_models: Path) -> Desk:
    """A desk whose engine keeps nothing, and so reads everything."""
    return new_desk(backend, whole_models, 1)


def conversation(*turns: str) -> Conversation:
    """The system message, and turns of user and assistant."""
    return (SYSTEM, *(Message("assistant" if place % 2 else "user", turn) for place, turn in enumerate(turns)))


def encoded(desk: Desk, messages: Conversation, name: str) -> tuple[list[int], tuple[int, ...]]:
    request = GenerationRequest(model=name, messages=messages, max_tokens=1, max_tokens_may_shrink=True)
    prompt = desk.engine.load(name, desk.folder(name)).prompt.encode(request)
    return prompt.tokens, prompt.boundaries


def repeated(tokenizer: Tokenizer, text: str = "!") -> dict[str, Any]:
    """What makes a row write this text, of one token, eight times."""
    [token] = tokenizer.encode(text, add_special_tokens=False).ids
    # What it wrote must be read as the same tokens.
    assert tokenizer.encode(text * 8 + "<|im_end|>", add_special_tokens=False).ids[:8] == [token] * 8
    return {"max_tokens": 8, "sampling": Sampling(temperature=0, bias=((token, 1e4),))}


@pytest.mark.parametrize("name", KINDS)
def test_a_prompt_is_not_read_twice_and_the_answer_is_the_same(desk: Desk, forgetful: Desk, name: str) -> None:
    prompt = conversation(QUESTIONS[0])
    expected, none = ask(forgetful, prompt, name=name)
    assert none == 0
    assert ask(desk, prompt, name=name) == (expected, 0)
    tokens, _ = encoded(desk, prompt, name)
    # Using a checkpoint does not use it up.
    for _ in range(3):
        assert ask(desk, prompt, name=name) == (expected, len(tokens) - 1)
    assert ask(forgetful, prompt, name=name) == (expected, 0)


@pytest.mark.parametrize("name", KINDS)
def test_conversations_start_behind_the_system_message_that_they_share(desk: Desk, forgetful: Desk, name: str) -> None:
    expected = [ask(forgetful, conversation(question), name=name)[0] for question in QUESTIONS]
    found = [ask(desk, conversation(question), name=name) for question in QUESTIONS]
    assert [text for text, _ in found] == expected
    shared = encoded(desk, conversation(QUESTIONS[0]), name)[1][0]
    assert shared > 32
    assert [cached for _, cached in found] == [0, shared, shared]


@pytest.mark.parametrize("name", KINDS)
def test_the_next_turn_starts_behind_the_answer_before_it(
    desk: Desk, forgetful: Desk, tiny_tokenizer: Tokenizer, name: str
) -> None:
    first = conversation(QUESTIONS[0])
    assert ask(desk, first, name=name, **repeated(tiny_tokenizer))[0] == "!" * 8
    then = conversation(QUESTIONS[0], "!" * 8, QUESTIONS[1])
    # The last token of an answer was drawn but not read.
    read = len(encoded(desk, first, name)[0]) + 7
    assert ask(desk, then, name=name) == (ask(forgetful, then, name=name)[0], read)


def test_where_the_answer_was_rewritten_the_next_turn_starts_before_it(desk: Desk, forgetful: Desk) -> None:
    first = conversation(QUESTIONS[0])
    ask(desk, first, name="rotating")
    then = conversation(QUESTIONS[0], "Something else.", QUESTIONS[1])
    read = len(encoded(desk, first, "rotating")[0]) - 1
    assert ask(desk, then, name="rotating") == (ask(forgetful, then, name="rotating")[0], read)


@pytest.mark.parametrize("name", KINDS)
def test_conversations_that_branch_go_on_from_where_they_do(desk: Desk, forgetful: Desk, name: str) -> None:
    ask(desk, conversation(QUESTIONS[0]), name=name)
    branches = [conversation(QUESTIONS[0], answer, QUESTIONS[1]) for answer in ("An animal.", "No idea!")]
    expected = [ask(forgetful, branch, name=name)[0] for branch in branches]
    found = [ask(desk, branch, name=name) for branch in branches]
    assert [text for text, _ in found] == expected
    assert {cached for _, cached in found} == {len(encoded(desk, conversation(QUESTIONS[0]), name)[0]) - 1}


@pytest.mark.parametrize("name", KINDS)
def test_rows_that_write_together_leave_what_each_would_alone(
    desk: Desk, forgetful: Desk, tiny_tokenizer: Tokenizer, name: str
) -> None:
    """Taken out of a batch, a cache is as good as one that was alone: the next turns say what they say uncached."""
    # Of different lengths, so that some have padding; beginning one after another, ending one by one.
    for number, question in enumerate(QUESTIONS):
        desk.add(number, conversation(question * (number + 1)), name=name, **repeated(tiny_tokenizer))
        desk.step()
    desk.finish()
    nexts = [conversation(q * (n + 1), "!" * 8, QUESTIONS[0]) for n, q in enumerate(QUESTIONS)]
    expected = [ask(forgetful, then, name=name)[0] for then in nexts]
    desk.texts.clear()
    desk.ends.clear()
    for number, then in enumerate(nexts):
        desk.add(number, then, name=name)
    texts = desk.finish()
    assert [texts[number] for number in range(3)] == expected
    for number, question in enumerate(QUESTIONS):
        end = desk.ends[number]
        assert isinstance(end, Finished)
        prompt = encoded(desk, conversation(question * (number + 1)), name)[0]
        assert end.usage.cached_tokens == len(prompt) + 7


def test_a_row_that_reads_and_is_cancelled_leaves_what_it_read(desk: Desk, forgetful: Desk) -> None:
    prompt = conversation(QUESTIONS[0])
    desk.add(7, prompt, name="rotating")
    desk.step()
    desk.engine.remove(7)
    read = encoded(desk, prompt, "rotating")[1][0]
    assert ask(desk, prompt, name="rotating") == (ask(forgetful, prompt, name="rotating")[0], read)


@pytest.mark.parametrize("name", KINDS)
def test_a_row_that_writes_and_is_cancelled_leaves_what_it_wrote(
    desk: Desk, forgetful: Desk, tiny_tokenizer: Tokenizer, name: str
) -> None:
    desk.add(7, conversation(QUESTIONS[0]), name=name, **repeated(tiny_tokenizer))
    while len(desk.texts.get(7, "")) < 4:
        desk.step()
    desk.engine.remove(7)
    then = conversation(QUESTIONS[0], "!" * 8, QUESTIONS[1])
    # The pass that read the last token was under way.
    read = len(encoded(desk, conversation(QUESTIONS[0]), name)[0]) + 4
    assert ask(desk, then, name=name) == (ask(forgetful, then, name=name)[0], read)


@pytest.mark.parametrize("name", KINDS)
def test_a_row_that_stood_still_says_what_it_would_have_said(desk: Desk, forgetful: Desk, name: str) -> None:
    expected = forgetful.alone(conversation(QUESTIONS[0]), name=name)
    desk.add(1, conversation(QUESTIONS[0]), name=name)
    for _ in range(9):
        desk.step()
    desk.engine.park(1)
    assert not desk.engine.busy
    desk.engine.unpark(1)
    assert desk.finish()[1] == expected


def test_two_models_never_share_and_unloading_gives_back(desk: Desk, forgetful: Desk) -> None:
    prompt = conversation(QUESTIONS[0])
    for name in KINDS:
        assert ask(desk, prompt, name=name) == ask(forgetful, prompt, name=name)
    both = desk.engine._prefixes.nbytes
    desk.engine.unload("rotating")
    assert 0 < desk.engine._prefixes.nbytes < both
    desk.engine.unload("recurrent")
    assert desk.engine._prefixes.nbytes == 0


def test_the_budget_holds_and_what_was_used_last_stays(backend: Backend, whole_models: Path) -> None:
    desk = new_desk(backend, whole_models)
    ask(desk, "a" + SYSTEM.content, name="rotating")
    one = desk.engine._prefixes.nbytes
    desk = new_desk(backend, whole_models, one * 2)
    ask(desk, "a" + SYSTEM.content, name="rotating")
    for letter in "bcdef":
        ask(desk, letter + SYSTEM.content, name="rotating")
        assert ask(desk, "a" + SYSTEM.content, name="rotating")[1] > 32
        assert desk.engine._prefixes.nbytes <= one * 2
    assert ask(desk, "b" + SYSTEM.content, name="rotating")[1] == 0


def test_blocks_and_checkpoints_compete_for_the_same_room(
    backend: Backend, whole_models: Path, tiny_models: Path
) -> None:
    desk = new_desk(backend, whole_models)
    cut = Desk(desk.engine, tiny_models)
    prefixes = desk.engine._prefixes
    # What was used less recently goes first, whatever it is.
    ask(desk, SYSTEM.content, name="rotating")
    checkpoints = prefixes.nbytes
    ask(cut, SYSTEM.content)
    blocks = prefixes.nbytes - checkpoints
    assert blocks > 0
    prefixes.squeeze(prefixes.nbytes - 1)
    assert prefixes._blocks_nbytes == blocks
    assert prefixes._checkpoints.nbytes < checkpoints
    desk.engine.unload("rotating")
    ask(desk, SYSTEM.content, name="rotating")
    prefixes.squeeze(prefixes.nbytes - 1)
    assert prefixes._blocks_nbytes < blocks
    assert prefixes._checkpoints.nbytes == checkpoints
    prefixes.squeeze(-1)
    assert prefixes.nbytes == 0


def test_what_is_larger_than_the_budget_drives_nothing_out(backend: Backend, whole_models: Path) -> None:
    desk = new_desk(backend, whole_models)
    ask(desk, "Hello", name="rotating")
    small = desk.engine._prefixes.nbytes
    desk = new_desk(backend, whole_models, small)
    ask(desk, "Hello", name="rotating")
    kept = desk.engine._prefixes.nbytes
    ask(desk, "Hello " * 150, name="rotating")
    assert desk.engine._prefixes.nbytes == kept
    assert ask(desk, "Hello", name="rotating")[1] > 0


def test_caches_of_a_checkpoint_are_the_rows_own(backend: Backend, whole_models: Path) -> None:
    import mlx.core as mx
    from mlx_lm.models.cache import make_prompt_cache

    from osaurus.engine.loader import load

    for name in KINDS:
        model = load(name, whole_models / "tests" / name, backend, 2**32, lambda _: None)
        assert model.layout is not None
        caches = make_prompt_cache(model.network)
        model.network(mx.array([list(range(40))]), cache=caches)
        arrays = model.layout.take_apart(caches, 40)
        before = [mx.array(values) + 0 for values in arrays]
        mx.eval(arrays, before)
        # A single token is written in place, and a window of 32 is full.
        expected = model.network(mx.array([[5]]), cache=caches)
        for _ in range(2):
            taken = model.layout.put_together(arrays, 40)
            assert mx.array_equal(model.network(mx.array([[5]]), cache=taken), expected)
        assert all(mx.array_equal(*pair) for pair in zip(arrays, before, strict=True))


def test_caches_that_are_not_what_they_should_be_are_not_kept(backend: Backend, whole_models: Path) -> None:
    import mlx.core as mx
    from mlx_lm.models.cache import make_prompt_cache

    from osaurus.engine.loader import load

    model = load("rotating", whole_models / "tests" / "rotating", backend, 2**32, lambda _: None)
    assert model.layout is not None
    caches = make_prompt_cache(model.network)
    model.network(mx.array([list(range(40))]), cache=caches)
    with pytest.raises(ValueError, match="39 tokens"):
        model.layout.take_apart(caches, 39)
    with pytest.raises(ValueError, match="6 arrays"):
        model.layout.take_apart(caches[1:], 40)


# On disk.


def files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if len(path.name) == 64)


@pytest.mark.parametrize("name", KINDS)
def test_after_a_restart_the_next_turn_starts_behind_the_question_before(
    backend: Backend, whole_models: Path, tmp_path: Path, name: str
) -> None:
    first = conversation(QUESTIONS[0])
    before = new_desk(backend, whole_models, folder=tmp_path / "p")
    answer = ask(before, first, name=name)[0]
    boundaries = encoded(before, first, name)[1]
    # Only what is looked for is written.
    assert len(files(tmp_path / "p")) == len(boundaries)
    again = new_desk(backend, whole_models, folder=tmp_path / "p")
    assert ask(again, first, name=name) == (answer, boundaries[-1])
    then = conversation(QUESTIONS[0], "Something else.", QUESTIONS[1])
    again = new_desk(backend, whole_models, folder=tmp_path / "p")
    expected = ask(new_desk(backend, whole_models, 1), then, name=name)[0]
    assert ask(again, then, name=name) == (expected, boundaries[-1])
    again = new_desk(backend, whole_models, folder=tmp_path / "p")
    assert ask(again, conversation(QUESTIONS[2]), name=name)[1] == boundaries[0]


@pytest.mark.parametrize("name", KINDS)
def test_what_was_kept_in_passing_is_written_when_it_turns_out_to_be_a_boundary(
    backend: Backend, whole_models: Path, tmp_path: Path, name: str
) -> None:
    import mlx.core as mx
    from mlx_lm.models.cache import make_prompt_cache

    desk = new_desk(backend, whole_models, folder=tmp_path / "p")
    model, prefixes = desk.engine.load(name, desk.folder(name)), desk.engine._prefixes
    tokens, caches = [5, 6, 7, 8], make_prompt_cache(model.network)
    mx.eval(model.network(mx.array([tokens]), cache=caches))
    for lasting, written in ((False, 0), (True, 1), (True, 1)):
        prefixes.put_whole(model.key, tokens, caches, model.layout, lasting=lasting)
        while prefixes.unwritten:
            prefixes.write_one()
        assert len(files(tmp_path / "p")) == written


def test_a_file_that_is_larger_than_the_budget_serves_and_drives_nothing_out(
    backend: Backend, whole_models: Path, tmp_path: Path
) -> None:
    long = "Hello " * 150
    expected, _ = ask(new_desk(backend, whole_models, folder=tmp_path / "p"), long, name="rotating")
    desk = new_desk(backend, whole_models)
    ask(desk, "Hello", name="rotating")
    small = desk.engine._prefixes.nbytes
    desk = new_desk(backend, whole_models, small, tmp_path / "p")
    ask(desk, "Hello", name="rotating")
    boundary = encoded(desk, (Message("user", long),), "rotating")[1][-1]
    assert ask(desk, long, name="rotating") == (expected, boundary)
    assert desk.engine._prefixes.nbytes == small


def test_the_files_are_nobody_elses_business(backend: Backend, whole_models: Path, tmp_path: Path) -> None:
    old = os.umask(0)
    try:
        ask(new_desk(backend, whole_models, folder=tmp_path / "p"), conversation(QUESTIONS[0]), name="rotating")
    finally:
        os.umask(old)
    assert (tmp_path / "p").stat().st_mode & 0o777 == 0o700
    assert {path.stat().st_mode & 0o777 for path in files(tmp_path / "p")} == {0o600}


def forged(kind: str) -> bytes:
    """Return the content of a file whose checksum is right, and whose arrays are not."""
    from hashlib import sha256

    import numpy as np
    from safetensors.numpy import save

    kinds: dict[str, dict[str, Any]] = {
        "none": {},
        "few": {"0": np.zeros((1, 2, 32, 16), np.float32)},
        "named": {name: np.zeros((1, 2, 32, 16), np.float32) for name in "abcdefgh"},
        "shapes": {str(place): np.zeros((1, 2, 3, 16), np.float32) for place in range(8)},
        "axes": {str(place): np.zeros(7, np.float32) for place in range(8)},
        "types": {str(place): np.zeros((1, 2, 32, 16), np.int8) for place in range(8)},
        "empty": {str(place): np.zeros((0, 2, 32, 16), np.float32) for place in range(8)},
    }
    content: bytes = save(kinds[kind])
    return sha256(content).digest() + content


@pytest.mark.parametrize(
    "damage", ["cut", "flipped", "gone", "pickle", "none", "few", "named", "shapes", "axes", "types", "empty"]
)
def test_a_damaged_file_is_removed_and_what_it_held_is_read_again(
    backend: Backend, whole_models: Path, tmp_path: Path, damage: str
) -> None:
    prompt = conversation(QUESTIONS[0])
    expected = ask(new_desk(backend, whole_models, folder=tmp_path / "p"), prompt, name="rotating")[0]
    before = {path: path.read_bytes() for path in files(tmp_path / "p")}
    for path, content in before.items():
        changed = {
            "cut": content[:-1],
            "flipped": content[:-1] + bytes([content[-1] ^ 1]),
            "gone": b"",
            "pickle": b"\x80\x04cos\nsystem\n" * 10,
        }
        path.write_bytes(changed[damage] if damage in changed else forged(damage))
    assert ask(new_desk(backend, whole_models, folder=tmp_path / "p"), prompt, name="rotating") == (expected, 0)
    # All were looked at, found wanting, and written anew.
    assert {path: path.read_bytes() for path in files(tmp_path / "p")} == before


def test_a_shorter_checkpoint_serves_where_a_longer_one_is_damaged(
    backend: Backend, whole_models: Path, tmp_path: Path
) -> None:
    prompt = conversation(QUESTIONS[0])
    desk = new_desk(backend, whole_models, folder=tmp_path / "p")
    expected = ask(desk, prompt, name="rotating")[0]
    longest = max(files(tmp_path / "p"), key=lambda path: path.stat().st_size)
    longest.write_bytes(b"")
    boundaries = encoded(desk, prompt, "rotating")[1]
    again = new_desk(backend, whole_models, folder=tmp_path / "p")
    assert ask(again, prompt, name="rotating") == (expected, boundaries[0])


WRITER = """
import sys
from pathlib import Path
from osaurus.engine.backend import prepare
backend = prepare(Path(sys.argv[1]))
from tests.test_checkpoints import conversation, new_desk
from tests.test_prefixes import ask
desk = new_desk(backend, Path(sys.argv[2]), folder=Path(sys.argv[3]))
for number in range(10_000):
    ask(desk, conversation(f"Number {number}?"), name="rotating", max_tokens=1)
"""


def test_a_server_that_is_killed_leaves_nothing_that_is_believed(
    backend: Backend, whole_models: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "p"
    root = Path(__file__).parent.parent
    writer = subprocess.Popen(
        [sys.executable, "-c", WRITER, str(CACHE), str(whole_models), str(folder)],
        env=os.environ | {"PYTHONPATH": str(root)},
    )
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and (not folder.is_dir() or len(files(folder)) < 5):
        time.sleep(0.01)
    writer.send_signal(signal.SIGKILL)
    writer.wait()
    desk, forgetful = new_desk(backend, whole_models, folder=folder), new_desk(backend, whole_models, 1)
    assert {path.name for path in folder.iterdir()} == {path.name for path in files(folder)}
    # The system message's, and one for each question.
    for number in range(4):
        prompt = conversation(f"Number {number}?")
        expected = ask(forgetful, prompt, name="rotating")[0]
        assert ask(desk, prompt, name="rotating") == (expected, encoded(desk, prompt, "rotating")[1][-1])


@pytest.mark.parametrize("name", KINDS)
def test_rows_that_begin_alike_read_it_once(desk: Desk, forgetful: Desk, name: str) -> None:
    prompt = conversation(QUESTIONS[0])
    expected, _ = ask(forgetful, prompt, name=name)
    for number in range(3):
        desk.add(number, prompt, name=name)
    assert desk.finish() == dict.fromkeys(range(3), expected)
    usages = [end.usage for end in desk.ends.values() if isinstance(end, Finished)]
    assert sorted(usage.cached_tokens for usage in usages)[1:] == [usages[0].prompt_tokens - 1] * 2
