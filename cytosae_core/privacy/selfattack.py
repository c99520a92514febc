"""A site's attack on its own outgoing bytes: can a cell be read back from exactly what would leave?

Every reader turns the released rows into vectors and compares them with the tokens of this round and with
background tokens: other images of the same site that this round did not use (audit section 3.1, G13 and G14).

    direction      |cos| of a row's change with a token (gradient inversion of a row that one token moved)
    ratio          |cos| beside the base row: span of base row and change, part across the base row (the quotient of
                   two gradients that an encoder would give, for rows that have no bias)
    signs          |cos| of the sign patterns: Adam divides by a row's own size, its signs survive
    adjacent       differences of consecutive released rows (Fowl et al. 2022, "Robbing the Fed")
    sorted         differences of rows that are neighbours along the base's first principal direction
    least squares  a token from the span of the 8 rows that read it best (orthogonal projection)
    image means    |cos| of a change with the mean token of one unit

A vector gives a cell back when its best own value reaches max(limit, background p99 + margin) and the same vector
reads no background token nearly as well (what every cell of a site has in common is no cell). Membership (may a
holder of the token tell that it was used?) is measured and logged, it does not block: see docs/decisions/007.
Memory: `CHUNK` tokens x rows. Cost: one float32 product [m, d] x [d, rows], which is the floor, and two in int8:
signs are exact in int8, and the base products of `ratio` only choose each row's best token, whose value is exact.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..errors import EgressError
from ..sae.pursuit import unit_rows

CHUNK = 512
# A reading above this counts as a match in the log (audit section 0).
MATCH = 0.95
SPAN_ROWS, SPAN_TOKENS = 8, 256
# Less of a token than this (squared) beside the base row is rounding.
LEFT = 1e-2
# Readers that read single rows: such rows may be withheld, differences may not.
ROW_READERS = ("direction", "ratio", "signs", "image means")


@dataclass(frozen=True)
class AttackLimits:
    """When a reading is a cell (calibrated on honest masked updates: docs/decisions/007).

    Attributes:
        cosine: smallest |cos| of `direction`, `signs`, `adjacent`, `sorted` and `image means` that counts.
        ratio, span: the same for `ratio` and `least squares`, which are high by chance already.
        margin: how far a reading must also lie above the background's 99th percentile over vectors.
        gap: how far it must also lie above the same vector's best background token.
        background: at most this many background tokens are compared.
    """

    cosine: float = 0.75
    ratio: float = 0.95
    span: float = 0.90
    margin: float = 0.10
    gap: float = 0.05
    background: int = 512

    def of(self, reader: str) -> float:
        """The smallest value of a reader that counts."""
        return {"ratio": self.ratio, "least squares": self.span}.get(reader, self.cosine)


LIMITS = AttackLimits()


@dataclass(frozen=True)
class Reading:
    """One reader: `vectors` compared; largest |cos| and matches above `MATCH` among the round's own tokens and among
    the background; the background's 99th percentile over vectors; the threshold that followed; how many vectors gave
    a cell back."""

    reader: str
    vectors: int
    own_max: float
    own_matches: int
    background_max: float
    background_matches: int
    background_p99: float
    threshold: float
    recovered: int

    @property
    def recoverable(self) -> bool:
        """A vector that leaves is a cell of this site, and no chance likeness."""
        return self.recovered > 0


@dataclass(frozen=True)
class Attack:
    """What all readers found on `rows` released rows, `tokens` own and `background` other tokens.

    `membership_auc`: chance that an own token's best |cos| with any row exceeds a background token's; .5 is none.
    `readable` [n]: rows whose change gives a token or image mean back; stays at the site.
    """

    rows: int
    tokens: int
    background: int
    readings: tuple[Reading, ...]
    membership_auc: float
    readable: Tensor = field(repr=False)

    @property
    def recoverable(self) -> bool:
        """Any reader reads a cell."""
        return any(reading.recoverable for reading in self.readings)

    def log(self) -> list[dict[str, str]]:
        """id, value and limit as decimal text, for the site's log: no row, no token, no name."""
        found = [
            {"id": f"read {r.reader}", "value": f"{r.own_max:.3f}", "limit": f"{r.threshold:.3f}"}
            for r in self.readings
        ]
        return [*found, {"id": "membership auc", "value": f"{self.membership_auc:.3f}", "limit": ""}]


