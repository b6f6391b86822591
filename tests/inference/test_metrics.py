"""Classification metrics against slow loops, a hand-solved quadratic and a bootstrap over the texts themselves."""

from statistics import NormalDist

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.inference.metrics import accuracy_with_interval, confusion_matrix, macro_f1, macro_f1_with_interval

Z = NormalDist().inv_cdf(0.975)
PAIRS = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=60)


def confusion_of(pairs: list[tuple[int, int]], classes: int = 4) -> np.ndarray:
    truth, predicted = np.array(pairs, dtype=np.int64).T
    return confusion_matrix(truth, predicted, classes)


def slow_macro_f1(pairs: list[tuple[int, int]], classes: int) -> float:
    scores = []
    for label in range(classes):
        hits = sum(truth == predicted == label for truth, predicted in pairs)
        claimed = sum(predicted == label for _, predicted in pairs)
        there = sum(truth == label for truth, _ in pairs)
        precision = hits / claimed if claimed else 0.0
        recall = hits / there if there else 0.0
        scores.append(2 * precision * recall / (precision + recall) if precision + recall else 0.0)
    return sum(scores) / classes


@settings(max_examples=50, deadline=None)
@given(pairs=PAIRS)
def test_the_confusion_matrix_counts_each_text_once_true_by_predicted(pairs: list[tuple[int, int]]) -> None:
    confusion = confusion_of(pairs)
    assert confusion.shape == (4, 4)
    for i in range(4):
        for j in range(4):
            assert confusion[i, j] == pairs.count((i, j))


@settings(max_examples=50, deadline=None)
@given(pairs=PAIRS)
def test_macro_f1_is_that_of_a_slow_loop_over_classes(pairs: list[tuple[int, int]]) -> None:
    assert float(macro_f1(confusion_of(pairs))) == pytest.approx(slow_macro_f1(pairs, 4), abs=1e-12)


def test_macro_f1_of_many_matrices_is_that_of_each() -> None:
    drawn = np.random.default_rng(0).integers(0, 9, size=(7, 3, 3))
    assert macro_f1(drawn).tolist() == [float(macro_f1(matrix)) for matrix in drawn]


def test_a_label_that_is_never_predicted_counts_zero() -> None:
    confusion = np.array([[4, 0], [2, 0]])
    assert float(macro_f1(confusion)) == pytest.approx((2 * 4 / (2 * 4 + 2) + 0) / 2)
    estimate = macro_f1_with_interval(confusion)
    assert np.isfinite([estimate.value, estimate.low, estimate.high]).all()


def test_a_label_that_neither_stands_nor_is_predicted_counts_zero() -> None:
    assert float(macro_f1(np.diag([3, 0, 3]))) == pytest.approx(2 / 3)


def test_all_wrong_is_zero_and_all_right_is_one() -> None:
    assert macro_f1_with_interval(np.array([[0, 5], [5, 0]])).value == 0.0
    right = macro_f1_with_interval(np.diag([5, 5]))
    assert (right.value, right.low, right.high) == (1.0, 1.0, 1.0)


@settings(max_examples=50, deadline=None)
@given(right=st.integers(0, 500), wrong=st.integers(0, 500))
def test_wilsons_limits_solve_his_quadratic(right: int, wrong: int) -> None:
    """(share - p)² = z² p (1 - p) / n has the two limits as its roots."""
    if right + wrong == 0:
        return
    n, share = right + wrong, right / (right + wrong)
    estimate = accuracy_with_interval(np.array([[right, wrong], [0, 0]]))
    roots = np.roots([1 + Z**2 / n, -(2 * share + Z**2 / n), share**2])
    assert estimate.value == share
    assert estimate.low == pytest.approx(float(min(roots.real)), abs=1e-9)
    assert estimate.high == pytest.approx(float(max(roots.real)), abs=1e-9)
    assert 0.0 <= estimate.low <= estimate.value <= estimate.high <= 1.0


def test_wilsons_interval_of_eight_in_ten_is_the_published_one() -> None:
    estimate = accuracy_with_interval(np.array([[5, 1], [1, 3]]))
    assert estimate.value == 0.8
    assert (round(estimate.low, 4), round(estimate.high, 4)) == (0.4902, 0.9433)


@settings(max_examples=25, deadline=None)
@given(pairs=PAIRS)
def test_the_interval_of_macro_f1_is_the_same_every_time_and_holds_the_value(pairs: list[tuple[int, int]]) -> None:
    confusion = confusion_of(pairs)
    estimate = macro_f1_with_interval(confusion)
    assert estimate == macro_f1_with_interval(confusion.copy())
    assert 0.0 <= estimate.low <= estimate.value <= estimate.high <= 1.0
    assert estimate.value == float(macro_f1(confusion))


def test_the_interval_of_macro_f1_is_that_of_a_bootstrap_over_texts() -> None:
    confusion = np.array([[40, 8, 2], [5, 30, 5], [1, 9, 20]])
    texts = np.array([(i, j) for i in range(3) for j in range(3) for _ in range(confusion[i, j])])
    random = np.random.default_rng(99)
    drawn = []
    for _ in range(4000):
        truth, predicted = texts[random.integers(0, len(texts), len(texts))].T
        drawn.append(float(macro_f1(confusion_matrix(truth, predicted, 3))))
    low, high = np.percentile(drawn, [2.5, 97.5])
    estimate = macro_f1_with_interval(confusion)
    assert estimate.low == pytest.approx(float(low), abs=0.015)
    assert estimate.high == pytest.approx(float(high), abs=0.015)
