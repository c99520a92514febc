"""Dictionaries that a dishonest coordinator might send, against the honest ones: for tests and `benchmarks.gate`.

Every trap is a function of an honest dictionary D [n, d] with its token scale, and of suspected tokens [s, d]
(centred and scaled): the worst case is a coordinator who already holds tokens like the target's, so the harness
hands it tokens of the very site under attack, the first 257 of them of one image.

Ideas: "Robbing the Fed" (Fowl et al., ICLR 2022) and its staggered biases, adapted to rows without biases; "Curious
abandon honesty" (Boenisch et al. 2023); fishing (Wen et al. 2022); the toy traps of the audit's section 0.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cytosae_core.sae.init import public_centroids
from cytosae_core.sae.pursuit import pursue, random_dictionary, reconstruct, unit_rows
from cytosae_core.sae.scale import TokenScale


@dataclass(frozen=True)
class Base:
    """What a site receives: dictionary [n, d], token scale and k; local steps and tokens per step of the protocol."""

    dictionary: Tensor
    scale: TokenScale
    k: int = 16
    steps: int = 20
    batch: int = 128


def _generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _rows(base: Base, rows: Tensor) -> Base:
    return replace(base, dictionary=unit_rows(rows))


def _around(direction: Tensor, n: int, cosine: float, seed: int) -> Tensor:
    """n unit rows at the given cosine to `direction` [d]."""
    noise = torch.randn(n, len(direction), generator=_generator(seed))
    noise = unit_rows(noise - (noise @ direction)[:, None] * direction)
    return cosine * direction + (1 - cosine**2) ** 0.5 * noise


def _main(suspects: Tensor) -> Tensor:
    """Unit mean direction of the suspects."""
    return unit_rows(suspects.mean(dim=0, keepdim=True))[0]


def identical(base: Base, suspects: Tensor, seed: int = 0) -> Base:
    """All rows are one direction."""
    return _rows(base, _main(suspects).expand_as(base.dictionary).clone())


def imprint(base: Base, suspects: Tensor, seed: int = 0) -> Base:
    """Half of the rows are one direction, the other half honest."""
    rows = base.dictionary.clone()
    rows[: len(rows) // 2] = _main(suspects)
    return _rows(base, rows)


def staggered(base: Base, suspects: Tensor, seed: int = 0) -> Base:
    """Half of the rows sweep an arc in the plane of the suspects' two main directions: each bin a few tokens."""
    rows = base.dictionary.clone()
    half = len(rows) // 2
    _, _, axes = torch.pca_lowrank(suspects, q=2, niter=4)
    angle = torch.linspace(-1.2, 1.2, half)[:, None]
    rows[:half] = angle.cos() * axes[:, 0] + angle.sin() * axes[:, 1]
    return _rows(base, rows)


def jittered(cosine: float, share: float = 1.0) -> Callable[..., Base]:
    """Rows around one direction, none a duplicate: a static check on duplicates sees nothing."""

    def trap(base: Base, suspects: Tensor, seed: int = 0) -> Base:
        rows = base.dictionary.clone()
        count = int(share * len(rows))
        rows[:count] = _around(_main(suspects), count, cosine, seed)
        return _rows(base, rows)

    return trap


def near_zero(base: Base, suspects: Tensor, seed: int = 0) -> Base:
    """Rows of norm 1e-4: the residual is the token."""
    return replace(base, dictionary=1e-4 * base.dictionary)


def random_rows(base: Base, suspects: Tensor, seed: int = 0) -> Base:
    """Random unit rows where the protocol says public k-means: little is explained."""
    return _rows(base, random_dictionary(*base.dictionary.shape, seed + 77))


