"""The angles that a network's rotary embeddings turn by, as the kernels of `osaurus_cpu` have them."""

from typing import Any

import mlx.core as mx
import numpy as np
from attrs import define, field

from .packed import as_float32, osaurus_cpu

# Networks have a few kinds of layers. But some of them change frequencies with the length of the text, and there is no
# end of those.
MOST_KINDS = 64


@define(eq=False)
class Rotations:
    """The angles of one network's rotary embeddings; layers of the same kind share them."""

    _found: dict[Any, osaurus_cpu.Rotation] = field(factory=dict, init=False)

    def find(
        self, dims: int, traditional: bool, base: float | None, scale: float, freqs: mx.array | None
    ) -> osaurus_cpu.Rotation:
        """Return what `mx.fast.rope` would turn by."""
        # Told by the numbers, since some make the array anew for each call.
        numbers = None if freqs is None else np.array(as_float32(freqs)).tobytes()
        key = dims, traditional, base, scale, numbers
        if key not in self._found:
            if numbers is None:
                assert base is not None, "mx.fast.rope has either a base or frequencies"
                periods = np.float64(base) ** (np.arange(0, dims, 2) / dims)
            else:
                periods = np.frombuffer(numbers, np.float32).astype(np.float64)
            if len(self._found) == MOST_KINDS:
                del self._found[next(iter(self._found))]
            self._found[key] = osaurus_cpu.Rotation((scale / periods).tolist(), traditional)
        return self._found[key]
