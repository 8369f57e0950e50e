"""Where settings come from: which file is read, what gave each, and what is said of names that nobody knows."""

from pathlib import Path

import pytest

from osaurus.settings import table
from osaurus.sources import BadSetting, Sources, did_you_mean, refuse_open_doors

from .test_settings import load


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


def usual_file(home: Path, text: str) -> Path:
    path = home / ".osaurus" / "config.toml"
    path.parent.mkdir()
    path.write_text(text)
    return path


def test_the_usual_file_is_read_where_there_is_one(home: Path) -> None:
    assert Sources({}, {}).find().file is None
    path = usual_file(home, "port = 8001")
    found = Sources({}, {}).find()
    assert (found.file, found.settings.port) == (path, 8001)


def test_a_file_that_is_named_takes_its_place(home: Path) -> None:
    usual_file(home, "port = 8001\ndrain = '1s'")
    other = home / "other.toml"
    other.write_text("port = 8002")
    for sources in (Sources({"config": str(other)}, {}), Sources({}, {"OSU_CONFIG": str(other)})):
        found = sources.find()
        assert (found.file, found.settings.port, found.settings.drain) == (other, 8002, 30.0)


def test_a_bad_usual_file_is_refused_like_any_other(home: Path) -> None:
    path = usual_file(home, "prot = 1")
    with pytest.raises(BadSetting, match=f"{path} sets prot, which is no setting; did you mean port?"):
        load({}, {})


def test_a_file_is_the_same_wherever_one_goes_afterwards(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (home / "some.toml").write_text("port = 8003")
    monkeypatch.chdir(home)
    found = Sources({"config": "some.toml"}, {}).find()
    assert found.file == home / "some.toml"


def test_each_value_is_told_with_what_gave_it(home: Path) -> None:
    path = usual_file(home, "port = 8001\nmax_concurrent = 3\nread_only = true")
    given = Sources({"port": "8003"}, {"OSU_PORT": "8002", "OSU_MAX_CONCURRENT": "4"}).find().given
    assert {name: (each.source, each.spelling) for name, each in given.items()} == {
        "port": ("option", "--port"),
        "max_concurrent": ("variable", "OSU_MAX_CONCURRENT"),
        "read_only": ("file", f"read_only in {path}"),
    }


def test_what_is_read_again_is_what_the_file_says_by_then(home: Path) -> None:
    sources = Sources({}, {"OSU_MAX_CONCURRENT": "4"})
    path = usual_file(home, "port = 8001")
    assert sources.find().settings.port == 8001
    path.write_text("port = 8002\nmax_concurrent = 1")
    assert (sources.find().settings.port, sources.find().settings.max_concurrent) == (8002, 4)


@pytest.mark.parametrize(
    ("variable", "meant"),
    [("OSU_PROT", "OSU_PORT"), ("OSU_MAX_PER_MINUTE", "OSU_REQUESTS_PER_MINUTE"), ("OSU_APIKEYS", "OSU_API_KEYS")],
)
def test_a_variable_that_nobody_knows_is_told_of_with_the_nearest(variable: str, meant: str) -> None:
    [warning] = Sources({}, {variable: "1"}).unknown_variables()
    assert warning == f"{variable} is no setting and has no effect; did you mean {meant}?"
    load({}, {variable: "1"})


def test_one_unlike_any_is_told_of_as_well() -> None:
    assert Sources({}, {"OSU_QUUX": "1"}).unknown_variables() == ["OSU_QUUX is no setting and has no effect"]


def test_variables_that_mean_something_else_are_not() -> None:
    environ = dict.fromkeys(("OSU_CONFIG", "OSU_HOST", "OSU_API_KEY", "OSU_TEST_MODELS", "PATH", "OSUX"), "1")
    environ |= {setting.variable: "1" for setting in table()}
    assert Sources({}, environ).unknown_variables() == []


def test_nothing_is_near_to_what_is_far_from_all() -> None:
    assert did_you_mean("quux", ["port", "listen"]) == ""


@pytest.mark.parametrize(
    ("options", "environ", "stronger", "weaker"),
    [
        ({"port": "8002"}, {}, "--port", "listen in "),
        ({"expose": "on"}, {"OSU_NO_AUTH": "1"}, "--expose", "listen in "),
        ({"port": "8002"}, {"OSU_LISTEN": "unix:/s"}, "--port", "OSU_LISTEN"),
    ],
)
def test_a_port_of_an_option_that_endpoints_of_another_source_set_aside_is_refused(
    home: Path, options: dict[str, str], environ: dict[str, str], stronger: str, weaker: str
) -> None:
    usual_file(home, "listen = ['unix:/f']")
    sources = Sources(options, environ)
    with pytest.raises(BadSetting, match=f"^{stronger} would have no effect beside {weaker}"):
        sources.find()
    # Commands ask where the server is, not for another.
    assert sources.gather().settings.listen


@pytest.mark.parametrize(
    ("file", "options", "environ"),
    [
        ("port = 8001\nlisten = ['unix:/f']", {}, {}),
        ("listen = ['unix:/f']", {}, {"OSU_PORT": "8002"}),
        ("port = 8001\nlisten = ['unix:/f']", {"listen": "unix:/o"}, {"OSU_PORT": "8002"}),
        ("listen = []", {"port": "8002"}, {}),
        ("port = 8001", {}, {"OSU_LISTEN": "unix:/s"}),
    ],
)
def test_endpoints_of_the_same_source_or_a_stronger_one_set_it_aside(
    home: Path, file: str, options: dict[str, str], environ: dict[str, str]
) -> None:
    usual_file(home, file)
    load(options, environ)


def test_open_doors_are_refused_unless_somebody_said_so() -> None:
    for environ in ({"OSU_API_KEYS": "k"}, {"OSU_NO_AUTH": "1"}):
        refuse_open_doors(load({"expose": "on"}, environ))
    with pytest.raises(BadSetting, match="tcp:1337"):
        load({"expose": "on"}, {})
