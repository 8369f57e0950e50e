"""From tokens to text: characters are whole, and nothing of a stop string is said."""

from collections.abc import Iterable

import pytest
from hypothesis import assume, example, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, pre_tokenizers

from osaurus.chat import Piece, TokenScore
from osaurus.engine.output import StopScanner, TextAssembler

# Two letters make beginnings, repetitions and overlaps of stop strings likely.
stop_strings = st.text("ab", min_size=1, max_size=4)
pieces = st.lists(st.text("ab", max_size=4), max_size=12)
# U+FFFD is what a decoder says for what is no character; a model may also mean it.
characters = st.characters(codec="utf-8", exclude_characters="\ufffd")
SAUROPOD = "\U0001f995"


def scan(stops: Iterable[str], pieces: Iterable[str]) -> tuple[str, bool]:
    """Return all that a scanner lets through, and whether a stop string was reached."""
    scanner = StopScanner(tuple(stops))
    said = ""
    for piece in pieces:
        text, stopped = scanner.feed(piece)
        said += text
        if stopped:
            return said, True
    return said + scanner.flush(), False


def until_a_stop(stops: list[str], text: str) -> tuple[str, bool]:
    """Return what comes before the stop string that is complete first, reading one character after another."""
    for end in range(1, len(text) + 1):
        complete = [stop for stop in stops if text[:end].endswith(stop)]
        if complete:
            return text[: end - max(map(len, complete))], True
    return text, False


def number_of(tokenizer: Tokenizer, token: str) -> int:
    """Return the number of a token that there is."""
    number = tokenizer.token_to_id(token)
    assert number is not None
    return number


def assemble(tokenizer: Tokenizer, tokens: Iterable[int], stops: tuple[str, ...] = ()) -> tuple[list[str], bool]:
    """Return the pieces of an answer with these tokens, and whether a stop string was reached."""
    assembler = TextAssembler(tokenizer, {number_of(tokenizer, "<|im_end|>")}, StopScanner(stops))
    said = []
    for token in tokens:
        piece, stopped = assembler.add(token)
        said.append(piece.text)
        if stopped:
            return said, True
    return [*said, assembler.flush().text], False


def byte_tokens(tokenizer: Tokenizer, text: str) -> list[int]:
    """Return the tokens that hold one byte each of this text."""
    [(spelled, _)] = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False).pre_tokenize_str(text)
    tokens = [number_of(tokenizer, character) for character in spelled]
    assert len(tokens) == len(text.encode())
    return tokens


@given(stop=stop_strings, pieces=pieces)
@hypothesis_settings(deadline=None, max_examples=150)
def test_all_text_before_a_stop_string_is_let_through_and_no_more(stop: str, pieces: list[str]) -> None:
    before, found, _ = "".join(pieces).partition(stop)
    assert scan([stop], pieces) == (before, bool(found))


@given(stops=st.lists(stop_strings, min_size=2, max_size=4), pieces=pieces)
@example(stops=["abab", "ba"], pieces=["abab"])
@hypothesis_settings(deadline=None, max_examples=200)
def test_of_several_stop_strings_the_first_one_counts_however_the_text_is_cut(
    stops: list[str], pieces: list[str]
) -> None:
    assert scan(stops, pieces) == until_a_stop(stops, "".join(pieces))


@given(stops=st.lists(stop_strings, max_size=4), pieces=pieces)
@hypothesis_settings(deadline=None, max_examples=200)
def test_no_stop_string_is_ever_said(stops: list[str], pieces: list[str]) -> None:
    said, stopped = scan(stops, pieces)
    text = "".join(pieces)
    assert text.startswith(said)
    assert not any(stop in said for stop in stops)
    assert stopped == any(stop in text for stop in stops)


@given(stops=st.lists(st.text("cd", min_size=1, max_size=4)), pieces=pieces)
@hypothesis_settings(deadline=None, max_examples=100)
def test_text_without_stop_strings_is_said_whole(stops: list[str], pieces: list[str]) -> None:
    assert scan(stops, pieces) == ("".join(pieces), False)


