"""Norm clipping (Sun et al. 2019, "Can You Really Backdoor Federated Learning?")."""

import numpy as np


def clipping_factors(norms_K: np.ndarray, bound: float) -> np.ndarray:
    """min(1, bound / ‖Δₖ‖) for each of K updates; 1 for one that did not move."""
    return np.asarray(bound / np.maximum(norms_K, bound))
