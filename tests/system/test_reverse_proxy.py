"""docs/reverse-proxy.md: nginx and Caddy in front of the server, with the configurations that stand there.

Behind them is the real resource tree on real sockets, with an engine that says the next thing when the test lets it: so
what has arrived while the rest is held is a matter of order and not of time. One test runs the whole server.
"""

import json
import math
import re
import ssl
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from io import BytesIO
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import httpx
import pytest
import pytest_twisted
import trustme
from attrs import define, field, frozen
from twisted.internet import reactor as twisted_reactor
from twisted.internet.defer import Deferred, maybeDeferred
from twisted.internet.endpoints import TCP4ClientEndpoint, wrapClientTLS
from twisted.internet.interfaces import IStreamClientEndpoint
from twisted.internet.protocol import Protocol, connectionDone
from twisted.internet.ssl import Certificate, optionsForClientTLS
from twisted.internet.task import deferLater
from twisted.python.failure import Failure
from twisted.web.client import Agent, FileBodyProducer, ResponseNeverReceived
from twisted.web.http_headers import Headers
from twisted.web.iweb import IAgentEndpointFactory
from zope.interface import implementer

from osaurus.serving.idleness import Idleness
from osaurus.web.connections import Connections
from osaurus.web.guard import Guard

from ..doubles import MemoryWorker, ScriptedEngine
from ..programs import program
from ..server import environment, free_port, wait_for_port
from ..test_api import HELLO, Client
from ..test_endpoints import listening

pytestmark = pytest.mark.system

reactor: Any = twisted_reactor

PAGE = Path(__file__).parent.parent.parent / "docs" / "reverse-proxy.md"
NAME = "chat.example.org"
KEY = "a-key"
SECONDS = 60.0
MOST_BODY = 32 * 2**20


@define
class HeldEngine(ScriptedEngine):
    """Says the next thing of every row as often as it is let, and waits to be let again."""

    let: int = 0

    @property
    def busy(self) -> bool:
        """Whether there is something that may be said."""
        return self.let > 0 and bool(self.rows)

    def step(self) -> Any:
        """Say the next thing."""
        self.let -= 1
        return super().step()


@frozen
class Upstream:
    """The resource tree on a port and on a Unix socket."""

    client: Client
    engine: HeldEngine
    port: int
    socket: Path

    async def until(self, condition: Callable[[], object]) -> None:
        """Let the engine's thread and the reactor go round until something is so."""
        deadline = reactor.seconds() + SECONDS
        while not condition():
            assert reactor.seconds() < deadline, "it does not come"
            self.client.worker.turn()
            await deferLater(reactor, 0.01)


@define(eq=False)
class Arriving(Protocol):
    """The body of an answer, as far as it has come."""

    received: bytes = b""
    ended: bool = False

    def dataReceived(self, data: bytes) -> None:
        self.received += data

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self.ended = True


@implementer(IStreamClientEndpoint)
@frozen
class Noting:
    """Connects as another endpoint does, and notes what came of it."""

    endpoint: Any
    made: list[Any]

    def connect(self, protocolFactory: Any) -> Deferred[Any]:  # noqa: N803 - Twisted's interface has it so
        def note(protocol: Any) -> Any:
            self.made.append(protocol)
            return protocol

        connected: Deferred[Any] = self.endpoint.connect(protocolFactory)
        return connected.addCallback(note)


@implementer(IAgentEndpointFactory)
@frozen
class Through:
    """Has an agent connect to the proxy, whose certificate it checks, whatever port the URL has."""

    port: int
    authority: bytes
    made: list[Any]

    def endpointForURI(self, uri: object) -> Noting:
        options = optionsForClientTLS(NAME, trustRoot=Certificate.loadPEM(self.authority))
        return Noting(wrapClientTLS(options, TCP4ClientEndpoint(reactor, "127.0.0.1", self.port)), self.made)


@define
class Proxy:
    """A proxy that runs. `below` is the path that it takes off, `made` are the connections with it."""

    port: int
    authority: bytes
    below: str = ""
    made: list[Any] = field(factory=list)

    def request(self, method: str, path: str, body: bytes | None = None, **headers: str) -> Deferred[Any]:
        """Fires with a response whose body is still to come."""
        given = {"Authorization": f"Bearer {KEY}", **{name.replace("_", "-"): value for name, value in headers.items()}}
        sent: Deferred[Any] = Agent.usingEndpointFactory(
            reactor, Through(self.port, self.authority, self.made)
        ).request(
            method.encode(),
            f"https://{NAME}{self.below}{path}".encode(),
            Headers({name: [value] for name, value in given.items() if value}),
            None if body is None else FileBodyProducer(BytesIO(body)),
        )
        return sent


