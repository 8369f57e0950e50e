"""Text completions of the OpenAI dialect: the prompt goes to the model as it stands, without a chat template.

The contract is OpenAI's API reference (https://platform.openai.com/docs/api-reference/completions) as docs/openai.md
narrows it.
"""

import codecs
from collections.abc import Iterable, Sequence
from functools import partial
from typing import Annotated, Any

from attrs import define, evolve, field, frozen

from ..chat import Completion, Finished, FinishReason, GenerationRequest, Piece, Text, Tokens, TokenScore
from .fields import Choices, ModelName, keep_alive, refuse, several
from .openai import NO_STREAM_OPTIONS, Answer, Call, CommonFields, StreamOptions, bias
from .strict import Between, Items, Unserved, parse

# OpenAI's own.
DEFAULT_MAX_TOKENS = 16
MOST_PROMPTS = 128
MOST_TOKEN = 2**31
# Bytes that are within a character in UTF-8, never its first.
CONTINUATIONS = [bytes([byte]) for byte in range(0x80, 0xC0)]


@frozen(kw_only=True)
class CompletionBody(CommonFields):
    """What is known of the body of a completion; unknown keys are ignored."""

    model: ModelName
    prompt: Any
    suffix: Annotated[str, Items(0, 2**31)] | None = None
    max_tokens: Annotated[int, Between(1, 2**31)] | None = None
    stream: bool = False
    stream_options: StreamOptions = NO_STREAM_OPTIONS
    n: Choices = 1
    best_of: int | None = None
    echo: bool = False
    response_format: Annotated[Any, Unserved(({"type": "text"},))] = None
    logprobs: Annotated[int, Between(0, 20)] | None = None
    logit_bias: dict[str, Any] | None = None
    keep_alive: Any = None


def completion_call(body: bytes) -> Call:
    """Read the body of a completion. Raises InvalidRequest naming the field at fault."""
    asked = parse(CompletionBody, body)
    prompts = _prompts(asked.prompt)
    if asked.best_of not in (None, 1, asked.n):
        refuse("best_of", "is not supported by this server; leave it out")
    if asked.suffix:
        if asked.echo and asked.logprobs is not None:
            refuse("echo", "cannot be had together with logprobs where there is a suffix")
        if any(isinstance(prompt, Tokens) for prompt in prompts):
            refuse("suffix", "needs a prompt that is a string")
        prompts = [evolve(prompt, suffix=asked.suffix) for prompt in prompts if isinstance(prompt, Text)]
    request = GenerationRequest(
        model=asked.model,
        max_tokens=asked.max_tokens or DEFAULT_MAX_TOKENS,
        max_tokens_may_shrink=asked.max_tokens is None,
        sampling=evolve(asked.sampling(), bias=bias(asked.logit_bias or {})),
        stop=asked.stop_strings(),
        keep_alive=keep_alive(asked.keep_alive),
        top_logprobs=asked.logprobs,
        echo=asked.echo,
        prompt_field="prompt",
    )
    return Call(
        requests=tuple(choice for prompt in prompts for choice in several(evolve(request, raw=prompt), asked.n)),
        prompts=len(prompts),
        stream=asked.stream,
        include_usage=asked.stream_options.include_usage,
    )


def _prompts(given: object) -> list[Text | Tokens]:
    """Return the prompts: a string, a list of strings, a list of tokens, or a list of such lists."""
    if not isinstance(given, list):
        return [_prompt(given, "prompt")]
    if not given:
        refuse("prompt", "must not be empty")
    if isinstance(given[0], int):
        return [_prompt(given, "prompt")]
    if len(given) > MOST_PROMPTS:
        refuse("prompt", f"must have at most {MOST_PROMPTS} entries, not {len(given)}")
    return [_prompt(prompt, f"prompt[{index}]") for index, prompt in enumerate(given)]


def _prompt(given: object, at: str) -> Text | Tokens:
    if isinstance(given, str):
        try:
            given.encode("utf-8")
        except UnicodeEncodeError:
            refuse(at, "holds half a surrogate pair, which is no character")
        return Text(text=given)
    if not isinstance(given, list):
        refuse(at, "must be a string or an array of tokens")
    for token in given:
        if type(token) is not int or not 0 <= token < MOST_TOKEN:
            refuse(at, f"must hold tokens, whole numbers from 0, not {str(token)[:32]}")
    return Tokens(tuple(given))


@define(kw_only=True)
class CompletionAnswer(Answer):
    """The answer to a completion."""

    prefix, whole, part = "cmpl", "text_completion", "text_completion"

    _places: dict[int, "_Places"] = field(factory=dict, init=False)

    def _complete(self, index: int, completion: Completion) -> dict[str, Any]:
        return self._choice(index, completion.text, completion.scores, completion.finished.reason)

    def _piece(self, piece: Piece) -> dict[str, Any]:
        return self._choice(piece.choice, piece.text, piece.scores, None)

    def _last(self, finished: Finished) -> dict[str, Any]:
        return self._choice(finished.choice, "", (), finished.reason)

    def _choice(
        self, index: int, text: str, scores: Sequence[TokenScore], reason: FinishReason | None
    ) -> dict[str, Any]:
        logprobs = None
        if self.include_logprobs:
            logprobs = _logprobs(scores, self._places.setdefault(index, _Places()), text)
        return {"text": text, "index": index, "logprobs": logprobs, "finish_reason": reason}


@define
class _Places:
    """Where in its text the tokens of an answer begin, in characters, however the text is cut into pieces.

    A token that begins in the middle of a character is placed where that is.
    """

    _decoder: codecs.IncrementalDecoder = field(factory=partial(codecs.getincrementaldecoder("utf-8"), "replace"))
    _characters: int = 0
    _begun: bool = False

    def of(self, scores: Iterable[TokenScore], text: str) -> list[int]:
        """Return the places of the next tokens, with which this text came."""
        places = []
        for score in scores:
            if score.logprob is None and not text.startswith(score.token.decode("utf-8", "replace")):
                # A mark that the tokenizer puts before a prompt.
                places.append(self._characters)
                continue
            # A character that was left incomplete is one of its own.
            left = bool(self._decoder.getstate()[0]) and score.token[:1] not in CONTINUATIONS
            places.append(self._characters + left)
            # SentencePiece's decoders take a space off the beginning of a text.
            stripped = not self._begun and not text.startswith(" ")
            self._characters += len(self._decoder.decode(score.token.removeprefix(b" ") if stripped else score.token))
            self._begun = True
        return places


def _logprobs(scores: Sequence[TokenScore], places: _Places, text: str) -> dict[str, Any]:
    """Return log probabilities in the shape of completions."""
    return {
        "tokens": [_spelled(score) for score in scores],
        "token_logprobs": [score.logprob for score in scores],
        "top_logprobs": [None if score.logprob is None else _alternatives(score) for score in scores],
        "text_offset": places.of(scores, text),
    }


def _alternatives(score: TokenScore) -> dict[str, float | None]:
    found: dict[str, float | None] = {}
    # The token itself is told of, too, though it may not be among the best.
    for other in (*score.alternatives, score):
        # Where two are spelled alike the better, which comes first, is kept.
        found.setdefault(_spelled(other), other.logprob)
    return found


def _spelled(score: TokenScore) -> str:
    r"""Return a token's text; where it is part of a character its bytes as OpenAI has them, `bytes:\xf0\x9f`."""
    try:
        return score.token.decode("utf-8")
    except UnicodeDecodeError:
        return f"bytes:{ascii(score.token)[2:-1]}"
