"""Krum: against the definition word by word, and what it may never pick."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as fast
from hypothesis import strategies as st

from schemas.errors import TooFewUpdates
from stages.federated.geometry import Geometry
from stages.federated.krum import krum, multi_krum, scores


def distances(values_KE: np.ndarray) -> np.ndarray:
    """Squared, (K, K)."""
    geometry = Geometry(len(values_KE))
    geometry.add(values_KE)
    return geometry.squared_distances_KK


@st.composite
def federations(draw: st.DrawFn) -> tuple[np.ndarray, int, int]:
    """Updates (K, E), [f], and how many of K ≥ 2f + 3 to keep.

    No two scores are equal: values are drawn from a seed, and two neighbours count (with the one of K = 3, the two
    that are nearest each other have the same score).
    """
    malicious = draw(st.integers(0, 4))
    count = draw(st.integers(max(4, 2 * malicious + 3), 2 * malicious + 8))
    keep = draw(st.integers(1, count))
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    return random.standard_normal((count, 6)), malicious, keep


@fast(max_examples=100, deadline=None)
@given(federation=federations())
def test_a_score_is_the_sum_over_the_nearest_others(federation: tuple[np.ndarray, int, int]) -> None:
    values_KE, malicious, keep = federation
    count = len(values_KE)
    expected = []
    for one in range(count):
        near = sorted(float(((values_KE[one] - values_KE[two]) ** 2).sum()) for two in range(count) if two != one)
        expected.append(sum(near[: count - malicious - 2]))
    assert np.allclose(scores(distances(values_KE), malicious), expected, rtol=1e-12)
    best = sorted(range(count), key=lambda index: expected[index])
    assert multi_krum(distances(values_KE), malicious, keep) == sorted(best[:keep])
    assert krum(distances(values_KE), malicious) == [best[0]]


@fast(max_examples=100, deadline=None)
@given(federation=federations(), seed=st.integers(0, 2**32 - 1))
def test_the_order_of_the_devices_does_not_change_who_is_kept(
    federation: tuple[np.ndarray, int, int], seed: int
) -> None:
    values_KE, malicious, keep = federation
    order = np.random.default_rng(seed).permutation(len(values_KE))
    kept = multi_krum(distances(values_KE[order]), malicious, keep)
    assert {int(order[index]) for index in kept} == set(multi_krum(distances(values_KE), malicious, keep))


@fast(max_examples=50, deadline=None)
@given(federation=federations(), shift=st.floats(-100, 100))
def test_moving_every_update_does_not_change_who_is_kept(federation: tuple[np.ndarray, int, int], shift: float) -> None:
    values_KE, malicious, keep = federation
    moved = multi_krum(distances(values_KE + shift), malicious, keep)
    assert moved == multi_krum(distances(values_KE), malicious, keep)


@fast(max_examples=200, deadline=None)
@given(data=st.data(), malicious=st.integers(1, 4), far=st.sampled_from([1e3, 1e12, 1e30]))
def test_a_far_outlier_is_never_kept_however_the_liars_agree(data: st.DataObject, malicious: int, far: float) -> None:
    """An outlier has at most f - 1 near ones, and its score needs at least two honest ones besides."""
    honest = data.draw(st.integers(malicious + 3, malicious + 8))
    random = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    honest_KE = random.uniform(-1, 1, (honest, 5))
    direction_KE = random.uniform(1, 2, (malicious, 5)) * random.choice([-1.0, 1.0], (malicious, 5))
    conspire = data.draw(st.booleans())
    lies_KE = far * (direction_KE[:1].repeat(malicious, axis=0) if conspire else direction_KE)
    order = random.permutation(honest + malicious)
    values_KE = np.concatenate([honest_KE, lies_KE]).astype(np.float32)[order]
    liars = {int(place) for place in np.flatnonzero(order >= honest)}
    for keep in (1, honest):
        assert not liars & set(multi_krum(distances(values_KE), malicious, keep))


def test_equal_scores_go_by_index() -> None:
    assert krum(distances(np.zeros((7, 3))), 2) == [0]
    assert multi_krum(distances(np.zeros((7, 3))), 2, 3) == [0, 1, 2]
    thirds_KK = distances(np.arange(20.0)[:, None] % 3)  # more than a sort that is not stable leaves in order
    ranked = sorted(range(20), key=lambda index: (scores(thirds_KK, 0)[index], index))
    for keep in range(1, 21):
        assert multi_krum(thirds_KK, 0, keep) == sorted(ranked[:keep])


def test_an_equal_update_is_a_neighbour_though_oneself_is_none() -> None:
    """Whoever drops the first of the sorted distances as "oneself" must not lose a twin by it."""
    found = scores(distances(np.array([[0.0], [0.0], [1.0], [5.0]])), 0)
    assert found.tolist() == [0 + 1, 0 + 1, 1 + 1, 16 + 25]


@pytest.mark.parametrize(("count", "malicious"), [(2, 0), (4, 1), (6, 2), (10, 4)])
def test_too_few_updates_are_refused_with_how_many_it_takes(count: int, malicious: int) -> None:
    with pytest.raises(TooFewUpdates, match="Krum against") as caught:
        krum(distances(np.zeros((count, 3))), malicious)
    assert caught.value.values == {"needed": 2 * malicious + 3, "found": count}
    assert krum(distances(np.zeros((2 * malicious + 3, 3))), malicious) == [0]


@pytest.mark.parametrize(("malicious", "keep"), [(0, 0), (0, 6), (-1, 1)])
def test_keeping_none_or_more_than_there_are_is_the_callers_mistake(malicious: int, keep: int) -> None:
    with pytest.raises(ValueError, match="cannot be kept"):
        multi_krum(np.zeros((5, 5)), malicious, keep)
