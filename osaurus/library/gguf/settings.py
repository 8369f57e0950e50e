"""The settings of a model, from a GGUF's metadata to what mlx-lm reads from config.json.

Here is what all architectures have, under the same names; `families` has what each has beside that. A setting that
mlx-lm's model cannot follow is refused: the answers would be wrong without a word.
"""

from typing import Any

import numpy as np
from attrs import define, field, frozen

from .blocks import floats
from .header import StoredTensor, UnsupportedGGUF
from .metadata import Metadata
from .parts import Model
from .tensors import ATTENTION, ATTENTION_BIAS, CONVOLUTION, MLP_BIAS, NAMES, OUTPUT, Places

MOST_LAYERS = 1024
EMBEDDING = "token_embd.weight"
HEADS, KEY_VALUE_HEADS = ".attention.head_count", ".attention.head_count_kv"
FEED_FORWARD, EPSILON = ".feed_forward_length", ".attention.layer_norm_rms_epsilon"


@frozen
class Settings:
    """A model's config.json but for quantisation and tokens; its tensors, and those that hold settings themselves.

    `wide`: activations may be too large for float16.
    """

    config: dict[str, Any]
    places: Places
    sizes: dict[str, int]
    used: frozenset[str]
    wide: bool


@define
class Draft:
    """The settings of a model while they are found out. Every method raises UnsupportedGGUF."""

    model: Model
    config: dict[str, Any] = field(factory=dict, init=False)
    # What the model has beside its architecture's other tensors; and each layer, where they differ.
    kinds: set[str] = field(factory=set, init=False)
    layer_kinds: list[str] = field(factory=list, init=False)
    _used: set[str] = field(factory=set, init=False)

    @property
    def metadata(self) -> Metadata:
        """The file's metadata."""
        return self.model.metadata

    def common(self, model_type: str, class_name: str) -> None:
        """Note what all architectures have."""
        metadata = self.metadata
        layers, width = metadata.size(".block_count"), metadata.size(".embedding_length")
        if layers > MOST_LAYERS:
            raise UnsupportedGGUF(f"its metadata says {layers} layers")
        heads = metadata.size(HEADS)
        self.config |= {
            "model_type": model_type,
            "architectures": [class_name],
            "hidden_size": width,
            "num_hidden_layers": layers,
            "num_attention_heads": heads,
            "num_key_value_heads": self._key_value_heads(heads),
            "rms_norm_eps": metadata.positive(EPSILON),
            # llama.cpp's own where the file has none.
            "rope_theta": metadata.positive(".rope.freq_base", 10000.0),
            "max_position_embeddings": metadata.size(".context_length"),
            "vocab_size": self._tensor(EMBEDDING).shape[0],
            "tie_word_embeddings": "output.weight" not in self.model.tensors,
        }
        if metadata.has(FEED_FORWARD):
            self.config["intermediate_size"] = metadata.size(FEED_FORWARD)
        if not self.config["tie_word_embeddings"]:
            self.kinds.add(OUTPUT)

    def head(self) -> int:
        """Return the length of a head."""
        heads, width = self.config["num_attention_heads"], self.config["hidden_size"]
        if not self.metadata.has(".attention.key_length") and width % heads:
            raise UnsupportedGGUF(f"its metadata says {heads} heads for a width of {width}")
        length: int = self.metadata.size(".attention.key_length", width // heads)
        if length % 2:
            raise UnsupportedGGUF(f"its heads are of the length {length}, which cannot be")
        if self.metadata.size(".attention.value_length", length) != length:
            raise UnsupportedGGUF("its values are of another length than its keys, which is not converted")
        return length

    def quotient_head(self) -> int:
        """Return the length of a head where mlx-lm's model knows no other than width / heads."""
        length = self.head()
        if length * self.config["num_attention_heads"] != self.config["hidden_size"]:
            raise UnsupportedGGUF(f"its heads are of the length {length}, not width / heads, which is not converted")
        return length

    def vector(self, name: str) -> list[float]:
        """Return the numbers of a tensor that holds settings."""
        tensor = self._tensor(name)
        if len(tensor.shape) != 1 or tensor.shape[0] > self.config["hidden_size"]:
            raise UnsupportedGGUF(f"the tensor {name!r} cannot have the shape {list(tensor.shape)}")
        self._used.add(name)
        values = floats(tensor.rows(), tensor.kind).ravel()
        if not np.isfinite(values).all():
            raise UnsupportedGGUF(f"the tensor {name!r} has values that are no numbers")
        return [float(number) for number in values]

    def note_biases(self) -> None:
        """Note whether there are biases, which some models of an architecture have."""
        biases = {
            ATTENTION_BIAS: ("attn_q.bias", "attn_k.bias", "attn_v.bias", "attn_output.bias"),
            MLP_BIAS: ("ffn_gate.bias", "ffn_up.bias", "ffn_down.bias"),
        }
        for kind, endings in biases.items():
            found = any(name.startswith("blk.") and name.endswith(endings) for name in self.model.tensors)
            self.config[kind] = found
            self.kinds |= {kind} if found else set()

    def finished(self, wide: bool) -> Settings:
        """Return the settings, when the architecture's own were noted."""
        config = self.config
        heads, key_value_heads = config["num_attention_heads"], config["num_key_value_heads"]
        width, inner = config["hidden_size"], config.get("intermediate_size", 0)
        head = config.get("head_dim") or width // heads
        sizes = {
            "vocabulary": config["vocab_size"],
            "width": width,
            "thrice_width": 3 * width,
            "inner": inner,
            "twice_inner": 2 * inner,
            "heads": heads,
            "key_value_heads": key_value_heads,
            "head": head,
            "queries": heads * head,
            "keys": key_value_heads * head,
            "queries_keys_values": (heads + 2 * key_value_heads) * head,
            "experts": config.get("num_experts") or config.get("num_local_experts") or 0,
            "expert_inner": config.get("moe_intermediate_size") or 0,
            "convolution": config.get("conv_L_cache") or 0,
        }
        places = NAMES[config["model_type"]].of(config["num_hidden_layers"], self._has)
        return Settings(config, places, sizes, frozenset(self._used), wide)

    def _has(self, layer: int | None) -> set[str]:
        return self.kinds | {self.layer_kinds[layer]} if layer is not None and self.layer_kinds else self.kinds

    def _tensor(self, name: str) -> StoredTensor:
        if name not in self.model.tensors:
            raise UnsupportedGGUF(f"the tensor {name!r} is missing")
        return self.model.tensors[name]

    def _key_value_heads(self, heads: int) -> int:
        """Return how many there are; in LFM2 the layers without attention have none."""
        if not isinstance(self.metadata.values.get(self.metadata.architecture + KEY_VALUE_HEADS), np.ndarray):
            found: int = self.metadata.size(KEY_VALUE_HEADS, heads)
        else:
            counts = self.metadata.integers(KEY_VALUE_HEADS)
            others = set(counts) - {0}
            if len(others) != 1 or min(others) < 0:
                key = self.metadata.architecture + KEY_VALUE_HEADS
                raise UnsupportedGGUF(f"its metadata's {key!r} differs between layers: not converted")
            [found] = others
            if 0 in counts:
                self.layer_kinds = [ATTENTION if count else CONVOLUTION for count in counts]
        if heads % found:
            raise UnsupportedGGUF(f"its metadata says {heads} heads, and {found} of keys and values")
        return found
