"""What a concept may be called: gates from released numbers, and the state that they allow. numpy only.

A gate that was not computed is -1: it neither passes nor fails, is named on the concept's card, and no state that
needs it is reached. docs/report.md says it in plain words.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..config import MORPHOLOGY
from .ratings import NAMED, NAMERS

Array = NDArray[Any]
Marks = NDArray[np.int8]
STATES = ("not_assessed", "candidate", "recurring", "named", "provisional", "generalising", "validated")
GATES = (
    "support", "recurrence", "naming", "consistency", "prediction", "shortcut", "confound", "ablation", "held_out",
)  # fmt: skip
PASS, FAIL, UNKNOWN = 1, 0, -1
MIN_SITES = 3
# Two equally large groups of sites that one concept tells apart with AUROC .70 within class (site_variance.py). At
# .185 (AUROC .75) one of ten artefacts of the two studies that this was set on passed (docs/decisions/009).
SITE_SHARE = 0.121
CONFOUND = (
    0.45  # correlation with light, focus or size within class: artefacts .48 to .66, honest ones below .41
)
LEFT = 0.5  # share of the effect that must be left once cell size is taken out
ABLATION_RANK = 0.9  # of 100 concepts that fire as often, this share must matter less
HELD_OUT = 0.5  # share of left-out sites where the meaning that the others chose held


@dataclass(frozen=True)
class GateInputs:
    """Columns of concepts, [n] each, NaN where there is no number.

    Attributes:
        columns: `sites, estimate, low, high, prediction_low, prediction_high, q, recurrence_sites, recurrence,
            recurrence_init, site_share, site_share_high, site_share_null, confound, mean, adjusted, ablation_rank,
            replicated,
            review_raters, review_term, review_agreement`, as in report.json (AUROCs about .5).
        same_side: every site that can say is on one side of .5.
        fdr: false discovery rate of the plan.
    """

    columns: Mapping[str, Array]
    same_side: NDArray[np.bool_]
    fdr: float


def gates(inputs: GateInputs) -> dict[str, Marks]:
    """Every gate of `GATES`: 1 pass, 0 fail, -1 not assessed."""
    c = inputs.columns
    enough = c["sites"] >= MIN_SITES
    significant = c["q"] < inputs.fdr
    found = (c["recurrence_sites"] >= MIN_SITES) & (c["recurrence"] > c["recurrence_init"])
    clear = ((c["low"] > 0.5) | (c["high"] < 0.5)) & inputs.same_side & significant
    next_site = ((c["prediction_low"] > 0.5) | (c["prediction_high"] < 0.5)) & significant
    return {
        "support": _marks(enough, np.ones(len(enough), bool)),
        "recurrence": _marks(found, _known(c["recurrence_sites"], c["recurrence"], c["recurrence_init"])),
        "naming": _naming(c),
        "consistency": _marks(clear, enough & _known(c["low"], c["high"], c["q"])),
        "prediction": _marks(next_site, enough & _known(c["prediction_low"], c["prediction_high"], c["q"])),
        "shortcut": _shortcut(c),
        "confound": _confound(c),
        "ablation": _marks(c["ablation_rank"] >= ABLATION_RANK, _known(c["ablation_rank"])),
        "held_out": _marks(c["replicated"] >= HELD_OUT, _known(c["replicated"])),
    }


def _shortcut(c: Mapping[str, Array]) -> Marks:
    """Passes where the hospital is ruled out: the share's upper limit is at most `SITE_SHARE`. Fails where the
    share itself is above it, and above its null; between the two, the sites are too few to say."""
    ruled_out = c["site_share_high"] <= SITE_SHARE
    hospital = (c["site_share"] > SITE_SHARE) & (c["site_share"] > c["site_share_null"])
    known = _known(c["site_share"], c["site_share_high"], c["site_share_null"])
    return _marks(~hospital, known & (ruled_out | hospital))


def _naming(c: Mapping[str, Array]) -> Marks:
    """Passes where enough experts agree on one feature of the cell; fails where they looked and did not."""
    agreed = (c["review_raters"] >= NAMERS) & (c["review_agreement"] >= NAMED)
    feature = (c["review_term"] >= 0) & (c["review_term"] < len(MORPHOLOGY))
    return _marks(agreed & feature, c["review_raters"] > 0)


def _confound(c: Mapping[str, Array]) -> Marks:
    """Fails when the concept follows a fact of the picture and little of its effect is left without cell size.
    Where the adjusted effect is unknown (a property, not a class), following alone fails."""
    follows = np.abs(c["confound"]) > CONFOUND
    whole, rest = c["mean"] - 0.5, c["adjusted"] - 0.5
    left = (np.sign(rest) == np.sign(whole)) & (np.abs(rest) >= LEFT * np.abs(whole))
    return _marks(~(follows & ~left), _known(c["confound"]))


def _known(*columns: Array) -> NDArray[np.bool_]:
    return np.asarray(~np.isnan(np.stack([np.asarray(item, np.float64) for item in columns])).any(axis=0))


def _marks(passed: Array, known: Array) -> Marks:
    return np.where(known, np.where(passed, PASS, FAIL), UNKNOWN).astype(np.int8)


def states(passed: Mapping[str, Marks], sites: Array, min_sites: int) -> NDArray[np.int8]:
    """Index in `STATES` of every concept.

    Args:
        passed: what `gates` says.
        sites: number of sites that can say, [n].
        min_sites: sites below which nothing is called generalising (the plan's, at least 5 by default).
    """
    ok = {name: marks == PASS for name, marks in passed.items()}
    bad = (passed["shortcut"] == FAIL) | (passed["confound"] == FAIL)
    sites = np.asarray(sites)
    some = ok["support"] & ok["consistency"] & ~bad
    general = some & (sites >= min_sites) & ok["prediction"] & ok["shortcut"]
    all_else = ok["naming"] & ok["recurrence"] & ok["ablation"] & ok["confound"] & ok["held_out"]
    reached = [
        ("candidate", ok["support"]),
        ("recurring", ok["support"] & ok["recurrence"]),
        ("named", ok["support"] & ok["recurrence"] & ok["naming"] & ~bad),
        ("provisional", some & (sites < min_sites)),
        ("generalising", general),
        ("validated", general & all_else),
    ]
    out = np.zeros(len(sites), np.int8)
    for name, there in reached:
        out[there] = STATES.index(name)
    return out
