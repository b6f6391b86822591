"""Strategies and server optimisers: Flower's own results as the oracle, and the laws that make them robust."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as fast
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from schemas.settings import FederationSettings
from stages.federated.assumptions import Assumptions
from stages.federated.combine import Shares, clip, combine, is_plain, weigh
from stages.federated.geometry import Geometry
from stages.federated.krum import multi_krum
from stages.federated.norm_clipping import clipping_factors
from stages.federated.server_optimizer import MOMENTS, server_step

REFERENCE = json.loads((Path(__file__).parent / "flower_reference.json").read_text())
EXTRA: dict[str, dict[str, Any]] = {
    "trimmed-mean": {"trim_fraction": 0.25},
    "krum": {"assumed_malicious": 2},
    "multi-krum": {"assumed_malicious": 2},
}
few_devices = arrays.arrays(
    np.float64, st.tuples(st.integers(5, 9), st.integers(1, 6)), elements=st.floats(-1e6, 1e6, width=32)
)


def distances(values_KE: np.ndarray) -> np.ndarray:
    geometry = Geometry(len(values_KE))
    geometry.add(values_KE)
    return geometry.squared_distances_KK


def whole(settings: FederationSettings, values_KE: np.ndarray, counts: list[int]) -> np.ndarray:
    weights_K = weigh(settings, counts, distances(values_KE))
    shares = Shares(weights_K, clip(settings, np.linalg.norm(values_KE, axis=1)))
    return combine(settings, values_KE, shares, Assumptions(settings, len(counts)).malicious)


@pytest.mark.parametrize("name", ["weighted-mean", "coordinate-median", "trimmed-mean", "krum", "multi-krum"])
def test_strategies_give_what_flower_gives(name: Any) -> None:
    settings = FederationSettings(strategy=name, **EXTRA.get(name, {}))
    for one in REFERENCE["rounds"][name]:
        before, sent = np.array(one["before"]), np.array(one["sent"])
        counts = REFERENCE["counts"]
        found = before + whole(settings, sent - before, counts)
        if name == "multi-krum":  # Flower weights those it keeps by their example counts, the paper does not
            kept = multi_krum(distances(sent - before), 2, len(counts) - 2)
            found = np.average(sent[kept], axis=0, weights=np.array(counts)[kept])
        assert np.allclose(found, one["after"], rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("name", ["fedavgm", "fedadam", "fedyogi"])
def test_server_optimisers_give_what_flower_gives(name: Any) -> None:
    settings = FederationSettings(server_optimizer=name)
    moments = tuple(np.zeros(12, np.float32) for _ in MOMENTS[name])
    for one in REFERENCE["rounds"][name]:
        before, sent = np.array(one["before"]), np.array(one["sent"])
        difference = whole(settings, sent - before, REFERENCE["counts"])
        found, moments = server_step(settings, before, difference, moments)
        assert np.allclose(found, one["after"], rtol=2e-6, atol=2e-6)


@fast(max_examples=100, deadline=None)
@given(values=few_devices, bound=st.floats(1e-3, 1e3))
def test_a_mean_of_clipped_updates_is_no_longer_than_the_bound(values: np.ndarray, bound: float) -> None:
    settings = FederationSettings(clip_norm=bound)
    assert np.linalg.norm(whole(settings, values, [3] * len(values))) <= bound * (1 + 1e-9)
    short = clipping_factors(np.array([0.0, bound / 2]), bound)
    assert np.array_equal(short, [1.0, 1.0])


@pytest.mark.parametrize("name", ["coordinate-median", "trimmed-mean", "krum", "multi-krum"])
def test_equal_updates_come_back(name: Any) -> None:
    values = np.tile(np.random.default_rng(0).standard_normal(7), (7, 1))
    settings = FederationSettings(strategy=name, assumed_malicious=1)
    assert np.allclose(whole(settings, values, [1, 2, 3, 4, 5, 6, 7]), values[0], rtol=1e-12)


def test_where_most_have_not_moved_the_median_norm_lets_nothing_move() -> None:
    """Without a bound at all, one liar among those that stand still would decide alone."""
    values = np.array([[0.0, 0.0], [0.0, 0.0], [0.0, 0.0], [3.0, 4.0]])
    assert whole(FederationSettings(clip_norm="median"), values, [1, 1, 1, 9]).tolist() == [0.0, 0.0]


def test_only_the_mean_of_whole_updates_is_plain() -> None:
    assert is_plain(FederationSettings()) is True
    changes: list[dict[str, Any]] = [{"strategy": "krum"}, {"clip_norm": 1.0}, {"server_optimizer": "fedavgm"}]
    assert [is_plain(FederationSettings(**change)) for change in changes] == [False] * 3
