"""What is kept of a request: which route it took, how it ended and when."""

import json
from pathlib import Path

import pytest
from attrs import define, field

from osaurus.chat import InternalError, ModelLoadFailed, NoRoomYet
from osaurus.web.exchange import CLIENT_GONE, Exchange
from osaurus.web.guard import Guard

from .test_api import HELLO, PREFIXES, Client


@define
class Keeper:
    """Keeps every exchange it hears of."""

    exchanges: list[Exchange] = field(factory=list)

    def ended(self, exchange: Exchange) -> None:
        self.exchanges.append(exchange)

    @property
    def only(self) -> Exchange:
        [exchange] = self.exchanges
        return exchange


@pytest.fixture
def keeper() -> Keeper:
    return Keeper()


@pytest.fixture
def client(tiny_models: Path, keeper: Keeper) -> Client:
    return Client(tiny_models, observers=(keeper,))


@pytest.mark.parametrize("prefix", PREFIXES)
@pytest.mark.parametrize(
    ("path", "route"),
    [
        ("/models", "/v1/models"),
        ("/models/", "/v1/models"),
        ("/models/tiny", "/v1/models/{name}"),
        ("/models/a/b%2Fc", "/v1/models/{name}"),
        ("/tags?x=y", "/api/tags"),
        ("/health", "/health"),
    ],
)
def test_a_route_has_one_name_whatever_the_path(
    client: Client, keeper: Keeper, prefix: str, path: str, route: str
) -> None:
    client.ask("GET", prefix + path)
    assert keeper.only.route == route


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/nope", 404),
        ("GET", "/%ff", 404),
        ("DELETE", "/v1/models", 405),
        ("OPTIONS", "/v1/models", 204),
    ],
)
def test_where_no_route_was_taken_that_has_one_name_too(
    client: Client, keeper: Keeper, method: str, path: str, status: int
) -> None:
    client.ask(method, path)
    assert (keeper.only.route, keeper.only.status) == ("other", status)


def test_what_is_not_served_yet_is_known_by_its_name(client: Client, keeper: Keeper) -> None:
    client.ask("POST", "/v1/responses", {})
    assert (keeper.only.route, keeper.only.status, keeper.only.error) == ("/responses", 404, "not_found")


def test_its_id_is_that_of_the_answer_and_of_what_is_generated(client: Client, keeper: Keeper) -> None:
    client.begin("POST", "/v1/chat/completions", HELLO)
    client.worker.turn()
    [(row, _)] = client.worker.engine.rows.values()
    assert row.request is not None
    client.worker.settle()
    client.stub.flush()
    assert keeper.only.id == row.request.request_id
    assert client.ask("GET", "/").headers["x-request-id"] == keeper.exchanges[-1].id


def test_it_takes_as_long_as_its_answer(client: Client, keeper: Keeper) -> None:
    client.begin("POST", "/v1/chat/completions", {**HELLO, "stream": True})
    client.worker.turn(2)
    client.stub.flush()
    assert keeper.exchanges == []
    client.clock.advance(3)
    client.worker.settle()
    client.stub.flush()
    assert (keeper.only.status, keeper.only.seconds, keeper.only.gone) == (200, 3.0, False)


def test_whoever_is_not_let_in_is_heard_of_too(tiny_models: Path, keeper: Keeper) -> None:
    client = Client(tiny_models, guard=Guard(api_keys=("key",)), observers=(keeper,))
    client.ask("GET", "/v1/models")
    assert (keeper.only.status, keeper.only.error) == (401, "invalid_api_key")


@pytest.mark.parametrize(
    ("failure", "status", "code"),
    [
        (ModelLoadFailed("no weights"), 503, "model_load_failed"),
        (ValueError("a bug of ours"), 500, "internal_server_error"),
    ],
)
def test_an_error_is_told_by_its_code(
    client: Client, keeper: Keeper, failure: Exception, status: int, code: str
) -> None:
    client.worker.engine.failure = failure
    assert client.chat().status == status
    assert (keeper.only.status, keeper.only.error) == (status, code)


def test_an_error_in_the_middle_of_a_stream_is_told_beside_its_status(client: Client, keeper: Keeper) -> None:
    begun = client.begin("POST", "/v1/chat/completions", {**HELLO, "stream": True})
    client.worker.turn(2)
    client.stub.flush()
    assert begun[0].code == 200
    client.worker.engine.failure = InternalError("broken")
    client.worker.thread.run()
    client.stub.flush()
    account = keeper.only.account
    assert account is not None
    assert (keeper.only.status, account.told()["error"]) == (200, "service_unavailable")


def test_a_client_that_leaves_in_the_middle_is_gone(client: Client, keeper: Keeper) -> None:
    client.begin_stream().leave()
    client.stub.flush()
    assert (keeper.only.status, keeper.only.gone) == (200, True)


def test_a_client_that_leaves_before_anything_was_said_was_answered_with_nothing(
    client: Client, keeper: Keeper
) -> None:
    client.worker.engine.failure = NoRoomYet("full")
    sent = client.stub.request("POST", "http://127.0.0.1:1337/v1/chat/completions", data=json.dumps(HELLO).encode())
    client.stub.flush()
    sent.addErrback(lambda failure: None)
    sent.cancel()
    client.stub.flush()
    assert (keeper.only.status, keeper.only.gone, keeper.only.route) == (CLIENT_GONE, True, "/v1/chat/completions")
