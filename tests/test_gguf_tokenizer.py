"""Tokenizers made from a GGUF's metadata: they read and write as those that the metadata came from.

The originals: byte-level BPE of the `tokenizers` package, and models trained here with the sentencepiece package, which
also reads the text for the reference.
"""

import io
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import sentencepiece
from gguf import TokenType
from sentencepiece import sentencepiece_model_pb2
from tokenizers import AddedToken, Tokenizer

from osaurus.library.gguf.header import UnsupportedGGUF, read_header
from osaurus.library.gguf.metadata import Metadata
from osaurus.library.gguf.splitting import SPLITTINGS
from osaurus.library.gguf.tokenizer import Vocabulary, config_of, end_tokens, tokenizer_of

from .gguf_models import TEMPLATE, add_byte_level, finish

TEXTS = [
    "The quick brown fox  jumps\tover the lazy dog's back.",
    " leading, and trailing ",
    "   three",
    "def f(x):\n    return x  # a comment\n\n\n    y = 10_000 * 3.14159\r\n",
    "I'M SURE it's THEY'RE; we'd've said 1234567890 times!!! (really?)",
    "Süße Grüße, \u65e5\u672c\u8a9e \u043f\u0440\u0438\u0432\u0435\u0442 \u0e2a\u0e27\u0e31\u0e2a\u0e14\u0e35",
    "\U0001f995\U0001f468\u200d\U0001f469\u200d\U0001f467 \u00bd\u2122\u00a0\u200b|",
    "permission notice shall be included in all copies or substantial portions of the Software",
    "",
    " ",
    "\n",
    "\x00\x07",
]


def metadata_of(path: Path, add: Callable[[gguf.GGUFWriter], None], architecture: str = "llama") -> Metadata:
    """Return the metadata that a file has been given."""
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_context_length(512)
    add(writer)
    writer.add_tensor("none", np.zeros(1, np.float32))
    finish(writer)
    return Metadata(read_header(path).metadata)


def rebuilt(path: Path, add: Callable[[gguf.GGUFWriter], None], architecture: str = "llama") -> Tokenizer:
    metadata = metadata_of(path, add, architecture)
    return tokenizer_of(metadata, Vocabulary.of(metadata, 10**6))


# Byte-level BPE.


@pytest.mark.parametrize("text", [*TEXTS, "<|im_start|>user\nhi<|im_end|>\n", "a<|im_end|> b"])
def test_a_byte_level_tokenizer_reads_and_writes_as_the_original(
    text: str, tmp_path: Path, tiny_tokenizer: Tokenizer
) -> None:
    original = Tokenizer.from_str(tiny_tokenizer.to_str())
    # Of its own kind of splitting, so that both split alike.
    original.pre_tokenizer = SPLITTINGS["smollm"].pre_tokenizer()
    made = rebuilt(tmp_path / "model.gguf", lambda writer: add_byte_level(writer, original))
    tokens = made.encode(text).ids
    assert tokens == original.encode(text).ids
    assert made.decode(tokens, skip_special_tokens=False) == text
    assert made.get_vocab() == original.get_vocab()


@pytest.mark.starter
def test_the_starter_models_tokenizer_reads_and_writes_as_the_original(starter_models: Path, tmp_path: Path) -> None:
    folder = starter_models / "HuggingFaceTB" / "SmolLM2-135M-Instruct"
    original = Tokenizer.from_file(str(folder / "tokenizer.json"))
    made = rebuilt(tmp_path / "model.gguf", lambda writer: add_byte_level(writer, original))
    for text in [*TEXTS, "<|im_start|>user\nhi<|im_end|>\n"]:
        tokens = made.encode(text).ids
        assert tokens == original.encode(text).ids
        assert made.decode(tokens, skip_special_tokens=False) == text


