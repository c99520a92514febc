"""A site's last two steps: concept tables of a dictionary, and scores of the other sites' probes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cytosae_core.concepts.probe import Probe, balanced_accuracy, site_recall, standardise
from cytosae_core.concepts.scores import ImageScores
from cytosae_core.concepts.tables import concept_tables, own_views, probe_tables, same_site_null
from cytosae_core.config import VIEWS
from cytosae_core.egress import Release

from .steps import Answer, Steps

Array = NDArray[Any]
SHUFFLES = 20
# In the order of `config.PROBES`: view, and whether the site's labels are shuffled first (the control).
PROBED = (("standardised", False), ("raw", False), ("embedding", False), ("standardised", True))


def describe(steps: Steps, tensors: Mapping[str, Array], params: Mapping[str, Any]) -> Answer:
    """Concept tables of a dictionary; with `full`, also what probes and site-predictability need."""
    model, scale, checks = steps.frozen(tensors)
    scores = steps.score_all(model, scale)
    table = concept_tables(scores, steps.data.labelled, seed=steps.study.seed, dominance=steps.dominated)
    if params.get("full"):
        table |= probe_tables(scores, steps.data.labelled, dominance=steps.dominated)
        null = same_site_null(scores, steps.data.labelled, VIEWS, seed=steps.study.seed)
        table["same_site_null"] = (null, np.full(len(VIEWS), _half_units(steps)))
    releases = {name: Release(values, units) for name, (values, units) in table.items()}
    return Answer({**releases, "quality": steps.quality(model, scale)}, checks=checks)


def score(steps: Steps, tensors: Mapping[str, Array], params: Mapping[str, Any]) -> Answer:
    """Score probes of the other sites on this site's images, and how readable the site is."""
    model, scale, checks = steps.frozen(
        {name: tensors[name] for name in tensors if not name.startswith(("probe_", "peer_"))}
    )
    scores = steps.score_all(model, scale)
    known = steps.data.labelled
    inside = known.labels >= 0
    views = own_views(scores, known, inside)
    accuracies = [_accuracy(steps, tensors, view, views[view], shuffle) for view, shuffle in PROBED]
    recalls = _recalls(steps, tensors, params, scores)
    units = len(np.unique(known.units[inside]))
    return Answer(
        {
            "balanced_accuracy": Release(
                np.array(accuracies, np.float32), np.where(np.isnan(accuracies), 0, units)
            ),
            "site_recall": Release(recalls, np.where(np.isnan(recalls), 0, _half_units(steps, 1))),
        },
        checks=checks,
    )


def _accuracy(steps: Steps, tensors: Mapping[str, Array], view: str, features: Array, shuffle: bool) -> float:
    probe = Probe(
        tensors[f"probe_{view}_mean"].astype(np.float64), tensors[f"probe_{view}_var"].astype(np.float64)
    )
    labels, units = steps.data.labelled.labels, steps.data.labelled.units
    chosen = np.isin(labels, np.flatnonzero(~np.isnan(probe.mean).any(axis=1)))
    present = np.unique(labels[chosen])
    if len(present) < 2:
        return float("nan")
    probe.mean[np.setdiff1d(np.arange(len(probe.mean)), present)] = (
        np.nan
    )  # only classes that both sides have
    predicted = probe.predict(features[chosen])
    if not shuffle:
        return balanced_accuracy(predicted, labels[chosen], units[chosen])
    rng = np.random.default_rng(steps.study.seed)
    draws = [
        balanced_accuracy(predicted, rng.permutation(labels[chosen]), units[chosen]) for _ in range(SHUFFLES)
    ]
    return float(np.mean(draws))


def _recalls(
    steps: Steps, tensors: Mapping[str, Array], params: Mapping[str, Any], scores: ImageScores
) -> Array:
    """[v, s]: recall of this site against each peer; NaN elsewhere and where nothing is shared.

    Peer tensors hold this site's own half moments first, then those of `params["peers"]` (site indices).
    """
    known = steps.data.labelled
    fit = (known.labels >= 0) & (known.halves == 0)
    test = (known.labels >= 0) & (known.halves == 1)
    views = own_views(scores, known, fit)
    out = np.full((len(VIEWS), len(steps.study.sites)), np.nan, dtype=np.float32)
    peers = [int(index) for index in params.get("peers", []) if 0 <= int(index) < len(steps.study.sites)]
    for row, view in enumerate(VIEWS):
        name = "embedding" if view == "embedding" else "code"
        own = _peer(tensors, name, 0, view)
        for position, column in enumerate(peers if test.any() else [], 1):
            other = _peer(tensors, name, position, view)
            out[row, column] = site_recall(
                views[view][test], known.labels[test], known.units[test], own, other
            )
    return out


def _half_units(steps: Steps, half: int = 0) -> int:
    known = steps.data.labelled
    return len(np.unique(known.units[(known.labels >= 0) & (known.halves == half)]))


def _peer(tensors: Mapping[str, Array], name: str, index: int, view: str) -> tuple[Array, Array]:
    """Half-class mean and variance [c, w] of entry `index`, standardised with its own first half if asked."""
    mean = tensors[f"peer_{name}_half_class_mean"][index].astype(np.float64)
    variance = tensors[f"peer_{name}_half_class_var"][index].astype(np.float64)
    if view != "standardised":
        return mean, variance
    centre, spread = tensors["peer_code_half_mean"][index], tensors["peer_code_half_var"][index]
    scaled = np.where(np.isnan(mean), np.nan, standardise(mean, centre, spread))
    return scaled, np.where(spread > 1e-12, variance / np.maximum(spread, 1e-12), 0)
