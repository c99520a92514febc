"""Noise that a privacy promise can rest on: integers from the operating system's generator, never floats of a seed.

    x        a patient's vector, clipped to L2 norm C(1 - 1e-6)                                       float64
    trunc    x / grid towards zero: no coordinate grows, so the norm stays <= C / grid               integers
    sum      over patients, exact
    noise    discrete Gaussian of standard deviation s C / grid (Canonne, Kamath and Steinke 2020)   OpenDP

Floating point noise can be told from its last bits (Mironov 2012); integers have none. OpenDP's exact sampler needs
10 us a number: used for everything that a study releases. `quick_normal` (20 ns a number) is for research on private
gradients only: docs/decisions/012.
"""

from __future__ import annotations

import math
import os

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms
from numpy.typing import NDArray

from ..errors import StudyError

# A norm in float64 and a division may overshoot by some 1e-16 each; 1e-6 is far above, and costs nothing.
SAFE = 1 - 1e-6
WORD_BITS = 32  # of masked sums
TAIL = 12.0  # standard deviations of noise that a word has room for: beyond with probability < 1e-32


def clipped(vectors: NDArray[np.float64], clip: float) -> NDArray[np.float64]:
    """Rows [p, m] scaled down to L2 norm <= clip (1 - 1e-6); norms are accumulated in float64.

    float32 norms read up to .26 % low (measured on 37 million numbers), which would clip above C.

    Raises:
        StudyError: a number that is not finite, or a clip norm that is not positive.
    """
    if not (np.isfinite(clip) and clip > 0) or not np.isfinite(vectors).all():
        raise StudyError("Expected finite contributions and a clip norm above 0.")
    rows = np.asarray(vectors, dtype=np.float64)
    norms = np.sqrt(np.einsum("ij,ij->i", rows, rows))
    return np.asarray(rows * np.minimum(1.0, clip * SAFE / np.maximum(norms, 1e-300))[:, None])


def grid_for(clip: float, patients: int, noise_multiplier: float, sites: int = 1) -> float:
    """Width of the integers' grid so that any sum over `patients` and its noise fit a signed word of 32 bits.

    |sum| <= patients C / grid, noise <= 12 s C / grid: together below 2^31, and `sites` such sums as well.
    """
    if patients < 1 or sites < 1 or not 0 < noise_multiplier < math.inf or not 0 < clip < math.inf:
        raise StudyError("Expected patients >= 1, sites >= 1, noise_multiplier > 0 and clip > 0.")
    word = (2 ** (WORD_BITS - 1) - 1) // sites
    room = math.floor(math.log2(word / (patients + TAIL * noise_multiplier)))
    if room < 8:
        raise StudyError(
            f"Expected a sum that fits 32 bits, got patients={patients}, noise_multiplier={noise_multiplier}."
        )
    return clip / 2.0**room


def integers(vectors: NDArray[np.float64], grid: float) -> NDArray[np.int64]:
    """Vectors in units of the grid, truncated towards zero: the L2 norm can only fall."""
    return np.trunc(vectors / grid).astype(np.int64)


def discrete_gaussian(size: int, scale: float) -> NDArray[np.int64]:
    """`size` independent integers from the discrete Gaussian of parameter `scale`, exactly (OpenDP).

    Raises:
        StudyError: a scale that is not above 0.
    """
    if not 0 < scale < 2.0**50:
        raise StudyError(f"Expected noise of a scale in 0 .. 2^50, got scale={scale}.")
    import opendp.prelude as opendp

    opendp.enable_features("contrib")
    space = opendp.vector_domain(opendp.atom_domain(T=int)), opendp.l2_distance(T=float)
    return np.array(opendp.m.make_gaussian(*space, scale=float(scale))([0] * size), dtype=np.int64)


def release(
    vectors: NDArray[np.float64], clip: float, noise_multiplier: float, grid: float, shares: int = 1
) -> NDArray[np.int64]:
    """The noised sum [m] of patients' vectors [p, m], in units of the grid.

    Args:
        clip: largest L2 norm of a patient, from public data.
        noise_multiplier: standard deviation of the noise over the clip norm.
        shares: this site adds 1 / shares of the noise's variance; more than 1 only under secure aggregation.

    Guarantees (tests/unit/test_noise.py):
        N1. One patient more or less changes the sum before noise by at most clip / grid in L2 norm, exactly.
        N2. The noise has standard deviation noise_multiplier clip / grid / sqrt(shares), and nothing in the process
            (seeds, numpy, torch) makes it come again.
        N3. A site without patients releases noise of the same size, and nothing else.
    """
    return with_noise(exact_sum(vectors, clip, grid), clip, noise_multiplier, grid, shares)


def exact_sum(vectors: NDArray[np.float64], clip: float, grid: float) -> NDArray[np.int64]:
    """The clipped sum [m] of patients' vectors [p, m] in units of the grid; adds up over parts. Never leaves."""
    return np.asarray(integers(clipped(vectors, clip), grid).sum(axis=0))


def with_noise(
    total: NDArray[np.int64], clip: float, noise_multiplier: float, grid: float, shares: int = 1
) -> NDArray[np.int64]:
    """An exact sum [m] and the noise of `release`."""
    scale = noise_multiplier * clip / grid / math.sqrt(shares)
    return np.asarray(total + discrete_gaussian(len(total), scale))


class SecureBytes:
    """A stream of pseudo-random bytes: ChaCha20 (RFC 8439) under a key of 256 bits from the operating system."""

    def __init__(self, key: bytes | None = None) -> None:
        self._stream = Cipher(
            algorithms.ChaCha20(os.urandom(32) if key is None else key, bytes(16)), None
        ).encryptor()

    def words(self, count: int, dtype: type[np.uint32] | type[np.uint64]) -> NDArray[np.unsignedinteger]:
        """`count` uniform words."""
        return np.frombuffer(self._stream.update(bytes(count * np.dtype(dtype).itemsize)), dtype=dtype)


def quick_normal(size: int, stream: SecureBytes | None = None) -> NDArray[np.float64]:
    """`size` standard normal numbers by Box and Muller (1958), driven by ChaCha20 instead of a seeded generator.

    For research on private gradients, where OpenDP's sampler would take minutes a step. The numbers are floating
    point: nobody who sees the exact bits of a sum may learn from them, so nothing made with them leaves a site.
    """
    import torch  # its logarithm, sine and cosine are vectorised in float64: half the time of numpy's

    stream = SecureBytes() if stream is None else stream
    out = torch.empty(2, (size + 1) // 2, dtype=torch.float64)
    for start in range(0, out.shape[1], 1 << 14):  # in the processor's cache
        cosines, sines = out[:, start : start + (1 << 14)]
        words = stream.words(2 * len(cosines), np.uint64) >> np.uint64(11)
        uniform, angle = torch.from_numpy(words.astype(np.float64)).view(2, -1)
        radius = uniform.add_(1.0).mul_(2.0**-53).log_().mul_(-2.0).sqrt_()
        angle.mul_(2.0 * math.pi * 2.0**-53)
        torch.mul(radius, angle.cos(), out=cosines)
        torch.mul(radius, angle.sin(), out=sines)
    return np.asarray(out.view(-1)[:size].numpy())
