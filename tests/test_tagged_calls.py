"""Calls between tags come back as a template renders them; what is not wholly calls is none."""

import json
from collections.abc import Callable, Mapping
from typing import Any

import pytest
from attrs import frozen
from hypothesis import given
from hypothesis import strategies as st

from osaurus.engine.argument_values import ValueIsOpen
from osaurus.engine.tagged_calls import (
    DEEPSEEK_V3_2,
    GLM,
    KIMI_K3,
    LONGCAT,
    MINICPM5,
    MINIMAX_M2,
    MUSE,
    QWEN3_CODER,
    SEED_OSS,
    TaggedForm,
)

Arguments = Mapping[str, Any]


def text_of(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def qwen(name: str, arguments: Arguments) -> str:
    inside = "".join(f"<parameter={key}>\n{text_of(value)}\n</parameter>\n" for key, value in arguments.items())
    return f"\n<function={name}>\n{inside}</function>\n"


def seed(name: str, arguments: Arguments) -> str:
    # It renders flags, lists and objects as Python does.
    inside = "".join(
        f"<parameter={key}>{repr(value) if isinstance(value, (bool, list, dict)) else text_of(value)}</parameter>\n"
        for key, value in arguments.items()
    )
    return f"\n<function={name}>\n{inside}</function>\n"


def deepseek(name: str, arguments: Arguments) -> str:
    tag = "｜DSML｜"  # noqa: RUF001 - as DeepSeek spells it
    inside = "".join(
        f'<{tag}parameter name="{key}" string="{"true" if isinstance(value, str) else "false"}">{text_of(value)}'
        f"</{tag}parameter>\n"
        for key, value in arguments.items()
    )
    return f'\n<{tag}invoke name="{name}">\n{inside}</{tag}invoke>\n'


def glm_4_5(name: str, arguments: Arguments) -> str:
    pairs = [f"<arg_key>{key}</arg_key>\n<arg_value>{text_of(value)}</arg_value>\n" for key, value in arguments.items()]
    return f"{name}\n{''.join(pairs)}"


def glm_4_7(name: str, arguments: Arguments) -> str:
    pairs = [f"<arg_key>{key}</arg_key><arg_value>{text_of(value)}</arg_value>" for key, value in arguments.items()]
    return name + "".join(pairs)


def longcat(name: str, arguments: Arguments) -> str:
    pairs = [
        f"<longcat_arg_key>{key}</longcat_arg_key>\n<longcat_arg_value>{text_of(value)}</longcat_arg_value>\n"
        for key, value in arguments.items()
    ]
    return f"{name}\n{''.join(pairs)}"


def minimax(name: str, arguments: Arguments) -> str:
    inside = "".join(f'<parameter name="{key}">{text_of(value)}</parameter>\n' for key, value in arguments.items())
    return f'\n<invoke name="{name}">\n{inside}</invoke>\n'


def minicpm(name: str, arguments: Arguments) -> str:
    def quoted(text: str) -> str:
        return f"<![CDATA[{text}]]>" if set(text) & set("<&\n") else text

    return f'"{name}">' + "".join(
        f'<param name="{key}">{quoted(text_of(value))}</param>' for key, value in arguments.items()
    )


def kimi(name: str, arguments: Arguments) -> str:
    kinds = {str: "string", bool: "boolean", int: "number", float: "number", list: "array", dict: "object"}
    inside = "".join(
        f'<|open|>argument key="{key}" type="{kinds.get(type(value), "null")}"<|sep|>{text_of(value)}'
        "<|close|>argument<|sep|>"
        for key, value in arguments.items()
    )
    return f'<|open|>call tool="{name}" index="1"<|sep|>{inside}<|close|>call<|sep|>'


def muse(name: str, arguments: Arguments) -> str:
    inside = "".join(
        f'<atem:parameter name="{key}">{text_of(value)}</atem:parameter>\n' for key, value in arguments.items()
    )
    return f'\n<atem:invoke name="{name}">\n{inside}</atem:invoke>\n'


@frozen
class Family:
    """A form, and what a template of it renders of a call."""

    form: TaggedForm
    render: Callable[[str, Arguments], str]


FAMILIES = {
    "qwen": Family(QWEN3_CODER, qwen),
    "glm 4.5": Family(GLM, glm_4_5),
    "glm 4.7": Family(GLM, glm_4_7),
    "longcat": Family(LONGCAT, longcat),
    "minimax": Family(MINIMAX_M2, minimax),
    "seed": Family(SEED_OSS, seed),
    "deepseek": Family(DEEPSEEK_V3_2, deepseek),
    "minicpm": Family(MINICPM5, minicpm),
    "kimi k3": Family(KIMI_K3, kimi),
    "muse": Family(MUSE, muse),
}

PIECES = ["</parameter>", "</function>", "</arg_value>", "</invoke>", "</param>", "</tool_call>", "<b>", "<tool_call>"]
WORDS = ["\n", "\r\n", "    ", "null", "5", "true", "[1]", '{"a": 1}', "Zürich", '"', "\\"]
TEXTS = st.lists(st.sampled_from([*PIECES, *WORDS]) | st.text(max_size=3), max_size=6).map("".join)
JSON = st.recursive(st.none() | st.booleans() | st.integers() | TEXTS, lambda inner: st.lists(inner, max_size=3))

# Schemas, and values by them.
KINDS: list[tuple[Any, st.SearchStrategy[Any]]] = [
    ({"type": "string"}, TEXTS),
    ({"type": ["string", "null"]}, st.none() | TEXTS.filter(lambda text: text.strip() != "null")),
    ({"type": "integer"}, st.integers()),
    ({"anyOf": [{"type": "integer"}, {"type": "null"}]}, st.integers() | st.none()),
    ({"type": "number"}, st.integers() | st.floats(allow_nan=False, allow_infinity=False)),
    ({"$ref": "#/$defs/flag"}, st.booleans()),
    ({"type": "array"}, st.lists(JSON, max_size=3)),
    ({"type": "object"}, st.dictionaries(st.text(max_size=3), JSON, max_size=3)),
    ({"enum": [1, "one"]}, st.just("one")),
]


def definition(name: str, properties: Arguments) -> dict[str, Any]:
    parameters = {"type": "object", "properties": properties, "$defs": {"flag": {"type": "boolean"}}}
    return {"type": "function", "function": {"name": name, "parameters": parameters}}


@given(family=st.sampled_from(list(FAMILIES)), data=st.data())
def test_a_call_comes_back_as_it_was(family: str, data: st.DataObject) -> None:
    kinds = data.draw(st.lists(st.sampled_from(KINDS), max_size=4))
    arguments = {f"key_{place}": data.draw(values) for place, (_, values) in enumerate(kinds)}
    tools = [definition("f", {f"key_{place}": schema for place, (schema, _) in enumerate(kinds)})]
    said = FAMILIES[family].render("f", arguments)
    calls = FAMILIES[family].form(said, tools)
    assert calls == [{"name": "f", "arguments": arguments}]
    assert json.dumps(calls[0]["arguments"]) == json.dumps(arguments)


STRINGS = [definition(name, {"x": {"type": "string"}, "y": {"type": "string"}}) for name in ("f", "g")]


@pytest.mark.parametrize("family", ["qwen", "minimax"])
def test_several_calls_between_two_marks_are_several(family: str) -> None:
    form, render = FAMILIES[family].form, FAMILIES[family].render
    said = render("f", {"x": "1"}) + render("g", {"y": "2"})
    assert form(said, STRINGS) == [{"name": "f", "arguments": {"x": "1"}}, {"name": "g", "arguments": {"y": "2"}}]


@pytest.mark.parametrize(
    ("schema", "said", "value"),
    [
        ({}, 'string="false">5', 5),
        ({}, 'string="true">5', "5"),
        ({"type": ["string", "integer"]}, 'string="false">5', 5),
        ({"type": ["string", "array"]}, 'string="true">[1]', "[1]"),
        # The schema is not in doubt.
        ({"type": "string"}, 'string="false">5', "5"),
        ({"type": "integer"}, 'string="true">5', 5),
        ({}, ">5", "5"),
    ],
)
def test_where_the_schema_leaves_it_open_what_the_model_says_of_a_value_counts(
    schema: dict[str, Any], said: str, value: object
) -> None:
    text = deepseek("f", {"x": "?"}).replace('string="true">?', said).replace('"x" >', '"x">')
    assert DEEPSEEK_V3_2(text, [definition("f", {"x": schema})]) == [{"name": "f", "arguments": {"x": value}}]


def test_a_value_without_the_lines_of_a_template_is_taken_as_it_is() -> None:
    said = "<function=f><parameter=x> a </parameter></function>"
    assert QWEN3_CODER(said, STRINGS) == [{"name": "f", "arguments": {"x": " a "}}]


def test_a_call_within_a_value_is_part_of_it() -> None:
    inner = qwen("g", {"y": "2"})
    assert QWEN3_CODER(qwen("f", {"x": inner}), STRINGS) == [{"name": "f", "arguments": {"x": inner}}]


@pytest.mark.parametrize(
    ("form", "said"),
    [
        (GLM, "f is what I would call here"),
        (GLM, "f x=1"),
        (GLM, "f\n<arg_key>x</arg_key>\n<arg_value>1</arg_value>\nand so on"),
        (GLM, "f f"),
        (QWEN3_CODER, "I call <function=f>\n</function>"),
        (QWEN3_CODER, "<function=f>\n<parameter=x>\n1\n</parameter>\n"),
        (QWEN3_CODER, "<function=f>\nx: 1\n</function>"),
        # An end is missing: what is left must not become part of a value.
        (QWEN3_CODER, "<function=f>\n<parameter=x>\n1\n<parameter=y>\n2\n</parameter>\n</function>"),
        (QWEN3_CODER, qwen("f", {"x": "1"}).replace("</function>", "") + qwen("g", {"y": "2"})),
        (QWEN3_CODER, qwen("f", {"x": "1"}).replace("</function>", qwen("f", {"x": "2"})[13:])),
        (MINIMAX_M2, '<invoke name="f">\n<parameter name="x">1</parameter>\n</invoke> as I said'),
    ],
)
def test_what_is_not_wholly_calls_is_none(form: TaggedForm, said: str) -> None:
    with pytest.raises(ValueError, match=r"no call|given twice|does not end"):
        form(said, STRINGS)


def test_json_in_place_of_a_call_is_taken() -> None:
    assert GLM('{"name": "f", "arguments": {"x": "1"}}', STRINGS) == {"name": "f", "arguments": {"x": "1"}}


def goes_on(form: TaggedForm, text: str) -> bool:
    try:
        form(text, STRINGS)
    except ValueError as error:
        return isinstance(error, ValueIsOpen)
    return False


def test_a_text_goes_on_if_it_ends_within_a_value() -> None:
    said = "<function=f>\n<parameter=x>\n<a>"
    assert goes_on(QWEN3_CODER, said)
    assert goes_on(QWEN3_CODER, said + "</parameter>")
    assert not goes_on(QWEN3_CODER, said + "</parameter></function>")
    # Whatever it is that is called, and whatever is wrong with it.
    assert goes_on(QWEN3_CODER, "<function=unknown>\n<parameter=x>\n<a>")
    assert goes_on(QWEN3_CODER, "f <function=f>\n<parameter=x>\n<a>")
    assert not goes_on(GLM, "f is")


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("filling", [" ", "\n", "<", "</parameter>", "</arg_value>", "</parameter>\n<parameter=x>"])
def test_long_texts_take_no_time(family: str, filling: str) -> None:
    # Quadratic work on these would take minutes.
    said = FAMILIES[family].render("f", {"x": filling * (100_000 // len(filling))})
    goes_on(FAMILIES[family].form, said[:-20])
