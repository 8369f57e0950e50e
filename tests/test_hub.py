"""What a hub tells of a repository is read strictly: it becomes paths, sizes and digests."""

import json
from collections.abc import Callable, Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import close_session

from osaurus.library import hub as reading
from osaurus.library.hub import Hub
from osaurus.library.progress import PullError

from .hub import COMMIT, FakeHub, Repository

NAME = "org/Tiny"
FILES = {
    "config.json": b"{}",
    "tokenizer.json": b"{}",
    "tokenizer_config.json": b"{}",
    "chat_template.jinja": b"",
    "LICENSE": b"",
    "merges.txt": b"",
    "model.safetensors": b"weights",
    "model.safetensors.index.json": b"{}",
    "README.md": b"",
    "modeling_tiny.py": b"",
    "pytorch_model.bin": b"",
}


@pytest.fixture
def known(hub: FakeHub) -> Hub:
    hub.repositories[NAME] = Repository(dict(FILES))
    return Hub(hub.endpoint, None)


def test_a_listing_has_each_file_with_its_size_and_digest(known: Hub, hub: FakeHub) -> None:
    listing = known.listing(NAME)
    assert (listing.repository, listing.commit, listing.is_mlx) == (NAME, COMMIT, True)
    weights = listing.files["model.safetensors"]
    assert (weights.size, weights.digest) == (7, f"sha256:{sha256(b'weights').hexdigest()}")
    assert weights.url == f"{hub.endpoint}/{NAME}/resolve/{COMMIT}/model.safetensors"
    # As `git hash-object` tells.
    assert listing.files["config.json"].digest == "sha1:9e26dfeeb6e641a33dae4961196235bdb965b21b"


def test_what_a_model_needs_beside_its_weights_is_neither_code_nor_pickles(known: Hub) -> None:
    assert sorted(file.name for file in known.listing(NAME).small) == [
        "LICENSE",
        "chat_template.jinja",
        "config.json",
        "merges.txt",
        "model.safetensors.index.json",
        "tokenizer.json",
        "tokenizer_config.json",
    ]


@pytest.mark.parametrize(
    "name",
    ["../config.json", "/etc/passwd", "a/../../b.json", "onnx/config.json", "..", ".hidden", "a\0.json", "", "ä.json"],
)
def test_a_file_that_is_not_at_the_top_is_none_of_a_model(known: Hub, hub: FakeHub, name: str) -> None:
    hub.repositories[NAME].files[name] = b"x"
    assert set(known.listing(NAME).files) == set(FILES)


def first(told: dict[str, Any], **fields: Any) -> None:
    told["siblings"][0].update(fields)


def weights(told: dict[str, Any], **fields: Any) -> None:
    next(entry for entry in told["siblings"] if "lfs" in entry)["lfs"].update(fields)


@pytest.mark.parametrize(
    "damage",
    [
        lambda told: told.clear(),
        lambda told: told.update(sha="main"),
        lambda told: told.update(sha=None),
        lambda told: told.update(siblings=None),
        lambda told: told.update(siblings=[7]),
        lambda told: told.update(siblings=told["siblings"] * 1000),
        lambda told: first(told, size=None),
        lambda told: first(told, size=-1),
        lambda told: first(told, size=1.5),
        lambda told: first(told, size="1"),
        lambda told: first(told, blobId=None),
        lambda told: first(told, blobId="../../x"),
        lambda told: weights(told, sha256="0" * 63),
        lambda told: weights(told, sha256=None),
        lambda told: weights(told, size=None),
    ],
)
def test_what_is_no_listing_is_an_error(known: Hub, hub: FakeHub, damage: Callable[[Any], object]) -> None:
    told = hub.told(NAME)
    damage(told)
    hub.listing = json.dumps(told).encode()
    with pytest.raises(PullError, match="is no listing of a hub"):
        known.listing(NAME)


@pytest.mark.parametrize("body", [b"", b"<html>", b"[]", b"7", b"[" * 10**5, b"\xff"])
def test_what_is_no_json_is_an_error(known: Hub, hub: FakeHub, body: bytes) -> None:
    hub.listing = body or b" "
    with pytest.raises(PullError, match="is no listing of a hub"):
        known.listing(NAME)


def test_a_listing_without_end_is_not_read_to_the_end(
    known: Hub, hub: FakeHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reading, "MOST_LISTING_BYTES", 1000)
    hub.listing = b" " * 100_000
    with pytest.raises(PullError, match="longer than any listing"):
        known.listing(NAME)


def test_a_repository_that_has_moved_keeps_the_name_that_was_asked_for(known: Hub, hub: FakeHub) -> None:
    hub.listing = json.dumps({**hub.told(NAME), "id": "other/../Name"}).encode()
    assert known.listing(NAME).repository == NAME


# What a proxy says in place of the hub.
PAGES = [b"<html>Zugriff verweigert f\xfcr Sie</html>", b'"upstream unavailable"', b'["bad gateway"]', b"\xff" * 10**5]


@pytest.mark.parametrize("page", PAGES)
@pytest.mark.parametrize(("status", "why"), [(403, "refuses .*403"), (407, "answered 407"), (503, "answered 503")])
def test_whatever_stands_on_an_error_page_the_status_is_told(
    known: Hub, hub: FakeHub, status: int, why: str, page: bytes
) -> None:
    hub.listing_status, hub.refusal = status, page
    with pytest.raises(PullError, match=why):
        known.listing(NAME)


@pytest.fixture
def own_session() -> Iterator[None]:
    """Have huggingface_hub make its client anew, as a process does that starts with this environment."""
    close_session()
    yield
    close_session()


@pytest.mark.usefixtures("own_session")
@pytest.mark.parametrize("proxy", ["socks5://me:secret@127.0.0.1:9", "socks://127.0.0.1:9", "http://[::1", "ftp://x"])
def test_a_proxy_that_cannot_be_used_is_told_without_its_password(
    known: Hub, monkeypatch: pytest.MonkeyPatch, proxy: str
) -> None:
    monkeypatch.setenv("ALL_PROXY", proxy)
    with pytest.raises(PullError, match="proxy that is set cannot be used: see ALL_PROXY") as caught:
        known.listing(NAME)
    assert "secret" not in str(caught.value)


def test_an_address_that_is_none_is_told() -> None:
    with pytest.raises(PullError, match=r"cannot be reached: .* HF_ENDPOINT"):
        Hub("http://[::1", None).listing(NAME)


@pytest.mark.parametrize("token", ["“hf_mine”", "hf_\x00mine", "hf_é"])
def test_a_token_that_cannot_be_sent_is_told_and_not_spelt_out(hub: FakeHub, token: str) -> None:
    with pytest.raises(PullError, match="typographic quotes: see HF_TOKEN") as caught:
        Hub(hub.endpoint, token).listing(NAME)
    assert token not in str(caught.value)


def test_the_token_is_where_huggingface_hub_has_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_mine")
    assert Hub().token == "hf_mine"
    assert "hf_mine" not in repr(Hub())
