"""What becomes of a request for answers, as the log has it."""

from typing import Any

import pytest
from attrs import evolve

from osaurus.chat import (
    CallPiece,
    Failed,
    Finished,
    GenerationRequest,
    Message,
    Piece,
    RateLimitExceeded,
    Started,
    Text,
    Timings,
    Tokens,
    ToolCall,
    Usage,
)
from osaurus.serving.account import MOST_CONTENT, Account

MESSAGES = (Message("system", "Be brief."), Message("user", "Hello"))
SECOND = 10**9


def asked(**changes: Any) -> GenerationRequest:
    fields: dict[str, Any] = {"messages": MESSAGES, **changes}
    return GenerationRequest(model="tiny", max_tokens=8, max_tokens_may_shrink=True, **fields)


def end(choice: int = 0, total: int = 10, **usage: int) -> Finished:
    return Finished(
        reason="stop",
        usage=Usage(**{"prompt_tokens": 30, "completion_tokens": 5, "cached_tokens": 20, **usage}),
        timings=Timings(total=total * SECOND, load=SECOND, prompt=2 * SECOND, generation=3 * SECOND),
        choice=choice,
    )


def test_a_whole_answer_has_its_tokens_and_where_the_time_went() -> None:
    account = Account([asked()])
    account.model = "org/tiny"
    for event in (Started(30), Piece("Hi"), end()):
        account.hear(event)
    assert account.told() == {
        "model": "org/tiny",
        "prompt_tokens": 30,
        "cached_tokens": 20,
        "completion_tokens": 5,
        "finish_reason": "stop",
        "load_seconds": 1.0,
        "queue_seconds": 4.0,
        "prefill_seconds": 2.0,
        "decode_seconds": 3.0,
    }


def test_choices_of_one_prompt_have_read_it_once() -> None:
    account = Account([asked(), asked()])
    account.hear(end(1, total=12))
    account.hear(end(0, total=10, completion_tokens=7))
    told = account.told()
    assert (told["prompt_tokens"], told["cached_tokens"], told["completion_tokens"]) == (30, 20, 12)
    assert told["finish_reason"] == "stop,stop"
    # Of the one that took longest.
    assert told["queue_seconds"] == 6.0


def test_different_prompts_have_been_read_each() -> None:
    first = asked(messages=(), raw=Text(text="one"))
    account = Account([first, evolve(first, raw=Text(text="two"))])
    account.hear(end(0))
    account.hear(end(1))
    assert account.told()["prompt_tokens"] == 60


def test_an_answer_that_was_broken_off_has_what_is_known() -> None:
    account = Account([asked()])
    assert account.told() == {}
    account.hear(Started(30))
    account.hear(Piece("Hi"))
    assert account.told() == {"prompt_tokens": 30}


def test_an_error_is_told_by_its_code() -> None:
    account = Account([asked()])
    account.hear(Failed(RateLimitExceeded("too many")))
    assert account.told() == {"error": "rate_limit_exceeded"}


def test_nobody_is_told_what_was_said_unless_it_was_to_be_kept() -> None:
    account = Account([asked()])
    account.hear(Piece("a secret"))
    assert "secret" not in repr(account.told())
    assert "secret" not in repr(account._answer)


@pytest.mark.parametrize(
    ("request_", "prompt"),
    [
        (asked(), "system: Be brief.\nuser: Hello"),
        (asked(messages=(), raw=Text(text="Once")), "Once"),
        (asked(messages=(), raw=Tokens((1, 2))), "1 2"),
        (
            asked(messages=(Message("assistant", "", calls=(ToolCall("look", '{"up":1}'),)),)),
            'assistant:  look{"up":1}',
        ),
    ],
)
def test_what_was_asked_and_answered_is_told_where_it_is_kept(request_: GenerationRequest, prompt: str) -> None:
    account = Account([request_], keeps_content=True)
    for event in (
        Piece("", reasoning="Well. "),
        Piece("Hi"),
        Piece(" there", calls=(CallPiece(0, "look", "{}"),)),
    ):
        account.hear(event)
    told = account.told()
    assert (told["prompt"], told["answer"]) == (prompt, "Well. Hi therelook{}")


def test_of_a_long_prompt_the_end_is_told_and_of_a_long_answer_the_beginning() -> None:
    account = Account([asked(messages=(Message("user", "x" * MOST_CONTENT + "y"),))], keeps_content=True)
    account.hear(Piece("a"))
    for _ in range(10):
        account.hear(Piece("b" * MOST_CONTENT))
    told = account.told()
    assert told["prompt"] == "x" * (MOST_CONTENT - 1) + "y"
    assert told["answer"] == "a" + "b" * (MOST_CONTENT - 1)
    assert len(account._answer) < 3 * MOST_CONTENT
