"""Settings: four spellings of rising precedence, and what is said about those that cannot be."""

import math
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from osaurus import settings
from osaurus.settings import Settings
from osaurus.sources import BadSetting, Sources

# Each setting: a text that it can have, what that means, and a text that it cannot have.
EVERY = [
    ("port", "8080", 8080, "http"),
    ("listen", "unix:/tmp/osaurus.sock", ("unix:/tmp/osaurus.sock",), " "),
    ("models_dir", "/srv/models", Path("/srv/models"), ""),
    ("hub_cache", "/srv/hub", Path("/srv/hub"), "~no-such-user/hub"),
    ("cache_dir", "/srv/cache", Path("/srv/cache"), ""),
    ("max_body", "2MiB", 2097152, "much"),
    ("prefix_cache", "3GB", 3000000000, "-1"),
    ("prefix_disk", "0", 0, "all"),
    ("memory_limit", "8GiB", 8 * 2**30, "all"),
    ("keep_alive", "1h30m", 5400.0, "soon"),
    ("preload", "tiny, other", ("tiny", "other"), ","),
    ("speculation", "off", False, "perhaps"),
    ("cpu_threads", "2", 2, "1025"),
    ("log_file", "/var/log/osaurus.log", Path("/var/log/osaurus.log"), "logs/"),
    ("log_file_size", "1MiB", 2**20, "large"),
    ("log_files_kept", "3", 3, "0"),
    ("log_format", "JSON", "json", "xml"),
    ("log_level", "warn", "warn", "loud"),
    ("log_content", "on", True, "maybe"),
    ("drain", "1m", 60.0, "-1"),
    ("exit_when_idle", "30m", 1800.0, "0"),
    ("max_connections", "64", 64, "0"),
    ("max_concurrent", "0", 0, "-1"),
    ("requests_per_minute", "1000", 1000, "many"),
    ("api_keys", "one, two", ("one", "two"), ","),
    ("no_auth", "on", True, "maybe"),
    ("expose", "off", False, "maybe"),
    ("read_only", "on", True, "maybe"),
    ("hosts", "Mac.example.org", ("mac.example.org",), ","),
    ("origins", "https://a.example, https://b.example", ("https://a.example", "https://b.example"), ","),
]

