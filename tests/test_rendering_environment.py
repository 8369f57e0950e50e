"""What chat templates find in their environment: what Transformers has in it, and no way out."""

import json
import re
from datetime import datetime
from typing import Any

import pytest
from jinja2 import TemplateError

from osaurus.rendering.environment import WritesTooMuch, render


def rendered(template: str, **variables: Any) -> str:
    return render(template, variables, 1000)


VALUE = {"b": "<é> & 'x'", "a": [1, None]}


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ("", {}),
        ("(indent=2)", {"indent": 2}),
        ("(ensure_ascii=true)", {"ensure_ascii": True}),
        ("(true, 1)", {"ensure_ascii": True, "indent": 1}),
        ("(separators=(',', ':'), sort_keys=true)", {"separators": (",", ":"), "sort_keys": True}),
    ],
)
def test_json_is_as_python_writes_it(options: str, expected: dict[str, Any]) -> None:
    assert rendered(f"{{{{ value | tojson{options} }}}}", value=VALUE) == json.dumps(
        VALUE, **{"ensure_ascii": False, **expected}
    )


def test_blocks_leave_no_lines_behind() -> None:
    assert rendered("{% if true %}\n  {% if true %}\nx\n  {% endif %}\n{% endif %}\ny\n") == "x\ny"


def test_loops_may_be_left_and_gone_on_with() -> None:
    template = (
        "{% for i in range(9) %}{% if i == 2 %}{% continue %}{% elif i == 4 %}{% break %}{% endif %}{{ i }}{% endfor %}"
    )
    assert rendered(template) == "013"


def test_what_is_marked_for_training_stands_as_it_is_and_what_is_set_within_stays_there() -> None:
    template = "{% set x = 'o' %}{% generation %}{% set x = 'i' %}{{ x }}{% endgeneration %}{{ x }}"
    assert rendered(template) == "io"


def test_a_template_may_refuse() -> None:
    with pytest.raises(TemplateError, match=r"^not so$"):
        rendered("{{ raise_exception('not so') }}")


def test_it_is_the_time_that_it_is() -> None:
    assert rendered("{{ strftime_now('%Y') }}") in {str(datetime.now().year - late) for late in (0, 1)}
    assert re.fullmatch(r"\d\d [A-Z][a-z]{2} \d{4}", rendered("{{ strftime_now('%d %b %Y') }}"))


def test_namespaces_and_dictionaries_are_made() -> None:
    template = "{% set n = namespace({'self': 0}, a=1) %}{% set n.b = 2 %}{{ n.a }}{{ n.b }}{{ n.self }}"
    assert rendered(template) == "120"
    assert rendered("{{ dict({'a': 1}, b=2) }}{{ dict.fromkeys('xy', 0) }}") == "{'a': 1, 'b': 2}{'x': 0, 'y': 0}"


@pytest.mark.parametrize(
    "template",
    [
        "{{ messages.__class__.__mro__ }}",
        "{{ ''.__class__.__base__.__subclasses__() }}",
        "{{ cycler.__init__.__globals__ }}",
        "{{ raise_exception.__globals__.sys }}",
        "{{ '{0.__class__.mro}'.format(1)() }}",
        "{{ messages.append(1) }}",
        "{% set n = namespace(__class__=1) %}",
        "{% set n = namespace({'_x': 1}) %}",
        "{% set n = namespace() %}{% set n.__class__ = 1 %}",
        "{{ dict.mro() }}",
        "{{ dict.__subclasses__() }}",
        "{{ namespace.mro() }}",
        "{% include '/etc/passwd' %}",
        "{% import 'os' as os %}",
    ],
)
def test_there_is_no_way_out(template: str) -> None:
    with pytest.raises((TemplateError, TypeError)):
        rendered(template, messages=[])


def test_what_is_written_is_bounded_and_no_more_is_rendered() -> None:
    assert render("{{ 'x' * 10 }}", {}, 10) == "x" * 10
    with pytest.raises(WritesTooMuch):
        render("{{ 'x' * 11 }}", {}, 10)
    with pytest.raises(WritesTooMuch):
        render("{% for i in range(9) %}xx{% endfor %}{{ raise_exception('too late') }}", {}, 10)
