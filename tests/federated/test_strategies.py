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

from schemas.errors import TooFewUpdates
from schemas.settings import FederationSettings
from stages.federated.combine import combine, settle
from stages.federated.coordinate_median import coordinate_median
from stages.federated.geometry import Geometry
from stages.federated.krum import krum, multi_krum
from stages.federated.norm_clipping import clipping_factors
from stages.federated.server_optimizer import MOMENTS, server_step
from stages.federated.trimmed_mean import trimmed_mean

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
    norms_K = np.linalg.norm(values_KE, axis=1)
    return combine(settings, values_KE, settle(settings, counts, norms_K, distances(values_KE)))


@pytest.mark.parametrize("name", ["weighted-mean", "coordinate-median", "trimmed-mean", "krum", "multi-krum"])
def test_strategies_give_what_flower_gives(name: Any) -> None:
    settings = FederationSettings(strategy=name, **EXTRA.get(name, {}))
    for one in REFERENCE["rounds"][name]:
        before, sent = np.array(one["before"]), np.array(one["sent"])
        found = before + whole(settings, sent - before, REFERENCE["counts"])
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
@given(values=few_devices, data=st.data())
def test_the_order_of_devices_does_not_matter(values: np.ndarray, data: st.DataObject) -> None:
    order = data.draw(st.permutations(range(len(values))))
    shuffled = values[order]
    assert np.array_equal(coordinate_median(values), coordinate_median(shuffled))
    assert np.allclose(trimmed_mean(values, 0.2), trimmed_mean(shuffled, 0.2), rtol=1e-12, atol=1e-6)
    assert np.array_equal(distances(values)[np.ix_(order, order)], distances(shuffled))


@fast(max_examples=100, deadline=None)
@given(values=few_devices, wild=st.sampled_from([1e30, -1e30, 1e300, 0.0]), data=st.data())
def test_fewer_than_the_breaking_point_cannot_leave_the_honest_range(
    values: np.ndarray, wild: float, data: st.DataObject
) -> None:
    liars = data.draw(st.sets(st.integers(0, len(values) - 1), max_size=(len(values) - 1) // 2))
    honest = np.delete(values, sorted(liars), axis=0)
    lied = values.copy()
    lied[sorted(liars)] = wild
    median = coordinate_median(lied)
    assert np.all(honest.min(axis=0) <= median)
    assert np.all(median <= honest.max(axis=0))
    if len(liars) <= int(0.25 * len(values)):
        trimmed = trimmed_mean(lied, 0.25)
        slack = 1e-9 * (1 + np.abs(honest).max())
        assert np.all(honest.min(axis=0) - slack <= trimmed)
        assert np.all(trimmed <= honest.max(axis=0) + slack)


def test_a_trim_that_leaves_nothing_is_a_mistake() -> None:
    with pytest.raises(ValueError, match="nothing"):
        trimmed_mean(np.zeros((4, 1)), 0.5)


@fast(max_examples=100, deadline=None)
@given(honest=st.integers(5, 12), malicious=st.integers(1, 3), seed=st.integers(0, 1000), far=st.floats(50, 1e12))
def test_krum_never_takes_a_far_outlier(honest: int, malicious: int, seed: int, far: float) -> None:
    draw = np.random.default_rng(seed)
    values = np.concatenate([draw.standard_normal((honest, 4)), far * (1 + draw.random((malicious, 4)))])
    if len(values) < 2 * malicious + 3:
        with pytest.raises(TooFewUpdates) as caught:
            krum(distances(values), malicious)
        assert caught.value.exit_code == 6
        return
    assert krum(distances(values), malicious)[0] < honest
    assert multi_krum(distances(values), malicious, honest) == list(range(honest))


def textbook_krum(values_KE: np.ndarray, malicious: int) -> int:
    """Blanchard et al. 2017, §4, to the letter."""
    count = len(values_KE)
    scores = []
    for one in range(count):
        others = sorted(
            float(((values_KE[one] - values_KE[other]) ** 2).sum()) for other in range(count) if other != one
        )
        scores.append(sum(others[: count - malicious - 2]))
    return scores.index(min(scores))


@fast(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10**6), count=st.integers(5, 11), malicious=st.integers(0, 1))
def test_krum_is_the_textbook_formula(seed: int, count: int, malicious: int) -> None:
    values = np.random.default_rng(seed).standard_normal((count, 5))
    assert krum(distances(values), malicious) == [textbook_krum(values, malicious)]


def test_distances_of_nearly_equal_updates_of_large_norm_survive() -> None:
    """‖a‖² + ‖b‖² − 2ab would lose them: 1e16 has no room for 1e-2."""
    values = np.full((2, 100), 1e7) + np.array([[0.0], [0.01]])
    naive = (values**2).sum(1)[0] + (values**2).sum(1)[1] - 2 * (values[0] @ values[1])
    exact = ((values[0] - values[1]) ** 2).sum()
    assert distances(values)[0, 1] == pytest.approx(exact, rel=1e-12)
    assert naive != pytest.approx(exact, rel=0.1)


@fast(max_examples=60, deadline=None)
@given(values=few_devices, cut=st.integers(0, 6))
def test_geometry_does_not_depend_on_the_chunks(values: np.ndarray, cut: int) -> None:
    geometry = Geometry(len(values))
    for part in (values[:, :cut], values[:, cut:]):
        geometry.add(part)
    assert np.allclose(geometry.squared_distances_KK, distances(values), rtol=1e-12)


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
