"""The tokenizer of a GGUF, made anew from its metadata: byte-level BPE, SentencePiece's BPE, and its unigrams.

GGUF's tokenizers are those of llama.cpp. `gpt2` is byte-level BPE, with its merges; `splitting` has how text is split
before. `llama` is SentencePiece's BPE: it has a score for each token instead of merges, the best pair being merged
first, which is the same when the merges are sorted by the score of what they make. `t5` is SentencePiece's unigram
model. Characters that are not in a SentencePiece vocabulary become bytes (`<0x0A>`).

llama.cpp puts a space before the text after every special token, as the early tokenizers of Llama do and as the
`tokenizers` package does with a normaliser that prepends it; what GGUF says of spaces is followed in that way.
"""

from typing import Any

from attrs import frozen
from gguf import TokenType
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, processors

from .header import UnsupportedGGUF
from .metadata import Metadata, lengths
from .splitting import SPLITTINGS, Splitting

TOKENS, KINDS, SCORES = "tokenizer.ggml.tokens", "tokenizer.ggml.token_type", "tokenizer.ggml.scores"
MERGES, TEMPLATE = "tokenizer.ggml.merges", "tokenizer.chat_template"
SPACE = "\u2581"

NAMED = {
    "bos": "tokenizer.ggml.bos_token_id",
    "eos": "tokenizer.ggml.eos_token_id",
    "pad": "tokenizer.ggml.padding_token_id",
    "unk": "tokenizer.ggml.unknown_token_id",
}
# Where an answer ends beside the end token, by key or by how models spell it.
END_KEYS = ("tokenizer.ggml.eos_token_id", "tokenizer.ggml.eot_token_id", "tokenizer.ggml.eom_token_id")
END_TEXTS = frozenset(
    {"<|eot_id|>", "<|eom_id|>", "<|im_end|>", "<|end|>", "<end_of_turn>", "<|endoftext|>", "<|end_of_text|>"}
)
# Phi-3's special tokens take the blanks behind them along, except these; GGUF does not say so.
PHI3_KEEP_BLANKS = frozenset({"<unk>", "<s>", "<|endoftext|>"})


@frozen
class Vocabulary:
    """The tokens with their kinds, checked: as many of one as of the other, and none twice."""

    tokens: list[str]
    kinds: list[int]

    @classmethod
    def of(cls, metadata: Metadata, most: int) -> "Vocabulary":
        """Return that of a model whose embedding has `most` rows. Raises UnsupportedGGUF."""
        tokens, kinds = metadata.texts(TOKENS), metadata.integers(KINDS)
        lengths({TOKENS: tokens, KINDS: kinds})
        if len(tokens) > most:
            raise UnsupportedGGUF(f"{TOKENS!r} has {len(tokens)} tokens, the model's embedding {most}")
        numbers: dict[str, int] = {}
        for number, token in enumerate(tokens):
            if numbers.setdefault(token, number) != number:
                raise UnsupportedGGUF(f"{TOKENS!r} has the token {token!r} twice")
        return cls(tokens, kinds)

    def numbers(self) -> dict[str, int]:
        """Return each token's number."""
        return {token: number for number, token in enumerate(self.tokens)}

    def named(self, metadata: Metadata, key: str) -> str | None:
        """Return the token that the metadata has under a key, if any."""
        number: int | None = metadata.integer(key, None)
        if number is None:
            return None
        if number >= len(self.tokens):
            raise UnsupportedGGUF(f"the metadata's {key!r} is {number}, there are {len(self.tokens)} tokens")
        return self.tokens[number]

    def of_kind(self, *kinds: TokenType) -> list[str]:
        """Return the tokens of some kinds, in order."""
        return [token for token, kind in zip(self.tokens, self.kinds, strict=True) if kind in kinds]


