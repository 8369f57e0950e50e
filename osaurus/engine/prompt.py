"""From a conversation to the tokens that the model reads, through the model's own chat template.

The difficulty is text that spells a special token: `<|im_end|><|im_start|>system` in a user's message must reach the
model as those characters, not as the end of the message. The template is rendered with the text in place (templates
trim, split and compare it), but with a mark after the first character of every such spelling; the rendered prompt is
cut at the marks, and the parts are tokenised one by one, so that no special token of a user's spelling ever stands
whole in what the tokeniser sees. Text without such spellings, nearly all of it, is tokenised in one go, exactly as
the model was trained. Rejected: placeholders for whole messages (templates look into them), and deleting the spellings
(people ask about them).

Where a message ends in the prompt is for the template to know as well. What other prompts will have in common with this
one is found by rendering what they may be, and comparing tokens: whatever the template does, a boundary is true.

All of this is plain Python and safe on any thread.
"""

import json
import re
import secrets
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any

from attrs import define, evolve, field, frozen
from tokenizers import Tokenizer

from ..chat import (
    ApiError,
    ContextLengthExceeded,
    GenerationRequest,
    InvalidRequest,
    Message,
    TemplateStopped,
    Text,
    Thinking,
    Tokens,
    ToolUse,
)
from ..model_config import FILL_IN_MARKS
from .conversation import ChatTemplate, TemplateAbilities, as_given, definitions, in_turns, told
from .harmony import effort_told, opening
from .shape import Shape, Shaper
from .thoughts import ThoughtTags

# A mark is of characters from this plane of Unicode, which is for private use; drawn, so that no text can foresee it.
PRIVATE_USE = range(0xF0000, 0xFFFFE)
MARK_LENGTH = 4

# No conversation that a model can read is rendered to so many characters.
MOST_CHARACTERS = 2**25

# A boundary nearer to the beginning is not worth stopping at: many templates put as much before everything.
LEAST_BOUNDARY = 8


class TemplateRefuses(InvalidRequest):
    """The model's chat template does not render the conversation; the message says why."""


@frozen
class EncodedPrompt:
    """A prompt's tokens, and the most tokens that its answer may have.

    `boundaries` are where messages end, in tokens, as far as anybody wants to know. `thinking` says that it ends
    within a thought; None that it is not a conversation, so that nothing is known of thoughts. `shape` is what the
    answer must be.
    """

    tokens: list[int]
    max_tokens: int
    boundaries: tuple[int, ...] = ()
    thinking: bool | None = None
    shape: Shape = field(factory=Shape)


@frozen
class Telling:
    """How a conversation is told to a template: as it is able to render it, with these variables."""

    abilities: TemplateAbilities
    variables: dict[str, Any]


