"""Clipping: nothing within the bound changes, nothing leaves longer than the bound, alone or in the mean."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as fast
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from stages.federated.norm_clipping import clipping_factors

BOUNDS = st.floats(1e-6, 1e6)


@fast(max_examples=200, deadline=None)
@given(
    norms_K=arrays.arrays(np.float64, st.integers(1, 9), elements=st.floats(0, 1e30)),
    bound=BOUNDS,
)
def test_a_factor_is_the_smaller_of_one_and_bound_over_norm(norms_K: np.ndarray, bound: float) -> None:
    expected = [1.0 if norm <= bound else bound / norm for norm in norms_K.tolist()]
    assert clipping_factors(norms_K, bound).tolist() == expected


def test_a_difference_of_zero_stays_as_it_is() -> None:
    assert clipping_factors(np.zeros(3), 0.5).tolist() == [1.0] * 3


@fast(max_examples=200, deadline=None)
@given(
    values_KE=arrays.arrays(np.float32, (6, 8), elements=st.floats(-(2.0**100), 2.0**100, width=32)),
    weights=st.lists(st.integers(1, 10**6), min_size=6, max_size=6),
    bound=BOUNDS,
)
def test_the_weighted_mean_of_clipped_updates_is_no_longer_than_the_bound(
    values_KE: np.ndarray, weights: list[int], bound: float
) -> None:
    factors_K = clipping_factors(np.linalg.norm(values_KE.astype(np.float64), axis=1), bound)
    clipped_KE = factors_K[:, None] * values_KE
    assert (np.linalg.norm(clipped_KE, axis=1) <= bound * (1 + 1e-12)).all()
    assert np.linalg.norm(np.average(clipped_KE, axis=0, weights=weights)) <= bound * (1 + 1e-12)


@pytest.mark.parametrize("bound", [0.0, -1.0, float("nan")])
def test_a_bound_that_lets_nothing_through_is_refused(bound: float) -> None:
    with pytest.raises(ValueError, match="above 0"):
        clipping_factors(np.ones(2), bound)
