"""What a site withheld can't be worked out from the report's own tables."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tests.federation as federation
from cytosae_client.site import Site
from cytosae_core.report.build import build_report

RARE, SITE, PATIENTS = "monocyte", "site-0", 40


class Pictured(federation.FakeStore):
    """A store with facts of its pictures: most are dark, a few patients' are bright."""

    def image_facts(self) -> np.ndarray:
        rng = np.random.default_rng(0)
        facts = rng.normal(0.3, 0.02, (self.n_images, 4))
        facts[:8, 0] = 0.92
        return facts.astype(np.float32)

    def colours(self) -> np.ndarray:
        return np.full((self.n_images, 64), 1 / 64, np.float32)


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Of three sites; four patients of the first one have the rare class."""
    plain = federation.make_site

    def made(name: str, home: Path, policy: Any, *, seed: int) -> Site:
        site = plain(name, home, policy, seed=seed, patients=PATIENTS)
        labels = list(site.labels)
        if name == SITE:
            labels = ["neutrophil" if label == RARE else label for label in labels]
            labels[:8] = [RARE] * 8
        store = Pictured(site.store.tokens(0, site.store.n_images))
        values = {**vars(site), "labels": labels, "store": store}
        return Site(**values)

    federation.make_site = made
    try:
        here = federation.Federation(tmp_path_factory.mktemp("few"))
        found = dict(build_report(here.study, here.run().result))
    finally:
        federation.make_site = plain
    return json.loads(json.dumps(found))  # type: ignore[no-any-return]


def test_the_rare_class_is_withheld_at_its_site(report: dict[str, Any]) -> None:
    site = report["sites"][SITE]
    assert site["status"] == "reported" and site["classes"][RARE] is None


def test_no_count_follows_from_a_total_and_the_other_parts(report: dict[str, Any]) -> None:
    checked = 0
    for site in report["sites"].values():
        for total, parts in (
            ("images", site["classes"].values()),
            ("units", (site["train_units"], site["test_units"])),
        ):
            hidden = sum(part is None for part in parts)
            if hidden:
                assert hidden >= 2 or site[total] is None
                checked += 1
    assert checked


def test_no_bin_follows_from_the_number_of_patients_and_the_other_bins(report: dict[str, Any]) -> None:
    checked = 0
    for entry in report["acquisition"].values():
        for bins in (entry["histogram"] or {}).values():
            hidden = sum(value is None for value in bins)
            assert hidden != 1 and all(value is None or value >= 10 for value in bins)
            checked += 1
    assert checked >= 4


def test_no_mean_over_sites_holds_a_withheld_value(report: dict[str, Any]) -> None:
    """Means over sites are of values that stand in the report: the difference to them is nothing."""
    concepts, checked = report["concepts"], 0
    tables = concepts["tables"]["auroc"]["sites"]
    for place, mean in enumerate(concepts["columns"]["mean"]):
        known = [values[place] for values in tables.values() if values[place] is not None]
        if mean is not None and known:
            assert mean == pytest.approx(np.mean(known), abs=2e-3)
            checked += 1
    assert checked


def test_nothing_is_said_of_the_rare_class_at_its_site(report: dict[str, Any]) -> None:
    place = report["concepts"]["targets"].index(RARE)
    columns = report["concepts"]["columns"]
    rows = [row for row, target in enumerate(columns["target"]) if target == place]
    values = report["concepts"]["tables"]["auroc"]["sites"][SITE]
    assert all(values[row] is None for row in rows)
    numbers = report["calibration"].get(SITE, {}).get(RARE, {}) or {}
    assert all(value is None for value in numbers.values())
