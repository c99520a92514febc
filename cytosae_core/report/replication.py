"""report.json: meanings chosen at the other sites, and how many of them hold at the site left out."""

from __future__ import annotations

import math

from .concept_table import ConceptTable
from .evidence import Evidence, Json


def replication(e: Evidence, table: ConceptTable) -> dict[str, Json]:
    """Per site left out: `pairs` chosen on the others, `replicated`, their `share` with its standard error over
    pairs, and the `null` share with shuffled labels there."""
    folds, out = table.folds, {}
    for index, site in enumerate(e.sites):
        pairs, held = int(folds.pairs[index]), int(folds.held[index])
        null_pairs, null_held = int(folds.null_pairs[index]), int(folds.null_held[index])
        out[site] = {
            "pairs": pairs,
            "replicated": held,
            "share": held / pairs if pairs else None,
            "se": _error(held, pairs) if pairs else None,
            "null": null_held / null_pairs if null_pairs else None,
        }
    return out


def _error(held: int, pairs: int) -> float:
    """Standard error of a share with half a pair added to both sides (never 0)."""
    share = (held + 0.5) / (pairs + 1)
    return math.sqrt(share * (1 - share) / pairs)
