"""The base-model gate: what a site checks of every dictionary it receives before any local training.

A tripwire, not a proof: a trap may be built to look honest (audit section 3.1). What holds is the structure (no
encoder), the aggregate recomputed where updates are visible (`check_same`), the row mask and the attack on the
outgoing bytes (`selfattack`). Limits are calibrated on one set of sites and tested on another:
docs/decisions/007, `python -m benchmarks.gate`.

    static (no data)   finite, shape, unit-norm, duplicates, neighbours, rank-of-previous, row-move
    on held-out tokens mean-shift, scale, picks, fvu, rank-of-tokens, residual-median, residual-share, idle-rows,
                       busiest-row, rows-in-use; few-units and nested are only logged (no power: decision 007)
    frozen models      finite, weight-size, decoder-rows, silent-rows (only metrics leave: nothing to invert)
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import EgressError
from ..sae.models import PursuitModel
from ..sae.pursuit import SparseCodes, reconstruct, unit_rows
from ..sae.scale import TokenScale

# Up to this many rows every row is compared with every other; above, `SAMPLE_ROWS` of them with all others.
ALL_PAIRS_ROWS, SAMPLE_ROWS, CHUNK = 4096, 1024, 512
DUPLICATE, NEIGHBOUR, CLOSE = 0.99, 0.90, 0.50
# Rows fired by this many units or fewer are the ones that the mask withholds.
FEW_UNITS = 10


@dataclass(frozen=True)
class GateLimits:
    """Largest (or, where the name begins with `least_`, smallest) accepted value of every check.

    Fractions of rows: duplicates, neighbours, idle_rows, silent_rows. Ranks are effective ranks relative to those of
    the last dictionary and of the site's own token directions. Where the protocol's start is random rows, which
    legitimately explain little, `fvu_random` holds, and neither the upper rank nor the residual checks.
    """

    unit_norm: float = 1e-3
    duplicates: float = 0.02
    neighbours: float = 0.95
    least_rank_of_tokens: float = 0.22
    rank_of_tokens: float = 3.5
    least_rank_of_previous: float = 0.5
    rank_of_previous: float = 3.0
    row_move: float = 1.0
    mean_shift: float = 0.6
    scale_factor: float = 1.5
    least_picks: int = 2
    fvu_kmeans: float = 0.8
    fvu_random: float = 0.95
    fvu_growth: float = 1.25
    residual_median: float = 0.88
    residual_share: float = 0.3
    idle_rows: float = 0.8
    busiest_row: float = 1.5
    least_rows_in_use: float = 0.05
    weight: float = 1e4
    decoder_rows: float = 100.0
    silent_rows: float = 0.5


@dataclass(frozen=True)
class GateCheck:
    """One check: `value` against `limit`. Values stay at the site."""

    id: str
    value: float
    limit: float
    ok: bool

    def log(self) -> dict[str, str]:
        """id, value and limit as decimal text for the site's log."""
        return {"id": self.id, "value": f"{self.value:.4g}", "limit": f"{self.limit:.4g}"}


LIMITS = GateLimits()


def require(checks: Sequence[GateCheck]) -> None:
    """EgressError(code base, reason MODEL_REJECT) that names the failed checks, without values."""
    failed = [check.id for check in checks if not check.ok]
    if failed:
        raise EgressError(
            f"Expected a dictionary that passes the base-model gate, got failed={failed}.",
            hint="Nothing was trained or sent. Ask the coordinator how it was made; see docs/decisions/007.",
            code="base",
            reason="MODEL_REJECT",
        )


