"""Chat templates are rendered by another process: what passes to it and back, what bounds it, and when it ends."""

import gc
import os
import shlex
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from time import monotonic
from typing import Any

import pytest

from osaurus.chat import ServiceUnavailable, TemplateStopped
from osaurus.rendering import renderer as module
from osaurus.rendering.renderer import Renderer, TemplateRefused

FOR_EVER = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"
DOUBLING = "{% set n = namespace(x='x') %}{% for i in range(40) %}{% set n.x = n.x ~ n.x %}{% endfor %}"


@pytest.fixture
def renderer() -> Renderer:
    return Renderer(2**20, seconds=1)


def process(renderer: Renderer) -> "subprocess.Popen[bytes]":
    """The process that has rendered last."""
    assert renderer._process is not None
    return renderer._process.popen


def stopped(renderer: Renderer, template: str) -> str:
    """Why the renderer is stopped, after which it renders on."""
    with pytest.raises(TemplateStopped) as caught:
        renderer.render(template, {})
    assert (caught.value.status, caught.value.param) == (400, "messages")
    assert renderer.render("{{ 1 + 1 }}", {}) == "2"
    return str(caught.value)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "hello",
        "\x00\x7f\n\r\t\"\\<&'",
        "Zürich \N{T-REX}",
        "half \ud83d of one, \ud83d\ude00 both halves of another \ude00",
        "\U000f0000\U0010fffd\ue000",
        "a long one, " * 100_000 + "\U000f1234",
    ],
    ids=["empty", "plain", "controls", "Unicode", "surrogates", "private use", "long"],
)
def test_text_passes_as_it_is(text: str) -> None:
    variables = {"messages": [{"content": text, text: 1}], "text": text}
    renderer = Renderer(2**23)
    assert renderer.render("{{ text }}{{ messages[0].content }}{{ messages[0] | list | last }}", variables) == text * 3


def test_variables_keep_their_types(renderer: Renderer) -> None:
    values: list[Any] = [None, True, 1, 2**70, 0.1, -0.0, float("inf"), "x", [[]], {"b": 1, "a": {}}]
    assert renderer.render("{{ values }}", {"values": values}) == str(values)


def test_a_refusal_is_in_the_templates_own_words(renderer: Renderer) -> None:
    with pytest.raises(TemplateRefused, match=r"^no system message, \ud83d please$"):
        renderer.render("{{ raise_exception('no system message, ' ~ x ~ ' please') }}", {"x": "\ud83d"})
    with pytest.raises(TemplateRefused) as refused:
        renderer.render("{{ raise_exception('x' * 99999) }}", {})
    assert str(refused.value) == "x" * 2000


@pytest.mark.parametrize(
    "template", ["{{", "{{ a.b.c }}", "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}", "{{ 1/0 }}"]
)
def test_a_template_that_fails_refuses_and_costs_no_process(renderer: Renderer, template: str) -> None:
    renderer.render("", {})
    before = process(renderer).pid
    with pytest.raises(TemplateRefused):
        renderer.render(template, {})
    assert renderer.render("{{ 1 + 1 }}", {}) == "2"
    assert process(renderer).pid == before


def test_one_that_takes_too_long_is_stopped_and_the_next_has_another_process(renderer: Renderer) -> None:
    assert "it takes too long: more than 1 s on the processor" in stopped(renderer, FOR_EVER)


def test_what_renderings_before_took_is_not_counted(renderer: Renderer) -> None:
    renderer.render("", {})
    before = process(renderer).pid
    began = os.times()
    while os.times().elapsed - began.elapsed < 4:
        renderer.render("{% for i in range(99999) %}{% endfor %}" * 10, {})
    assert process(renderer).pid == before


