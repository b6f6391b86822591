"""CKA against its textbook definitions: the explicit centring matrix, and the U-statistic over distinct indices.

The laws of the similarity (1 on itself, invariance to rotation, scale and shift) are checked for both estimators.
"""

import warnings
from collections.abc import Callable
from itertools import permutations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from schemas.errors import BadInput
from stages.similarity.cka import (
    ESTIMATORS,
    SMALLEST_N,
    cka,
    cka_with_interval,
    cka_without_each,
    gram,
    hsic_biased,
    hsic_unbiased,
    hsic_without_each,
)

BOTH = pytest.mark.parametrize("estimator", sorted(ESTIMATORS))
KERNELS = pytest.mark.parametrize("kernel", ["linear", "rbf"])
SEEDS = st.integers(0, 2**32 - 1)


def noise(seed: int, n: int, d: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((n, d))


def related(seed: int, n: int = 24, d: int = 10) -> tuple[np.ndarray, np.ndarray]:
    """Two feature matrices that share some of what they say."""
    x = noise(seed, n, d)
    return x, x @ noise(seed + 1, d, d + 3) + 2.0 * noise(seed + 2, n, d + 3)


def value(x: np.ndarray, y: np.ndarray, kernel: str, estimator: str) -> float:
    return cka(gram(x, kernel), gram(y, kernel), estimator)


def textbook_biased(k: np.ndarray, m: np.ndarray) -> float:
    n = len(k)
    h = np.eye(n) - np.ones((n, n)) / n
    return float(np.trace(k @ h @ m @ h)) / (n - 1) ** 2


def textbook_unbiased(k: np.ndarray, m: np.ndarray) -> float:
    """Mean of k_ij m_ij + k_ij m_qr - 2 k_ij m_iq over all tuples of distinct indices."""
    n = len(k)
    pairs = [k[i, j] * m[i, j] for i, j in permutations(range(n), 2)]
    quads = [k[i, j] * m[q, r] for i, j, q, r in permutations(range(n), 4)]
    threes = [k[i, j] * m[i, q] for i, j, q in permutations(range(n), 3)]
    return float(np.mean(pairs) + np.mean(quads) - 2 * np.mean(threes))


@settings(max_examples=25, deadline=None)
@given(seed=SEEDS, n=st.integers(4, 30), kernel=st.sampled_from(["linear", "rbf"]))
def test_biased_hsic_is_the_trace_with_an_explicit_centring_matrix(seed: int, n: int, kernel: str) -> None:
    k, m = gram(noise(seed, n, 5), kernel), gram(noise(seed + 1, n, 8), kernel)
    assert hsic_biased(k, m) == pytest.approx(textbook_biased(k, m), rel=1e-10, abs=1e-12)


@settings(max_examples=25, deadline=None)
@given(seed=SEEDS, n=st.integers(4, 8), kernel=st.sampled_from(["linear", "rbf"]))
def test_unbiased_hsic_is_the_mean_over_tuples_of_distinct_texts(seed: int, n: int, kernel: str) -> None:
    k, m = gram(noise(seed, n, 5), kernel), gram(noise(seed + 1, n, 8), kernel)
    assert hsic_unbiased(k, m) == pytest.approx(textbook_unbiased(k, m), rel=1e-9, abs=1e-9)


def test_cka_is_the_ratio_of_textbook_hsics() -> None:
    x, y = related(3, n=8)
    k, m = gram(x, "linear"), gram(y, "linear")
    for estimator, hsic in (("biased", textbook_biased), ("unbiased", textbook_unbiased)):
        assert cka(k, m, estimator) == pytest.approx(hsic(k, m) / np.sqrt(hsic(k, k) * hsic(m, m)), rel=1e-9)


def test_biased_linear_cka_is_that_of_centred_features() -> None:
    """Kornblith et al. 2019: ||YᵀX||² / (||XᵀX|| ||YᵀY||), Frobenius norms of centred features."""
    x, y = related(5)
    xc, yc = x - x.mean(0), y - y.mean(0)
    expected = np.linalg.norm(yc.T @ xc) ** 2 / (np.linalg.norm(xc.T @ xc) * np.linalg.norm(yc.T @ yc))
    assert value(x, y, "linear", "biased") == pytest.approx(float(expected), rel=1e-10)


@pytest.mark.parametrize("seed", [7, 8])
def test_the_rbf_gram_matrix_is_that_of_a_slow_loop_with_the_median_heuristic(seed: int) -> None:
    x = noise(seed, 9, 4)
    squared = np.array([[((a - b) ** 2).sum() for b in x] for a in x])
    sigma2 = np.median([squared[i, j] for i in range(9) for j in range(i)]) / 2
    assert np.allclose(gram(x, "rbf"), np.exp(-squared / (2 * sigma2)), rtol=1e-10)


def test_no_two_texts_are_nearer_than_a_text_is_to_itself() -> None:
    """Far from the origin a squared distance of 0 comes out a little below or above it."""
    for seed in range(20):
        x = noise(seed, 12, 4) + 1e6
        x[6:] = x[:6]
        assert gram(x, "rbf").max() == 1.0


def test_gram_matrices_are_float64_whatever_the_features_are() -> None:
    x = noise(1, 6, 3).astype(np.float32)
    for kernel in ("linear", "rbf"):
        assert gram(x, kernel).dtype == np.float64
    assert np.array_equal(gram(x, "linear"), x.astype(np.float64) @ x.astype(np.float64).T)


@BOTH
@KERNELS
def test_cka_is_one_on_itself(kernel: str, estimator: str) -> None:
    for seed in range(5):
        x = noise(seed, 20, 6)
        assert value(x, x, kernel, estimator) == pytest.approx(1.0, abs=1e-12)


@BOTH
@KERNELS
def test_cka_is_symmetric_and_at_most_one(kernel: str, estimator: str) -> None:
    for seed in range(5):
        x, y = related(seed)
        assert value(x, y, kernel, estimator) == pytest.approx(value(y, x, kernel, estimator), rel=1e-12)
        assert value(x, y, kernel, estimator) < 1.0


@settings(max_examples=25, deadline=None)
@given(
    seed=SEEDS,
    exponent=st.floats(-6, 6),
    kernel=st.sampled_from(["linear", "rbf"]),
    estimator=st.sampled_from(sorted(ESTIMATORS)),
)
def test_cka_does_not_change_with_rotation_and_isotropic_scale(
    seed: int, exponent: float, kernel: str, estimator: str
) -> None:
    x, y = related(seed)
    rotation = np.linalg.qr(noise(seed + 3, y.shape[1], y.shape[1]))[0]
    turned = 10.0**exponent * y @ rotation
    assert value(x, turned, kernel, estimator) == pytest.approx(value(x, y, kernel, estimator), abs=1e-8)
    assert value(turned, x, kernel, estimator) == pytest.approx(value(x, y, kernel, estimator), abs=1e-8)


@BOTH
@KERNELS
def test_cka_does_not_change_with_a_shift(kernel: str, estimator: str) -> None:
    x, y = related(11)
    assert value(x, y + 100.0, kernel, estimator) == pytest.approx(value(x, y, kernel, estimator), abs=1e-6)


@BOTH
def test_cka_does_not_change_with_the_order_of_the_texts(estimator: str) -> None:
    x, y = related(13)
    order = np.random.default_rng(0).permutation(len(x))
    assert value(x[order], y[order], "linear", estimator) == pytest.approx(value(x, y, "linear", estimator), rel=1e-10)


def test_independent_noise_is_near_zero_unbiased_and_near_one_biased() -> None:
    grams = [(gram(noise(2 * s, 64, 768), "linear"), gram(noise(2 * s + 1, 64, 768), "linear")) for s in range(10)]
    assert abs(np.mean([cka(k, m, "unbiased") for k, m in grams])) < 0.05
    assert min(cka(k, m, "biased") for k, m in grams) > 0.9


@BOTH
@KERNELS
def test_the_interval_holds_the_value_and_is_the_jackknifes(kernel: str, estimator: str) -> None:
    x, y = related(17)
    got, low, high = cka_with_interval(gram(x, kernel), gram(y, kernel), estimator)
    assert got == value(x, y, kernel, estimator)
    assert low < got < high
    if kernel == "linear":  # the median heuristic of an RBF kernel is that of all the texts
        n = len(x)
        left_out = [value(np.delete(x, i, 0), np.delete(y, i, 0), kernel, estimator) for i in range(n)]
        error = np.sqrt((n - 1) ** 2 / n * np.var(left_out, ddof=1))
        assert high - got == pytest.approx(1.959963984540054 * error, rel=1e-8)
        assert got - low == pytest.approx(high - got, rel=1e-8)


@BOTH
@KERNELS
def test_rounding_takes_no_cka_above_one(kernel: str, estimator: str) -> None:
    for seed in range(60):
        x = noise(seed, 7, 3)
        assert value(x, 3.0 * x, kernel, estimator) <= 1.0


@BOTH
def test_hsic_without_a_text_is_that_of_the_smaller_matrices(estimator: str) -> None:
    x, y = related(43, n=9)
    rows = np.eye(9) - 1 / 9
    k, m = (rows @ gram(one, "linear") @ rows for one in (x, y))
    if estimator == "unbiased":
        k, m = u_centred(k), u_centred(m)
    smaller = [np.ix_(keep, keep) for keep in ~np.eye(9, dtype=bool)]
    expected = [ESTIMATORS[estimator](k[keep], m[keep]) for keep in smaller]
    assert hsic_without_each(k, m, estimator) == pytest.approx(expected, rel=1e-12)


def u_centred(k: np.ndarray) -> np.ndarray:
    """Zero diagonal and zero row sums, entry by entry: Székely & Rizzo 2014, definition 2."""
    n, hollow = len(k), k - np.diag(np.diag(k))
    return np.array(
        [
            [
                0.0
                if i == j
                else hollow[i, j]
                - hollow[i].sum() / (n - 2)
                - hollow[:, j].sum() / (n - 2)
                + hollow.sum() / ((n - 1) * (n - 2))
                for j in range(n)
            ]
            for i in range(n)
        ]
    )


def slow_without_each(k: np.ndarray, m: np.ndarray, estimator: str) -> list[float]:
    """The jackknife by its definition: a smaller matrix for each text that is left out."""
    smaller = [np.ix_(keep, keep) for keep in ~np.eye(len(k), dtype=bool)]
    return [cka(k[keep], m[keep], estimator) for keep in smaller]


def without_each(jackknife: Callable[..., object], k: np.ndarray, m: np.ndarray, estimator: str) -> object:
    """What a jackknife finds, or its refusal in words."""
    try:
        return jackknife(k, m, estimator)
    except BadInput as error:
        return str(error)


def assert_equal_jackknives(k: np.ndarray, m: np.ndarray, estimator: str) -> None:
    slow, found = (without_each(jackknife, k, m, estimator) for jackknife in (slow_without_each, cka_without_each))
    if isinstance(slow, str):
        assert found == slow
    else:
        # CKA may be near zero, the sums that it is a ratio of are not: so against one as well.
        assert found == pytest.approx(slow, rel=1e-12, abs=1e-12)


@settings(max_examples=60, deadline=None)
@given(
    seed=SEEDS,
    n=st.integers(SMALLEST_N, 40),
    d=st.integers(2, 12),
    exponent=st.integers(-6, 6),
    kernel=st.sampled_from(["linear", "rbf"]),
    estimator=st.sampled_from(sorted(ESTIMATORS)),
)
def test_the_jackknife_by_row_sums_is_the_slow_one(
    seed: int, n: int, d: int, exponent: int, kernel: str, estimator: str
) -> None:
    x, y = noise(seed, n, d), noise(seed, n, d) @ noise(seed + 1, d, 7) + noise(seed + 2, n, 7)
    assert_equal_jackknives(gram(x, kernel), gram(10.0**exponent * y, kernel), estimator)


@BOTH
@KERNELS
@pytest.mark.parametrize("size", [1e1, 1e2, 1e4, 1e6])
def test_one_text_that_outweighs_all_others_costs_the_jackknife_no_digits(
    size: float, kernel: str, estimator: str
) -> None:
    x, y = related(31)
    x[5] *= size
    y[7] *= size
    assert_equal_jackknives(gram(x, kernel), gram(y, kernel), estimator)


@BOTH
@KERNELS
@pytest.mark.parametrize("odd", [0, 3, 11])
def test_texts_of_which_one_alone_varies_are_refused_as_by_the_slow_jackknife(
    odd: int, kernel: str, estimator: str
) -> None:
    x, y = np.tile(noise(37, 1, 6), (12, 1)), noise(38, 12, 4)
    x[odd] += 5.0
    warnings.simplefilter("error")
    for k, m in ((gram(x, kernel), gram(y, kernel)), (gram(y, kernel), gram(x, kernel))):
        assert isinstance(without_each(slow_without_each, k, m, estimator), str)
        assert_equal_jackknives(k, m, estimator)


@BOTH
def test_the_jackknife_keeps_its_digits_far_from_the_centre(estimator: str) -> None:
    """A shift changes nothing in exact arithmetic; so the oracle is the slow jackknife of the texts not shifted."""
    x, y = related(41)
    k, m = gram(x + 100.0, "linear"), gram(y - 300.0, "linear")
    slow = slow_without_each(gram(x, "linear"), gram(y, "linear"), estimator)
    assert cka_without_each(k, m, estimator) == pytest.approx(slow, abs=1e-9)


def test_the_interval_narrows_with_more_texts() -> None:
    mixing = noise(0, 6, 6)
    widths = []
    for n in (20, 80, 320):
        x = noise(n, n, 6)
        k, m = gram(x, "linear"), gram(x @ mixing + noise(n + 1, n, 6), "linear")
        _, low, high = cka_with_interval(k, m, "unbiased")
        widths.append(high - low)
    assert widths[0] > widths[1] > widths[2]


def test_with_one_text_less_than_the_smallest_number_the_jackknife_would_divide_by_zero() -> None:
    assert next(n for n in range(4, 9) if (n - 1) * (n - 1 - 3) > 0) == SMALLEST_N


@BOTH
def test_the_smallest_number_of_texts_still_has_a_finite_interval(estimator: str) -> None:
    x, y = related(19, n=SMALLEST_N)
    assert np.isfinite(cka_with_interval(gram(x, "linear"), gram(y, "linear"), estimator)).all()


@BOTH
@KERNELS
@pytest.mark.parametrize("n", [4, 33, 64, 256])
@pytest.mark.parametrize("scale", [0.0, 1e-3, 1.0, 1e4])
def test_features_that_do_not_vary_are_refused_with_a_hint_that_names_pooling(
    scale: float, n: int, kernel: str, estimator: str
) -> None:
    constants = [np.tile(scale * noise(seed, 1, 48), (n, 1)) for seed in range(23, 33)]
    x = noise(24, n, 8)
    pairs = [pair for constant in constants for pair in ((constant, x), (x, constant), (constant, constant))]
    for left, right in pairs:
        with pytest.raises(BadInput) as caught:
            value(left, right, kernel, estimator)
        assert "do not vary" in caught.value.fact
        assert "pooling" in caught.value.hint
        assert len(caught.value.values) == 2


@BOTH
def test_what_centring_takes_away_whole_is_refused_whatever_its_smallest_entry(estimator: str) -> None:
    size = noise(47, 12, 1)[:, 0]
    size[0] = 0.0
    constant, x = np.add.outer(size, size), gram(noise(48, 12, 4), "linear")
    for k, m in ((constant, x), (x, constant)):
        with pytest.raises(BadInput, match="do not vary"):
            cka(k, m, estimator)


@BOTH
def test_features_of_very_small_size_are_not_taken_for_constant(estimator: str) -> None:
    x, y = related(29)
    assert value(1e-7 * x, 1e-7 * y, "linear", estimator) == pytest.approx(value(x, y, "linear", estimator), rel=1e-8)
