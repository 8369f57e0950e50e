"""From a model folder to a model in memory.

Weights come from safetensors only, and no code of the model's own is ever run: mlx_lm refuses both unless asked.
"""

import sys
from collections.abc import Callable, Mapping
from hashlib import sha256
from importlib import import_module
from importlib.metadata import version
from inspect import getsource
from pathlib import Path
from types import ModuleType
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from attrs import frozen
from mlx.utils import tree_flatten, tree_map_with_path, tree_unflatten
from mlx_lm.models.cache import make_prompt_cache
from mlx_lm.utils import dequantize_model, load_model, load_tokenizer
from tokenizers import Tokenizer
from twisted.logger import Logger

from ..chat import ModelLoadFailed, NoRoomYet
from ..model_config import THOUGHT_TAGS, context_length
from ..rendering.renderer import Renderer
from .backend import Backend
from .batchable import batchable
from .checkpoints import Layout, single_caches
from .conversation import ChatTemplate
from .grammars import Grammars
from .harmony import HARMONY, end_tokens_of, marks_of
from .known_code import check_logits
from .panics import Panicked, panics_as_errors
from .prefixes import BlockLayout
from .prompt import PromptEncoder, most_characters, special_tokens
from .shape import Shaper
from .thoughts import ThoughtTags
from .tokenizer_file import check as check_tokenizer
from .tool_families import known_form, spelled_form
from .tool_formats import GENERIC, ToolFormat
from .vocabulary import Vocabulary

log = Logger()

# Weights expanded to float32 may take this part of the memory that there is for everything.
DENSE_SHARE = 0.67

# What chat templates find although nobody has said it.
UNSAID = {"tools": None, "documents": None}


@frozen(kw_only=True, eq=False)
class Model:
    """A loaded model: its network, and what turns text into its tokens and back.

    `harmony` says that it writes messages on channels, whose marks are among `marks`.
    `identity` is that of its files. `key` differs for all that compute something else: other weights, other numbers,
    other kernels, another mlx_lm. `nbytes` is what its weights take, `row_nbytes` what each row takes beside them,
    however long it is, and `token_nbytes` what each of its tokens does. `layout` is that of caches that cannot be cut,
    `block` that of what others are cut into; both are None where nothing is known of them. `batchable` says whether
    rows may be computed together.
    `marks` are the added tokens that thoughts and calls are told by, and what each spells: to the tokenizer most have
    no text.
    """

    name: str
    key: str
    identity: tuple[str, ...]
    network: nn.Module
    tokenizer: Tokenizer
    vocabulary: Vocabulary
    prompt: PromptEncoder
    end_tokens: frozenset[int]
    thought_tags: ThoughtTags | None
    marks: dict[int, str]
    harmony: bool
    context_length: int
    nbytes: int
    token_nbytes: int
    row_nbytes: int
    layout: Layout | None
    block: BlockLayout | None
    batchable: bool


def load(name: str, folder: Path, backend: Backend, memory_limit: int, make_room: Callable[[int], None]) -> Model:
    """Load the model in `folder`; on the thread that owns MLX.

    `memory_limit` is for everything, in bytes. Before memory is taken, `make_room` is told how much; it may raise
    NoRoomYet, which is passed on. Raises ModelLoadFailed with the reason, whatever else goes wrong.
    """
    try:
        with panics_as_errors():
            return _load(name, folder, backend, memory_limit, make_room)
    except NoRoomYet:
        raise
    except Exception as error:
        log.failure("Loading {name} from {folder} failed", name=name, folder=str(folder))
        reason = error.message if isinstance(error, ModelLoadFailed) else f"{type(error).__name__}: {error}"
        raise ModelLoadFailed(f"The model {name} could not be loaded: {reason}", param="model") from error


