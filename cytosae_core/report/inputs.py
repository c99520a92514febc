"""What a report is computed from: the study's own numbers, as the coordinator received them. numpy only."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..config import QUALITY

Array = NDArray[Any]
Tables = Mapping[str, Mapping[str, Array]]  # site -> tensor name -> values as released


@dataclass
class RoundRecord:
    """One round: quality of the dictionary it started from per site, bytes received, faults by site."""

    round: int
    quality: dict[str, Array]
    bytes: int
    faults: dict[str, str]


@dataclass
class Comparators:
    """Only in simulations, where one machine holds all tokens. FVU about the federated mean, per site.

    `other_seed` holds the final and first dictionary of a second federation that differs in its seed only.
    """

    pooled: dict[str, float] = field(default_factory=dict)
    pooled_total: float | None = None
    local_only: dict[str, dict[str, float]] = field(default_factory=dict)
    pca: dict[str, float] = field(default_factory=dict)
    other_seed: tuple[Array, Array] | None = None
    other_seed_number: int = 0


@dataclass
class StudyResult:
    """Everything the coordinator knows after the last step.

    Attributes:
        facts: site -> what it said in hello.
        counts: site -> released counts (`config.COUNTS`, then classes), NaN when suppressed.
        class_units: site -> released units of each class, NaN when suppressed.
        listed: site -> images that its table lists, NaN when suppressed; sites that do not say are left out.
        canary_difference: largest relative difference of golden-cell features between sites.
        begin: site -> quality of the first dictionary.
        rounds: one record per round.
        describe: `final`, `init`, `random` -> site -> tables.
        scores: site -> what it answered to `score`; may be read from disk on demand, like `describe`.
        first, final: dictionaries [n, d].
        received: site -> message kind -> [messages, bytes].
        faults: (site, step, code) of everything that did not answer.
        suppressed: site -> values withheld, by tensor, summed over messages.
        leaves: site -> message kind -> indices of the coordinator's log entries of what arrived.
        log: size and root (hex) of that log when the last number had arrived; None when nothing was logged.
        stage: name of the plan's stage that was open, if any.
        deviations: what was done otherwise than the protocol says: {at, what, why}, oldest first.
        scratch: folder on a disk for tables of large studies; None: the system's folder for temporary files.
    """

    facts: dict[str, dict[str, str]] = field(default_factory=dict)
    counts: dict[str, Array] = field(default_factory=dict)
    class_units: dict[str, Array] = field(default_factory=dict)
    listed: dict[str, float] = field(default_factory=dict)
    canary_difference: float = 0.0
    begin: dict[str, Array] = field(default_factory=dict)
    rounds: list[RoundRecord] = field(default_factory=list)
    describe: dict[str, Tables] = field(default_factory=dict)
    scores: Tables = field(default_factory=dict)
    first: Array = field(default_factory=lambda: np.zeros((0, 0), np.float32))
    final: Array = field(default_factory=lambda: np.zeros((0, 0), np.float32))
    received: dict[str, dict[str, list[int]]] = field(default_factory=dict)
    faults: list[tuple[str, str, str]] = field(default_factory=list)
    suppressed: dict[str, dict[str, int]] = field(default_factory=dict)
    leaves: dict[str, dict[str, list[int]]] = field(default_factory=dict)
    log: tuple[int, str] | None = None
    stage: str | None = None
    deviations: list[dict[str, str]] = field(default_factory=list)
    scratch: Path | None = None

    def take_counts(self, hello: Tables) -> None:
        """What sites count in `hello`; what a site does not tell is left out."""
        for site in sorted(hello):
            tensors = hello[site]
            if "counts" in tensors:
                self.counts[site] = tensors["counts"]
            if "class_units" in tensors:
                self.class_units[site] = tensors["class_units"]
            if "listed" in tensors:
                self.listed[site] = float(tensors["listed"][0])


def quality_dict(values: Array) -> dict[str, float | None]:
    """Named quality numbers plus fvu (about the federated mean) and fvu_own_mean; None when suppressed."""
    named: dict[str, float | None] = {
        name: None if np.isnan(value) else float(value) for name, value in zip(QUALITY, values, strict=True)
    }
    sse, total, own = named["sse"], named["ss_global"], named["ss_own"]
    named["fvu"] = sse / total if sse is not None and total else None
    named["fvu_own_mean"] = sse / own if sse is not None and own else None
    return named


def total_fvu(qualities: dict[str, Array]) -> float | None:
    """FVU over sites: mean over sites of FVU about the federated mean (every site counts the same)."""
    values = [quality_dict(value)["fvu"] for value in qualities.values()]
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None