@torch.no_grad()
def check_static(
    dictionary: Tensor,
    *,
    previous: Tensor | None = None,
    max_row_move: float | None = None,
    limits: GateLimits = LIMITS,
) -> list[GateCheck]:
    """Checks that need no data.

    Args:
        dictionary: [n, d] float32 as received.
        previous: [n, d] the last accepted dictionary of this study; none before the first.
        max_row_move: largest L2 norm of a row's step since `previous` before renormalisation: rounds in between x
            server learning rate x row_clip; a mean of clipped updates cannot exceed it.
    """
    finite = _most("finite", float((~torch.isfinite(dictionary)).sum()), 0.0)
    misfit = dictionary.ndim != 2 or (previous is not None and previous.shape != dictionary.shape)
    if not finite.ok or misfit:
        return [finite, _most("shape", float(misfit), 0.0)]
    duplicates, neighbours = _neighbour_shares(unit_rows(dictionary))
    checks = [
        finite,
        _most("unit-norm", float((dictionary.norm(dim=1) - 1).abs().max()), limits.unit_norm),
        _most("duplicates", duplicates, limits.duplicates),
        _most("neighbours", neighbours, limits.neighbours),
    ]
    if previous is not None:
        ratio = effective_rank(dictionary) / effective_rank(previous)
        checks += [
            _least("rank-of-previous-least", ratio, limits.least_rank_of_previous),
            _most("rank-of-previous-most", ratio, limits.rank_of_previous),
            _move(dictionary, previous, max_row_move, limits),
        ]
    return checks


def check_same(dictionary: Tensor, expected: Tensor, *, tolerance: float = 1e-5) -> list[GateCheck]:
    """The strongest check: the dictionary is the one that the site computed itself, from the protocol's seed or
    public centroids, or by the published rule from logged updates (audit section 3.1, G8)."""
    if dictionary.shape != expected.shape:
        return [_most("same", float("inf"), tolerance)]
    return [_most("same", float((dictionary - expected).abs().max()), tolerance)]


@torch.no_grad()
def check_tokens(
    model: PursuitModel,
    scale: TokenScale,
    tokens: Tensor,
    units: Tensor,
    *,
    previous_fvu: float | None = None,
    previous_scale: TokenScale | None = None,
    codes: SparseCodes | None = None,
    init: str = "public-kmeans",
    limits: GateLimits = LIMITS,
) -> list[GateCheck]:
    """Checks on local held-out tokens.

    Args:
        tokens: [m, d] float32 as stored, neither centred nor scaled; m of 1,024 or more.
        units: [m] unit of each token.
        previous_fvu: value of `fvu` when the last dictionary was accepted; none before the first.
        previous_scale: the last accepted mean and scale, which do not change within a study.
        codes: of the centred and scaled tokens, when the caller has coded them already (most of the cost).
        init: the protocol's `dictionary.init`: random rows legitimately explain less.
    """
    scaled = (tokens - torch.from_numpy(scale.mean)) / scale.scale
    centre = scaled.mean(dim=0)
    spread = float((scaled - centre).square().sum(dim=1).mean())
    size = (spread / scaled.shape[1]) ** 0.5
    codes = model.sparse(scaled) if codes is None else codes
    residual = scaled - reconstruct(codes, model.dictionary)
    fvu = float(residual.square().sum(dim=1).mean()) / max(spread, 1e-12)
    first = limits.fvu_random if init == "random" else limits.fvu_kmeans
    limit = first if previous_fvu is None else min(first, limits.fvu_growth * previous_fvu)
    checks = [
        _most("mean-shift", float(centre.norm()) / max(spread, 1e-12) ** 0.5, limits.mean_shift),
        _most("scale", max(size, 1 / max(size, 1e-12)), limits.scale_factor),
        _least("picks", float(model.k), float(min(limits.least_picks, model.dictionary.shape[0]))),
        _most("fvu", fvu, limit),
    ]
    if previous_scale is not None:
        checks.append(_most("scale-same", _scale_change(scale, previous_scale), 1e-6))
    ratio = effective_rank(model.dictionary) / effective_rank(unit_rows(scaled))
    few = min(1.0, len(model.dictionary) / 256) ** 0.5  # few rows cannot span what many do
    checks.append(_least("rank-of-tokens-least", ratio, limits.least_rank_of_tokens * few))
    if init != "random":
        checks.append(_most("rank-of-tokens-most", ratio, limits.rank_of_tokens))
        checks += _residuals(residual, scaled, limits)
    return checks + _firing(codes, units, model.dictionary, limits)