def _load(name: str, folder: Path, backend: Backend, memory_limit: int, make_room: Callable[[int], None]) -> Model:
    check_tokenizer(folder / "tokenizer.json")
    network, config = load_model(folder, lazy=True)
    check_logits(network)
    # mlx_lm's wrapper knows the model's end-of-sequence tokens and which template renders its conversations.
    try:
        with panics_as_errors():
            wrapper = load_tokenizer(folder, {"trust_remote_code": False}, eos_token_ids=config.get("eos_token_id"))
    except Exception as error:  # Transformers raises what it stumbles over
        raise ModelLoadFailed(
            f"its tokenizer (tokenizer.json, tokenizer_config.json) is damaged or of no known kind: "
            f"{type(error).__name__}: {error}"
        ) from error
    backend_tokenizer = getattr(wrapper, "backend_tokenizer", None)
    if not isinstance(backend_tokenizer, Tokenizer):
        raise ModelLoadFailed("its folder has no tokenizer.json")
    # A prompt is never cut or filled up, whatever the file was trained with.
    backend_tokenizer.no_truncation()
    backend_tokenizer.no_padding()
    packed: ModuleType | None = None
    if backend.kernels is not None:
        # It needs osaurus_cpu, which is not everywhere.
        packed = import_module("osaurus.engine.packed")
    if backend.dense_float32:
        _to_float32(network, memory_limit, frozenset() if packed is None else frozenset(packed.taken(network)))
    # Nothing has been read yet: MLX knows the shapes, and takes memory when it evaluates.
    nbytes = sum(array.nbytes for _, array in tree_flatten(network.parameters()))
    if packed is not None:
        nbytes += packed.packed_nbytes(network)
    if nbytes >= memory_limit:
        raise ModelLoadFailed(
            f"its weights take {_gigabytes(nbytes)}, and the memory limit is {_gigabytes(memory_limit)}; "
            "raise memory_limit if the machine has more, or choose a smaller model"
        )
    make_room(nbytes)
    if packed is not None:
        import_module("osaurus.engine.kernels").install(network)
    mx.eval(network.parameters())
    parameters: list[mx.array] = [array for _, array in tree_flatten(network.parameters())]
    # Symmetric weights take less than was reckoned.
    nbytes = sum(array.nbytes for array in parameters)
    mx.clear_cache()
    special = special_tokens(wrapper.added_tokens_decoder)
    tags, form = _thought_tags(wrapper), _tool_format(wrapper)
    marks = _marks(wrapper.added_tokens_decoder, tags, form)
    end_tokens = frozenset(wrapper.eos_token_ids)
    vocabulary = wrapper.get_vocab()
    messages = marks_of(vocabulary) if tags is None else {}
    if messages:
        form, end_tokens = HARMONY, end_tokens_of(vocabulary, end_tokens)
    caches, vocabulary_size = _read_a_token(network)
    if packed is not None:
        nbytes += packed.expanded_nbytes(network)
    token_nbytes, row_nbytes, layout = _token_nbytes(caches), _row_nbytes(caches), Layout.of(network, caches)
    context, limit_reason = context_length(config), ""
    fitting = max(memory_limit - nbytes - row_nbytes, 0) // max(token_nbytes, 1)
    if fitting < context:
        state = f" and {_gigabytes(row_nbytes)} of an answer's state" if row_nbytes else ""
        limit_reason = (
            f" here: each token takes {token_nbytes} bytes beside {_gigabytes(nbytes)} of weights{state}, and the "
            f"memory limit is {_gigabytes(memory_limit)} (the model's own is {context})"
        )
        context = fitting
    log.info(
        "Loaded {name}: {size:.0f} MiB of weights as {dtypes}, context {context} tokens",
        name=name,
        size=nbytes / 2**20,
        dtypes=", ".join(sorted({str(array.dtype).removeprefix("mlx.core.") for array in parameters})),
        context=context,
    )
    return Model(
        name=name,
        key=_key(folder, parameters, caches, backend.kernels or ""),
        identity=identity(folder),
        network=network,
        tokenizer=backend_tokenizer,
        vocabulary=Vocabulary(backend_tokenizer),
        prompt=PromptEncoder(
            backend_tokenizer,
            _template(wrapper, most_characters(vocabulary, context)),
            special,
            context,
            limit_reason,
            bounded=layout is not None,
            thought_tags=tags,
            shaper=Shaper(_grammars(backend_tokenizer, vocabulary_size, end_tokens, marks), form),
            network_size=vocabulary_size,
            harmony=bool(messages),
        ),
        end_tokens=end_tokens,
        thought_tags=tags,
        marks=marks | messages,
        harmony=bool(messages),
        context_length=context,
        nbytes=nbytes,
        token_nbytes=token_nbytes,
        row_nbytes=row_nbytes,
        layout=layout,
        block=BlockLayout.of(caches),
        batchable=batchable(name, network, vocabulary_size),
    )


