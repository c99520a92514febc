"""What experts call concepts, from the votes in the replies. Formulas: docs/auditor.md."""

from __future__ import annotations

import math
from collections.abc import Sequence

from .given import Given
from .numbers import Numbers

TERMS = (
    "granules", "azurophilic-granules", "vacuoles", "auer-rod", "nucleoli", "chromatin", "nucleus-shape",
    "nucleus-lobes", "cytoplasm-colour", "cell-border", "cell-size", "red-cells", "platelets", "stain-artefact",
    "other-artefact", "mixed", "cannot-name",
)  # fmt: skip
FEATURES, UNNAMED = TERMS.index("stain-artefact"), TERMS.index("cannot-name")
Votes = list[list[int]]


def votes_of(given: Given) -> Votes | None:
    """Votes per concept and term, summed over sites; None when no site held a review. NaN: withheld."""
    tables, wide = given.described("ratings"), len(TERMS)
    if not tables:
        return None
    flat = [sum(int(value) for value in values if value == value) for values in zip(*tables, strict=True)]
    return [flat[row * wide : (row + 1) * wide] for row in range(given.n)]


def columns_of_votes(given: Given) -> dict[str, list[float]]:
    """review_raters, review_term and review_agreement of every concept."""
    votes = votes_of(given) or [[0] * len(TERMS) for _ in range(given.n)]
    chance = _chance(votes)
    return {
        "review_raters": [float(sum(row)) for row in votes],
        "review_term": [float(_top(row)) for row in votes],
        "review_agreement": [_beyond(_pairs(row), chance) for row in votes],
    }


def check_experts(numbers: Numbers, given: Given) -> str:
    """Agreement over all concepts; its interval is drawn at random and checked by `replay` only."""
    votes = votes_of(given)
    raters = {site: most for site in given.sites if (most := _most(numbers, site))}
    numbers.same(
        "experts/status", "not_assessed" if votes is None else "estimated" if raters else "suppressed"
    )
    numbers.same("experts/sites", sorted(raters))
    numbers.same("experts/raters", sum(raters.values()) or None)
    counted = [row for row in votes or [] if sum(row) >= 2]
    numbers.same("experts/ac1/n/concepts", len(counted))
    numbers.close("experts/ac1/value", _mean_beyond(counted, _chance(counted)))
    numbers.close("experts/kappa", _mean_beyond(counted, math.fsum(x * x for x in _shares(counted))))
    numbers.close("experts/alpha", _alpha(counted))
    every = sum(map(sum, votes or []))
    for name, first, last in (("artefact", FEATURES, FEATURES + 2), ("unnamed", UNNAMED, UNNAMED + 1)):
        chosen = sum(sum(row[first:last]) for row in votes or [])
        numbers.close(f"experts/{name}", chosen / every if raters else None)
    return "No expert review was held." if votes is None else f"{every} votes are counted again."


def _most(numbers: Numbers, site: str) -> int:
    """Most votes that a site's experts gave to one concept; 0 without a review."""
    values = numbers.values("describe", 0, site, "ratings") or ()
    rows = (values[at : at + len(TERMS)] for at in range(0, len(values), len(TERMS)))
    return max((int(sum(value for value in row if value == value)) for row in rows), default=0)


def _top(row: Sequence[int]) -> int:
    """The term with most votes, -1 when another has as many."""
    most = max(row)
    return row.index(most) if most and row.count(most) == 1 else -1


def _pairs(row: Sequence[int]) -> float:
    """Share of pairs of raters that agree; NaN with fewer than two."""
    raters = sum(row)
    return sum(x * (x - 1) for x in row) / (raters * (raters - 1)) if raters > 1 else math.nan


def _shares(votes: Votes) -> list[float]:
    """Mean over concepts that two raters looked at of the share of votes for every term."""
    counted = [row for row in votes if sum(row) >= 2]
    return [
        math.fsum(row[term] / sum(row) for row in counted) / max(len(counted), 1)
        for term in range(len(TERMS))
    ]


def _chance(votes: Votes) -> float:
    return math.fsum(x * (1 - x) for x in _shares(votes)) / (len(TERMS) - 1)


def _beyond(pairs: float, chance: float) -> float:
    return (pairs - chance) / (1 - chance)


def _mean_beyond(counted: Votes, chance: float) -> float | None:
    if not counted or chance >= 1:
        return None
    return _beyond(math.fsum(map(_pairs, counted)) / len(counted), chance)


def _alpha(counted: Votes) -> float | None:
    total: list[int] = [sum(column) for column in zip(*counted, strict=True)]
    every: int = sum(total)
    if every < 2 or (expected := sum(x * (x - 1) for x in total) / (every - 1)) >= every:
        return None
    same = math.fsum(sum(x * (x - 1) for x in row) / (sum(row) - 1) for row in counted)
    return 1 - (every - same) / (every - expected)