def _scale_change(scale: TokenScale, previous: TokenScale) -> float:
    moved = float(abs(scale.mean - previous.mean).max())
    return max(moved, abs(scale.scale - previous.scale)) / max(previous.scale, 1e-12)


def _residuals(residual: Tensor, tokens: Tensor, limits: GateLimits) -> list[GateCheck]:
    """A residual that points along its token means that the update will."""
    size = (residual.norm(dim=1) * tokens.norm(dim=1)).clamp_min(1e-12)
    cosine = (residual * tokens).sum(dim=1) / size
    return [
        _most("residual-median", float(cosine.median()), limits.residual_median),
        _most("residual-share", float((cosine > 0.9).float().mean()), limits.residual_share),
    ]


def check_frozen(tensors: Mapping[str, Tensor], limits: GateLimits = LIMITS) -> list[GateCheck]:
    """Checks of a frozen relu or topk model (W_enc [d, n], b_enc [n], W_dec [n, d], b_dec [d]) or of a frozen
    dictionary in a validation. Published untied models have uneven rows and biases: only values that no training
    gives are refused, because nothing but metrics under disclosure control leaves."""
    checks = [_most("finite", float(sum(int((~torch.isfinite(t)).sum()) for t in tensors.values())), 0.0)]
    if not checks[0].ok:
        return checks
    rows = tensors["W_dec"] if "W_dec" in tensors else tensors["dictionary"]
    norms = rows.norm(dim=1)
    typical = float(norms.median())
    return [
        *checks,
        _most("weight-size", max(float(t.abs().max()) for t in tensors.values()), limits.weight),
        _most("decoder-rows", float(norms.max()) / max(typical, 1e-12), limits.decoder_rows),
        _most("silent-rows", float((norms < 1e-6).float().mean()), limits.silent_rows),
    ]


# Ranks of the last matrices: held-out tokens and the last accepted dictionary come again in every round.
_RANKS: dict[bytes, float] = {}
MAX_RANKS = 16


def effective_rank(rows: Tensor) -> float:
    """exp of the entropy of the squared singular values' shares (Roy and Vetterli 2007), of [n, d]."""
    key = hashlib.sha256(rows.contiguous().numpy().tobytes()).digest() + bytes(
        str(tuple(rows.shape)), "ascii"
    )
    if key not in _RANKS:
        if len(_RANKS) >= MAX_RANKS:
            _RANKS.pop(next(iter(_RANKS)))
        _RANKS[key] = _effective_rank(rows)
    return _RANKS[key]


def _effective_rank(rows: Tensor) -> float:
    gram = rows.T @ rows if rows.shape[0] >= rows.shape[1] else rows @ rows.T
    if not bool(torch.isfinite(gram).all()):
        return float("nan")
    values = torch.linalg.eigvalsh(gram).clamp_min(0).double()
    shares = values[values > 0] / values.sum()
    return float(torch.exp(-(shares * shares.log()).sum()))


def row_move_bound(step: float) -> float:
    """Largest distance of two unit rows when the second is the first plus a step of norm <= `step`, renormalised."""
    if step >= 1:
        return 2.0
    cosine = (1 - step**2) ** 0.5
    return float((2 - 2 * cosine) ** 0.5)


def _move(dictionary: Tensor, previous: Tensor, max_row_move: float | None, limits: GateLimits) -> GateCheck:
    """Largest distance of a row from its last accepted place.

    A step of Adam has norm up to learning rate x sqrt(d): the measured limit (d = 384, one round) grows with sqrt(d)
    and with the rounds in between; the arithmetic bound of clipped updates holds as well.
    """
    moved = float((dictionary - previous).norm(dim=1).max())
    limit = limits.row_move * max(1.0, dictionary.shape[1] / 384) ** 0.5
    if max_row_move is not None:
        limit = min(limit * max(1.0, max_row_move), row_move_bound(max_row_move) + 1e-3)
    return _most("row-move", moved, limit)