@given(stops=st.lists(stop_strings, max_size=3), pieces=pieces)
@hypothesis_settings(deadline=None, max_examples=150)
def test_text_is_held_back_only_while_it_may_become_a_stop_string(stops: list[str], pieces: list[str]) -> None:
    assume(not any(stop in "".join(pieces) for stop in stops))
    scanner, fed, said = StopScanner(tuple(stops)), "", ""
    for piece in pieces:
        fed += piece
        said += scanner.feed(piece)[0]
        held = fed.removeprefix(said)
        assert not held or any(stop.startswith(held) for stop in stops)
        # Nor is less held back: no longer end of the text begins a stop string.
        assert not any(stop.startswith(fed[start:]) for stop in stops for start in range(len(said)))


def test_a_scanner_begins_anew_after_its_text_was_let_go() -> None:
    scanner = StopScanner(("END",))
    assert scanner.feed("the EN") == ("the ", False)
    assert scanner.flush() == "EN"
    assert scanner.flush() == ""
    assert scanner.feed("D.") == ("D.", False)


def test_stop_strings_may_be_longer_than_characters_are_wide() -> None:
    assert scan([f"{SAUROPOD}é"], ["é", SAUROPOD, "e", SAUROPOD, "é!"]) == (f"é{SAUROPOD}e", True)


@given(text=st.text(characters, max_size=30))
@hypothesis_settings(deadline=None, max_examples=150)
def test_pieces_join_to_the_text(text: str, tiny_tokenizer: Tokenizer) -> None:
    tokens = tiny_tokenizer.encode(text, add_special_tokens=False).ids
    said, _ = assemble(tiny_tokenizer, tokens)
    assert "".join(said) == text == tiny_tokenizer.decode(tokens)
    assert not any("\ufffd" in piece for piece in said)


@given(text=st.text(characters, min_size=1, max_size=8))
@hypothesis_settings(deadline=None, max_examples=100)
def test_a_character_in_as_many_tokens_as_bytes_comes_whole(text: str, tiny_tokenizer: Tokenizer) -> None:
    said, _ = assemble(tiny_tokenizer, byte_tokens(tiny_tokenizer, text))
    assert [piece for piece in said if piece] == list(text)


def test_an_emoji_comes_with_its_last_token(tiny_tokenizer: Tokenizer) -> None:
    tokens = byte_tokens(tiny_tokenizer, f"{SAUROPOD}{SAUROPOD}")
    assert assemble(tiny_tokenizer, tokens) == (["", "", "", SAUROPOD, "", "", "", SAUROPOD, ""], False)


@pytest.mark.parametrize("missing", [1, 2, 3])
def test_an_incomplete_character_at_the_end_is_dropped(missing: int, tiny_tokenizer: Tokenizer) -> None:
    tokens = byte_tokens(tiny_tokenizer, f"a{SAUROPOD}")
    assert "".join(assemble(tiny_tokenizer, tokens[:-missing])[0]) == "a"


@given(data=st.data())
@hypothesis_settings(deadline=None, max_examples=150)
def test_any_tokens_give_the_text_that_decoding_them_together_gives(
    data: st.DataObject, tiny_tokenizer: Tokenizer
) -> None:
    bytes_ = byte_tokens(tiny_tokenizer, "é\u20ac" + SAUROPOD)
    numbers = st.integers(0, tiny_tokenizer.get_vocab_size() - 1) | st.sampled_from(bytes_)
    tokens = data.draw(st.lists(numbers, max_size=12))
    said = "".join(assemble(tiny_tokenizer, tokens)[0])
    whole = tiny_tokenizer.decode([token for token in tokens if token != number_of(tiny_tokenizer, "<|im_end|>")])
    assert whole.startswith(said)
    # What was held back to the end is the beginning of a character.
    assert set(whole.removeprefix(said)) <= {"\ufffd"}


