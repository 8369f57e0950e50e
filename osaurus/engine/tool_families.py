"""Which form of calls a model has: by the parser that mlx_lm finds for it, else by what its chat template spells.

mlx_lm's parsers guess at values, and pass over what is no call; so there are others here for the forms that it knows,
and there are more forms. Of a model that has none of these, calls are looked for in the form that most models know.
"""

from attrs import frozen

from . import pythonic_calls
from .gemma_calls import FUNCTION_GEMMA, GEMMA_4
from .named_calls import DEEPSEEK, HUNYUAN, KIMI_K2, MISTRAL
from .tagged_calls import (
    DEEPSEEK_V3_2,
    GLM,
    KIMI_K3,
    LONGCAT,
    MINICPM5,
    MINIMAX_M2,
    MUSE,
    QWEN3_CODER,
    SEED_OSS,
    TaggedForm,
)
from .tool_formats import Parser, ToolFormat, Writer, from_json, from_json_by_name, to_json


@frozen
class Parsing:
    """A parser, and the marks that it looks for within a call: some model's tokenizer has them as special tokens.

    `write` is the other way, where it is needed.
    """

    parse: Parser
    inner: tuple[str, ...] = ()
    write: Writer | None = None


# By the modules of mlx_lm's parsers, what parses these forms here.
KNOWN = {
    "qwen3_coder": Parsing(QWEN3_CODER),
    "glm47": Parsing(GLM, ("<arg_key>", "</arg_key>", "<arg_value>", "</arg_value>")),
    "longcat": Parsing(
        LONGCAT,
        ("<longcat_arg_key>", "</longcat_arg_key>", "<longcat_arg_value>", "</longcat_arg_value>"),
    ),
    "minimax_m2": Parsing(MINIMAX_M2),
    "minicpm5": Parsing(MINICPM5),
    "kimi_k3": Parsing(KIMI_K3),
    "muse_spark": Parsing(MUSE),
    "pythonic": Parsing(pythonic_calls.parse, write=pythonic_calls.written),
    "mistral": Parsing(MISTRAL, ("[ARGS]", "[CALL_ID]")),
    "gemma4": Parsing(GEMMA_4, (GEMMA_4.quote,)),
    "function_gemma": Parsing(FUNCTION_GEMMA, (FUNCTION_GEMMA.quote,)),
    "kimi_k2": Parsing(KIMI_K2, ("<|tool_call_begin|>", "<|tool_call_argument_begin|>", "<|tool_call_end|>")),
}
# Its parser of JSON, which needs none here: a grammar holds it.
JSON_TOOLS = "json_tools"

DEEPSEEK_MARKS = ("<｜tool▁call▁begin｜>", "<｜tool▁sep｜>", "<｜tool▁call▁end｜>")  # noqa: RUF001 - as DeepSeek spells them

# Forms that it does not know, each with what is spelled in the templates that have it, in this order: of Nemotron Nano
# v2, Command R7B and A, Apertus, Seed-OSS, DeepSeek V3.2 and V4, DeepSeek until V3.1, Granite 3, Hunyuan, MiniMax M1
# and OLMo 3.
MORE = (
    (("<TOOLCALL>",), ToolFormat("<TOOLCALL>", "</TOOLCALL>", from_json)),
    (("<|START_ACTION|>",), ToolFormat("<|START_ACTION|>", "<|END_ACTION|>", from_json)),
    (("<|tools_prefix|>",), ToolFormat("<|tools_prefix|>", "<|tools_suffix|>", from_json_by_name)),
    (("<seed:tool_call>",), ToolFormat("<seed:tool_call>", "</seed:tool_call>", SEED_OSS)),
    *(
        (("｜DSML｜", name), ToolFormat(f"<｜DSML｜{name}>", f"</｜DSML｜{name}>", DEEPSEEK_V3_2))  # noqa: RUF001
        for name in ("function_calls", "tool_calls")
    ),
    (
        ("<｜tool▁calls▁begin｜>",),  # noqa: RUF001
        ToolFormat("<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>", DEEPSEEK, inner=DEEPSEEK_MARKS),  # noqa: RUF001
    ),
    (("<|tool_call|>",), ToolFormat("<|tool_call|>", "", from_json, write=to_json)),
    (("<tool_calls><tool_call>",), ToolFormat("<tool_calls>", "</tool_calls>", HUNYUAN)),
    (("<tool_calls>",), ToolFormat("<tool_calls>", "</tool_calls>", from_json)),
    (("<function_calls>",), ToolFormat("<function_calls>", "</function_calls>", pythonic_calls.parse)),
)


def known_form(begin: str, end: str, parse: Parser) -> ToolFormat:
    """Return the form that mlx_lm has found, by its marks and parser."""
    family = parse.__module__.rpartition(".")[2]
    if family == JSON_TOOLS:
        return ToolFormat(begin, end)
    known = KNOWN.get(family, Parsing(parse))
    # What a parser of mlx_lm's makes of a call that is cut off, nobody knows.
    needs_end = known.parse is parse or (isinstance(known.parse, TaggedForm) and not known.parse.call_end)
    return ToolFormat(begin, end, known.parse, inner=known.inner, needs_end=needs_end, write=known.write)


def spelled_form(template: str) -> ToolFormat | None:
    """Return the form that a template spells and mlx_lm does not know, None if it spells none."""
    return next((form for signs, form in MORE if all(sign in template for sign in signs)), None)
