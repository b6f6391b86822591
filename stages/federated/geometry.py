"""Norms of updates and distances between them, without holding a whole update in memory.

Shapes: K devices, E elements of a chunk, B elements of a block.
"""

from collections.abc import Iterator

import numpy as np

BLOCK_ELEMENTS = 2**13
BLOCK_VALUES = 20 * BLOCK_ELEMENTS  # 1.3 MB of float64, of all devices: stays in the processor's cache


class Geometry:
    """Squared Euclidean norms (K,) and, if asked for, distances (K, K) of K updates, float64, summed over chunks.

    Chunks should be differences to the parent state.  Distances are sums of squared differences, never
    ‖x‖² + ‖y‖² - 2 x·y: for long, nearly equal updates that loses every digit, and can be negative.  For K = 20 it
    takes 6 ms per chunk of 2¹⁶ elements, and grows with K².
    """

    def __init__(self, count: int, *, distances: bool = True) -> None:
        self.squared_norms_K = np.zeros(count)
        self.squared_distances_KK = np.zeros((count, count) if distances else (0, 0))

    def add(self, values_KE: np.ndarray) -> None:
        """Add the next chunk (K, E) of all updates.  Raises `ValueError` for another number of updates."""
        count = len(self.squared_norms_K)
        if len(values_KE) != count:
            raise ValueError(f"a chunk of {len(values_KE)} updates was added to the geometry of {count}")
        for values_KB in blocks(values_KE):
            self.squared_norms_K += _squares(values_KB)
            for one in range(1, len(self.squared_distances_KK)):
                apart_K = _squares(values_KB[:one] - values_KB[one])
                self.squared_distances_KK[one, :one] += apart_K
                self.squared_distances_KK[:one, one] += apart_K


def blocks(values_KE: np.ndarray) -> Iterator[np.ndarray]:
    """Blocks (K, B) float64 of a chunk of K > 0 updates, in order."""
    size = max(1, min(BLOCK_ELEMENTS, BLOCK_VALUES // len(values_KE)))
    for start in range(0, values_KE.shape[1], size):
        yield values_KE[:, start : start + size].astype(np.float64)


def _squares(values_KB: np.ndarray) -> np.ndarray:
    # einsum, not a matrix product: one thread, so a fixed order of summation.
    return np.asarray(np.einsum("kb,kb->k", values_KB, values_KB))
