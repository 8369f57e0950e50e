"""How far a model that the CPU kernels compute is from the same weights in float32.

    python benchmarks/agreement.py MODEL_FOLDER TEXT_FILE …

Both read the same texts in pieces of 512 tokens. What comes out: the perplexity of each, how often both find the same
token most probable, and the mean Kullback-Leibler divergence of the kernels' distribution from float32's, in nats.
"""

import argparse
import math
import tempfile
from pathlib import Path

from attrs import evolve

from osaurus.engine.backend import prepare

PIECE = 512
MEMORY = 2**36


def main() -> None:
    """Read the texts twice and compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("texts", nargs="+", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as cache:
        backend = prepare(Path(cache))
        if backend.kernels is None:
            raise SystemExit("there are no kernels here")
        import mlx.core as mx
        from mlx_lm.models.cache import make_prompt_cache

        from osaurus.engine.loader import load

        ours, plain = (
            load("model", options.model, chosen, MEMORY, lambda _: None)
            for chosen in (backend, evolve(backend, kernels=None))
        )
        tokens = ours.tokenizer.encode("\n".join(path.read_text("utf-8") for path in options.texts)).ids
        losses, same, divergence, count = [0.0, 0.0], 0, 0.0, 0
        for begin in range(0, len(tokens) - PIECE + 1, PIECE):
            piece = mx.array([tokens[begin : begin + PIECE]])
            found = []
            for model in (ours, plain):
                # With caches, which the kernels keep as float16.
                logits = model.network(piece, cache=make_prompt_cache(model.network))[0, :-1].astype(mx.float32)
                found.append(logits - mx.logsumexp(logits, axis=-1, keepdims=True))
            for place, scores in enumerate(found):
                losses[place] -= float(mx.take_along_axis(scores, piece[0, 1:, None], axis=-1).sum())
            same += int((mx.argmax(found[0], axis=-1) == mx.argmax(found[1], axis=-1)).sum())
            divergence += float((mx.exp(found[1]) * (found[1] - found[0])).sum())
            count += PIECE - 1
    print(f"{count} tokens with {backend.kernels}")
    print(f"perplexity {math.exp(losses[0] / count):.3f}, in float32 {math.exp(losses[1] / count):.3f}")
    print(f"same most probable token {same / count:.1%}; mean divergence {divergence / count:.4f}")


if __name__ == "__main__":
    main()
