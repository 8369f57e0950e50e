"""Text completions of the OpenAI dialect: the prompt goes to the model as it stands, without a chat template.

The contract is OpenAI's API reference (https://platform.openai.com/docs/api-reference/completions) as docs/openai.md
narrows it.
"""

from collections.abc import Iterable
from typing import Annotated, Any

from attrs import define, evolve, field, frozen

from ..chat import Completion, Finished, FinishReason, GenerationRequest, Piece, Text, Tokens, TokenScore
from .fields import Choices, ModelName, RepetitionPenalty, keep_alive, refuse, several
from .openai import NO_STREAM_OPTIONS, Answer, Call, CommonFields, StreamOptions, bias
from .strict import Between, Items, Unserved, parse

# OpenAI's own.
DEFAULT_MAX_TOKENS = 16
MOST_PROMPTS = 128
MOST_TOKEN = 2**31


@frozen(kw_only=True)
class CompletionBody(CommonFields):
    """What is known of the body of a completion; unknown keys are ignored."""

    model: ModelName
    prompt: Any
    suffix: Annotated[str, Items(0, 2**31)] | None = None
    max_tokens: Annotated[int, Between(1, 2**31)] | None = None
    top_k: Annotated[int, Between(0, 2**31)] = 0
    stream: bool = False
    stream_options: StreamOptions = NO_STREAM_OPTIONS
    n: Choices = 1
    best_of: int | None = None
    echo: bool = False
    response_format: Annotated[Any, Unserved(({"type": "text"},))] = None
    logprobs: Annotated[int, Between(0, 20)] | None = None
    logit_bias: dict[str, Any] | None = None
    repetition_penalty: RepetitionPenalty = 1
    keep_alive: Any = None


def completion_call(body: bytes) -> Call:
    """Read the body of a completion. Raises InvalidRequest naming the field at fault."""
    asked = parse(CompletionBody, body)
    prompts = _prompts(asked.prompt)
    if asked.best_of not in (None, 1, asked.n):
        refuse("best_of", "is not supported by this server; leave it out")
    if asked.echo and asked.logprobs is not None:
        refuse("echo", "cannot be had together with logprobs: those of a prompt are not computed")
    if asked.suffix:
        if any(isinstance(prompt, Tokens) for prompt in prompts):
            refuse("suffix", "needs a prompt that is a string")
        prompts = [evolve(prompt, suffix=asked.suffix) for prompt in prompts if isinstance(prompt, Text)]
    request = GenerationRequest(
        model=asked.model,
        max_tokens=asked.max_tokens or DEFAULT_MAX_TOKENS,
        max_tokens_may_shrink=asked.max_tokens is None,
        sampling=evolve(
            asked.sampling(), repetition_penalty=asked.repetition_penalty or 1, bias=bias(asked.logit_bias or {})
        ),
        stop=asked.stop_strings(),
        keep_alive=keep_alive(asked.keep_alive),
        top_logprobs=asked.logprobs,
        echo=asked.echo,
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

    _offsets: dict[int, int] = field(factory=dict, init=False)

    def _complete(self, index: int, completion: Completion) -> dict[str, Any]:
        return self._choice(index, completion.text, completion.scores, completion.finished.reason)

    def _piece(self, piece: Piece) -> dict[str, Any]:
        return self._choice(piece.choice, piece.text, piece.scores, None)

    def _last(self, finished: Finished) -> dict[str, Any]:
        return self._choice(finished.choice, "", (), finished.reason)

    def _choice(
        self, index: int, text: str, scores: Iterable[TokenScore], reason: FinishReason | None
    ) -> dict[str, Any]:
        offset = self._offsets.get(index, 0)
        self._offsets[index] = offset + len(text)
        logprobs = _logprobs(scores, offset) if self.include_logprobs else None
        return {"text": text, "index": index, "logprobs": logprobs, "finish_reason": reason}


def _logprobs(scores: Iterable[TokenScore], offset: int) -> dict[str, Any]:
    """Return log probabilities in the shape of completions; offsets are in characters of the text."""
    scores = list(scores)
    offsets = []
    for score in scores:
        offsets.append(offset)
        offset += len(_spelled(score))
    return {
        "tokens": [_spelled(score) for score in scores],
        "token_logprobs": [score.logprob for score in scores],
        "top_logprobs": [{_spelled(other): other.logprob for other in score.alternatives} for score in scores],
        "text_offset": offsets,
    }


def _spelled(score: TokenScore) -> str:
    return score.token.decode("utf-8", "replace")
