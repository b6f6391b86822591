"""Krum and multi-Krum (Blanchard et al. 2017, "Machine Learning with Adversaries")."""

import numpy as np

from schemas.errors import TooFewUpdates


def krum(squared_distances_KK: np.ndarray, malicious: int) -> list[int]:
    """Index of the update whose n − f − 2 nearest others are nearest, as a list of one.

    Raises `TooFewUpdates` for fewer than 2 f + 3.
    """
    return multi_krum(squared_distances_KK, malicious, keep=1)


def multi_krum(squared_distances_KK: np.ndarray, malicious: int, keep: int) -> list[int]:
    """Indices, ascending, of the `keep` updates with the smallest Krum scores; ties go to the first."""
    count = len(squared_distances_KK)
    if count < 2 * malicious + 3:
        raise TooFewUpdates(
            "Krum cannot tell who lies among so few updates",
            values={"needed": f"{2 * malicious + 3}, for assumed_malicious = {malicious}", "accepted": count},
            hint="wait for more updates, or assume fewer malicious devices in a new plan",
        )
    others_KK = squared_distances_KK + np.diag(np.full(count, np.inf))  # an update is no neighbour of its own
    nearest_KN = np.sort(others_KK, axis=1)[:, : count - malicious - 2]
    order = np.argsort(nearest_KN.sum(axis=1), kind="stable")
    return sorted(order[:keep].tolist())
