"""What tokens spell."""

from tokenizers import AddedToken, Tokenizer, decoders, models

from osaurus.engine.vocabulary import Vocabulary

TEXT = "def naïve(): return '🦕 — ok'\n\t\x00"


def test_the_tokens_of_byte_level_bpe_spell_the_text_they_were_made_of(tiny_tokenizer: Tokenizer) -> None:
    vocabulary = Vocabulary(tiny_tokenizer)
    tokens = tiny_tokenizer.encode(TEXT, add_special_tokens=False).ids
    assert b"".join(map(vocabulary.spelling, tokens)) == TEXT.encode()


def test_special_tokens_spell_themselves(tiny_tokenizer: Tokenizer) -> None:
    token = tiny_tokenizer.token_to_id("<|im_end|>")
    assert token is not None
    assert Vocabulary(tiny_tokenizer).spelling(token) == b"<|im_end|>"


def test_an_unknown_token_spells_nothing(tiny_tokenizer: Tokenizer) -> None:
    assert Vocabulary(tiny_tokenizer).spelling(10**6) == b""


def test_sentencepieces_tokens_have_spaces_and_bytes() -> None:
    tokenizer = Tokenizer(models.WordLevel({"<unk>": 0, "\u2581the": 1, "<0xE2>": 2, "s": 3}, unk_token="<unk>"))
    tokenizer.decoder = decoders.Sequence([decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()])
    tokenizer.add_special_tokens([AddedToken("</s>", special=True)])
    vocabulary = Vocabulary(tokenizer)
    assert [vocabulary.spelling(token) for token in (1, 2, 3, 4)] == [b" the", b"\xe2", b"s", b"</s>"]
