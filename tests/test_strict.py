"""Strict reading of bodies: the type that is asked for or an error that names the field, never anything else."""

import json
from collections.abc import Callable
from typing import Annotated, Any

import attrs
import pytest
from attrs import field, frozen
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from osaurus.chat import InvalidRequest
from osaurus.dialects import ollama, openai
from osaurus.dialects.strict import Between, Items, OneOf, parse


@frozen(kw_only=True)
class Inner:
    """Something inside."""

    flag: bool = False
    need: str


@frozen(kw_only=True)
class Body:
    """One field of each kind."""

    name: str
    count: Annotated[int, Between(1, 2**53 + 1)] = 3
    ratio: Annotated[float, Between(-1, 1)] = 0.5
    flag: bool = True
    words: Annotated[list[Annotated[str, Items(1, 3)]], Items(0, 2)] = field(factory=list)
    either: str | list[int] | None = None
    inner: Inner | None = None
    inners: list[Inner] = field(factory=list)
    anything: Any = None


def read(**fields: Any) -> Body:
    """Read a body with these fields."""
    return parse(Body, json.dumps({"name": "n", **fields}).encode())


def refusal(body: bytes) -> InvalidRequest:
    """Return what a body is refused with."""
    with pytest.raises(InvalidRequest) as caught:
        parse(Body, body)
    return caught.value


def test_values_have_the_types_that_are_asked_for() -> None:
    found = read(
        name="é\U0001f995",
        count=7,
        ratio=1,
        flag=False,
        words=["a", "bcd"],
        either=[1, 2],
        inner={"flag": True, "need": "x"},
        inners=[{"need": "y"}],
        anything={"deep": [None, 1.5]},
    )
    assert found == Body(
        name="é\U0001f995",
        count=7,
        ratio=1.0,
        flag=False,
        words=["a", "bcd"],
        either=[1, 2],
        inner=Inner(flag=True, need="x"),
        inners=[Inner(need="y")],
        anything={"deep": [None, 1.5]},
    )
    assert isinstance(found.ratio, float)


def test_null_means_absent() -> None:
    fields = ["count", "ratio", "flag", "words", "either", "inner", "inners", "anything"]
    assert read(**dict.fromkeys(fields)) == read() == Body(name="n")


def test_unknown_keys_are_ignored() -> None:
    assert read(unknown=1, inner={"need": "x", "unknown": [2]}) == read(inner={"need": "x"})


def test_either_of_two_types_will_do() -> None:
    assert read(either="one").either == "one"
    assert read(either=[1]).either == [1]


@pytest.mark.parametrize(
    ("fields", "param", "expected"),
    [
        ({"name": 1}, "name", "must be a string, not a number"),
        ({"name": ["n"]}, "name", "must be a string, not an array"),
        ({"count": "3"}, "count", "must be a whole number, not a string"),
        ({"count": 3.7}, "count", "must be a whole number, not 3.7"),
        ({"count": True}, "count", "must be a whole number, not a boolean"),
        ({"ratio": "0.5"}, "ratio", "must be a number, not a string"),
        ({"ratio": False}, "ratio", "must be a number, not a boolean"),
        ({"ratio": {}}, "ratio", "must be a number, not an object"),
        ({"flag": "false"}, "flag", "must be a boolean, not a string"),
        ({"flag": 0}, "flag", "must be a boolean, not a number"),
        ({"words": "ab"}, "words", "must be an array, not a string"),
        ({"words": {"0": "a"}}, "words", "must be an array, not an object"),
        ({"words": ["a", 2]}, "words[1]", "must be a string, not a number"),
        ({"words": ["a", None]}, "words[1]", "must be a string, not null"),
        ({"either": 5}, "either", "must be a string, not a number"),
        ({"either": ["x"]}, "either[0]", "must be a whole number, not a string"),
        ({"inner": "x"}, "inner", "must be an object, not a string"),
        ({"inner": []}, "inner", "must be an object, not an array"),
        ({"inner": {}}, "inner.need", "is required"),
        ({"inner": {"need": None}}, "inner.need", "is required"),
        ({"inner": {"need": "x", "flag": 1}}, "inner.flag", "must be a boolean, not a number"),
        ({"inners": [{"need": "x"}, {"need": 5}]}, "inners[1].need", "must be a string, not a number"),
        ({"inners": [None]}, "inners[0]", "must be an object, not null"),
    ],
)
def test_a_wrong_type_names_its_field(fields: dict[str, Any], param: str, expected: str) -> None:
    problem = refusal(json.dumps({"name": "n", **fields}).encode())
    assert (problem.param, problem.message) == (param, f"{param}: {expected}")


