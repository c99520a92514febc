"""What the auditor's own arithmetic says of concepts: q, gates, states, order, replication, failures, the verdict.

Studies here have every kind of evidence. Honest reports come out again; one wrong value is found where it stands.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.stats import t as student

from cytosae_core.audit.recompute import audit_bundle
from cytosae_core.audit.recompute.columns import ablation_ranks, benjamini_hochberg
from cytosae_core.audit.recompute.gates import first_unsorted
from cytosae_core.audit.recompute.meta import concept_of, p_of
from cytosae_core.audit.verify import Verdict
from cytosae_core.plan import Endpoint, PlanConfig
from cytosae_core.report import multiplicity
from tests.bundles import Fields, Files, relisted
from tests.made_bundles import MadeStudy

SITES = tuple(f"site-{letter}" for letter in "abcde")
CONCEPTS, STATES = "numbers of the concepts", "states of the concepts"


def audited(files: Files) -> Verdict:
    return audit_bundle(files, pinned=json.loads(files["keys.json"]))


def failed(verdict: Verdict) -> dict[str, str]:
    """Name and link of what failed."""
    return {check.name: check.link for check in verdict.checks if check.state != "PASS"}


def report_of(files: Files) -> Fields:
    return dict(json.loads(files["report.json"]))


def made(home: Path, sites: int = 5, n: int = 48, **options: Any) -> Files:
    return MadeStudy(home, SITES[:sites], n=n, **options).build()


# Honest reports, of many kinds of studies


@pytest.fixture(scope="module")
def honest(tmp_path_factory: pytest.TempPathFactory) -> Files:
    return made(tmp_path_factory.mktemp("honest"), n=120)


@pytest.fixture(scope="module")
def smaller(tmp_path_factory: pytest.TempPathFactory) -> Files:
    return made(tmp_path_factory.mktemp("smaller"))


def test_an_honest_report_comes_out_again_in_all_its_shades(honest: Files) -> None:
    verdict, part = audited(honest), report_of(honest)["concepts"]
    assert failed(verdict) == {}
    marks = {name: set(values) for name, values in part["gate_values"].items()}
    for name in ("recurrence", "consistency", "prediction", "shortcut", "confound", "ablation"):
        assert {0, 1} <= marks[name], name
    assert marks["held_out"] == {-1, 0, 1} and len(set(part["columns"]["state"])) > 2
    text = next(check.text for check in verdict.checks if check.name == CONCEPTS)
    assert "Not recomputed" not in text


@pytest.mark.parametrize(
    ("name", "sites", "n", "plan"),
    [
        ("no correction", 4, 48, {"multiplicity": "none"}),
        ("listed concepts", 4, 48, {"selection": "listed", "concepts": ("c0003", "c0007")}),
        ("another rate", 5, 48, {"fdr": 0.4, "min_sites": 6}),
        ("too few concepts to rank", 4, 20, {}),
        ("few enough to rank among all", 4, 22, {}),
        ("two sites", 2, 24, {}),
        ("one site", 1, 24, {}),
        ("lower is better", 5, 24, {"endpoints": (Endpoint("fvu", 0.5, True), Endpoint("transfer", 0.9))}),
        ("no endpoint can say", 2, 24, {"endpoints": (Endpoint("agreement", 0.5, True),)}),
    ],
)
def test_other_plans_and_sizes(tmp_path: Path, name: str, sites: int, n: int, plan: dict[str, Any]) -> None:
    files = made(tmp_path, sites, n, plan=PlanConfig(**plan))
    assert failed(audited(files)) == {}
    ranks = report_of(files)["concepts"]["columns"]["ablation_rank"]
    assert all(rank is None for rank in ranks) == (
        n < 21 or sites < 3
    )  # without three sites there is no target


class Silent(MadeStudy):
    """Sites of an older release: none gives what came later."""

    LEFT_OUT = (
        "recurrence",
        "confound",
        "auroc_adjusted",
        "code_half_class_mean",
        "concept_site",
        "auroc_shuffled",
        "ratings",
    )

    def step(self, kind: str, number: int, content: Any, base: str = "") -> None:
        """The same, without these tensors."""
        less = {
            site: {name: v for name, v in tensors.items() if not name.startswith(self.LEFT_OUT)}
            for site, tensors in content.items()
        }
        super().step(kind, number, less if kind in ("describe", "score") else content, base)


def test_evidence_that_no_site_gave_is_not_assessed(tmp_path: Path) -> None:
    files = Silent(tmp_path, SITES, n=30).build()
    assert failed(audited(files)) == {}
    marks = report_of(files)["concepts"]["gate_values"]
    assert all(set(marks[name]) == {-1} for name in ("naming", "recurrence", "shortcut", "confound"))


class Half(Silent):
    """The same of some sites only."""

    def step(self, kind: str, number: int, content: Any, base: str = "") -> None:
        """The first sites give everything, all at once."""
        whole = {site: dict(content[site]) for site in self.sites[:3]}
        for site in self.sites[3:]:
            whole[site] = {name: v for name, v in content[site].items() if not name.startswith(self.LEFT_OUT)}
        MadeStudy.step(self, kind, number, whole if kind in ("describe", "score") else content, base)


def test_evidence_of_some_sites_is_averaged_over_those(tmp_path: Path) -> None:
    files = Half(tmp_path, SITES, n=30).build()
    assert failed(audited(files)) == {}
    part = report_of(files)["concepts"]
    assert set(part["columns"]["recurrence_sites"]) - {None} <= {0, 1, 2, 3}
    assert {0, 1} <= set(part["gate_values"]["shortcut"])


def test_a_reply_that_is_not_in_the_bundle_is_not_checked(honest: Files) -> None:
    lost = next(
        path for path, data in sorted(honest.items()) if b'"kind":"score"' in data and "payloads" in path
    )
    verdict = audited(relisted({path: data for path, data in honest.items() if path != lost}))
    states = {check.name: check.state for check in verdict.checks}
    assert verdict.exit_code == 2 and states[CONCEPTS] == states[STATES] == "NOT CHECKED"


# One wrong value each


def put(path: str, value: Callable[[Any], Any]) -> Callable[[Fields], None]:
    """A change of the value at a path (keys and places, separated by /)."""

    def change(report: Fields) -> None:
        *keys, last = path.split("/")
        found: Any = report
        for key in keys:
            found = found[int(key)] if isinstance(found, list) else found[key]
        found[int(last) if isinstance(found, list) else last] = value(
            found[int(last) if isinstance(found, list) else last]
        )

    return change


def other(value: Any) -> Any:
    """Not this value, and nearly it when it is a number that is shown with digits."""
    if value is None:
        return 0.5
    return value * 1.002 + 0.0002 if isinstance(value, float) else value + 1


def flipped(mark: int) -> int:
    return 1 - abs(mark)


def swapped(report: Fields) -> None:
    """Two concepts of one state and verdict change places, with all that is said of them."""
    part = report["concepts"]
    status = [codes for table in part["tables"].values() for codes in table["status"].values()]
    tables = [site for table in part["tables"].values() for site in table["sites"].values()]
    columns = [*part["columns"].values(), *part["gate_values"].values(), *tables]
    for values in (*columns, *(codes for codes in status if isinstance(codes, list))):
        values[-1], values[-2] = values[-2], values[-1]


def renamed(report: Fields) -> None:
    report["concepts"]["columns"]["id"][3] = "c9999"


COLUMNS = (
    "q", "adjusted", "ablation", "ablation_rank", "recurrence_sites", "recurrence", "recurrence_init",
    "recurrence_null", "site_accuracy", "site_null", "site_share",
    "site_share_high", "site_share_null", "confound", "confound_of",
    "firing_rate", "mean", "estimate", "p", "review_raters", "review_term", "review_agreement",
)  # fmt: skip
GATES = ("support", "recurrence", "naming", "consistency", "prediction", "shortcut", "confound", "ablation")
CHANGES: dict[str, tuple[str, Callable[[Fields], None]]] = {
    **{f"concepts/columns/{name}/1": (CONCEPTS, put(f"concepts/columns/{name}/1", other)) for name in COLUMNS},
    **{f"concepts/gate_values/{name}/2": (STATES, put(f"concepts/gate_values/{name}/2", flipped)) for name in GATES},
    "concepts/gate_values/held_out/0": (STATES, put("concepts/gate_values/held_out/0", flipped)),
    "concepts/columns/replicated/0": (CONCEPTS, put("concepts/columns/replicated/0", lambda value: value - 0.1)),
    "concepts/columns/state/4": (STATES, put("concepts/columns/state/4", lambda state: 6)),
    "concepts/columns/row/47": (STATES, swapped),
    "concepts/columns/id": (CONCEPTS, renamed),
    "concepts/states": (STATES, put("concepts/states", lambda names: names[::-1])),
    "concepts/gate_values": (STATES, put("concepts/gate_values", lambda marks: {**marks, "luck": marks["support"]})),
    "concepts/tables/auroc/status/site-b": (
        CONCEPTS, put("concepts/tables/auroc/status/site-b", lambda status: 1 if status == 0 else 0),
    ),
    "agreement/replication/site-c/pairs": ("replication", put("agreement/replication/site-c/pairs", other)),
    "agreement/replication/site-c/replicated": ("replication", put("agreement/replication/site-c/replicated", other)),
    "agreement/replication/site-b/null": ("replication", put("agreement/replication/site-b/null", other)),
    "agreement/replication/site-b/se": ("replication", put("agreement/replication/site-b/se", other)),
    "agreement/replication": ("replication", lambda r: r["agreement"]["replication"].pop("site-d")),
    "agreement/holds_shuffled": ("replication", put("agreement/holds_shuffled", other)),
    "failures": (STATES, lambda r: r["failures"].pop()),
    "headlines/0/sites/site-a": ("headlines", lambda r: r["headlines"][0]["sites"].pop("site-a")),
    "headlines/0/status": ("headlines", put("headlines/0/status", lambda status: "not_estimable")),
    "headlines/0/threshold": ("headlines", put("headlines/0/threshold", lambda value: 0.1)),
    "headlines/0/probability_new_site": ("headlines", put("headlines/0/probability_new_site", lambda value: 1.0)),
    "headlines/0/influence/site-b": ("headlines", put("headlines/0/influence/site-b", other)),
    "headlines/1/sites/site-b/se": ("headlines", put("headlines/1/sites/site-b/se", other)),
    "headlines/1/i2": ("headlines", put("headlines/1/i2", lambda value: value + 0.01)),
    "headlines": ("headlines", lambda r: r["headlines"].reverse()),
    "experts/raters": ("experts", put("experts/raters", other)),
    "experts/sites": ("experts", lambda r: r["experts"]["sites"].pop()),
    "experts/status": ("experts", put("experts/status", lambda status: "not_assessed")),
    **{f"experts/{name}": ("experts", put(f"experts/{name}", other))
       for name in ("ac1/value", "ac1/n/concepts", "kappa", "alpha", "artefact", "unnamed")},
    "verdict/state": ("verdict", put("verdict/state", lambda state: "provisional")),
    "verdict/sentence": ("verdict", put("verdict/sentence", lambda text: text.replace("asked", "wished"))),
    "verdict/reason": ("verdict", put("verdict/reason", lambda text: "it does")),
    "verdict/worst_site": ("verdict", put("verdict/worst_site/site", lambda site: "nobody")),
    "verdict/caveats": ("verdict", lambda r: r["verdict"]["caveats"].pop()),
}  # fmt: skip


@pytest.mark.parametrize("name", CHANGES)
def test_one_wrong_value_is_found_where_it_stands(smaller: Files, name: str) -> None:
    where, change = CHANGES[name]
    report = report_of(smaller)
    change(report)
    verdict = audited(relisted({**smaller, "report.json": json.dumps(report).encode()}))
    found = failed(verdict)
    assert verdict.exit_code == 1 and name in found[where], found


def test_the_coordinator_may_sign_it(tmp_path: Path) -> None:
    """A report that was wrong when it was logged: nothing but arithmetic tells."""
    wrong = put("concepts/columns/q/1", other)
    assert failed(audited(made(tmp_path, report_edit=wrong))) == {
        CONCEPTS: "report.json concepts/columns/q/1"
    }


def test_what_nobody_recomputes_is_said(tmp_path: Path) -> None:
    def more(report: Fields) -> None:
        report["concepts"]["columns"]["beauty"] = report["concepts"]["columns"]["mean"]

    verdict = audited(made(tmp_path, 3, 24, report_edit=more))
    assert "Not recomputed: beauty." in next(check.text for check in verdict.checks if check.name == CONCEPTS)


# Parts


def test_q_values_are_those_of_the_report(rng_seed: int = 3) -> None:
    p = np.random.default_rng(rng_seed).random(500) ** 3
    p[::7], p[:20] = np.nan, p[20:40]
    found, expected = benjamini_hochberg(p.tolist()), multiplicity.benjamini_hochberg(p)
    np.testing.assert_allclose(found, expected, rtol=1e-14)
    assert all(math.isnan(q) for q in benjamini_hochberg([math.nan] * 3)) and benjamini_hochberg([]) == []


@pytest.mark.parametrize("sites", [3, 4, 5, 10, 30])
def test_tiny_p_values_keep_their_digits(sites: int) -> None:
    """A report could move a p-value of 1e-9 to 1e-12 unseen if the auditor had none of its digits."""
    for auroc in (0.5, 0.52, 0.6, 0.9, 0.999):
        aurocs, errors = [auroc] * sites, [0.01] * sites
        inside = auroc * (1 - auroc)
        t = math.log(auroc / (1 - auroc)) / (0.01 / inside / math.sqrt(sites))
        assert p_of(aurocs, errors) == pytest.approx(2 * student.sf(t, sites - 1), rel=1e-9)
        assert concept_of(aurocs, errors)["p"] == p_of(aurocs, errors)


def test_ranks_leave_the_concept_itself_and_unknown_ones_out() -> None:
    table, rates = [float(row) for row in range(30)], [1.0] * 30
    assert ablation_ranks(table, 1, [0] * 30, rates) == [pytest.approx(row / 29) for row in range(30)]
    table[3] = math.nan
    found = ablation_ranks(table, 1, [0] * 29 + [-1], rates)
    assert math.isnan(found[3]) and math.isnan(found[29]) and found[28] == pytest.approx(27 / 28)


def test_order_forgives_the_last_digit_only() -> None:
    keys = [(5, 0, 0.4, 9), (5, 0, 0.3, 2), (5, 0, 0.3 + 1e-16, 1), (5, 1, 0.4, 3), (2, 0, 0.4, 4)]
    assert first_unsorted(keys) == -1
    for place, worse in ((1, (5, 0, 0.41, 2)), (1, (6, 3, 0.0, 2)), (3, (5, 1, 0.4, 5)), (4, (2, 0, 0.4, 2))):
        broken = [*keys[:place], worse, *keys[place + 1 :]]
        if place == 3:
            broken[4] = (5, 1, 0.4, 4)
        elif place == 4:
            broken.insert(4, (2, 0, 0.4, 7))
        assert first_unsorted(broken) > 0, worse
