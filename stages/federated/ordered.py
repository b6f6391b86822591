"""What the devices say of each element, in order: what median and trimmed mean start from.

Shapes: K devices, E elements of a tensor.
"""

import numpy as np


def ordered(values_KE: np.ndarray) -> np.ndarray:
    """Each element's values, rising along the devices, (K, E) float64, a copy.

    Equal sets of values give equal bytes, whatever order the devices came in.
    """
    ordered_KE = values_KE.astype(np.float64)
    # 0.0 of -0.0: the two compare equal, so which of them comes first would depend on who came first.
    ordered_KE += 0.0
    ordered_KE.sort(axis=0)
    return ordered_KE
