"""Images from list to units, steps of a study, acquisition bins, agreement and abstention as pictures."""

from __future__ import annotations

import copy
import json
import math
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest

from benchmarks.made_studies import made_result, made_study
from cytosae_client.site import Site, StudyData
from cytosae_core.allowed import ALLOWED
from cytosae_core.concepts.acquisition import EDGES
from cytosae_core.egress import Release, _protect
from cytosae_core.report.build import build_report
from cytosae_core.report.figure import Figure, Missing
from cytosae_core.report.figures_acquisition import appearance, histograms
from cytosae_core.report.figures_agreement import attenuation
from cytosae_core.report.figures_coverage import abstention
from cytosae_core.report.figures_flow import flow, flows
from cytosae_core.report.figures_timeline import steps, timeline
from cytosae_core.report.text_json import report_bytes
from tests.federation import MASKED, make_site, study_config

Json = dict[str, Any]
EXAMPLE = json.loads((Path(__file__).parent / "report_example.json").read_text("utf-8"))
FIGURES = (flow, timeline, appearance, attenuation, abstention)


@pytest.fixture
def example() -> Json:
    return copy.deepcopy(EXAMPLE)


def drawn(made: Figure | Missing) -> Figure:
    assert isinstance(made, Figure), made
    ElementTree.fromstring(made.picture)
    assert all(len(row) == len(made.header) for row in made.rows)
    return made


# What a site tells


def listed(home: Path, count: int | None, unread_units: int) -> float | None:
    """Images listed as they leave a site of 30 patients and 60 readable images."""
    site = make_site("site-0", home, MASKED, seed=0, listed=count, unread_units=unread_units)
    told = StudyData(site, study_config()).listed()
    if told is None:
        return None
    rule = next(field for field in ALLOWED if (field.kind, field.name) == ("hello", "listed"))
    return float(_protect(rule, Release(*told), MASKED)[0][0])


def test_listed_images_leave_unless_few_units_have_an_unreadable_one(tmp_path: Path) -> None:
    base, few = MASKED.round_to, MASKED.min_units
    assert listed(tmp_path, 60, 0) == pytest.approx(round(60 / base) * base)  # all were read: no difference
    assert listed(tmp_path, 60 + 40, few) == pytest.approx(round(100 / base) * base)
    assert math.isnan(listed(tmp_path, 60 + 40, few - 1) or 0.0)  # 40 images of few patients
    assert math.isnan(listed(tmp_path, 61, 1) or 0.0)
    assert listed(tmp_path, None, 0) is None


def test_unreadable_images_stand_in_the_report_with_a_reason_where_they_do_not(tmp_path: Path) -> None:
    study = made_study(5, 40, d=8)
    result = made_result(study, tmp_path)
    result.listed = {"site-000": float(result.counts["site-000"][0]) + 25, "site-001": float("nan")}
    part = json.loads(report_bytes(build_report(study, result)))["missing"]
    assert part["site-000"]["unreadable"] == 25 and part["site-000"]["listed_reason"] is None
    assert part["site-001"]["listed"] is None and "fewer than" in part["site-001"]["listed_reason"]
    assert part["site-002"]["unreadable"] is None and "does not say" in part["site-002"]["listed_reason"]


# Pictures


def test_stages_of_every_site_and_what_they_are_at_least(example: Json) -> None:
    site = next(iter(example["sites"]))
    example["missing"][site] |= {"listed": 500, "unreadable": 20}
    classes = example["sites"][site]["classes"]
    first = next(iter(classes))
    known = sum(value for name, value in classes.items() if name != first and value is not None)
    classes[first] = None
    found = next(item for item in flows(example) if item.site == site)
    assert (found.listed, found.unreadable, found.inside, found.shown) == (500, 20, None, known)
    made = drawn(flow(example, ["SIMULATED SITES"]))
    assert f"at least {known:,.0f}" in made.rows[0] and "SIMULATED SITES" in made.picture


def test_rounded_classes_never_add_up_to_more_than_was_read(example: Json) -> None:
    name, site = next(
        (name, site) for name, site in example["sites"].items() if None not in site["classes"].values()
    )
    site["classes"] = {label: site["images"] for label in site["classes"]}
    found = next(item for item in flows(example) if item.site == name)
    assert found.inside == found.shown == found.stored == site["images"]


def test_many_sites_are_one_sum_and_a_table(example: Json) -> None:
    site, part = next(iter(example["sites"].items()))
    missing = {**example["missing"][site], "listed": 500, "unreadable": 20}
    names = [f"s{index}" for index in range(100)]
    part = {**part, "classes": {"a": 200, "b": 250}}
    example["sites"] = dict.fromkeys(names, part)
    example["missing"] = dict.fromkeys(names, missing)
    made = drawn(flow(example, []))
    assert len(made.rows) == 100 and "50,000" in made.picture and not made.wide
    example["missing"]["s0"] = {**missing, "listed": None}
    assert "49,500" in drawn(flow(example, [])).picture  # a stage is of the same sites as the stage before it