def test_one_that_takes_no_time_on_the_processor_is_stopped_by_the_clock() -> None:
    renderer = Renderer(2**20, seconds=60)
    renderer.render("", {})
    renderer._patience = 0.2
    began = monotonic()
    with pytest.raises(TemplateStopped, match=r"it takes too long: more than 0\.2 s"):
        renderer.render(FOR_EVER, {})
    assert monotonic() - began < 5
    renderer._patience = 60
    assert renderer.render("well", {}) == "well"


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux bounds what a process allocates")
@pytest.mark.parametrize("template", [DOUBLING, "{{ 'x' * 99999999999 }}"], ids=["doubling", "multiplying"])
def test_one_that_takes_too_much_memory_is_stopped(template: str) -> None:
    renderer = Renderer(2**20, memory=2**28, seconds=10)
    assert "it takes too much memory; 0.25 GiB are the most" in stopped(renderer, template)


@pytest.mark.usefixtures("refused_memory_limits")
def test_where_memory_is_not_bounded_templates_are_rendered_as_well(renderer: Renderer) -> None:
    assert renderer.render("{{ 'x' * 3 }}", {}) == "xxx"


@pytest.mark.parametrize(
    "template",
    ["{{ 'x' * 1048577 }}", "{% for i in range(9999) %}{{ 'x' * 1048 }}{% endfor %}"],
    ids=["at once", "bit by bit"],
)
def test_one_that_writes_too_much_is_stopped(renderer: Renderer, template: str) -> None:
    assert len(renderer.render("{{ 'x' * 1048576 }}", {})) == 2**20
    before = process(renderer).pid
    assert "it writes too much: more than 1048576 characters" in stopped(renderer, template)
    assert process(renderer).pid == before


def stand_in(
    folder: Path, monkeypatch: pytest.MonkeyPatch, code: str, before: str = "channel.sendall(b'\\0\\0\\0\\0')"
) -> None:
    """Have another program rendered with, which does this when it has said that it listens, and something before."""
    program = folder / "program"
    written = folder / "program.py"
    written.write_text(f"import os, socket, time\nchannel = socket.socket(fileno=0)\n{before}\n{code}")
    # Its own path may have spaces.
    program.write_text(f"#!/bin/sh\nexec {shlex.join([sys.executable, str(written)])}\n")
    program.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(program))


def test_no_more_is_read_of_an_answer_than_may_be_in_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in(tmp_path, monkeypatch, "channel.sendall(b'\\xff\\xff\\xff\\xff')\ntime.sleep(60)")
    with pytest.raises(TemplateStopped, match="writes too much"):
        Renderer(100).render("", {})


@pytest.mark.parametrize("code", ["time.sleep(60)", "channel.sendall(b'\\0\\0\\0\\x09text')\ntime.sleep(60)"])
def test_an_answer_that_does_not_come_is_not_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: str
) -> None:
    stand_in(tmp_path, monkeypatch, code)
    with pytest.raises(TemplateStopped, match="takes too long"):
        # More than the socket holds: it is not taken either.
        Renderer(100, patience=0.3).render("x" * 10**7, {})


@pytest.mark.parametrize("before", ["time.sleep(60)", "raise SystemExit(1)"])
def test_a_process_that_does_not_come_is_no_fault_of_the_templates(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, before: str
) -> None:
    stand_in(tmp_path, monkeypatch, "", before)
    monkeypatch.setattr(module, "START_PATIENCE", 0.3)
    with pytest.raises(ServiceUnavailable, match="cannot be had"):
        Renderer(100, patience=60).render("", {})


