"""Experts' votes: what is read, what leaves, what agreement they show."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from cytosae_client.scoring import _ratings
from cytosae_core.cohort.ratings import FILE, Ratings, read_ratings
from cytosae_core.config import MORPHOLOGY, REVIEW_TERMS
from cytosae_core.egress import MIN_RATERS, Release, _find, _protect
from cytosae_core.errors import DataError
from cytosae_core.policy import POLICIES
from cytosae_core.report.html import render
from cytosae_core.report.ratings import fleiss, gwet_chance, krippendorff, review
from cytosae_core.report.states import GateInputs, gates, states
from tests.federation import MASKED, make_site, study_config

DIGEST = "ab" * 32
HEAD = f"# dictionary: {DIGEST}\nconcept,rater,term\n"


def write(folder: Path, text: str) -> Path:
    (folder / FILE).write_text(text)
    return folder


def test_votes_are_counted_and_empty_terms_are_none(tmp_path: Path) -> None:
    rows = "c0001,r1,granules\nc0001,r2,granules\nc0001,r3,vacuoles\nc0003,r1,\n\n"
    found = read_ratings(write(tmp_path, HEAD + rows))
    assert found is not None and found.dictionary == DIGEST
    table = found.table(5)
    assert table.shape == (5, len(REVIEW_TERMS)) and table.sum() == 3
    assert table[1, REVIEW_TERMS.index("granules")] == 2 and table[3].sum() == 0
    assert read_ratings(tmp_path / "..") is None
    with pytest.raises(DataError, match="below c0001"):
        found.table(1)


@pytest.mark.parametrize(
    "text",
    [
        "", "concept,rater,term\n", f"# dictionary: {DIGEST[:-1]}\nconcept,rater,term\n",
        f"# dictionary: {DIGEST}\nrater,concept,term\n",
        *(HEAD + row for row in (
            "c0001,r1,Müller saw granules\n", "c0001,Müller,granules\n", "c1,r1,granules\n", "c0001,r1\n",
            "c0001,r100,granules\n", "c0001,r0,granules\n", "c0001,r1,granules\nc0001,r1,vacuoles\n",
            "c0001,r1,granules,more\n", 'c0001,r1,"granules\n',
        )),
    ],
)  # fmt: skip
def test_other_files_are_refused_and_not_repeated(tmp_path: Path, text: str) -> None:
    with pytest.raises(DataError) as told:
        read_ratings(write(tmp_path, text))
    assert "Müller" not in str(told.value) and str(tmp_path) not in str(told.value)


def test_links_and_other_encodings_are_refused(tmp_path: Path) -> None:
    (tmp_path / "real.csv").write_text(HEAD)
    (tmp_path / FILE).symlink_to(tmp_path / "real.csv")
    with pytest.raises(DataError):
        read_ratings(tmp_path)
    (tmp_path / FILE).unlink()
    (tmp_path / FILE).write_bytes(HEAD.encode() + "c0001,r1,gränules\n".encode("latin-1"))
    with pytest.raises(DataError, match="UTF-8"):
        read_ratings(tmp_path)


@pytest.mark.parametrize("policy", sorted(set(POLICIES) - {"dp"}))  # under dp no votes leave
def test_fewer_than_three_raters_never_leave(policy: str) -> None:
    votes = np.zeros((4, len(REVIEW_TERMS)), np.float32)
    votes[0, 0], votes[1, :2], votes[2, 3] = 3, (1, 1), 12
    raters = votes.sum(axis=1, keepdims=True)
    field = _find("describe", "ratings", POLICIES[policy].profile)
    shown, hidden = _protect(field, Release(votes, raters), POLICIES[policy])
    assert np.isnan(shown[[1, 3]]).all() and (shown[[0, 2]] == votes[[0, 2]]).all()
    assert MIN_RATERS == 3 and hidden == 2 * len(REVIEW_TERMS)


class Asked:
    """What `_ratings` looks at."""

    def __init__(self, home: Path, dictionary: str, allowed: bool = True) -> None:
        self.study = study_config()
        self.study = replace(self.study, dictionary=replace(self.study.dictionary, digest=DIGEST))
        found = Ratings(dictionary, ((1, 0), (1, 0), (1, 2)))
        self.site = make_site("site-0", home, MASKED, seed=0, ratings=found)
        self.policy = self
        self.allows = lambda name: allowed and name == "ratings"


def test_votes_for_another_dictionary_stay(tmp_path: Path) -> None:
    table = _ratings(Asked(tmp_path, DIGEST))  # type: ignore[arg-type]
    values, units = table["ratings"]
    assert values.sum() == 3 and units[:, 0].tolist()[:3] == [0, 3, 0]
    assert _ratings(Asked(tmp_path, "cd" * 32)) == {}  # type: ignore[arg-type]
    assert _ratings(Asked(tmp_path, DIGEST, allowed=False)) == {}  # type: ignore[arg-type]


def reference() -> dict[str, object]:
    return dict(json.loads((Path(__file__).parent.parent / "vectors" / "ratings.json").read_text()))


def test_agreement_is_that_of_other_programs() -> None:
    known = reference()
    votes = np.array(known["votes"])
    found = review(votes, seed=0)
    assert found.ac1 == pytest.approx(known["gwet_ac1"], abs=1e-9)
    assert found.kappa == pytest.approx(known["fleiss"], abs=1e-9)
    assert found.alpha == pytest.approx(known["krippendorff"], abs=1e-9)
    assert found.low < found.ac1 < found.high and found.concepts == 30


def test_everybody_the_same_and_everybody_apart() -> None:
    same = np.zeros((6, len(REVIEW_TERMS)), np.int64)
    same[np.arange(6), np.arange(6) % 3] = 4
    found = review(same, seed=1)
    assert found.ac1 == found.kappa == found.alpha == 1 and (found.agreement == 1).all()
    apart = np.zeros((4, len(REVIEW_TERMS)), np.int64)
    apart[:, :3] = 1
    found = review(apart, seed=1)
    assert found.ac1 < 0 and (found.term == -1).all()
    nobody = review(np.zeros((4, len(REVIEW_TERMS)), np.int64), seed=1)
    assert np.isnan(nobody.ac1) and np.isnan(nobody.kappa) and np.isnan(nobody.alpha) and nobody.concepts == 0
    one = np.zeros((4, len(REVIEW_TERMS)), np.float64)
    one[:, 0] = 3
    assert np.isnan(fleiss(one)) and np.isnan(krippendorff(one)) and gwet_chance(one) == 0


def columns(**changes: float) -> dict[str, np.ndarray]:
    """One concept that everything else speaks for."""
    base = {
        "sites": 5, "estimate": 0.8, "low": 0.7, "high": 0.9, "prediction_low": 0.6, "prediction_high": 0.95,
        "q": 0.001, "recurrence_sites": 5, "recurrence": 0.9, "recurrence_init": 0.4, "site_share": 0.01,
        "site_share_high": 0.03,
        "site_share_null": 0.0, "confound": 0.1, "mean": 0.8, "adjusted": 0.8, "ablation_rank": 0.99,
        "replicated": 1.0, "review_raters": 3, "review_term": 0, "review_agreement": 0.7,
    }  # fmt: skip
    return {name: np.array([value]) for name, value in {**base, **changes}.items()}


@pytest.mark.parametrize(
    ("changes", "mark", "state"),
    [
        ({}, 1, 6),
        ({"review_raters": 2}, 0, 5),
        ({"review_agreement": 0.59}, 0, 5),
        ({"review_term": len(MORPHOLOGY)}, 0, 5),  # an artefact
        ({"review_term": -1}, 0, 5),
        ({"review_raters": 0, "review_term": -1, "review_agreement": np.nan}, -1, 5),
    ],
)
def test_a_name_takes_three_experts_who_agree_on_a_feature(
    changes: dict[str, float], mark: int, state: int
) -> None:
    c = columns(**changes)
    passed = gates(GateInputs(c, np.array([True]), 0.05))
    assert passed["naming"].tolist() == [mark]
    assert states(passed, c["sites"], 5).tolist() == [state]


def test_the_page_names_what_experts_saw() -> None:
    report = json.loads((Path(__file__).parent / "report_example.json").read_text())
    count, part = report["concepts"]["count"], report["concepts"]
    assert "no expert review was held" in render(report)
    part["terms"] = list(REVIEW_TERMS)
    part["columns"] |= {
        "review_raters": [4] + [0] * (count - 1), "review_term": [2] + [-1] * (count - 1),
        "review_agreement": [0.82] + [None] * (count - 1),
    }  # fmt: skip
    part["gate_values"]["naming"][0] = 1
    report["experts"] = {
        "status": "estimated", "reason": None, "raters": 8, "sites": ["alder", "birch"],
        "ac1": {"value": 0.71, "interval": [0.6, 0.8], "n": {"concepts": 1}}, "kappa": 0.7, "alpha": 0.69,
        "artefact": 0.1, "unnamed": 0.05,
    }  # fmt: skip
    page = render(report)
    assert "vacuoles (4 votes, agreement 0.82)" in page and "0.60 to 0.80" in page
    assert "How far experts agree" in page and "Seen as artefact" in page
