"""A GGUF file of a model of 0.4 billion parameters in the shape of Qwen 3, with random weights.

    python benchmarks/synthetic.py TOKENIZER.gguf OUT.gguf

What a model says does not change how fast it is computed. So where no second architecture of some size is at hand, one
can be made; its tokenizer is that of another GGUF file. Weights are float16, for llama.cpp's quantiser to make others.
"""

import argparse
from pathlib import Path

import gguf
import numpy as np

WIDTH, LAYERS, FEED_FORWARD, HEADS, KV_HEADS, HEAD = 1024, 20, 3072, 16, 8, 128
CONTEXT = 16384


def main() -> None:
    """Write the file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tokenizer", type=Path)
    parser.add_argument("out", type=Path)
    options = parser.parse_args()
    writer = gguf.GGUFWriter(options.out, "qwen3")
    writer.add_name("synthetic")
    writer.add_context_length(CONTEXT)
    writer.add_embedding_length(WIDTH)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(FEED_FORWARD)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_key_length(HEAD)
    writer.add_value_length(HEAD)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_rope_freq_base(1e6)
    vocabulary = _copy_tokenizer(gguf.GGUFReader(options.tokenizer), writer)
    random = np.random.default_rng(0)

    def matrix(name: str, rows: int, columns: int) -> None:
        values = random.standard_normal((rows, columns), np.float32) * np.float32(columns**-0.5)
        writer.add_tensor(f"{name}.weight", values.astype(np.float16))

    def vector(name: str, width: int) -> None:
        writer.add_tensor(f"{name}.weight", np.ones(width, np.float32))

    matrix("token_embd", vocabulary, WIDTH)
    for layer in range(LAYERS):
        block = f"blk.{layer}"
        vector(f"{block}.attn_norm", WIDTH)
        matrix(f"{block}.attn_q", HEADS * HEAD, WIDTH)
        matrix(f"{block}.attn_k", KV_HEADS * HEAD, WIDTH)
        matrix(f"{block}.attn_v", KV_HEADS * HEAD, WIDTH)
        vector(f"{block}.attn_q_norm", HEAD)
        vector(f"{block}.attn_k_norm", HEAD)
        matrix(f"{block}.attn_output", WIDTH, HEADS * HEAD)
        vector(f"{block}.ffn_norm", WIDTH)
        matrix(f"{block}.ffn_gate", FEED_FORWARD, WIDTH)
        matrix(f"{block}.ffn_up", FEED_FORWARD, WIDTH)
        matrix(f"{block}.ffn_down", WIDTH, FEED_FORWARD)
    vector("output_norm", WIDTH)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _copy_tokenizer(reader: gguf.GGUFReader, writer: gguf.GGUFWriter) -> int:
    """Write the tokenizer of another file; return how many tokens it has."""
    for name, field in reader.fields.items():
        if name.startswith("tokenizer."):
            kind, *rest = field.types
            writer.add_key_value(name, field.contents(), kind, sub_type=rest[-1] if rest else None)
    return len(reader.fields["tokenizer.ggml.tokens"].contents())


if __name__ == "__main__":
    main()
