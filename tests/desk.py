"""An engine on a tiny real model, rows to be given to it, and what they have said."""

from itertools import chain
from pathlib import Path
from time import monotonic_ns
from typing import Any

from attrs import define, field

from osaurus.chat import (
    CallPiece,
    Event,
    GenerationRequest,
    Message,
    Piece,
    Sampling,
)
from osaurus.engine.backend import Backend
from osaurus.engine.runner import Row

GREEDY = Sampling(temperature=0)
PROMPTS = ["Hello", "def test_one(client):", "a longer prompt than the others, " * 8, "x", "return None"]


@define
class Desk:
    """An engine, the models it can load, and what its rows have said."""

    engine: Any
    models: Path
    texts: dict[int, str] = field(factory=dict)
    thoughts: dict[int, str] = field(factory=dict)
    calls: dict[int, list[CallPiece]] = field(factory=dict)
    ends: dict[int, Event] = field(factory=dict)

    def add(self, number: int, content: str | tuple[Message, ...], name: str = "tiny", **changes: Any) -> None:
        fields: dict[str, Any] = {"max_tokens": 24, "sampling": GREEDY, "stop": ()} | changes
        echo = fields.pop("echo", "")
        messages = (Message("user", content),) if isinstance(content, str) else content
        request = GenerationRequest(model=name, messages=messages, max_tokens_may_shrink=True, **fields)
        prompt = self.engine.load(name, self.folder(name)).prompt.encode(request)
        self.engine.add(
            name,
            self.folder(name),
            Row(
                id=number,
                prompt=prompt.tokens,
                max_tokens=prompt.max_tokens,
                sampling=request.sampling,
                stop=request.stop,
                arrived=monotonic_ns(),
                load=0,
                top_logprobs=request.top_logprobs,
                tell_tokens=request.tell_tokens,
                owner=request.owner,
                boundaries=prompt.boundaries,
                thinking=prompt.thinking,
                shape=prompt.shape,
                echo=echo,
            ),
        )

    def folder(self, name: str) -> Path:
        return self.models / "tests" / name

    def step(self) -> None:
        for number, event in chain.from_iterable(self.engine.step()):
            match event:
                case Piece(text, reasoning=thought, calls=calls):
                    self.calls.setdefault(number, []).extend(calls)
                    self.texts[number] = self.texts.get(number, "") + text
                    self.thoughts[number] = self.thoughts.get(number, "") + thought
                case _:
                    self.ends[number] = event

    def finish(self) -> dict[int, str]:
        while self.engine.busy:
            self.step()
        return self.texts

    def alone(self, content: str | tuple[Message, ...], **changes: Any) -> str:
        """What a prompt is answered when nobody else is there."""
        self.add(999, content, **changes)
        self.finish()
        self.ends.pop(999)
        return self.texts.pop(999, "")


def another(backend: Backend, tiny_models: Path) -> Desk:
    """A desk with an engine that has read nothing yet."""
    from osaurus.engine.mlx_engine import MLXEngine
    from osaurus.engine.prefixes import PrefixCache

    # Not closed: closing ends the thread's use of MLX, and all these tests share a thread.
    return Desk(MLXEngine(backend, PrefixCache(2**24), 2**32), tiny_models)
