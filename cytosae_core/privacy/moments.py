"""Residual moments: what a frozen public dictionary leaves unexplained, released twice, one vector per patient.

    r_t    = x_t - x^_t, minus the patient's own mean residual           no other patient is in it
    M_p    = 1/T sum_t r_t r_t'                      clipped to C2        release 1: d (d+1)/2 numbers
    S2     = sum_p M_p + noise                       U, lambda of what stands above the noise's known edge; rank r
    y_t    = Lambda^-1/2 U' r_t,  |y_t| <= 2 sqrt(r)
    T_p    = 1/T sum_t y_t y_t y_t                   clipped to C3        release 2: r (r+1)(r+2)/6 numbers
    S3     = sum_p T_p + noise                       its power method gives sparse, skewed directions: new atoms

Both are one-shot sums over all patients (no sampling), so their price is exact: mu = sqrt(1/s2^2 + 1/s3^2). C2 comes
from public patients, C3 from a Gaussian surrogate. Rank 0: nothing stood above the noise, nothing new is published.
Measured on real cells and on data with known concepts: docs/privacy.md. numpy only.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from ..errors import StudyError

Floats = NDArray[np.float64]
MAX_RANK = 24
EDGE = 1.05  # above the largest eigenvalue that noise alone makes, sqrt(2 d) s C, by 5 %
THIRD_EDGE = 2.2  # times sqrt(r) and the noise of an entry: what the power method finds in noise alone
POWER_STARTS, POWER_STEPS = 30, 60
SURROGATES = 400


@dataclass(frozen=True)
class Subspace:
    """basis [d, r] orthonormal columns, values [r] their share of a clipped patient's moment, largest first."""

    basis: Floats
    values: Floats

    @property
    def rank(self) -> int:
        """Directions that stood above the noise; 0: publish nothing."""
        return len(self.values)


def second_size(d: int) -> int:
    """Numbers of release 1."""
    return d * (d + 1) // 2


def third_size(r: int) -> int:
    """Numbers of release 2."""
    return r * (r + 1) * (r + 2) // 6


def own_centred(residuals: Floats) -> Floats:
    """Residuals [T, d] of ONE patient minus their own mean: a mean over patients would break the promise."""
    rows = np.asarray(residuals, dtype=np.float64)
    return np.asarray(rows - rows.mean(axis=0))


def second_moment(residuals: Floats) -> Floats:
    """One patient's M_p as a vector [d (d+1)/2] of the same norm (off-diagonal entries times sqrt 2).

    Args:
        residuals: [T, d] of one patient's tokens.
    """
    rows = own_centred(residuals)
    moment = rows.T @ rows / len(rows)
    places, weights = _pairs(moment.shape[0])
    return np.asarray(moment.ravel()[places] * weights)


@lru_cache(maxsize=2)
def _pairs(d: int) -> tuple[NDArray[np.int64], Floats]:
    """Places of i <= j in a matrix [d, d], row by row, and the square root of the number of orders of each."""
    first, second = np.triu_indices(d)
    return np.asarray(first * d + second), np.where(first == second, 1.0, math.sqrt(2.0))


def symmetric(packed: Floats, d: int) -> Floats:
    """The matrix [d, d] of a vector that `second_moment` made, or of a sum of such."""
    if packed.shape != (second_size(d),):
        raise StudyError(f"Expected second moments of d={d}, got shape={packed.shape}.")
    places, weights = _pairs(d)
    matrix = np.zeros((d, d))
    matrix.ravel()[places] = packed / weights
    return np.asarray(matrix + matrix.T - np.diag(np.diag(matrix)))


def subspace(packed: Floats, d: int, noise: float, patients: float, *, most: int = MAX_RANK) -> Subspace:
    """Directions of the noised sum that noise alone does not make.

    Entries of the noise have standard deviation `noise` on and noise / sqrt 2 off the diagonal: its largest
    eigenvalue is sqrt(2 d) noise (Wigner's edge). Rank selection sees noised numbers only: it costs no privacy.

    Args:
        packed: [d (d+1)/2] noised sum of clipped moments.
        noise: s C, the standard deviation that was added. patients: public constant to divide by.
        most: largest rank.
    """
    values, vectors = np.linalg.eigh(symmetric(packed, d))
    above = values > EDGE * math.sqrt(2 * d) * noise + np.median(values)
    rank = min(int(above.sum()), most)
    order = np.argsort(values)[::-1][:rank]
    return Subspace(np.ascontiguousarray(vectors[:, order]), values[order] / patients)


def whitened(residuals: Floats, space: Subspace) -> Floats:
    """y [T, r] of one patient's residuals [T, d], each token clipped to 2 sqrt(r)."""
    y = own_centred(residuals) @ (space.basis / np.sqrt(space.values))
    limit = 2 * math.sqrt(space.rank)
    return np.asarray(y * np.minimum(1.0, limit / np.maximum(np.linalg.norm(y, axis=1), 1e-300))[:, None])


