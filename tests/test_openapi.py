"""The API keeps what its own description promises, whatever is sent: schemathesis against a real server."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urljoin

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given
from hypothesis import settings as hypothesis_settings
from schemathesis.core.result import Ok
from schemathesis.specs.openapi.checks import response_schema_conformance, status_code_conformance

from .server import Server, serving
from .test_api import Client

# Answers are to be short; what is generated would mostly name models that are not there, and say nothing.
SHORT = {"model": "tiny", "max_tokens": 4, "max_completion_tokens": 4, "prompt": "x"}
TURNS = [{"role": "user", "content": "x"}]
GENERATING = ("/v1/chat/completions", "/v1/completions", "/api/chat", "/api/generate")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, tiny_models: Path) -> Iterator[Server]:
    """A server with models of its own: they may be deleted."""
    folder = tmp_path_factory.mktemp("openapi")
    shutil.copytree(tiny_models, folder / "models")
    with serving(folder, folder / "models", "--requests-per-minute", "0", "--prefix-disk", "0") as started:
        yield started


def test_whatever_is_sent_is_answered_as_described(server: Server) -> None:
    described = schemathesis.openapi.from_url(f"{server.url}/openapi.json")
    for found in described.get_all_operations():
        assert isinstance(found, Ok)
        _try(found.ok())


def _try(operation: Any) -> None:
    @hypothesis_settings(
        max_examples=20,
        deadline=None,
        derandomize=True,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(operation.as_strategy())
    def ask(case: Any) -> None:
        if case.path in GENERATING and isinstance(case.body, dict) and isinstance(case.body.get("model"), str):
            case.body = {**case.body, **SHORT, **({"messages": TURNS} if case.body.get("messages") else {})}
            if isinstance(case.body.get("options"), dict):
                case.body["options"] = {**case.body["options"], "num_predict": 4}
        response = case.call(timeout=60)
        assert response.status_code < 500
        assert response.headers["x-request-id"]
        case.validate_response(response, checks=[status_code_conformance, response_schema_conformance])

    ask()


def test_every_route_is_described(tiny_models: Path) -> None:
    client = Client(tiny_models)
    described = client.ask("GET", "/openapi.json").json
    for path, operations in described["paths"].items():
        for method in operations:
            answer = client.ask(method.upper(), path.replace("{name}", "tiny"), {"model": "none", "name": "none"})
            assert answer.status != 405, path
            assert answer.status != 404 or answer.json["error"]["code"] == "model_not_found", path
    bodies = described["components"]["schemas"]
    assert bodies["openai_ChatBody"]["required"] == ["model", "messages"]
    assert bodies["completions_CompletionBody"]["required"] == ["model", "prompt"]


@pytest.mark.parametrize("path", ["/openapi.json", "/openapi.json/", "/v1/openapi.json", "/v1/api/openapi.json"])
def test_the_server_is_where_the_description_is_from(tiny_models: Path, path: str) -> None:
    [server] = Client(tiny_models).ask("GET", path).json["servers"]
    for root in ("http://127.0.0.1:1338/", "https://example.org/osaurus/"):
        assert urljoin(root + path.removeprefix("/"), server["url"]) == root


def test_both_ways_of_giving_a_key_are_described(tiny_models: Path) -> None:
    described = Client(tiny_models).ask("GET", "/openapi.json").json
    schemes = described["components"]["securitySchemes"]
    assert [sorted(way) for way in described["security"]] == [[], *([name] for name in schemes)]
    assert {scheme.get("scheme") or scheme["name"] for scheme in schemes.values()} == {"bearer", "X-Api-Key"}