def test_tokens_that_end_a_sequence_are_silent(tiny_tokenizer: Tokenizer) -> None:
    end = number_of(tiny_tokenizer, "<|im_end|>")
    tokens = byte_tokens(tiny_tokenizer, f"a{SAUROPOD}")
    assert assemble(tiny_tokenizer, [*tokens, end]) == (["a", "", "", "", SAUROPOD, "", ""], False)
    assert assemble(tiny_tokenizer, [end]) == (["", ""], False)


def test_an_ordinary_token_may_end_sequences(tiny_tokenizer: Tokenizer) -> None:
    tokens = byte_tokens(tiny_tokenizer, "a;b")
    assembler = TextAssembler(tiny_tokenizer, {number_of(tiny_tokenizer, ";")}, StopScanner(()))
    assert [assembler.add(token) for token in tokens] == [(Piece("a"), False), (Piece(""), False), (Piece("b"), False)]


def test_other_special_tokens_have_no_text_either(tiny_tokenizer: Tokenizer) -> None:
    start = number_of(tiny_tokenizer, "<|im_start|>")
    tokens = byte_tokens(tiny_tokenizer, "ab")
    assert assemble(tiny_tokenizer, [start, tokens[0], start, tokens[1]]) == (["", "a", "", "b", ""], False)


@given(before=st.text("xyz <|", max_size=6), after=st.text("xyz", max_size=6))
@hypothesis_settings(deadline=None, max_examples=100)
def test_a_stop_string_is_found_across_tokens(before: str, after: str, tiny_tokenizer: Tokenizer) -> None:
    stop = f"|end{SAUROPOD}"
    tokens = byte_tokens(tiny_tokenizer, before + stop + after)
    said, stopped = assemble(tiny_tokenizer, tokens, (stop,))
    assert ("".join(said), stopped) == (before, True)
    # Not one token more is read than holds the end of the stop string.
    assert len(said) == len((before + stop).encode())


def test_the_beginning_of_a_stop_string_is_said_at_the_end(tiny_tokenizer: Tokenizer) -> None:
    tokens = byte_tokens(tiny_tokenizer, "x<|en")
    assert assemble(tiny_tokenizer, tokens, ("<|end|>",)) == (["x", "", "", "", "", "<|en"], False)


def score_of(number: int) -> TokenScore:
    """Return a score that can be told from others."""
    return TokenScore(b"", -float(number))


def scored(tokenizer: Tokenizer, text: str, stops: tuple[str, ...] = ()) -> list[tuple[str, list[int]]]:
    """Return each piece of an answer of one-byte tokens with the numbers of the tokens whose scores come with it."""
    assembler = TextAssembler(tokenizer, (), StopScanner(stops))
    said = []
    for number, token in enumerate(byte_tokens(tokenizer, text)):
        piece, stopped = assembler.add(token, score_of(number))
        said.append(piece)
        if stopped:
            break
    else:
        said.append(assembler.flush())
    return [(piece.text, [-int(score.logprob or 0) for score in piece.scores]) for piece in said if piece != Piece("")]


def test_scores_come_with_their_text(tiny_tokenizer: Tokenizer) -> None:
    assert scored(tiny_tokenizer, "ab") == [("a", [0]), ("b", [1])]


def test_all_tokens_of_a_character_come_with_it(tiny_tokenizer: Tokenizer) -> None:
    assert scored(tiny_tokenizer, f"a{SAUROPOD}b") == [("a", [0]), (SAUROPOD, [1, 2, 3, 4]), ("b", [5])]


def test_what_might_have_been_a_stop_string_brings_its_scores_when_it_is_said(tiny_tokenizer: Tokenizer) -> None:
    assert scored(tiny_tokenizer, "a--b--", ("---",)) == [("a", [0]), ("--b", [1, 2, 3]), ("--", [4, 5])]


def test_a_stop_strings_tokens_are_never_scored(tiny_tokenizer: Tokenizer) -> None:
    assert scored(tiny_tokenizer, "ab--c", ("b--",)) == [("a", [0])]
