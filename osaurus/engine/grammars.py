"""From what an answer must be to a grammar that masks can be computed from: llguidance, kept at arm's length.

The difficulty is that schemas come from the network and the compiler is native code. It recurses, so that a long chain
of references runs through the stack, which ends the process: it is called on a thread with a large stack of its own.
It may take long: its limits bound that, and whoever waits for it waits only so long. Some grammars fail only when they
are used: each is tried before it is handed out. What is wrong becomes a 400 that names the field.

Rejected: xgrammar, which ignores what it cannot enforce, and outlines-core, which takes seconds for twenty tools.
"""

import json
import re
import threading
from collections import OrderedDict
from collections.abc import Callable, Collection, Sequence
from queue import Empty, SimpleQueue
from typing import Any, TypeVar

from attrs import define, field, frozen
from llguidance import LLMatcher, LLParserLimits, LLTokenizer

from ..chat import InvalidRequest, ServiceUnavailable
from .closing import Closers
from .loose_schemas import patterns_in, without_patterns
from .panics import panics_as_errors
from .schemas import SchemaRule

T = TypeVar("T")

# Of the thread that compiles, in bytes; a schema of 1 MiB was seen to need less. Only what is used is ever taken.
STACK = 256 * 2**20
# What is waited for a grammar, in seconds, and how many may be compiled at once.
LONGEST_COMPILATION = 10.0
MOST_COMPILING = 2
# What is waited for others to be compiled, in seconds.
LONGEST_WAIT = 2.0

# How many characters the schemas of a request may have: a long literal takes 400 bytes a character in a grammar.
MOST_SOURCE = 512 * 1024
# How many grammars are known to be usable.
MOST_KEPT = 64
# Of how many patterns it is known whether a grammar can hold them.
MOST_PATTERNS = 1024
# In tokens; a text whose end takes more is written without looking for it.
LONGEST_CLOSING = 2048

# How many tokens a grammar is tried with.
TRIAL = 64

LIMITS: dict[str, Any] = {
    "max_items_in_row": 4000,
    "initial_lexer_fuel": 500_000,
    "step_lexer_fuel": 100_000,
    "step_max_items": 30_000,
    "max_lexer_states": 50_000,
    "max_grammar_size": 200_000,
    # Else a message may hold the schema and the state of the parser.
    "verbose_errors": False,
}

# How the compiler's complaints begin; what it says of a pattern is in a later line.
WHERE = re.compile(r"^at \d+\(\d+\): (failed to compile JSON schema: )?")
PATTERN = re.compile(r"regex parse error:.*?^error: ([^\n]+)", re.DOTALL | re.MULTILINE)
# Those that speak of the compiler itself, and what they mean for a schema.
TOO_LARGE = "it is too large, or no text that comes to an end is valid by it"
MEANT = {
    "NoExtensionBias": "a $ref leads to itself",
    "coerce_one_of": "it cannot be seen that only one alternative of a oneOf fits at a time; use anyOf",
    "Too many items (limit": TOO_LARGE,
    "too big (limit": TOO_LARGE,
    "too many states: ": TOO_LARGE,
    "too many expressions": TOO_LARGE,
    "fuel exhausted": TOO_LARGE,
    "schema too large": TOO_LARGE,
}

_stack_size = threading.Lock()


@frozen(eq=False)
class Grammar:
    """A compiled grammar, of one request.

    `closers` are how texts of its vocabulary are brought to an end; the shortest text has so many tokens.
    """

    _matcher: LLMatcher
    closers: Closers
    shortest: int

    def begin(self) -> LLMatcher:
        """Return a matcher at the beginning of a text."""
        return self._matcher.deep_copy()


