"""Tokens to characters: of bytes, of pieces with spaces, and of what is no character at all."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers

from osaurus.engine.decoding import WRONG, TokenDecoder

PIECES = ("▁", "▁▁", "▁time", "▁a", "a", "b", "Once", "😀", "é")


def with_byte_tokens() -> Tokenizer:
    """A tokenizer of the kind that SentencePiece made: a space is part of a word, what is unknown is bytes."""
    vocabulary = {"<unk>": 0, "</s>": 1}
    for piece in (*(f"<0x{byte:02X}>" for byte in range(256)), *PIECES):
        vocabulary[piece] = len(vocabulary)
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[], unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.add_special_tokens([AddedToken("</s>", special=True)])
    return tokenizer


TOKENIZER = with_byte_tokens()


def tokens(*spelled: str | int) -> list[int]:
    """The tokens of pieces, and of bytes given as numbers."""
    found = [TOKENIZER.token_to_id(piece if isinstance(piece, str) else f"<0x{piece:02X}>") for piece in spelled]
    assert None not in found
    return [token for token in found if token is not None]


def told(given: list[int], before: list[int] | None = None, tokenizer: Tokenizer = TOKENIZER) -> list[str]:
    decoder = TokenDecoder(tokenizer, before or ())
    return [decoder.step(token) for token in given]


def test_a_character_of_several_tokens_comes_with_the_last_of_them() -> None:
    assert told(tokens("a", *"😀".encode(), "b")) == ["a", "", "", "", "😀", "b"]


def test_a_text_that_begins_has_no_space_before_it() -> None:
    assert told(tokens("▁time", "▁a")) == ["time", " a"]


def test_a_text_that_goes_on_has() -> None:
    assert told(tokens("▁time", "▁a"), before=tokens("Once")) == [" time", " a"]


@pytest.mark.parametrize("before", [tokens("</s>"), tokens("a", 0xF0, 0x9F)])
def test_a_text_that_goes_on_behind_none_or_within_a_character_begins(before: list[int]) -> None:
    assert told(tokens("▁time", "▁a"), before=before) == ["time", " a"]


def test_only_the_end_of_a_long_text_is_looked_at() -> None:
    assert told(tokens("▁time"), before=tokens("Once") * 100_000) == [" time"]


@pytest.mark.parametrize(
    ("spelled", "text"),
    [
        # A whole character, then half of one.
        ((*"😀".encode(), 0xF0, 0x9F, "▁a"), "😀" + 2 * WRONG + " a"),
        ((0x6D, 0xFD, "▁▁", "b"), "m" + WRONG + "  b"),
        ((0x80, 0x80, "a", 0xFF, "b", *"é".encode(), 0xC3, "a"), f"{2 * WRONG}a{WRONG}bé{WRONG}a"),
    ],
)
def test_what_is_no_character_is_told_as_such_and_the_text_goes_on(spelled: tuple[str | int, ...], text: str) -> None:
    assert "".join(told(tokens(*spelled))) == text


@given(st.lists(st.integers(0, TOKENIZER.get_vocab_size() - 1), max_size=24))
def test_any_tokens_have_a_text_and_none_is_lost_behind_them(drawn: list[int]) -> None:
    behind = tokens("▁a", "b")
    text = "".join(told([*drawn, *behind]))
    assert text.endswith("ab")
    known = [token for token in drawn if token >= 2 + 256]
    plain = "".join(PIECES[token - 258].replace("▁", "") for token in known)
    # Every piece that is no byte is in the text, in order.
    rest = iter(text)
    assert all(character in rest for character in plain)


@given(st.text(max_size=20))
def test_a_text_of_bytes_is_told_whole(text: str) -> None:
    assert "".join(told(tokens("a", *text.encode(), "b"))) == f"a{text}b"


@given(st.lists(st.integers(3, 399), max_size=24))
def test_any_tokens_of_a_byte_level_vocabulary_have_a_text(tiny_tokenizer: Tokenizer, drawn: list[int]) -> None:
    end = tiny_tokenizer.encode("a", add_special_tokens=False).ids
    assert "".join(told([*drawn, *end], tokenizer=tiny_tokenizer)) == tiny_tokenizer.decode([*drawn, *end])
