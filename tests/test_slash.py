"""Lines that begin with a slash, without a terminal."""

from typing import Any

import click
import pytest
import pytest_twisted
from attrs import define, field
from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.defer import Deferred

from osaurus.command.conversation import Conversation
from osaurus.command.errors import Refused
from osaurus.command.slash import COMPLETIONS, HELP, SET, SHOW, Leave, SlashCommands

KNOWN = {"template": "{{ x }}", "license": "", "model_info": {}}


@define
class Asked:
    """A server that knows one model."""

    bodies: list[Any] = field(factory=list)

    async def post(self, path: str, body: Any) -> Any:
        self.bodies.append((path, body))
        if body["model"] == "huge":
            raise Refused("Model not found: huge", 404)
        return KNOWN


def commands(conversation: Conversation | None = None, kept: list[bool] | None = None) -> SlashCommands:
    keep = [] if kept is None else kept
    return SlashCommands(
        conversation or Conversation("tiny"),
        Asked(),  # type: ignore[arg-type]  # what of a client is used
        lambda known: [f"template {known['template']}"],
        keep.append,
    )


@pytest.mark.parametrize("line", ["/bye", "/exit", "/quit", "/bye now"])
@pytest_twisted.ensureDeferred
async def test_leaving(line: str) -> None:
    with pytest.raises(Leave):
        await commands().run(line)


@pytest.mark.parametrize(
    ("line", "said"),
    [("/?", HELP), ("/help", HELP), ("/? set", SET), ("/? /show", SHOW), ("/set", SET), ("/show", SHOW)],
)
@pytest_twisted.ensureDeferred
async def test_help(line: str, said: str) -> None:
    assert await commands().run(line) == said


@pytest_twisted.ensureDeferred
async def test_the_help_names_all_that_can_be_completed() -> None:
    shown = await commands().run("/?")
    assert [name for name in COMPLETIONS if name not in shown and name != "/help"] == []
    for name, text in (("/set", SET), ("/show", SHOW)):
        assert [below for below in COMPLETIONS[name] if f"{name} {below}" not in text] == []


@pytest_twisted.ensureDeferred
async def test_another_model_begins_anew_if_it_is_there() -> None:
    conversation = Conversation("tiny")
    conversation.heard("hi", "Hello")
    with pytest.raises(click.ClickException):
        await commands(conversation).run("/load huge")
    assert (conversation.model, len(conversation.turns)) == ("tiny", 2)
    assert await commands(conversation).run("/load other") == "Now with other"
    assert (conversation.model, conversation.turns) == ("other", [])


@pytest_twisted.ensureDeferred
async def test_what_is_set_is_shown() -> None:
    conversation = Conversation("tiny")
    said = commands(conversation)
    assert await said.run("/show parameters") == "Nothing is set"
    assert await said.run("/show system") == "There is no system message"
    await said.run('/set parameter stop "a b" c')
    await said.run("/set parameter temperature 0")
    await said.run("/set system You are brief.")
    assert await said.run("/show parameters") == 'stop ["a b", "c"]\ntemperature 0.0'
    assert await said.run("/show system") == "You are brief."
    await said.run("/set system")
    assert conversation.system == ""


@pytest_twisted.ensureDeferred
async def test_the_model_is_shown() -> None:
    said = commands()
    assert await said.run("/show info") == "template {{ x }}"
    assert await said.run("/show template") == "{{ x }}"
    assert await said.run("/show license") == "None is known"


@pytest_twisted.ensureDeferred
async def test_switches() -> None:
    conversation, kept = Conversation("tiny"), [True]
    said = commands(conversation, kept)
    for line in ("/set think", "/set think low", "/set nothink", "/set verbose", "/set nohistory", "/set history"):
        await said.run(line)
        if line == "/set think":
            assert conversation.think is True
        if line == "/set think low":
            assert conversation.think == "low"
    assert (conversation.think, said.verbose, kept) == (False, True, [True, False, True])


@pytest_twisted.ensureDeferred
async def test_a_format_is_set_and_no_more() -> None:
    conversation = Conversation("tiny")
    said = commands(conversation)
    assert "must be json" in await said.run("/set format xml")
    assert await said.run("/set format json") == "Answers keep to the format"
    assert conversation.format == "json"
    await said.run("/set noformat")
    assert conversation.format is None


@given(st.text().map(lambda text: f"/{text}"))
def test_no_line_breaks_the_chat(line: str) -> None:
    results: list[Any] = []
    Deferred.fromCoroutine(commands().run(line)).addCallbacks(results.append, lambda f: results.append(f.trap(Leave)))
    assert len(results) == 1
