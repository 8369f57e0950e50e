"""Whether a network says of a row in company what it says of it alone.

mlx_lm writes its networks for one row; most serve several of unlike lengths as well, with caches that know each row's
own. Some take one position for all rows, or a mask without rows: they raise, or say something else. Neither caches nor
code tell, so it is tried when a model is loaded: what comes of a sequence as it is read by itself must come of its
beginnings, of unlike lengths, as rows of one batch.

What rounding explains is allowed, and a mixture of experts may choose others for it: this is no test of precision. A
network is wrong only if it is wrong each time.
"""

from copy import deepcopy
from itertools import pairwise
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx_lm.models.cache import make_prompt_cache
from twisted.logger import Logger

from .checkpoints import single_caches
from .joining import join

log = Logger()

# How many tokens of the sequence each row has, the last of which the batch reads. With none before it, empty caches
# join; with two, such as remember more than that. The more, the more positions matter, and the longer it takes.
LENGTHS = (1, 3, 8, 17)

TRIES = 3

# How far logits may be off: the root of the mean square, in standard deviations of what is right. With float32 it is
# less than a thousandth; networks with random weights and wrong positions are off by more than this.
MOST_OFF = 0.1


def batchable(name: str, network: nn.Module, vocabulary_size: int) -> bool:
    """Tell whether rows of a network may be computed together; if not, a line in the log says why."""
    if not all(hasattr(cache, "merge") for cache in make_prompt_cache(network)):
        reason = "its caches cannot be merged"
    else:
        try:
            off = float("inf")
            for number in range(TRIES):
                # The same each time that the model is loaded: chance is no part of this.
                sequence = [(7919 * place + 31 * number + 1) % vocabulary_size for place in range(max(LENGTHS))]
                off = min(off, _off(network, sequence))
                if off <= MOST_OFF:
                    return True
            reason = f"together they are off by {off:.2f} of the spread of their logits"
        except Exception as error:  # noqa: BLE001 - whatever a network raises that was not written for this
            reason = f"together they fail with {type(error).__name__}: {error}"
    log.warn(
        "{name} answers one request at a time, as its rows cannot be computed together: {reason}",
        name=name,
        reason=reason,
    )
    return False


def _off(network: nn.Module, sequence: list[int]) -> float:
    """Return how far logits in company are off, at most; infinity if some are none."""
    caches = make_prompt_cache(network)
    for cache in single_caches(caches):
        # Room for no more than this: of a large network's it would be much.
        cache.step = len(sequence)
    rows: list[list[Any]] = []
    logits: list[mx.array] = []
    for length, following in pairwise((*LENGTHS, LENGTHS[-1] + 1)):
        rows.append(deepcopy(caches))
        logits.append(network(mx.array([sequence[length - 1 : following - 1]]), cache=caches)[0, 0])
    merged = [join(None, layer) for layer in zip(*rows, strict=True)]
    together = network(mx.array([[sequence[length - 1]] for length in LENGTHS]), cache=merged)[:, -1]
    alone = mx.stack(logits)
    found, expected = (np.array(logits.astype(mx.float32)) for logits in (together, alone))
    off = 0.0
    for theirs, own in zip(found, expected, strict=True):
        # Tokens that a network never writes may have no finite logit.
        finite = np.isfinite(own)
        if not np.isfinite(theirs[finite]).all():
            return float("inf")
        if finite.any():
            distance = np.sqrt(np.square(theirs[finite] - own[finite]).mean())
            off = max(off, float(distance / (own[finite].std() or 1.0)))
    return off
