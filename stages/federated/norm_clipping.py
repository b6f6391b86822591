"""Norm clipping (Sun et al. 2019, "Can You Really Backdoor Federated Learning?", §3): no update longer than a bound.

Shapes: K devices.
"""

import numpy as np


def clipping_factors(norms_K: np.ndarray, bound: float) -> np.ndarray:
    """What to multiply each update's difference by, min(1, bound / ‖·‖), (K,) float64.

    `norms_K` are Euclidean norms of whole updates, over all their tensors.  The factor of an update within the bound,
    also of one of norm 0, is 1 exactly.  Raises `ValueError` for a bound that is not above 0.
    """
    if not bound > 0:
        raise ValueError(f"a bound on norms is above 0, and {bound} is not")
    return np.asarray(bound / np.maximum(norms_K, bound))
