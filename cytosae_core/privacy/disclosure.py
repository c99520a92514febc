"""Disclosure control S1 to S15 (docs/policy.md): pure functions on numpy arrays, NaN where a value is withheld.

The unit of counting is the patient, where the data names none a slide, else a source file (S1): every function takes
the number of units behind a value, never the number of cells. `policy.min_units` is the threshold (S2).

    counts, tables, hello counts    protect_counts, protect_table, protect_hello      S2 S3 S5
    sums of contributions           dominance                                         S4
    the same question again         privacy/ledger.py                                 S6 S14
    shares                          protect_shares                                    S7
    minima, maxima, quantiles       FORBIDDEN: no such name may be in the table       S8
    histograms, curves              privacy/bins.py                                   S9 S10
    fitted models, text, numbers    model_dof, check_text, round_significant          S11 S12 S13
    what withheld looks like        SUPPRESSED, marked: one marker, no reason         S15

With `policy.disclosure_control` off (published images in a simulation) only the threshold `min_units` is applied.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..errors import EgressError
from ..policy import SitePolicy

Array = NDArray[Any]
Floats = NDArray[np.float64]
Mask = NDArray[np.bool_]
SUPPRESSED = {"s": "suppressed"}
RESIDUAL_DOF, PARAMETERS_PER_UNIT = 10, 0.33
NAME_LENGTH, NOTE_LENGTH = 20, 80
_DIGEST = re.compile(r"[0-9a-f]{64}\Z")
_DIGIT_RUN = re.compile(r"[0-9]{5}")
# S8: words that no released name may contain between its underscores.
FORBIDDEN = frozenset(
    {
        *(
            "min",
            "max",
            "minimum",
            "maximum",
            "top",
            "topk",
            "strongest",
            "argmax",
            "argmin",
            "mode",
            "median",
        ),
        *("quantile", "quantiles", "percentile", "percentiles", "rank", "ranks", "order", "index", "indices"),
        *(
            "example",
            "examples",
            "image",
            "images",
            "thumbnail",
            "crop",
            "pixel",
            "pixels",
            "file",
            "path",
            "id",
        ),
        *(
            "patient",
            "patients",
            "slide",
            "cell",
            "cells",
            "token",
            "tokens",
            "grad",
            "gradient",
            "loss",
            "enc",
        ),
        *("optimizer", "optimiser", "bias", "momentum"),
    }
)
# `token_sum`, `token_square` and `token_count` are sums over all training tokens of a site, not tokens;
# `image_facts` and `image_histogram` are moments and counts over units, not images.
SUMS = frozenset({"token_sum", "token_square", "token_count", "image_facts", "image_histogram"})


def names_an_extreme(name: str) -> bool:
    """Whether a name promises what S8 forbids: extremes, quantiles, indices, single images, training state."""
    return name not in SUMS and not FORBIDDEN.isdisjoint(name.lower().split("_"))


def round_to_multiple(values: ArrayLike, base: int) -> Floats:
    """Nearest multiples of `base`; halves go to the even multiple (S3)."""
    return np.asarray(np.round(np.asarray(values, dtype=np.float64) / base) * base, dtype=np.float64)


def few(values: ArrayLike, units: ArrayLike, policy: SitePolicy) -> Mask:
    """Cells that S2 withholds: too few units, or too small a count (zero included)."""
    values, units = np.broadcast_arrays(np.asarray(values), np.asarray(units))
    return np.asarray((units < policy.min_units) | (values < policy.min_units))


def protect_counts(values: ArrayLike, units: ArrayLike, policy: SitePolicy) -> Floats:
    """Counts that do not add up to anything else that is released.

    Guarantees (tests/unit/test_disclosure.py):
        S2a. A count with fewer than `min_units` units behind it, or that is smaller itself, is NaN; so is zero.
        S3a. What is left is a multiple of `round_to`, rounded after suppressing.
    """
    shown = round_to_multiple(values, policy.round_to)
    return np.asarray(np.where(few(values, units, policy), np.nan, shown), dtype=np.float64)


@dataclass(frozen=True)
class Table:
    """A protected table: cells [r, c] with NaN where withheld, and totals that are sums of the shown cells."""

    cells: Floats
    row_totals: Floats
    column_totals: Floats
    total: float


def protect_table(
    values: ArrayLike,
    units: ArrayLike,
    policy: SitePolicy,
    *,
    structural: ArrayLike | None = None,
    exclusive: bool = False,
) -> Table:
    """A table of counts [r, c] with its totals.

    Args:
        units: [r, c] distinct units behind each cell.
        structural: cells that must be zero by definition and are declared so; shown as 0 when they are.
        exclusive: every unit is in one cell only, so units of cells may be added.

    Guarantees (tests/unit/test_disclosure.py):
        S5a. No row and no column has exactly one withheld cell.
        S5b. The withheld cells of a row or column stand for at least `min_units` units together, so somebody who
             knows the true total learns nothing about fewer.
        S5f. Also with the true totals no withheld cell with fewer than `min_units` units can be calculated, unless a
             whole row and column around it is withheld or structural.
        S3b. Totals are sums of the rounded cells that are shown.
        S7a. A structural zero is shown; every other zero is withheld.
    """
    counts, behind = np.broadcast_arrays(np.asarray(values, dtype=np.float64), np.asarray(units))
    declared = np.asarray(False if structural is None else structural, dtype=bool)
    fixed = np.broadcast_to(declared, counts.shape) & (counts == 0)
    hidden = few(counts, behind, policy) & ~fixed
    if policy.disclosure_control:
        hidden = _complement(hidden, behind, fixed, policy.min_units, exclusive)
    cells = np.where(hidden, np.nan, round_to_multiple(counts, policy.round_to))
    return Table(cells, np.nansum(cells, axis=1), np.nansum(cells, axis=0), float(np.nansum(cells)))


def _complement(hidden: Mask, units: Array, fixed: Mask, at_least: int, exclusive: bool) -> Mask:
    """Withhold more cells, smallest first, until every row and column is safe and no cell below the threshold follows
    from the true totals. Ends: cells only get withheld."""
    hidden = hidden.copy()
    changed = True
    while changed:
        changed = False
        for lines in (hidden, hidden.T):  # views: writing to a line writes to `hidden`
            flip = lines is not hidden
            if lines.shape[1] == 1:  # a list has no second total
                continue
            for line, behind, known in zip(lines, _turn(units, flip), _turn(fixed, flip), strict=True):
                changed |= _complement_line(line, behind, known, at_least, exclusive)
        changed = changed or (min(hidden.shape) > 1 and _break_bridge(hidden, units, fixed, at_least))
    return hidden


def _turn(values: Array, flip: bool) -> Array:
    return values.T if flip else values


def _complement_line(hidden: Mask, units: Array, fixed: Mask, at_least: int, exclusive: bool) -> bool:
    """Make one line safe in place; whether anything changed."""
    changed = False
    while hidden.any() and not _line_is_safe(hidden, units, at_least, exclusive):
        free = np.flatnonzero(~hidden & ~fixed)
        if not len(free):
            break
        hidden[free[np.argmin(units[free])]] = True
        changed = True
    return changed


def _break_bridge(hidden: Mask, units: Array, fixed: Mask, at_least: int) -> bool:
    """A withheld cell follows from the totals when it is a bridge of the graph rows - columns with an edge for every
    withheld cell. Withhold one more cell beside such a bridge; whether one was."""
    for row, column in np.argwhere(hidden & (units < at_least)):
        if _connected_without(hidden, row, column):
            continue
        beside = np.zeros_like(hidden)
        beside[row], beside[:, column] = True, True
        free = np.argwhere(beside & ~hidden & ~fixed)
        if len(free):
            best = min(free, key=lambda cell: int(units[cell[0], cell[1]]))
            hidden[best[0], best[1]] = True
            return True
    return False


def _connected_without(hidden: Mask, row: int, column: int) -> bool:
    """Whether `row` still reaches `column` over withheld cells when the cell of both is left out."""
    edges = hidden.copy()
    edges[row, column] = False
    rows = np.zeros(hidden.shape[0], dtype=bool)
    rows[row] = True
    while True:
        columns: Mask = np.any(edges[rows], axis=0)
        grown: Mask = np.any(edges[:, columns], axis=1) | rows
        if (grown == rows).all():
            return bool(np.asarray(columns)[column])
        rows = grown


def _line_is_safe(hidden: Mask, units: Array, at_least: int, exclusive: bool) -> bool:
    # A unit may be in several cells: together the cells have at least as many units as the largest of them.
    behind = units[hidden]
    together = int(behind.sum() if exclusive else behind.max())
    return len(behind) >= 2 and together >= at_least


def protect_hello(
    values: ArrayLike, units: ArrayLike, policy: SitePolicy, remainder_units: int | None = None
) -> Floats:
    """`hello.counts`: [images, units, train units, test units, images of each class ...].

    Two sums are hidden in it: units = train + test, and images = classes + images without a listed class.

    Args:
        units: units behind each entry.
        remainder_units: units behind the images without a listed class; None when nobody counted them: they
            are then taken to be too few.

    Guarantees (tests/unit/test_disclosure.py):
        S2b. As `protect_counts` for every entry.
        S5c. Train and test are shown both or neither; units - train and units - test are 0 or at least `min_units`.
        S5d. Images minus the shown classes stand for no unit, or for at least `min_units`.
    """
    counts, behind = np.asarray(values, dtype=np.float64), np.asarray(units)
    out = protect_counts(counts, behind, policy)
    if not policy.disclosure_control:
        return out
    if np.isnan(out[2:4]).any():
        out[2:4] = np.nan
    rest = float(counts[0] - counts[4:].sum())
    rest_units = remainder_units if remainder_units is not None else int(rest > 0)
    line = np.concatenate([np.isnan(out[4:]), [rest > 0]])
    if not np.isnan(out[0]):
        known = np.concatenate([np.zeros(len(counts) - 4, bool), [True]])
        line_units = np.concatenate([behind[4:], [rest_units]])
        if not (line[-1] and line.sum() == 1 and rest_units >= policy.min_units):
            _complement_line(line, line_units, known, policy.min_units, exclusive=False)
    out[4:][line[:-1]] = np.nan
    return out


def dominance(contributions: ArrayLike, policy: SitePolicy) -> Mask:
    """Which sums are dominated by few units, and must be withheld.

    Args:
        contributions: [units, ...] what each unit adds; signs do not matter.

    Guarantees (tests/unit/test_disclosure.py, vectors of ACRO in tests/unit/test_disclosure_acro.py):
        S4a. True where the largest unit has more than `max_unit_share`, or the `nk_n` largest `nk_k` or
             more (ACRO's >=).
        S4b. True where all but the two largest together have less than `p_ratio` of the largest.
        S4c. True where nobody contributes.
    """
    sizes = np.abs(np.asarray(contributions, dtype=np.float64))
    total = sizes.sum(axis=0)
    if not policy.disclosure_control or len(sizes) == 0:
        return np.full(total.shape, len(sizes) == 0)
    many = min(max(policy.nk_n, 2), len(sizes))
    top = np.sort(np.partition(sizes, len(sizes) - many, axis=0)[len(sizes) - many :], axis=0)[::-1]
    rest = np.maximum(total - top[:2].sum(axis=0), 0)
    broken = (
        (top[0] > float(policy.max_unit_share) * total)
        | (top[: policy.nk_n].sum(axis=0) / np.where(total > 0, total, 1) >= float(policy.nk_k))
        | (rest < float(policy.p_ratio) * top[0])
        | (total <= 0)
    )
    return np.asarray(broken)


def protect_shares(
    part: ArrayLike,
    whole: ArrayLike,
    part_units: ArrayLike,
    whole_units: ArrayLike,
    policy: SitePolicy,
    *,
    sensitive: ArrayLike = True,
    structural: ArrayLike = False,
) -> Floats:
    """Shares part / whole, of counts.

    Args:
        part_units, whole_units: units with the property, and all units.
        sensitive: the property says something about a patient (a diagnosis), so 0 % and 100 % do too.
        structural: 0 % or 100 % by definition, and declared so.

    Guarantees (tests/unit/test_disclosure.py):
        S3c. A share is the quotient of rounded counts.
        S5e. Where 1 to `min_units` - 1 units have the property, or lack it, the share is NaN.
        S7b. 0 % and 100 % of a sensitive property are NaN unless structural.
    """
    up, down = np.asarray(part, dtype=np.float64), np.asarray(whole, dtype=np.float64)
    have, all_units = np.asarray(part_units), np.asarray(whole_units)
    with np.errstate(divide="ignore", invalid="ignore"):
        share = round_to_multiple(up, policy.round_to) / round_to_multiple(down, policy.round_to)
    hidden = few(down, all_units, policy)
    if policy.disclosure_control:
        lack = all_units - have
        some = ((have > 0) & (have < policy.min_units)) | ((lack > 0) & (lack < policy.min_units))
        certain = ((up <= 0) | (up >= down)) & np.asarray(sensitive, bool) & ~np.asarray(structural, bool)
        hidden = hidden | some | certain
    return np.asarray(np.where(hidden, np.nan, np.clip(share, 0, 1)), dtype=np.float64)


def model_dof(units: int, parameters: int, policy: SitePolicy) -> bool:
    """Whether a model of `parameters` numbers fitted on `units` units may leave (S11): at least 10 residual degrees
    of freedom and at most .33 parameters per unit."""
    if not policy.disclosure_control:
        return True
    return units - parameters >= RESIDUAL_DOF and parameters <= PARAMETERS_PER_UNIT * units


def check_text(text: str, kind: str = "name", codes: frozenset[str] = frozenset()) -> str:
    """`text` if it may leave (S12), else EgressError with reason ENUM.

    Args:
        kind: `code` (one of `codes`), `name` (<= 20), `note` (<= 80) or `digest` (64 hex digits).

    Guarantees (tests/unit/test_disclosure.py):
        S12a. A code is in the closed set. S12b. Names and notes are printable ASCII of bounded length.
        S12c. No five digits in a row, except in a digest of exactly 64 hex digits.
    """
    if kind == "code":
        good = text in codes
    elif kind == "digest":
        good = bool(_DIGEST.match(text))
    else:
        limit = NAME_LENGTH if kind == "name" else NOTE_LENGTH
        good = (
            0 < len(text) <= limit and text.isascii() and text.isprintable() and not _DIGIT_RUN.search(text)
        )
        good = good and not set(text) & set("<>{}")
    if not good:
        raise EgressError(
            f"Expected a {kind} of its closed form.",
            hint="Codes only; names <= 20 and notes <= 80 ASCII characters without five digits in a row.",
            reason="ENUM",
        )
    return text


def round_significant(values: ArrayLike, digits: int) -> Array:
    """`values` rounded to `digits` significant decimal digits (S13: no low-bit smuggling)."""
    values = np.asarray(values)
    with np.errstate(divide="ignore"):
        power = np.where(values == 0, 0, np.floor(np.log10(np.abs(values, dtype=np.float64))))
    scale = 10.0 ** (digits - 1 - power)
    return np.asarray(np.round(values * scale) / scale)


def round_decimals(values: ArrayLike, decimals: int = 3) -> Floats:
    """`values` rounded to `decimals` decimals: AUROC has 3 (S10)."""
    return np.asarray(np.round(np.asarray(values, dtype=np.float64), decimals))


def marked(values: ArrayLike) -> Any:
    """Values as JSON: withheld ones are `SUPPRESSED`, whatever the reason was (S15)."""
    array = np.asarray(values, dtype=np.float64)
    if array.ndim == 0:
        return dict(SUPPRESSED) if np.isnan(array) else float(array)
    return [marked(item) for item in array]
