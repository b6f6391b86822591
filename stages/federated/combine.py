"""Combine many differences into one, by the plan's strategy, a chunk at a time.

Each tensor is combined over the updates that hold it: devices with narrower windows do not count for other layers.
What depends on whole updates (Krum's choice, clipping) is settled before the first value is averaged.

Shapes: K updates, E elements of a chunk.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from schemas.settings import FederationSettings
from stages.federated.coordinate_median import coordinate_median
from stages.federated.krum import krum, multi_krum
from stages.federated.norm_clipping import clipping_factors
from stages.federated.trimmed_mean import trimmed_mean


@dataclass(frozen=True)
class Shares:
    """Of K updates, float64: weights in means (0: not chosen), and the factors that clip their norms."""

    weights_K: np.ndarray
    factors_K: np.ndarray


def is_plain(settings: FederationSettings) -> bool:
    """Whether the next state is just the weighted mean of the updates."""
    chosen = (settings.strategy, settings.clip_norm, settings.server_optimizer)
    return chosen == ("weighted-mean", "none", "none")


def settle(
    settings: FederationSettings, counts: Sequence[int], norms_K: np.ndarray, squared_distances_KK: np.ndarray | None
) -> Shares:
    """Weights and factors of K updates from their example counts, norms and squared distances.

    Krum keeps one update; multi-Krum weighs its n − f best equally, as in the paper: example counts are only claims.
    Raises `TooFewUpdates`.
    """
    weights_K = np.array(counts, np.float64)
    if settings.strategy in ("krum", "multi-krum"):
        assert squared_distances_KK is not None
        malicious = settings.assumed_malicious
        if settings.strategy == "krum":
            chosen = krum(squared_distances_KK, malicious)
        else:
            chosen = multi_krum(squared_distances_KK, malicious, len(counts) - malicious)
        weights_K = np.zeros(len(counts))
        weights_K[chosen] = 1.0
    factors_K = np.ones(len(counts))
    if settings.clip_norm != "none":
        bound = float(np.median(norms_K)) if settings.clip_norm == "median" else settings.clip_norm
        factors_K = clipping_factors(norms_K, bound) if bound > 0 else factors_K
    return Shares(weights_K, factors_K)


def combine(settings: FederationSettings, values_KE: np.ndarray, shares: Shares) -> np.ndarray:
    """Combine one chunk of differences (K, E), of the updates that hold a tensor, into one difference (E,) float64."""
    scaled_KE = values_KE * shares.factors_K[:, None]
    if settings.strategy == "coordinate-median":
        return coordinate_median(scaled_KE)
    if settings.strategy == "trimmed-mean":
        return trimmed_mean(scaled_KE, settings.trim_fraction)
    total = shares.weights_K.sum()
    if not total:  # no chosen update holds the tensor: it stays the same
        return np.zeros(values_KE.shape[1])
    return np.asarray(shares.weights_K @ scaled_KE / total)