@torch.no_grad()
def attack(
    delta: Tensor,
    base: Tensor,
    tokens: Tensor,
    units: Tensor,
    background: Tensor,
    background_units: Tensor,
    limits: AttackLimits = LIMITS,
) -> Attack:
    """Run all readers on what would leave.

    Args:
        delta: [n, d] the exact outgoing float16 values; rows of zeros are not released and give nothing.
        base: [n, d] float32 dictionary of the request.
        tokens, units: [m, d] centred and scaled tokens of this round, and the unit of each [m].
        background, background_units: [b, d] and [b], of images that this round did not use.

    Raises:
        EgressError: shapes that do not fit, or no background to compare with.
    """
    _check(delta, base, tokens, units, background, background_units)
    vectors = _Vectors.of(delta, base)
    if vectors.rows == 0:
        return Attack(0, len(tokens), len(background), (), 0.5, torch.zeros(len(base), dtype=torch.bool))
    chosen = _spread(len(background), limits.background)
    other, other_units = background[chosen], background_units[chosen]
    own, own_best = _best(vectors, tokens)
    seen, seen_best = _best(vectors, other)
    own["least squares"] = _span(vectors, tokens, own_best)
    seen["least squares"] = _span(vectors, other, seen_best)
    own["image means"] = _means(vectors, tokens, units)
    seen["image means"] = _means(vectors, other, other_units)
    readable = torch.zeros(len(base), dtype=torch.bool)
    readings = []
    for name in own:
        reading, recovered = _reading(name, own[name], seen[name], limits)
        readings.append(reading)
        if name in ROW_READERS:
            readable[vectors.index] |= recovered
    best = _auc(own_best, seen_best)
    return Attack(vectors.rows, len(tokens), len(other), tuple(readings), best, readable)


class Attacker:
    """`attack` with everything but the delta fixed; the same bytes are attacked once.

    Args:
        base, tokens, units, background, background_units, limits: as for `attack`.
    """

    def __init__(
        self,
        base: Tensor,
        tokens: Tensor,
        units: Tensor,
        background: Tensor,
        background_units: Tensor,
        limits: AttackLimits = LIMITS,
    ) -> None:
        self._given = (base, tokens, units, background, background_units, limits)
        self._last: tuple[Tensor, Attack] | None = None

    def __call__(self, delta: Tensor) -> Attack:
        """The attack on `delta` [n, d] float16, exactly as it would leave."""
        if self._last is None or not torch.equal(self._last[0], delta):
            self._last = (delta.clone(), attack(delta, *self._given))
        return self._last[1]


def require_unreadable(found: Attack) -> None:
    """EgressError(code egress, reason SELF_ATTACK) when a cell could be read; the message has no values."""
    readers = [reading.reader for reading in found.readings if reading.recoverable]
    if readers:
        raise EgressError(
            f"Expected an update from which no reader reads a cell, got readers={readers}.",
            hint="Nothing was sent. Ask the coordinator how this dictionary was made; see docs/decisions/007.",
            reason="SELF_ATTACK",
        )


@dataclass(frozen=True)
class _Vectors:
    """Released rows [a, d] in the bases that the readers need; every product with tokens is one matrix product."""

    index: Tensor  # [a] which rows of the dictionary
    change: Tensor  # unit changes
    norm: Tensor  # [a] their sizes
    base: Tensor  # unit base rows
    lean: Tensor  # [a] cosine of change and base row
    signs: Tensor  # -1, 0, 1 int8
    order: Tensor  # [a] along the base's first principal direction
    adjacent_norm: Tensor  # [a - 1]
    sorted_norm: Tensor  # [a - 1]

    @property
    def rows(self) -> int:
        return len(self.change)

    @classmethod
    def of(cls, delta: Tensor, base: Tensor) -> _Vectors:
        index = (delta != 0).any(dim=1).nonzero().squeeze(1)
        plain, rows = delta[index].to(torch.float32), unit_rows(base[index].to(torch.float32))
        change = unit_rows(plain)
        order = _principal_order(rows)
        return cls(
            index,
            change,
            plain.norm(dim=1),
            rows,
            (change * rows).sum(dim=1),
            plain.sign().to(torch.int8),
            order,
            (plain[1:] - plain[:-1]).norm(dim=1),
            (plain[order][1:] - plain[order][:-1]).norm(dim=1),
        )


