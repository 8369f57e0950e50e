"""What tests share: this machine's backend, a tiny real model, and the starter model.

The tiny model has random weights, but everything about it is real: a byte-level BPE tokenizer trained here, a chat
template, safetensors, mlx_lm's own Llama. The starter model is fetched once and kept in `.cache/models`.
"""

import fcntl
import json
import os
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

from osaurus.engine.backend import Backend, prepare

from .desk import Desk, another
from .hub import FakeHub, running_hub

if TYPE_CHECKING:
    from .commandline import CommandLine

# pytest-twisted has tests run on greenlets: to walk such a stack to its end, for the backtrace of a panic, is to crash.
os.environ["RUST_BACKTRACE"] = "0"

CACHE = Path(__file__).parent.parent / ".cache"

CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)

TINY_CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "intermediate_size": 128,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "max_position_embeddings": 512,
    "tie_word_embeddings": True,
}

# Every second layer sees the last 32 tokens only.
ROTATING_CONFIG = {
    "architectures": ["Gemma3ForCausalLM"],
    "model_type": "gemma3_text",
    "hidden_size": 64,
    "num_hidden_layers": 4,
    "intermediate_size": 128,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "query_pre_attn_scalar": 16,
    "sliding_window": 32,
    "sliding_window_pattern": 2,
    "max_position_embeddings": 1024,
}

# A gated delta rule, whose state is all that it remembers, and attention in turn.
RECURRENT_CONFIG = {
    "architectures": ["Qwen3NextForCausalLM"],
    "model_type": "qwen3_next",
    "hidden_size": 64,
    "num_hidden_layers": 4,
    "intermediate_size": 128,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "linear_num_value_heads": 4,
    "linear_num_key_heads": 2,
    "linear_key_head_dim": 32,
    "linear_value_head_dim": 16,
    "linear_conv_kernel_dim": 4,
    "full_attention_interval": 2,
    "num_experts": 0,
    "num_experts_per_tok": 0,
    "decoder_sparse_step": 1,
    "shared_expert_intermediate_size": 0,
    "moe_intermediate_size": 0,
    "mlp_only_layers": [],
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
    "partial_rotary_factor": 0.5,
    "max_position_embeddings": 1024,
}

# A recurrent layer and attention side by side: the caches of each layer are a list.
LISTED_CONFIG = {
    "architectures": ["FalconH1ForCausalLM"],
    "model_type": "falcon_h1",
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "intermediate_size": 128,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "mamba_d_ssm": 64,
    "mamba_n_heads": 4,
    "mamba_d_head": 16,
    "mamba_d_state": 16,
    "mamba_n_groups": 1,
    "rope_theta": 10000.0,
    "max_position_embeddings": 1024,
}

# By what their caches are like.
ARCHITECTURES = {
    "tiny": TINY_CONFIG,
    "rotating": ROTATING_CONFIG,
    "recurrent": RECURRENT_CONFIG,
    "listed": LISTED_CONFIG,
}


@pytest.fixture(scope="session")
def backend() -> Backend:
    """Return this machine's backend; MLX may be imported from here on."""
    return prepare(CACHE)


