"""Distances and norms: the same however the chunks are cut, and right where the textbook's formula is not."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as fast
from hypothesis import strategies as st

from stages.federated.geometry import BLOCK_ELEMENTS, Geometry, blocks


def geometry(values_KE: np.ndarray, cuts: list[int] | None = None) -> Geometry:
    """Of whole updates, added in chunks that end at `cuts`."""
    found = Geometry(len(values_KE))
    for chunk_KE in np.split(values_KE, sorted(cuts or []), axis=1):
        found.add(chunk_KE)
    return found


@fast(max_examples=100, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    count=st.integers(1, 7),
    size=st.integers(1, 40),
    cuts=st.lists(st.integers(0, 40), max_size=6),
)
def test_chunks_do_not_matter(seed: int, count: int, size: int, cuts: list[int]) -> None:
    values_KE = np.random.default_rng(seed).standard_normal((count, size)).astype(np.float32)
    whole, parts = geometry(values_KE), geometry(values_KE, [min(cut, size) for cut in cuts])
    assert np.allclose(parts.squared_norms_K, whole.squared_norms_K, rtol=1e-13)
    assert np.allclose(parts.squared_distances_KK, whole.squared_distances_KK, rtol=1e-13)


@fast(max_examples=50, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_they_are_the_norms_and_distances_of_linear_algebra(seed: int) -> None:
    values_KE = np.random.default_rng(seed).standard_normal((5, 20))
    found = geometry(values_KE, [7, 11])
    assert np.allclose(found.squared_norms_K, np.linalg.norm(values_KE, axis=1) ** 2)
    for one in range(5):
        for other in range(5):
            expected = np.linalg.norm(values_KE[one] - values_KE[other]) ** 2
            assert np.isclose(found.squared_distances_KK[one, other], expected, rtol=1e-12)
    assert np.array_equal(found.squared_distances_KK, found.squared_distances_KK.T)
    assert not np.diagonal(found.squared_distances_KK).any()


def test_chunks_longer_than_a_block_and_empty_ones_count_whole() -> None:
    values_KE = np.random.default_rng(0).standard_normal((3, 2 * BLOCK_ELEMENTS + 5))
    found = geometry(values_KE, [0])
    assert np.allclose(found.squared_norms_K, np.square(values_KE).sum(axis=1), rtol=1e-12)
    assert np.allclose(found.squared_distances_KK[0, 1], np.square(values_KE[0] - values_KE[1]).sum(), rtol=1e-12)
    norms = Geometry(3, distances=False)
    norms.add(values_KE)
    assert norms.squared_norms_K.tolist() == found.squared_norms_K.tolist()
    assert norms.squared_distances_KK.shape == (0, 0)
    assert geometry(values_KE[:, :0]).squared_norms_K.tolist() == [0.0] * 3


@pytest.mark.parametrize(
    ("count", "elements", "widths"),
    [
        (1, 20_000, [8192, 8192, 3616]),
        (20, 10_000, [8192, 1808]),
        (1000, 400, [163, 163, 74]),
        (200_000, 2, [1, 1]),
        (3, 0, []),
    ],
)
def test_a_block_is_no_larger_than_a_cache_however_many_devices(count: int, elements: int, widths: list[int]) -> None:
    values_KE = np.arange(count * elements, dtype=np.float32).reshape(count, elements)
    found = list(blocks(values_KE))
    assert [one.shape for one in found] == [(count, width) for width in widths]
    assert all(one.dtype == np.float64 for one in found)
    assert not found or np.array_equal(np.concatenate(found, axis=1), values_KE)


def test_long_updates_that_nearly_agree_keep_the_distances_that_the_gram_matrix_loses() -> None:
    """‖x‖² + ‖y‖² - 2 x·y subtracts numbers of 10¹⁸ to find one of 10⁻⁴, even in float64."""
    random = np.random.default_rng(0)
    steps_KE = random.integers(-8, 9, (4, 1000)) * 2.0**-14
    values_KE = random.integers(-8, 9, 1000) * 2.0**22 + steps_KE  # both sums are exact in float64
    found = geometry(values_KE, [300]).squared_distances_KK
    exact = np.square(steps_KE[:, None] - steps_KE[None, :]).sum(axis=2)
    assert np.allclose(found, exact, rtol=1e-13)
    norms_K = np.square(values_KE).sum(axis=1)
    naive = norms_K[:, None] + norms_K[None, :] - 2 * values_KE @ values_KE.T
    others = ~np.eye(4, dtype=bool)
    assert np.abs(naive - exact)[others].min() > exact.max() or naive[others].min() <= 0


def test_differences_of_float32_updates_are_taken_in_float64() -> None:
    values_KE = np.array([[2.0**24], [-1.0]], np.float32)  # 2²⁴ + 1 is no float32
    assert geometry(values_KE).squared_distances_KK[0, 1] == (2.0**24 + 1) ** 2


def test_values_as_large_as_float32_holds_do_not_overflow() -> None:
    largest = np.finfo(np.float32).max
    found = geometry(np.array([[largest] * 100, [-largest] * 100], np.float32))
    assert np.isfinite(found.squared_norms_K).all()
    assert np.isfinite(found.squared_distances_KK).all()


def test_a_chunk_of_another_number_of_updates_is_refused() -> None:
    with pytest.raises(ValueError, match="a chunk of 2 updates was added to the geometry of 3"):
        Geometry(3).add(np.zeros((2, 5)))