@pytest.mark.parametrize("body", [b"{}", b'{"name":null}'])
def test_what_is_required_is_named(body: bytes) -> None:
    assert (refusal(body).param, refusal(body).message) == ("name", "name: is required")


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"count": 0}, "count"),
        ({"count": -(10**400)}, "count"),
        ({"ratio": 1.01}, "ratio"),
        ({"ratio": -2}, "ratio"),
        ({"ratio": 10**400}, "ratio"),
        ({"words": ["a", "b", "c"]}, "words"),
        ({"words": ["long"]}, "words[0]"),
        ({"words": [""]}, "words[0]"),
    ],
)
def test_what_is_out_of_bounds_names_its_field(fields: dict[str, Any], param: str) -> None:
    assert refusal(json.dumps({"name": "n", **fields}).encode()).param == param


def test_bounds_are_included() -> None:
    assert read(count=1).count == 1
    assert read(count=2**53 + 1).count == 2**53 + 1
    assert read(ratio=-1).ratio == -1
    assert read(words=["abc", "d"]).words == ["abc", "d"]


@pytest.mark.parametrize("count", [2**53 + 2, 10**400], ids=["too large by one", "too large for a float"])
def test_a_whole_number_out_of_bounds_is_told_the_bounds_to_the_unit(count: int) -> None:
    problem = refusal(json.dumps({"name": "n", "count": count}).encode())
    assert f"must be between 1 and {2**53 + 1}" in problem.message


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b"", "not JSON"),
        (b"{", "not JSON"),
        (b"{'name': 'n'}", "not JSON"),
        (b'{"name": "n",}', "not JSON"),
        (b'{"name": "n"} {}', "not JSON"),
        (b'\xef\xbb\xbf{"name": "n"}', "not JSON"),
        (b'{"name": "n", "ratio": NaN}', "NaN"),
        (b'{"name": "n", "ratio": Infinity}', "Infinity"),
        (b'{"name": "n", "unknown": -Infinity}', "-Infinity"),
        (b'{"name": "\xff"}', "not UTF-8"),
        (b'{"name": "\xed\xa0\x80"}', "not UTF-8"),
        ('{"name": "n"}'.encode("utf-16"), "not UTF-8"),
        (b'{"name": "n", "unknown": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", "nested too deeply"),
        (b'{"unknown":' * 100_000, "nested too deeply"),
        (b'{"name": "n", "count": ' + b"9" * 5000 + b"}", "holds a whole number of more than 4300 digits"),
    ],
)
def test_what_is_not_json_is_refused(body: bytes, said: str) -> None:
    problem = refusal(body)
    assert said in problem.message
    assert problem.param is None


@pytest.mark.parametrize(
    ("body", "what"),
    [
        (b"null", "null"),
        (b"true", "a boolean"),
        (b"1", "a number"),
        (b"1.5", "a number"),
        (b'"name"', "a string"),
        (b'[{"name": "n"}]', "an array"),
    ],
)
def test_a_body_is_an_object(body: bytes, what: str) -> None:
    assert refusal(body).message == f"The body must be a JSON object, not {what}"


@pytest.mark.parametrize("text", [r"\ud800", r"a\udfffb", r"\udc00\ud800"])
def test_half_a_surrogate_pair_is_refused(text: str) -> None:
    assert refusal(b'{"name": "' + text.encode() + b'"}').param == "name"


def test_a_whole_surrogate_pair_is_a_character() -> None:
    assert parse(Body, rb'{"name": "\ud83e\udd95"}').name == "\U0001f995"


def test_a_number_that_overflows_is_refused() -> None:
    assert refusal(b'{"name": "n", "ratio": 1e999}').message == "ratio: is too large a number"
    assert refusal(b'{"name": "n", "count": 1e999}').param == "count"


KEYS = sorted(
    {"model", "messages", "role", "content", "type", "text", "images", "tool_calls", "function_call"}
    | {"options", "keep_alive", "stream", "stream_options", "include_usage", "max_tokens", "max_completion_tokens"}
    | {"temperature", "top_p", "top_k", "min_p", "seed", "stop", "num_predict", "num_ctx", "n", "unknown"}
    | {field.name for body in (openai.ChatBody, ollama.ChatBody, ollama.Options) for field in attrs.fields(body)}
)
MESSAGE = {"role": "user", "content": "hi"}

