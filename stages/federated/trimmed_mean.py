"""Coordinate-wise trimmed mean (Yin et al. 2018, "Byzantine-Robust Distributed Learning", Definition 2).

Shapes: K devices, E elements of a tensor, T of the devices left between the cuts.
"""

import math

import numpy as np

from stages.federated.ordered import ordered


def trimmed_mean(values_KE: np.ndarray, fraction: float) -> np.ndarray:
    """Each element's mean without its ⌊fraction · K⌋ largest and as many smallest values, (E,) float64.

    Example counts have no say: a device could claim any.  While no more devices lie than are cut at one end, every
    element stays between two honest ones.  The order of the devices does not matter, to the bit.  Raises `ValueError`
    where nothing would remain.
    """
    count = len(values_KE)
    cut = cut_count(count, fraction)
    if count <= 2 * cut:
        raise ValueError(f"of {count} values nothing remains when {cut} are cut at each end")
    # Ordered whole, not only parted at the cuts: what remains is then summed in one order too.
    kept_TE = ordered(values_KE)[cut : count - cut]
    # A rounded mean can leave the range by its last bit.
    return np.asarray(np.clip(kept_TE.mean(axis=0), kept_TE[0], kept_TE[-1]))


def cut_count(count: int, fraction: float) -> int:
    """⌊fraction · count⌋ as the fraction is written: 0.29 of 100 is 29, though 0.29 · 100 is 28.999… in binary.

    Raises `ValueError` for a fraction outside [0, 0.5).
    """
    if not 0 <= fraction < 0.5:
        raise ValueError(f"a fraction to cut at each end lies in [0, 0.5), and {fraction} does not")
    return math.floor(fraction * count + 1e-9)