def test_rounds_faults_and_log_in_their_order() -> None:
    report = {
        "sites": {"a": {}, "b": {}},
        "integrity": {
            "leaves": {
                "a": {"hello": [1], "round": [4, 6], "score": [8]},
                "b": {"hello": [2], "round": [5], "score": [9]},
            }
        },
        "rounds": [
            {"round": 1, "sites": {"a": 0.5, "b": 0.5}, "faults": {}},
            {"round": 2, "sites": {"a": 0.4}, "faults": {"b": "deadline"}},
        ],
        "missing": {"b": {"faults": ["round 2: deadline", "score: encoder"]}},
        "protocol": {"deviations": [{"at": "2026-03-04", "what": "one site came late", "why": "power"}]},
    }
    found = [(step.name, step.answered, dict(step.failed), step.log) for step in steps(report)]
    assert found == [
        ("hello", 2, {}, 3),
        ("1", 2, {}, 6),
        ("2", 1, {"b": "deadline"}, 7),
        ("test", 2, {"b": "encoder"}, 10),
    ]
    made = drawn(timeline(report, []))
    assert ["change, 2026-03-04", "", "one site came late", ""] in made.rows
    report["integrity"] = {"leaves": {}}
    assert [step.log for step in steps(report)] == [None, None, None]  # nothing is guessed without a log


def test_withheld_bins_are_hatched_and_only_whole_histograms_count(example: Json) -> None:
    site = next(iter(example["acquisition"]))
    given = example["acquisition"][site]["histogram"]
    given["brightness"] = [None, *[10] * 8, None]
    given["focus"] = [1, 2, 3]  # not the bins that the page knows
    assert "focus" not in histograms(example)[site]
    made = drawn(appearance(example, []))
    text = {(row[0], row[1]): row[2] for row in made.rows}
    assert text[site, "brightness"].split(" | ") == ["withheld", *["10"] * 8, "withheld"]
    assert text[site, "focus"] == "not released"
    assert made.picture.count("appearance-hatch") >= 2
    assert set(EDGES) == {row[1] for row in made.rows if row[0] == "edges between bins"}


def test_agreement_is_shown_beside_what_could_be_reached(example: Json) -> None:
    pairs = example["agreement"]["auroc"]
    rows = {row[0]: row for row in drawn(attenuation(example, [])).rows}
    assert rows["as released"][1] == f"{np.mean([pair['r'] for pair in pairs]):.2f}"
    assert rows["as released"][4] == f"{len(pairs)} pairs" and rows["two halves of a site"][4].endswith(
        "sites"
    )
    for pair in pairs:
        pair.pop("corrected", None)
    rows = {row[0]: row for row in drawn(attenuation(example, [])).rows}
    assert rows["noise taken off"] == ["noise taken off", *["not assessed"] * 3, "0 pairs"]


def test_abstention_leaves_a_gap_where_a_part_is_withheld(example: Json) -> None:
    part = example["abstention"]
    site = next(iter(part["sites"]))
    part["sites"][site]["value"] = [None, 0.9, None, 0.8, 0.8]
    made = drawn(abstention(example, []))
    row = next(row for row in made.rows if row[0] == site)
    assert row[2] == row[4] == "withheld" and row[3].startswith("0.900 (")
    names = [f"s{index}" for index in range(40)]
    part["sites"] = {name: {"value": [0.9] * 5, "se": [None] * 5, "units": None} for name in names}
    many = drawn(abstention(example, []))
    assert len(many.rows) == 42 and "worst to best of 40 sites" in many.picture


@pytest.mark.parametrize("figure", FIGURES)
@pytest.mark.parametrize("bad", [None, [], "text", 7, {"x": None}, {"sites": [1]}, {"a": {"value": "<b>"}}])
def test_hostile_or_missing_parts_are_drawn_or_named(example: Json, figure: Any, bad: Any) -> None:
    keys = (
        "missing",
        "sites",
        "integrity",
        "rounds",
        "acquisition",
        "agreement",
        "abstention",
        "drift",
        "protocol",
    )
    for key in keys:
        report = {**example, key: bad}
        made = figure(report, ["<mark>"])
        assert isinstance(made, Missing) or ("<mark>" not in made.picture and drawn(made))
    assert isinstance(figure({}, []), Missing)


def test_names_of_sites_are_escaped(example: Json) -> None:
    evil = "<script>alert(1)</script>"
    for key in ("missing", "sites", "acquisition"):
        example[key] = {
            evil if place == 0 else name: value for place, (name, value) in enumerate(example[key].items())
        }
    for figure in (flow, appearance):
        assert "<script>" not in drawn(figure(example, [])).picture


def test_an_older_site_without_coverage_is_named(tmp_path: Path) -> None:
    study = made_study(4, 40, d=8)
    result = made_result(study, tmp_path)
    scores = {site: dict(result.scores[site]) for site in result.scores}
    full = json.loads(report_bytes(build_report(study, replace(result, scores=scores))))["abstention"]
    assert full["status"] == "estimated" and full["pooled"][-1]["sites"] == 4
    withheld = {site: {**t, "coverage": np.full((5, 2), np.nan, np.float32)} for site, t in scores.items()}
    part = json.loads(report_bytes(build_report(study, replace(result, scores=withheld))))["abstention"]
    assert part["status"] == "suppressed" and part["sites"] == {} and part["pooled"][0]["mean"] is None
    older = {site: {k: v for k, v in t.items() if k != "coverage"} for site, t in scores.items()}
    part = json.loads(report_bytes(build_report(study, replace(result, scores=older))))["abstention"]
    assert part["status"] == "not_assessed" and part["reason"]


def test_a_site_counts_its_unreadable_images_and_their_units(tmp_path: Path) -> None:
    """Of six listed images of three patients two of the last patient's cannot be read."""
    images = tuple(
        SimpleNamespace(index=index, label="a", unit=f"patient-{index // 2}", attributes={})
        for index in range(6)
    )
    cohort: Any = SimpleNamespace(
        name="site-0", images=images, unit="patient", acquisition={}, label_map="", ratings=None
    )
    store: Any = SimpleNamespace(image_index=np.arange(4))
    site = Site.of(cohort, store, MASKED, tmp_path)
    assert (site.listed, site.unread_units, len(site.labels)) == (6, 1, 4)
