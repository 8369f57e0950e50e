"""`osaurus run`: one answer in memory; the chat in a real pseudo-terminal, its server says what a test tells it.

How to test here: `say` gives the server a piece of the answer, `end` the last; the chat is read with pexpect.
"""

import json
import queue
import re
import select
import signal
import socket
import subprocess
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from stat import S_IMODE
from typing import Any

import pexpect
import pytest
from attrs import define, field

from osaurus.chat import Piece
from osaurus.command.chat import MOST_HISTORY, History

from .commandline import PROGRAM, CommandLine
from .doubles import finished
from .server import environment, serving

ROOT = Path(__file__).parent.parent
# What prompt_toolkit sends once, when it begins to read.
PROMPT = "\x1b[?2004h"
UP, CTRL_C, CTRL_D, CTRL_R, ALT_ENTER = "\x1b[A", "\x03", "\x04", "\x12", "\x1b\r"
TIMINGS = {
    **dict.fromkeys(("total_duration", "load_duration", "prompt_eval_duration", "eval_duration"), 10**9),
    "prompt_eval_count": 3,
    "eval_count": 2,
}


class Handler(BaseHTTPRequestHandler):
    """Answers as the server does, with what the test says."""

    server: "Scripted"

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.asked.append((self.path, body))
        status, answer = self.server.refusals.pop(self.path, (200, {"message": {"content": ""}, "done": True}))
        self.send_response(status)
        self.end_headers()
        if self.path == "/api/pull" or (body.get("messages") and body["stream"] and status == 200):
            self.stream()
        else:
            self.line(answer)

    def stream(self) -> None:
        while True:
            try:
                piece = self.server.pieces.get(timeout=0.02)
            except queue.Empty:
                if select.select([self.connection], [], [], 0)[0] and not self.connection.recv(1, socket.MSG_PEEK):
                    self.server.left.set()
                    return
                continue
            self.line(piece)
            if piece.get("done") or piece.get("status") == "success" or "error" in piece:
                return

    def line(self, value: Any) -> None:
        self.wfile.write(json.dumps(value).encode() + b"\n")
        self.wfile.flush()

    def log_message(self, *_: Any) -> None: ...