def test_a_process_that_takes_long_to_start_has_its_time_to_render_nevertheless(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer = "channel.recv(2**16)\nchannel.sendall(b'\\0\\0\\0\\x02tx')\ntime.sleep(60)"
    stand_in(tmp_path, monkeypatch, answer, "time.sleep(2.5)\nchannel.sendall(b'\\0\\0\\0\\0')")
    assert Renderer(100, patience=2).render("", {}) == "x"


@pytest.mark.parametrize("name", ["OSU_API_KEYS", "HF_TOKEN"])
def test_the_process_has_none_of_our_secrets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv(name, "a-secret")
    told = f"channel.recv(2**16)\nchannel.sendall(b'\\0\\0\\0\\x02t' + (b'1' if {name!r} in os.environ else b'0'))"
    stand_in(tmp_path, monkeypatch, told)
    assert Renderer(100).render("", {}) == "0"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_what_ends_the_server_lets_it_complete_what_it_has_begun(renderer: Renderer, number: int) -> None:
    renderer.render("", {})
    before = process(renderer).pid
    os.kill(before, number)
    assert renderer.render("well", {}) == "well"
    assert process(renderer).pid == before


def test_a_process_that_was_killed_is_replaced_and_nobody_notices(renderer: Renderer) -> None:
    renderer.render("", {})
    killed = process(renderer)
    killed.kill()
    while os.waitid(os.P_PID, killed.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
        pass
    assert renderer.render("well", {}) == "well"
    assert (killed.returncode, process(renderer).pid != killed.pid) == (-signal.SIGKILL, True)


@pytest.mark.parametrize(
    ("number", "reason"),
    [
        (signal.SIGSEGV, r"it ends the process that renders it \(SIGSEGV\)"),
        (signal.SIGKILL, "it was killed"),
    ],
)
def test_a_process_that_dies_while_it_renders_costs_one_rendering(number: int, reason: str) -> None:
    renderer = Renderer(100, seconds=60, patience=60)
    renderer.render("", {})
    timer = threading.Timer(0.3, os.kill, (process(renderer).pid, number))
    timer.start()
    with pytest.raises(TemplateStopped, match=reason):
        renderer.render(FOR_EVER, {})
    timer.join()
    assert renderer.render("well", {}) == "well"


@pytest.mark.parametrize(("program", "reason"), [("/nowhere/python", "No such file"), ("/bin/false", "ended with 1")])
def test_where_there_is_no_process_asking_again_may_help(
    renderer: Renderer, monkeypatch: pytest.MonkeyPatch, program: str, reason: str
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(sys, "executable", program)
        with pytest.raises(ServiceUnavailable, match=reason) as caught:
            renderer.render("", {})
        assert caught.value.retry_after == 5
    assert renderer.render("well", {}) == "well"


def test_threads_that_render_at_once_each_have_their_own_text(renderer: Renderer) -> None:
    def said(number: int) -> str:
        return renderer.render("{{ text }}", {"text": f"{number} " * number})

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(said, range(400))) == [f"{number} " * number for number in range(400)]


def test_threads_that_wait_for_one_that_is_stopped_are_answered(renderer: Renderer) -> None:
    with ThreadPoolExecutor(4) as pool:
        hanging = pool.submit(renderer.render, FOR_EVER, {})
        waiting = [pool.submit(renderer.render, "well", {}) for _ in range(3)]
        assert [future.result(30) for future in waiting] == ["well"] * 3
        assert isinstance(hanging.exception(30), TemplateStopped)


def test_the_process_ends_with_the_renderer() -> None:
    renderer = Renderer(100)
    renderer.render("", {})
    ended = process(renderer)
    assert ended.poll() is None
    del renderer
    gc.collect()
    # It was waited for: there is no zombie.
    assert ended.returncode == -signal.SIGKILL


RENDERS = """
import os, signal
from osaurus.rendering.renderer import Renderer
renderer = Renderer(100)
renderer.render("", {})
"""


@pytest.mark.parametrize(
    ("end", "status"),
    [("", 0), ("os._exit(3)", 3), ("os.kill(os.getpid(), signal.SIGKILL)", -signal.SIGKILL)],
    ids=["at its end", "at once", "killed"],
)
def test_the_process_ends_with_the_server_however_that_ends(end: str, status: int) -> None:
    # The process has the same standard error, so that this ends when both have ended.
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", RENDERS + end], stderr=subprocess.PIPE, timeout=30, check=False
    )
    assert (done.returncode, done.stderr) == (status, b"")


def test_the_server_needs_no_jinja() -> None:
    code = "import sys, osaurus.rendering.renderer\nassert 'jinja2' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