@frozen
class _OwnTemplate:
    """A chat template as the model has it, given the variables that Transformers gives it.

    mlx_lm's wrapper has every model think that can, unless told otherwise; some templates mean not to. What most
    call `enable_thinking` is `thinking` to DeepSeek's and Granite's, `reasoning` to Cohere's, and Seed's have a budget.
    """

    _tokenizer: Any
    _renderer: Renderer

    def apply_chat_template(
        self, conversation: list[dict[str, Any]], *, tokenize: bool, add_generation_prompt: bool, **variables: Any
    ) -> str:
        assert not tokenize
        if "enable_thinking" in variables:
            wanted = variables["enable_thinking"]
            variables |= {"thinking": wanted, "reasoning": wanted} | ({} if wanted else {"thinking_budget": 0})
        # There may be one for conversations with tools.
        template = self._tokenizer.get_chat_template(tools=variables.get("tools"))
        given = {"messages": conversation, "add_generation_prompt": add_generation_prompt}
        return self._renderer.render(template, UNSAID | self._tokenizer.special_tokens_map | variables | given)


def _template(wrapper: Any, most_characters: int) -> ChatTemplate | None:
    """Return what renders the model's conversations, to so many characters at most, None if nothing does."""
    if not wrapper.has_chat_template:
        return None
    if wrapper._chat_template is not None:
        # The wrapper has some in Python, in the place of the model's own.
        template: ChatTemplate = wrapper
        return template
    return _OwnTemplate(wrapper._tokenizer, Renderer(most_characters))


def _thought_tags(wrapper: Any) -> ThoughtTags | None:
    """Return how the model marks its thoughts, None if it has none."""
    if wrapper.has_thinking:
        return ThoughtTags(wrapper.think_start, wrapper.think_end)
    # There are more than the wrapper knows, and some are no tokens. Who writes messages on channels thinks on one.
    vocabulary = wrapper.get_vocab()
    for known in (vocabulary, "" if marks_of(vocabulary) else _template_source(wrapper)):
        found = next((tags for tags in THOUGHT_TAGS if all(tag in known for tag in tags)), None)
        if found is not None:
            return ThoughtTags(*found)
    return None


def _tool_format(wrapper: Any) -> ToolFormat | None:
    """Return how the model writes calls, None if it has no form of its own."""
    if wrapper.has_tool_calling:
        return known_form(wrapper.tool_call_start, wrapper.tool_call_end, wrapper.tool_parser)
    return spelled_form(_template_source(wrapper))


def _template_source(wrapper: Any) -> str:
    """Return what the chat template is written in, Jinja or Python; of several, all."""
    if wrapper._chat_template is not None:
        return getsource(sys.modules[wrapper._chat_template.__module__])
    source = wrapper.chat_template
    return "\n".join(source.values()) if isinstance(source, dict) else source or ""


def _marks(added: Mapping[int, Any], tags: ThoughtTags | None, form: ToolFormat | None) -> dict[int, str]:
    """Return the added tokens that thoughts and calls are told by, and what each spells.

    The tokenizer says nothing of those that are special. Grammars have to name those that are not as well: to them
    no text stands for an added token. A mark of several tokens may have special ones in it.
    """
    spelled = [
        *([] if tags is None else [tags.begin, tags.end]),
        *([] if form is None else [form.begin, form.end, *form.inner]),
        GENERIC.begin,
        GENERIC.end,
    ]
    return {
        number: str(token.content)
        for number, token in added.items()
        if token.content in spelled or (token.special and any(token.content in mark for mark in spelled))
    }


