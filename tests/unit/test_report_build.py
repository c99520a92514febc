"""report.json v2 of made-up studies with known concepts: form, honesty about gaps, files, and nothing without n."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from jsonschema import Draft202012Validator

from benchmarks.made_studies import made_result, made_study
from cytosae_core.config import StudyConfig
from cytosae_core.errors import StudyError
from cytosae_core.plan import Endpoint, PlanConfig
from cytosae_core.report import columns as column_files
from cytosae_core.report.build import build_report
from cytosae_core.report.build_verdict import baseline
from cytosae_core.report.columns import FILE, ColumnFile, columns_of, read_columns
from cytosae_core.report.inputs import StudyResult
from cytosae_core.report.rows import concept_rows, state_counts, verdict_counts
from cytosae_core.report.schema import problems, schema
from cytosae_core.report.stacks import Stack
from cytosae_core.report.table_csv import COLUMNS, plain, write_csv
from cytosae_core.report.text_json import report_bytes
from cytosae_core.report.words import limits
from cytosae_core.tensors import pack_tensors
from cytosae_server.study import write_report

Json = dict[str, Any]
N = 120


def shown(study: StudyConfig, result: StudyResult) -> Json:
    """The report as a reader of report.json has it."""
    return dict(json.loads(report_bytes(build_report(study, result))))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[StudyConfig, StudyResult]:
    study = made_study(6, N, d=8)
    return study, made_result(study, tmp_path_factory.mktemp("made"))


@pytest.fixture(scope="module")
def report(made: tuple[StudyConfig, StudyResult]) -> Json:
    return shown(*made)


def held(result: StudyResult) -> StudyResult:
    """A copy whose tables are plain dicts, to be changed."""
    tables = {which: {site: dict(t[site]) for site in t} for which, t in result.describe.items()}
    scores = {site: dict(result.scores[site]) for site in result.scores}
    return replace(result, describe=tables, scores=scores)


# Form


def test_the_report_fits_its_schema(report: Json) -> None:
    assert problems(report) == []


def test_jsonschema_agrees(report: Json) -> None:
    Draft202012Validator.check_schema(schema())
    assert list(Draft202012Validator(schema()).iter_errors(report)) == []


@pytest.mark.parametrize(
    ("change", "place"),
    [
        (lambda r: r["headlines"][0].update(status="fine"), "headlines/0/status"),
        (lambda r: r["headlines"][0].update(interval=None), "headlines/0/interval"),
        (lambda r: r["headlines"][0]["n"].update(sites=2), "headlines/0/n/sites"),
        (lambda r: r["headlines"][1]["n"].pop("units"), "headlines/1/n"),
        (lambda r: r["concepts"]["columns"]["p"].pop(), "columns/p"),
        (lambda r: r["concepts"]["columns"]["mean"].__setitem__(0, 1.2), "columns/mean/0"),
        (lambda r: r["concepts"]["gate_values"]["prediction"].__setitem__(3, 2), "gate_values/prediction/3"),
        (lambda r: r["sites"]["site-000"].update(units=True), "sites/site-000/units"),
        (lambda r: r["verdict"]["caveats"].pop(), "verdict/caveats"),
        (lambda r: r.update(extra=1), "unknown extra"),
        (lambda r: r["protocol"].update(sha256="x"), "protocol/sha256"),
    ],
)
def test_the_schema_finds_what_is_wrong(report: Json, change: Any, place: str) -> None:
    broken = json.loads(json.dumps(report))
    change(broken)
    assert any(place in line for line in problems(broken)), problems(broken)


def test_every_rule_of_the_schema_is_one_that_is_checked() -> None:
    """A word that the checker does not know would raise KeyError; here every branch of the schema is walked."""
    from cytosae_core.report.schema import _WORDS, SILENT

    def walk(rules: Any) -> None:
        if isinstance(rules, Mapping):
            for word, rule in rules.items():
                assert word in _WORDS or word in SILENT, word
                if word in ("properties", "$defs"):
                    for item in rule.values():
                        walk(item)
                elif word in ("items", "additionalProperties", "if", "then", "else"):
                    walk(rule)
                elif word in ("anyOf", "oneOf", "allOf"):
                    for item in rule:
                        walk(item)

    walk(schema())


def test_no_number_without_n(report: Json) -> None:
    for part in report["headlines"]:
        assert part["n"]["sites"] == len(part["sites"])
        assert (part["value"] is None) == (part["n"]["sites"] == 0)
        assert part["status"] == "estimated" or part["reason"]
    for row in concept_rows(report):
        known = [site for site, entry in row["auroc"].items() if entry is not None]
        assert row["target"] is None or row["sites"] == len(known)
        assert row["estimate"] is None or len(known) >= 3


def test_strongest_states_come_first_and_every_concept_once(report: Json) -> None:
    columns = report["concepts"]["columns"]
    assert sorted(columns["row"]) == list(range(N)) and columns["state"] == sorted(
        columns["state"], reverse=True
    )
    assert columns["id"] == [f"c{row:04d}" for row in columns["row"]]
    assert sum(state_counts(report).values()) == sum(verdict_counts(report).values()) == N


def test_planted_concepts_hold_and_noise_does_not(report: Json) -> None:
    """The first tenth was made to hold everywhere, the second at some sites only, the rest nowhere."""
    verdicts = {row["row"]: row["verdict"] for row in concept_rows(report)}
    assert all(verdicts[row] == "holds" for row in range(N // 10))
    assert sum(verdicts[row] == "holds" for row in range(N // 10, N // 5)) <= 3
    assert all(verdicts[row] != "holds" for row in range(N // 5, N))


# Sites and order


def test_the_primary_number_stands_beside_other_dictionaries(report: Json) -> None:
    """How many meanings hold at a site left out is told for shuffled labels, the start and random rows as well."""
    part = next(item for item in report["headlines"] if item["id"] == "replication")
    beside = {item["name"]: item["value"] for item in part["controls"]}
    assert list(beside) == ["shuffled labels", "dictionary before training", "random dictionary"]
    assert all(value is None or 0 <= value <= 1 for value in beside.values())
    listed = [item for item in report["controls"] if item["beside"] == "replication"]
    assert len(listed) == 3 and all(item["sentence"] for item in listed)


@pytest.mark.parametrize(
    ("name", "said"),
    [("random dictionary", "a random dictionary (100%)"), ("dictionary before training", "before")],
)
def test_a_control_that_does_as_well_is_a_limit(report: Json, name: str, said: str) -> None:
    assert not [line for line in limits(report) if "not owed to the dictionary" in line]
    changed = json.loads(json.dumps(report))
    part = next(item for item in changed["headlines"] if item["id"] == "replication")
    next(item for item in part["controls"] if item["name"] == name)["value"] = 1.0
    found = [line for line in limits(changed) if "not owed to the dictionary" in line]
    assert len(found) == 1 and said in found[0]


@pytest.mark.parametrize(
    ("direction", "value", "control", "applies"),
    [
        ("at_least", 0.7, 0.7, True),
        ("at_least", 0.7, 0.69, False),
        ("at_most", 0.2, 0.1, True),
        ("at_most", 0.2, 0.3, False),
    ],
)
def test_a_primary_number_that_a_baseline_reaches_is_a_caveat(
    report: Json, direction: str, value: float, control: float, applies: bool
) -> None:
    controls = [{"name": "same site", "value": value}, {"name": "raw embeddings", "value": control}]
    primary = {"direction": direction, "value": value, "controls": controls}
    said = baseline(primary)
    assert bool(said) == applies and ("raw embeddings" in said) == applies
    assert baseline({**primary, "controls": controls[:1]}) == "" == baseline({**primary, "value": None})


def test_without_a_clear_meaning_nothing_is_estimable_and_nothing_was_withheld(
    made: tuple[StudyConfig, StudyResult],
) -> None:
    result = held(made[1])
    for table in result.describe["final"].values():
        table["auroc"] = np.full_like(table["auroc"], 0.5)  # type: ignore[index]
    part = next(item for item in shown(made[0], result)["headlines"] if item["id"] == "replication")
    assert part["status"] == "not_estimable" and "no meaning was clear" in part["reason"]


def test_the_order_of_sites_does_not_matter(made: tuple[StudyConfig, StudyResult], report: Json) -> None:
    study, result = made
    turned = shown(replace(study, sites=study.sites[::-1]), turned_recall(held(result)))
    left = {row["row"]: row for row in concept_rows(report)}
    for row in concept_rows(turned):
        for name in ("verdict", "target", "sites"):
            assert row[name] == left[row["row"]][name]
        for name in ("mean", "estimate", "prediction_low", "q", "tau2"):
            assert row[name] == pytest.approx(left[row["row"]][name], abs=2e-4, rel=2e-3)
    for one, other in zip(report["headlines"], turned["headlines"], strict=True):
        assert one["value"] == pytest.approx(other["value"], rel=2e-3)


def turned_recall(result: StudyResult) -> StudyResult:
    for tables in result.scores.values():
        tables["site_recall"] = tables["site_recall"][:, ::-1]
    return result


def some(study: StudyConfig, result: StudyResult, count: int) -> Json:
    """The report when only `count` sites answered after hello."""
    part = held(result)
    kept = study.sites[:count]
    part.describe = {which: {site: t[site] for site in kept} for which, t in part.describe.items()}
    part.scores = {site: part.scores[site] for site in kept}
    part.faults = [(site, "describe", "deadline") for site in study.sites[count:]]
    return shown(study, part)


@pytest.mark.parametrize(
    ("count", "state"), [(0, "not_estimable"), (2, "not_estimable"), (3, "provisional"), (4, "provisional")]
)
def test_few_sites_conclude_nothing(made: tuple[StudyConfig, StudyResult], count: int, state: str) -> None:
    found = some(*made, count)
    assert problems(found) == []
    assert found["verdict"]["state"] == state
    strong = {"generalising", "validated"}
    assert not any(number for name, number in state_counts(found).items() if name in strong)
    if count < 3:
        assert all(part["interval"] is None for part in found["headlines"])
        assert "not estimable" in found["answer"].lower()


def test_generalising_needs_the_worse_end_of_the_prediction_interval(
    made: tuple[StudyConfig, StudyResult], report: Json
) -> None:
    transfer = next(part for part in report["headlines"] if part["id"] == "transfer")
    low = transfer["prediction"][0]
    for threshold, state in ((low - 0.01, "generalises"), (low + 0.01, "does_not_generalise")):
        plan = PlanConfig(endpoints=(Endpoint("transfer", threshold, True),))
        found = shown(replace(made[0], plan=plan), made[1])
        assert found["verdict"]["state"] == state
        assert found["headlines"][0]["id"] == "transfer" and found["headlines"][0]["passes"]


def test_sites_without_support_do_not_count_towards_macro_scores(
    made: tuple[StudyConfig, StudyResult],
) -> None:
    study, result = made
    part = held(result)
    part.class_units = {site: units.copy() for site, units in result.class_units.items()}
    part.class_units["site-001"][1:] = 10  # one class left
    found = shown(study, part)
    transfer = next(item for item in found["headlines"] if item["id"] == "transfer")
    fvu = next(item for item in found["headlines"] if item["id"] == "fvu")
    assert "site-001" not in transfer["sites"] and "fewer than two classes" in transfer["reason"]
    assert "site-001" in fvu["sites"]


def test_older_sites_leave_gaps_with_reasons(made: tuple[StudyConfig, StudyResult]) -> None:
    """Policies may be older than the tensors of this release: every gap is named, nothing is invented."""
    part = held(made[1])
    old = ("auroc", "auroc_se", "auroc_shuffled", "firing_rate", "reliability", "quality", "same_site_null")
    for tables in part.describe.values():
        for site, table in tables.items():
            tables[site] = {name: table[name] for name in old if name in table}
    for site, table in part.scores.items():
        part.scores[site] = {
            "balanced_accuracy": table["balanced_accuracy"][:4],
            "site_recall": table["site_recall"],
        }
    found = shown(made[0], part)
    assert problems(found) == []
    for gate in ("recurrence", "shortcut", "confound", "ablation", "naming"):
        assert set(found["concepts"]["gate_values"][gate]) == {-1}, gate
    gaps = {item["item"] for item in found["not_assessed"]}
    assert {"calibration", "check of concepts: recurrence", "check of concepts: shortcut"} <= gaps
    assert found["subgroups"][0]["status"] == "not_assessed"
    assert all(value is None for value in found["concepts"]["columns"]["recurrence"])


def test_withheld_values_stay_withheld(made: tuple[StudyConfig, StudyResult], report: Json) -> None:
    """A suppressed AUROC is null, with status 1, and its site is not in the concept's n."""
    result, checked = made[1], 0
    for place, row in enumerate(report["concepts"]["columns"]["row"]):
        target = report["concepts"]["columns"]["target"][place]
        for site in made[0].sites:
            value = result.describe["final"][site]["auroc"][row, max(target, 0)]
            if target >= 0 and np.isnan(value):
                table = report["concepts"]["tables"]["auroc"]
                assert table["sites"][site][place] is None
                status = table["status"][site]
                assert (status if isinstance(status, int) else status[place]) == 1
                checked += 1
    assert checked > 3