def _principal_order(rows: Tensor) -> Tensor:
    """Indices [a] sorted along the first principal direction: near-duplicate rows become neighbours."""
    centred = rows - rows.mean(dim=0)
    direction = torch.ones(rows.shape[1])
    for _ in range(8):  # power iteration: near enough for an order
        direction = centred.T @ (centred @ direction)
        direction = direction / direction.norm().clamp_min(1e-12)
    return (centred @ direction).argsort()


def _best(vectors: _Vectors, tokens: Tensor) -> tuple[dict[str, Tensor], Tensor]:
    """Largest |cos| of every vector over `tokens`, by reader; and every token's best |cos| with any change [m]."""
    best: dict[str, Tensor] = {}
    per_token: list[Tensor] = []
    for name, top in _tops(vectors, tokens, per_token):
        best[name] = torch.maximum(best[name], top) if name in best else top
    return best, torch.cat(per_token)


def _tops(vectors: _Vectors, tokens: Tensor, per_token: list[Tensor]) -> Iterator[tuple[str, Tensor]]:
    """Reader and the largest |cos| of each vector, chunk of tokens by chunk; products are [vectors, chunk]."""
    sign_size = vectors.signs.abs().sum(dim=1, dtype=torch.float32).clamp_min(1).sqrt()
    base = _int8(vectors.base)
    for part in tokens.split(CHUNK):  # type: ignore[no-untyped-call]
        unit = unit_rows(part)
        plain = vectors.change @ unit.T
        size = plain.abs()
        per_token.append(size.amax(dim=0))
        yield "direction", size.amax(dim=1)
        yield "ratio", _ratio(vectors, unit, plain, base)
        pattern = part.sign().to(torch.int8)
        found = _product(vectors.signs, pattern).abs_()
        found /= pattern.abs().sum(dim=1, dtype=torch.float32).clamp_min(1).sqrt()
        yield "signs", found.amax(dim=1) / sign_size
        if vectors.rows > 1:
            plain *= vectors.norm[:, None]
            yield "adjacent", _differences(plain, vectors.adjacent_norm)
            yield "sorted", _differences(plain[vectors.order], vectors.sorted_norm)


def _int8(rows: Tensor) -> Tensor:
    """Rows [., d] scaled to -127 .. 127 and rounded."""
    return (rows * (127 / rows.abs().amax(dim=1, keepdim=True).clamp_min(1e-12))).round_().to(torch.int8)


def _product(left: Tensor, right: Tensor) -> Tensor:
    """left [a, d] x right [b, d] of int8 -> [a, b] float32: eight times as fast as float32 where the CPU can."""
    fast = bool(torch.backends.mkldnn.is_available())  # type: ignore[no-untyped-call]
    if fast and min(len(left), len(right)) > 1:
        return torch._int_mm(left, right.T).to(torch.float32)
    return left.to(torch.float32) @ right.to(torch.float32).T


def _ratio(vectors: _Vectors, unit: Tensor, plain: Tensor, base: Tensor) -> Tensor:
    """Largest |cos| between the parts of token and change across the base row [a].

    The product with base rows is taken in int8 (error about .002) to find each row's best token; that pair's value is
    then computed in float32.
    """
    beside = _product(base, _int8(unit))
    beside *= (vectors.base.abs().amax(dim=1) / 127)[:, None]
    beside *= unit.abs().amax(dim=1) / 127
    across = torch.addcmul(plain, beside, vectors.lean[:, None], value=-1)
    token = across.square_().div_(beside.square_().neg_().add_(1).clamp_min_(LEFT)).argmax(dim=1)
    exact = (unit[token] * vectors.base).sum(dim=1)
    straight = (unit[token] * vectors.change).sum(dim=1) - exact * vectors.lean
    left = (1 - exact.square()).clamp_min(LEFT) * (1 - vectors.lean.square()).clamp_min(LEFT)
    return straight.abs() * left.rsqrt()


