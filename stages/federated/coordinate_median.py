"""Coordinate-wise median (Yin et al. 2018, "Byzantine-Robust Distributed Learning", Option I)."""

import numpy as np


def coordinate_median(values_KE: np.ndarray) -> np.ndarray:
    """Median over K devices of each element (E,), float64.  Example counts do not matter: they are claims.

    As long as fewer than half of the devices lie, each element stays between two honest ones.
    """
    return np.asarray(np.median(values_KE, axis=0), np.float64)
