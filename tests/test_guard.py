"""Who is let in: by key, by the host name that was asked for, by the page that asks."""

from pathlib import Path

import pytest

from osaurus.web.guard import Guard

from .test_api import HELLO, PREFIXES, Answer, Client

KEYS = Guard(api_keys=("first", "second"))
PAGE = "https://page.example"


def new_client(models: Path, guard: Guard) -> Client:
    return Client(models, guard=guard)


@pytest.fixture
def locked(tiny_models: Path) -> Client:
    return new_client(tiny_models, KEYS)


# Keys.


@pytest.mark.parametrize("key", ["first", "second"])
def test_each_key_opens(locked: Client, key: str) -> None:
    assert locked.ask("GET", "/v1/models", Authorization=f"Bearer {key}").status == 200
    assert locked.ask("GET", "/v1/models", Authorization=f"bearer  {key} ").status == 200
    for proxys in ("Basic dXNlcjpwYXNz", "Bearer proxys", ""):
        assert locked.ask("GET", "/v1/models", X_Api_Key=key, Authorization=proxys).status == 200


@pytest.mark.parametrize("sent", ["Bearer wrong", "Bearer ", "Bearer firs", "Basic first", "first", "Bearer f\xefrst"])
def test_a_wrong_key_is_refused(locked: Client, sent: str) -> None:
    answer = locked.ask("POST", "/v1/chat/completions", HELLO, Authorization=sent)
    assert (answer.status, answer.json["error"]["type"]) == (401, "authentication_error")
    assert answer.json["error"]["code"] == "invalid_api_key"
    assert answer.headers["www-authenticate"] == "Bearer"
    assert locked.worker.engine.loads == []


@pytest.mark.parametrize("prefix", PREFIXES)
@pytest.mark.parametrize("path", ["/models", "/tags", "/nope", "/version", "/health/x"])
def test_no_key_is_refused_everywhere(locked: Client, prefix: str, path: str) -> None:
    assert locked.ask("GET", prefix + path).status == 401


@pytest.mark.parametrize("path", ["/", "/health", "/v1/health/", "/api"])
def test_the_root_and_health_stay_open(locked: Client, path: str) -> None:
    assert locked.ask("GET", path).status == 200


def test_a_preflight_needs_no_key(locked: Client) -> None:
    assert locked.ask("OPTIONS", "/v1/chat/completions", Origin=PAGE).status == 204


def test_without_keys_any_key_is_accepted(tiny_models: Path) -> None:
    client = new_client(tiny_models, Guard())
    assert client.ask("GET", "/v1/models", Authorization="Bearer whatever").status == 200


# Host names.


def asked_at(client: Client, host: str) -> Answer:
    return client.ask("GET", "/v1/models", Host=host)


@pytest.mark.parametrize(
    "host",
    [
        "localhost",
        "LOCALHOST:1337",
        "127.0.0.1:1337",
        "127.8.8.8",
        "[::1]:1337",
        "192.168.1.20:1337",
        "10.0.0.1",
        "app.localhost",
        "mac.local:1337",
        "host.docker.internal:1337",
        "mymac",
        "localhost.",
        "0.0.0.0:1337",
    ],
)
def test_local_names_are_answered(tiny_models: Path, host: str) -> None:
    assert asked_at(new_client(tiny_models, Guard(own_name="mymac")), host).status == 200


@pytest.mark.parametrize(
    "host",
    [
        "evil.example",
        "evil.example:1337",
        "localhost.evil.example",
        "127.0.0.1.evil.example",
        "8.8.8.8",
        "local",
        "a b",
    ],
)
def test_a_name_that_somebody_else_may_own_is_not_answered(tiny_models: Path, host: str) -> None:
    client = new_client(tiny_models, Guard(own_name="mymac"))
    answer = asked_at(client, host)
    assert (answer.status, answer.json["error"]["code"]) == (403, "forbidden")
    assert asked_at(client, "localhost").status == 200


@pytest.mark.parametrize("hosts", [("evil.example",), ("*",)])
def test_a_name_that_was_set_is_answered(tiny_models: Path, hosts: tuple[str, ...]) -> None:
    assert asked_at(new_client(tiny_models, Guard(hosts=hosts)), "evil.example:80").status == 200


# Origins.


@pytest.mark.parametrize("origins", [("*",), (PAGE,)])
def test_pages_may_use_the_models(tiny_models: Path, origins: tuple[str, ...]) -> None:
    answer = new_client(tiny_models, Guard(origins=origins)).ask("POST", "/v1/chat/completions", HELLO, Origin=PAGE)
    assert answer.status == 200
    assert answer.headers["access-control-allow-origin"] in ("*", PAGE)


def test_where_origins_are_named_others_are_told_nothing(tiny_models: Path) -> None:
    client = new_client(tiny_models, Guard(origins=(PAGE,)))
    for method in ("GET", "OPTIONS"):
        answer = client.ask(method, "/v1/models", Origin="https://other.example")
        assert "access-control-allow-origin" not in answer.headers
        assert answer.headers["vary"] == "Origin"


