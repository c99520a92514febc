"""One concept's verdict from its effects at all sites. Formulas: cytosae_core/report/agreement.py."""

from __future__ import annotations

import math
from collections.abc import Sequence

from .given import mean_known

EFFECT, REPLICATED, CONTRADICTION_Z, MIN_SITES = 0.15, 0.10, 4.0, 3
VERDICTS = ("holds", "differs", "no class meaning", "too few patients")
Table = Sequence[Sequence[float]]


def verdict_of(effects: Table, errors: Table) -> tuple[str, int, float | None, int]:
    """Verdict, target, mean AUROC and number of sites of one concept from effects [sites][targets]."""
    targets = range(len(effects[0]) if effects else 0)
    given = [[row[t] for row in effects if not math.isnan(row[t])] for t in targets]
    mean = [mean_known(values) if values else 0.0 for values in given]
    sites = max((len(values) for values in given), default=0)
    if sites < MIN_SITES:
        return "too few patients", -1, None, sites
    weakest = [
        min(math.copysign(1, m) * value if m else 0.0 for value in values)
        if len(values) >= MIN_SITES
        else -math.inf
        for values, m in zip(given, mean, strict=True)
    ]
    holding = [w if abs(m) > EFFECT else -math.inf for w, m in zip(weakest, mean, strict=True)]
    best = max(targets, key=holding.__getitem__)
    if holding[best] > REPLICATED:
        return "holds", best, mean[best] + 0.5, sites
    loudness = [_loudness(effects, errors, t) if weakest[t] <= REPLICATED else 0.0 for t in targets]
    loudest = max(targets, key=loudness.__getitem__)
    if loudness[loudest] > 0:
        return "differs", loudest, mean[loudest] + 0.5, sites
    top = max(targets, key=lambda t: abs(mean[t]))
    return "no class meaning", top, mean[top] + 0.5, sites


def _loudness(effects: Table, errors: Table, t: int) -> float:
    """The largest effect on a target that some site is sure of; 0 when none is, or fewer than 3 sites can say."""
    known = [abs(e[t]) for e in effects if not math.isnan(e[t])]
    sure = any(
        abs(e[t]) > EFFECT and abs(e[t]) > CONTRADICTION_Z * max(s[t], 1e-3)
        for e, s in zip(effects, errors, strict=True)
    )
    return max(known) if sure and len(known) >= MIN_SITES else 0.0
