"""Nested cross-validation grouped by unit: the outer folds score, the inner ones choose the penalty.

All rows of a unit (patient, slide) are on one side of every split, outer and inner. Predictions of the outer folds
are put together and scored once; intervals resample units.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from ..errors import DataError
from .intervals import DRAWS, Estimate, estimate_of
from .ridge import Scaler

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
MIN_UNITS, FEW_UNITS = 6, 20
OUTER, INNER = 5, 3
STRENGTHS = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)
Tick = Callable[[], None]


class Method(Protocol):
    """Learns from some rows and gives class probabilities of others, under one of its `settings`."""

    @property
    def settings(self) -> tuple[float, ...]: ...

    def predict(self, train: Ints, labels: Ints, test: Ints, setting: float, n_classes: int) -> Floats:
        """Probabilities [test, c] after training on rows `train` with `labels` [train]."""
        ...


@dataclass(frozen=True)
class Logistic:
    """Class-balanced multinomial L2 logistic regression on features [rows, w], scaled on the training rows."""

    features: NDArray[Any]
    settings: tuple[float, ...] = STRENGTHS

    def predict(self, train: Ints, labels: Ints, test: Ints, setting: float, n_classes: int) -> Floats:
        """See `Method`; `setting` is scikit-learn's C."""
        from sklearn.linear_model import LogisticRegression  # type: ignore[import-untyped]

        scaler = Scaler.fit(self.features[train])
        model = LogisticRegression(C=setting, class_weight="balanced", max_iter=2000, tol=1e-3)
        model.fit(scaler.apply(self.features[train]), labels)
        out = np.zeros((len(test), n_classes))
        out[:, model.classes_] = model.predict_proba(scaler.apply(self.features[test]))
        return out


def check_units(labels: Ints, units: Ints, classes: tuple[str, ...], unit: str) -> str:
    """A warning in words when there are few units per class, or nothing.

    Raises:
        DataError: fewer than two classes, or fewer than 6 units of a class.
    """
    counts = {name: len(np.unique(units[labels == c])) for c, name in enumerate(classes)}
    if len(classes) < 2:
        raise DataError(f"Expected at least 2 classes to tell apart, got {list(classes)}.")
    few = {name: count for name, count in counts.items() if count < MIN_UNITS}
    if few:
        raise DataError(
            f"Expected at least {MIN_UNITS} units ({unit}) of every class, got {few}.",
            hint="Leave those classes out with --classes, or score single images with --level image.",
        )
    smallest = min(counts.values())
    return f"few units: {smallest} in the smallest class, read the intervals" if smallest < FEW_UNITS else ""


def nested(
    method: Method, labels: Ints, units: Ints, *, seed: int = 0, tick: Tick | None = None
) -> tuple[Floats, list[float]]:
    """Out-of-fold probabilities [rows, c] and the setting chosen in every outer fold.

    The inner choice minimises the mean log loss over inner folds, every class weighing the same.

    Raises:
        DataError: a training fold without some class.
    """
    n_classes = int(labels.max()) + 1
    out, chosen = np.zeros((len(labels), n_classes)), []
    for train, test in unit_folds(labels, units, OUTER, seed):
        inner = unit_folds(labels[train], units[train], INNER, seed)
        losses = [_inner_loss(method, labels, train, inner, s, n_classes) for s in method.settings]
        best = method.settings[int(np.argmin(losses))]
        out[test] = method.predict(train, labels[train], test, best, n_classes)
        chosen.append(best)
        if tick:
            tick()
    return out, chosen


def _inner_loss(
    method: Method, labels: Ints, train: Ints, folds: list[tuple[Ints, Ints]], setting: float, n_classes: int
) -> float:
    losses = []
    for fit, score in folds:
        found = method.predict(train[fit], labels[train[fit]], train[score], setting, n_classes)
        right = np.clip(found[np.arange(len(score)), labels[train[score]]], 1e-6, 1)
        own = labels[train[score]]
        losses.append(np.mean([-np.log(right[own == c]).mean() for c in np.unique(own)]))
    return float(np.mean(losses))


