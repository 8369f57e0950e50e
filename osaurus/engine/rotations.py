"""The angles that a network's rotary embeddings turn by, as the kernels of `osaurus_cpu` have them."""

from typing import Any

import mlx.core as mx
import numpy as np
from attrs import define, field

from .packed import osaurus_cpu


@define(eq=False)
class Rotations:
    """The angles of one network's rotary embeddings; layers of the same kind share them."""

    _found: dict[Any, tuple[Any, osaurus_cpu.Rotation]] = field(factory=dict, init=False)

    def find(
        self, dims: int, traditional: bool, base: float | None, scale: float, freqs: mx.array | None
    ) -> osaurus_cpu.Rotation:
        """Return what `mx.fast.rope` would turn by."""
        key = dims, traditional, base, scale, id(freqs)
        if key not in self._found:
            if freqs is None:
                assert base is not None, "mx.fast.rope has either a base or frequencies"
                periods = np.float64(base) ** (np.arange(0, dims, 2) / dims)
            else:
                periods = np.array(freqs.astype(mx.float32), dtype=np.float64)
            # The frequencies are kept with it: another array could get their identity.
            self._found[key] = freqs, osaurus_cpu.Rotation((scale / periods).tolist(), traditional)
        return self._found[key][1]
