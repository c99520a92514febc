"""Every concept's numbers over sites, as arrays of [n], block by block over rows of the dictionary. numpy only.

A concept's numbers are those at its target (`agreement.verdict_table`). Its p-value is corrected for all concepts and
all targets, not only for the target that it was given: the target was chosen by looking.
"""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit

from ..config import REVIEW_TERMS
from .agreement import verdict_table
from .columns import FILE, ColumnFile, is_large
from .evidence import Evidence
from .folds import Folds
from .meta import probability_above, random_effects_table
from .multiplicity import benjamini_hochberg
from .ratings import review

Array = NDArray[Any]
Floats = NDArray[np.float64]
HALF_STEP = (
    0.0005  # of a released AUROC (3 decimals): 0 and 1 count as half a step inside, errors as no smaller
)
SPREAD = ("tau2", "i2", "h2")
ENDS = ("mean", "low", "high", "prediction_low", "prediction_high")
MATCHED, MIN_MATCHED = 100, 20  # other concepts that an ablation is compared with


@dataclass
class ConceptTable:
    """Columns by name, [n] each; NaN: no number.

    Attributes:
        columns: see `report.json`, `concepts.columns`; `mean` is the mean AUROC, `estimate` the pooled one.
        same_side: every site that can say is on one side of .5.
        sites: arrays [sites, n] `auroc`, `auroc_se` (at the target), in memory for small studies, else None.
        file_sha256: of the column file of a large study, else "".
        folds: meanings chosen on the other sites, and how many held at the site left out.
    """

    columns: dict[str, Array]
    same_side: NDArray[np.bool_]
    folds: Folds
    sites: dict[str, Array] | None = None
    file_sha256: str = ""


def logit_effects(auroc: Array, error: Array) -> tuple[Floats, Floats]:
    """ln(A / (1 - A)) and its variance (SE / (A (1 - A)))^2; NaN where either is unknown.

    Released AUROCs have 3 decimals: 0 and 1 become .0005 and .9995, and an error below .0005 becomes that.
    """
    inside = np.clip(auroc, HALF_STEP, 1 - HALF_STEP)
    spread = inside * (1 - inside)
    known = ~(np.isnan(auroc) | np.isnan(error) | (error > 1.0))
    y = np.where(known, np.log(inside / (1 - inside)), np.nan)
    return y, np.where(known, (np.maximum(error, HALF_STEP) / spread) ** 2, np.nan)


def concept_table(e: Evidence) -> ConceptTable:
    """All columns of all concepts, and the per-site values at their targets (in the column file of a large study)."""
    made = _Builder(e)
    with made.sink() as file:
        for start, stop in e.spans():
            made.block(start, stop, file)
    return made.table()