def _grammars(tokenizer: Tokenizer, size: int, end_tokens: frozenset[int], marks: dict[int, str]) -> Grammars | None:
    """Return the compiler of grammars for a vocabulary of that many logits, None if it is of no known kind."""
    try:
        with panics_as_errors():
            spellings = {spelling: token for token, spelling in marks.items()}
            return Grammars.of(tokenizer.to_str(), size, end_tokens, spellings)
    except (ValueError, Panicked) as error:
        log.warn("Answers cannot be held to a schema: {error}", error=error)
        return None


def _key(folder: Path, parameters: list[mx.array], caches: list[Any], kernels: str) -> str:
    """Return what tells this model from others; two folders with the same content may differ, which costs nothing."""
    parts = [version("mlx-lm"), kernels, *_dtypes(parameters), *_dtypes([keys for keys, _ in _keys_and_values(caches)])]
    return sha256("\n".join([*parts, *identity(folder)]).encode()).hexdigest()


def _dtypes(arrays: list[mx.array]) -> list[str]:
    return sorted({str(array.dtype) for array in arrays})


def identity(folder: Path) -> tuple[str, ...]:
    """Return what changes when the files that make the model do."""
    statuses = [(path.name, path.stat()) for path in [*sorted(folder.glob("*.safetensors")), folder / "config.json"]]
    return (str(folder), *(f"{name} {status.st_size} {status.st_mtime_ns}" for name, status in statuses))


def _read_a_token(network: nn.Module) -> tuple[list[Any], int]:
    """Return the network's caches when it has read a token, and how many logits came of it."""
    caches: list[Any] = make_prompt_cache(network)
    logits = network(mx.array([[0]]), cache=caches)
    mx.eval(logits, [cache.state for cache in caches])
    return caches, logits.shape[-1]


def _token_nbytes(caches: list[Any]) -> int:
    """Return how many bytes the caches of a row grow by with each token."""
    return sum((keys.nbytes + values.nbytes) // keys.shape[2] for keys, values in _keys_and_values(caches))


def _row_nbytes(caches: list[Any]) -> int:
    """Return how many bytes of a row's caches do not grow: the states of recurrent layers."""
    return sum(cache.nbytes for cache in single_caches(caches) if getattr(cache, "keys", None) is None)


def _keys_and_values(caches: list[Any]) -> list[tuple[mx.array, mx.array]]:
    return [(cache.keys, cache.values) for cache in single_caches(caches) if getattr(cache, "keys", None) is not None]


def _gigabytes(nbytes: int) -> str:
    return f"{nbytes / 2**30:.2f} GiB"


def _to_float32(network: nn.Module, memory_limit: int, untouched: frozenset[str]) -> None:
    """Make float32 of half-precision parameters, and of quantised weights where that fits in memory.

    Scales become float32 first, so that the expanded weights are exactly those that the quantised ones stand for. The
    modules whose paths are in `untouched` stay as they are.
    """
    network.update(
        tree_map_with_path(
            lambda path, array: (
                array.astype(mx.float32)
                if mx.issubdtype(array.dtype, mx.floating) and path.rpartition(".")[0] not in untouched
                else array
            ),
            network.parameters(),
        )
    )
    quantised = {
        path: module
        for path, module in network.named_modules()
        if hasattr(module, "bits") and "scales" in module and path not in untouched
    }
    dense_bytes = sum(module.weight.size * 32 // module.bits * 4 for module in quantised.values())
    if dense_bytes <= memory_limit * DENSE_SHARE:
        for path, module in quantised.items():
            holder = nn.Module()
            holder.one = module
            network.update_modules(tree_unflatten([(path, dequantize_model(holder).one)]))
    else:
        log.warn(
            "Weights stay quantised, as float32 they would take {size:.1f} GiB; each further client costs a full step",
            size=dense_bytes / 2**30,
        )
