"""Bias and penalties: what a request adds to or takes from the logits of single tokens.

Bias comes first, then the repetition penalty (a logit above 0 is divided by it, one below multiplied, as in Keskar et
al., "CTRL", 2019), then frequency and presence, as OpenAI defines them: the logit loses `frequency_penalty` for each
time that the token was written, and `presence_penalty` if it was. The repetition penalty looks at prompt and answer,
the other two at the answer; `penalty_window` bounds how many of the last tokens all three look at.

A row changes few of the vocabulary's logits, so the device gathers those of all rows, changes them and scatters them
back; the host keeps the counts, updated token by token.
"""

from collections import Counter, deque
from collections.abc import Iterable, Sequence
from typing import Any

import mlx.core as mx
import numpy as np
import numpy.typing as npt
from attrs import define, field

from ..chat import Sampling

# What is added to a logit, the factor of the repetition penalty, and what is taken off at last.
Change = tuple[float, float, float]
NO_CHANGE: Change = (0.0, 1.0, 0.0)


def penalties(sampling: Sampling, prompt: Sequence[int]) -> "Penalties | None":
    """Return what a row that begins with this prompt changes; None where it changes nothing."""
    windowed = sampling.penalty_window != 0
    looks_back = windowed and (
        sampling.repetition_penalty != 1 or sampling.frequency_penalty != 0 or sampling.presence_penalty != 0
    )
    if not sampling.bias and not looks_back:
        return None
    history: Iterable[int] = ()
    if looks_back:
        history = prompt if sampling.penalty_window is None else prompt[-sampling.penalty_window :]
    changes = Penalties(sampling, looks_back)
    for token in history:
        changes.read(token)
    return changes


@define
class Penalties:
    """The changes that one row makes, given what it has read and written."""

    _sampling: Sampling
    _looks_back: bool
    _bias: dict[int, float] = field(init=False)
    _seen: Counter[int] = field(factory=Counter, init=False)
    _written: Counter[int] = field(factory=Counter, init=False)
    _window: deque[tuple[int, bool]] = field(factory=deque, init=False)
    _changes: dict[int, Change] = field(init=False)

    @_bias.default
    def _make_bias(self) -> dict[int, float]:
        return dict(self._sampling.bias)

    @_changes.default
    def _make_changes(self) -> dict[int, Change]:
        return {token: (bias, 1.0, 0.0) for token, bias in self._bias.items()}

    def read(self, token: int) -> None:
        """Take a token of the prompt into account."""
        self._take(token, written=False)

    def wrote(self, token: int) -> None:
        """Take a token of the answer into account."""
        self._take(token, written=True)

    def changes(self) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.float32]]:
        """Return the tokens whose logits change, shape (tokens,), and how, shape (tokens, 3)."""
        changes = self._changes or {0: NO_CHANGE}
        return np.fromiter(changes, np.int32, len(changes)), np.array(list(changes.values()), np.float32)

    def _take(self, token: int, *, written: bool) -> None:
        if not self._looks_back:
            return
        self._seen[token] += 1
        self._written[token] += written
        window = self._sampling.penalty_window
        if window is not None:
            self._window.append((token, written))
            if len(self._window) > window:
                old, was_written = self._window.popleft()
                self._seen[old] -= 1
                self._written[old] -= was_written
                self._update(old)
        self._update(token)

    def _update(self, token: int) -> None:
        sampling, count = self._sampling, self._written[token]
        change = (
            self._bias.get(token, 0.0),
            sampling.repetition_penalty if self._seen[token] else 1.0,
            count * sampling.frequency_penalty + (sampling.presence_penalty if count else 0.0),
        )
        if change == NO_CHANGE:
            self._changes.pop(token, None)
        else:
            self._changes[token] = change


def penalise(logits: mx.array, rows: Sequence[Penalties | None]) -> mx.array:
    """Return the logits, shape (rows, vocabulary), with every row's changes made."""
    if not any(rows):
        return logits
    nothing = np.zeros(1, np.int32), np.array([NO_CHANGE], np.float32)
    changes = [nothing if row is None else row.changes() for row in rows]
    most = max(len(tokens) for tokens, _ in changes)
    # A row with fewer changes makes its own several times over, which is the same as once.
    places = [np.arange(most) % len(tokens) for tokens, _ in changes]
    tokens = mx.array(np.stack([tokens[place] for (tokens, _), place in zip(changes, places, strict=True)]))
    values: Any = mx.array(np.stack([values[place] for (_, values), place in zip(changes, places, strict=True)]))
    bias, repetition, taken = values[..., 0], values[..., 1], values[..., 2]
    logits = logits.astype(mx.float32)
    biased = mx.take_along_axis(logits, tokens, axis=-1) + bias
    changed = mx.where(biased > 0, biased / repetition, biased * repetition) - taken
    return mx.put_along_axis(logits, tokens, changed, axis=-1)