# What each kind of splitting makes of a text, by hand after the expressions that the models publish. A dot stands for
# the space that byte-level vocabularies have before a word.
SPLIT = "I'M 12345 caf\u00e9s/OpenAI!!\n\n  x"
PIECES = {
    "gpt-2": ["I", "'", "M", ".12345", ".caf\u00e9s", "/", "OpenAI", "!!", "\n\n.", ".x"],
    "smollm": ["I", "'", "M", ".", "1", "2", "3", "4", "5", ".caf\u00e9s", "/", "OpenAI", "!!", "\n\n.", ".x"],
    "llama-bpe": ["I", "'M", ".", "123", "45", ".caf\u00e9s", "/OpenAI", "!!\n\n", ".", ".x"],
    "smaug-bpe": ["I", "'M", ".", "123", "45", ".caf\u00e9s", "/OpenAI", "!!\n\n", ".", ".x"],
    "qwen2": ["I", "'M", ".", "1", "2", "3", "4", "5", ".caf\u00e9s", "/OpenAI", "!!\n\n", ".", ".x"],
    "qwen35": ["I", "'M", ".", "1", "2", "3", "4", "5", ".caf\u00e9s", "/OpenAI", "!!\n\n", ".", ".x"],
    "tekken": ["I", "'M", ".", "1", "2", "3", "4", "5", ".caf\u00e9s", "/Open", "AI", "!!\n\n", ".", ".x"],
    "gpt-4o": ["I'M", ".", "123", "45", ".caf\u00e9s", "/Open", "AI", "!!\n\n", ".", ".x"],
    "seed-coder": ["I", "'M", ".", "1", "2", "3", "4", "5", ".caf\u00e9s", "/OpenAI", "!!", "\n\n", ".", ".x"],
}
ALIKE = {
    "gpt-2": ["phi-2", "olmo", "granite-docling"],
    "smollm": ["starcoder", "refact", "command-r"],
    "llama-bpe": ["llama3", "llama-v3", "lfm2", "pixtral"],
    "smaug-bpe": ["dbrx"],
    "qwen2": ["deepseek-r1-qwen", "stablelm2"],
    "gpt-4o": ["llama4"],
}


def test_every_splitting_is_proved_here() -> None:
    assert set(PIECES) | {name for names in ALIKE.values() for name in names} == set(SPLITTINGS)


@pytest.mark.parametrize("name", SPLITTINGS)
def test_text_is_split_as_the_models_of_that_kind_do(name: str) -> None:
    kind = next((kind for kind, names in ALIKE.items() if name in names), name)
    pieces = [SPLIT[begin:end] for _, (begin, end) in SPLITTINGS[name].pre_tokenizer().pre_tokenize_str(SPLIT)]
    assert pieces == [piece.replace(".", " ") for piece in PIECES[kind]]


def test_a_word_that_is_a_token_is_not_merged_where_its_kind_says_so(tmp_path: Path, tiny_tokenizer: Tokenizer) -> None:
    original = Tokenizer.from_str(tiny_tokenizer.to_str())
    # A token that no merge makes.
    original.add_tokens([AddedToken("zzqq")])

    def add(writer: gguf.GGUFWriter, splitting: str) -> None:
        add_byte_level(writer, original, splitting)
        kinds = writer.kv_data[0]["tokenizer.ggml.token_type"]
        kinds.value[-1] = TokenType.NORMAL

    for splitting, tokens in (("llama-bpe", ["zzqq"]), ("smaug-bpe", ["z", "z", "q", "q"])):
        made = rebuilt(tmp_path / f"{splitting}.gguf", partial(add, splitting=splitting))
        assert made.encode("zzqq", add_special_tokens=False).tokens == tokens


def test_texts_begin_and_end_as_the_metadata_says(tmp_path: Path, tiny_tokenizer: Tokenizer) -> None:
    first, last = (tiny_tokenizer.token_to_id(token) for token in ("<|im_start|>", "<|im_end|>"))
    for begins, ends in ((False, False), (True, False), (False, True), (True, True)):

        def add(writer: gguf.GGUFWriter, begins: bool = begins, ends: bool = ends) -> None:
            add_byte_level(writer, tiny_tokenizer)
            writer.kv_data[0].pop("tokenizer.ggml.add_bos_token")
            writer.add_add_bos_token(begins)
            writer.add_add_eos_token(ends)

        tokens = rebuilt(tmp_path / f"{begins}-{ends}.gguf", add).encode("a").ids
        assert (tokens[0] == first, tokens[-1] == last) == (begins, ends)


