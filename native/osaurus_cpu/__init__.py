"""MLX's missing CPU kernels: quantised matrix products and the rest of a transformer's pass, on float32 activations.

`pack` takes what `mx.quantize` made, into an `Arena` that all weights of a network share; the operations are lazy like
MLX's own and run on its CPU streams. A `Layer` is a whole layer of the kind that most models have. `use` chooses the
instruction set for the whole process, by default the best that the processor has (or what the environment variable
OSAURUS_CPU_KERNELS names); `available` lists them.

Importing this raises ImportError where it was built against another release of mlx, or for another processor, or where
that variable names what the processor lacks.
"""

from ._native import (
    Arena,
    Layer,
    Rotation,
    Weights,
    argmax,
    attention,
    available,
    candidates,
    gated_matmul,
    gather_matmul,
    glu,
    kernels,
    log_sum_exp,
    matmul,
    matmul_several,
    pack,
    push,
    rms_norm,
    rotate,
    rows_of,
    set_threads,
    threads,
    use,
)

__all__ = [
    "Arena",
    "Layer",
    "Rotation",
    "Weights",
    "argmax",
    "attention",
    "available",
    "candidates",
    "gated_matmul",
    "gather_matmul",
    "glu",
    "kernels",
    "log_sum_exp",
    "matmul",
    "matmul_several",
    "pack",
    "push",
    "rms_norm",
    "rotate",
    "rows_of",
    "set_threads",
    "threads",
    "use",
]