@define
class PromptEncoder:
    """Renders and tokenises conversations for one model.

    `context_length` is the model's, in tokens; `limit_reason` says why it is less than it could be. `bounded` says that
    boundaries are wanted, which takes rendering a prompt several times. `thought_tags` are those of a model that can
    think; one that writes messages on channels, `harmony`, has none. `shaper` makes of what is asked for what the
    answer must be. A base model has no template: it continues text. The network knows so many tokens,
    `network_size`; the tokenizer of a fine-tuned model may have more, and MLX would read beyond its weights.
    """

    _tokenizer: Tokenizer
    _template: ChatTemplate | None
    _special: Sequence[str]
    _context_length: int
    _limit_reason: str = ""
    _bounded: bool = False
    _thought_tags: ThoughtTags | None = None
    _shaper: Shaper = field(factory=lambda: Shaper(None, None))
    _network_size: int = sys.maxsize
    _harmony: bool = False
    _spelling: re.Pattern[str] | None = field(init=False)
    _any_special: re.Pattern[str] = field(init=False)
    _longest: int = field(init=False)
    _tokens: int = field(init=False)
    _fill_in_marks: tuple[str, str, str] | None = field(init=False)
    _continuing: Tokenizer = field(init=False)

    @_spelling.default
    def _spelling_default(self) -> re.Pattern[str] | None:
        tokens = sorted((token for token in self._special if len(token) > 1), key=len, reverse=True)
        if not tokens:
            return None
        # Only what follows is looked at, so spellings that overlap are each found.
        return re.compile("|".join(f"{re.escape(token[0])}(?={re.escape(token[1:])})" for token in tokens))

    @_any_special.default
    def _any_special_default(self) -> re.Pattern[str]:
        return re.compile("|".join(map(re.escape, self._special)))

    @_longest.default
    def _longest_default(self) -> int:
        return _longest_of(self._tokenizer.get_vocab())

    @_tokens.default
    def _count_tokens(self) -> int:
        # There may be holes: what counts is the last.
        return 1 + max(self._tokenizer.get_vocab().values(), default=-1)

    @_fill_in_marks.default
    def _fill_in_marks_default(self) -> tuple[str, str, str] | None:
        vocabulary = self._tokenizer.get_vocab()
        return next((marks for marks in FILL_IN_MARKS if all(mark in vocabulary for mark in marks)), None)

    @_continuing.default
    def _continuing_default(self) -> Tokenizer:
        return without_prefix(self._tokenizer)

    @cached_property
    def _abilities(self) -> TemplateAbilities:
        # Not when the model is loaded: the engine's thread waits for nobody's template.
        return TemplateAbilities.found_in(self._conversing)

    @property
    def _conversing(self) -> ChatTemplate:
        if self._template is None:
            raise InvalidRequest(
                "This model has no chat template, so that it cannot hold a conversation. It continues text: "
                "POST /v1/completions, or /api/generate with raw",
                param="model",
            )
        return self._template

    def encode(self, request: GenerationRequest) -> EncodedPrompt:
        """Return the prompt's tokens, the most tokens that the answer may have, and the prompt's boundaries.

        Boundaries are how many tokens this prompt is likely to have in common with others, ascending, each less than
        all: behind the system message, where the turn before was answered, and behind the last message.
        There are none unless they are wanted.

        Raises InvalidRequest if the template refuses the conversation, a token that is given does not exist or a
        schema cannot be used, ContextLengthExceeded if the prompt does not fit, and what else a ChatTemplate raises.
        """
        param = request.prompt_field
        self._check_tokens("logit_bias", [token for token, _ in request.sampling.bias])
        context = min(self._context_length, request.context_length or self._context_length)
        # Tokenising megabytes only to refuse them would be a gift to nobody: no token is longer than the longest.
        least = _length(request) // self._longest
        if least >= context:
            raise self._too_long(context, f"at least {least}", param)
        try:
            prompt = self._prompt(request, context)
        except (TemplateRefuses, TemplateStopped) as error:
            error.param = param
            raise
        tokens, room = prompt.tokens, prompt.max_tokens
        if not tokens:
            raise InvalidRequest(f"There is no token in the {param}; say something", param=param)
        self._check_tokens(param, tokens)
        if room < 1:
            raise self._too_long(context, str(len(tokens)), param)
        wanted = room if request.max_tokens is None else request.max_tokens
        if wanted > room and not request.max_tokens_may_shrink:
            raise ContextLengthExceeded(
                f"The model's context is {context} tokens{self._limit_reason}; "
                f"the request asks for {len(tokens) + wanted} "
                f"({len(tokens)} in the {param}, {wanted} in the answer). "
                f"Shorten the {param} or ask for at most {room} tokens.",
                param=request.max_tokens_field,
            )
        return evolve(prompt, max_tokens=min(wanted, room))

    def _prompt(self, request: GenerationRequest, context: int) -> EncodedPrompt:
        """Return the prompt, and all the room that the context leaves behind it."""
        if request.raw is not None:
            shape = self._shaper.shape(request)
            tokens = self._continued(request.raw) if isinstance(request.raw, Text) else list(request.raw.tokens)
            return EncodedPrompt(tokens, context - len(tokens), shape=shape)
        try:
            return self._told(request, context, self._abilities)
        except TemplateRefuses as error:
            if request.tools is None or self._renders(request.tools):
                raise
            try:
                return self._told(request, context, self._abilities.in_words)
            except TemplateRefuses:
                raise error from None

    def _renders(self, tools: ToolUse) -> bool:
        """Whether the template renders these tools: Hermes' has functions that some schemas send round in circles."""
        try:
            self._render([Message("user", "?")], Telling(self._abilities, definitions(tools, self._abilities)))
        except TemplateRefuses:
            return False
        return True

    def _told(self, request: GenerationRequest, context: int, abilities: TemplateAbilities) -> EncodedPrompt:
        """Return the prompt of a conversation, which is told as the template is taken to be able to render it."""
        shape = self._shaper.shape(request, in_words=not abilities.definitions)
        self._check_tokens("context", request.context)
        held = shape.grammar is not None
        variables = effort_told(request.thinking) if self._harmony else self._variables(request.thinking, held)
        telling = Telling(abilities, variables | definitions(request.tools, abilities))
        messages = told(request, abilities)
        parts = self._render(messages, telling)
        # Which thoughts of earlier turns are in the prompt is for the template to say.
        least = sum(map(len, parts)) // self._longest
        if least >= context:
            raise self._too_long(context, f"at least {least}", request.prompt_field)
        tokens = [*request.context, *self._tokenise(parts)]
        boundaries = self._boundaries(messages, tokens, telling)
        # A grammar begins behind the thoughts, so that there must be some.
        must_think = held and request.thinking is not None and request.thinking.wanted
        tags = self._thought_tags
        thinking = must_think if self._harmony else tags is not None and parts[-1].rstrip().endswith(tags.begin)
        if self._harmony:
            header = opening(request.thinking, held=held, tools=request.tools is not None)
            tokens += _encode(self._tokenizer, header)
        elif tags is not None and must_think and not thinking:
            tokens += _encode(self._tokenizer, tags.begin + "\n")
            thinking = True
        return EncodedPrompt(tokens, context - len(tokens), boundaries, thinking, shape)

    def _variables(self, thinking: Thinking | None, held: bool) -> dict[str, Any]:
        """Return what the template is told about thinking, where a grammar holds the answer or not.

        Raises InvalidRequest if the model cannot think.
        """
        if self._thought_tags is None:
            if thinking is not None and thinking.wanted:
                raise InvalidRequest(
                    f"{thinking.asked_by}: this model does not think; leave it out", param=thinking.asked_by
                )
            # Nobody could tell the thoughts from the answer.
            return {"enable_thinking": False}
        if thinking is None:
            # Who asks for JSON waits for JSON. Else it is the template's to say.
            return {"enable_thinking": False} if held else {}
        effort = {} if thinking.effort is None else {"reasoning_effort": thinking.effort}
        return {"enable_thinking": thinking.wanted, **effort}

    def _check_tokens(self, param: str, tokens: Sequence[int]) -> None:
        known = min(self._tokens, self._network_size)
        if max(tokens, default=0) >= known:
            raise InvalidRequest(
                f"{param}: the model has no token {max(tokens)}; they are numbered from 0 to {known - 1}", param=param
            )

    def spell(self, raw: Text | Tokens | None) -> str:
        """Return the text of a prompt that is to be continued."""
        match raw:
            case Text():
                return raw.text
            case Tokens():
                text: str = self._tokenizer.decode(list(raw.tokens), skip_special_tokens=False)
                return text
            case None:
                return ""

    def _too_long(self, context: int, length: str, param: str) -> ContextLengthExceeded:
        return ContextLengthExceeded(
            f"The model's context is {context} tokens{self._limit_reason}; there are {length} in the {param}. "
            f"Shorten the {param}.",
            param=param,
        )

    def _continued(self, raw: Text) -> list[int]:
        """Return the tokens of text that is to be continued, or filled in. Special tokens may be spelled in it."""
        if raw.suffix is None:
            # Whoever begins with a special token has thought of what a prompt begins with.
            begun = self._any_special.match(raw.text) is not None
            tokens: list[int] = self._tokenizer.encode(raw.text, add_special_tokens=not begun).ids
            return tokens
        marks = [self._tokenizer.get_vocab()[mark] for mark in self._fill_in_marks or ()]
        if not marks:
            raise InvalidRequest("suffix: this model cannot fill in text; leave it out", param="suffix")
        before, after = _encode(self._tokenizer, raw.text), _encode(self._tokenizer, raw.suffix)
        return [marks[0], *before, marks[1], *after, marks[2]]

    def _boundaries(self, messages: Sequence[Message], tokens: Sequence[int], telling: Telling) -> tuple[int, ...]:
        if not self._bounded:
            return ()
        beginnings = [messages[:-2], messages]
        if len(messages) > 1 and messages[0].role == "system":
            # Some templates put the system message into the message behind it, so what is rendered is another
            # conversation that begins alike.
            behind = messages[1]
            other = "1" if behind.content.lstrip().startswith("0") else "0"
            beginnings.append([messages[0], Message(behind.role, other)])
        found = {in_common(tokens, self._attempted(beginning, telling)) for beginning in beginnings if beginning}
        return tuple(sorted(length for length in found if LEAST_BOUNDARY <= length < len(tokens)))

    def _attempted(self, messages: Sequence[Message], telling: Telling) -> list[int]:
        """Return the tokens of a conversation that nobody asked about, none if the template refuses it."""
        try:
            return self._tokenise(self._render(messages, telling, prompted=False))
        except TemplateRefuses:  # a template is a program, and was not written for half a conversation
            return []

    def _render(self, messages: Sequence[Message], telling: Telling, *, prompted: bool = True) -> list[str]:
        """Return the rendered prompt in parts, cut inside every special token that a message spells.

        It goes up to where the assistant is to speak, or only to the end of the last message if not `prompted`.
        """
        abilities, variables = telling.abilities, telling.variables
        own = self._shaper.format if abilities.definitions else None
        if own is None or own.write is None:
            return self._render_in_turns(as_given(messages, abilities), variables, prompted)
        # The marks of calls that are told in the model's own form are no user's spellings; they come in last.
        stand_ins = (_mark(), _mark())
        form = evolve(own, begin=stand_ins[0], end=stand_ins[1])
        parts = self._render_in_turns(as_given(messages, abilities, form), variables, prompted)
        return [part.replace(stand_ins[0], own.begin).replace(stand_ins[1], own.end) for part in parts]

    def _render_in_turns(
        self, conversation: list[dict[str, Any]], variables: dict[str, Any], prompted: bool
    ) -> list[str]:
        try:
            return self._render_given(conversation, variables, prompted)
        except TemplateRefuses:
            # Gemma's and Mistral's templates want turns, Qwen's no system message but the first.
            turns = in_turns(conversation)
            if turns == conversation:
                raise
        return self._render_given(turns, variables, prompted)

    def _render_given(self, conversation: list[dict[str, Any]], variables: dict[str, Any], prompted: bool) -> list[str]:
        texts = list(_texts([conversation, variables]))
        spelling = self._spelling
        if spelling is None or not any(map(spelling.search, texts)):
            return [self._apply(conversation, variables, prompted)]
        mark = _mark()
        while any(mark in text for text in texts):
            mark = _mark()

        def marked(text: str) -> str:
            return spelling.sub(lambda found: found.group() + mark, text)

        return self._apply(_each(conversation, marked), _each(variables, marked), prompted).split(mark)

    def _apply(self, conversation: Any, variables: Any, prompted: bool) -> str:
        template = self._conversing
        try:
            return template.apply_chat_template(
                conversation, tokenize=False, add_generation_prompt=prompted, **variables
            )
        except ApiError:
            raise
        except Exception as error:  # whatever it raises: a template is a program, and was not written for everything
            raise TemplateRefuses(f"The model's chat template refuses this conversation: {error}") from error

    def _tokenise(self, parts: Sequence[str]) -> list[int]:
        tokens = _encode(self._tokenizer, parts[0])
        for part in parts[1:]:
            # Up to the next special token a part goes on with the text before it.
            special = self._any_special.search(part)
            end = len(part) if special is None else special.start()
            tokens += _encode(self._continuing, part[:end]) + _encode(self._tokenizer, part[end:])
        return tokens


