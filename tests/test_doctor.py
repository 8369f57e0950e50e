"""`osaurus doctor`: what is wrong, found and told with what to do."""

import json
import os
import socket
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from typing import Any

import pytest

from osaurus.command import doctor
from osaurus.command.doctor import Examination, Finding, memory, models, packages, try_backend, writable_folder
from osaurus.command.errors import NoServer
from osaurus.command.surroundings import Surroundings
from osaurus.discovery import Announcement
from osaurus.engine.backend import Backend
from osaurus.library.store import ModelStore
from osaurus.settings import Settings

from .commandline import CommandLine
from .conftest import CACHE
from .server import free_port

HERE = Backend(device="metal", blas=None, dense_float32=False, memory_bytes=16 * 2**30, prefill_step_size=1024)


@pytest.fixture(autouse=True)
def backend_of_a_mac(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "try_backend", lambda _: HERE)


def by_name(command_line: CommandLine) -> dict[str, Any]:
    return {finding["about"]: finding for finding in json.loads(command_line.run("doctor", "--json").stdout)}


def test_where_all_is_well_the_status_is_0(command_line: CommandLine) -> None:
    command_line.start_server()
    result = command_line.run("doctor")
    assert result.exit_code == 0
    assert "✗" not in result.stdout
    assert "✓ server: runs at http://127.0.0.1:1337" in result.stdout


def test_everything_is_looked_at(command_line: CommandLine) -> None:
    command_line.start_server()
    found = by_name(command_line)
    assert list(found) == ["machine", "packages", "MLX", "memory", "models", "cache", "server"]
    assert found["MLX"]["facts"]["device"] == "metal"
    assert found["packages"]["facts"]["Twisted"]
    assert found["models"]["facts"]["models"] == ["other", "tiny"]


def test_one_problem_makes_the_status_1(command_line: CommandLine) -> None:
    command_line.start_server()
    command_line.environ["OSU_MEMORY_LIMIT"] = "64GiB"
    result = command_line.run("doctor")
    assert result.exit_code == 1
    assert "✗ memory: 17.2 GB, but models may have 68.7 GB" in result.stdout
    assert "OSU_MEMORY_LIMIT" in result.stdout


def test_a_bad_setting_is_a_problem(command_line: CommandLine) -> None:
    command_line.environ["OSU_MAX_BODY"] = "plenty"
    result = command_line.run("doctor")
    assert result.exit_code == 1
    assert "✗ settings: OSU_MAX_BODY must be" in result.stdout


def test_mlx_that_ends_its_process_is_a_problem(command_line: CommandLine, monkeypatch: pytest.MonkeyPatch) -> None:
    def die(_: Path) -> Backend:
        raise RuntimeError("the process died")

    monkeypatch.setattr(doctor, "try_backend", die)
    command_line.start_server()
    found = by_name(command_line)["MLX"]
    assert found["state"] == "problem"
    assert "pip install" in found["advice"]


def test_mlx_is_tried_in_another_process(backend: Backend) -> None:
    assert try_backend(CACHE).device == backend.device


def test_a_cpu_without_a_blas_is_a_warning(command_line: CommandLine, monkeypatch: pytest.MonkeyPatch) -> None:
    slow = Backend(device="cpu", blas=None, dense_float32=True, memory_bytes=2**34, prefill_step_size=128)
    monkeypatch.setattr(doctor, "try_backend", lambda _: slow)
    command_line.start_server()
    found = by_name(command_line)["MLX"]
    assert found["state"] == "warning"
    assert "libopenblas0" in found["advice"]


@pytest.mark.parametrize(("kernels", "state"), [(None, "warning"), ("avx2", "ok")])
def test_a_cpu_without_our_kernels_is_a_warning(
    command_line: CommandLine, monkeypatch: pytest.MonkeyPatch, kernels: str | None, state: str
) -> None:
    here = Backend(
        device="cpu", blas="OpenBLAS", dense_float32=True, memory_bytes=2**34, prefill_step_size=128, kernels=kernels
    )
    monkeypatch.setattr(doctor, "try_backend", lambda _: here)
    monkeypatch.setattr("shutil.which", lambda _: "/usr/bin/c++")
    command_line.start_server()
    found = by_name(command_line)["MLX"]
    assert found["state"] == state
    assert "kernels" in found["found"]
    assert ("python3-dev" in found["advice"]) == (state == "warning")


