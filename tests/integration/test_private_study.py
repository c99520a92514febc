"""A study under the profile `dp`, in one process: noised statistics, added concepts, a ledger that says no."""

from __future__ import annotations

import json
import shutil
from dataclasses import astuple, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cytosae_client import private
from cytosae_client.events import Events
from cytosae_client.preview import Preview
from cytosae_client.site import Site
from cytosae_client.steps import Steps
from cytosae_core.audit.recompute import audit_bundle
from cytosae_core.config import QUALITY, DictionaryConfig, RoundsConfig, StatisticsConfig, StudyConfig
from cytosae_core.errors import EgressError, StudyError
from cytosae_core.plan import PlanConfig
from cytosae_core.policy import SitePolicy
from cytosae_core.privacy import metrics
from cytosae_core.privacy.accountant import exact_epsilon
from cytosae_core.privacy.metrics import BINS, LARGEST_SQUARE, Noised, fvu_error
from cytosae_core.privacy.moments import second_moment
from cytosae_core.privacy.terms import PrivacyTerms
from cytosae_core.report.build import build_report
from cytosae_server.study import write_report
from tests.federation import CLASSES, D, FakeStore, Federation, K, study_config
from tests.integration.test_bundle import bundled

POLICY = SitePolicy("dp", "dp", epsilon_total="8", delta_max="0.001")
ROWS, ATOMS = 20, 12
TERMS = PrivacyTerms(epsilon=8.0, delta=1e-4, patients=30, patients_in_all=1000, classes_of_a_patient=2)
TRAIN = replace(TERMS, atoms=ATOMS, second_clip=0.5, tokens_of_a_patient=32)


def private_study(terms: PrivacyTerms = TERMS, **changes: Any) -> StudyConfig:
    """Two listed concepts, three classes; with `terms.atoms` rows that residual moments may fill."""
    kind = "train" if terms.atoms else "validate"
    given: dict[str, Any] = {
        "kind": kind, "profile": "dp", "privacy": terms, "rounds": RoundsConfig(quorum=2, deadline_s=60.0),
        "dictionary": DictionaryConfig(n=ROWS + terms.atoms, k=K, init="file"),
        "statistics": StatisticsConfig(classes=CLASSES),
        "plan": PlanConfig(selection="listed", concepts=("c0001", "c0002")), **changes,
    }  # fmt: skip
    return study_config(3, **given)


