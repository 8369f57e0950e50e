"""What is to be started at boot: this installation's twistd, with the settings of the moment."""

import sys
from pathlib import Path

import pytest

from osaurus.boot.job import CALL, SOCKET_ENDPOINT, STOP_MARGIN, Job, job
from osaurus.settings import BEYOND_DRAIN
from osaurus.sources import BadSetting

TWISTD = str(Path(sys.executable).with_name("twistd"))


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


def planned(home: Path, environ: dict[str, str] | None = None, *, socket: bool = False) -> Job:
    return job({"PATH": "/usr/bin", **(environ or {})}, "me", home, socket=socket)


def test_it_is_this_installations_twistd_in_the_foreground_without_a_pid_file(home: Path) -> None:
    assert planned(home).program == (TWISTD, "-n", "--pidfile=", "osaurus")


def test_where_no_program_was_installed_its_python_is_asked(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", str(home / "python"))
    assert planned(home).program[:4] == (str(home / "python"), "-P", "-c", CALL)


def test_settings_go_along_and_what_is_of_others_does_not(home: Path) -> None:
    given = {
        "OSU_MAX_CONCURRENT": "3",
        "OSU_HOST": "elsewhere",
        "OSU_API_KEY": "key",
        "OSU_TEST_MODELS": "/t",
        "OSU_PORT": "",
        "HF_ENDPOINT": "https://hub.example",
        "HF_TOKEN": "secret",
        "SHELL": "/bin/sh",
    }
    assert planned(home, given).environment == {
        "PATH": "/usr/bin",
        "HF_ENDPOINT": "https://hub.example",
        "OSU_MAX_CONCURRENT": "3",
    }


def test_paths_are_those_of_here_wherever_it_runs(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(home)
    (home / "keys").write_text("secret")
    (home / "o.toml").write_text("port = 1")
    given = {
        "OSU_MODELS_DIR": "models",
        "OSU_CACHE_DIR": "~/cache",
        "OSU_LOG_FILE": "osaurus.log",
        "OSU_HUB_CACHE": "off",
        "OSU_CONFIG": "o.toml",
        "OSU_API_KEYS": "./keys",
    }
    environment = planned(home, given).environment
    assert environment == {
        "PATH": "/usr/bin",
        "OSU_MODELS_DIR": str(home / "models"),
        "OSU_CACHE_DIR": str(home / "cache"),
        "OSU_LOG_FILE": str(home / "osaurus.log"),
        "OSU_HUB_CACHE": "off",
        "OSU_CONFIG": str(home / "o.toml"),
        "OSU_API_KEYS": str(home / "keys"),
    }


def test_so_is_where_the_hugging_face_cache_is(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(home)
    given = {"HF_HOME": "face", "HF_HUB_CACHE": "$HOME/hub", "HUGGINGFACE_HUB_CACHE": "/old", "XDG_CACHE_HOME": "~/c"}
    assert planned(home, given).environment == {
        "PATH": "/usr/bin",
        "HF_HOME": str(home / "face"),
        "HF_HUB_CACHE": str(home / "hub"),
        "HUGGINGFACE_HUB_CACHE": "/old",
        "XDG_CACHE_HOME": str(home / "c"),
    }


@pytest.mark.parametrize("name", ["PATH", "HF_HOME", "OSU_MODELS_DIR", "OSU_PRELOAD"])
@pytest.mark.parametrize("text", ["/a\nb", "/a\x1b[2J", "/a\udcff"])
def test_what_cannot_be_written_down_is_refused_by_its_name(home: Path, name: str, text: str) -> None:
    with pytest.raises(BadSetting, match=name):
        planned(home, {name: text})


def test_keys_do_not_go_along(home: Path) -> None:
    with pytest.raises(BadSetting, match="into a file that only you can read") as caught:
        planned(home, {"OSU_API_KEYS": "hush"})
    assert "hush" not in str(caught.value)


@pytest.mark.parametrize("environ", [{"OSU_PORT": "seventy"}, {"OSU_EXPOSE": "1"}])
def test_what_could_not_start_is_refused_at_once(home: Path, environ: dict[str, str]) -> None:
    with pytest.raises(BadSetting):
        planned(home, environ)


def test_it_has_time_for_its_answers(home: Path) -> None:
    assert planned(home, {"OSU_DRAIN": "2m"}).stop_seconds == 120 + BEYOND_DRAIN + STOP_MARGIN


def test_the_file_is_that_of_whom_it_runs_for(home: Path) -> None:
    other = home / "other"
    (other / ".osaurus").mkdir(parents=True)
    (other / ".osaurus" / "config.toml").write_text("drain = '1h'\napi_keys = '~/.osaurus/keys'")
    (other / ".osaurus" / "keys").write_text("secret")
    chosen = job({"OSU_MODELS_DIR": "~/models"}, "other", other)
    assert chosen.stop_seconds == 3600 + BEYOND_DRAIN + STOP_MARGIN
    assert chosen.environment == {"OSU_MODELS_DIR": str(other / "models")}
    assert Path.home() == home


@pytest.mark.parametrize(
    ("environ", "address"),
    [
        ({}, "127.0.0.1:1337"),
        ({"OSU_PORT": "8080"}, "127.0.0.1:8080"),
        ({"OSU_EXPOSE": "1", "OSU_NO_AUTH": "1"}, "0.0.0.0:1337"),
    ],
)
def test_a_socket_is_where_the_port_would_be(home: Path, environ: dict[str, str], address: str) -> None:
    chosen = planned(home, environ, socket=True)
    assert chosen.socket == address
    assert chosen.program[-2:] == ("--listen", SOCKET_ENDPOINT)


def test_a_socket_takes_the_place_of_endpoints(home: Path) -> None:
    with pytest.raises(BadSetting, match="`listen` is set"):
        planned(home, {"OSU_LISTEN": "unix:/run/osaurus"}, socket=True)