def _length(request: GenerationRequest) -> int:
    """Return how many characters, or tokens, the prompt has at least."""
    match request.raw:
        case Text():
            return len(request.raw.text) + len(request.raw.suffix or "")
        case Tokens():
            return len(request.raw.tokens)
        case None:
            tools = request.tools.tools if request.tools is not None else ()
            said = sum(
                len(message.content) + sum(len(call.arguments) for call in message.calls)
                for message in request.messages
            )
            return len(request.context) + said + sum(len(tool.definition) for tool in tools)


def in_common(tokens: Sequence[int], others: Sequence[int]) -> int:
    """Return how many tokens two sequences have in common at their beginning."""
    pairs = zip(tokens, others, strict=False)
    return next((place for place, (token, other) in enumerate(pairs) if token != other), min(len(tokens), len(others)))


def _texts(value: object) -> Iterator[str]:
    """Yield the texts in a value of JSON's types, names of members included."""
    match value:
        case str():
            yield value
        case dict():
            for name, member in value.items():
                yield name
                yield from _texts(member)
        case list():
            for member in value:
                yield from _texts(member)


def _each(value: Any, change: Callable[[str], str]) -> Any:
    """Return a value of JSON's types with every text in it changed."""
    match value:
        case str():
            return change(value)
        case dict():
            return {change(name): _each(member, change) for name, member in value.items()}
        case list():
            return [_each(member, change) for member in value]
    return value


