"""Lines of the log: an event is one, whatever is in it, and a traceback is whole."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from twisted.logger import Logger, LogLevel, capturedLogs
from twisted.python import log as legacy
from twisted.python.failure import Failure

from osaurus.logs.lines import human_line, json_line

# In seconds since the epoch: 2024-03-15T13:30:45.250Z.
NOON = 1710509445.25


def event(text: str = "{what} went well", *, namespace: str = "osaurus.somewhere", **fields: Any) -> dict[str, Any]:
    return {
        "log_format": text,
        "log_namespace": namespace,
        "log_level": LogLevel.info,
        "log_time": NOON,
        "log_logger": Logger(),
        "log_source": None,
        **fields,
    }


def failure(text: str) -> Failure:
    try:
        raise ValueError(text)
    except ValueError:
        return Failure()


def test_for_people_a_line_has_the_time_the_place_the_text_and_what_else_is_known() -> None:
    line = human_line(event(what="It", seconds=0.5, model="org/tiny", asked="a b", nothing=None))
    time, _, rest = line.partition(" ")
    assert time.startswith("2024-03-1")
    assert rest == '[osaurus.somewhere#info] It went well seconds=0.5 model=org/tiny asked="a b"\n'


@pytest.mark.parametrize(
    ("value", "spelled"),
    [
        ("", 'x=""'),
        ("a=b", 'x="a=b"'),
        ('a "b"', 'x="a \\"b\\""'),
        ("a\nb", 'x="a\\nb"'),
        (True, "x=true"),
        (("a", 1), 'x=["a", 1]'),
        (b"raw", "x=b'raw'"),
    ],
)
def test_for_people_a_value_cannot_be_taken_for_several(value: object, spelled: str) -> None:
    assert human_line(event("said", x=value)).endswith(f" said {spelled}\n")


def test_for_people_a_word_of_the_text_cannot_be_taken_for_several() -> None:
    given = event("{what} is {how} done", what="/a b=c", how="well", log_words=("what", "how"))
    assert human_line(given).endswith('] "/a b=c" is well done\n')
    assert json.loads(json_line(given))["message"] == "/a b=c is well done"


def test_for_programs_a_line_is_an_object() -> None:
    line = json_line(event(what="It", seconds=0.5, ids=("a", "b"), thing=LogLevel.info))
    assert json.loads(line) == {
        "time": "2024-03-15T13:30:45.250Z",
        "level": "info",
        "namespace": "osaurus.somewhere",
        "message": "It went well",
        "what": "It",
        "seconds": 0.5,
        "ids": ["a", "b"],
        "thing": str(LogLevel.info),
    }


def test_what_an_event_has_under_a_name_of_the_lines_own_is_left_out() -> None:
    assert json.loads(json_line(event("said", message="forged", time="never")))["message"] == "said"


@given(st.text())
def test_whatever_is_in_an_event_it_is_one_printable_line(text: str) -> None:
    given = event("said {what}", what=text, other=text)
    for line in (human_line(given), json_line(given)):
        assert line.endswith("\n")
        assert line[:-1].isprintable()
        line.encode("utf-8")
    assert json.loads(json_line(given))["other"] == text


@given(st.text())
def test_lines_of_a_traceback_cannot_be_taken_for_events(text: str) -> None:
    given = event("failed", log_failure=failure(text))
    first, *others = human_line(given)[:-1].split("\n")
    assert first.endswith("] failed")
    assert all(line.startswith("\t") and line[1:].isprintable() for line in others)
    assert json_line(given).count("\n") == 1


def test_a_traceback_is_whole_in_both_forms() -> None:
    given = event("failed", log_failure=failure("for a reason"))
    for text in (human_line(given), json.loads(json_line(given))["traceback"]):
        assert "Traceback (most recent call last)" in text
        assert "raise ValueError(text)" in text
        assert "ValueError: for a reason" in text


def test_an_exception_that_cannot_be_told_is_an_event_nevertheless() -> None:
    class Untellable(Failure):
        def getTraceback(self, *args: object, **options: object) -> str:
            raise RuntimeError("no")

    given = event("failed", log_failure=Untellable(ValueError("a")))
    assert "There is no traceback: RuntimeError" in human_line(given)


def test_of_events_of_others_only_the_text_is_told() -> None:
    given = event("{thing} starts", namespace="twisted.somewhere", thing="It", other=object())
    assert human_line(given).endswith("] It starts\n")
    assert set(json.loads(json_line(given))) == {"time", "level", "namespace", "message"}


def test_what_twisted_logs_in_its_old_way_is_told_once() -> None:
    with capturedLogs() as captured:
        legacy.msg("an old message")
        legacy.err(failure("for a reason"), "Something failed")
    message, error = captured
    assert human_line(message).endswith("[log_legacy#info] an old message\n")
    assert human_line(error).count("ValueError: for a reason") == 1
    assert json.loads(json_line(error))["message"] == "Something failed"
    assert "for a reason" in json.loads(json_line(error))["traceback"]


def test_an_event_that_says_nothing_is_no_line() -> None:
    assert human_line({"log_time": NOON}) == json_line({"log_time": NOON}) == ""