# Files


def test_large_studies_write_a_column_file(
    made: tuple[StudyConfig, StudyResult], report: Json, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(column_files, "INLINE_VALUES", 100)
    (tmp_path / "run").mkdir()
    result = replace(made[1], scratch=tmp_path / "run")
    large = dict(build_report(made[0], result))
    assert large["concepts"]["tables"]["file"] == FILE and problems(json.loads(report_bytes(large))) == []
    write_report(tmp_path, large)
    found = columns_of(large, tmp_path)
    assert (
        found is not None and (tmp_path / "report.html").exists() and not (tmp_path / "run" / FILE).exists()
    )
    for small, big in zip(concept_rows(report), concept_rows(large, found), strict=True):
        assert small == big
    assert (tmp_path / FILE).read_bytes() == pack_tensors(
        {name: np.asarray(table) for name, table in found.items()}
    )
    without = dict(build_report(made[0], replace(result, scratch=None)))
    assert (
        without["concepts"]["tables"] == large["concepts"]["tables"]
    )  # the same digest wherever it was made


def test_a_column_file_that_is_not_the_reports_is_refused(
    made: tuple[StudyConfig, StudyResult], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(column_files, "INLINE_VALUES", 100)
    (tmp_path / "run").mkdir()
    large = dict(build_report(made[0], replace(made[1], scratch=tmp_path / "run")))
    data = bytearray((tmp_path / "run" / FILE).read_bytes())
    data[-1] ^= 1
    (tmp_path / "run" / FILE).write_bytes(data)
    with pytest.raises(StudyError, match="names"):
        write_report(tmp_path, large)
    (tmp_path / FILE).unlink()
    with pytest.raises(StudyError, match="per-site values"):
        write_report(tmp_path, large)


def test_an_unfinished_column_file_never_appears(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), ColumnFile(tmp_path / FILE, 2, 3) as file:
        file.write("auroc", 0, np.zeros((2, 3)))
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("shape", [(1, 1, 1), (3, 10, 2), (5, 7, 1), (2, 100, 4)])
def test_stacks_give_back_what_was_put(shape: tuple[int, int, int], tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    values = rng.random(shape).astype(np.float32)
    values[rng.random(shape) < 0.1] = np.nan
    stack = Stack(*shape, tmp_path, block=3)
    for site in range(1, shape[0]):  # the first site is never written
        stack.put(site, values[site])
    values[0] = np.nan
    np.testing.assert_array_equal(stack.all(), values)
    np.testing.assert_array_equal(stack.column(shape[2] - 1), values[:, :, -1])
    assert list(tmp_path.iterdir()) == []


def test_report_csv_has_one_line_per_concept(report: Json, tmp_path: Path) -> None:
    write_csv(tmp_path / "report.csv", report)
    data = (tmp_path / "report.csv").read_bytes()
    assert data.count(b"\r\n") == N + 1 and b"\n" not in data.replace(b"\r\n", b"")
    with (tmp_path / "report.csv").open(newline="") as stream:
        table = list(csv.DictReader(stream))
    assert list(table[0])[: len(COLUMNS)] == list(COLUMNS)
    for line, row in zip(table, concept_rows(report), strict=True):
        assert (line["id"], line["state"], line["target"]) == (row["id"], row["state"], row["target"] or "")
        assert line["mean"] == ("" if row["mean"] is None else str(row["mean"]))


@pytest.mark.parametrize("text", ["=1+1", "+cmd|' /C calc'!A0", "-2", "@SUM(A1)", "\tx", "\rx"])
def test_a_class_that_is_a_formula_becomes_text(report: Json, text: str, tmp_path: Path) -> None:
    assert plain(text) == f"'{text}"
    evil = json.loads(json.dumps(report))
    evil["concepts"]["targets"] = [text] * len(evil["concepts"]["targets"])
    write_csv(tmp_path / "report.csv", evil)
    with (tmp_path / "report.csv").open(newline="") as stream:
        cells = [line["target"] for line in csv.DictReader(stream)]
    assert set(cells) <= {f"'{text}", ""} and f"'{text}" in cells


def test_the_same_report_gives_the_same_bytes(made: tuple[StudyConfig, StudyResult]) -> None:
    assert report_bytes(build_report(*made)) == report_bytes(build_report(*made))
    assert json.loads(report_bytes({"a": 1, "concepts": []})) == {"a": 1, "concepts": []}


def test_the_file_without_a_digest_still_has_to_have_the_size(tmp_path: Path) -> None:
    (tmp_path / FILE).write_bytes(b"x")
    with pytest.raises(StudyError):
        read_columns(tmp_path / FILE, sites=1, n=1)
