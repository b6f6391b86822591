"""FedAvg (McMahan et al. 2017): the mean of the updates, weighted by their example counts."""

from collections.abc import Iterable, Sequence

import numpy as np


def weighted_mean(chunks: Iterable[np.ndarray], weights: Sequence[int]) -> np.ndarray:
    """Σ wₖ xₖ / Σ wₖ for float32 `chunks` (E,), summed in float64 in the order given, one at a time.

    Equal chunks come back to the bit: the float64 error is far below half a float32 step.
    """
    total: np.ndarray | float = -0.0  # -0.0 + x is x, also where x is -0.0
    for chunk, weight in zip(chunks, weights, strict=True):
        total = total + chunk.astype(np.float64) * weight
    return np.asarray(total / sum(weights), dtype=np.float32)