def _neighbour_shares(rows: Tensor) -> tuple[float, float]:
    """Share of rows with another row above `DUPLICATE`, and above `NEIGHBOUR`; memory CHUNK x n.

    Up to `ALL_PAIRS_ROWS` rows: exact. Above: of `SAMPLE_ROWS` rows against all, drawn from the dictionary's own
    digest, so that a repeated check gives the same number (standard error of a share at most .016).
    """
    n = len(rows)
    chosen = torch.arange(n)
    if n > ALL_PAIRS_ROWS:
        seed = hashlib.sha256(rows.contiguous().numpy().tobytes()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(seed[:7], "big"))
        chosen = torch.randperm(n, generator=generator)[:SAMPLE_ROWS]
    best = []
    for part in chosen.split(CHUNK):  # type: ignore[no-untyped-call]
        cosine = rows[part] @ rows.T
        cosine[torch.arange(len(part)), part] = -1.0
        best.append(cosine.amax(dim=1))
    top = torch.cat(best)
    return float((top > DUPLICATE).float().mean()), float((top > NEIGHBOUR).float().mean())


def _firing(codes: SparseCodes, units: Tensor, dictionary: Tensor, limits: GateLimits) -> list[GateCheck]:
    """How firing spreads over rows and units; a token may pick a row more than once."""
    n, m = len(dictionary), len(codes.rows)
    token = torch.arange(m)[:, None].expand_as(codes.rows)[codes.values > 0]
    row = codes.rows[codes.values > 0]
    index = torch.unique(units, return_inverse=True)[1]
    count = int(index.max()) + 1
    fired = torch.bincount(row, minlength=n).double()
    firing = torch.zeros(n, count, dtype=torch.bool)
    firing[row, index[token]] = True
    behind = firing.sum(dim=1)
    used = fired > 0
    shares = fired[used] / fired.sum().clamp_min(1)
    spread = float(torch.exp(-(shares * shares.log()).sum())) if bool(used.any()) else 0.0
    few = (behind >= 1) & (behind <= FEW_UNITS)
    possible = min(n, len(row)) or 1
    return [
        _most("idle-rows", 1 - float(used.sum()) / possible, limits.idle_rows),
        _most("busiest-row", float(fired.max()) / m, limits.busiest_row),
        _least("rows-in-use", spread / possible, limits.least_rows_in_use),
        _most("few-units", float(few.sum()) / max(1, int(used.sum())), 1.0),
        _most("nested", _nested(firing, behind, dictionary), 1.0),
    ]


def _nested(firing: Tensor, behind: Tensor, dictionary: Tensor) -> float:
    """Among close pairs of rows (cosine > `CLOSE`) that both fired: the share whose sets of units differ by 1 to
    `FEW_UNITS` although both are larger than that, less the same share over random pairs of such rows."""
    large = (behind > FEW_UNITS).nonzero().squeeze(1)[:2048]
    if len(large) < 2:
        return 0.0
    rows, sets = dictionary[large], firing[large].float()
    both = sets @ sets.T
    size = sets.sum(dim=1)
    apart = size[:, None] + size[None, :] - 2 * both
    near = (apart >= 1) & (apart <= FEW_UNITS)
    pair = torch.ones(len(large), len(large), dtype=torch.bool).triu(1)
    close = (rows @ rows.T > CLOSE) & pair
    if not bool(close.any()):
        return 0.0
    return float(near[close].float().mean() - near[pair].float().mean())


def _most(name: str, value: float, limit: float) -> GateCheck:
    return GateCheck(name, value, limit, value <= limit)


def _least(name: str, value: float, limit: float) -> GateCheck:
    return GateCheck(name, value, limit, value >= limit)
