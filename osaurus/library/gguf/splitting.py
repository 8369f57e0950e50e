"""How text is split into words before byte-pair encoding, by GGUF's name for it (`tokenizer.ggml.pre`).

GGUF has the vocabulary and the merges, but of the splitting only a name: that of a model whose tokenizer does the same.
The expressions are those that the models' own tokenizers publish. A name that is not here is refused: a wrong split
gives other tokens, and answers that are a little worse for no reason that one could see.
"""

from attrs import frozen
from tokenizers import Regex, normalizers, pre_tokenizers

CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
SYMBOLS_AND_BLANKS = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
WORD = r"[^\r\n\p{L}\p{N}]?\p{L}+"
# Words that change case within: `OpenAI` is two.
UPPER, LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
MARK = r"[^\r\n\p{L}\p{N}]?"
SYMBOLS_AND_SLASHES = r" ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"

GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
LLAMA3 = rf"{CONTRACTIONS}|{WORD}|\p{{N}}{{1,3}}|{SYMBOLS_AND_BLANKS}"
QWEN2 = rf"{CONTRACTIONS}|{WORD}|\p{{N}}|{SYMBOLS_AND_BLANKS}"
QWEN35 = (
    rf"{CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?[\p{{L}}\p{{M}}]+|\p{{N}}"
    r"| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
TEKKEN = rf"{MARK}{UPPER}*{LOWER}+|{MARK}{UPPER}+{LOWER}*|\p{{N}}|{SYMBOLS_AND_SLASHES}"
GPT4O = (
    rf"{MARK}{UPPER}*{LOWER}+{CONTRACTIONS}?|{MARK}{UPPER}+{LOWER}*{CONTRACTIONS}?"
    rf"|\p{{N}}{{1,3}}|{SYMBOLS_AND_SLASHES}"
)
SEED = rf"{CONTRACTIONS}|{WORD}|\p{{N}}{{1}}| ?[^\s\p{{L}}\p{{N}}\r\n]+|\s*[\r\n]+|\s+(?!\S)|\s+"


@frozen
class Splitting:
    """How one tokenizer splits: by an expression, after each digit was taken by itself where `digits`.

    `whole`: a word that is a token is that token, whatever its merges would give. `begins`: texts begin with the
    beginning token unless the metadata says otherwise. `composed`: characters are composed first (NFC).
    """

    expression: str
    digits: bool = False
    whole: bool = False
    begins: bool = False
    composed: bool = False

    def pre_tokenizer(self) -> pre_tokenizers.PreTokenizer:
        """Return the splitter, which turns bytes into the characters that stand for them in vocabularies."""
        steps: list[pre_tokenizers.PreTokenizer] = []
        if self.digits:
            steps.append(pre_tokenizers.Digits(individual_digits=True))
        if self.expression == GPT2:
            return pre_tokenizers.Sequence([*steps, pre_tokenizers.ByteLevel(add_prefix_space=False)])
        steps.append(pre_tokenizers.Split(Regex(self.expression), "isolated"))
        return pre_tokenizers.Sequence([*steps, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])

    def normalizer(self) -> normalizers.Normalizer | None:
        """Return what happens to the text before."""
        return normalizers.NFC() if self.composed else None


_LLAMA3 = Splitting(LLAMA3, whole=True, begins=True)
_DIGITS = Splitting(GPT2, digits=True)
_QWEN2 = Splitting(QWEN2, composed=True)
_GPT4O = Splitting(GPT4O)

SPLITTINGS: dict[str, Splitting] = {
    "gpt-2": Splitting(GPT2),
    "phi-2": Splitting(GPT2),
    "olmo": Splitting(GPT2),
    "granite-docling": Splitting(GPT2),
    "smollm": _DIGITS,
    "starcoder": _DIGITS,
    "refact": _DIGITS,
    "command-r": Splitting(GPT2, digits=True, composed=True),
    "llama3": _LLAMA3,
    "llama-v3": _LLAMA3,
    "llama-bpe": _LLAMA3,
    "lfm2": _LLAMA3,
    "pixtral": _LLAMA3,
    "smaug-bpe": Splitting(LLAMA3),
    "dbrx": Splitting(LLAMA3),
    "qwen2": _QWEN2,
    "deepseek-r1-qwen": _QWEN2,
    "qwen35": Splitting(QWEN35, composed=True),
    "stablelm2": Splitting(QWEN2),
    "tekken": Splitting(TEKKEN, whole=True, begins=True),
    "gpt-4o": _GPT4O,
    "llama4": _GPT4O,
    "seed-coder": Splitting(SEED),
}