def unit_folds(labels: Ints, units: Ints, wanted: int, seed: int) -> list[tuple[Ints, Ints]]:
    """(training rows, test rows) of stratified folds that keep units together; fewer folds for rare classes."""
    from sklearn.model_selection import StratifiedGroupKFold  # type: ignore[import-untyped]

    smallest = min(len(np.unique(units[labels == c])) for c in np.unique(labels))
    folds = max(2, min(wanted, smallest))
    split = StratifiedGroupKFold(folds, shuffle=True, random_state=seed)
    found = [(a.astype(np.int64), b.astype(np.int64)) for a, b in split.split(labels, labels, units)]
    missing = [len(np.unique(labels[train])) < len(np.unique(labels)) for train, _ in found]
    if any(missing):
        raise DataError(
            "Expected every class in every training fold.",
            hint="Units of a class are too few or too unequal.",
        )
    return found


class Scores:
    """Weighted F1 and macro one-versus-rest AUROC with intervals; the same resamples for all methods."""

    def __init__(self, labels: Ints, units: Ints, *, seed: int = 0, draws: int = DRAWS // 4) -> None:
        self.labels = labels
        names, place = np.unique(units, return_inverse=True)
        rng = np.random.default_rng(seed)
        counts = rng.multinomial(len(names), np.full(len(names), 1 / len(names)), size=draws)
        self.weights = np.vstack([np.ones(len(labels)), counts[:, place]]).astype(np.float64)

    def draws(self, probabilities: Floats) -> tuple[Floats, Floats]:
        """F1 and AUROC [1 + draws], the first entry on the data as they are."""
        return (
            weighted_f1(probabilities.argmax(axis=1), self.labels, self.weights),
            macro_auroc(probabilities, self.labels, self.weights),
        )

    def of(self, probabilities: Floats) -> tuple[Estimate, Estimate]:
        """F1 and AUROC with intervals."""
        f1, auroc = self.draws(probabilities)
        return estimate_of(float(f1[0]), f1[1:]), estimate_of(float(auroc[0]), auroc[1:])


def weighted_f1(predicted: Ints, labels: Ints, weights: Floats) -> Floats:
    """F1 per class, averaged with the classes' true sizes, for rows of weights [s, m]: [s]."""
    total, out = weights.sum(axis=1), np.zeros(len(weights))
    for c in np.unique(labels):
        true, said = weights @ (labels == c), weights @ (predicted == c)
        hit = weights @ ((labels == c) & (predicted == c))
        out += true / total * np.where(true + said > 0, 2 * hit / np.maximum(true + said, 1e-12), 0.0)
    return out


def macro_auroc(probabilities: Floats, labels: Ints, weights: Floats) -> Floats:
    """Mean over classes of the weighted one-versus-rest AUROC, ties half, for weights [s, m]: [s].

    A resample without a class, or with nothing else, leaves that class out.
    """
    parts = [weighted_auroc(probabilities[:, c], labels == c, weights) for c in np.unique(labels)]
    return np.asarray(np.nanmean(parts, axis=0))


def weighted_auroc(scores: Floats, positive: NDArray[np.bool_], weights: Floats) -> Floats:
    """AUROC [s] of scores [m] under weights [s, m]; NaN where a side has no weight."""
    _, place = np.unique(scores, return_inverse=True)
    order = np.argsort(place, kind="stable")
    starts = np.flatnonzero(np.diff(place[order], prepend=-1))
    high = np.add.reduceat((weights * positive)[:, order], starts, axis=1)
    low = np.add.reduceat((weights * ~positive)[:, order], starts, axis=1)
    below = np.cumsum(low, axis=1) - low / 2
    total = high.sum(axis=1) * low.sum(axis=1)
    return np.asarray(np.where(total > 0, (high * below).sum(axis=1) / np.maximum(total, 1e-12), np.nan))
