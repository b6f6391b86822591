"""Values with their 95 % intervals, from counts and sums alone: no text is needed.

Used by both the metrics of a model and the scores of a benchmark.
"""

from collections.abc import Sequence

import numpy as np

from schemas.evaluation import Estimate

Z95 = 1.959963984540054


def share_with_interval(successes: int, n: int) -> Estimate:
    """successes / n with its Wilson score interval (Wilson 1927), which stays in [0, 1]."""
    share = successes / n
    denominator = 1 + Z95**2 / n
    centre = (share + Z95**2 / (2 * n)) / denominator
    half = Z95 * np.sqrt(share * (1 - share) / n + Z95**2 / (4 * n**2)) / denominator
    low, high = max(0.0, float(centre - half)), min(1.0, float(centre + half))
    return Estimate(value=share, low=min(low, share), high=max(high, share))


def ratio_with_interval(sums: np.ndarray, counts: np.ndarray) -> Estimate:
    """Σ sums / Σ counts over N texts (both (N,)); texts are the sampling units, as in a cluster sample.

    Standard error of the ratio estimator (Cochran 1977, eq. 6.4); 0 for a single text.
    """
    value, n = float(sums.sum() / counts.sum()), len(sums)
    residuals = sums - value * counts
    error = float(np.sqrt(n / max(n - 1, 1) * (residuals**2).sum()) / counts.sum())
    return Estimate(value=value, low=value - Z95 * error, high=value + Z95 * error)


def mean_with_interval(values: np.ndarray) -> Estimate:
    """Mean of scores (N,) in [0, 1]: Wilson interval if each is 0 or 1, else the ratio estimator's, clipped."""
    if np.isin(values, (0.0, 1.0)).all():
        return share_with_interval(int(values.sum()), len(values))
    return _inside(ratio_with_interval(values, np.ones(len(values))))


def macro_mean_with_interval(groups: Sequence[np.ndarray]) -> Estimate:
    """Mean of the means of groups of scores (n,) in [0, 1], each group a stratum (Cochran 1977, eq. 5.6).

    A group of one score has no observable variance, and adds none.
    """
    value = float(np.mean([group.mean() for group in groups]))
    variance = sum(group.var(ddof=1) / len(group) for group in groups if len(group) > 1) / len(groups) ** 2
    half = Z95 * float(np.sqrt(variance))
    return _inside(Estimate(value=value, low=value - half, high=value + half))


def _inside(estimate: Estimate) -> Estimate:
    """The estimate with its interval clipped to [0, 1]."""
    value = estimate.value
    return Estimate(value=value, low=min(max(0.0, estimate.low), value), high=max(min(1.0, estimate.high), value))
