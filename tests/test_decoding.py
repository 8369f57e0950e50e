"""Tokens to characters: of bytes, of pieces with spaces, and of what is no character at all."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers

from osaurus.engine.decoding import LOOKED_AT, MOST_UNTOLD, WRONG, TokenDecoder
from osaurus.engine.vocabulary import BYTE_LEVEL

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


# Bytes that are no characters, for as long as one likes.


def in_bytes(tokenizer: Tokenizer, content: bytes) -> list[int]:
    """The tokens of single bytes in a byte-level vocabulary."""
    spelled = {byte: character for character, byte in BYTE_LEVEL.items()}
    vocabulary = tokenizer.get_vocab()
    return [vocabulary[spelled[byte]] for byte in content]


@pytest.mark.parametrize("spelled", [0x80, "</s>"])
def test_however_many_tokens_have_no_text_only_some_are_decoded_at_a_time(
    monkeypatch: pytest.MonkeyPatch, spelled: str | int
) -> None:
    most = 0
    decode = TokenDecoder._decoded

    def decoded(self: TokenDecoder, given: list[int]) -> str:
        nonlocal most
        most = max(most, len(given))
        return decode(self, given)

    monkeypatch.setattr(TokenDecoder, "_decoded", decoded)
    decoder = TokenDecoder(TOKENIZER)
    text = ""
    for token in tokens("a", *[spelled] * 1000):
        text += decoder.step(token)
        # What the stream decodes with each step.
        assert len(decoder._untold) < MOST_UNTOLD
    assert most <= MOST_UNTOLD
    assert text.startswith("a")
    assert len(text) > 1000 - MOST_UNTOLD or spelled == "</s>"
    assert decoder.step(tokens("b")[0]).endswith("b")


@given(
    st.lists(
        st.sampled_from([*"€😀é".encode(), 0x82, 0x98, 0xFF, 0xED]), min_size=MOST_UNTOLD, max_size=4 * MOST_UNTOLD
    ),
    st.integers(0, 80),
)
def test_many_bytes_are_told_as_all_of_them_together_would_be(
    tiny_tokenizer: Tokenizer, drawn: list[int], special: int
) -> None:
    given = in_bytes(tiny_tokenizer, bytes(drawn))
    given.insert(special, 1)
    end = tiny_tokenizer.encode("a", add_special_tokens=False).ids
    assert "".join(told([*given, *end], tokenizer=tiny_tokenizer)) == tiny_tokenizer.decode([*given, *end])


@pytest.mark.parametrize("wrong", range(1, 3 * LOOKED_AT))
def test_a_character_behind_any_number_of_wrong_bytes_is_told_whole(tiny_tokenizer: Tokenizer, wrong: int) -> None:
    given = in_bytes(tiny_tokenizer, b"\xff" * wrong + "😀".encode())
    assert "".join(told(given, tokenizer=tiny_tokenizer)) == wrong * WRONG + "😀"