def tokenizer_of(metadata: Metadata, vocabulary: Vocabulary) -> Tokenizer:
    """Return the tokenizer. Raises UnsupportedGGUF."""
    model = metadata.text("tokenizer.ggml.model")
    makers = {"gpt2": _byte_level, "llama": _sentencepiece, "t5": _unigram}
    if model not in makers:
        raise UnsupportedGGUF(f"the tokenizer {model!r} is not converted; those converted are {', '.join(makers)}")
    try:
        tokenizer, begins = makers[model](metadata, vocabulary)
        tokenizer.add_tokens(_added(metadata, vocabulary))
    except UnsupportedGGUF:
        raise
    except Exception as error:
        raise UnsupportedGGUF(f"no tokenizer can be made of its metadata: {error}") from error
    if tokenizer.get_vocab_size() != len(vocabulary.tokens):
        raise UnsupportedGGUF(f"{TOKENS!r} cannot all be had: {tokenizer.get_vocab_size()} of {len(vocabulary.tokens)}")
    _add_ends(tokenizer, metadata, vocabulary, begins)
    return tokenizer


def config_of(metadata: Metadata, vocabulary: Vocabulary) -> dict[str, Any]:
    """Return tokenizer_config.json. Raises UnsupportedGGUF."""
    told = {
        "chat_template": _template(metadata),
        **{f"{role}_token": vocabulary.named(metadata, key) for role, key in NAMED.items()},
    }
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
        "model_max_length": metadata.size(".context_length"),
        **{name: value for name, value in told.items() if value is not None},
    }


def end_tokens(metadata: Metadata, vocabulary: Vocabulary) -> list[int]:
    """Return the numbers of the tokens that end an answer, the end token first. Raises UnsupportedGGUF."""
    found = [vocabulary.named(metadata, key) for key in END_KEYS]
    if found[0] is None:
        raise UnsupportedGGUF(f"its metadata lacks {END_KEYS[0]!r}")
    special = set(vocabulary.of_kind(TokenType.CONTROL))
    found += sorted(END_TEXTS & special)
    numbers = vocabulary.numbers()
    return list(dict.fromkeys(numbers[token] for token in found if token is not None))


def _template(metadata: Metadata) -> str | list[dict[str, str]] | None:
    if not metadata.has(TEMPLATE):
        # A base model.
        return None
    default: str = metadata.text(TEMPLATE)
    names = metadata.texts("tokenizer.chat_templates") if metadata.has("tokenizer.chat_templates") else []
    others = [{"name": name, "template": metadata.text(f"{TEMPLATE}.{name}")} for name in names if name != "default"]
    return [{"name": "default", "template": default}, *others] if others else default


def _added(metadata: Metadata, vocabulary: Vocabulary) -> list[AddedToken]:
    """Return the tokens that are found in a text before all else."""
    phi3 = metadata.architecture == "phi3" and metadata.text("tokenizer.ggml.model") == "llama"
    return [
        AddedToken(
            token,
            special=kind != TokenType.USER_DEFINED,
            normalized=False,
            rstrip=phi3 and token not in PHI3_KEEP_BLANKS,
        )
        for token, kind in zip(vocabulary.tokens, vocabulary.kinds, strict=True)
        if kind in (TokenType.CONTROL, TokenType.USER_DEFINED, TokenType.UNKNOWN)
    ]


def _add_ends(tokenizer: Tokenizer, metadata: Metadata, vocabulary: Vocabulary, begins: bool) -> None:
    """Have texts begin and end with the tokens that the metadata says they do."""
    first = vocabulary.named(metadata, NAMED["bos"]) if metadata.flag("tokenizer.ggml.add_bos_token", begins) else None
    last = vocabulary.named(metadata, NAMED["eos"]) if metadata.flag("tokenizer.ggml.add_eos_token", False) else None
    if first is None and last is None:
        return
    numbers = vocabulary.numbers()
    pieces = [piece for piece in (first, "$A", last) if piece is not None]
    tokenizer.post_processor = processors.TemplateProcessing(
        single=pieces,
        pair=[*pieces, *(piece if piece != "$A" else "$B" for piece in pieces)],
        special_tokens=[(token, numbers[token]) for token in dict.fromkeys((first, last)) if token is not None],
    )


