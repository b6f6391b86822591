"""The median's laws: nobody's order matters, and a minority of liars moves nothing out of the honest range."""

import numpy as np
from hypothesis import given
from hypothesis import settings as fast
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from stages.federated.coordinate_median import coordinate_median

WILD = st.floats(-(2.0**100), 2.0**100, width=32)
UPDATES = arrays.arrays(np.float32, st.tuples(st.integers(1, 9), st.integers(1, 6)), elements=WILD)
SMALL = arrays.arrays(np.float64, st.tuples(st.integers(1, 9), st.integers(1, 6)), elements=st.floats(-4.0, 4.0))


@fast(max_examples=200, deadline=None)
@given(values_KE=UPDATES, seed=st.integers(0, 2**32 - 1))
def test_the_order_of_the_devices_does_not_matter_to_the_bit(values_KE: np.ndarray, seed: int) -> None:
    shuffled_KE = np.random.default_rng(seed).permutation(values_KE)
    assert coordinate_median(shuffled_KE).tobytes() == coordinate_median(values_KE).tobytes()


def test_zeros_of_both_signs_give_the_same_bytes_in_any_order() -> None:
    values_KE = np.array([[-0.0], [0.0], [-0.0]], np.float32)
    assert len({coordinate_median(np.roll(values_KE, shift, axis=0)).tobytes() for shift in range(3)}) == 1


@fast(max_examples=100, deadline=None)
@given(values_KE=UPDATES)
def test_it_is_the_median_of_numpy(values_KE: np.ndarray) -> None:
    assert np.array_equal(coordinate_median(values_KE), np.median(values_KE.astype(np.float64), axis=0))


@fast(max_examples=100, deadline=None)
@given(values_KE=SMALL, shift=st.floats(-4.0, 4.0))
def test_moving_every_update_moves_the_median_by_as_much(values_KE: np.ndarray, shift: float) -> None:
    assert np.allclose(coordinate_median(values_KE + shift), coordinate_median(values_KE) + shift, rtol=0, atol=1e-14)


@fast(max_examples=100, deadline=None)
@given(values_E=arrays.arrays(np.float32, 8, elements=WILD), count=st.integers(1, 20))
def test_equal_updates_come_back_to_the_bit(values_E: np.ndarray, count: int) -> None:
    found_E = coordinate_median(np.tile(values_E, (count, 1)))
    assert found_E.dtype == np.float64
    assert np.array_equal(found_E, values_E)


@fast(max_examples=200, deadline=None)
@given(data=st.data(), honest=st.integers(1, 9))
def test_fewer_than_half_of_the_devices_cannot_leave_the_honest_range(data: st.DataObject, honest: int) -> None:
    liars = data.draw(st.integers(0, honest - 1))
    honest_KE = data.draw(arrays.arrays(np.float32, (honest, 3), elements=st.floats(-1.0, 1.0, width=32)))
    lies_KE = data.draw(arrays.arrays(np.float32, (liars, 3), elements=WILD | st.sampled_from([-(2.0**100), 2.0**100])))
    found_E = coordinate_median(np.concatenate([lies_KE, honest_KE]))
    assert (honest_KE.min(axis=0) <= found_E).all()
    assert (found_E <= honest_KE.max(axis=0)).all()


def test_half_of_the_devices_can_move_it_anywhere() -> None:
    """The breakdown number is sharp."""
    assert coordinate_median(np.array([[0.0], [0.0], [1e30], [1e30]]))[0] == 5e29