# Characters include halves of surrogate pairs, numbers NaN and those beyond any machine's.
scalars = (
    st.sampled_from([None, False, True, 0, 1, -1, 10**400, 0.0, "user", "assistant", "text", "0s", ""])
    | st.integers()
    | st.floats()
    | st.text(st.characters(), max_size=5)
)
keys = st.sampled_from([*KEYS, "", "\ud800", "__class__"])
flat = scalars | st.lists(scalars, max_size=2) | st.dictionaries(keys, scalars, max_size=2)
values = flat | st.lists(flat, max_size=2) | st.dictionaries(keys, flat, max_size=3)
messages = st.lists(
    st.fixed_dictionaries({"role": scalars, "content": values}) | st.dictionaries(keys, values, max_size=3)
).map(lambda given: [MESSAGE, *given])
# Mostly right, so that what is wrong is reached.
bodies = st.dictionaries(keys, values, max_size=5).flatmap(
    lambda fields: st.sampled_from(
        [fields, {"model": "m", "messages": [MESSAGE], **fields}, {"model": "m", "messages": [], "options": fields}]
    )
) | st.builds(lambda turns: {"model": "m", "messages": turns}, messages)
# Drawn, not parametrized: pytest-twisted cannot run a test that is both parametrized and given.
dialects = st.sampled_from([openai.chat_call, ollama.chat_call])


def read_or_refuse(chat_call: Callable[[bytes], Any], body: bytes) -> None:
    """Read a body; what it is refused with must be fit to be told."""
    try:
        chat_call(body)
    except InvalidRequest as error:
        problem = error
    else:
        return
    problem.message.encode("utf-8")
    assert problem.param is None or problem.param.split(".")[0].split("[")[0] in KEYS


@hypothesis_settings(deadline=None, max_examples=400)
@given(chat_call=dialects, body=bodies | values)
def test_any_json_is_read_or_refused(chat_call: Callable[[bytes], Any], body: Any) -> None:
    read_or_refuse(chat_call, json.dumps(body).encode())


@hypothesis_settings(deadline=None, max_examples=200)
@given(chat_call=dialects, body=st.binary())
def test_any_bytes_are_read_or_refused(chat_call: Callable[[bytes], Any], body: bytes) -> None:
    read_or_refuse(chat_call, body)


@hypothesis_settings(deadline=None, max_examples=200)
@given(chat_call=dialects, at=st.integers(0, 200), byte=st.binary(max_size=2))
def test_a_damaged_body_is_read_or_refused(chat_call: Callable[[bytes], Any], at: int, byte: bytes) -> None:
    body = json.dumps({"model": "m", "messages": [MESSAGE], "stop": ["é", "\u2028"], "stream": True, "top_p": 0.5})
    whole = body.encode()
    read_or_refuse(chat_call, whole[: at % len(whole)] + byte + whole[at % len(whole) + 1 :])


def test_of_many_bad_entries_only_the_first_is_looked_at() -> None:
    with pytest.raises(InvalidRequest) as refused:
        parse(Body, json.dumps({"name": "n", "inners": [1] * 1000}).encode())
    assert refused.value.param == "inners[0]"
    cause = refused.value.__cause__
    assert isinstance(cause, BaseExceptionGroup)

    def leaves(group: BaseException) -> int:
        return sum(map(leaves, group.exceptions)) if isinstance(group, BaseExceptionGroup) else 1

    assert leaves(cause) == 1


def test_what_is_too_long_is_not_looked_into() -> None:
    with pytest.raises(InvalidRequest, match="between 0 and 2 entries, not 3"):
        parse(Body, b'{"name": "n", "words": [1, 2, 3]}')


def test_a_body_that_would_take_too_long_to_parse_is_refused_with_the_limit() -> None:
    problem = refusal(b'{"name": "n", "unknown": [' + b"{}," * 2**20 + b"0]}")
    assert problem.message.startswith("The body has more than 500,000 values")
    assert problem.param is None


@frozen(kw_only=True)
class Chosen:
    """A field of few values."""

    one: Annotated[str, OneOf(("a", "b"))] = "a"


@pytest.mark.parametrize(
    ("cls", "body"),
    [
        (Body, b'{"name": "n", "count": ' + b"9" * 4000 + b"}"),
        (Chosen, b'{"one": "' + b"x" * 10_000 + b'"}'),
        (openai.ChatBody, b'{"model": "m", "messages": [{"role": "' + b"x" * 10_000 + b'"}]}'),
    ],
)
def test_of_a_long_value_an_error_repeats_the_beginning(cls: type[Any], body: bytes) -> None:
    with pytest.raises(InvalidRequest, match=r"not '?[9x]{50,64}…$") as refused:
        parse(cls, body)
    assert len(refused.value.message) < 250


def test_a_short_value_is_repeated_whole() -> None:
    with pytest.raises(InvalidRequest, match=r"one: must be one of a, b, not 'c'$"):
        parse(Chosen, b'{"one": "c"}')