def test_answers_end_where_any_of_the_end_tokens_is(tmp_path: Path, tiny_tokenizer: Tokenizer) -> None:
    metadata = metadata_of(tmp_path / "model.gguf", lambda writer: add_byte_level(writer, tiny_tokenizer))
    ends = end_tokens(metadata, Vocabulary.of(metadata, 400))
    assert [tiny_tokenizer.id_to_token(end) for end in ends] == ["<|im_end|>", "<|endoftext|>"]

    def add(writer: gguf.GGUFWriter) -> None:
        add_byte_level(writer, tiny_tokenizer)
        writer.add_eot_token_id(tiny_tokenizer.token_to_id("a"))

    metadata = metadata_of(tmp_path / "other.gguf", add)
    ends = end_tokens(metadata, Vocabulary.of(metadata, 400))
    assert [tiny_tokenizer.id_to_token(end) for end in ends] == ["<|im_end|>", "a", "<|endoftext|>"]


def test_several_chat_templates_keep_their_names(tmp_path: Path, tiny_tokenizer: Tokenizer) -> None:
    def add(writer: gguf.GGUFWriter) -> None:
        add_byte_level(writer, tiny_tokenizer)
        writer.kv_data[0].pop("tokenizer.chat_template")
        writer.add_chat_template(
            [{"name": "default", "template": TEMPLATE}, {"name": "tool_use", "template": "{{ tools }}"}]
        )

    metadata = metadata_of(tmp_path / "model.gguf", add)
    assert config_of(metadata, Vocabulary.of(metadata, 400))["chat_template"] == [
        {"name": "default", "template": TEMPLATE},
        {"name": "tool_use", "template": "{{ tools }}"},
    ]


def test_a_base_model_has_no_chat_template(tmp_path: Path, tiny_tokenizer: Tokenizer) -> None:
    def add(writer: gguf.GGUFWriter) -> None:
        add_byte_level(writer, tiny_tokenizer)
        writer.kv_data[0].pop("tokenizer.chat_template")

    metadata = metadata_of(tmp_path / "model.gguf", add)
    assert "chat_template" not in config_of(metadata, Vocabulary.of(metadata, 400))


def test_more_tokens_than_the_embedding_has_rows_are_refused(tmp_path: Path, tiny_tokenizer: Tokenizer) -> None:
    metadata = metadata_of(tmp_path / "model.gguf", lambda writer: add_byte_level(writer, tiny_tokenizer))
    with pytest.raises(UnsupportedGGUF, match="has 400 tokens, the model's embedding 399"):
        Vocabulary.of(metadata, 399)


# SentencePiece.


def trained(kind: str, **further: Any) -> sentencepiece.SentencePieceProcessor:
    """Return a model of four hundred tokens, trained on the licence, with bytes for what it has not seen."""
    text = (Path(__file__).parent.parent / "LICENSE").read_text("utf-8")
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(text.split("\n")),
        model_writer=model,
        model_type=kind,
        vocab_size=460,
        byte_fallback=True,
        character_coverage=1.0,
        control_symbols=["<start>", "<end>"],
        user_defined_symbols=["<think>"],
        minloglevel=2,
        **{"normalization_rule_name": "identity", "remove_extra_whitespaces": False, **further},
    )
    return sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())


@pytest.fixture(scope="module")
def pairs() -> sentencepiece.SentencePieceProcessor:
    """Byte-pair encoding as Llama 2 and Mistral have it."""
    return trained("bpe", split_digits=True, allow_whitespace_only_pieces=True)


@pytest.fixture(scope="module")
def unigrams() -> sentencepiece.SentencePieceProcessor:
    return trained("unigram", hard_vocab_limit=False)