class Scripted(ThreadingHTTPServer):
    """A server that says what a test tells it; `asked` has the paths and bodies, `refusals` what is answered once."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.asked: list[tuple[str, Any]] = []
        self.refusals: dict[str, tuple[int, Any]] = {}
        self.pieces: queue.Queue[dict[str, Any]] = queue.Queue()
        self.left = threading.Event()

    def say(self, content: str = "", **message: str) -> None:
        self.pieces.put({"message": {"content": content, **message}, "done": False})

    def end(self, content: str = "") -> None:
        self.pieces.put({"message": {"content": content}, "done": True, **TIMINGS})

    @property
    def turns(self) -> list[list[tuple[str, str]]]:
        """The conversations that an answer was asked for."""
        bodies = [body for path, body in self.asked if path == "/api/chat" and body["messages"]]
        return [[(turn["role"], turn["content"]) for turn in body["messages"]] for body in bodies]


@pytest.fixture
def scripted() -> Iterator[Scripted]:
    server = Scripted()
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join(30)


@define
class Terminal:
    """Begins chats, and ends those that are left."""

    home: Path
    environ: dict[str, str]
    chats: list[Any] = field(factory=list)

    def chat(self, *options: str, model: str = "tiny") -> Any:
        process = pexpect.spawn(
            PROGRAM[0],
            [*PROGRAM[1:], "run", model, *options],
            cwd=str(ROOT),
            env=self.environ,
            encoding="utf-8",
            timeout=30,
            dimensions=(40, 120),
        )
        self.chats.append(process)
        process.expect_exact(PROMPT)
        return process


@pytest.fixture
def terminal(tmp_path: Path, scripted: Scripted) -> Iterator[Terminal]:
    environ = environment(tmp_path, tmp_path, scripted.server_port)
    # pexpect is no terminal that would tell where its cursor is.
    terminal = Terminal(tmp_path, {**environ, "TERM": "xterm", "PROMPT_TOOLKIT_NO_CPR": "1"})
    yield terminal
    for chat in terminal.chats:
        chat.close(force=True)


def leave(chat: Any) -> None:
    chat.send(CTRL_D)
    chat.expect(pexpect.EOF)
    chat.close()
    assert chat.exitstatus == 0


# In the terminal.


def test_an_answer_appears_as_it_comes_and_the_conversation_goes_on(terminal: Terminal, scripted: Scripted) -> None:
    chat = terminal.chat()
    chat.send("hi\r")
    scripted.say("Hello")
    chat.expect_exact("Hello")
    scripted.say(" **you**")
    chat.expect_exact(" **you**")
    scripted.end("!")
    chat.expect_exact(PROMPT)
    chat.send("bye\r")
    scripted.end("Bye")
    chat.expect_exact(PROMPT)
    assert scripted.turns[1] == [("user", "hi"), ("assistant", "Hello **you**!"), ("user", "bye")]
    leave(chat)


def test_ctrl_c_stops_the_answer_and_nothing_else(terminal: Terminal, scripted: Scripted) -> None:
    chat = terminal.chat()
    chat.send("count\r")
    scripted.say("One")
    chat.expect_exact("One")
    chat.send(CTRL_C)
    chat.expect_exact("(stopped)")
    assert scripted.left.wait(30)
    chat.expect_exact(PROMPT)
    chat.send("go on\r")
    scripted.end("Two")
    chat.expect_exact("Two")
    assert scripted.turns[1] == [("user", "count"), ("assistant", "One"), ("user", "go on")]
    chat.expect_exact(PROMPT)
    chat.send("forget this" + CTRL_C)
    chat.expect_exact("Ctrl-D or /bye leaves")
    chat.expect_exact(PROMPT)
    leave(chat)
    assert len(scripted.turns) == 2


def test_ctrl_c_before_the_first_word_takes_the_question_back(terminal: Terminal, scripted: Scripted) -> None:
    chat = terminal.chat()
    chat.send("count\r")
    while not scripted.turns:
        threading.Event().wait(0.01)
    chat.send(CTRL_C)
    chat.expect_exact("(stopped)")
    chat.expect_exact(PROMPT)
    chat.send("hi\r")
    scripted.end("Hello")
    chat.expect_exact("Hello")
    assert scripted.turns[1] == [("user", "hi")]


def test_thoughts_are_dim_and_no_part_of_the_conversation(terminal: Terminal, scripted: Scripted) -> None:
    chat = terminal.chat()
    chat.send("hi\r")
    scripted.say(thinking="Hmm")
    chat.expect_exact("\x1b[2mHmm\x1b[0m")
    scripted.end("Hello")
    chat.expect("\r\n\r\nHello")
    chat.expect_exact(PROMPT)
    chat.send("bye\r")
    scripted.end("Bye")
    chat.expect_exact(PROMPT)
    assert scripted.turns[1] == [("user", "hi"), ("assistant", "Hello"), ("user", "bye")]


def test_what_is_said_steers_no_terminal(terminal: Terminal, scripted: Scripted) -> None:
    chat = terminal.chat()
    chat.send("hi\r")
    scripted.end("\x1b]0;evil\x07a\x9b2Jb\u202ec")
    chat.expect_exact("]0;evila2Jbc")


def test_a_message_may_have_several_lines(terminal: Terminal, scripted: Scripted) -> None:
    chat = terminal.chat()
    chat.send('"""one\rtwo"""\r')
    scripted.end("Yes")
    chat.expect_exact("Yes")
    chat.expect_exact(PROMPT)
    chat.send("three" + ALT_ENTER + "four\r")
    scripted.end("Indeed")
    chat.expect_exact("Indeed")
    assert [turns[-1] for turns in scripted.turns] == [("user", "one\ntwo"), ("user", "three\nfour")]


def test_what_is_found_in_the_history_can_be_sent(terminal: Terminal, scripted: Scripted) -> None:
    chat = terminal.chat()
    for text in ("the first", "second"):
        chat.send(text + "\r")
        scripted.end("Yes")
        chat.expect_exact(PROMPT)
    chat.send(CTRL_R + "fir")
    chat.expect_exact("I-search backward")
    chat.send("\r\r")
    scripted.end("Again")
    chat.expect_exact("Again")
    assert scripted.turns[-1][-1] == ("user", "the first")


def test_lines_that_begin_with_a_slash_are_for_the_chat(terminal: Terminal, scripted: Scripted) -> None:
    chat = terminal.chat("--system", "Be brief.")

    def command(line: str, said: str) -> None:
        chat.send(line + "\r")
        chat.expect_exact(said)
        chat.expect_exact(PROMPT)

    command("/?", "/set            Set a parameter")
    command("/show system", "Be brief.")
    command("/set parameter seed 42", "seed is 42")
    command("/set parameter seed much", "seed must be a whole number")
    command('/set system """Be\rloud."""', "The system message is set")
    command("/set nothink", "The model is not to think")
    command("/nonsense", "There is no /nonsense")
    chat.send(" /etc/hosts is a file\r")
    scripted.end("Yes")
    chat.expect_exact(PROMPT)
    body = scripted.asked[-1][1]
    assert (body["options"], body["think"]) == ({"seed": 42}, False)
    assert scripted.turns == [[("system", "Be\nloud."), ("user", " /etc/hosts is a file")]]
    command("/clear", "What was said is forgotten")
    command("/set verbose", "What answers take is told")
    chat.send("hi\r")
    scripted.end("Hello")
    chat.expect_exact("2 tokens in 1.00 s, 2.0 tokens/s")
    assert scripted.turns[1] == [("system", "Be\nloud."), ("user", "hi")]
    chat.expect_exact(PROMPT)
    chat.send("/bye\r")
    chat.expect(pexpect.EOF)


def test_an_error_is_told_and_the_chat_goes_on(terminal: Terminal, scripted: Scripted) -> None:
    chat = terminal.chat()
    scripted.refusals["/api/chat"] = (400, {"error": {"message": "options.temperature: must be at most 2"}})
    chat.send("hi\r")
    chat.expect_exact("must be at most 2")
    chat.expect_exact(PROMPT)
    chat.send("hi\r")
    scripted.say("Hel")
    scripted.pieces.put({"error": "out of memory"})
    chat.expect_exact("out of memory")
    chat.expect_exact(PROMPT)
    leave(chat)


def test_what_was_written_is_there_in_the_next_chat_for_its_user_only(terminal: Terminal, scripted: Scripted) -> None:
    chat = terminal.chat()
    chat.send("remember me\r")
    scripted.end("Yes")
    chat.expect_exact(PROMPT)
    chat.send("/set nohistory\r")
    chat.expect_exact(PROMPT)
    chat.send("a secret\r")
    scripted.end("Yes")
    chat.expect_exact(PROMPT)
    leave(chat)
    history = terminal.home / ".osaurus" / "history"
    assert S_IMODE(history.stat().st_mode) == 0o600
    assert "a secret" not in history.read_text()
    chat = terminal.chat()
    chat.send(UP + UP + "\r")
    scripted.end("Again")
    chat.expect_exact("Again")
    assert scripted.turns[-1] == [("user", "remember me")]


def test_the_starter_is_chatted_with_in_a_real_server(tmp_path: Path, tiny_models: Path) -> None:
    with serving(tmp_path, tiny_models) as server:
        environ = {**environment(tmp_path, tiny_models, server.port), "TERM": "xterm", "PROMPT_TOOLKIT_NO_CPR": "1"}
        terminal = Terminal(tmp_path, environ)
        chat = terminal.chat("--option", "temperature=0", "--option", "num_predict=8", "--verbose")
        chat.send("hi\r")
        chat.expect(r"answer +\d+ tokens in [\d.]+ s, [\d.]+ tokens/s")
        chat.expect_exact(PROMPT)
        leave(chat)


# One answer.


def test_one_answer_is_given_as_it_comes(command_line: CommandLine) -> None:
    command_line.start_server()
    result = command_line.run("run", "tiny", "hi", "there")
    assert (result.exit_code, result.stdout) == (0, "Hello\n")


def test_what_is_piped_in_comes_before_the_prompt(command_line: CommandLine) -> None:
    command_line.start_server()
    command_line.run("run", "tiny", "Summarise", "this", said="A long text.\n")
    command_line.run("run", "tiny", said="Just this")
    asked = [body["messages"][0]["content"] for body in command_line.bodies if body and "messages" in body]
    assert asked == ["A long text.\nSummarise this", "Just this"]


def test_the_whole_answer_is_json(command_line: CommandLine) -> None:
    command_line.start_server()
    answer = command_line.json("run", "tiny", "hi", "--json")
    assert (answer["message"]["content"], answer["done_reason"]) == ("Hello", "stop")


def test_thoughts_do_not_go_into_a_pipe(command_line: CommandLine) -> None:
    server = command_line.start_server()
    server.worker.engine.script = [Piece("", reasoning="Hmm"), Piece("Hello"), finished()]
    assert command_line.run("run", "tiny", "hi").stdout == "Hello\n"


def test_what_an_answer_took_is_told_beside_it(command_line: CommandLine) -> None:
    command_line.start_server()
    result = command_line.run("run", "tiny", "hi", "--verbose")
    assert result.stdout == "Hello\n"
    assert re.search(r"prompt +3 tokens in", result.stderr)


def test_without_a_prompt_and_a_terminal_one_is_asked_for(command_line: CommandLine) -> None:
    result = command_line.run("run", "tiny", said="")
    assert (result.exit_code, "A prompt is needed" in result.stderr) == (2, True)


def test_a_parameter_that_cannot_be_is_refused(command_line: CommandLine) -> None:
    result = command_line.run("run", "tiny", "hi", "-o", "heat=1")
    assert result.exit_code == 2
    assert "there are temperature" in result.stderr


def test_an_answer_can_be_made_to_keep_to_a_format(command_line: CommandLine) -> None:
    command_line.start_server()
    command_line.run("run", "tiny", "hi", "--format", '{"type": "integer"}')
    assert command_line.bodies[-1]["format"] == {"type": "integer"}


def test_a_model_that_nobody_knows_is_one_line(command_line: CommandLine) -> None:
    command_line.start_server()
    result = command_line.run("run", "huge", "hi")
    assert (result.exit_code, result.stdout) == (1, "")
    assert "Model not found: huge" in result.stderr


def one_shot(scripted: Scripted, home: Path, *arguments: str, redirected: str = "") -> "subprocess.Popen[str]":
    return subprocess.Popen(
        ["sh", "-c", f'exec "$@" {redirected}', "sh", *PROGRAM, "run", *arguments],
        cwd=ROOT,
        env={**environment(home, home, scripted.server_port), "PYTHONIOENCODING": "latin-1"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        encoding="latin-1",
    )


def test_a_model_with_a_short_name_is_installed_first(scripted: Scripted, tmp_path: Path) -> None:
    scripted.refusals["/api/show"] = (404, {"error": {"message": "Model not found: smollm2:135m"}})
    scripted.pieces.put({"status": "pulling weights", "total": 10, "completed": 5})
    scripted.pieces.put({"status": "success"})
    process = one_shot(scripted, tmp_path, "smollm2:135m", "hi")
    scripted.end("Hello")
    assert process.communicate(timeout=30) == (
        "Hello\n",
        "smollm2:135m is not installed yet\npulling weights\nsuccess\n",
    )
    assert [path for path, _ in scripted.asked] == ["/api/show", "/api/pull", "/api/chat"]


def test_ctrl_c_ends_the_command_and_hangs_up(scripted: Scripted, tmp_path: Path) -> None:
    process = one_shot(scripted, tmp_path, "tiny", "hi")
    assert process.stdout is not None
    scripted.say("Hello")
    assert process.stdout.read(5) == "Hello"
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=30)
    assert (process.returncode, "Aborted!" in said) == (130, False)
    assert "Traceback" not in said
    assert scripted.left.wait(30)


@pytest.mark.parametrize(
    ("redirected", "printed", "said"),
    [
        ("", "caf\xe9 \\u2014\n", ""),
        ("<&-", "caf\xe9 \\u2014\n", ""),
        (">&-", "", ""),
        pytest.param(
            ">/dev/full",
            "",
            "Error: [Errno 28] No space left on device\n",
            marks=pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no such device"),
        ),
    ],
)
def test_an_answer_goes_wherever_it_can(
    scripted: Scripted, tmp_path: Path, redirected: str, printed: str, said: str
) -> None:
    process = one_shot(scripted, tmp_path, "tiny", "hi", redirected=redirected)
    scripted.end("caf\xe9 \u2014")
    assert process.communicate(timeout=60) == (printed, said)
    assert process.returncode == bool(said)


def test_a_long_history_keeps_its_latest_half(tmp_path: Path) -> None:
    path = tmp_path / "history"
    entries = "".join(f"\n# 2026-11-23 12:00:00\n+entry {number}\n" for number in range(MOST_HISTORY // 30))
    path.write_text(entries)
    kept = list(History(path).load_history_strings())
    assert kept[0] == f"entry {MOST_HISTORY // 30 - 1}"
    assert MOST_HISTORY // 3 < path.stat().st_size < MOST_HISTORY
    assert all(entry.startswith("entry ") for entry in kept)


@pytest.mark.parametrize("earlier", [0, 1, 1000])
def test_a_long_history_whose_latter_half_is_one_entry_keeps_that(tmp_path: Path, earlier: int) -> None:
    path = tmp_path / "history"
    long = "y" * MOST_HISTORY
    entries = [*(f"entry {number}" for number in range(earlier)), long]
    path.write_text("".join(f"\n# 2026-11-23 12:00:00\n+{entry}\n" for entry in entries))
    assert list(History(path).load_history_strings()) == [long]


def test_a_history_that_cannot_be_kept_is_said_and_done_without(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    history = History(tmp_path / "file" / "history")
    history.store_string("hi")
    assert list(history.load_history_strings()) == []
    assert "What you write is not kept" in capsys.readouterr().err


def test_a_chat_that_is_ended_from_outside_leaves_the_terminal_as_it_was(terminal: Terminal) -> None:
    chat = terminal.chat()
    assert not chat.getecho()
    chat.kill(signal.SIGTERM)
    chat.expect(pexpect.EOF)
    assert chat.getecho()


def test_a_name_is_not_taken_for_markup(terminal: Terminal) -> None:
    chat = terminal.chat(model="[/red]")
    leave(chat)