def third_moment(residuals: Floats, space: Subspace) -> Floats:
    """One patient's T_p as a vector [r (r+1)(r+2)/6] of the same norm: entries times sqrt of their orders."""
    return _packed_third(whitened(residuals, space))


def _packed_third(y: Floats) -> Floats:
    cube = np.einsum("ti,tj,tk->ijk", y, y, y, optimize=True) / len(y)
    places, weights = _triples(y.shape[1])
    return np.asarray(cube[places[:, 0], places[:, 1], places[:, 2]] * weights)


@lru_cache(maxsize=2 * MAX_RANK)
def _triples(r: int) -> tuple[NDArray[np.int64], Floats]:
    """Index triples i <= j <= k, and the square root of the number of orders of each."""
    i, j, k = np.indices((r, r, r)).reshape(3, -1)
    keep = (i <= j) & (j <= k)
    i, j, k = i[keep], j[keep], k[keep]
    orders = np.where((i == j) & (j == k), 1.0, np.where((i == j) | (j == k), 3.0, 6.0))
    return np.stack([i, j, k], axis=1), np.sqrt(orders)


def cube(packed: Floats, r: int) -> Floats:
    """The symmetric tensor [r, r, r] of a vector that `third_moment` made, or of a sum of such."""
    if packed.shape != (third_size(r),):
        raise StudyError(f"Expected third moments of rank={r}, got shape={packed.shape}.")
    places, weights = _triples(r)
    out = np.zeros((r, r, r))
    for order in ((0, 1, 2), (0, 2, 1), (1, 0, 2), (1, 2, 0), (2, 0, 1), (2, 1, 0)):
        out[places[:, order[0]], places[:, order[1]], places[:, order[2]]] = packed / weights
    return out


def third_clip(rank: int, tokens: int) -> float:
    """C3: the median norm of T_p of patients whose y are Gaussian. From no data at all."""
    rng = np.random.default_rng(0)
    limit = 2 * math.sqrt(rank)
    norms = []
    for _ in range(SURROGATES):
        y = rng.standard_normal((tokens, rank))
        y *= np.minimum(1.0, limit / np.linalg.norm(y, axis=1))[:, None]
        norms.append(np.linalg.norm(_packed_third(y - y.mean(axis=0))))
    return float(np.median(norms))


def tensor_atoms(packed: Floats, space: Subspace, noise: float, clip: float, patients: float) -> Floats:
    """New atoms [a, d], unit rows: skewed directions of the residual that noise alone does not make.

    Sparse non-negative codes are skewed, so they are the tensor's robust eigenvectors (Anandkumar et al. 2014):
    power method with deflation, atom = normalise(U Lambda^1/2 v).

    Args:
        packed: [r (r+1)(r+2)/6] noised sum of clipped third moments.
        noise: s of release 2. clip: its C. patients: public constant to divide by.
    """
    r = space.rank
    if not r:
        return np.zeros((0, space.basis.shape[0]))
    tensor = cube(packed, r) / patients
    # Beside the noise: patients are few, and without any skew their clipped tensors still sum to about sqrt(N) C.
    spread = clip * math.sqrt(noise**2 + patients / third_size(r))
    least = THIRD_EDGE * math.sqrt(r) * spread / patients
    rng = np.random.default_rng(0)
    found = []
    for _ in range(r):
        value, v = _strongest(tensor, rng)
        if value <= least:
            break
        found.append(space.basis @ (np.sqrt(space.values) * v))
        tensor = tensor - value * np.einsum("i,j,k->ijk", v, v, v)
    rows = np.array(found).reshape(-1, space.basis.shape[0])
    return np.asarray(rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-300))


def _strongest(tensor: Floats, rng: np.random.Generator) -> tuple[float, Floats]:
    """The largest eigenvalue T(v, v, v) found from random starts, and its v."""
    v = rng.standard_normal((POWER_STARTS, tensor.shape[0]))
    v /= np.linalg.norm(v, axis=1, keepdims=True)
    for _ in range(POWER_STEPS):
        v = np.einsum("ijk,sj,sk->si", tensor, v, v, optimize=True)
        v /= np.maximum(np.linalg.norm(v, axis=1, keepdims=True), 1e-300)
    values = np.einsum("ijk,si,sj,sk->s", tensor, v, v, v, optimize=True)
    best = int(values.argmax())
    return float(values[best]), np.asarray(v[best])


def residual_atoms(space: Subspace, tensor: Floats, public: Floats) -> Floats:
    """Rows of the residual stage [a, d]: tensor atoms, both signs of every direction, and free public atoms."""
    axes = space.basis.T
    return np.concatenate([tensor, axes, -axes, public]).astype(np.float64)