def start() -> dict[str, np.ndarray]:
    rows = np.random.default_rng(5).standard_normal((ROWS, D)).astype(np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    return {"dictionary": rows, "mean": np.zeros(D, np.float32), "scale": np.array([1.5], np.float32)}


def federation(
    folder: Path, terms: PrivacyTerms = TERMS, policy: SitePolicy = POLICY, **more: Any
) -> Federation:
    return Federation(folder, study=private_study(terms), policy=policy, start=start(), **more)


def test_a_private_validation_gives_noised_statistics_and_a_report(tmp_path: Path) -> None:
    made = federation(tmp_path)
    run = made.run()
    report = build_report(made.study, run.result)
    table = run.result.describe["final"]["site-0"]
    assert set(table) == {
        "firing_rate",
        "auroc",
        "auroc_se",
        "counts",
        "class_units",
        "quality",
        "quality_init",
        "fvu_se",
    }
    told = np.flatnonzero(~np.isnan(table["firing_rate"]))
    assert set(told.tolist()) <= {1, 2}
    assert 15 < table["counts"][1] < 45  # 30 patients, noise of about 3
    out = tmp_path / "report"
    write_report(out, dict(report))
    page = (out / "report.html").read_text()
    assert "epsilon" in page and json.loads((out / "report.json").read_text())["study"]["profile"] == "dp"


@pytest.mark.parametrize(("noise", "told"), [(1.4, True), (1.6, False)])
def test_quality_is_told_only_where_noise_leaves_a_tenth_or_less(
    tmp_path: Path, noise: float, told: bool
) -> None:
    made = federation(tmp_path)
    steps = Steps(made.sites["site-0"], made.study, POLICY, Events(lambda event: None))
    squares = np.array(
        [6.0, 30.0, 7.0, 20.0]
    )  # a tenth of 30 over the largest mean square, 2: noise up to 1.5
    found = Noised(30.0, squares, np.zeros(2), np.zeros(3), np.zeros((3, 2, BINS)), noise)
    quality = dict(zip(QUALITY, private._quality(steps, found, True, 0), strict=True))
    assert np.isfinite(quality["sse"]) == told
    if told:
        assert quality["sse"] / quality["ss_global"] == pytest.approx(0.2)


def test_the_error_of_a_noised_fvu_is_what_the_noise_does_to_it() -> None:
    rng, true, noise = np.random.default_rng(0), np.array([12.0, 60.0]), 1.0
    drawn = true + LARGEST_SQUARE * noise * rng.standard_normal((100_000, 2))
    squares = np.array([*true, 14.0, 40.0])
    found = Noised(30.0, squares, np.zeros(2), np.zeros(3), np.zeros((3, 2, BINS)), noise)
    assert fvu_error(found) == pytest.approx((drawn[:, 0] / drawn[:, 1]).std(), rel=0.02)


def test_the_report_pools_a_noised_fvu_with_its_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(metrics, "VAGUE", 10.0)  # 30 patients at a site are too few for a sharp one
    made = federation(tmp_path)
    files = bundled(made)
    headlines = json.loads(files["report.json"])["headlines"]
    part = next(item for item in headlines if item["id"] == "fvu")
    for site in part["sites"].values():
        assert 0 < site["se"] < 10
    assert part["sites"] and part["i2"] is not None
    verdict = audit_bundle(files, pinned=json.loads(files["keys.json"]))
    assert verdict.exit_code == 0, verdict.to_dict()["first_broken"]


def test_a_repeated_question_gets_the_same_noise_and_is_charged_once(tmp_path: Path) -> None:
    made = federation(tmp_path)
    first = made.run().result.describe["final"]["site-0"]["quality"]
    session = made.sessions["site-0"]
    spent = session._budget._privacy.summary()  # type: ignore[union-attr]
    shutil.rmtree(tmp_path / "run" / "replies" / "describe-final")
    again = made.run().result.describe["final"]["site-0"]["quality"]
    assert np.array_equal(first, again, equal_nan=True)
    assert session._budget._privacy.summary() == spent  # type: ignore[union-attr]
    assert spent["spent"] == pytest.approx(8.0, rel=0.5) and len(spent["releases"]) == 1


def test_added_concepts_come_from_noised_moments_only(tmp_path: Path) -> None:
    made = federation(tmp_path, TRAIN)
    run = made.run()
    kinds = [item["kind"] for item in made.sessions["site-1"]._budget._privacy.summary()["releases"]]  # type: ignore[union-attr]
    assert kinds in (["second", "third", "describe"], ["second", "describe"])
    assert run.result.final.shape == (ROWS + ATOMS, D)
    assert (run.result.final[:ROWS] == start()["dictionary"]).all()
    total = made.sessions["site-1"]._budget._privacy.summary()["spent"]  # type: ignore[union-attr]
    assert total <= 8.0 and total == pytest.approx(exact_epsilon(_mu(made), 1e-3), rel=1e-6)


def _mu(made: Federation) -> float:
    releases = made.sessions["site-1"]._budget._privacy.summary()["releases"]  # type: ignore[union-attr]
    return float(np.sqrt(sum(1 / item["noise_multiplier"] ** 2 for item in releases)))


def test_an_exhausted_budget_ends_the_site_and_not_the_study(tmp_path: Path) -> None:
    made = federation(tmp_path)
    tight = replace(POLICY, epsilon_total="8")
    made.sessions["site-2"]._budget._privacy._policy = replace(tight, epsilon_total="1")  # type: ignore[union-attr]
    run = made.run()
    assert ("site-2", "describe-final", "budget") in run.result.faults
    assert set(run.result.describe["final"]) == {"site-0", "site-1"}
    assert made.sessions["site-2"]._budget._privacy.summary()["releases"] == []  # type: ignore[union-attr]
    report = build_report(made.study, run.result)
    assert "budget" in json.dumps(report)


def test_a_site_with_too_few_patients_takes_no_part(tmp_path: Path) -> None:
    made = federation(tmp_path, replace(TERMS, patients=31))
    with pytest.raises(StudyError, match="quorum"):
        made.run()
    assert any(event.code == "refused" for event in made.logs)


def site_without(made: Federation, folder: Path, patient: str) -> Site:
    """The first site as it would be without one patient."""
    site = made.sites["site-0"]
    keep = [index for index, unit in enumerate(site.units) if unit != patient]
    store = FakeStore(site.store.tokens(0, site.store.n_images)[keep])
    parts = {
        name: [getattr(site, name)[index] for index in keep] for name in ("labels", "units", "attributes")
    }
    return replace(site, store=store, state=folder, **parts)


def test_a_patients_numbers_do_not_depend_on_who_else_is_there(tmp_path: Path) -> None:
    made = federation(tmp_path, replace(TRAIN, patients=20))
    left_out = "patient-0"  # the first: what is drawn by place instead of by name would move
    rows = np.concatenate([start()["dictionary"], np.eye(ATOMS, D, dtype=np.float32)])
    asked = {**start(), "dictionary": rows}
    found = []
    for site in (made.sites["site-0"], site_without(made, tmp_path / "fewer", left_out)):
        steps = Steps(site, made.study, POLICY, Events(lambda event: None))
        model, scale, _ = private._residual_model(steps, asked)
        names = sorted(set(site.units))
        moments = dict(zip(names, private._rows(steps, model, scale, second_moment), strict=True))
        vectors = dict(zip(names, private._patients(steps, model, scale), strict=True))
        found.append((moments, vectors))
    (moments, vectors), (fewer, vectors_fewer) = found
    assert set(moments) - set(fewer) == {left_out} and len(fewer) == 29
    for name, moment in fewer.items():
        assert (moment == moments[name]).all()
        for one, other in zip(astuple(vectors_fewer[name]), astuple(vectors[name]), strict=True):
            assert np.array_equal(one, other, equal_nan=True)


def test_a_policy_with_less_budget_refuses_the_study(tmp_path: Path) -> None:
    with pytest.raises(StudyError, match="epsilon_total"):
        federation(tmp_path, policy=replace(POLICY, epsilon_total="2"))


def test_a_rolled_back_ledger_stops_the_site(tmp_path: Path) -> None:
    made = federation(tmp_path)
    made.run()
    folder = made.sites["site-0"].state
    for session in made.sessions.values():
        session.close()
    (folder / "ledger" / "privacy.sqlite3").unlink()
    (folder / "privacy-head.json").unlink()
    with pytest.raises(EgressError, match="this site's log"):
        federation(tmp_path)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"privacy": replace(TERMS, epsilon=20.0)}, "no meaningful guarantee"),
        ({"privacy": replace(TERMS, delta=0.01)}, "delta"),
        ({"privacy": replace(TERMS, patients=2000)}, "patients"),
        ({"privacy": replace(TERMS, sites_of_a_patient=4)}, "sites_of_a_patient"),
        ({"plan": PlanConfig()}, "selection=listed"),
        ({"privacy": PrivacyTerms()}, "epsilon"),
        ({"profile": "masked", "kind": "validate"}, "no part privacy"),
        ({"dictionary": DictionaryConfig(n=ROWS, k=K, init="random")}, "public start"),
    ],
)
def test_promises_that_cannot_be_kept_are_refused(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(StudyError, match=says):
        private_study(**changes)


@pytest.mark.parametrize("secure", [False, True])
def test_a_dry_round_shows_noised_numbers_and_charges_nothing(tmp_path: Path, secure: bool) -> None:
    made = federation(tmp_path, replace(TRAIN, secure_aggregation=secure))
    site = made.sites["site-0"]
    shown = Preview(site, made.study, start()).run()
    assert shown["stopped"] is None
    assert [message["kind"] for message in shown["messages"]] == ["hello", "second", "describe"]
    assert made.sessions["site-0"]._budget._privacy.summary()["releases"] == []  # type: ignore[union-attr]
    assert not list(site.state.glob("*/release-*"))


def test_a_dry_round_of_a_site_with_too_few_patients_says_so(tmp_path: Path) -> None:
    made = federation(tmp_path, replace(TERMS, patients=31))
    shown = Preview(made.sites["site-0"], made.study, start()).run()
    assert shown["stopped"]["kind"] == "describe" and "privacy.patients=31" in shown["stopped"]["why"]