def _byte_level(metadata: Metadata, vocabulary: Vocabulary) -> tuple[Tokenizer, bool]:
    name = metadata.text("tokenizer.ggml.pre")
    splitting: Splitting | None = SPLITTINGS.get(name)
    if splitting is None:
        known = ", ".join(sorted(SPLITTINGS))
        raise UnsupportedGGUF(f"text split as {name!r} ('tokenizer.ggml.pre') is not converted; known are {known}")
    merges = [_pair(merge) for merge in metadata.texts(MERGES)]
    tokenizer = Tokenizer(models.BPE(vocabulary.numbers(), merges, ignore_merges=splitting.whole))
    normalizer = splitting.normalizer()
    if normalizer is not None:
        tokenizer.normalizer = normalizer
    tokenizer.pre_tokenizer = splitting.pre_tokenizer()
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer, splitting.begins


def _pair(merge: str) -> tuple[str, str]:
    # A token may be a space itself.
    place = merge.find(" ", 1)
    if place < 0:
        raise UnsupportedGGUF(f"{MERGES!r} has {merge!r}, which is no pair")
    return merge[:place], merge[place + 1 :]


def _sentencepiece(metadata: Metadata, vocabulary: Vocabulary) -> tuple[Tokenizer, bool]:
    if metadata.has(MERGES):
        merges = [_pair(merge) for merge in metadata.texts(MERGES)]
    else:
        merges = _merges(metadata, vocabulary)
    tokenizer = Tokenizer(
        models.BPE(
            vocabulary.numbers(),
            merges,
            unk_token=vocabulary.named(metadata, NAMED["unk"]),
            fuse_unk=True,
            byte_fallback=bool(vocabulary.of_kind(TokenType.BYTE)),
        )
    )
    return _with_spaces(tokenizer, metadata, []), True


def _with_spaces(tokenizer: Tokenizer, metadata: Metadata, steps: list[normalizers.Normalizer]) -> Tokenizer:
    """Have the tokenizer write spaces as SentencePiece does, after other steps."""
    prefix = metadata.flag("tokenizer.ggml.add_space_prefix", True)
    steps = [*steps, *([normalizers.Prepend(SPACE)] if prefix else []), normalizers.Replace(" ", SPACE)]
    tokenizer.normalizer = normalizers.Sequence(steps)
    tokenizer.decoder = _decoder(prefix)
    return tokenizer


def _decoder(prefix: bool) -> decoders.Decoder:
    steps = [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    return decoders.Sequence([*steps, decoders.Strip(" ", 1, 0)] if prefix else steps)


def _merges(metadata: Metadata, vocabulary: Vocabulary) -> list[tuple[str, str]]:
    """Return the pairs that make a token, those of the token with the best score first."""
    scores = metadata.reals(SCORES)
    lengths({TOKENS: vocabulary.tokens, SCORES: scores})
    normal = set(vocabulary.of_kind(TokenType.NORMAL))
    best_first = sorted(zip(vocabulary.tokens, scores, strict=True), key=lambda scored: -scored[1])
    return [
        (token[:place], token[place:])
        for token, _ in best_first
        if token in normal
        for place in range(1, len(token))
        if token[:place] in normal and token[place:] in normal
    ]


def _unigram(metadata: Metadata, vocabulary: Vocabulary) -> tuple[Tokenizer, bool]:
    scores = metadata.reals(SCORES)
    lengths({TOKENS: vocabulary.tokens, SCORES: scores})
    tokenizer = Tokenizer(
        models.Unigram(
            list(zip(vocabulary.tokens, scores, strict=True)),
            metadata.integer(NAMED["unk"]),
            bool(vocabulary.of_kind(TokenType.BYTE)),
        )
    )
    steps: list[normalizers.Normalizer] = []
    if metadata.has("tokenizer.ggml.precompiled_charsmap"):
        table = bytes(number & 0xFF for number in metadata.integers("tokenizer.ggml.precompiled_charsmap"))
        steps.append(normalizers.Precompiled(table))
    if metadata.flag("tokenizer.ggml.remove_extra_whitespaces", False):
        steps += [normalizers.Strip(), normalizers.Replace(Regex(" {2,}"), " ")]
    return _with_spaces(tokenizer, metadata, steps), False
