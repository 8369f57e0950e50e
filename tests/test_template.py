"""Whether a template takes tools is seen by giving it one, and no template can do harm."""

import sys

import pytest
from twisted.logger import capturedLogs, formatEvent

from osaurus.library.template import takes_tools

from .conftest import CHAT_TEMPLATE

HERMES = (
    "{% if tools %}<|im_start|>system\n{% for tool in tools %}{{ tool | tojson }}\n{% endfor %}<|im_end|>{% endif %}"
    + CHAT_TEMPLATE
)


@pytest.mark.parametrize(
    "template",
    [
        HERMES,
        "{% if tools is not none %}{{ tools | tojson(indent=4) }}{% endif %}",
        "{%- for tool in tools or [] if tool.type == 'function' %}{{ tool.function.name }}{% continue %}{% endfor %}",
        "{% generation %}{{ strftime_now('%d') }}{% endgeneration %}{{ tools }}",
    ],
)
def test_a_template_that_names_the_tool_takes_tools(template: str) -> None:
    assert takes_tools(template)


@pytest.mark.parametrize(
    "template",
    [
        CHAT_TEMPLATE,
        "",
        "{# tools are not for this model #}" + CHAT_TEMPLATE,
        "{% if tools %}{{ raise_exception('no tools here') }}{% endif %}",
        "{% if not tools %}{{ raise_exception('no conversation without tools') }}{% endif %}{{ tools }}",
        "{% if tools %}You may use tools.{% endif %}",
        "{{ tools",
        "{{ tools.nothing.at_all }}",
    ],
)
def test_one_that_does_not_takes_none(template: str) -> None:
    assert not takes_tools(template)


@pytest.mark.parametrize(
    "template",
    [
        "{% for a in range(99999) %}{% for b in range(99999) %}{{ tools }}{% endfor %}{% endfor %}",
        "{% set n = namespace(x='tools') %}{% for i in range(60) %}{% set n.x = n.x ~ n.x %}{% endfor %}{{ tools }}",
        "{{ tools }}{{ 'x' * 99999999999 }}",
        "{{ tools }}{{ tools.__class__.__mro__[1].__subclasses__() }}",
    ],
    ids=["for ever", "doubling", "multiplying", "out of the sandbox"],
)
def test_one_that_would_do_harm_takes_none(template: str) -> None:
    assert not takes_tools(template)


@pytest.mark.usefixtures("refused_memory_limits")
def test_a_system_that_bounds_no_memory_finds_it_out_as_well() -> None:
    assert takes_tools("{# where memory is not bounded #}" + HERMES)


def test_what_ends_the_process_is_logged_and_what_a_template_raises_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    with capturedLogs() as events:
        assert not takes_tools("{{ tools.no.such.thing }}")
    assert events == []
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with capturedLogs() as events:
        assert not takes_tools("{# where the process fails #}" + HERMES)
    assert "was not found out: The process that renders" in formatEvent(events[0])


def test_that_nothing_could_be_rendered_for_a_while_is_not_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    template = "{{ tools }} for a while"
    with monkeypatch.context() as patched:
        patched.setattr(sys, "executable", "/nowhere")
        assert not takes_tools(template)
    assert takes_tools(template)
