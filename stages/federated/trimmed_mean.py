"""Coordinate-wise trimmed mean (Yin et al. 2018, "Byzantine-Robust Distributed Learning", Option II)."""

import numpy as np


def trimmed_mean(values_KE: np.ndarray, fraction: float) -> np.ndarray:
    """Mean over K devices of each element (E,), float64, without the ⌊fraction · K⌋ smallest and largest.

    Raises `ValueError` where nothing would be left.
    """
    count = len(values_KE)
    cut = int(fraction * count)
    if 2 * cut >= count:
        raise ValueError(f"{cut} cut at each end leave nothing of {count}")
    ordered_KE = np.sort(values_KE, axis=0)
    return np.asarray(ordered_KE[cut : count - cut].mean(axis=0, dtype=np.float64))
