"""Centred kernel alignment, Eq. 3 and 4 of the paper, from N×N Gram matrices in float64.

    CKA(X, Y) = HSIC(K, M) / sqrt(HSIC(K, K) · HSIC(M, M))      K = k(X, X), M = k(Y, Y)

`biased`    HSIC(K, M) = tr(K H M H) / (n-1)²                    Eq. 4; Gretton et al. 2005
`unbiased`  HSIC₁ of Song et al. 2012 (JMLR 13)                  near 0 for independent features at any n

The biased estimator is near 1 for small n even between independent features (768 dimensions: 0.92 at n = 64).

Shapes: N rows (texts), D features.
"""

import numpy as np

from schemas.errors import BadInput

SMALLEST_N = 5  # HSIC₁ divides by n (n-3), and the jackknife leaves one out
Z95 = 1.959963984540054
SURE_SHARE = 0.01  # of a sum that must be left without a text: two digits lost of sixteen


def gram(x_ND: np.ndarray, kernel: str) -> np.ndarray:
    """K (N, N) float64: linear, or RBF with the median heuristic (σ² = half the median squared distance)."""
    x_ND = x_ND.astype(np.float64)
    linear = x_ND @ x_ND.T
    if kernel == "linear":
        return np.asarray(linear)
    squared = np.maximum(np.add.outer(np.diag(linear), np.diag(linear)) - 2 * linear, 0.0)
    median = np.median(squared[np.triu_indices(len(squared), 1)])
    return np.exp(-squared / median) if median > 0 else np.ones_like(squared)


def hsic_biased(k_NN: np.ndarray, m_NN: np.ndarray) -> float:
    """tr(K H M H) / (n-1)² with H = I - 11ᵀ/n, without ever forming H."""
    return float((_centred(k_NN) * m_NN).sum() / (len(k_NN) - 1) ** 2)


def hsic_unbiased(k_NN: np.ndarray, m_NN: np.ndarray) -> float:
    """HSIC₁ = [tr(K̃M̃) + 1ᵀK̃1·1ᵀM̃1/((n-1)(n-2)) - 2·1ᵀK̃M̃1/(n-2)] / (n(n-3)); a tilde has a zero diagonal."""
    n = len(k_NN)
    k, m = _hollow(k_NN), _hollow(m_NN)
    rows_k, rows_m = k.sum(0), m.sum(0)
    cross = rows_k.sum() * rows_m.sum() / ((n - 1) * (n - 2)) - 2 * (rows_k @ rows_m) / (n - 2)
    return float(((k * m).sum() + cross) / (n * (n - 3)))


ESTIMATORS = {"biased": hsic_biased, "unbiased": hsic_unbiased}


def cka(k_NN: np.ndarray, m_NN: np.ndarray, estimator: str) -> float:
    """Eq. 3.  Raises `BadInput` where either side does not vary over the texts (0/0)."""
    hsic = ESTIMATORS[estimator]
    own_k, own_m = hsic(k_NN, k_NN), hsic(m_NN, m_NN)
    if not (own_k > _rounding(k_NN) and own_m > _rounding(m_NN)):
        raise BadInput(
            "the activations do not vary over the texts, so CKA is 0/0",
            values={"HSIC of the reference": f"{own_k:.3g}", "HSIC of the layer": f"{own_m:.3g}"},
            hint='similarity.pooling = "first" compares constant embeddings on an encoder: use "mean"',
        )
    return float(np.clip(hsic(k_NN, m_NN) / np.sqrt(own_k * own_m), -1.0, 1.0))  # beyond: rounding (Cauchy-Schwarz)