class _Builder:
    """Fills the columns block by block; then what needs all concepts at once."""

    def __init__(self, e: Evidence) -> None:
        self._e, n, sites = e, e.n, len(e.sites)
        self._large = is_large(sites, n)
        names = (
            "mean",
            "estimate",
            *ENDS[1:],
            *SPREAD,
            "p",
            "q",
            "probability_new_site",
            "adjusted",
            "ablation",
        )
        self._columns: dict[str, Array] = {name: np.full(n, np.nan) for name in names}
        self._columns |= {"verdict": np.full(n, 3, np.int64), "target": np.full(n, -1, np.int64)}
        self._columns["sites"] = np.zeros(n, np.int64)
        self._same_side = np.zeros(n, np.bool_)
        self._p = np.full((n, e.t), np.nan)  # of every concept and target
        self._sites = {name: np.full((sites, n), np.nan, np.float32) for name in ("auroc", "auroc_se")}
        if self._large:
            self._sites = {}
        self._folds = Folds(sites, n, [int(name[1:]) for name in e.study.plan.concepts])
        self._sha256 = ""
        self._place: TemporaryDirectory[str] | None = None

    def sink(self) -> Any:
        """The column file of a large study; without a folder to keep it in, only its digest is made."""
        if not self._large:
            return nullcontext()
        folder = self._e.result.scratch
        if folder is None:
            self._place = TemporaryDirectory()
            folder = Path(self._place.name)
        self._file = ColumnFile(folder / FILE, len(self._e.sites), self._e.n)
        return self._file

    def block(self, start: int, stop: int, file: ColumnFile | None) -> None:
        """One block of rows."""
        e, rows = self._e, np.arange(stop - start)
        effects, errors = e.effects(start, stop), e.errors(start, stop)
        found = verdict_table(effects, errors)
        at = np.maximum(found.target, 0)
        named = found.target >= 0
        count = (~np.isnan(effects)).sum(axis=0)
        self._put(start, stop, verdict=found.verdict, target=found.target, mean=found.mean)
        self._put(start, stop, sites=np.where(named, count[rows, at], found.sites))
        own = np.where(named, effects[:, rows, at], np.nan)  # [sites, rows]
        side = np.sign(own)
        known = ~np.isnan(own)
        first = np.where(known, side, 0).sum(axis=0)
        self._same_side[start:stop] = named & (np.abs(first) == known.sum(axis=0)) & known.any(axis=0)
        own_se = np.where(known, errors[:, rows, at], np.nan)
        self._keep(start, own + 0.5, own_se, file)
        self._pool(start, stop, effects + 0.5, errors, at, named)
        self._folds.add(start, effects, e.effects(start, stop, "auroc_shuffled"))

    def _put(self, start: int, stop: int, **values: Array) -> None:
        for name, value in values.items():
            self._columns[name][start:stop] = value

    def _keep(self, start: int, auroc: Array, errors: Array, file: ColumnFile | None) -> None:
        if file is None:
            stop = start + auroc.shape[1]
            self._sites["auroc"][:, start:stop], self._sites["auroc_se"][:, start:stop] = auroc, errors
            return
        file.write("auroc", start, auroc)
        file.write("auroc_se", start, errors)
        file.write("firing_rate", start, self._e.rates[:, start : start + auroc.shape[1]])

    def _pool(self, start: int, stop: int, auroc: Array, errors: Array, at: Array, named: Array) -> None:
        """Random effects of every concept and target; those of the target are kept."""
        rows, wide = stop - start, self._e.t
        y, v = (table.reshape(len(table), -1).T for table in logit_effects(auroc, errors))
        fit = random_effects_table(y, v)
        self._p[start:stop] = fit.p.reshape(rows, wide)
        pick = np.arange(rows) * wide + at
        estimate = {name: np.where(named, getattr(fit, name)[pick], np.nan) for name in (*ENDS, *SPREAD, "p")}
        above = np.where(named, probability_above(fit, 0.0)[pick], np.nan)
        with np.errstate(invalid="ignore"):
            right_side = np.where(estimate["mean"] >= 0, above, 1 - above)
        ends = {name: expit(estimate[name]) for name in ENDS}
        self._put(start, stop, estimate=ends.pop("mean"), **ends, probability_new_site=right_side)
        self._put(start, stop, **{name: estimate[name] for name in (*SPREAD, "p")})

    def table(self) -> ConceptTable:
        """The columns, with what needs all concepts at once."""
        e, columns = self._e, self._columns
        target = columns["target"]
        if e.study.plan.multiplicity == "benjamini-hochberg":
            q = benjamini_hochberg(self._p.ravel()).reshape(self._p.shape)
        else:
            q = self._p
        columns["q"] = _at(q, target)
        columns["adjusted"] = _at(e.adjusted, target, e.n)
        columns["ablation"] = _at(e.ablation, target, e.n)
        columns |= _across(e)
        columns["ablation_rank"] = _ablation_rank(e, target, columns["firing_rate"])
        columns["replicated"] = self._folds.share()
        if self._large:
            self._sha256 = self._file.sha256
        if self._place is not None:
            self._place.cleanup()
        return ConceptTable(columns, self._same_side, self._folds, self._sites or None, self._sha256)


