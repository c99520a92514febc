"""Gates and states of every concept, their order, and what did not hold. Rules: docs/auditor.md."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise

from .experts import FEATURES
from .verdicts import VERDICTS

Number = Mapping[str, float]  # a concept's columns by name, NaN where there is none
STATES = ("not_assessed", "candidate", "recurring", "named", "provisional", "generalising", "validated")
GATES = (
    "support", "recurrence", "naming", "consistency", "prediction", "shortcut", "confound", "ablation", "held_out",
)  # fmt: skip
PASS, FAIL, UNKNOWN = 1, 0, -1
MIN_SITES, SITE_SHARE, CONFOUND, LEFT, ABLATION_RANK, HELD_OUT = 3, 0.121, 0.45, 0.5, 0.9, 0.5
FAILURES, ALIKE = 50, 1e-12
NAMED, NAMERS = 0.6, 3


def gates_of(c: Number, same_side: bool, fdr: float) -> dict[str, int]:
    """Every gate of one concept."""
    enough, significant = c["sites"] >= MIN_SITES, c["q"] < fdr
    apart = (c["low"] > 0.5 or c["high"] < 0.5) and same_side and significant
    apart_there = (c["prediction_low"] > 0.5 or c["prediction_high"] < 0.5) and significant
    recurs = c["recurrence_sites"] >= MIN_SITES and c["recurrence"] > c["recurrence_init"]
    return {
        "support": int(enough),
        "recurrence": _mark(recurs, c, "recurrence_sites", "recurrence", "recurrence_init"),
        "naming": _named(c),
        "consistency": _mark(apart, c, "low", "high", "q") if enough else UNKNOWN,
        "prediction": _mark(apart_there, c, "prediction_low", "prediction_high", "q") if enough else UNKNOWN,
        "shortcut": _shortcut(c),
        "confound": _mark(not (c["confound"] > CONFOUND and not _left(c)), c, "confound"),
        "ablation": _mark(c["ablation_rank"] >= ABLATION_RANK, c, "ablation_rank"),
        "held_out": _mark(c["replicated"] >= HELD_OUT, c, "replicated"),
    }


def _mark(passed: bool, c: Number, *needed: str) -> int:
    return int(passed) if all(c[name] == c[name] for name in needed) else UNKNOWN


def _shortcut(c: Number) -> int:
    """Whether the hospital is ruled out; unknown between the share's own value and its upper limit."""
    hospital = c["site_share"] > SITE_SHARE and c["site_share"] > c["site_share_null"]
    said = hospital or c["site_share_high"] <= SITE_SHARE
    return _mark(not hospital, c, "site_share", "site_share_high", "site_share_null") if said else UNKNOWN


def _named(c: Number) -> int:
    """Three experts or more agree, .6 beyond chance, on one feature of the cell."""
    if not c["review_raters"]:
        return UNKNOWN
    agreed = c["review_raters"] >= NAMERS and c["review_agreement"] >= NAMED
    return int(agreed and 0 <= c["review_term"] < FEATURES)


def _left(c: Number) -> bool:
    """Half of the effect or more is left, with its sign, once cell size is taken out."""
    whole, rest = c["mean"] - 0.5, c["adjusted"] - 0.5
    return _sign(whole) == _sign(rest) and abs(rest) >= LEFT * abs(whole)


def _sign(value: float) -> int | None:
    return (value > 0) - (value < 0) if value == value else None


def state_of(gate: Mapping[str, int], sites: float, min_sites: int) -> int:
    """Place in `STATES`: the highest one whose gates all passed."""
    ok = {name for name, mark in gate.items() if mark == PASS}
    clean = FAIL not in (gate["shortcut"], gate["confound"])
    some = {"support", "consistency"} <= ok and clean
    general = some and sites >= min_sites and {"prediction", "shortcut"} <= ok
    reached = {
        "candidate": "support" in ok,
        "recurring": {"support", "recurrence"} <= ok,
        "named": {"support", "recurrence", "naming"} <= ok and clean,
        "provisional": some and sites < min_sites,
        "generalising": general,
        "validated": general and len(ok) == len(GATES),
    }
    return max((STATES.index(name) for name, there in reached.items() if there), default=0)


def first_unsorted(keys: Sequence[tuple[int, int, float, int]]) -> int:
    """The first place whose concept stands before one that should come first, -1 when the order is right.

    Args:
        keys: state, verdict, size of the mean effect (-1: none) and row of the concepts as they are shown.
    """
    for place, (a, b) in enumerate(pairwise(keys)):
        before, after = (-a[0], a[1]), (-b[0], b[1])
        nearer = abs(a[2] - b[2]) <= ALIKE  # sums may differ in their last digit
        if before > after or (before == after and not nearer and a[2] < b[2]):
            return place + 1
        if before == after and a[2] == b[2] and a[3] > b[3]:
            return place + 1
    return -1


def failures_of(
    shown: Sequence[Number], gates: Sequence[Mapping[str, int]], states: Sequence[int]
) -> list[str]:
    """Concepts that speak at some sites only, or that a shortcut or a confound stopped; the largest effects first.

    Sizes are those of means with 4 decimals, so that the order does not depend on digits that nobody sees.
    """
    climbed, differs, found = STATES.index("provisional"), VERDICTS.index("differs"), []
    for c, marks, state in zip(shown, gates, states, strict=True):
        stopped = FAIL in (marks["shortcut"], marks["confound"])
        if stopped or (c["verdict"] == differs and state < climbed):
            mean = round(c["mean"] * 1e4) / 1e4 if c["mean"] == c["mean"] else 0.5
            found.append((-abs(mean - 0.5), f"c{round(c['row']):04d}"))
    return [name for _, name in sorted(found)[:FAILURES]]