HUB_VARIABLES = ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_HOME", "XDG_CACHE_HOME")


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home without anything in it."""
    folder = tmp_path / "home"
    folder.mkdir()
    monkeypatch.setenv("HOME", str(folder))
    for variable in HUB_VARIABLES:
        monkeypatch.delenv(variable, raising=False)
    return folder


def load(options: Mapping[str, str | list[str]], environ: Mapping[str, str]) -> Settings:
    """Return what a server would begin with."""
    return Sources(options, environ).find().settings


def toml(folder: Path, text: str) -> str:
    """Write a configuration file; return its path."""
    path = folder / "osaurus.toml"
    path.write_text(text, "utf-8")
    return str(path)


def test_endpoints_given_one_by_one_may_hold_spaces() -> None:
    assert load({"listen": ["unix:/tmp/a b/s.sock", "unix:1"]}, {}).listen == ("unix:/tmp/a b/s.sock", "unix:1")


def test_models_to_load_can_be_a_list_in_the_file(tmp_path: Path) -> None:
    assert load({"config": toml(tmp_path, 'preload = ["tiny", "other"]')}, {}).preload == ("tiny", "other")


@pytest.mark.parametrize(("text", "seconds"), [("0", 0), ("300", 300), ("1.5h", 5400), ("-1", math.inf)])
def test_a_duration_is_seconds_or_has_units(text: str, seconds: float) -> None:
    assert load({"keep_alive": text}, {}).keep_alive == seconds


def test_nothing_need_be_set(home: Path) -> None:
    assert load({}, {}) == Settings(
        port=1337,
        listen=(),
        models_dir=home / "MLXModels",
        cache_dir=home / ".osaurus" / "cache",
        max_body=33554432,
    )


def test_the_table_above_has_every_setting() -> None:
    assert [setting.name for setting in settings.table()] == [name for name, *_ in EVERY]


@pytest.mark.parametrize(("name", "text", "value", "_"), EVERY)
def test_a_value_is_written_as_it_can_be_read(name: str, text: str, value: Any, _: str) -> None:
    [kind] = [setting.kind for setting in settings.table() if setting.name == name]
    assert kind.read(kind.write(value)) == value


def test_what_people_are_shown_of_a_value() -> None:
    shown = {setting.name: setting.shown for setting in settings.table()}
    assert shown["max_body"](33554432) == "32MiB"
    assert shown["max_body"](1234567) == "1234567"
    assert shown["prefix_disk"](0) == "0"
    assert shown["keep_alive"](5400.0) == "1h30m"
    assert shown["keep_alive"](math.inf) == "-1"
    assert shown["memory_limit"](None) == "not set"
    assert shown["hosts"](()) == "none"
    assert shown["read_only"](False) == "off"
    assert "secret" not in shown["api_keys"](("secret", "other"))


@pytest.mark.parametrize(("name", "text", "value", "_"), EVERY)
def test_each_setting_has_each_spelling(name: str, text: str, value: Any, _: str, tmp_path: Path) -> None:
    config = toml(tmp_path, f'{name} = "{text}"')
    assert getattr(load({"config": config}, {}), name) == value
    assert getattr(load({}, {f"OSU_{name.upper()}": text}), name) == value
    assert getattr(load({name: text}, {}), name) == value


def test_the_command_line_precedes_the_environment_which_precedes_the_file(tmp_path: Path) -> None:
    config = toml(tmp_path, "port = 1001\nmax_body = 1001\ncache_dir = '/file'")
    environ = {"OSU_PORT": "1002", "OSU_MAX_BODY": "1002"}
    found = load({"config": config, "port": "1003"}, environ)
    assert (found.port, found.max_body, found.cache_dir) == (1003, 1002, Path("/file"))


def test_an_empty_variable_is_no_setting(tmp_path: Path) -> None:
    config = toml(tmp_path, "port = 1001")
    assert load({"config": config}, {"OSU_PORT": "", "OSU_MODELS_DIR": ""}).port == 1001


def test_the_environment_can_name_the_file_and_the_command_line_another(tmp_path: Path) -> None:
    environ = {"OSU_CONFIG": toml(tmp_path, "port = 1001")}
    assert load({}, environ).port == 1001
    other = tmp_path / "other"
    other.mkdir()
    assert load({"config": toml(other, "port = 1002")}, environ).port == 1002


def test_a_file_is_found_below_the_home_folder(home: Path) -> None:
    toml(home, "port = 1001")
    assert load({"config": "~/osaurus.toml"}, {}).port == 1001


@pytest.mark.parametrize(
    ("key", "meant"), [("max_boddy", "max_body"), ("model_dir", "models_dir"), ("ports", "port"), ("listen_", "listen")]
)
def test_an_unknown_key_is_answered_with_the_nearest(key: str, meant: str, tmp_path: Path) -> None:
    config = toml(tmp_path, f"{key} = 1")
    with pytest.raises(BadSetting) as caught:
        load({"config": config}, {})
    message = str(caught.value)
    assert config in message
    assert f"{key}," in message
    assert f"did you mean {meant}?" in message


def test_an_unknown_key_unlike_any_is_answered_with_all(tmp_path: Path) -> None:
    with pytest.raises(BadSetting, match="quux") as caught:
        load({"config": toml(tmp_path, "quux = 1")}, {})
    assert all(name in str(caught.value) for name, *_ in EVERY)


def test_the_names_that_scripts_rely_on_stay(home: Path) -> None:
    """Nobody who has set one is to find it without effect after an update."""
    found = {setting.variable: setting.shown(getattr(load({}, {}), setting.name)) for setting in settings.table()}
    expected = {
        "OSU_PORT": "1337",
        "OSU_LISTEN": "none",
        "OSU_EXPOSE": "off",
        "OSU_MODELS_DIR": str(home / "MLXModels"),
        "OSU_MAX_CONCURRENT": "10",
        "OSU_REQUESTS_PER_MINUTE": "100",
        "OSU_KEEP_ALIVE": "5m",
        "OSU_MEMORY_LIMIT": "not set",
        "OSU_SPECULATION": "on",
        "OSU_MAX_BODY": "32MiB",
        "OSU_CACHE_DIR": str(home / ".osaurus" / "cache"),
        "OSU_API_KEYS": "none",
        "OSU_PRELOAD": "none",
    }
    assert found.items() >= expected.items()


@pytest.mark.parametrize(("name", "_", "__", "bad"), EVERY)
def test_a_bad_value_is_named_with_the_spelling_that_was_used(
    name: str, _: str, __: Any, bad: str, tmp_path: Path
) -> None:
    config = toml(tmp_path, f'{name} = "{bad}"')
    spellings: list[tuple[dict[str, str], dict[str, str], str]] = [
        ({"config": config}, {}, f"{name} in {config}"),
        ({name: bad}, {}, f"--{name.replace('_', '-')}"),
    ]
    if bad:
        spellings.append(({}, {f"OSU_{name.upper()}": bad}, f"OSU_{name.upper()}"))
    for command_line, environ, spelling in spellings:
        with pytest.raises(BadSetting) as caught:
            load(command_line, environ)
        assert str(caught.value).startswith(f"{spelling} must be ")
        said = "what was given" if name in settings.SECRETS else repr(bad)
        assert str(caught.value).endswith(f", not {said}")


@pytest.mark.parametrize("text", ["", "0", "65536", "-1", "1337.0", "true", "0x50", "9" * 30])
def test_a_port_is_a_port_number(text: str) -> None:
    with pytest.raises(BadSetting, match="--port"):
        load({"port": text}, {})


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("1", 1),
        ("7B", 7),
        ("1KiB", 1024),
        ("3 MiB", 3145728),
        ("2GiB", 2147483648),
        ("1kB", 1000),
        ("5 mb", 5000000),
        ("1GB", 1000000000),
    ],
)
def test_bytes_are_counted_in_units_of_1000_and_of_1024(text: str, count: int) -> None:
    assert load({"max_body": text}, {}).max_body == count


@pytest.mark.parametrize("text", ["", "0", "0MiB", "1.5MiB", "-1", "MiB", "12 parsecs", "1 MiB each", "0x10"])
def test_what_is_no_number_of_bytes_is_refused(text: str) -> None:
    with pytest.raises(BadSetting, match="--max-body"):
        load({"max_body": text}, {})


def test_a_file_may_hold_numbers_and_lists(tmp_path: Path) -> None:
    config = toml(tmp_path, 'port = 8080\nmax_body = 65536\nlisten = ["unix:1", "unix:/tmp/s"]')
    found = load({"config": config}, {})
    assert (found.port, found.max_body, found.listen) == (8080, 65536, ("unix:1", "unix:/tmp/s"))


@pytest.mark.parametrize("value", ["true", "1337.0", "{ number = 1337 }", "1979-05-27"])
def test_a_file_cannot_hold_a_port_of_another_type(value: str, tmp_path: Path) -> None:
    with pytest.raises(BadSetting, match=r"port in .* must be a port number"):
        load({"config": toml(tmp_path, f"port = {value}")}, {})


TEXTS = [setting.name for setting in settings.table() if setting.kind.free]


@pytest.mark.parametrize("name", TEXTS)
@pytest.mark.parametrize("value", ["true", "false", "1", "0", "1.5", "1979-05-27", "{ a = 1 }", "[1]", "[[]]", "[{}]"])
def test_where_text_is_meant_a_file_cannot_hold_anything_else(name: str, value: str, tmp_path: Path) -> None:
    if (name, value) == ("hub_cache", "false"):
        return
    config = toml(tmp_path, f"{name} = {value}")
    with pytest.raises(BadSetting) as caught:
        load({"config": config}, {})
    assert str(caught.value).startswith(f"{name} in {config} must be ")
    assert "in quotes, not " in str(caught.value)


@pytest.mark.parametrize("name", [name for name, *_ in EVERY])
@pytest.mark.parametrize("value", ["{ a = 1 }", "1979-05-27", "[1]"])
def test_no_setting_is_a_table_or_a_date_or_a_list_of_numbers(name: str, value: str, tmp_path: Path) -> None:
    with pytest.raises(BadSetting, match=f"{name} in .* must be "):
        load({"config": toml(tmp_path, f"{name} = {value}")}, {})


@pytest.mark.parametrize("name", ["models_dir", "hub_cache", "cache_dir", "log_file", "port", "log_level", "expose"])
def test_a_list_is_for_those_that_may_be_several(name: str, tmp_path: Path) -> None:
    for value in ("['a']", "[]"):
        with pytest.raises(BadSetting, match=f"{name} in .* must be "):
            load({"config": toml(tmp_path, f"{name} = {value}")}, {})


@pytest.mark.parametrize("name", settings.LISTS)
def test_an_empty_list_is_none(name: str, tmp_path: Path) -> None:
    assert getattr(load({"config": toml(tmp_path, f"{name} = []")}, {}), name) == ()


def test_true_and_false_are_for_what_is_on_or_off(tmp_path: Path) -> None:
    config = toml(tmp_path, "hub_cache = false\nread_only = true\nspeculation = false")
    found = load({"config": config}, {})
    assert (found.hub_cache, found.read_only, found.speculation) == (None, True, False)


@pytest.mark.parametrize("content", [b"port = ", b"port = 1\nport = 2", b"# \xff", None])
def test_a_file_that_cannot_be_read_is_named(content: bytes | None, tmp_path: Path) -> None:
    path = tmp_path / "settings.toml"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(BadSetting) as caught:
        load({"config": str(path)}, {})
    assert str(path) in str(caught.value)


def test_the_port_is_on_this_machine_only() -> None:
    assert load({"port": "8080"}, {}).endpoints == ("tcp:8080:interface=127.0.0.1",)


@pytest.mark.parametrize(
    "endpoint",
    [
        "tcp:1337",
        "tcp:1337:interface=0.0.0.0",
        "tcp6:1337",
        "ssl:443:interface=192.168.1.2",
        "ssl:443:privateKey=server.pem",
        "tls:/etc/certificates:443",
        "systemd:domain=INET:index=0",
        "tcp:1337:interface=127.0.0.1:interface=0.0.0.0",
        "tcp:1337:interface=127.0.0.1:\\interface=0.0.0.0",
        "tcp:1337:interface=localhost.lan",
        "tcp:1337:interface=127.0.0.1.example.org",
        "tcp6:1337:interface=\\:\\:1\\:2",
        "tcp6:1337:interface=::1",
        "ssl:443:privateKey=a\\:interface=127.0.0.1",
    ],
)
def test_an_endpoint_that_others_can_reach_needs_keys(endpoint: str) -> None:
    with pytest.raises(BadSetting, match=r"OSU_API_KEYS.*--no-auth"):
        load({"listen": endpoint}, {})
    assert load({"listen": endpoint}, {"OSU_API_KEYS": "secret"}).exposed == (endpoint,)
    assert load({"listen": endpoint, "no_auth": "1"}, {}).exposed == (endpoint,)


@pytest.mark.parametrize(
    "endpoint",
    [
        "unix:/run/osaurus",
        "unix:/run/osaurus:mode=660",
        "tcp:1337:interface=127.0.0.1",
        "tcp6:1337:interface=\\:\\:1",
        "tcp:1:interface=localhost",
        "tcp:1:interface=127.8.0.1:backlog=5",
        "ssl:443:privateKey=server.pem:interface=127.0.0.1",
    ],
)
def test_an_endpoint_that_only_this_machine_can_reach_needs_none(endpoint: str) -> None:
    assert load({"listen": endpoint}, {}).exposed == ()


def test_to_expose_is_to_listen_everywhere() -> None:
    with pytest.raises(BadSetting):
        load({"expose": "1"}, {})
    assert load({"expose": "1", "port": "80"}, {"OSU_API_KEYS": "secret"}).endpoints == ("tcp:80",)


def test_keys_may_be_in_a_file(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    path.write_text("one\ntwo\n")
    assert load({}, {"OSU_API_KEYS": str(path)}).api_keys == ("one", "two")
    with pytest.raises(BadSetting, match="cannot be read"):
        load({}, {"OSU_API_KEYS": f"{path}.gone"})


def test_a_file_of_keys_has_one_on_each_line_and_comments(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    path.write_bytes(b"# the key of the laptop\r\nsk-abc#1\r\n\n  # and, of the phone\n  sk-def  ")
    assert load({}, {"OSU_API_KEYS": str(path)}).api_keys == ("sk-abc#1", "sk-def")


@pytest.mark.parametrize("line", ["hush laptop", "hush\tlaptop", "hush,quiet", "hush # of the laptop", "hush\x85quiet"])
def test_a_line_of_a_file_of_keys_is_one_key_or_none(tmp_path: Path, line: str) -> None:
    path = tmp_path / "keys"
    path.write_text(f"# keys\n{line}\n", "utf-8")
    with pytest.raises(BadSetting, match=r"^OSU_API_KEYS must be a file with one key on each line.*line 2") as caught:
        load({}, {"OSU_API_KEYS": str(path)})
    assert "hush" not in str(caught.value)


def test_a_file_of_comments_has_no_keys(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    path.write_text("# none yet\n")
    with pytest.raises(BadSetting, match="must be one or more keys"):
        load({"expose": "1"}, {"OSU_API_KEYS": str(path)})


def test_keys_are_never_shown() -> None:
    assert "secret" not in repr(load({}, {"OSU_API_KEYS": "secret"}))
    with pytest.raises(BadSetting) as caught:
        load({}, {"OSU_API_KEYS": ",,,"})
    assert ",,," not in str(caught.value)


def test_endpoints_replace_the_port() -> None:
    found = load({"listen": "unix:/run/other  unix:/run/osaurus", "port": "8080"}, {})
    assert found.endpoints == ("unix:/run/other", "unix:/run/osaurus")


@pytest.mark.parametrize(
    ("present", "chosen"),
    [
        ([], "MLXModels"),
        (["MLXModels"], "MLXModels"),
        (["Documents/MLXModels"], "Documents/MLXModels"),
        (["MLXModels", "Documents/MLXModels"], "MLXModels"),
    ],
)
def test_models_are_where_a_models_folder_is(present: list[str], chosen: str, home: Path) -> None:
    for folder in present:
        (home / folder).mkdir(parents=True)
    assert load({}, {}).models_dir == home / chosen


def test_a_file_named_like_the_models_folder_is_none(home: Path) -> None:
    (home / "MLXModels").write_text("not a folder")
    (home / "Documents" / "MLXModels").mkdir(parents=True)
    assert load({}, {}).models_dir == home / "Documents" / "MLXModels"


@pytest.mark.parametrize(
    "environ",
    [
        {},
        {"HF_HUB_CACHE": "~/hub"},
        {"HUGGINGFACE_HUB_CACHE": "/old"},
        {"HF_HOME": "$HOME/face"},
        {"XDG_CACHE_HOME": "/xdg"},
        {"HF_HUB_CACHE": "/a", "HUGGINGFACE_HUB_CACHE": "/b", "HF_HOME": "/c", "XDG_CACHE_HOME": "/d"},
        {"HUGGINGFACE_HUB_CACHE": "/b", "HF_HOME": "/c"},
    ],
)
def test_the_hugging_face_cache_is_where_its_own_library_has_it(
    environ: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    told = subprocess.check_output(
        [sys.executable, "-c", "from huggingface_hub import constants; print(constants.HF_HUB_CACHE)"], text=True
    )
    assert load({}, {}).hub_cache == Path(told.strip())


@pytest.mark.parametrize(("text", "seconds"), [("0", 0), ("90", 90), ("10m", 600)])
def test_the_time_for_the_end_has_an_end(text: str, seconds: float) -> None:
    assert load({"drain": text}, {}).longest_end == seconds + settings.BEYOND_DRAIN


def test_idle_for_ever_is_said_by_a_negative_duration() -> None:
    assert load({"exit_when_idle": "-1"}, {}).exit_when_idle == math.inf


@pytest.mark.parametrize("text", ["off", "OFF", "0"])
def test_the_hugging_face_cache_can_be_left_alone(text: str) -> None:
    assert load({"hub_cache": text}, {}).hub_cache is None


def test_folders_are_absolute_whatever_was_said(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    found = load({"models_dir": "~/models", "cache_dir": "cache"}, {})
    assert (found.models_dir, found.cache_dir) == (home / "models", tmp_path / "cache")


def test_what_is_relative_is_so_to_where_it_is_said(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, start, later = tmp_path / "etc", tmp_path / "start", tmp_path / "later"
    for each in (folder, start, later):
        each.mkdir()
        (each / "keys").write_text(each.name)
    toml(folder, "models_dir = 'models'\nlog_file = '../osaurus.log'\nhub_cache = '~/hub'\napi_keys = './keys'")
    monkeypatch.chdir(start)
    sources = Sources({"config": "../etc/osaurus.toml", "cache_dir": "cache"}, {"OSU_HUB_CACHE": "hub"})
    # As twistd does (`--rundir`) before the settings are read again.
    monkeypatch.chdir(later)
    found = sources.find().settings
    assert (found.models_dir.resolve(), found.log_file and found.log_file.resolve(), found.api_keys) == (
        folder / "models",
        tmp_path / "osaurus.log",
        ("etc",),
    )
    assert (found.cache_dir, found.hub_cache) == (start / "cache", start / "hub")
    assert Sources({"api_keys": "./keys"}, {}, start).find().settings.api_keys == ("start",)
    assert load({"config": str(folder / "osaurus.toml")}, {}).hub_cache == home / "hub"


@pytest.mark.parametrize("name", ["models_dir", "cache_dir", "config"])
def test_the_home_of_nobody_is_a_bad_setting(name: str) -> None:
    with pytest.raises(BadSetting, match="no-such-user"):
        load({name: "~no-such-user/models"}, {})


def test_lists_in_a_file_are_read_like_any_other(tmp_path: Path) -> None:
    config = toml(tmp_path, 'hosts = ["MyBox", "other"]\norigins = ["https://Chat.Example"]\napi_keys = ["one", "two"]')
    found = load({"config": config}, {})
    assert (found.hosts, found.origins, found.api_keys) == (
        ("mybox", "other"),
        ("https://chat.example",),
        ("one", "two"),
    )
    with pytest.raises(BadSetting):
        load({"config": toml(tmp_path, 'api_keys = [""]')}, {})


def test_hosts_are_as_requests_name_them() -> None:
    text = "Chat.Example.ORG, 192.0.2.7, 2001:DB8::0:1, [2001:db8::2], my_box *"
    expected = ("chat.example.org", "192.0.2.7", "[2001:db8::1]", "[2001:db8::2]", "my_box", "*")
    assert load({"hosts": text}, {}).hosts == expected


@pytest.mark.parametrize(
    "text",
    [
        "https://chat.example.org",
        "https://chat.example.org:8443",
        "chat.example.org:8443",
        "[2001:db8::1]:80",
        "chat.example.org/",
        "chat.example.org.",
        "*.example.org",
        "müller.example",
        "chat.example.org, a/b",
    ],
)
def test_what_no_request_can_name_is_no_host(text: str) -> None:
    with pytest.raises(BadSetting, match=r"^--hosts must be one or more names.* such as chat\.example\.org"):
        load({"hosts": text}, {})


def test_origins_are_as_browsers_send_them() -> None:
    origins = (
        *("https://chat.example.org", "http://localhost:3000", "https://a.example:80", "http://[::1]:8080"),
        *("chrome-extension://abcdefgh", "app://obsidian.md", "tauri://localhost", "file://", "null", "*"),
    )
    assert load({"origins": ",".join(origins)}, {}).origins == origins


@pytest.mark.parametrize(
    "text",
    [
        "chat.example.org",
        "localhost:3000",
        "https://chat.example.org/",
        "https://chat.example.org/ui",
        "https://me@chat.example.org",
        "https://*.example.org",
        "https://chat.example.org:443",
        "http://chat.example.org:80",
        "https://müller.example",
        "https://",
        "https://a.example, b.example",
    ],
)
def test_what_no_browser_sends_is_no_origin(text: str) -> None:
    with pytest.raises(BadSetting, match=r"^--origins must be one or more origins such as https://chat\.example\.org"):
        load({"origins": text}, {})


def test_a_key_is_of_characters_that_a_header_can_have() -> None:
    with pytest.raises(BadSetting, match="ASCII"):
        load({}, {"OSU_API_KEYS": "schlüssel"})
