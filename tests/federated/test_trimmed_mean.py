"""The trimmed mean's laws: nobody's order matters, and as many liars as are cut move nothing out of the range."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as fast
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from stages.federated.coordinate_median import coordinate_median
from stages.federated.trimmed_mean import cut_count
from stages.federated.trimmed_mean import trimmed_mean as mean_without

WILD = st.floats(-(2.0**100), 2.0**100, width=32)
UPDATES = arrays.arrays(np.float32, st.tuples(st.integers(1, 12), st.integers(1, 6)), elements=WILD)
SMALL = arrays.arrays(np.float64, st.tuples(st.integers(1, 12), st.integers(1, 6)), elements=st.floats(-4.0, 4.0))
FRACTIONS = st.sampled_from([0.0, 0.1, 0.2, 0.25, 0.3, 0.4])


def trimmed_mean(values_KE: np.ndarray, fraction: float) -> np.ndarray:
    """Definition 2."""
    return mean_without(values_KE, cut_count(len(values_KE), fraction))


@fast(max_examples=200, deadline=None)
@given(values_KE=UPDATES, fraction=FRACTIONS, seed=st.integers(0, 2**32 - 1))
def test_the_order_of_the_devices_does_not_matter_to_the_bit(values_KE: np.ndarray, fraction: float, seed: int) -> None:
    shuffled_KE = np.random.default_rng(seed).permutation(values_KE)
    assert trimmed_mean(shuffled_KE, fraction).tobytes() == trimmed_mean(values_KE, fraction).tobytes()


@fast(max_examples=100, deadline=None)
@given(values_KE=SMALL, fraction=FRACTIONS)
def test_it_is_the_mean_of_what_is_left_when_extremes_are_taken_away_one_by_one(
    values_KE: np.ndarray, fraction: float
) -> None:
    columns = [list(column) for column in values_KE.T]
    for column in columns:
        for _ in range(cut_count(len(values_KE), fraction)):
            column.remove(max(column))
            column.remove(min(column))
    assert np.allclose(trimmed_mean(values_KE, fraction), [np.mean(column) for column in columns], rtol=0, atol=1e-14)


@fast(max_examples=100, deadline=None)
@given(values_KE=SMALL, fraction=FRACTIONS, shift=st.floats(-4.0, 4.0))
def test_moving_every_update_moves_the_mean_by_as_much(values_KE: np.ndarray, fraction: float, shift: float) -> None:
    moved_E = trimmed_mean(values_KE + shift, fraction)
    assert np.allclose(moved_E, trimmed_mean(values_KE, fraction) + shift, rtol=0, atol=1e-14)


@fast(max_examples=100, deadline=None)
@given(
    values_E=arrays.arrays(np.float64, 8, elements=st.floats(-1e30, 1e30)),
    count=st.integers(1, 20),
    fraction=FRACTIONS,
)
def test_equal_updates_come_back_to_the_bit(values_E: np.ndarray, count: int, fraction: float) -> None:
    found_E = trimmed_mean(np.tile(values_E, (count, 1)), fraction)
    assert found_E.dtype == np.float64
    assert np.array_equal(found_E, values_E)


@fast(max_examples=200, deadline=None)
@given(data=st.data(), count=st.integers(1, 12), fraction=FRACTIONS)
def test_as_many_liars_as_are_cut_at_one_end_cannot_leave_the_honest_range(
    data: st.DataObject, count: int, fraction: float
) -> None:
    liars = data.draw(st.integers(0, cut_count(count, fraction)))
    honest_KE = data.draw(arrays.arrays(np.float32, (count - liars, 3), elements=st.floats(-1.0, 1.0, width=32)))
    lies_KE = data.draw(arrays.arrays(np.float32, (liars, 3), elements=WILD | st.sampled_from([-(2.0**100), 2.0**100])))
    found_E = trimmed_mean(np.concatenate([lies_KE, honest_KE]), fraction)
    assert (honest_KE.min(axis=0) <= found_E).all()
    assert (found_E <= honest_KE.max(axis=0)).all()


def test_one_liar_more_than_is_cut_can_move_it_anywhere() -> None:
    """The breakdown number is sharp."""
    values_KE = np.array([[0.0]] * 8 + [[1e30]] * 2)
    assert trimmed_mean(values_KE, 0.2)[0] == 0.0
    assert trimmed_mean(values_KE, 0.1)[0] > 1e29


@fast(max_examples=50, deadline=None)
@given(values_KE=SMALL)
def test_cut_down_to_the_middle_it_is_the_median(values_KE: np.ndarray) -> None:
    count = len(values_KE)
    fraction = (count - 1) // 2 / count
    assert np.allclose(trimmed_mean(values_KE, fraction), coordinate_median(values_KE), rtol=0, atol=1e-15)


@pytest.mark.parametrize(("count", "fraction", "cut"), [(100, 0.29, 29), (10, 0.3, 3), (9, 0.2, 1), (4, 0.2, 0)])
def test_the_fraction_counts_as_it_is_written(count: int, fraction: float, cut: int) -> None:
    assert cut_count(count, fraction) == cut


@pytest.mark.parametrize("fraction", [0.5, 0.7, -0.1, float("nan")])
def test_a_fraction_that_leaves_nothing_is_refused(fraction: float) -> None:
    with pytest.raises(ValueError, match=r"\[0, 0.5\)"):
        trimmed_mean(np.zeros((4, 2)), fraction)


def test_no_updates_at_all_are_refused() -> None:
    with pytest.raises(ValueError, match="nothing remains"):
        trimmed_mean(np.zeros((0, 2)), 0.1)


@pytest.mark.parametrize(("count", "cut"), [(1, 1), (2, 1), (4, 2), (3, 2)])
def test_as_many_as_would_leave_nothing_are_not_trimmed(count: int, cut: int) -> None:
    with pytest.raises(ValueError, match="nothing remains"):
        mean_without(np.zeros((count, 2)), cut)
