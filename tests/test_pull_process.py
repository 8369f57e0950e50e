"""A pull in a process of its own: what it tells, and that it ends when it is told to."""

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from .hub import FakeHub
from .test_pulling import NAME, eventually, under_way


@pytest.fixture
def start(tmp_path: Path, hub: FakeHub) -> Any:
    """Start a pull from the hub into `models`; what it tells is to be read from its output."""

    def started(name: str = NAME, *options: str) -> "subprocess.Popen[bytes]":
        return subprocess.Popen(
            [sys.executable, "-P", "-m", "osaurus.library.pull_process", name, str(tmp_path / "models"), *options],
            env={**os.environ, "HOME": str(tmp_path), "HF_ENDPOINT": hub.endpoint, "PIP_NO_INDEX": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )

    return started


def lines(process: "subprocess.Popen[bytes]") -> list[Any]:
    output, errors = process.communicate(timeout=60)
    assert errors == b""
    return [json.loads(line) for line in output.splitlines()]


def test_each_stage_is_a_line(start: Callable[..., Any], hub: FakeHub, tiny_models: Path, tmp_path: Path) -> None:
    hub.add(NAME, tiny_models / "tests" / "tiny")
    process = start()
    told = lines(process)
    assert told[0] == {"status": "pulling manifest", "digest": "", "total": 0, "completed": 0}
    assert told[-1]["status"] == "success"
    assert process.returncode == 0
    assert (tmp_path / "models" / NAME / "config.json").exists()


def test_an_error_is_a_line_with_its_kind(start: Callable[..., Any]) -> None:
    process = start("org/none")
    assert lines(process)[-1]["kind"] == "NoSuchRepository"
    assert process.returncode == 0


def test_it_ends_when_it_is_told_to_and_keeps_what_it_has(
    start: Callable[..., Any], hub: FakeHub, tiny_models: Path, tmp_path: Path
) -> None:
    hub.add(NAME, tiny_models / "tests" / "tiny")
    hub.held["model.safetensors"] = threading.Event()
    process = start()
    eventually(lambda: under_way(tmp_path / "models"))
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=20)
    assert process.returncode == 128 + signal.SIGTERM
    assert not list((tmp_path / "models").rglob("*.lock"))
    assert list((tmp_path / "models").rglob("*.part"))


def test_it_ends_when_nobody_reads_any_more(start: Callable[..., Any], hub: FakeHub, tiny_models: Path) -> None:
    hub.add(NAME, tiny_models / "tests" / "tiny")
    held = hub.held["model.safetensors"] = threading.Event()
    process = start()
    eventually(lambda: bool(hub.asked("model.safetensors")))
    process.stdout.close()
    held.set()
    assert process.wait(20) != 0
    process.stderr.close()