@pytest.mark.parametrize(
    "origin", [PAGE, "null", "http://[", "http://localhost:3000", "file://", "http://127.0.0.1:1338"]
)
@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("DELETE", "/api/delete"),
        ("POST", "/copy"),
        ("POST", "/v1/api/pull/"),
        ("POST", "//copy"),
        ("POST", "/%2Fcopy"),
        ("POST", "/v1//copy"),
        ("DELETE", "/api///delete/"),
    ],
)
def test_what_changes_the_disk_is_not_for_foreign_pages(tiny_models: Path, origin: str, method: str, path: str) -> None:
    answer = new_client(tiny_models, Guard()).ask(method, path, {"model": "none", "source": "none"}, Origin=origin)
    assert (answer.status, answer.json["error"]["type"]) == (403, "permission_error")


@pytest.mark.parametrize(
    ("guard", "headers"),
    [
        (Guard(), {}),
        (Guard(), {"Origin": "http://127.0.0.1:1337"}),
        (Guard(origins=(PAGE,)), {"Origin": PAGE}),
    ],
)
def test_what_changes_the_disk_is_for_programs_own_pages_and_those_that_were_named(
    tiny_models: Path, guard: Guard, headers: dict[str, str]
) -> None:
    answer = new_client(tiny_models, guard).ask("DELETE", "/api/delete", {"model": "none"}, **headers)
    assert answer.json["error"]["code"] == "model_not_found"


# Whose prompts are whose.


def test_what_is_read_for_one_key_is_no_other_keys(locked: Client) -> None:
    owners = []
    for headers in (
        {"Authorization": "Bearer first"},
        {"Authorization": "Bearer second"},
        {"Authorization": "Bearer proxys", "X_Api_Key": "first"},
    ):
        locked.begin("POST", "/v1/chat/completions", HELLO, **headers)
        locked.worker.turn()
        [(row, _)] = locked.worker.engine.rows.values()
        owners.append(row.owner)
        locked.worker.settle()
    assert owners[0] == owners[2] != owners[1]
    assert "first" not in owners[0]


def test_without_keys_everybody_shares(tiny_models: Path) -> None:
    client = new_client(tiny_models, Guard())
    client.begin("POST", "/v1/chat/completions", HELLO, Authorization="Bearer anything")
    client.worker.turn()
    assert [row.owner for row, _ in client.worker.engine.rows.values()] == [""]


# What may be switched off, and odd requests.


@pytest.mark.parametrize(("method", "path"), [("DELETE", "/api/delete"), ("POST", "/copy"), ("POST", "//pull")])
def test_a_server_to_be_read_only_changes_nothing(tiny_models: Path, method: str, path: str) -> None:
    client = new_client(tiny_models, Guard(read_only=True))
    answer = client.ask(method, path, {"model": "none", "source": "none"})
    assert (answer.status, answer.json["error"]["code"]) == (403, "forbidden")
    assert "read_only" in answer.json["error"]["message"]
    assert client.chat().status == 200


@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_a_server_to_be_read_only_tells_its_numbers(tiny_models: Path, method: str) -> None:
    assert new_client(tiny_models, Guard(read_only=True)).ask(method, "/metrics").status == 200


def test_a_page_that_was_named_may_delete(tiny_models: Path) -> None:
    answer = new_client(tiny_models, Guard(origins=(PAGE,))).ask("OPTIONS", "/api/delete", Origin=PAGE)
    assert "DELETE" in answer.headers["access-control-allow-methods"]


def test_an_error_depends_on_origin_and_agent(tiny_models: Path) -> None:
    client = new_client(tiny_models, Guard(origins=(PAGE,)))
    [response] = client.begin("GET", "/nope", Origin=PAGE)
    assert response.headers.getRawHeaders("Vary") == ["Origin", "User-Agent"]


# Other rules while the server runs.


def test_other_rules_hold_from_the_next_request_on(tiny_models: Path) -> None:
    client = new_client(tiny_models, Guard())
    assert client.ask("GET", "/v1/models").status == 200
    client.guard.apply(api_keys=("new",), hosts=(), origins=("*",), read_only=True)
    assert client.ask("GET", "/v1/models").status == 401
    assert client.ask("GET", "/v1/models", Authorization="Bearer new").status == 200
    assert client.ask("POST", "/api/pull", {"model": "tiny"}, Authorization="Bearer new").status == 403


def test_an_answer_goes_on_though_its_key_is_taken_away(tiny_models: Path) -> None:
    client = new_client(tiny_models, Guard(api_keys=("old",)))
    responses = client.begin("POST", "/v1/chat/completions", {**HELLO, "stream": True}, Authorization="Bearer old")
    client.worker.turn(2)
    client.stub.flush()
    client.guard.apply(api_keys=("new",), hosts=(), origins=("*",), read_only=False)
    [response] = responses
    content: list[bytes] = []
    response.content().addCallback(content.append)
    client.worker.settle()
    client.stub.flush()
    assert content[0].endswith(b"data: [DONE]\n\n")
    assert b'"error"' not in content[0]
    assert client.ask("GET", "/v1/models", Authorization="Bearer old").status == 401
