"""Leave-one-site-out classification: train on all other sites, test on the one left out.

Three forms, fixed before any number was seen:

    plain           features scaled with moments of the training sites
    standardised    every site scales its features with its own moments, without labels (transductive: the scored
                    images take part in the moments)
    inductive       the same, but the left-out site's moments come from one half of its units and the other half
                    is scored, then the other way round

The strength of the probe (`ridge`) is chosen by leaving out each training site in turn; the site that is left out
never takes part in a choice.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..errors import DataError
from .pooling import SiteTable
from .ridge import STRENGTHS, RidgePath, Scaler, balancing_weights, fit_path

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
FORMS = ("plain", "standardised", "inductive")


@dataclass(frozen=True)
class Held:
    """Predictions [m] at a left-out site, the chosen strength and the inner (training-site) balanced accuracy."""

    predicted: Ints
    strength: float
    inner: float


@dataclass(frozen=True)
class Prepared:
    """One site's features under one form.

    Attributes:
        train: [m, w] as training rows.
        halves: parts that are scored with moments of other units: (rows [h], features [h, w]).
    """

    train: Floats
    halves: tuple[tuple[Ints, Floats], ...]
    labels: Ints


def leave_one_site_out(
    sites: Mapping[str, SiteTable],
    form: str,
    n_classes: int,
    *,
    only: str | None = None,
    seed: int = 0,
) -> dict[str, Held]:
    """Predictions at every site (or `only` one) from a probe of all others.

    Args:
        sites: name -> features, labels, units; at least 3, so that an inner choice exists.
        form: one of `FORMS`. seed: of the halves of `inductive`.

    Raises:
        DataError: fewer than 3 sites, an unknown form, or a site without two classes.
    """
    if len(sites) < 3:
        raise DataError(f"Expected at least 3 sites, got {len(sites)}.", hint="The inner choice needs two.")
    if form not in FORMS:
        raise DataError(f"Expected a form in {FORMS}, got form={form!r}.")
    prepared = {name: prepare(table, form, seed=seed) for name, table in sites.items()}
    paths: dict[tuple[str, ...], tuple[RidgePath, Scaler]] = {}

    def accuracy(train: tuple[str, ...], test: str) -> Floats:
        if train not in paths:
            paths[train] = train_path([prepared[name] for name in train], n_classes)
        return path_accuracy(*paths[train], prepared[test])

    out = {}
    for held in sites if only is None else [only]:
        others = tuple(name for name in sites if name != held)
        inner = np.mean(
            [accuracy(tuple(n for n in others if n != second), second) for second in others], axis=0
        )
        best = int(np.flatnonzero(inner >= inner.max() - 1e-12)[-1])  # ties: the stronger penalty
        path, scaler = train_path([prepared[name] for name in others], n_classes)
        predicted = predict(path, scaler, prepared[held])[best]
        out[held] = Held(predicted, float(STRENGTHS[best]), float(inner[best]))
    return out


def prepare(table: SiteTable, form: str, *, seed: int = 0) -> Prepared:
    """A site's features under a form, without its labels."""
    values = np.asarray(table.features, np.float64)
    everything = np.arange(len(values))
    if form == "plain":
        return Prepared(values, ((everything, values),), table.labels)
    own = Scaler.fit(values).apply(values)
    if form == "standardised":
        return Prepared(own, ((everything, own),), table.labels)
    first = _half_of_units(table.units, seed)
    halves = tuple(
        (np.flatnonzero(scored), Scaler.fit(values[~scored]).apply(values[scored]))
        for scored in (first, ~first)
    )
    return Prepared(own, halves, table.labels)


def train_path(parts: list[Prepared], n_classes: int) -> tuple[RidgePath, Scaler]:
    """Probes of all strengths from several sites; every (site, class) weighs the same."""
    features = np.concatenate([part.train for part in parts])
    labels = np.concatenate([part.labels for part in parts])
    group = np.repeat(np.arange(len(parts)), [len(part.labels) for part in parts])
    weights = balancing_weights(labels, group)
    scaler = Scaler.fit(features, weights)
    return fit_path(scaler.apply(features), labels, n_classes, weights), scaler


def predict(path: RidgePath, scaler: Scaler, part: Prepared) -> Ints:
    """Predicted classes [strengths, m]."""
    out = np.zeros((len(STRENGTHS), len(part.labels)), np.int64)
    for rows, values in part.halves:
        out[:, rows] = path.scores(scaler.apply(values)).argmax(axis=2)
    return out


def path_accuracy(path: RidgePath, scaler: Scaler, part: Prepared) -> Floats:
    """Balanced accuracy (mean over classes of the share of right images) of every strength [strengths]."""
    right = predict(path, scaler, part) == part.labels
    return np.asarray(
        np.mean([right[:, part.labels == c].mean(axis=1) for c in np.unique(part.labels)], axis=0)
    )


def _half_of_units(units: Ints, seed: int) -> NDArray[np.bool_]:
    """A random half of the units, true for their images; no labels are looked at."""
    names = np.unique(units)
    if len(names) < 2:
        raise DataError("Expected at least 2 units at a site to standardise one half with the other.")
    chosen = np.random.default_rng([seed, len(names)]).permutation(names)[: len(names) // 2]
    return np.isin(units, chosen)
