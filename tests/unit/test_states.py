"""What a concept may be called: every step up needs its gates, a gate that was not computed is never passed."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from cytosae_core.config import MORPHOLOGY
from cytosae_core.report.states import GATES, STATES, UNKNOWN, GateInputs, gates, states

GOOD: dict[str, float] = {
    "sites": 8, "estimate": 0.8, "low": 0.75, "high": 0.85, "prediction_low": 0.65, "prediction_high": 0.9,
    "q": 0.001, "mean": 0.8, "adjusted": 0.78, "recurrence_sites": 6, "recurrence": 0.8, "recurrence_init": 0.2,
    "site_share": 0.05, "site_share_high": 0.09,
    "site_share_null": 0.02, "confound": 0.2, "ablation_rank": 0.97, "replicated": 0.9,
    "review_raters": 0, "review_term": -1, "review_agreement": float("nan"),
}  # fmt: skip
NAN = float("nan")
NAMED = {
    "review_raters": 3,
    "review_term": 0,
    "review_agreement": 0.8,
}  # three experts, one feature of the cell


def passed(same_side: bool = True, **changes: float) -> dict[str, Any]:
    columns = {name: np.array([value]) for name, value in {**GOOD, **changes}.items()}
    return gates(GateInputs(columns, np.array([same_side]), 0.05))


def state(same_side: bool = True, **changes: float) -> str:
    marks = passed(same_side, **changes)
    return STATES[states(marks, np.array([{**GOOD, **changes}["sites"]]), 5)[0]]


def test_every_gate_is_there_and_naming_waits_for_experts() -> None:
    marks = passed()
    assert tuple(marks) == GATES
    assert {name: int(mark[0]) for name, mark in marks.items()} == {**dict.fromkeys(GATES, 1), "naming": -1}


def test_all_gates_and_experts_make_it_validated_and_without_experts_generalising() -> None:
    assert state(**NAMED) == "validated"
    assert state() == "generalising"


@pytest.mark.parametrize(
    ("votes", "mark"),
    [
        ({}, 1),
        ({"review_raters": 0}, -1),  # nobody looked
        ({"review_raters": 2}, 0),
        ({"review_agreement": 0.5}, 0),
        ({"review_agreement": NAN}, 0),
        ({"review_term": -1}, 0),  # no term has most votes
        ({"review_term": len(MORPHOLOGY)}, 0),  # an artefact is no feature of the cell
    ],
)
def test_a_name_needs_three_experts_who_agree_on_a_feature(votes: dict[str, float], mark: int) -> None:
    assert passed(**{**NAMED, **votes})["naming"] == mark


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"sites": 2}, "not_assessed"),
        ({"sites": 4}, "provisional"),
        ({"sites": 3}, "provisional"),
        ({"sites": 4, "q": 0.2}, "recurring"),
        ({"prediction_low": 0.45}, "recurring"),  # the next site may lie on the other side
        ({"q": 0.06}, "recurring"),
        ({"low": 0.45}, "recurring"),
        ({"low": NAN, "high": NAN, "prediction_low": NAN, "prediction_high": NAN, "q": NAN}, "recurring"),
        ({"prediction_low": 0.45, "recurrence_sites": 2}, "candidate"),
        ({"prediction_low": 0.45, "recurrence": 0.8, "recurrence_init": 0.9}, "candidate"),
        ({"prediction_low": 0.45, "recurrence_sites": NAN}, "candidate"),
        ({"recurrence_sites": 0}, "generalising"),
        ({"site_share": NAN, "site_share_high": NAN}, "recurring"),  # the hospital was not ruled out
        ({"site_share_high": 0.13}, "recurring"),
        ({"site_share_high": 0.13, "sites": 4}, "provisional"),
    ],
)
def test_what_one_missing_step_costs(changes: dict[str, float], expected: str) -> None:
    assert state(**changes) == expected


def test_sides_that_differ_between_sites_are_not_consistent() -> None:
    assert state(same_side=False) == "recurring"


def test_below_chance_is_a_side_too() -> None:
    low = {"estimate": 0.2, "low": 0.15, "high": 0.25, "prediction_low": 0.1, "prediction_high": 0.35}
    assert state(**low, mean=0.2, adjusted=0.22) == "generalising"


@pytest.mark.parametrize(
    "artefact",
    [
        {"site_share": 0.4, "site_share_high": 0.6},
        {"confound": 0.8, "adjusted": 0.55},
        {"confound": -0.8, "adjusted": 0.3},  # the rest of the effect is on the other side
        {"confound": 0.8, "adjusted": NAN},
    ],
)
@pytest.mark.parametrize("sites", [4, 8, 100])
def test_an_artefact_that_passes_everything_else_is_recurring_at_most(
    artefact: dict[str, float], sites: int
) -> None:
    assert state(sites=sites, **NAMED, **artefact) == "recurring"


def test_following_the_light_is_no_artefact_when_the_effect_stays() -> None:
    assert state(confound=0.8, adjusted=0.75) == "generalising"


def test_a_site_share_below_its_null_is_noise_but_rules_nothing_out() -> None:
    noisy = {"site_share": 0.3, "site_share_high": 0.5, "site_share_null": 0.35}
    assert passed(**noisy)["shortcut"] == UNKNOWN and state(**noisy) == "recurring"
    assert state(**noisy, sites=4) == "provisional"


@pytest.mark.parametrize("name", ["ablation_rank", "replicated", "recurrence_sites", "confound"])
def test_what_was_not_computed_keeps_a_concept_from_being_validated(name: str) -> None:
    assert state(**{**NAMED, name: NAN}) == "generalising"
    assert state(**NAMED) == "validated"


def test_the_plan_may_ask_for_more_sites() -> None:
    marks = passed()
    assert STATES[states(marks, np.array([8]), 10)[0]] == "provisional"
