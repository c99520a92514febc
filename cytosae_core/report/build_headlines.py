"""report.json: the numbers that decide, each with its interval, its controls and what every site says.

Sites are the unit: an endpoint is pooled over sites by random effects (`meta.random_effects`), on a scale without
ends where it has them (`SCALES`). Endpoints whose sites release no standard error (FVU, agreement, reading the site)
count every site the same: the spread between sites then holds the error of measurement too, and no I^2 is stated.
Under `dp` sites tell what the noise alone may have done to the FVU; the part of their patients stays in the spread.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import t as student

from ..config import PROBES, VIEWS
from ..plan import ENDPOINTS, HIGHER_IS_BETTER, Endpoint
from .build_agreement import Agreement
from .endpoints import NAMES, UNITS, Scale, SiteValues, scale_of, site_values
from .evidence import Evidence, Json, mean_of, rounded
from .meta import MIN_SITES, Fit, random_effects

Floats = NDArray[np.float64]
EQUAL = 1e-4  # standard error on the endpoint's scale that stands for "none was released"


def headlines(e: Evidence, found: Agreement, replication: Mapping[str, Any]) -> list[Json]:
    """All endpoints, the primary one first, then the plan's, then the rest."""
    asked: list[tuple[str, Endpoint | None]] = [
        (item.name, item) for item in sorted(e.study.plan.endpoints, key=lambda item: not item.primary)
    ]
    known = {name for name, _ in asked}
    asked += [(name, None) for name in ENDPOINTS if name not in known]
    return [
        headline(
            name, plan, site_values(e, name, found, replication), _controls(e, found, replication, name), e
        )
        for name, plan in asked
    ]


def headline(name: str, plan: Endpoint | None, values: SiteValues, controls: list[Json], e: Evidence) -> Json:
    """One endpoint as report.json shows it."""
    scale, threshold = scale_of(name), plan.threshold if plan else None
    fit = fit_of(values, scale)
    status, reason = _status(values, fit)
    shown = rounded(scale.back(fit.mean)) if fit else rounded(mean_of(list(values.value.values())))
    part: Json = {
        "id": name, "name": NAMES[name], "unit": UNITS[name], "primary": bool(plan and plan.primary),
        "status": status, "reason": reason, "value": shown, **_spread(values, fit, scale),
        "threshold": threshold, "direction": "at_least" if HIGHER_IS_BETTER[name] else "at_most",
        "passes": None, "probability_new_site": None, "controls": controls,
        "sites": {site: _site(values, site) for site in values.value},
        "influence": influence(values, scale), "leaves": _leaves(e, name, values),
    }  # fmt: skip
    part["passes"] = reaches(part, "interval")
    if fit is not None and threshold is not None:
        part["probability_new_site"] = rounded(
            _probability(fit, scale.to(threshold), name, len(values.value))
        )
    return part


def fit_of(values: SiteValues, scale: Scale) -> Fit | None:
    """Random effects over sites on the endpoint's scale; None with fewer than 3."""
    if len(values.value) < MIN_SITES:
        return None
    return random_effects(*on_scale(values, scale))


def on_scale(values: SiteValues, scale: Scale) -> tuple[Floats, Floats]:
    """Effects and variances on the endpoint's scale; without standard errors every site counts the same."""
    y = np.array([scale.to(value) for value in values.value.values()])
    if not values.with_errors:
        return y, np.full(len(y), EQUAL**2)
    errors = [scale.error(values.value[site], values.error[site]) for site in values.value]
    return y, np.maximum(np.array(errors), EQUAL) ** 2


def _spread(values: SiteValues, fit: Fit | None, scale: Scale) -> Json:
    count, units = len(values.value), [values.units.get(site) for site in values.value]
    known = [item for item in units if item is not None]
    part: Json = {
        "interval": None, "prediction": None, "df": None, "prediction_df": None,
        "n": {"sites": count, "units": sum(known) if known and len(known) == count else None},
        "tau2": None, "i2": None, "i2_q": None, "h2": None, "q": None,
    }  # fmt: skip
    if fit is None:
        return part
    part |= {"df": count - 1, "prediction_df": count - 2, "tau2": rounded(fit.tau2), "scale": scale.name}
    part["interval"] = [rounded(scale.back(end)) for end in (fit.low, fit.high)]
    part["prediction"] = [rounded(scale.back(end)) for end in (fit.prediction_low, fit.prediction_high)]
    if values.with_errors:
        part |= {name: rounded(getattr(fit, name)) for name in ("i2", "i2_q", "h2", "q")}
    return part


def _status(values: SiteValues, fit: Fit | None) -> tuple[str, str | None]:
    missing = _gathered(values.missing)
    if fit is not None:
        return "estimated", "; ".join(missing) or None
    if values.value:
        needed = f"{len(values.value)} of at least {MIN_SITES} sites have it"
        return "not_estimable", "; ".join([needed, *missing])
    if values.withheld:
        return "suppressed", "; ".join(missing)
    if values.empty:
        return "not_estimable", "; ".join(missing)
    return "not_assessed", values.reason or "; ".join(missing) or "no site reported it"


