"""The models in Ollama's words."""

import math
import re
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from attrs import evolve
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from osaurus.chat import (
    InstalledModel,
    InvalidRequest,
    ModelCard,
    ResidentModel,
)
from osaurus.dialects.ollama_models import copy_call, name_call, progress_line, pull_call, running, show, tags
from osaurus.library.progress import Progress

NOON = datetime(2024, 3, 15, 12, 0, 0, 5, UTC)
RFC3339 = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z")


def model(**fields: Any) -> InstalledModel:
    """A model with these particulars."""
    usual: dict[str, Any] = {
        "id": "small",
        "repository": "org/Small",
        "folder": Path("/models/org/Small"),
        "size": 10,
        "modified": NOON.timestamp(),
        "family": "llama",
        "parameters": 134_515_008,
        "quantization": "Q4",
        "context_length": 2048,
    }
    return InstalledModel(**{**usual, **fields})


def test_a_tag_has_what_strict_clients_need() -> None:
    assert tags([(model(), "sha256:00")]) == {
        "models": [
            {
                "name": "small",
                # Open WebUI looks models up with a tag.
                "model": "small:latest",
                "modified_at": "2024-03-15T12:00:00.000005Z",
                "size": 10,
                "digest": "sha256:00",
                "details": {
                    "parent_model": "",
                    "format": "safetensors",
                    "family": "llama",
                    "families": ["llama"],
                    "parameter_size": "135M",
                    "quantization_level": "Q4",
                },
            }
        ]
    }
    assert tags([]) == {"models": []}


@pytest.mark.parametrize(
    ("parameters", "size"),
    [
        (0, "0"),
        (999, "999"),
        (1500, "1.5K"),
        (134_515_008, "135M"),
        (7_241_732_096, "7.24B"),
        (70_553_706_496, "70.6B"),
        (671_026_419_200, "671B"),
    ],
)
def test_parameters_are_abbreviated(parameters: int, size: str) -> None:
    assert tags([(model(parameters=parameters), "")])["models"][0]["details"]["parameter_size"] == size


@hypothesis_settings(deadline=None, max_examples=200)
@given(parameters=st.integers(0, 10**13) | st.sampled_from([999_999, 999_999_999, 999_999_999_999]))
def test_parameters_are_never_abbreviated_beyond_recognition(parameters: int) -> None:
    size = tags([(model(parameters=parameters), "")])["models"][0]["details"]["parameter_size"]
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([KMBT]?)", size)
    assert match is not None
    meant = float(match[1]) * {"": 1, "K": 10**3, "M": 10**6, "B": 10**9, "T": 10**12}[match[2]]
    assert abs(meant - parameters) <= parameters / 100


def test_a_model_in_memory_is_told_with_what_it_takes_and_how_long_it_stays() -> None:
    resident = ResidentModel(id="org/Small", nbytes=7, on_gpu=True, context_length=99)
    [found] = running([(model(), "sha256:00", resident, 60.5)], NOON)["models"]
    assert (found["name"], found["model"], found["digest"]) == ("small", "small:latest", "sha256:00")
    assert (found["size"], found["size_vram"], found["context_length"]) == (7, 7, 99)
    assert found["expires_at"] == "2024-03-15T12:01:00.500005Z"
    on_cpu = evolve(resident, on_gpu=False)
    assert running([(model(), "", on_cpu, math.inf)], NOON)["models"][0]["size_vram"] == 0


@pytest.mark.parametrize("stays", [math.inf, 1e300])
def test_for_ever_is_a_date_that_can_be_written(stays: float) -> None:
    resident = ResidentModel(id="org/Small", nbytes=7, on_gpu=False, context_length=99)
    assert running([(model(), "", resident, stays)], NOON)["models"][0]["expires_at"].startswith("2316")


def test_a_card_is_shown_with_what_the_model_can() -> None:
    card = ModelCard(
        model=model(),
        architecture="llama",
        template="{{ x }}",
        license="MIT",
        facts={"context_length": 99},
        fills_in=True,
        thinks=True,
        takes_tools=True,
    )
    shown = show(card)
    assert shown["capabilities"] == ["completion", "tools", "insert", "thinking"]
    assert shown["model_info"]["llama.context_length"] == 99
    assert (shown["template"], shown["license"]) == ("{{ x }}", "MIT")
    assert "FROM org/Small" in shown["modelfile"]


def test_a_model_is_named_under_either_key() -> None:
    assert name_call(b'{"model": "a"}') == name_call(b'{"name": "a"}') == "a"
    with pytest.raises(InvalidRequest) as caught:
        name_call(b"{}")
    assert caught.value.param == "model"


def test_a_copy_has_a_source_and_a_destination() -> None:
    found = copy_call(b'{"source": "a", "destination": "b"}')
    assert (found.source, found.destination) == ("a", "b")
    with pytest.raises(InvalidRequest) as caught:
        copy_call(b'{"source": "a"}')
    assert caught.value.param == "destination"


def test_a_pull_names_a_model_and_is_told_of_unless_it_says_otherwise() -> None:
    asked = pull_call(b'{"name": "a", "insecure": true}')
    assert (asked.name, asked.stream, asked.quantize) == ("a", True, None)
    assert not pull_call(b'{"model": "a", "stream": false}').stream
    assert pull_call(b'{"model": "a", "quantize": 4}').quantize == 4
    with pytest.raises(InvalidRequest) as caught:
        pull_call(b"{}")
    assert caught.value.param == "model"


def test_a_stage_of_a_pull_is_a_line_with_numbers_if_it_is_about_a_file() -> None:
    assert progress_line(Progress("success")) == b'{"status":"success"}\n'
    line = progress_line(Progress("pulling 00", "sha256:00", 10, 0))
    assert line == b'{"status":"pulling 00","digest":"sha256:00","total":10,"completed":0}\n'
