"""Krum and Multi-Krum (Blanchard et al. 2017, "Machine Learning with Adversaries"): keep updates with near neighbours.

Shapes: K devices, N = K - 1 other devices.
"""

import numpy as np

from stages.federated.assumptions import check_enough


def krum(distances_KK: np.ndarray, malicious: int) -> list[int]:
    """The index of the one update with the smallest score.  See `multi_krum`."""
    return multi_krum(distances_KK, malicious, 1)


def multi_krum(distances_KK: np.ndarray, malicious: int, keep: int) -> list[int]:
    """Ascending indices of the `keep` updates with the smallest scores; among equal scores the smaller index.

    `distances_KK` are squared, `malicious` is [f], the number of devices that may be malicious.  The paper averages
    the kept updates (its [m]) without weights.  Raises `TooFewUpdates` if K < 2f + 3, `ValueError` if `keep` is not
    in 1 … K.
    """
    count = len(distances_KK)
    if not 1 <= keep <= count or malicious < 0:
        raise ValueError(f"{keep} of {count} updates cannot be kept against {malicious} malicious devices")
    check_enough("Krum", malicious, 2 * malicious + 3, count)  # Proposition 1
    ranked = np.argsort(scores(distances_KK, malicious), kind="stable")
    return sorted(ranked[:keep].tolist())


def scores(distances_KK: np.ndarray, malicious: int) -> np.ndarray:
    """Each update's sum of squared distances to its K - f - 2 nearest others, (K,) float64."""
    count = len(distances_KK)
    # An update is not its own neighbour.  It is left out by index: an equal update also has distance 0.
    others_KN = distances_KK[~np.eye(count, dtype=bool)].reshape(count, count - 1)
    return np.asarray(np.sort(others_KN, axis=1)[:, : count - malicious - 2].sum(axis=1))
