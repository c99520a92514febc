"""The coordinator's side of a study under the profile `dp`: noised sums in, added concepts out. Pure, numpy only.

What it computes from the replies is redone by `cytosae audit replay`, from the same functions.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cytosae_core.config import StudyConfig
from cytosae_core.privacy.moments import Subspace, residual_atoms, subspace, tensor_atoms, third_size
from cytosae_core.privacy.noise import grid_for
from cytosae_core.privacy.plan import PrivacyPlan
from cytosae_core.report.inputs import StudyResult, Tables

Array = NDArray[Any]
EMPTY = Subspace(np.zeros((0, 0)), np.zeros(0))


def space_of(study: StudyConfig, totals: Mapping[str, Array]) -> Subspace:
    """The subspace of the residual from every site's second moment [d (d+1)/2]; rank 0: only noise is to be seen."""
    plan = study.privacy.plan("second", study.layout)
    noise = plan.noise_multiplier * plan.clip_norm * _noises(study, len(totals))
    return subspace(_sum(study, plan, totals), study.encoder.d, noise, _patients(study, len(totals)))


def with_added(study: StudyConfig, rows: Array, space: Subspace, totals: Mapping[str, Array]) -> Array:
    """The public rows and behind them the added ones, [n, d] float32; rows that were not found stay zero.

    Args:
        rows: [n - atoms, d] of the start file. totals: every site's third moment, padded.
    """
    out = np.zeros((study.dictionary.n, study.encoder.d), np.float32)
    out[: len(rows)] = rows
    if space.rank and totals:
        plan = study.privacy.plan("third", study.layout, space.rank)
        packed = _sum(study, plan, {site: part[: third_size(space.rank)] for site, part in totals.items()})
        noise = plan.noise_multiplier * _noises(study, len(totals))
        tensor = tensor_atoms(packed, space, noise, plan.clip_norm, _patients(study, len(totals)))
        found = residual_atoms(space, tensor, np.zeros((0, study.encoder.d)))[: study.privacy.atoms]
        out[len(rows) : len(rows) + len(found)] = found
    return out


def added_rows(study: StudyConfig, rows: Array, second: Tables, third: Tables) -> tuple[Array, Array]:
    """First and last dictionary of a finished study, from its replies again."""
    if study.kind != "train":
        return np.zeros((0, 0), np.float32), rows
    totals = {site: tensors["second_moment"] for site, tensors in second.items()}
    cubes = {site: tensors["third_moment"] for site, tensors in third.items()}
    space = as_received(space_of(study, totals)) if totals else EMPTY
    return with_added(study, rows, EMPTY, {}), with_added(study, rows, space, cubes)


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


def _sum(study: StudyConfig, plan: PrivacyPlan, totals: Mapping[str, Array]) -> NDArray[np.float64]:
    grid = grid_for(plan.clip_norm, study.privacy.patients_in_all, plan.noise_multiplier)
    return np.asarray(np.sum([totals[site] for site in sorted(totals)], axis=0).astype(np.float64) * grid)


def _noises(study: StudyConfig, sites: int) -> float:
    """Noise of the sum over that of one release: every site adds its own, or all add shares of one."""
    return 1.0 if study.privacy.secure_aggregation else math.sqrt(sites)


def _patients(study: StudyConfig, sites: int) -> float:
    """A public constant to divide by: the fewest patients that these sites can have."""
    return float(study.privacy.patients * sites)