def test_packages_that_are_missing_or_too_old_are_told() -> None:
    def version(name: str) -> str:
        if name == "rich":
            raise PackageNotFoundError(name)
        return {"klein": "23.1", "attrs": "25.4"}[name]

    required = ["klein >= 24.8", "attrs >= 25.1", "rich", 'mlx >= 1; platform_system == "None"', 'x; extra == "test"']
    finding = packages(required, version)
    assert finding.state == "problem"
    assert finding.found == "klein 23.1 (needed: >=24.8); rich is missing (needed: any)"
    assert finding.facts == {"klein": "23.1", "attrs": "25.4", "rich": None}
    assert packages(required[1:2], version).state == "ok"


def test_a_folder_that_is_no_model_is_told_with_the_reason(tmp_path: Path) -> None:
    (tmp_path / "org" / "broken").mkdir(parents=True)
    (tmp_path / "org" / "broken" / "config.json").write_text("{}")
    finding = models(tmp_path, ModelStore(tmp_path))
    assert finding.state == "warning"
    assert f"{tmp_path}/org/broken: config.json names no model_type" in finding.found


def test_without_models_one_is_told_how_to_get_one(tmp_path: Path) -> None:
    assert (
        models(tmp_path / "none", ModelStore(tmp_path / "none")).advice
        == "`osaurus pull smollm2:135m` gets a small one."
    )


def test_a_folder_that_cannot_be_written_to_is_a_problem(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    assert writable_folder("models", tmp_path / "file").state == "problem"
    assert writable_folder("models", tmp_path / "file" / "below").state == "problem"
    assert writable_folder("models", tmp_path / "new" / "below").state == "ok"
    monkeypatch.setattr(os, "access", lambda *_: False)
    finding = writable_folder("cache", tmp_path)
    assert (finding.state, "OSU_CACHE_DIR" in finding.advice) == ("problem", True)


def test_the_memory_is_the_machines_where_mlx_does_not_tell() -> None:
    finding = memory(Settings(), None)
    assert (finding.state, finding.facts["total"] > 2**28) == ("ok", True)


# The port.


def server_finding(tmp_path: Path, port: int) -> Finding:
    def nobody(task: Any) -> Any:
        raise NoServer("No server answers")

    surroundings = Surroundings(environ={"OSU_PORT": str(port)}, runtime=tmp_path / "runtime", run=nobody)
    return list(Examination(surroundings).findings())[-1]


def test_a_port_that_is_free_only_waits_for_a_server(tmp_path: Path) -> None:
    finding = server_finding(tmp_path, free_port())
    assert (finding.state, "osaurus serve" in finding.advice) == ("warning", True)


def test_a_port_that_another_program_has_is_a_problem(tmp_path: Path) -> None:
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        finding = server_finding(tmp_path, holder.getsockname()[1])
    assert finding.state == "problem"
    assert "OSU_PORT" in finding.advice


def test_a_server_that_runs_and_does_not_answer_is_a_problem(tmp_path: Path) -> None:
    Announcement(tmp_path / "runtime", False, tmp_path).publish(("127.0.0.1", 8001))
    finding = server_finding(tmp_path, 8001)
    assert (finding.state, str(os.getpid()) in finding.advice) == ("problem", True)


def test_another_machines_server_that_does_not_answer_is_a_problem_of_its_own(command_line: CommandLine) -> None:
    def nobody(task: Any) -> Any:
        raise NoServer("No server answers at http://mac.local:1337")

    surroundings = Surroundings(environ={"OSU_HOST": "mac.local"}, runtime=command_line.home, run=nobody)
    finding = list(Examination(surroundings).findings())[-1]
    assert (finding.state, finding.found) == ("problem", "No server answers at http://mac.local:1337")
