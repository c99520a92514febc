"""The analysis plan: what it refuses, how a stage is judged, and the protocol of a stage."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from cytosae_core.config import RoundsConfig, StudyConfig, study_from_dict
from cytosae_core.errors import StudyError
from cytosae_core.plan import ENDPOINTS, HIGHER_IS_BETTER, NEEDS, RANGES, PlanConfig, check_criteria
from tests.federation import study_config

PLAN = {
    "hypothesis": "They hold.",
    "endpoints": [{"name": "transfer", "threshold": 0.5, "primary": True}, {"name": "fvu", "threshold": 0.4}],
    "stages": [
        {
            "name": "poc",
            "sites": ["site-0"],
            "criteria": [{"endpoint": "fvu", "threshold": 0.4, "sites": 1}],
        },
        {"name": "external"},
    ],
}


def study(**changes: Any) -> StudyConfig:
    return study_from_dict({**study_config().to_dict(), "plan": {**PLAN, **changes}})


def test_every_endpoint_has_a_range_a_side_and_a_number_of_sites() -> None:
    assert set(ENDPOINTS) == set(RANGES) == set(HIGHER_IS_BETTER) == set(NEEDS)


@pytest.mark.parametrize(
    "changes",
    [
        {"endpoints": []},
        {"endpoints": [{"name": "transfer", "threshold": 0.5}]},
        {"endpoints": [{"name": "transfer", "threshold": 0.5, "primary": True}] * 2},
        {"endpoints": [{"name": "auc", "threshold": 0.5, "primary": True}]},
        {"endpoints": [{"name": "transfer", "threshold": 1.5, "primary": True}]},
        {"endpoints": [{"name": "transfer", "threshold": float("nan"), "primary": True}]},
        {"endpoints": [{"name": "transfer", "primary": True}]},
        {"hypothesis": "two\nlines"},
        {"hypothesis": "x" * 501},
        {"hypothesis": "right\u202eleft"},
        {"selection": "best"},
        {"selection": "listed"},
        {"selection": "listed", "concepts": ["c0001", "c0001"]},
        {"selection": "listed", "concepts": ["c0024"]},
        {"selection": "listed", "concepts": ["concept 1"]},
        {"concepts": ["c0001"]},
        {"support": 1},
        {"min_sites": 4},
        {"fdr": 0.0},
        {"fdr": float("nan")},
        {"multiplicity": "bonferroni"},
        {"surprise": 1},
        {"stages": [{"name": "external"}, {"name": "poc"}]},
        {"stages": [{"name": "poc"}, {"name": "poc"}]},
        {"stages": [{"name": "pilot"}]},
        {"stages": [{"name": "poc", "sites": ["nobody"]}]},
        {"stages": [{"name": "poc", "sites": ["site-0", "site-0"]}]},
        {"stages": [{"name": "poc", "criteria": [{"endpoint": "fvu", "threshold": 0.4, "sites": 4}]}]},
        {"stages": [{"name": "poc", "criteria": [{"endpoint": "fvu", "threshold": 0.4, "sites": 0}]}]},
        {"stages": [{"name": "poc", "sites": ["site-0"], "criteria": [{"endpoint": "transfer", "threshold": 0.4}]}]},
        {"stages": [{"name": "poc", "criteria": [{"endpoint": "auc", "threshold": 0.4}]}]},
        {"stages": [{"name": "poc", "criteria": [{"endpoint": "fvu", "threshold": -1.0}]}]},
    ],
)  # fmt: skip
def test_bad_plans_are_study_errors(changes: dict[str, Any]) -> None:
    with pytest.raises(StudyError):
        study(**changes)


def headline(name: str, value: float | None, sites: int, status: str = "estimated") -> dict[str, Any]:
    return {"id": name, "value": value, "n": {"sites": sites, "units": 9}, "status": status, "reason": None}


@pytest.mark.parametrize(
    ("name", "threshold", "needed", "value", "sites", "met"),
    [
        ("fvu", 0.4, 1, 0.4, 1, True),
        ("fvu", 0.4, 1, 0.41, 1, False),
        ("fvu", 0.4, 2, 0.1, 1, False),
        ("transfer", 0.5, 2, 0.5, 2, True),
        ("transfer", 0.5, 2, 0.49, 3, False),
        ("transfer", 0.5, 2, None, 3, False),
        ("transfer", 0.5, 2, float("nan"), 3, False),
        ("site_readable", 0.6, 2, 0.7, 3, False),
        ("site_readable", 0.6, 2, 0.5, 3, True),
    ],
)
def test_a_criterion_is_met_on_its_good_side_with_enough_sites(
    name: str, threshold: float, needed: int, value: float | None, sites: int, met: bool
) -> None:
    criterion = {"endpoint": name, "threshold": threshold, "sites": needed}
    plan = study(stages=[{"name": "review", "criteria": [criterion]}]).plan
    (found,) = check_criteria(plan.stages[0], {"headlines": [headline(name, value, sites)]})
    assert found.met is met and bool(found.reason) is not met
    assert found.to_dict()["met"] is met


@pytest.mark.parametrize(
    "report", [{}, {"headlines": None}, {"headlines": [3]}, {"headlines": [{"id": "fvu"}]}]
)
def test_a_report_without_the_number_meets_nothing(report: dict[str, Any]) -> None:
    (found,) = check_criteria(study().plan.stage("poc"), report)
    assert not found.met and found.value is None and found.reason


def test_a_stage_has_a_protocol_of_its_own_that_names_the_signed_one() -> None:
    signed = replace(study(), rounds=RoundsConfig(quorum=3))
    poc, external = signed.for_stage("poc"), signed.for_stage("external")
    assert (poc.sites, poc.rounds.quorum, poc.stage) == (("site-0",), 1, "poc")
    assert external.sites == signed.sites and external.rounds.quorum == 3
    assert poc.part_of == external.part_of == signed.digest
    assert len({signed.digest, poc.digest, external.digest}) == 3
    assert study_from_dict(poc.to_dict()) == poc
    assert replace(signed, seed=9).for_stage("poc").digest != poc.digest
    for make in (lambda: signed.for_stage("review"), lambda: poc.for_stage("external")):
        with pytest.raises(StudyError):
            make()


@pytest.mark.parametrize("changes", [{"stage": "poc"}, {"part_of": "a" * 64}, {"stage": "poc", "part_of": "x"},
                                     {"stage": "review", "part_of": "a" * 64}])  # fmt: skip
def test_stage_and_signed_protocol_stand_together(changes: dict[str, str]) -> None:
    with pytest.raises(StudyError):
        study_from_dict({**study().to_dict(), **changes})


def test_the_primary_endpoint_is_found() -> None:
    assert study().plan.primary.name == "transfer" and PlanConfig().primary.name == "replication"
