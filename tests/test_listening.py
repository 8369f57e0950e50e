"""What is wrong with an endpoint string, in words for whoever wrote it."""

import pytest
from twisted.internet.testing import MemoryReactorClock

from osaurus.listening import BadEndpoint, check


def reason(endpoint: str) -> str:
    with pytest.raises(BadEndpoint) as refused:
        check(MemoryReactorClock(), endpoint)
    return str(refused.value)


@pytest.mark.parametrize(
    "endpoint", ["tcp:1337:interface=127.0.0.1", r"tcp6:1337:interface=\:\:1", "unix:/run/socket:mode=660"]
)
def test_what_can_be_listened_on_is_let_through(endpoint: str) -> None:
    check(MemoryReactorClock(), endpoint)


def test_a_kind_that_nobody_knows_is_told_with_the_nearest() -> None:
    assert reason("tpc:18349") == "it begins with 'tpc', which is no kind of endpoint; did you mean tcp?"


def test_of_one_unlike_any_the_kinds_are_told() -> None:
    assert "'127.0.0.1', which is no kind of endpoint; there are tcp, tcp6" in reason("127.0.0.1:1337")


def test_a_part_that_nobody_knows_is_told_with_the_nearest() -> None:
    expected = "'interfac' is no part of such an endpoint; did you mean interface?"
    assert reason("tcp:18349:interfac=127.0.0.1") == expected
    assert reason("unix:/run/socket:zone=9") == "'zone' is no part of such an endpoint"


@pytest.mark.parametrize(
    ("endpoint", "said"),
    [
        ("tcp", "'port' is missing"),
        ("tcp:http", "'http' is no number"),
        ("unix:/run/socket:mode=999", "'999' is no octal number"),
    ],
)
def test_what_is_missing_or_no_number_is_named(endpoint: str, said: str) -> None:
    assert reason(endpoint) == said


@pytest.mark.parametrize("endpoint", ["tcp:1337:interface=::1", "tcp:1:2:3:4"])
def test_colons_that_were_not_meant_to_divide_are_told_how_to_be_written(endpoint: str) -> None:
    assert r"\:" in reason(endpoint)


def test_all_else_is_said_as_it_comes() -> None:
    assert "'/nowhere.pem'" in reason("ssl:0:privateKey=/nowhere.pem")