@pytest.fixture(scope="session")
def tiny_tokenizer() -> Tokenizer:
    """A byte-level BPE tokenizer with ChatML's special tokens."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = [AddedToken(token, special=True) for token in ("<|endoftext|>", "<|im_start|>", "<|im_end|>")]
    # A text that does not change: neither should what the models say.
    text = [(Path(__file__).parent.parent / "LICENSE").read_text("utf-8")]
    tokenizer.train_from_iterator(
        text,
        trainers.BpeTrainer(
            vocab_size=400,
            special_tokens=special,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    return tokenizer


def write_tiny_model(
    folder: Path, tokenizer: Tokenizer, seed: int = 0, architecture: dict[str, Any] = TINY_CONFIG
) -> None:
    """Write a model with random weights to `folder`; MLX must have been prepared."""
    import mlx.core as mx
    from mlx.utils import tree_flatten

    config = {
        **architecture,
        "vocab_size": tokenizer.get_vocab_size(),
        "eos_token_id": tokenizer.token_to_id("<|im_end|>"),
    }
    module = import_module(f"mlx_lm.models.{config['model_type']}")
    mx.random.seed(seed)
    network = module.Model(module.ModelArgs.from_dict(config))
    # Weights larger than training starts from: answers vary with the prompt instead of repeating one token.
    weights = {name: array * 4 for name, array in tree_flatten(network.parameters())}
    folder.mkdir(parents=True)
    mx.save_safetensors(str(folder / "model.safetensors"), weights, {"format": "mlx"})
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "tokenizer_config.json").write_text(
        json.dumps(
            {
                "tokenizer_class": "PreTrainedTokenizerFast",
                "chat_template": CHAT_TEMPLATE,
                "eos_token": "<|im_end|>",
                "clean_up_tokenization_spaces": False,
            }
        )
    )


@pytest.fixture(scope="session")
def tiny_models(tmp_path_factory: pytest.TempPathFactory, tiny_tokenizer: Tokenizer, backend: Backend) -> Path:
    """A models folder with `tests/tiny` and `tests/other`."""
    folder = tmp_path_factory.mktemp("models")
    write_tiny_model(folder / "tests" / "tiny", tiny_tokenizer)
    write_tiny_model(folder / "tests" / "other", tiny_tokenizer, seed=1)
    return folder


@pytest.fixture(scope="session")
def whole_models(tmp_path_factory: pytest.TempPathFactory, tiny_tokenizer: Tokenizer, backend: Backend) -> Path:
    """A models folder with `tests/rotating` and `tests/recurrent`, whose caches cannot be cut."""
    folder = tmp_path_factory.mktemp("whole")
    write_tiny_model(folder / "tests" / "rotating", tiny_tokenizer, architecture=ROTATING_CONFIG)
    write_tiny_model(folder / "tests" / "recurrent", tiny_tokenizer, architecture=RECURRENT_CONFIG)
    return folder


@pytest.fixture(scope="session")
def starter_models() -> Path:
    """A models folder with the starter model, fetched on first use."""
    from osaurus.library.pull import pull

    folder = Path(os.environ.get("OSU_TEST_MODELS", CACHE / "models"))
    CACHE.mkdir(exist_ok=True)
    # Processes that run tests side by side wait for the first.
    with (CACHE / "starter.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        pull("smollm2:135m", folder, print)
    return folder


@pytest.fixture
def hub() -> Iterator[FakeHub]:
    """A hub that has nothing yet."""
    with running_hub() as running:
        yield running


@pytest.fixture
def desk(backend: Backend, tiny_models: Path) -> Desk:
    """A desk with the tiny models, whose engine has read nothing yet."""
    return another(backend, tiny_models)


@pytest.fixture
def command_line(tmp_path: Path, tiny_models: Path, monkeypatch: pytest.MonkeyPatch) -> "CommandLine":
    """The command in an empty home, with the tiny models."""
    from .commandline import CommandLine

    monkeypatch.setenv("HOME", str(tmp_path))
    return CommandLine(tmp_path, tiny_models)


@pytest.fixture
def refused_memory_limits(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have processes that are started be refused limits of their memory, as on macOS."""
    folder = tmp_path_factory.mktemp("refusing")
    # Python imports a module of this name as it starts.
    (folder / "sitecustomize.py").write_text(
        "import resource\n"
        "real = resource.setrlimit\n"
        "def setrlimit(which, limits):\n"
        "    if which in (resource.RLIMIT_AS, resource.RLIMIT_DATA):\n"
        "        raise ValueError('current limit exceeds maximum limit')\n"
        "    real(which, limits)\n"
        "resource.setrlimit = setrlimit\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(folder), prepend=os.pathsep)