def blocks(language: str) -> list[str]:
    """What stands on the page in one language, in its order: all of it, below a path, over a Unix socket."""
    return re.findall(rf"^```{language}\n(.*?)^```$", PAGE.read_text("utf-8"), re.MULTILINE | re.DOTALL)


def replaced(text: str, *pairs: tuple[str, str]) -> str:
    """Put what is of this machine in the place of what is of the page's."""
    for old, new in pairs:
        assert old in text, old
        text = text.replace(old, new)
    return text


def nginx_configuration(way: str, port: int, upstream: int, path: Path, folder: Path) -> str:
    site, below, unix = blocks("nginx")
    if way == "below a path":
        [whole] = re.findall(r"^    location / \{\n.*?^    \}\n", site, re.MULTILINE | re.DOTALL)
        site = site.replace(whole, below)
    if way == "over a Unix socket":
        site = replaced(site, ("    server 127.0.0.1:1337;\n", unix), ("/run/osaurus/socket", str(path)))
    else:
        site = replaced(site, ("127.0.0.1:1337", f"127.0.0.1:{upstream}"))
    site = replaced(
        site, ("listen 443 ssl", f"listen 127.0.0.1:{port} ssl"), (f"/etc/ssl/{NAME}", str(folder / "certificates"))
    )
    places = "".join(
        f"    {kind}_temp_path {folder / kind};\n" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    head = f"daemon off;\npid {folder / 'nginx.pid'};\nevents {{}}\nhttp {{\n    access_log off;\n{places}"
    return f"{head}{site}}}\n"


def caddy_configuration(way: str, port: int, upstream: int, path: Path, folder: Path) -> str:
    site, below, unix = blocks("caddyfile")
    [whole] = re.findall(r"^\treverse_proxy .*?^\t\}\n", site, re.MULTILINE | re.DOTALL)
    if way == "below a path":
        site = site.replace(whole, below.replace("\t\treverse_proxy 127.0.0.1:1337\n", whole))
    if way == "over a Unix socket":
        one_line, there = unix.strip(), "reverse_proxy 127.0.0.1:1337"
        site = replaced(site, (there, one_line), ("/run/osaurus/socket", str(path)))
    else:
        site = replaced(site, ("127.0.0.1:1337", f"127.0.0.1:{upstream}"))
    certificates = folder / "certificates"
    site = replaced(
        site,
        (
            f"{NAME} {{\n",
            f"https://{NAME}:{port} {{\n\tbind 127.0.0.1\n"
            f"\ttls {certificates / 'fullchain.pem'} {certificates / 'key.pem'}\n",
        ),
    )
    return f"{{\n\tadmin off\n\tauto_https disable_redirects\n\tskip_install_trust\n}}\n{site}"


CONFIGURATIONS = {"nginx": nginx_configuration, "caddy": caddy_configuration}


def command(name: str, folder: Path, configuration: Path) -> list[str]:
    if name == "nginx":
        # Even root's workers are to reach the test's folders.
        return [program("nginx"), "-e", "stderr", "-p", str(folder), "-c", str(configuration), "-g", "user root;"]
    return [program("caddy"), "run", "--adapter", "caddyfile", "--config", str(configuration)]


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture
def upstream(tiny_models: Path) -> Iterator[Upstream]:
    engine = HeldEngine()
    client = Client(tiny_models, worker=MemoryWorker(engine), guard=Guard(api_keys=(KEY,), hosts=(NAME,)))
    idleness = Idleness(client.clock, lambda: None, math.inf)
    site = Connections(client.front, client.guard, client.clock, idleness, most=100, max_body=MOST_BODY)
    with TemporaryDirectory(prefix="osu") as folder:
        path = Path(folder) / "socket"
        ports = [reactor.listenTCP(0, site, interface="127.0.0.1"), reactor.listenUNIX(str(path), site)]
        yield Upstream(client, engine, ports[0].getHost().port, path)
        for port in ports:
            pytest_twisted.blockon(maybeDeferred(port.stopListening))


@contextmanager
def proxied(name: str, way: str, authority: trustme.CA, port: int, path: Path, folder: Path) -> Iterator[Proxy]:
    """Run a proxy in front of what listens on a port and on a Unix socket."""
    certificates = folder / "certificates"
    certificates.mkdir()
    made = authority.issue_cert(NAME)
    made.private_key_pem.write_to_path(str(certificates / "key.pem"))
    made.cert_chain_pems[0].write_to_path(str(certificates / "fullchain.pem"))
    proxy = Proxy(free_port(), authority.cert_pem.bytes(), "/osaurus" if way == "below a path" else "")
    configuration, log = folder / "configuration", folder / "proxy.log"
    configuration.write_text(CONFIGURATIONS[name](way, proxy.port, port, path, folder))
    with log.open("wb") as output:
        process = subprocess.Popen(
            command(name, folder, configuration),
            env=environment(folder, folder, proxy.port),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    try:
        try:
            wait_for_port(proxy.port, process)
        except AssertionError as error:
            raise AssertionError(log.read_text()) from error
        yield proxy
    finally:
        process.terminate()
        process.wait(30)


Start = Callable[..., Proxy]


@pytest.fixture
def start(upstream: Upstream, authority: trustme.CA, tmp_path: Path) -> Iterator[Start]:
    """Starts a proxy in front of the upstream, by its name and the way it is set up."""
    with ExitStack() as stack:

        def started(name: str, way: str = "as it is") -> Proxy:
            proxy = stack.enter_context(proxied(name, way, authority, upstream.port, upstream.socket, tmp_path))
            stack.callback(leave, proxy)
            return proxy

        yield started


def leave(proxy: Proxy) -> None:
    """End all connections. Nobody else would end one whose request was answered before it was sent."""
    for connection in proxy.made:
        ended = connection.abort()
        if not ended.called:
            # With TLS it would wait for the proxy to say goodbye.
            connection.transport.abortConnection()
        pytest_twisted.blockon(ended)


each_proxy = pytest.mark.parametrize("name", ["nginx", "caddy"])


# What a client sends, where in what comes back the text is, and how it ends.
STREAMS = [
    pytest.param("/v1/chat/completions", b"data: [DONE]\n\n", id="events"),
    pytest.param("/api/chat", b'"done":true', id="lines"),
]


async def arriving(upstream: Upstream, proxy: Proxy, path: str) -> Arriving:
    """Begin a stream, and return it when its first piece has arrived."""
    responses: list[Any] = []
    proxy.request("POST", path, json.dumps({**HELLO, "stream": True}).encode()).addCallback(responses.append)
    await upstream.until(lambda: upstream.engine.rows)
    upstream.engine.let = 1
    await upstream.until(lambda: responses)
    assert responses[0].code == 200
    body = Arriving()
    responses[0].deliverBody(body)
    await upstream.until(lambda: b"Hel" in body.received)
    return body


@each_proxy
@pytest.mark.parametrize("way", ["as it is", "below a path", "over a Unix socket"])
@pytest.mark.parametrize(("path", "end"), STREAMS)
@pytest_twisted.ensureDeferred
async def test_each_piece_arrives_while_the_rest_is_held(
    upstream: Upstream, start: Start, name: str, way: str, path: str, end: bytes
) -> None:
    body = await arriving(upstream, start(name, way), path)
    # Nothing else was said yet, nor will it be until it may.
    assert upstream.engine.rows
    assert b'"lo"' not in body.received
    upstream.engine.let = 1
    await upstream.until(lambda: b'"lo"' in body.received)
    assert upstream.engine.rows
    assert not body.ended
    upstream.engine.let = 1
    await upstream.until(lambda: body.ended)
    assert end in body.received


@each_proxy
@pytest.mark.parametrize(("path", "end"), STREAMS)
@pytest_twisted.ensureDeferred
async def test_a_client_that_leaves_frees_its_row(
    upstream: Upstream, start: Start, name: str, path: str, end: bytes
) -> None:
    proxy = start(name)
    body = await arriving(upstream, proxy, path)
    [row] = upstream.engine.rows
    [connection] = proxy.made
    # Without a word, as where a program ends.
    connection.transport.abortConnection()
    # The engine says nothing: it is from the connection that the server learns of it.
    await upstream.until(lambda: upstream.engine.removed)
    assert upstream.engine.removed == [row]
    assert end not in body.received


@each_proxy
@pytest_twisted.ensureDeferred
async def test_a_client_that_leaves_before_anything_was_said_frees_its_row_too(
    upstream: Upstream, start: Start, name: str
) -> None:
    request = start(name).request("POST", "/v1/chat/completions", json.dumps(HELLO).encode())
    await upstream.until(lambda: upstream.engine.rows)
    request.cancel()
    with pytest.raises(ResponseNeverReceived):
        await request
    await upstream.until(lambda: upstream.engine.removed)


async def answered(upstream: Upstream, request: Deferred[Any]) -> tuple[int, bytes]:
    """Return status and body of an answer."""
    responses: list[Any] = []
    request.addCallback(responses.append)
    await upstream.until(lambda: responses)
    body = Arriving()
    responses[0].deliverBody(body)
    await upstream.until(lambda: body.ended)
    return responses[0].code, body.received


def large(size: int) -> bytes:
    """A request of so many bytes, whose answer needs no engine."""
    body = json.dumps({"model": "none", "messages": HELLO["messages"], "unknown": ""}).encode()
    return body[:-2] + b"x" * (size - len(body)) + body[-2:]


@each_proxy
@pytest_twisted.ensureDeferred
async def test_bodies_may_be_as_large_as_without_it(upstream: Upstream, start: Start, name: str) -> None:
    proxy = start(name)
    status, body = await answered(upstream, proxy.request("POST", "/v1/chat/completions", large(MOST_BODY)))
    assert (status, json.loads(body)["error"]["code"]) == (404, "model_not_found")
    status, _ = await answered(upstream, proxy.request("POST", "/v1/chat/completions", large(MOST_BODY + 1)))
    assert status == 413


@each_proxy
@pytest_twisted.ensureDeferred
async def test_keys_pass_through_and_are_asked_for(upstream: Upstream, start: Start, name: str) -> None:
    proxy = start(name)
    assert (await answered(upstream, proxy.request("GET", "/v1/models")))[0] == 200
    for given in ("", "Bearer another"):
        status, body = await answered(upstream, proxy.request("GET", "/v1/models", Authorization=given))
        assert (status, json.loads(body)["error"]["code"]) == (401, "invalid_api_key")
    status, _ = await answered(upstream, proxy.request("GET", "/v1/models", Authorization="", X_Api_Key=KEY))
    assert status == 200


@each_proxy
@pytest_twisted.ensureDeferred
async def test_pages_that_came_through_it_are_the_servers_own_and_no_others(
    upstream: Upstream, start: Start, name: str
) -> None:
    proxy = start(name)
    for origin, expected in ((f"https://{NAME}", 404), ("https://evil.example", 403)):
        status, _ = await answered(
            upstream, proxy.request("DELETE", "/api/delete", b'{"model": "none"}', Origin=origin)
        )
        assert status == expected


@each_proxy
def test_the_whole_server_behind_it_with_the_settings_of_the_page(
    name: str, authority: trustme.CA, tiny_models: Path, tmp_path: Path
) -> None:
    (tmp_path / "keys").write_text(KEY)
    given, listen = blocks("toml")
    with TemporaryDirectory(prefix="osu") as folder:
        path = Path(folder) / "socket"
        settings = replaced(given, ("/etc/osaurus/keys", str(tmp_path / "keys")))
        (tmp_path / "osaurus.toml").write_text(settings + replaced(listen, ("/run/osaurus/socket", str(path))))
        with (
            listening(tmp_path, tiny_models, options=("--config", str(tmp_path / "osaurus.toml"))) as server,
            proxied(name, "over a Unix socket", authority, 0, path, tmp_path) as proxy,
        ):
            authority.cert_pem.write_to_path(str(tmp_path / "authority.pem"))
            context = ssl.create_default_context(cafile=str(tmp_path / "authority.pem"))
            # This machine knows nobody of that name.
            url, asked = f"https://127.0.0.1:{proxy.port}/v1", {"sni_hostname": NAME}
            with httpx.Client(verify=context, timeout=60) as client:
                models = client.get(f"{url}/models", headers={"Host": NAME}, extensions=asked)
                assert models.status_code == 401
                sent = {"Host": NAME, "Authorization": f"Bearer {KEY}"}
                chat = {**HELLO, "stream": True, "max_tokens": 20}
                request = client.build_request(
                    "POST", f"{url}/chat/completions", json=chat, headers=sent, extensions=asked
                )
                answer = client.send(request)
            assert answer.text.endswith("data: [DONE]\n\n")
            assert "Traceback" not in server.log.read_text()