def _gathered(missing: Mapping[str, str]) -> list[str]:
    """Reasons of sites without a value, each said once."""
    by_reason: dict[str, list[str]] = {}
    for site, why in missing.items():
        by_reason.setdefault(why, []).append(site)
    return [
        f"{', '.join(sites) if len(sites) < 4 else f'{len(sites)} sites'}: {why}"
        for why, sites in by_reason.items()
    ]


def _probability(fit: Fit, threshold: float, name: str, sites: int) -> float:
    """A new site passes: its effect has a t distribution with S - 2 degrees of freedom about `centre`."""
    above = float(student.sf((threshold - fit.centre) / fit.spread, sites - 2))
    return above if HIGHER_IS_BETTER[name] else 1 - above


def reaches(part: Mapping[str, Any], interval: str) -> bool | None:
    """Whether the nearer (worse) end of `interval` or `prediction` reaches the threshold; None without either."""
    if part["threshold"] is None or part[interval] is None:
        return None
    low, high = part[interval]
    return bool(low >= part["threshold"] if part["direction"] == "at_least" else high <= part["threshold"])


def _site(values: SiteValues, site: str) -> Json:
    error = values.error.get(site)
    return {
        "value": rounded(values.value[site]),
        "se": rounded(error) if values.with_errors else None,
        "units": values.units.get(site),
    }


def influence(values: SiteValues, scale: Scale) -> dict[str, float | None]:
    """The pooled value without each site in turn; None when fewer than 3 remain."""
    if len(values.value) <= MIN_SITES:
        return dict.fromkeys(values.value)
    y, v = on_scale(values, scale)
    out: dict[str, float | None] = {}
    for index, site in enumerate(values.value):
        out[site] = rounded(scale.back(random_effects(np.delete(y, index), np.delete(v, index)).mean))
    return out


def _leaves(e: Evidence, name: str, values: SiteValues) -> list[Json]:
    """The coordinator's log entries of what this number rests on."""
    kind = "score" if name in ("transfer", "transfer_gain", "site_readable") else "describe"
    found = [index for site in values.value for index in e.result.leaves.get(site, {}).get(kind, [])]
    return [{"party": "coordinator", "index": index} for index in sorted(found)]


def _controls(e: Evidence, found: Agreement, replication: Mapping[str, Any], name: str) -> list[Json]:
    known: dict[str, Callable[[], list[tuple[str, float | None]]]] = {
        "transfer": lambda: [*_probes(e, ("same site", "raw embeddings", "shuffled labels", "colour histogram"))],
        "transfer_gain": lambda: [],
        "replication": lambda: [
            ("shuffled labels", mean_of([item["null"] for item in replication.values()])),
            *(() if e.study.plan.concepts else _named_controls(found.replication)),
        ],
        "agreement": lambda: _others(found),
        "fvu": lambda: _fvus(e),
        "site_readable": lambda: [("two halves of one site", _halves(e)), ("chance", 0.5)],
    }  # fmt: skip
    return [{"name": label, "value": rounded(value)} for label, value in known[name]()]


def _probes(e: Evidence, names: tuple[str, ...]) -> list[tuple[str, float | None]]:
    out = []
    for name in names:
        place = PROBES.index(name)
        found = [
            float(table["balanced_accuracy"][place])
            for table in e.scores.values()
            if place < len(table.get("balanced_accuracy", ()))
            and not np.isnan(table["balanced_accuracy"][place])
        ]
        out.append((name, mean_of(found)))
    return out


CONTROLS = {
    "shuffled": "shuffled labels",
    "init": "dictionary before training",
    "random": "random dictionary",
}


def _named_controls(values: Mapping[str, float | None]) -> list[tuple[str, float | None]]:
    return [(label, values[key]) for key, label in CONTROLS.items() if key in values]


def _others(found: Agreement) -> list[tuple[str, float | None]]:
    known = {key: found.others[key][~np.isnan(found.others[key])] for key in CONTROLS if key in found.others}
    return _named_controls(
        {key: float(values.mean()) if len(values) else None for key, values in known.items()}
    )


def _fvus(e: Evidence) -> list[tuple[str, float | None]]:
    names = {"init": "dictionary before training", "random": "random rows"}
    out: list[tuple[str, float | None]] = [
        (label, mean_of([e.quality(which, site).get("fvu") for site in e.sites]))
        for which, label in names.items()
        if which in e.result.describe
    ]
    if e.comparators and e.comparators.pooled_total is not None:
        out.append(("trained on all images in one place", e.comparators.pooled_total))
    return out


def _halves(e: Evidence) -> float | None:
    place = VIEWS.index("standardised")
    found = [
        float(e.small[site]["same_site_null"][place]) for site in e.sites if "same_site_null" in e.small[site]
    ]
    return mean_of([value for value in found if not np.isnan(value)])
