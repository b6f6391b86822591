"""FedAvg (McMahan et al. 2017): the mean of the updates, weighted by their example counts."""

from collections.abc import Iterable, Sequence

import numpy as np


def weighted_mean(chunks: Iterable[np.ndarray], weights: Sequence[int]) -> np.ndarray:
    """Σ wₖ xₖ / Σ wₖ (E,) float32 of float32 `chunks` (E,), summed in float64 in the order given, one at a time.

    The mean of equal chunks is that chunk to the bit: the float64 error is far below half a float32 step.  Raises
    `ValueError` if there are not as many weights as chunks.
    """
    total: np.ndarray | float = -0.0  # -0.0 + x is x, even for x = -0.0
    for chunk, weight in zip(chunks, weights, strict=True):
        total = total + chunk.astype(np.float64) * weight
    return np.asarray(total / sum(weights), dtype=np.float32)