def _at(table: Array | None, target: Array, n: int = 0) -> Array:
    """A table [n, columns] at each concept's target; NaN without a target, or beyond the table's columns."""
    if table is None or not table.size:
        return np.full(n or len(target), np.nan)
    inside = (target >= 0) & (target < table.shape[1])
    return np.where(inside, table[np.arange(len(target)), np.where(inside, target, 0)], np.nan)


def _or_nan(values: Array | None, n: int) -> Array:
    return np.full(n, np.nan) if values is None else np.asarray(values, dtype=np.float64)


def _across(e: Evidence) -> dict[str, Array]:
    """Columns that are means over sites and know no target."""
    n, found = e.n, e.recurrence
    out = {
        "recurrence_sites": np.full(n, np.nan) if found is None else found.found.astype(np.float64),
        "recurrence": _or_nan(found.mean if found else None, n),
        "recurrence_init": _or_nan(found.init if found else None, n),
        "recurrence_null": np.full(n, found.null if found else np.nan),
        "site_accuracy": _or_nan(e.site_accuracy, n),
        "site_null": _or_nan(e.site_null, n),
        "site_share": _or_nan(e.shares and e.shares.share, n),
        "site_share_high": _or_nan(e.shares and e.shares.high, n),
        "site_share_null": _or_nan(e.shares and e.shares.null, n),
        "confound": np.full(n, np.nan),
        "confound_of": np.full(n, -1, np.int64),
        **_reviewed(e),
    }
    if e.confound is not None:
        size = np.where(np.isnan(e.confound), -1.0, np.abs(e.confound))
        place = np.argmax(size, axis=1)
        known = size[np.arange(n), place] >= 0
        out["confound"] = np.where(known, size[np.arange(n), place], np.nan)
        out["confound_of"] = np.where(known, place, -1)
    count = (~np.isnan(e.rates)).sum(axis=0)
    total = np.nansum(e.rates, axis=0, dtype=np.float64)
    out["firing_rate"] = np.where(count > 0, total / np.maximum(count, 1), np.nan)
    return out


def _reviewed(e: Evidence) -> dict[str, Array]:
    """What experts call a concept, how many voted, and how far they agree."""
    found = review(
        np.zeros((e.n, len(REVIEW_TERMS)), np.int64) if e.votes is None else e.votes, seed=e.study.seed
    )
    return {"review_raters": found.raters, "review_term": found.term, "review_agreement": found.agreement}


def _ablation_rank(e: Evidence, target: Array, rate: Array) -> Array:
    """Share of the 100 other concepts with the nearest firing rate whose |ablation| for the class is smaller."""
    out = np.full(e.n, np.nan)
    if e.ablation is None:
        return out
    order = np.argsort(rate, kind="stable")
    for column in range(e.ablation.shape[1]):
        out = np.where(target == column, _rank_among(np.abs(e.ablation[:, column]), order), out)
    return out


def _rank_among(size: Array, order: Array) -> Array:
    """For every entry: share of its 100 neighbours in `order` (itself left out, NaN left out) that are smaller."""
    n = len(size)
    width = min(MATCHED, n - 1)
    if width < MIN_MATCHED:
        return np.full(n, np.nan)
    sorted_size = size[order]
    start = np.clip(np.arange(n) - width // 2, 0, n - width - 1)
    smaller, known = np.zeros(n), np.zeros(n)
    for step in range(width + 1):
        other = sorted_size[start + step]
        use = ~np.isnan(other) & (start + step != np.arange(n))
        known += use
        with np.errstate(invalid="ignore"):
            smaller += use & (other < sorted_size)
    rank = np.where(np.isnan(sorted_size) | (known < MIN_MATCHED), np.nan, smaller / np.maximum(known, 1))
    out = np.full(n, np.nan)
    out[order] = rank
    return out
