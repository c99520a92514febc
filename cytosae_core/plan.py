"""The analysis plan of a study: signed with the protocol before any site computes, printed in every report.

It says which numbers decide, against which thresholds, on how many sites and units, and what has to pass before the
study's next stage opens.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from .errors import StudyError

ENDPOINTS = {
    "transfer": "balanced accuracy at a site left out, from standardised concept codes",
    "transfer_gain": "the same minus that of raw embeddings",
    "replication": "share of meanings chosen at the other sites that hold at the site left out",
    "agreement": "correlation of class meanings between a site and the others",
    "fvu": "share of the variance that the dictionary leaves unexplained",
    "site_readable": "how often a cell's site can be told within its class (.5 is chance)",
}
# Where a threshold can lie; outside nothing could ever pass, or nothing fail.
RANGES = {
    "transfer": (0.0, 1.0),
    "transfer_gain": (-1.0, 1.0),
    "replication": (0.0, 1.0),
    "agreement": (-1.0, 1.0),
    "fvu": (0.0, 10.0),
    "site_readable": (0.0, 1.0),
}
# Fewest sites that can have a value at all: a criterion on fewer could never be met.
NEEDS = {"transfer": 2, "transfer_gain": 2, "replication": 2, "agreement": 3, "fvu": 1, "site_readable": 2}
HIGHER_IS_BETTER = {name: name not in ("fvu", "site_readable") for name in ENDPOINTS}
STAGES = ("poc", "review", "external")
MULTIPLICITY = ("benjamini-hochberg", "none")
SELECTIONS = ("loso", "listed")
MAX_CONCEPTS = 10
_CONCEPT = re.compile(r"c\d{4,7}")
# One sentence: no control characters, so that a printed protocol shows all that was signed.
_SENTENCE = re.compile(r"[^\x00-\x1f\x7f-\x9f\u200b-\u200f\u2028-\u202e\u2066-\u2069]{0,500}")


@dataclass(frozen=True)
class Endpoint:
    """A number that decides: `name` of `ENDPOINTS`, met when its interval's nearer end reaches `threshold`
    (from above for endpoints where higher is better, else from below). `primary`: it makes the verdict."""

    name: str
    threshold: float
    primary: bool = False


@dataclass(frozen=True)
class Criterion:
    """A condition for leaving a stage: the pooled value of an endpoint reaches `threshold`, with `sites` or more."""

    endpoint: str
    threshold: float
    sites: int = 1


@dataclass(frozen=True)
class Stage:
    """A stage of the study: the sites that take part, and what must hold before the next one opens."""

    name: str
    sites: tuple[str, ...] = ()
    criteria: tuple[Criterion, ...] = ()

    def check_size(self, count: int) -> None:
        """Raise StudyError when a criterion can never be met by `count` sites."""
        for item in self.criteria:
            needed = max(item.sites, NEEDS[item.endpoint])
            if item.sites < 1 or needed > count:
                raise StudyError(
                    f"Expected stage={self.name} with {needed} or more sites for its criterion on {item.endpoint}, "
                    f"got {count}.",
                    hint="Such a criterion can never be met. One site can be judged by fvu only.",
                )


@dataclass(frozen=True)
class PlanConfig:
    """What was agreed before the first number.

    Attributes:
        hypothesis: one sentence.
        endpoints: the numbers that decide; exactly one is primary when there are any.
        selection: whose meanings are counted: all concepts, chosen inside each fold (`loso`), or only those `listed`.
        concepts: primary concepts (`c0042`), for `listed`; at most 10.
        support: smallest number of units per class and site for a number to count towards a macro score.
        min_sites: sites below which nothing is called generalising.
        fdr: false discovery rate over concepts and classes.
        stages: in order; empty: one stage with all sites.
    """

    hypothesis: str = ""
    endpoints: tuple[Endpoint, ...] = (
        Endpoint("replication", 0.5, True),
        Endpoint("transfer", 0.5),
        Endpoint("agreement", 0.3),
        Endpoint("fvu", 0.5),
    )
    selection: str = "loso"
    concepts: tuple[str, ...] = ()
    support: int = 11
    min_sites: int = 5
    fdr: float = 0.05
    multiplicity: str = "benjamini-hochberg"
    stages: tuple[Stage, ...] = ()

    def __post_init__(self) -> None:
        self._check_names()
        checks: dict[str, Any] = {
            "plan.endpoints with exactly one primary": sum(item.primary for item in self.endpoints) == 1,
            "plan.endpoints without repeats": len({e.name for e in self.endpoints}) == len(self.endpoints),
            "plan.hypothesis of at most 500 printable characters": bool(_SENTENCE.fullmatch(self.hypothesis)),
            "plan.concepts of at most 10, without repeats": len(self.concepts) <= MAX_CONCEPTS
            and len(set(self.concepts)) == len(self.concepts),
            "plan.concepts exactly when selection=listed": bool(self.concepts)
            == (self.selection == "listed"),
            "plan.support >= 2": self.support >= 2,
            "plan.min_sites >= 5": self.min_sites >= 5,
            "plan.fdr in 0 .. 0.5": 0 < self.fdr <= 0.5,
            "plan.stages in order poc, review, external": self._stages_in_order(),
            "plan.stages with different sites": all(len(set(s.sites)) == len(s.sites) for s in self.stages),
        }
        for name, fits in checks.items():
            if not fits:
                raise StudyError(f"Expected {name}.", hint="See docs/study.md, section plan.")

    def _check_names(self) -> None:
        asked = [item.name for item in self.endpoints]
        asked += [item.endpoint for stage in self.stages for item in stage.criteria]
        for name in asked:
            if name not in ENDPOINTS:
                raise StudyError(f"Expected an endpoint in {sorted(ENDPOINTS)}, got {name!r}.")
        self._check_thresholds()
        if self.multiplicity not in MULTIPLICITY or self.selection not in SELECTIONS:
            raise StudyError(
                f"Expected plan.multiplicity in {MULTIPLICITY} and plan.selection in {SELECTIONS}."
            )
        if any(not _CONCEPT.fullmatch(name) for name in self.concepts):
            raise StudyError(
                "Expected plan.concepts as c0042.", hint="Numbers are rows of the frozen dictionary."
            )

    def _check_thresholds(self) -> None:
        asked = [(item.name, item.threshold) for item in self.endpoints]
        for stage in self.stages:
            asked += [(item.endpoint, item.threshold) for item in stage.criteria]
            if stage.sites:
                stage.check_size(len(stage.sites))
        for name, value in asked:
            low, high = RANGES[name]
            if not low <= value <= high:  # also refuses NaN
                raise StudyError(f"Expected a threshold of {name} in {low:g} .. {high:g}, got {value}.")

    def _stages_in_order(self) -> bool:
        names = [stage.name for stage in self.stages]
        return names == [name for name in STAGES if name in names]

    @property
    def primary(self) -> Endpoint:
        """The endpoint that makes the verdict."""
        return next(item for item in self.endpoints if item.primary)

    def stage(self, name: str) -> Stage:
        """The stage of this name; StudyError when the plan has none."""
        for item in self.stages:
            if item.name == name:
                return item
        raise StudyError(f"Expected a stage in {[item.name for item in self.stages]}, got {name!r}.")


@dataclass(frozen=True)
class Finding:
    """One criterion against a report: what was asked, what was found, whether it is met, and why not."""

    criterion: Criterion
    value: float | None
    sites: int
    status: str
    met: bool
    reason: str

    @property
    def asked(self) -> str:
        """The criterion in words."""
        asked = "at least" if HIGHER_IS_BETTER[self.criterion.endpoint] else "at most"
        count = self.criterion.sites
        return (
            f"{self.criterion.endpoint} {asked} {self.criterion.threshold:g} from {count} {sites_word(count)}"
        )

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        return {
            "endpoint": self.criterion.endpoint, "threshold": self.criterion.threshold,
            "sites_needed": self.criterion.sites, "asked": self.asked, "value": self.value, "sites": self.sites,
            "status": self.status, "met": self.met, "reason": self.reason or None,
        }  # fmt: skip


def sites_word(count: int) -> str:
    """`site` or `sites`."""
    return "site" if count == 1 else "sites"


def check_criteria(stage: Stage, report: Mapping[str, Any]) -> list[Finding]:
    """Every criterion of a stage against its report.json (`headlines`): the pooled value, from enough sites.

    With fewer than 3 sites a headline has no interval and its status is `not_estimable`; its value is then the mean
    of the sites, which is what a stage of one site is judged by. Values are compared as printed, without intervals.
    """
    given = report.get("headlines")
    headlines = {
        part.get("id"): part
        for part in (given if isinstance(given, list) else [])
        if isinstance(part, Mapping)
    }
    return [_finding(item, headlines.get(item.endpoint, {})) for item in stage.criteria]


def _finding(criterion: Criterion, headline: Mapping[str, Any]) -> Finding:
    value, status = headline.get("value"), str(headline.get("status", "not_assessed"))
    count = headline.get("n") or {}
    sites = int(count.get("sites") or 0) if isinstance(count, Mapping) else 0
    known = float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None
    reason = ""
    if known is None or known != known:
        known, reason = None, str(headline.get("reason") or "the report has no value")
    elif sites < criterion.sites:
        reason = f"only {sites} {sites_word(sites)} have it"
    elif not reaches(criterion.endpoint, known, criterion.threshold):
        reason = "the value does not reach it"
    return Finding(criterion, known, sites, status, not reason, reason)


def reaches(endpoint: str, value: float, threshold: float) -> bool:
    """Whether `value` is on the good side of `threshold`."""
    return value >= threshold if HIGHER_IS_BETTER[endpoint] else value <= threshold