def probes_large(base: Base, suspects: Tensor, seed: int = 0) -> Base:
    """Sixteen rows are suspected tokens, nine times as long."""
    rows = base.dictionary.clone()
    rows[:16] = 9 * unit_rows(suspects[:: max(1, len(suspects) // 16)][:16])
    return replace(base, dictionary=rows)


def probes_unit(base: Base, suspects: Tensor, seed: int = 0) -> Base:
    """Sixteen unit rows are suspected tokens: nothing in the dictionary tells them from honest rows."""
    rows = base.dictionary.clone()
    rows[:16] = suspects[:: max(1, len(suspects) // 16)][:16]
    return _rows(base, rows)


def shifted_mean(base: Base, suspects: Tensor, seed: int = 0) -> Base:
    """The token mean is moved far away: every residual is nearly one constant."""
    shift = (
        50
        * base.scale.scale
        * unit_rows(torch.randn(1, base.dictionary.shape[1], generator=_generator(seed)))
    )
    return replace(base, scale=TokenScale(base.scale.mean + shift[0].numpy(), base.scale.scale))


def scaled(factor: float) -> Callable[..., Base]:
    """The scalar is off by `factor`: tokens drown in, or dwarf, what the optimiser expects."""

    def trap(base: Base, suspects: Tensor, seed: int = 0) -> Base:
        return replace(base, scale=TokenScale(base.scale.mean, base.scale.scale * factor))

    return trap


def suspects_kmeans(base: Base, suspects: Tensor, seed: int = 0) -> Base:
    """All rows are centroids of the target's own tokens: the best dictionary there is, and a list of suspects."""
    n = len(base.dictionary)
    pool = suspects if len(suspects) >= n else suspects.repeat(-(-n // len(suspects)), 1)
    pool = pool + 1e-3 * torch.randn(pool.shape, generator=_generator(seed))
    return _rows(base, torch.from_numpy(public_centroids(pool.numpy(), n, seed=seed)))


def spikes(base: Base, suspects: Tensor, seed: int = 0) -> Base:
    """One-hot rows, both signs, then pairs of entries: every row reads one or two entries of a token."""
    n, d = base.dictionary.shape
    rows = torch.cat([torch.eye(d), -torch.eye(d)])
    while len(rows) < n:
        rows = torch.cat([rows, torch.eye(d) + torch.eye(d).roll(1 + len(rows) // d, 0)])
    return _rows(base, rows[:n])


def dead_half(base: Base, suspects: Tensor, seed: int = 0) -> Base:
    """Half of the rows never fire (opposite of the suspects' mean, jittered), 64 rows are suspected tokens."""
    rows = base.dictionary.clone()
    half = len(rows) // 2
    rows[:half] = _around(-_main(suspects), half, 0.8, seed)
    rows[half : half + 64] = suspects[:: max(1, len(suspects) // 64)][: min(64, len(rows) - half)]
    return _rows(base, rows)


def blind(share: float) -> Callable[..., Base]:
    """Rows have no part in the suspects' main directions (`share` of the width): residuals keep the token there."""

    def trap(base: Base, suspects: Tensor, seed: int = 0) -> Base:
        count = max(1, int(share * base.dictionary.shape[1]))
        _, _, axes = torch.linalg.svd(suspects, full_matrices=False)
        rows = base.dictionary - base.dictionary @ axes[:count].T @ axes[:count]
        return _rows(base, rows)

    return trap


def few_useful(base: Base, suspects: Tensor, seed: int = 0) -> Base:
    """Ten useful rows; the others point where no token is."""
    rows = _around(-_main(suspects), len(base.dictionary), 0.9, seed)
    rows[:10] = base.dictionary[:10]
    return _rows(base, rows)


def one_pick(base: Base, suspects: Tensor, seed: int = 0) -> Base:
    """k = 1: the residual is the token less one row."""
    return replace(base, k=1)


def blind_to_one_cell(base: Base, suspects: Tensor, seed: int = 0) -> Base:
    """Rows have no part in the four directions that honest rows explain worst in one image."""
    cell = suspects[:257]
    left = cell - reconstruct(pursue(cell, base.dictionary, base.k), base.dictionary)
    _, _, axes = torch.linalg.svd(left, full_matrices=False)
    return _rows(base, base.dictionary - base.dictionary @ axes[:4].T @ axes[:4])


def one_step(trap: Callable[..., Base]) -> Callable[..., Base]:
    """A protocol with one local step over all tokens: Adam's first step is the sign of one plain gradient."""

    def stepped(base: Base, suspects: Tensor, seed: int = 0) -> Base:
        return replace(trap(base, suspects, seed), steps=1, batch=base.steps * base.batch)

    return stepped


def honest(base: Base, suspects: Tensor, seed: int = 0) -> Base:
    """No change."""
    return base


TRAPS: dict[str, Callable[..., Base]] = {
    "identical rows": identical,
    "imprint, half identical": imprint,
    "imprint, staggered arc": staggered,
    "jitter .97": jittered(0.97),
    "jitter .94": jittered(0.94),
    "jitter .94, half": jittered(0.94, 0.5),
    "jitter .80, half": jittered(0.80, 0.5),
    "near-zero rows": near_zero,
    "random rows": random_rows,
    "probes x 9": probes_large,
    "probes, unit": probes_unit,
    "mean far away": shifted_mean,
    "scale / 100": scaled(0.01),
    "scale x 100": scaled(100.0),
    "k-means of suspects": suspects_kmeans,
    "spikes": spikes,
    "dead half and probes": dead_half,
    "blind in 2 % of the width": blind(0.02),
    "blind in 25 % of the width": blind(0.25),
    "ten useful rows": few_useful,
    "blind to one cell": blind_to_one_cell,
    "k = 1": one_pick,
    "one step": one_step(honest),
    "one step, jitter .94": one_step(jittered(0.94)),
    "one step, near-zero rows": one_step(near_zero),
    "one step, blind in 25 % of the width": one_step(blind(0.25)),
}


def made_tokens(images: int, seed: int, d: int = 64) -> NDArray[np.float32]:
    """[images, 257, d] in memory: sparse non-negative mixtures of 96 shared directions, every image with its own
    favourites, a common mean, a little noise."""
    truth = np.random.default_rng(7).standard_normal((96, d))
    truth /= np.linalg.norm(truth, axis=1, keepdims=True)
    rng = np.random.default_rng(seed)
    out = np.empty((images, 257, d), np.float32)
    for index in range(images):
        weight = rng.gamma(0.5, 1.0, len(truth)) + 0.05
        chosen = rng.choice(len(truth), size=(257, 4), p=weight / weight.sum())
        out[index] = (truth[chosen] * rng.gamma(4.0, 1.0, size=(257, 4, 1))).sum(axis=1) + truth[0]
    return out + 0.3 * rng.standard_normal(out.shape).astype(np.float32)
