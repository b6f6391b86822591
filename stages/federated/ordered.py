"""Sort each element's values over the devices, for the median and the trimmed mean.

Shapes: K devices, E elements of a tensor.
"""

import numpy as np


def ordered(values_KE: np.ndarray) -> np.ndarray:
    """A copy (K, E) float64 with each element's values in ascending order along the devices.

    Equal sets of values give equal bytes, whatever the order of the devices.
    """
    ordered_KE = values_KE.astype(np.float64)
    # -0.0 becomes 0.0: the two compare equal, so their order would depend on the order of the devices.
    ordered_KE += 0.0
    ordered_KE.sort(axis=0)
    return ordered_KE
