"""Norm clipping (Sun et al. 2019, "Can You Really Backdoor Federated Learning?", §3): no update's norm exceeds a bound.

Shapes: K devices.
"""

import numpy as np


def clipping_factors(norms_K: np.ndarray, bound: float) -> np.ndarray:
    """The factor for each update's difference, min(1, bound / ‖·‖), (K,) float64.

    `norms_K` are Euclidean norms of whole updates, over all their tensors.  An update within the bound, including one
    of norm 0, has a factor of exactly 1.  Raises `ValueError` for a bound that is not above 0.
    """
    if not bound > 0:
        raise ValueError(f"the bound on norms must be above 0, and {bound} is not")
    return np.asarray(bound / np.maximum(norms_K, bound))