def add_sentencepiece(writer: gguf.GGUFWriter, original: sentencepiece.SentencePieceProcessor, model: str) -> None:
    """Write a tokenizer as llama.cpp's converter does."""
    count = original.vocab_size()
    kinds = []
    for number in range(count):
        if original.is_unknown(number):
            kinds.append(TokenType.UNKNOWN)
        elif original.is_control(number):
            kinds.append(TokenType.CONTROL)
        elif original.is_byte(number):
            kinds.append(TokenType.BYTE)
        elif original.id_to_piece(number) == "<think>":
            kinds.append(TokenType.USER_DEFINED)
        else:
            kinds.append(TokenType.NORMAL)
    writer.add_tokenizer_model(model)
    writer.add_tokenizer_pre("default")
    # A vocabulary is filled up to the embedding's size.
    writer.add_token_list([*(original.id_to_piece(number) for number in range(count)), "[PAD1]"])
    writer.add_token_scores([*(original.get_score(number) for number in range(count)), -1000.0])
    writer.add_token_types([*kinds, TokenType.UNUSED])
    writer.add_bos_token_id(original.bos_id())
    writer.add_eos_token_id(original.eos_id())
    writer.add_unk_token_id(original.unk_id())
    writer.add_chat_template(TEMPLATE)


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("model", ["pairs", "unigrams"])
def test_a_sentencepiece_tokenizer_reads_and_writes_as_the_original(
    model: str, text: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    original: sentencepiece.SentencePieceProcessor = request.getfixturevalue(model)
    name = {"pairs": "llama", "unigrams": "t5"}[model]
    made = rebuilt(tmp_path / "model.gguf", lambda writer: add_sentencepiece(writer, original, name))
    tokens = made.encode(text, add_special_tokens=False).ids
    assert made.decode(tokens) == text
    if text:
        assert tokens == original.encode(text)


def test_a_table_of_characters_is_followed(tmp_path: Path) -> None:
    original = trained(
        "unigram", hard_vocab_limit=False, normalization_rule_name="nmt_nfkc", remove_extra_whitespaces=True
    )
    protocol: Any = sentencepiece_model_pb2
    described = protocol.ModelProto.FromString(original.serialized_model_proto())

    def add(writer: gguf.GGUFWriter) -> None:
        add_sentencepiece(writer, original, "t5")
        writer.add_precompiled_charsmap(described.normalizer_spec.precompiled_charsmap)
        writer.add_remove_extra_whitespaces(True)

    made = rebuilt(tmp_path / "model.gguf", add)
    for text in ["\uff21\uff22 \ufb01ne \u00bd \u2122", "  several   spaces ", "the Software"]:
        assert made.encode(text, add_special_tokens=False).ids == original.encode(text)


def test_without_a_space_before_the_text_there_is_none(
    tmp_path: Path, pairs: sentencepiece.SentencePieceProcessor
) -> None:
    def add(writer: gguf.GGUFWriter) -> None:
        add_sentencepiece(writer, pairs, "llama")
        writer.add_add_space_prefix(False)

    made = rebuilt(tmp_path / "model.gguf", add)
    for text in TEXTS:
        tokens = made.encode(text, add_special_tokens=False).ids
        assert made.decode(tokens) == text
        # The original always puts a space before a text; here there is one already.
        if text.startswith(" ") and text != " ":
            assert tokens == pairs.encode(text[1:])


def test_special_tokens_are_found_in_a_text_and_left_out_of_answers(
    tmp_path: Path, pairs: sentencepiece.SentencePieceProcessor
) -> None:
    made = rebuilt(tmp_path / "model.gguf", lambda writer: add_sentencepiece(writer, pairs, "llama"))
    tokens = made.encode("<start>the Software<think>notice<end>")
    assert tokens.tokens[0] == "<s>"
    assert tokens.tokens[1] == "<start>"
    assert tokens.tokens[-1] == "<end>"
    # As llama.cpp does, text behind a special token begins with a space.
    assert made.decode(tokens.ids) == "the Software<think> notice"
    added = made.get_added_tokens_decoder()
    special = {str(token.content): token.special for token in added.values()}
    assert special["<end>"]
    assert not special["<think>"]
    assert made.get_vocab_size() == pairs.vocab_size() + 1


def test_the_special_tokens_of_phi3_take_blanks_along(
    tmp_path: Path, pairs: sentencepiece.SentencePieceProcessor
) -> None:
    made = rebuilt(tmp_path / "model.gguf", lambda writer: add_sentencepiece(writer, pairs, "llama"), "phi3")
    added = made.get_added_tokens_decoder()
    assert {str(token.content) for token in added.values() if token.rstrip} >= {"<start>", "<end>", "</s>"}
    assert {str(token.content) for token in added.values() if not token.rstrip} == {"<unk>", "<s>"}
    assert made.encode("<start>\nthe").tokens[2:] == made.encode("<start>the").tokens[2:]
