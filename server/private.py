"""The coordinator's side of a study under the profile `dp`: noised sums in, added concepts out. Pure, numpy only.

What it computes from the replies is redone by `cytosae audit replay`, from the same functions.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cytosae_core.config import StudyConfig
from cytosae_core.privacy.moments import Subspace, residual_atoms, subspace, tensor_atoms, third_size
from cytosae_core.privacy.plan import PrivacyPlan
from cytosae_core.privacy.secagg_wire import SUMS, shares_of, study_grid
from cytosae_core.report.inputs import StudyResult, Tables

Array = NDArray[Any]
EMPTY = Subspace(np.zeros((0, 0)), np.zeros(0))


@dataclass(frozen=True)
class Total:
    """A noised sum [m] in units of the grid, over `sites` sites."""

    values: NDArray[np.int64]
    sites: int


def added_up(tables: Tables, kind: str) -> Total | None:
    """The sum of what every site sent in the open; None when nobody did."""
    parts = [tables[site][f"{kind}_moment"] for site in sorted(tables)]
    return Total(np.asarray(np.sum(parts, axis=0)), len(parts)) if parts else None


def space_of(study: StudyConfig, total: Total) -> Subspace:
    """The subspace of the residual from the second moment [d (d+1)/2]; rank 0: only noise is to be seen."""
    plan = study.privacy.plan("second", study.layout)
    noise = plan.noise_multiplier * plan.clip_norm * _noises(study, total.sites)
    return subspace(_numbers(study, plan, total), study.encoder.d, noise, _patients(study, total.sites))


def with_added(study: StudyConfig, rows: Array, space: Subspace, total: Total | None) -> Array:
    """The public rows and behind them the added ones, [n, d] float32; rows that were not found stay zero.

    Args:
        rows: [n - atoms, d] of the start file. total: of the third moment, padded.
    """
    out = np.zeros((study.dictionary.n, study.encoder.d), np.float32)
    out[: len(rows)] = rows
    if space.rank and total is not None:
        plan = study.privacy.plan("third", study.layout, space.rank)
        packed = _numbers(study, plan, total)[: third_size(space.rank)]
        noise = plan.noise_multiplier * _noises(study, total.sites)
        tensor = tensor_atoms(packed, space, noise, plan.clip_norm, _patients(study, total.sites))
        found = residual_atoms(space, tensor, np.zeros((0, study.encoder.d)))[: study.privacy.atoms]
        out[len(rows) : len(rows) + len(found)] = found
    return out


def added_rows(study: StudyConfig, rows: Array, totals: Mapping[str, Total | None]) -> tuple[Array, Array]:
    """First and last dictionary of a finished study, from its sums again."""
    if study.kind != "train":
        return np.zeros((0, 0), np.float32), rows
    second, third = (totals.get(kind) for kind in SUMS)
    space = as_received(space_of(study, second)) if second is not None else EMPTY
    return with_added(study, rows, EMPTY, None), with_added(study, rows, space, third)


def as_sent(space: Subspace) -> dict[str, Array]:
    """The subspace as tensors of a request."""
    return {"basis": space.basis.astype(np.float32), "values": space.values.astype(np.float32)}


def as_received(space: Subspace) -> Subspace:
    """The subspace that sites computed with: the tensors of `as_sent`."""
    sent = as_sent(space)
    return Subspace(sent["basis"].astype(np.float64), sent["values"].astype(np.float64))


def take_private(result: StudyResult, tables: Tables) -> None:
    """Counts and the public rows' quality, which come noised with the statistics."""
    for site in sorted(tables):
        table = tables[site]
        result.counts[site], result.class_units[site] = table["counts"], table["class_units"]
        result.begin[site] = table["quality_init"]


def _numbers(study: StudyConfig, plan: PrivacyPlan, total: Total) -> NDArray[np.float64]:
    return np.asarray(total.values.astype(np.float64) * study_grid(study, plan))


def _noises(study: StudyConfig, sites: int) -> float:
    """Standard deviation of the sum's noise over that of one release: every site adds its own, or a share of one."""
    return math.sqrt(sites / shares_of(study))


def _patients(study: StudyConfig, sites: int) -> float:
    """A public constant to divide by: the fewest patients that these sites can have."""
    return float(study.privacy.patients * sites)