@define(eq=False)
class Grammars:
    """Compiles grammars for one vocabulary; on any thread but the reactor's."""

    _tokenizer: LLTokenizer
    _marks: dict[str, int]
    """Tokens that no text in a grammar stands for, by their spelling."""
    _closers: Closers
    _tried: OrderedDict[str, int] = field(factory=OrderedDict, init=False)
    """What was found to be usable, and in how many tokens its shortest text can be written."""
    _holdable: OrderedDict[str, bool] = field(factory=OrderedDict, init=False)
    """Which patterns a grammar can hold."""
    _lock: threading.Lock = field(factory=threading.Lock, init=False)
    _compiling: threading.Semaphore = field(factory=lambda: threading.Semaphore(MOST_COMPILING), init=False)

    @classmethod
    def of(cls, tokenizer: str, size: int, end_tokens: Collection[int], marks: dict[str, int]) -> "Grammars":
        """Return the compiler for a tokenizer, given as its JSON, whose model has `size` logits.

        Takes a fraction of a second, during which no other Python runs. Raises ValueError for tokenizers it does not
        know.
        """
        known = LLTokenizer(tokenizer, n_vocab=size, eos_token=sorted(end_tokens))
        spellings = [known.decode_bytes([token]) for token in range(size)]
        return cls(known, marks, Closers.of(spellings, end_tokens))

    def literal(self, text: str) -> str:
        """Return the rule for a text that stands as it is; what one of the marks spells is that token."""
        if text in self._marks:
            return f"<[{self._marks[text]}]>"
        return '"' + text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n") + '"'

    def compile(self, rules: Sequence[str], schemas: Sequence[SchemaRule]) -> Grammar:
        """Return the grammar of these rules, the first of them named `start`; `schema_0` and so on are the schemas.

        Raises InvalidRequest if a schema is no schema, or cannot be enforced; ServiceUnavailable if too many others
        are being compiled.
        """
        source = _source(rules, schemas)
        if len(source) > MOST_SOURCE:
            asked_by = max(schemas, key=lambda schema: len(str(schema))).asked_by
            reason = f"the schemas have {len(source)} characters in all; there may be {MOST_SOURCE}"
            raise InvalidRequest(f"{asked_by}: {reason}", param=asked_by)
        if not self._compiling.acquire(timeout=LONGEST_WAIT):
            raise ServiceUnavailable("Too many schemas are being compiled; try again", retry_after=5)
        try:
            return on_large_stack(lambda: self._compiled(rules, schemas), self._compiling.release)
        except TimeoutError as error:
            asked_by = schemas[0].asked_by
            reason = "the schema takes too long to compile; simplify it"
            raise InvalidRequest(f"{asked_by}: {reason}", param=asked_by) from error

    def _compiled(self, rules: Sequence[str], schemas: Sequence[SchemaRule]) -> Grammar:
        for schema in schemas:
            if not schema.strict:
                self._leave_out_patterns(schema)
        source = _source(rules, schemas)
        matcher = self._matcher(source)
        with self._lock:
            shortest = self._tried.get(source)
        if shortest is None:
            complaint = self._complaint(matcher)
            if complaint:
                raise self._explained(schemas, complaint)
            # Others may come with the same; what was used for trying is used up in part.
            matcher = self._matcher(source)
            shortest = len(self._closers.close(matcher, LONGEST_CLOSING) or ())
            with self._lock:
                self._tried[source] = shortest
                while len(self._tried) > MOST_KEPT or sum(map(len, self._tried)) > MOST_SOURCE:
                    self._tried.popitem(last=False)
        return Grammar(matcher, self._closers, shortest)

    def _leave_out_patterns(self, rule: SchemaRule) -> None:
        """Take the patterns that no grammar can hold out of a schema that is not strict."""
        patterns = patterns_in(rule.schema)
        if patterns:
            with self._lock:
                known = {pattern: self._holdable[pattern] for pattern in patterns if pattern in self._holdable}
            for pattern in patterns - set(known):
                source = "start: %json " + json.dumps({"type": "string", "pattern": pattern})
                known[pattern] = not self._matcher(source).is_error()
            with self._lock:
                self._holdable |= known
                while len(self._holdable) > MOST_PATTERNS:
                    self._holdable.popitem(last=False)
            without_patterns(rule.schema, [pattern for pattern, holdable in known.items() if not holdable])

    def _matcher(self, source: str) -> LLMatcher:
        return LLMatcher(
            self._tokenizer, LLMatcher.grammar_from_lark(source), log_level=0, limits=LLParserLimits(**LIMITS)
        )

    def _complaint(self, matcher: LLMatcher) -> str:
        """Return what is wrong with a grammar, nothing if it can be used."""
        tried = matcher.deep_copy()
        # The shortest way may go by what is widest: the names that an object's first property may have.
        for token in self._tokenizer.tokenize_str('{"'):
            if not tried.is_error() and tried.validate_tokens([token]):
                tried.consume_token(token)
                tried.compute_bitmask()
        if tried.is_error():
            return tried.get_error()
        # Copies share a lexer, whose limit may be used up by the first: another must still be able to begin.
        for most in (TRIAL, 1):
            tried = matcher.deep_copy()
            self._closers.walk(tried, most)
            if tried.is_error():
                return tried.get_error()
        return ""

    def _explained(self, schemas: Sequence[SchemaRule], complaint: str) -> InvalidRequest:
        """Return what is wrong, with the schema that is at fault if it is one of several."""
        for schema in schemas if len(schemas) > 1 else ():
            own = self._complaint(self._matcher(f"start: {schema}"))
            if own:
                return self._explained([schema], own)
        asked_by = schemas[0].asked_by
        return InvalidRequest(f"{asked_by}: the schema cannot be enforced: {_reason(complaint)}", param=asked_by)


def _source(rules: Sequence[str], schemas: Sequence[SchemaRule]) -> str:
    return "\n".join([*rules, *(f"schema_{number}: {schema}" for number, schema in enumerate(schemas))])


def _reason(complaint: str) -> str:
    """Return what the compiler complains of, in a line. Behind its first line comes the grammar."""
    first = complaint.partition("\n")[0]
    for words, meant in MEANT.items():
        if words in first:
            return meant
    pattern = PATTERN.search(complaint)
    if pattern:
        return f"a pattern, or a bound made one: {pattern[1]}"[:300]
    return WHERE.sub("", first).strip()[:300]


def on_large_stack(function: Callable[[], T], done: Callable[[], object] = lambda: None) -> T:
    """Return what a function returns when it is called on a thread with a large stack; raise what it raises.

    Raises TimeoutError if it takes too long. It is left to end by itself then; `done` is called whenever it has.
    """
    outcome: SimpleQueue[tuple[T | None, Exception | None]] = SimpleQueue()

    def run() -> None:
        try:
            with panics_as_errors():
                outcome.put((function(), None))
        except Exception as error:  # noqa: BLE001 - it is raised where it is waited for
            outcome.put((None, error))
        finally:
            done()

    with _stack_size:
        # The size is the whole process's, for threads to come; it holds for this one alone.
        usual = threading.stack_size(STACK)
        try:
            threading.Thread(target=run, name="grammar", daemon=True).start()
        except RuntimeError:
            # The system has no thread to give.
            done()
            raise
        finally:
            threading.stack_size(usual)
    try:
        result, error = outcome.get(timeout=LONGEST_COMPILATION)
    except Empty:
        raise TimeoutError from None
    if error is not None:
        raise error
    return result  # type: ignore[return-value]  # there is one where there is no error
