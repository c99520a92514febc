"""Bundles of studies with every kind of evidence, from made-up statistics of any size: no images, no training."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from benchmarks.made_studies import describe, hello, made_study, score, true_effects
from cytosae_core.allowed import ALLOWED
from cytosae_core.config import StudyConfig
from cytosae_core.plan import PlanConfig
from tests.bundles import Study

WITHHELD = 0.03  # of the values of every table


@dataclass
class MadeStudy(Study):
    """A study of a frozen dictionary in which every site gives all that the table of what may leave lists.

    Args:
        plan: of the study.
    """

    plan: PlanConfig = field(default_factory=PlanConfig)
    metrics: Sequence[str] = tuple(sorted({field.name for field in ALLOWED} - {"delta", "fired"}))

    def agreed(self) -> StudyConfig:
        """The protocol."""
        made = made_study(len(self.sites), self.n, d=2)
        return replace(made, name="tiny", sites=tuple(self.sites), kind="validate", plan=self.plan)

    def _hello(self, site: str) -> dict[str, np.ndarray]:
        return hello(self.config, self.rng, self.sites.index(site))

    def evaluate(self, final: str) -> None:
        """The final dictionary, random rows, and scores."""
        truth = true_effects(self.config, self.rng)
        self.step("describe", 0, {site: self._full(site, truth) for site in self.sites}, final)
        plain = {site: describe(self.config, 0 * truth, self.rng, False) for site in self.sites}
        self.step("describe", 1, plain, "0" * 64)
        self.step("score", 0, {site: self._scores(place) for place, site in enumerate(self.sites)}, final)

    def _full(self, site: str, truth: np.ndarray) -> dict[str, np.ndarray]:
        """One site's final tables: some concepts follow the site, a fact of the picture, or the size of the cell."""
        out, rng = describe(self.config, truth, self.rng, True), self.rng
        shape = out["code_class_mean"].shape
        apart = rng.normal(0, 0.3, shape) * (np.arange(self.n) % 3 == 0)
        noise = rng.normal(0, 0.02, shape)
        out["code_class_mean"] = (1 + apart).astype(np.float32)
        out["code_half_class_mean"] = (1 + apart + noise).astype(np.float32)
        follows = np.where(np.arange(self.n) % 4 == 1, 0.7, 0.1)[:, None]
        out["confound"] = (follows + rng.normal(0, 0.05, out["confound"].shape)).astype(np.float32)
        left = np.where(np.arange(self.n) % 8 == 1, 0.2, 1.0)[:, None]
        out["auroc_adjusted"] = (0.5 + left * (out["auroc"] - 0.5)).astype(np.float32)
        out["recurrence_init"] = rng.uniform(0.3, 0.9, self.n).astype(np.float32)
        out["ratings"] = self._votes(site)
        return {name: self._withheld(name, values) for name, values in out.items()}

    def _votes(self, site: str) -> np.ndarray:
        """Four raters a site; every third concept was looked at, the first site saw fewer; most see the same term."""
        rng, terms = self.rng, self.config.dims["r"]
        out = np.full((self.n, terms), np.nan, np.float32)
        for row in range(0, self.n, 6 if site == self.sites[0] else 3):
            shown = row % 5 if row % 9 else terms - 4  # now and then an artefact
            out[row] = np.bincount(
                np.where(rng.random(4) < 0.7, shown, rng.integers(0, terms, 4)), minlength=terms
            )
        return out

    def _scores(self, place: int) -> dict[str, np.ndarray]:
        out = score(self.config, self.rng, place)
        return {name: self._withheld(name, values) for name, values in out.items()}

    def _withheld(self, name: str, values: np.ndarray) -> np.ndarray:
        if name.startswith(("auroc", "balanced", "calibration", "image", "quality", "embedding", "ratings")):
            return values
        few = self.rng.random(values.shape) < (WITHHELD if values.size > self.n // 2 else 0.0)
        return np.where(few, np.float32(np.nan), values)