def _differences(products: Tensor, norms: Tensor) -> Tensor:
    """Largest |cos| of tokens with differences of consecutive rows' vectors [a - 1]."""
    return (products[1:] - products[:-1]).abs_().amax(dim=1) / norms.clamp_min(1e-12)


def _span(vectors: _Vectors, tokens: Tensor, best: Tensor) -> Tensor:
    """|cos| of the `SPAN_TOKENS` best read tokens with the span of the `SPAN_ROWS` changes that read them best."""
    chosen = best.topk(min(SPAN_TOKENS, len(best))).indices
    unit = unit_rows(tokens[chosen])
    plain = unit @ vectors.change.T
    rows = plain.abs().topk(min(SPAN_ROWS, vectors.rows), dim=1).indices
    basis = vectors.change[rows]  # [t, r, d]
    gram = basis @ basis.transpose(1, 2) + 1e-3 * torch.eye(rows.shape[1])
    product = plain.gather(1, rows)
    weights: Tensor = torch.linalg.solve(gram, product)
    return (weights * product).sum(dim=1).clamp(0, 1).sqrt()


def _means(vectors: _Vectors, tokens: Tensor, units: Tensor) -> Tensor:
    """Largest |cos| of every change over the mean tokens of single units [a]."""
    index = torch.unique(units, return_inverse=True)[1]
    count = int(index.max()) + 1
    means = torch.zeros(count, tokens.shape[1]).index_add_(0, index, tokens)
    return (unit_rows(means) @ vectors.change.T).abs_().amax(dim=0)


def _reading(name: str, own: Tensor, seen: Tensor, limits: AttackLimits) -> tuple[Reading, Tensor]:
    """One reader's result, and which vectors gave a cell back."""
    p99 = float(torch.quantile(seen[: 1 << 20], 0.99))
    threshold = max(limits.of(name), p99 + limits.margin)
    recovered = own >= threshold
    if (
        name != "least squares"
    ):  # its vectors are tokens, the others are the same changes for own and background
        recovered &= own >= seen + limits.gap
    reading = Reading(
        name,
        len(own),
        float(own.max()),
        int((own > MATCH).sum()),
        float(seen.max()),
        int((seen > MATCH).sum()),
        p99,
        threshold,
        int(recovered.sum()),
    )
    return reading, recovered


def _auc(own: Tensor, seen: Tensor) -> float:
    """Area under the ROC curve of `own` against `seen` (Mann-Whitney; ties count half)."""
    ordered = seen.sort().values
    below = torch.searchsorted(ordered, own, right=False) + torch.searchsorted(ordered, own, right=True)
    return float(below.double().mean()) / (2 * len(seen))


def _spread(count: int, wanted: int) -> Tensor:
    """At most `wanted` indices, evenly over 0 .. count - 1."""
    return torch.linspace(0, count - 1, min(count, wanted)).round().long()


def _check(
    delta: Tensor, base: Tensor, tokens: Tensor, units: Tensor, background: Tensor, background_units: Tensor
) -> None:
    d = base.shape[-1]
    fits = delta.shape == base.shape and base.ndim == 2 and tokens.ndim == background.ndim == 2
    if not fits or tokens.shape[1] != d or background.shape[1] != d:
        raise EgressError(
            f"Expected delta and base [n, d], tokens and background [., d={d}].", reason="SELF_ATTACK"
        )
    if len(units) != len(tokens) or len(background_units) != len(background):
        raise EgressError("Expected one unit for every token.", reason="SELF_ATTACK")
    if not bool(torch.isfinite(delta).all()):
        raise EgressError("Expected a finite update.", hint="A trap?", reason="SELF_ATTACK")
    if not len(tokens) or not len(background):
        raise EgressError(
            f"Expected tokens and background tokens, got tokens={len(tokens)} background={len(background)}.",
            hint="Keep images back as a test part.",
            reason="SELF_ATTACK",
        )
