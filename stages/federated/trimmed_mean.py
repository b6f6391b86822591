"""Coordinate-wise trimmed mean (Yin et al. 2018, "Byzantine-Robust Distributed Learning", Definition 2).

Shapes: K devices, E elements of a tensor, T values kept of the K.
"""

import math

import numpy as np

from stages.federated.ordered import ordered


def trimmed_mean(values_KE: np.ndarray, cut: int) -> np.ndarray:
    """Each element's mean without its `cut` largest and as many smallest values, (E,) float64.

    Example counts are ignored: a device could claim any.  As long as no more devices are malicious than values are
    trimmed at one end, every element stays between two honest ones.  The order of the devices does not matter, to the
    bit.  Raises `ValueError` if nothing would remain.
    """
    count = len(values_KE)
    if count <= 2 * cut:
        raise ValueError(f"nothing remains of {count} values when {cut} are trimmed at each end")
    # Fully sorted, not only partitioned: the kept values are then summed in a fixed order too.
    kept_TE = ordered(values_KE)[cut : count - cut]
    # A rounded mean can leave the range in its last bit.
    return np.asarray(np.clip(kept_TE.mean(axis=0), kept_TE[0], kept_TE[-1]))


def cut_count(count: int, fraction: float) -> int:
    """How many of `count` values Definition 2 removes at each end for β = `fraction`.

    ⌊fraction · count⌋ in decimal: 0.29 of 100 is 29, although 0.29 · 100 is 28.999… in binary.

    Raises `ValueError` for a fraction outside [0, 0.5).
    """
    if not 0 <= fraction < 0.5:
        raise ValueError(f"the fraction to trim at each end must be in [0, 0.5), and {fraction} is not")
    return math.floor(fraction * count + 1e-9)
