"""report.json: concepts as columns, their gates and states, per-site tables, and planted ground truth."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..canonical import sha256_hex
from ..config import IMAGE_FACTS, REVIEW_TERMS
from .agreement import RECOVERED_MEAN, RECOVERED_WORST, VERDICTS, recovered
from .columns import FILE
from .concept_table import ConceptTable
from .evidence import Evidence, Json, mean_of
from .states import GATES, STATES, GateInputs, gates, states

Array = NDArray[Any]
# Columns of shares and AUROC-like numbers, with 4 decimals; all other numbers have 4 significant digits.
SHARES = (
    "mean", "estimate", "low", "high", "prediction_low", "prediction_high", "probability_new_site", "recurrence",
    "recurrence_init", "recurrence_null", "site_accuracy", "site_null", "site_share",
    "site_share_high", "site_share_null",
    "confound",
    "adjusted", "ablation_rank", "replicated", "review_agreement",
)  # fmt: skip
DIGITS = ("tau2", "i2", "h2", "p", "q", "ablation", "firing_rate")
WHOLE = ("target", "verdict", "sites", "confound_of", "review_raters", "review_term")
FAILURES = 50
OK, SUPPRESSED, NOT_ASSESSED = 0, 1, 2


def concepts(e: Evidence, table: ConceptTable) -> Json:
    """report.json's `concepts`: see docs/report.md, section For programs."""
    passed = gates(gate_inputs(e, table))
    state = states(passed, table.columns["sites"], e.study.plan.min_sites)
    order = _order(table, state)
    columns: Json = {
        "id": [f"c{row:04d}" for row in order],
        "row": order.tolist(),
        "digest": _digests(e, order),
    }
    columns |= {name: table.columns[name][order].tolist() for name in WHOLE}
    columns["state"] = state[order].tolist()
    columns |= {name: decimals(table.columns[name][order]) for name in SHARES}
    columns |= {name: significant(table.columns[name][order]) for name in DIGITS}
    columns["recurrence_sites"] = _whole(table.columns["recurrence_sites"][order])
    return {
        "count": e.n,
        "targets": list(e.study.targets),
        "states": list(STATES),
        "verdicts": list(VERDICTS),
        "gates": list(GATES),
        "facts": list(IMAGE_FACTS),
        "terms": list(REVIEW_TERMS),
        "columns": columns,
        "gate_values": {name: passed[name][order].tolist() for name in GATES},
        "tables": _tables(e, table, order),
    }


def _order(table: ConceptTable, state: Array) -> Array:
    """Strongest states first, then verdicts, then the size of the mean effect."""
    size = np.nan_to_num(np.abs(table.columns["mean"] - 0.5), nan=-1.0)
    return np.lexsort((np.arange(len(size)), -size, table.columns["verdict"], -state.astype(np.int64)))


def _digests(e: Evidence, order: Array) -> list[str]:
    rows = np.ascontiguousarray(e.result.final)
    return [sha256_hex(rows[row].tobytes())[:16] if row < len(rows) else "" for row in order.tolist()]


def _tables(e: Evidence, table: ConceptTable, order: Array) -> Json:
    if table.sites is None:
        return {"file": FILE, "sha256": table.file_sha256, "dtype": "float32", "sites": list(e.sites)}
    none = table.columns["target"][order] < 0
    made = {
        "auroc": _inline(e, table.sites["auroc"][:, order], "AUROC", decimals, none),
        "auroc_se": _inline(
            e, table.sites["auroc_se"][:, order], "standard error of the AUROC", significant, none
        ),
        "firing_rate": _inline(e, e.rates[:, order], "share of tokens", significant, np.zeros_like(none)),
    }
    return made


def _inline(e: Evidence, values: Array, unit: str, shown: Any, unassessed: Array) -> Json:
    status: Json = {}
    for index, site in enumerate(e.sites):
        code = np.where(unassessed, NOT_ASSESSED, np.where(np.isnan(values[index]), SUPPRESSED, OK))
        same = len(code) and (code == code[0]).all()
        status[site] = int(code[0]) if same else code.tolist()
    sites = {site: shown(values[index].astype(np.float64)) for index, site in enumerate(e.sites)}
    return {"unit": unit, "sites": sites, "status": status}


def decimals(values: Array) -> list[float | None]:
    """4 decimals; None for NaN."""
    return _listed(np.round(np.asarray(values, dtype=np.float64), 4))


def significant(values: Array) -> list[float | None]:
    """4 significant digits; None for NaN and infinities."""
    values = np.asarray(values, dtype=np.float64)
    finite = np.isfinite(values) & (values != 0)
    with np.errstate(divide="ignore"):
        power = 3 - np.floor(np.log10(np.abs(np.where(finite, values, 1.0)))).astype(np.int64)
    power = np.clip(power, -300, 300)
    up, down = 10.0 ** np.maximum(power, 0), 10.0 ** np.maximum(-power, 0)
    shown = np.where(finite, np.round(np.where(finite, values, 0.0) * up / down) / up * down, values)
    return _listed(np.where(np.isfinite(values), shown, np.nan))


def _listed(values: Array) -> list[float | None]:
    return [None if value != value else value for value in values.tolist()]


def _whole(values: Array) -> list[int | None]:
    return [None if value != value else int(value) for value in values.tolist()]


def failures(part: Json) -> list[str]:
    """Concepts that did not hold: loud somewhere and not elsewhere, or stopped by a shortcut or a confound. One whose
    prediction interval stays on one side all the same is weaker at a site, not a failure."""
    columns, passed = part["columns"], part["gate_values"]
    differs, climbed = part["verdicts"].index("differs"), part["states"].index("provisional")
    stopped = [0 in pair for pair in zip(passed["shortcut"], passed["confound"], strict=True)]
    found = [
        (-abs((mean or 0.5) - 0.5), name)
        for name, verdict, mean, stop, state in zip(
            columns["id"], columns["verdict"], columns["mean"], stopped, columns["state"], strict=True
        )
        if stop or (verdict == differs and state < climbed)
    ]
    return [name for _, name in sorted(found)[:FAILURES]]


def planted(e: Evidence) -> list[Json] | None:
    """Ground truth of phantoms: is there a concept, chosen on other sites, that reads each attribute?"""
    if not e.study.statistics.attributes or len(e.sites) < 2:
        return None
    offset = len(e.study.statistics.classes)
    out = []
    for index, attribute in enumerate(e.study.statistics.attributes):
        held, row = recovered(_effects(e, "final", "auroc", offset + index), 0)
        null, _ = recovered(_effects(e, "final", "auroc_shuffled", offset + index), 0)
        start: list[float | None] = []
        if "init" in e.result.describe:
            start = recovered(_effects(e, "init", "auroc", offset + index), 0)[0]
        known = [value for value in held if value is not None]
        out.append(
            {
                "attribute": attribute.name,
                "concept": f"c{row:04d}" if row >= 0 else None,
                "auroc": dict(zip(e.sites, held, strict=True)),
                "held_out_mean": mean_of(held),
                "null": mean_of(null),
                "init": mean_of(start),
                "recovered": bool(known)
                and float(np.mean(known)) >= RECOVERED_MEAN
                and min(known) >= RECOVERED_WORST,
            }
        )
    return out


def _effects(e: Evidence, which: str, name: str, column: int) -> Array:
    """AUROC - 1/2 of one target, [sites, n, 1]."""
    return e.stack(which, name).column(column)[:, :, None] - 0.5


def gate_inputs(e: Evidence, table: ConceptTable) -> GateInputs:
    """What the gates of `states.py` look at."""
    return GateInputs(table.columns, table.same_side, e.study.plan.fdr)
