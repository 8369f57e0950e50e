"""The models in Ollama's words: which there are, which are in memory, what is known of one, what is done to them."""

from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any, Protocol

from attrs import frozen

from ..chat import InstalledModel, ModelCard, ResidentModel
from .fields import ModelName, refuse
from .ollama import line, rfc3339
from .strict import Between, parse

# Of Ollama's API, as far as this is it: clients refuse to speak to one that is too old (Copilot below 0.6.4).
VERSION = "0.12.6"

# What Ollama tells of a model that stays for ever, in seconds.
WITHOUT_END = 292 * 365 * 86400.0


@frozen(kw_only=True)
class NameBody:
    """A body that names a model, under either key."""

    model: ModelName | None = None
    name: ModelName | None = None


@frozen(kw_only=True)
class CopyBody:
    """A model, and the name that it is to have as well."""

    source: ModelName
    destination: ModelName


@frozen(kw_only=True)
class PullBody:
    """A model to be installed, under either key, and the bits that its weights are to be converted to."""

    model: ModelName | None = None
    name: ModelName | None = None
    stream: bool = True
    insecure: bool = False
    quantize: Annotated[int, Between(2, 8)] | None = None


@frozen
class PullCall:
    """What a client wants to have, and whether to be told how far that is."""

    name: str
    stream: bool
    quantize: int | None


class Stage(Protocol):
    """How far a pull is: of a file its digest, and its size and what is here of it, in bytes."""

    @property
    def status(self) -> str:
        """What is being done."""

    @property
    def digest(self) -> str:
        """Of which file; empty if of none."""

    @property
    def total(self) -> int:
        """Its size."""

    @property
    def completed(self) -> int:
        """What is here of it."""


def name_call(body: bytes) -> str:
    """Return the model that a body names. Raises InvalidRequest."""
    named = parse(NameBody, body)
    return named.model or named.name or refuse("model", "is required")


def copy_call(body: bytes) -> CopyBody:
    """Read the body of a copy. Raises InvalidRequest."""
    return parse(CopyBody, body)


def pull_call(body: bytes) -> PullCall:
    """Read the body of a pull. Raises InvalidRequest."""
    asked = parse(PullBody, body)
    return PullCall(asked.model or asked.name or refuse("model", "is required"), asked.stream, asked.quantize)


def progress_line(stage: Stage) -> bytes:
    """Return a line of a pull's stream."""
    of_file = {"digest": stage.digest, "total": stage.total, "completed": stage.completed} if stage.digest else {}
    return line({"status": stage.status, **of_file})


def tags(found: Iterable[tuple[InstalledModel, str]]) -> dict[str, Any]:
    """Return the list of models, each given with its digest."""
    return {"models": [_tag(model, digest) for model, digest in found]}


def running(found: Iterable[tuple[InstalledModel, str, ResidentModel, float]], now: datetime) -> dict[str, Any]:
    """Return the models in memory, each with its digest and for how many more seconds it stays."""
    return {
        "models": [
            {
                "name": model.id,
                "model": _tagged(model),
                "size": resident.nbytes,
                "digest": digest,
                "details": _details(model),
                "expires_at": rfc3339(now + timedelta(seconds=min(stays, WITHOUT_END))),
                "size_vram": resident.nbytes if resident.on_gpu else 0,
                "context_length": resident.context_length,
            }
            for model, digest, resident, stays in found
        ]
    }


def show(card: ModelCard) -> dict[str, Any]:
    """Return what is known of one model."""
    model = card.model
    facts = {f"{card.architecture}.{name}": value for name, value in card.facts.items()}
    return {
        "license": card.license,
        "modelfile": f'FROM {model.repository}\nTEMPLATE """{card.template}"""\n',
        "parameters": "",
        "template": card.template,
        "details": _details(model),
        "model_info": {
            "general.architecture": card.architecture,
            "general.basename": model.id,
            "general.parameter_count": model.parameters,
            **facts,
        },
        "capabilities": [
            "completion",
            *(["tools"] if card.takes_tools else []),
            *(["insert"] if card.fills_in else []),
            *(["thinking"] if card.thinks else []),
        ],
        "modified_at": _modified(model),
    }


def _tag(model: InstalledModel, digest: str) -> dict[str, Any]:
    return {
        "name": model.id,
        "model": _tagged(model),
        "modified_at": _modified(model),
        "size": model.size,
        "digest": digest,
        "details": _details(model),
    }


def _tagged(model: InstalledModel) -> str:
    """Return a model's id with a tag: clients that add one where there is none (Open WebUI) look it up here."""
    return f"{model.id}:latest"


def _modified(model: InstalledModel) -> str:
    return rfc3339(datetime.fromtimestamp(model.modified, UTC))


def _details(model: InstalledModel) -> dict[str, Any]:
    return {
        "parent_model": "",
        "format": "" if model.system else "safetensors",
        "family": model.family,
        "families": [model.family],
        "parameter_size": _abbreviated(model.parameters),
        "quantization_level": model.quantization,
    }


def _abbreviated(parameters: int) -> str:
    for unit, name in ((10**12, "T"), (10**9, "B"), (10**6, "M"), (10**3, "K")):
        if parameters >= unit * 0.9995:
            return f"{float(f'{parameters / unit:.3g}'):g}{name}"
    return str(parameters)
