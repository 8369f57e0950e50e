"""Calls whose arguments are JSON behind a name come back as they were; what is not wholly calls is none."""

import json
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from attrs import frozen
from hypothesis import given
from hypothesis import strategies as st

from osaurus.engine.named_calls import DEEPSEEK, KIMI_K2, MISTRAL, NamedForm

Calls = Sequence[tuple[str, dict[str, Any]]]


def mistral(calls: Calls) -> str:
    return "[TOOL_CALLS]".join(f"{name}[ARGS]{json.dumps(arguments)}" for name, arguments in calls)


def mistral_with_ids(calls: Calls) -> str:
    return "[TOOL_CALLS]".join(f"{name}[CALL_ID]a1b2c3d4e[ARGS]{json.dumps(arguments)}" for name, arguments in calls)


def mistral_before(calls: Calls) -> str:
    return json.dumps([{"name": name, "arguments": arguments, "id": "a1b2c3d4e"} for name, arguments in calls])


def kimi(calls: Calls) -> str:
    return "".join(
        f"<|tool_call_begin|>functions.{name}:{number}<|tool_call_argument_begin|>{json.dumps(arguments)}<|tool_call_end|>"
        for number, (name, arguments) in enumerate(calls)
    )


BEGIN, BETWEEN, END = "<｜tool▁call▁begin｜>", "<｜tool▁sep｜>", "<｜tool▁call▁end｜>"  # noqa: RUF001


def deepseek(calls: Calls) -> str:
    return "".join(f"{BEGIN}{name}{BETWEEN}{json.dumps(arguments)}{END}" for name, arguments in calls)


def deepseek_v3(calls: Calls) -> str:
    return "\n".join(
        f"{BEGIN}function{BETWEEN}{name}\n```json\n{json.dumps(arguments)}\n```{END}" for name, arguments in calls
    )


@frozen
class Family:
    """A form, and what a template of it renders of calls."""

    form: NamedForm
    render: Callable[[Calls], str]


FAMILIES = {
    "mistral": Family(MISTRAL, mistral),
    "mistral with ids": Family(MISTRAL, mistral_with_ids),
    "mistral before": Family(MISTRAL, mistral_before),
    "kimi": Family(KIMI_K2, kimi),
    "deepseek": Family(DEEPSEEK, deepseek),
    "deepseek v3": Family(DEEPSEEK, deepseek_v3),
}
TEXTS = st.text(max_size=8) | st.sampled_from(["[ARGS]", "[TOOL_CALLS]f[ARGS]{}", "<|tool_call_end|>", END, "```", "}"])
JSON = st.recursive(st.none() | st.booleans() | st.integers() | TEXTS, lambda inner: st.lists(inner, max_size=3))
CALLS = st.lists(
    st.tuples(st.sampled_from(["f", "get_weather", "a.b-c"]), st.dictionaries(TEXTS, JSON, max_size=3)),
    min_size=1,
    max_size=3,
)


@given(family=st.sampled_from(list(FAMILIES)), calls=CALLS)
def test_calls_come_back_as_they_were(family: str, calls: Calls) -> None:
    expected = [(name, arguments) for name, arguments in calls]
    found = FAMILIES[family].form(FAMILIES[family].render(calls), [])
    assert [(call["name"], call["arguments"]) for call in found] == expected


@pytest.mark.parametrize(
    ("form", "said"),
    [
        (MISTRAL, 'f[ARGS]{"x": 1} as I said'),
        (MISTRAL, 'I call f[ARGS]{"x": 1}'),
        (MISTRAL, 'f[ARGS]{"x": 1'),
        (MISTRAL, 'f {"x": 1}'),
        (MISTRAL, '[{"name": "f", "arguments": {}}'),
        (KIMI_K2, kimi([("f", {})]) + " and so on"),
        (KIMI_K2, kimi([("f", {})]).removesuffix("<|tool_call_end|>")),
        (KIMI_K2, kimi([("f", {})]).replace(":0", "")),
        (DEEPSEEK, deepseek([("f", {})]).removesuffix(END)),
    ],
)
def test_what_is_not_wholly_calls_is_none(form: NamedForm, said: str) -> None:
    with pytest.raises(ValueError, match=r"call|Expecting"):
        form(said, [])
