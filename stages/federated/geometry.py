"""How far updates lie from each other and from the state, a chunk at a time."""

import numpy as np


class Geometry:
    """Squared distances (K, K) and squared norms (K,) of K differences, float64, summed over chunks.

    Distances are sums of squared differences, never ‖a‖² + ‖b‖² − 2ab, which loses everything for large updates that
    are nearly equal.
    """

    def __init__(self, count: int) -> None:
        self.squared_distances_KK = np.zeros((count, count))

    def add(self, values_KE: np.ndarray) -> None:
        """One chunk of every update (K, E)."""
        for one in range(1, len(values_KE)):
            apart_JE = np.subtract(values_KE[:one], values_KE[one], dtype=np.float64)
            squares_J = np.einsum("je,je->j", apart_JE, apart_JE)
            self.squared_distances_KK[one, :one] += squares_J
            self.squared_distances_KK[:one, one] += squares_J
