"""Metrics with intervals, from counts and sums alone (so nothing of a text is needed)."""

import numpy as np

from schemas.evaluation import Estimate

Z95 = 1.959963984540054
REPLICATES = 2000


def confusion_matrix(truth: np.ndarray, predicted: np.ndarray, classes: int) -> np.ndarray:
    """(C, C) counts: row i, column j is label i predicted as label j."""
    return np.bincount(truth * classes + predicted, minlength=classes * classes).reshape(classes, classes)


def accuracy_with_interval(confusion: np.ndarray) -> Estimate:
    """Share of correct predictions with its 95 % Wilson score interval (Wilson 1927)."""
    n = int(confusion.sum())
    share = float(np.trace(confusion)) / n
    denominator = 1 + Z95**2 / n
    centre = (share + Z95**2 / (2 * n)) / denominator
    half = Z95 * np.sqrt(share * (1 - share) / n + Z95**2 / (4 * n**2)) / denominator
    low, high = max(0.0, float(centre - half)), min(1.0, float(centre + half))
    return Estimate(value=share, low=min(low, share), high=max(high, share))


def macro_f1(confusion: np.ndarray) -> np.ndarray:
    """Mean over classes of F1 = 2 TP / (2 TP + FP + FN); a class with no texts and no predictions counts 0.

    `confusion` (…, C, C) gives (…,).
    """
    true = np.einsum("...ii->...i", confusion)
    total = confusion.sum(-1) + confusion.sum(-2)
    return np.asarray((2 * true / np.maximum(total, 1)).mean(-1))


def macro_f1_with_interval(confusion: np.ndarray) -> Estimate:
    """Macro-F1 with a 95 % percentile bootstrap interval over texts: multinomial resampling of the confusion matrix."""
    n, classes = int(confusion.sum()), len(confusion)
    random = np.random.Generator(np.random.PCG64(0))  # a fixed seed: an evaluation is a function of its inputs
    drawn = random.multinomial(n, confusion.ravel() / n, size=REPLICATES).reshape(-1, classes, classes)
    low, high = np.percentile(macro_f1(drawn), [2.5, 97.5])
    value = float(macro_f1(confusion))
    return Estimate(value=value, low=min(float(low), value), high=max(float(high), value))


def ratio_with_interval(sums: np.ndarray, counts: np.ndarray) -> Estimate:
    """Σ sums / Σ counts over texts (N,), with a 95 % interval: texts are the units, as in a cluster sample.

    The standard error is that of the ratio estimator (Cochran 1977, eq. 6.4); for a single text there is none.
    """
    value, n = float(sums.sum() / counts.sum()), len(sums)
    residuals = sums - value * counts
    error = float(np.sqrt(n / max(n - 1, 1) * (residuals**2).sum()) / counts.sum())
    return Estimate(value=value, low=value - Z95 * error, high=value + Z95 * error)