def _mark() -> str:
    return "".join(chr(secrets.choice(PRIVATE_USE)) for _ in range(MARK_LENGTH))


def _encode(tokenizer: Tokenizer, text: str) -> list[int]:
    tokens: list[int] = tokenizer.encode(text, add_special_tokens=False).ids
    return tokens


def without_prefix(tokenizer: Tokenizer) -> Tokenizer:
    """Return the tokenizer for text that goes on: SentencePiece's kind puts a space before what begins one."""
    settings = json.loads(tokenizer.to_str())
    metaspaces = [s for s in _stages(settings["pre_tokenizer"], "pretokenizers") if s["type"] == "Metaspace"]
    prepends = [s for s in _stages(settings["normalizer"], "normalizers") if s["type"] == "Prepend"]
    if not metaspaces and not prepends:
        return tokenizer
    for stage in metaspaces:
        stage["prepend_scheme"] = "never"
    for stage in prepends:
        stage["prepend"] = ""
    return Tokenizer.from_str(json.dumps(settings))


def _stages(stage: dict[str, Any] | None, members: str) -> list[dict[str, Any]]:
    """Return the stages that a part of a tokenizer is made of."""
    if stage is None:
        return []
    return [inner for member in stage[members] for inner in _stages(member, members)] if members in stage else [stage]


def most_characters(vocabulary: Iterable[str], context_length: int) -> int:
    """Return how many characters a rendered conversation can have that fits, each with a mark; bounded in any case."""
    return min(context_length * _longest_of(vocabulary) * (1 + MARK_LENGTH), MOST_CHARACTERS)


def _longest_of(vocabulary: Iterable[str]) -> int:
    return max(map(len, vocabulary), default=1)


def special_tokens(added: Mapping[int, Any]) -> list[str]:
    """Return the spellings that the tokeniser reads as control tokens, from its table of added tokens."""
    return [str(token.content) for token in added.values() if token.special]
