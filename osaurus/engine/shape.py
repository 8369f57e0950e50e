"""What an answer must be, from what a request asks for and what the model can do.

An answer may be JSON of a schema, or calls of tools, or either; then a grammar holds it from its first token, or from
the end of the model's thoughts. Or it may be text with calls in it, if the model likes; then a grammar holds each call
from the mark that begins it, in the forms where that can be done.

Calls that a request insists on are written in one form, `GENERIC`, unless the model's own is one that a grammar can
hold. There is nothing in it to get wrong: with the name chosen, only the arguments are the model's.
"""

import json
from typing import TYPE_CHECKING

from attrs import define, frozen

from ..chat import GenerationRequest, InvalidRequest, JsonFormat, Tool, ToolUse
from .harmony import HARMONY, HarmonyCalls
from .schemas import SchemaRule, prepared, prepared_for_arguments
from .tool_calls import CallScanner
from .tool_formats import GENERIC, MOST_CALLS, ToolFormat, from_json

if TYPE_CHECKING:
    # Only the engine's thread needs what computes them.
    from .grammars import Grammar, Grammars


@frozen(kw_only=True)
class Shape:
    """What a row's answer must be: `grammar` holds all of it, `call_grammar` each call in it.

    `tools` are those that may be called in it, written as `format` says.
    """

    grammar: "Grammar | None" = None
    call_grammar: "Grammar | None" = None
    format: ToolFormat = GENERIC
    tools: tuple[Tool, ...] = ()
    parallel: bool = True

    def scanner(self) -> CallScanner | None:
        """Return what tells calls from text, None if there are no tools."""
        if not self.tools:
            return None
        most = MOST_CALLS if self.parallel else 1
        if self.format is HARMONY:
            return HarmonyCalls(self.format, self.tools, True, most)
        # Who writes JSON between marks may leave them out.
        marked = self.grammar is not None or self.format.parse not in (None, from_json)
        return CallScanner(self.format, self.tools, marked, most)


@define(eq=False)
class Shaper:
    """Makes shapes for one model. `format` is its own form of calls, None if it has none.

    `grammars` is None for a model whose vocabulary no grammar can be computed for.
    """

    _grammars: "Grammars | None"
    format: ToolFormat | None
    """The model's own form of calls."""

    def shape(self, request: GenerationRequest, *, in_words: bool = False) -> Shape:
        """Return what the answer must be. Raises InvalidRequest for schemas that cannot be used.

        With `in_words` the model is told of tools, and of the form that its calls are to have, in words.
        """
        tools, wanted = request.tools, request.format
        if tools is None:
            return Shape() if wanted is None else Shape(grammar=self._formatted(wanted))
        if tools.forced or wanted is not None:
            held = GENERIC if in_words else self._held
            grammar = self._called(tools, held, None if tools.forced else wanted)
            return Shape(grammar=grammar, format=held, tools=tools.tools, parallel=tools.parallel)
        form = self.format if self.format is not None and not in_words else GENERIC
        if form.parse is not None:
            # What no grammar holds is no less from strangers.
            for tool in tools.tools:
                prepared_for_arguments(tool.parameters, tool.strict, tool.asked_by)
            return Shape(format=form, tools=tools.tools, parallel=tools.parallel)
        if self._grammars is None:
            return Shape(format=ToolFormat(form.begin, form.end, from_json), tools=tools.tools, parallel=tools.parallel)
        return Shape(
            call_grammar=self._call(self._grammars, tools, form),
            format=form,
            tools=tools.tools,
            parallel=tools.parallel,
        )

    @property
    def _held(self) -> ToolFormat:
        """The form in which a grammar holds calls."""
        return self.format if self.format is not None and self.format.parse is None else GENERIC

    def _formatted(self, wanted: JsonFormat) -> "Grammar":
        grammars = self._needed(wanted.asked_by)
        return grammars.compile(["start: schema_0"], [_format_rule(wanted)])

    def _called(self, tools: ToolUse, form: ToolFormat, wanted: JsonFormat | None) -> "Grammar":
        """Return the grammar of calls, or else of a format."""
        grammars = self._needed("tools" if wanted is None else wanted.asked_by)
        rules, schemas = _bodies(grammars, tools)
        begin, end = grammars.literal(form.begin), grammars.literal(form.end)
        several = tools.parallel and tools.only is None
        more = f' ("\\n" call){{0,{MOST_CALLS - 1}}}' if several else ""
        rules = [f'call: {begin} "\\n" body "\\n" {end}', *rules]
        if wanted is None:
            return grammars.compile([f"start: call{more}", *rules], schemas)
        rules = [f"start: call{more} | schema_{len(schemas)}", *rules]
        return grammars.compile(rules, [*schemas, _format_rule(wanted)])

    def _call(self, grammars: "Grammars", tools: ToolUse, form: ToolFormat) -> "Grammar":
        """Return the grammar of what stands behind the mark that begins a call."""
        rules, schemas = _bodies(grammars, tools)
        return grammars.compile(
            [f"start: SPACE? body SPACE? {grammars.literal(form.end)}", "SPACE: /[ \\n]{1,3}/", *rules], schemas
        )

    def _needed(self, asked_by: str) -> "Grammars":
        if self._grammars is None:
            raise InvalidRequest(
                f"{asked_by}: this model's answers cannot be held to a schema, its tokenizer is of another kind; "
                "leave it out",
                param=asked_by,
            )
        return self._grammars


def _bodies(grammars: "Grammars", tools: ToolUse) -> tuple[list[str], list[SchemaRule]]:
    """Return the rules for what stands between the marks of a call, with the schemas of arguments."""
    callable_ = [tool for tool in tools.tools if tools.only in (None, tool.name)]
    rules = [
        f"call_{number}: "
        + grammars.literal(f'{{"name": {json.dumps(tool.name, ensure_ascii=False)}, "arguments": ')
        + f' schema_{number} "}}"'
        for number, tool in enumerate(callable_)
    ]
    schemas = [
        SchemaRule(
            schema=prepared_for_arguments(tool.parameters, tool.strict, tool.asked_by),
            strict=tool.strict,
            asked_by=tool.asked_by,
        )
        for tool in callable_
    ]
    return ["body: " + " | ".join(f"call_{number}" for number in range(len(callable_))), *rules], schemas


def _format_rule(wanted: JsonFormat) -> SchemaRule:
    schema = prepared(wanted.schema, wanted.strict, wanted.asked_by)
    return SchemaRule(schema=schema, strict=wanted.strict, asked_by=wanted.asked_by)
