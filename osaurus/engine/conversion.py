"""A model folder with weights of another kind → one as MLX has it; a process of its own.

It imports MLX, and takes as much memory as a shard of the weights; when it is through, both are gone. No code of the
model's own is run: mlx_lm and Transformers are told so, and nothing but safetensors is read.
"""

import sys
from argparse import ArgumentParser
from pathlib import Path

from .backend import prepare

# Of what mlx_lm writes beside the model: a page that says nothing.
SUPERFLUOUS = "README.md"


def main(arguments: list[str]) -> None:
    """Convert, as the command line says. Ends with status 1 and a line on standard error if that cannot be done."""
    parser = ArgumentParser(prog="python -m osaurus.engine.conversion")
    parser.add_argument("source", type=Path)
    parser.add_argument("target", type=Path)
    parser.add_argument("--bits", type=int)
    given = parser.parse_args(arguments)
    # Kernels that are compiled on the way are kept beside the target, for whoever started this to remove.
    prepare(given.target.parent)
    from mlx_lm.convert import convert

    try:
        convert(
            str(given.source),
            str(given.target),
            quantize=given.bits is not None,
            q_bits=given.bits,
            trust_remote_code=False,
        )
    except Exception as error:  # noqa: BLE001 - whatever it is, whoever started this tells it
        sys.exit(f"{type(error).__name__}: {error}".replace("\n", " "))
    (given.target / SUPERFLUOUS).unlink(missing_ok=True)


if __name__ == "__main__":
    main(sys.argv[1:])
