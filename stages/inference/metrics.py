"""Metrics with intervals, from counts and sums alone: no text is needed."""

import numpy as np

from schemas.evaluation import Estimate
from stages.intervals import share_with_interval

REPLICATES = 2000


def confusion_matrix(truth: np.ndarray, predicted: np.ndarray, classes: int) -> np.ndarray:
    """(C, C) int64 counts from class indices (N,): entry (i, j) counts texts of label i predicted as label j."""
    return np.bincount(truth * classes + predicted, minlength=classes * classes).reshape(classes, classes)


def accuracy_with_interval(confusion: np.ndarray) -> Estimate:
    """Share of correct predictions with its 95 % Wilson score interval, from a confusion matrix (C, C)."""
    return share_with_interval(int(np.trace(confusion)), int(confusion.sum()))


def macro_f1(confusion: np.ndarray) -> np.ndarray:
    """Mean over classes of F1 = 2 TP / (2 TP + FP + FN); a class with no texts and no predictions counts 0.

    `confusion` (…, C, C) gives (…,).
    """
    return _f1(np.einsum("...ii->...i", confusion), confusion.sum(-1) + confusion.sum(-2))


def _f1(true: np.ndarray, total: np.ndarray) -> np.ndarray:
    """Mean F1 (…,) from how often each class was right (…, C), and how often it was the truth or predicted (…, C)."""
    return np.asarray((2 * true / np.maximum(total, 1)).mean(-1))


def macro_f1_with_interval(confusion: np.ndarray) -> Estimate:
    """Macro-F1 with a 95 % percentile bootstrap interval over texts: resamples the confusion matrix (C, C).

    Only its K entries that are not zero are drawn, so that thousands of classes take no more memory than their texts.
    """
    n, classes = int(confusion.sum()), len(confusion)
    random = np.random.Generator(np.random.PCG64(0))  # fixed seed: the same inputs give the same interval
    counts = confusion.ravel()
    cells_K = np.union1d(np.flatnonzero(counts), [counts.size - 1])  # the last one takes what the others leave
    rows_K, columns_K = np.divmod(cells_K, classes)
    shares_K, right_K = counts[cells_K] / n, rows_K == columns_K
    scores = []
    for _ in range(REPLICATES):
        drawn_K = random.multinomial(n, shares_K)
        total = np.bincount(rows_K, drawn_K, classes) + np.bincount(columns_K, drawn_K, classes)
        scores.append(_f1(np.bincount(rows_K[right_K], drawn_K[right_K], classes), total))
    low, high = np.percentile(scores, [2.5, 97.5])
    value = float(macro_f1(confusion))
    return Estimate(value=value, low=min(float(low), value), high=max(float(high), value))
