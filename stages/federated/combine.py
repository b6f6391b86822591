"""Combine many differences into one, by the plan's strategy, a chunk at a time.

Each tensor is combined over the updates that hold it: devices with narrower windows do not count for other layers.
What depends on more than a chunk (Krum's choice, clipping) is settled before the first value is averaged, for each
group of tensors that the same updates hold.

Shapes: K updates that hold a group's tensors, E elements of a chunk.
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


def chooses(settings: FederationSettings) -> bool:
    """Whether the strategy chooses updates by their distances."""
    return settings.strategy in ("krum", "multi-krum")


def weigh(settings: FederationSettings, counts: Sequence[int], squared_distances_KK: np.ndarray) -> np.ndarray:
    """Weights (K,) float64 of K updates from their example counts, or from distances if the strategy chooses by them.

    Krum keeps one update; multi-Krum weighs its K − f best equally, as in the paper: example counts are only claims.
    Raises `TooFewUpdates`.
    """
    if not chooses(settings):
        return np.array(counts, np.float64)
    malicious = settings.assumed_malicious
    if settings.strategy == "krum":
        chosen = krum(squared_distances_KK, malicious)
    else:
        chosen = multi_krum(squared_distances_KK, malicious, len(counts) - malicious)
    weights_K = np.zeros(len(counts))
    weights_K[chosen] = 1.0
    return weights_K


def clip(settings: FederationSettings, norms_K: np.ndarray) -> np.ndarray:
    """Factors (K,) float64 that scale differences of these norms down to `clip_norm`, 1 where it is `none`.

    Where most have not moved their median is 0, and what the others have moved is scaled to nothing.
    """
    if settings.clip_norm == "none":
        return np.ones(len(norms_K))
    bound = float(np.median(norms_K)) if settings.clip_norm == "median" else settings.clip_norm
    return clipping_factors(norms_K, bound) if bound > 0 else np.zeros(len(norms_K))


def combine(settings: FederationSettings, values_KE: np.ndarray, shares: Shares, cut: int) -> np.ndarray:
    """Combine one chunk of differences (K, E) into one difference (E,) float64.

    `cut`: how many values the trimmed mean leaves out at each end.
    """
    scaled_KE = values_KE * shares.factors_K[:, None]
    if settings.strategy == "coordinate-median":
        return coordinate_median(scaled_KE)
    if settings.strategy == "trimmed-mean":
        return trimmed_mean(scaled_KE, cut)
    return np.asarray(shares.weights_K @ scaled_KE / shares.weights_K.sum())
