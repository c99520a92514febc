"""The released numbers, read once and site by site: what every part of the report is computed from. numpy only.

Tables of [n, ...] per site either go to disk (`stacks.Stack`, read back by rows of all sites) or into sums over sites
(`Means`): memory does not grow with the number of sites, but for firing rates (4 bytes per site and concept).
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..config import IMAGE_FACTS, StudyConfig
from .inputs import Comparators, StudyResult, quality_dict
from .means import Means, Recurrence
from .site_variance import SiteVariance
from .stacks import Stack, block_rows

Array = NDArray[Any]
Json = dict[str, Any]
DESCRIBED = ("reliability", "same_site_null", "image_facts", "image_histogram", "quality", "fvu_se")
SCORED = (
    "balanced_accuracy",
    "balanced_accuracy_se",
    "calibration",
    "coverage",
    "subgroup",
    "site_recall",
)
ALL_PAIRS = 12  # more sites than this: each is compared with its next two in the protocol's order only


class Evidence:
    """A study's result, ready to be computed with.

    Attributes:
        sites: sites with final tables, in the protocol's order.
        rates: firing rates [sites, n] float32, NaN where suppressed.
        small: site -> small tensors of its description. scores: site -> small tensors of its scores.
        adjusted [n, t], confound [n, i], ablation [n, c], site_accuracy [n], site_null [n]: means over the sites
            that released them, None when no site did.
        recurrence: counts and means over sites of the nearest row of a site's own dictionary; None: not asked for.
        votes: [n, terms] experts' votes, summed over sites; None when no site held a review. raters: site -> most
            votes for one concept.
        shares: share of a concept's variance within a class that is between sites, its upper limit and its null
            (`site_variance`); None when no site released the halves.
    """

    def __init__(
        self,
        study: StudyConfig,
        result: StudyResult,
        comparators: Comparators | None = None,
        *,
        encoder_depth: int = 12,
        canary_tolerance: float = 0.0,
    ) -> None:
        self.study, self.result, self.comparators = study, result, comparators
        self.depth, self.tolerance = encoder_depth, canary_tolerance
        self.final = result.describe.get("final", {})
        self.sites = [site for site in study.sites if site in frozenset(self.final)]
        self.n, self.t = study.dictionary.n, len(study.targets)
        self.block = block_rows(len(self.sites), self.n, max(self.t, 1))
        self._stacks: dict[tuple[str, str], Stack] = {}
        self._qualities: dict[tuple[str, str], Array] = {}
        # Asking a table on disk whether it holds a site reads that site's whole reply.
        self._answered = {which: frozenset(tables) for which, tables in result.describe.items()}
        self.rates = np.full((len(self.sites), self.n), np.nan, np.float32)
        self.small: dict[str, dict[str, Array]] = {}
        self.raters: dict[str, int] = {}
        self.scores: dict[str, dict[str, Array]] = {}
        self._read_final()
        self._read_scores()

    def _read_final(self) -> None:
        """One look at every site's final tables."""
        means = {"auroc_adjusted": Means(), "confound": Means()}
        recurrence, variance = Recurrence(), SiteVariance()
        self.votes: Array | None = None
        names = ("auroc", "auroc_se", "auroc_shuffled")
        stacks = {name: self._stack("final", name) for name in names}
        halves = 0
        for index, site in enumerate(self.sites):
            table = self.final[site]
            self.rates[index] = table["firing_rate"]
            self.small[site] = {name: table[name] for name in DESCRIBED if name in table}
            for name, stack in stacks.items():
                if name in table:
                    stack.put(index, table[name])
            for name, total in means.items():
                total.add(table.get(name))
            recurrence.add(table)
            self._add_votes(site, table)
            halves += _add_halves(variance, table)
        self.adjusted, self.confound = (means[name].value for name in ("auroc_adjusted", "confound"))
        self.recurrence = recurrence if recurrence.sites else None
        self.shares = variance.shares() if halves else None

    def _add_votes(self, site: str, table: Mapping[str, Array]) -> None:
        """Experts' votes of one site onto those of all."""
        if "ratings" not in table:
            return
        votes = np.nan_to_num(table["ratings"]).round().astype(np.int64)
        self.votes = votes if self.votes is None else self.votes + votes
        if votes.any():
            self.raters[site] = int(votes.sum(axis=1).max())

    def _read_scores(self) -> None:
        """One look at every site's scores."""
        means = {name: Means() for name in ("ablation", "concept_site", "concept_site_null")}
        scored = frozenset(self.result.scores)
        for site in (name for name in self.study.sites if name in scored):
            table = self.result.scores[site]
            self.scores[site] = {name: table[name] for name in SCORED if name in table}
            for name, total in means.items():
                total.add(table.get(name))
        self.ablation = means["ablation"].value
        self.site_accuracy, self.site_null = means["concept_site"].value, means["concept_site_null"].value

    def _stack(self, which: str, name: str) -> Stack:
        made = Stack(len(self.sites), self.n, self.t, self.result.scratch, self.block)
        self._stacks[which, name] = made
        return made

    def stack(self, which: str, name: str) -> Stack:
        """A table [sites, n, t] of one dictionary (`final`, `init`, `random`); all NaN where it was not described."""
        if (which, name) not in self._stacks:
            self._read_control(which)
        return self._stacks[which, name]

    def _read_control(self, which: str) -> None:
        """One look at every site's tables of a control dictionary."""
        tables = self.result.describe.get(which, {})
        made = {name: self._stack(which, name) for name in ("auroc", "auroc_se")}
        for index, site in enumerate(self.sites):
            table = tables[site] if site in self._answered.get(which, ()) else {}
            if "quality" in table:
                self._qualities[which, site] = table["quality"]
            for name, stack in made.items():
                if name in table:
                    stack.put(index, table[name])

    def spans(self) -> list[tuple[int, int]]:
        """Blocks of rows that all stacks are read in."""
        return self._stacks["final", "auroc"].spans() if self.sites and self.t else []

    def effects(self, start: int, stop: int, name: str = "auroc") -> Array:
        """AUROC - 1/2 of one block of rows, [sites, rows, t], NaN where suppressed."""
        return self.stack("final", name).rows(start, stop) - 0.5

    def errors(self, start: int, stop: int) -> Array:
        """Standard errors of the AUROC of one block of rows, [sites, rows, t]."""
        return self.stack("final", "auroc_se").rows(start, stop)

    def pairs(self) -> list[tuple[int, int]]:
        """Pairs of sites that are compared: all, or of many sites each with its next two."""
        count = len(self.sites)
        if count <= ALL_PAIRS:
            return list(combinations(range(count), 2))
        return sorted(
            {(min(a, b), max(a, b)) for a in range(count) for b in ((a + 1) % count, (a + 2) % count)}
        )

    @property
    def finished(self) -> frozenset[str]:
        """Sites that answered the study's last step: probes, or under `dp`, which has none, statistics."""
        last = self.result.describe.get("final", {}) if self.study.profile == "dp" else self.scores
        return frozenset(last)

    def quality(self, which: str, site: str) -> dict[str, float | None]:
        """Named quality numbers of one dictionary at one site; empty when it did not answer."""
        if which == "init" and self.study.profile == "dp":
            return quality_dict(self.result.begin[site]) if site in self.result.begin else {}
        if site not in self._answered.get(which, ()):
            return {}
        if which == "final" and site in self.small:
            return quality_dict(self.small[site]["quality"])
        if (which, site) not in self._qualities:
            self._qualities[which, site] = self.result.describe[which][site]["quality"]
        return quality_dict(self._qualities[which, site])

    def supported(self, site: str) -> list[str]:
        """Classes of a site with at least `plan.support` units (rounded); a withheld class has none."""
        own = self.result.class_units.get(site, ())
        classes = self.study.statistics.classes if len(own) else ()
        return [name for name, count in zip(classes, own, strict=True) if count >= self.study.plan.support]

    def fact_means(self) -> dict[str, Array]:
        """Per picture fact its mean at every site, [sites], NaN where unknown."""
        out = {name: np.full(len(self.sites), np.nan) for name in IMAGE_FACTS}
        for index, site in enumerate(self.sites):
            found = self.small[site].get("image_facts")
            for row, name in enumerate(IMAGE_FACTS if found is not None else ()):
                out[name][index] = float(found[row, 0])  # type: ignore[index]
        return out


def _add_halves(variance: SiteVariance, table: Mapping[str, Array]) -> int:
    names = ("code_class_mean", "code_half_class_mean", "code_class_var")
    if not all(name in table for name in names):
        return 0
    variance.add(*(table[name] for name in names))
    return 1


def rounded(value: Any) -> float | None:
    """4 significant digits, or None for NaN."""
    return None if value is None or np.isnan(value) else float(f"{float(value):.4g}")


def named(names: tuple[str, ...], values: Array) -> dict[str, float | None]:
    """Rounded values by name; names beyond the values (of an older site) are None."""
    known = dict(zip(names, values, strict=False))
    return {name: rounded(known.get(name)) for name in names}


def mean_of(values: list[float | None] | list[float]) -> float | None:
    """Mean of the known values, None when there is none."""
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None