def cka_with_interval(k_NN: np.ndarray, m_NN: np.ndarray, estimator: str) -> tuple[float, float, float]:
    """CKA with a 95 % interval by the delete-one jackknife (a bootstrap's duplicates bias the unbiased estimator).

    Raises `BadInput` as `cka` does, also where one text alone varies.
    """
    value = cka(k_NN, m_NN, estimator)
    n = len(k_NN)
    left_out = cka_without_each(k_NN, m_NN, estimator)
    half = Z95 * float(np.sqrt((n - 1) / n * ((left_out - left_out.mean()) ** 2).sum()))
    return value, value - half, value + half


def cka_without_each(k_NN: np.ndarray, m_NN: np.ndarray, estimator: str) -> np.ndarray:
    """CKA (N,) of the texts without the first, without the second …, in O(N²).

    Both estimators are made of three sums over a pair of matrices, and a row that is left out is subtracted from each.
    Where nearly all of a sum is that row, the difference has few digits left: there the matrices are made smaller.
    Raises `BadInput` as `cka` does.
    """
    # Neither estimator changes when a row's value is added to all its pairs.  So centred, only one sum is not zero
    # with every text, and nothing large cancels.
    centre = _centred if estimator == "biased" else _centred_hollow
    k, m = centre(k_NN), centre(m_NN)
    own_k, own_m = hsic_without_each(k, k, estimator), hsic_without_each(m, m, estimator)
    with np.errstate(invalid="ignore", divide="ignore"):
        left_out = hsic_without_each(k, m, estimator) / np.sqrt(own_k * own_m)
    sure = np.full(len(k), fill_value=True)
    for matrix, centred, own in ((k_NN, k, own_k), (m_NN, m, own_m)):
        sure &= own > max(SURE_SHARE * ESTIMATORS[estimator](centred, centred), _rounding(matrix))
    for row in np.flatnonzero(~sure):
        left_out[row] = _without(k_NN, m_NN, int(row), estimator)
    return np.asarray(left_out)


def hsic_without_each(k_NN: np.ndarray, m_NN: np.ndarray, estimator: str) -> np.ndarray:
    """HSIC (N,) without each text, of matrices whose rows sum to zero; `unbiased`: with zero diagonals."""
    n = len(k_NN) - 1
    shared = (k_NN * m_NN).sum(1)
    diagonal = np.diag(k_NN) * np.diag(m_NN)  # and the sums of all entries without a row are these
    products = shared.sum() - 2 * shared + diagonal  # Σ k_ij m_ij
    crossed = shared - diagonal  # Σ_j (Σ_i k_ij) (Σ_i m_ij): without row r the sum of column j is -k_rj
    if estimator == "biased":
        return np.asarray((products - 2 * crossed / n + diagonal / n**2) / (n - 1) ** 2)
    return np.asarray((products - 2 * crossed / (n - 2)) / (n * (n - 3)))


def _rounding(k_NN: np.ndarray) -> float:
    """What HSIC(K, K) may be by rounding alone where nothing varies: a dozen roundings, however few the texts."""
    return float((len(k_NN) + 16) * np.finfo(np.float64).eps * np.abs(k_NN).max() ** 2)


def _without(k_NN: np.ndarray, m_NN: np.ndarray, row: int, estimator: str) -> float:
    keep = np.arange(len(k_NN)) != row
    return cka(k_NN[np.ix_(keep, keep)], m_NN[np.ix_(keep, keep)], estimator)


def _centred(k_NN: np.ndarray) -> np.ndarray:
    return np.asarray(k_NN - k_NN.mean(0) - k_NN.mean(1)[:, None] + k_NN.mean())


def _centred_hollow(k_NN: np.ndarray) -> np.ndarray:
    """Zero diagonal and zero row sums (U-centring: Székely & Rizzo 2014, Annals of Statistics 42)."""
    n = len(k_NN)
    hollow = _hollow(k_NN)
    rows = hollow.sum(0) / (n - 2)
    return _hollow(hollow - rows - rows[:, None] + rows.sum() / (n - 1))


def _hollow(k_NN: np.ndarray) -> np.ndarray:
    return np.asarray(k_NN - np.diag(np.diag(k_NN)))
