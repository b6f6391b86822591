"""Server optimisers: the mean difference as a pseudo-gradient (Reddi et al. 2021, "Adaptive Federated Optimization").

With a sliding window a tensor moves only in some rounds; its moments stay the same in between.  Moments start at zero.
FedAdam has no bias correction, as in the paper's Algorithm 2; Flower 1.41 differs only in that it corrects the
learning rate by √(1 − β₂ᵗ⁺¹) / (1 − β₁ᵗ⁺¹).
"""

from collections.abc import Mapping

import numpy as np

from schemas.settings import FederationSettings, ServerOptimizer

MOMENTS: Mapping[ServerOptimizer, tuple[str, ...]] = {
    "none": (),
    "fedavgm": ("first",),
    "fedadam": ("first", "second"),
    "fedyogi": ("first", "second"),
}


def server_step(
    settings: FederationSettings, before: np.ndarray, difference: np.ndarray, moments: tuple[np.ndarray, ...]
) -> tuple[np.ndarray, tuple[np.ndarray, ...]]:
    """New values and moments (E,) float32, from the values x, the mean difference Δ and the moments before.

    none      x + Δ
    fedavgm   m ← β₁ m + Δ;             x + η m   (Hsu et al. 2019)
    fedadam   m ← β₁ m + (1 − β₁) Δ;    v ← β₂ v + (1 − β₂) Δ²;                    x + η m / (√v + τ)
    fedyogi   m as in fedadam;          v ← v − (1 − β₂) Δ² sign(v − Δ²);          x + η m / (√v + τ)
    """
    x, delta = before.astype(np.float64), difference.astype(np.float64)
    name, rate, beta1 = settings.server_optimizer, settings.server_learning_rate, settings.server_momentum
    if name == "none":
        return np.asarray(x + delta, np.float32), ()
    first = moments[0].astype(np.float64)
    if name == "fedavgm":
        first = beta1 * first + delta
        return np.asarray(x + rate * first, np.float32), (np.asarray(first, np.float32),)
    first = beta1 * first + (1 - beta1) * delta
    second, square = moments[1].astype(np.float64), delta * delta
    if name == "fedadam":
        second = settings.server_beta2 * second + (1 - settings.server_beta2) * square
    else:
        second = second - (1 - settings.server_beta2) * square * np.sign(second - square)
    moved = x + rate * first / (np.sqrt(second) + settings.server_tau)
    return np.asarray(moved, np.float32), (np.asarray(first, np.float32), np.asarray(second, np.float32))
