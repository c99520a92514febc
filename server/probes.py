"""Builds what a site needs to score the other sites' probes, from class moments only. numpy only."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cytosae_core.concepts.probe import combine, standardise
from cytosae_core.config import StudyConfig

Array = NDArray[Any]
# Requests hold finite numbers: a dropped feature has this variance, so that it weighs nothing.
DROPPED_VARIANCE = 1e30


def score_tensors(
    study: StudyConfig, tables: Mapping[str, Mapping[str, Array]], held_out: str
) -> dict[str, Array]:
    """Probes of all sites but `held_out`, and every site's half moments (NaN where a site has none)."""
    others = [tables[site] for site in study.sites if site in tables and site != held_out]
    out: dict[str, Array] = {}
    for view in ("raw", "standardised", "embedding"):
        out |= _probe(view, others, study)
    for name, width in (("code", study.dictionary.n), ("embedding", study.encoder.d)):
        for part, shape in (("half_class", (len(study.statistics.classes), width)), ("half", (width,))):
            for moment in ("mean", "var"):
                key = f"{name}_{part}_{moment}"
                missing = np.full(shape, np.nan, np.float32)
                out[f"peer_{key}"] = np.stack(
                    [tables[site][key] if site in tables else missing for site in study.sites]
                )
    return out


def _probe(view: str, others: list[Mapping[str, Array]], study: StudyConfig) -> dict[str, Array]:
    width = study.encoder.d if view == "embedding" else study.dictionary.n
    if not others:
        shape = (len(study.statistics.classes), width)
        mean, variance = np.full(shape, np.nan, np.float32), np.full(width, DROPPED_VARIANCE, np.float32)
        return {f"probe_{view}_mean": mean, f"probe_{view}_var": variance}
    moments = [_class_moments(view, table) for table in others]
    probe = combine(np.stack([m[0] for m in moments]), np.stack([m[1] for m in moments]))
    return {
        f"probe_{view}_mean": probe.mean.astype(np.float32),
        f"probe_{view}_var": np.minimum(probe.variance, DROPPED_VARIANCE).astype(np.float32),
    }


def _class_moments(view: str, table: Mapping[str, Array]) -> tuple[Array, Array]:
    name = "embedding" if view == "embedding" else "code"
    mean = table[f"{name}_class_mean"].astype(np.float64)
    variance = table[f"{name}_class_var"].astype(np.float64)
    if view != "standardised":
        return mean, variance
    centre, spread = table["code_all_mean"], table["code_all_var"]
    unknown = np.isnan(mean) | np.isnan(centre)
    scaled = np.where(unknown, np.nan, standardise(mean, centre, spread))
    return scaled, np.where(
        unknown | ~(spread > 1e-12), np.where(unknown, np.nan, 0.0), variance / np.maximum(spread, 1e-12)
    )
