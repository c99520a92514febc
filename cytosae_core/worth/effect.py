"""What a class' concepts do: switch them off, or keep only them, and watch a frozen probe on held-out units.

The experiment of PatchSAE (Lim et al. 2025, classification with top-k masking), with three changes: concepts are
ranked on the training units only; the random comparison is *matched* (same firing rate and mass); and what the
dictionary did not explain is either dropped or kept as it is, in place of a constant bias.

A cell's mean token is x = b + c D + e: offset b, mean codes c [n], decoder rows D [n, d], unexplained part e.
Decoding is linear and so is averaging, so masking the mean codes is masking every token's codes. The probe is a
class-balanced logistic regression on x of the training units, frozen afterwards.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..cohort import split_units
from ..concepts.coder import Coder
from ..concepts.probe import unit_weights
from ..concepts.scores import score_images
from ..errors import DataError
from .cells import Cells
from .crossval import MIN_UNITS
from .intervals import Estimate, estimate_of
from .ridge import Scaler

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
TOP = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000)
RANDOM_SETS, DRAWS, NEAREST = 200, 500, 20
LARGEST_SHARE = 3  # beyond a third of the dictionary nothing comparable is left to draw from
MODES = ("off", "keep only")
RESTS = ("rest kept", "rest dropped")
Tick = Callable[[int, int], None]


@dataclass(frozen=True)
class Decoded:
    """Mean cell tokens of images taken apart: x = offset + codes @ decoder + rest.

    Attributes:
        codes: [m, n]. fired: [m, n] share of cell tokens. decoder: [n, d]. offset: [d]. rest: [m, d].
    """

    codes: Floats
    fired: Floats
    decoder: Floats
    offset: Floats
    rest: Floats

    @property
    def tokens(self) -> Floats:
        """The mean tokens themselves [m, d]."""
        return np.asarray(self.offset + self.codes @ self.decoder + self.rest)


@dataclass(frozen=True)
class Readout:
    """A frozen linear probe on mean tokens: class logits = x @ weights [d, c] + bias [c]."""

    weights: Floats
    bias: Floats


@dataclass(frozen=True)
class HeldOut:
    """Held-out images: what they decode to, their labels, units and the probe that reads them."""

    decoded: Decoded
    labels: Ints
    units: Ints
    probe: Readout
    target: int

    def logits(self, keep: NDArray[np.bool_], *, rest: bool) -> Floats:
        """Class logits [m, c] with only the concepts `keep` [n] switched on."""
        d = self.decoded
        fixed = (d.offset + d.rest if rest else d.offset) @ self.probe.weights + self.probe.bias
        return np.asarray(fixed + (d.codes * keep) @ (d.decoder @ self.probe.weights))


def decode(cells: Cells, coder: Coder) -> Decoded:
    """Mean codes, decoder and unexplained part of every image's mean cell token (centred and scaled)."""
    import torch

    found = score_images(cells.read, cells.images, coder.model, coder.scale)
    with torch.no_grad():
        offset = coder.model.reconstruct(torch.zeros(1, coder.n))[0].numpy().astype(np.float64)
    decoder = coder.model.dictionary.numpy().astype(np.float64)
    codes = found.mean.astype(np.float64)
    rest = found.embedding - offset - codes @ decoder
    return Decoded(codes, found.fired.astype(np.float64), decoder, offset, rest)


def concept_effect(
    decoded: Decoded, labels: Ints, units: Ints, target: int, *, seed: int = 0, tick: Tick | None = None
) -> dict[str, Any]:
    """Effect of a class' top-k concepts on held-out units, beside matched random sets.

    Args:
        labels, units: [m]. target: the class. Half of the units (balanced over classes) train probe and ranking.

    Returns:
        `top`: concept indices, best first; `curves`: mode -> rest -> list over k of the change of the class'
        probability on its own images and of balanced accuracy, each with an interval over units; the matched
        random sets' mean and middle 95 %, and the share of random sets that change as much.

    Raises:
        DataError: fewer than 6 units in or outside the class on either side.
    """
    part = split_units([str(u) for u in units], [str(c) for c in labels], (1, 1), salt=f"effect-{seed}")
    train, test = np.flatnonzero(part == 0), np.flatnonzero(part == 1)
    for rows in (train, test):
        few = min(len(np.unique(units[rows][(labels[rows] == target) == side])) for side in (True, False))
        if few < MIN_UNITS:
            raise DataError(
                f"Expected at least {MIN_UNITS} units in and outside the class, got {few} in a half."
            )
    probe = fit_readout(decoded.tokens[train], labels[train])
    top = rank_concepts(decoded.codes[train], labels[train] == target, units[train])
    held = HeldOut(_rows(decoded, test), labels[test], units[test], probe, target)
    matches = _nearest(decoded.codes[train], decoded.fired[train])
    sizes = [k for k in TOP if k <= len(top) // LARGEST_SHARE]
    rng = np.random.default_rng([seed, 1])
    curves: dict[str, dict[str, list[Any]]] = {mode: {rest: [] for rest in RESTS} for mode in MODES}
    for number, k in enumerate(sizes):
        sets = [_matched(top[:k], matches, rng) for _ in range(RANDOM_SETS)]
        for mode in MODES:
            for rest in RESTS:
                curves[mode][rest].append(
                    {"k": k, **_point(held, top[:k], sets, mode, rest == RESTS[0], seed)}
                )
        if tick:
            tick(number + 1, len(sizes))
    whole = held.logits(np.ones(decoded.codes.shape[1], bool), rest=True)
    return {
        "top": top[:50].tolist(), "curves": curves, "held_out_units": len(np.unique(units[test])),
        "intact": {name: value.to_dict() for name, value in _measured(held, whole, whole, seed)[1].items()},
    }  # fmt: skip


def fit_readout(tokens: Floats, labels: Ints) -> Readout:
    """The probe: class-balanced multinomial logistic regression (scikit-learn, C = 0.1 on scaled features)."""
    from sklearn.linear_model import LogisticRegression  # type: ignore[import-untyped]

    scaler = Scaler.fit(tokens)
    model = LogisticRegression(C=0.1, class_weight="balanced", max_iter=2000).fit(
        scaler.apply(tokens), labels
    )
    coefficients, bias = model.coef_, model.intercept_
    if len(coefficients) == 1:  # two classes: one row of log odds
        coefficients, bias = np.vstack([-coefficients, coefficients]) / 2, np.append(-bias, bias) / 2
    spread = np.where(scaler.sd > 1e-9, scaler.sd, np.inf)
    weights = coefficients.T / spread[:, None]
    return Readout(weights, bias - scaler.mean @ weights)


def rank_concepts(codes: Floats, positive: NDArray[np.bool_], units: Ints) -> Ints:
    """Concepts by how much more they are active in the class: difference of unit-weighted means over the spread.

    PatchSAE takes the most active ones; those are active in every class.
    """
    inside, outside = (unit_weights(units[side])[0] @ codes[side] for side in (positive, ~positive))
    spread = codes.std(axis=0)
    contrast = (inside - outside) / np.where(spread > 0, spread, np.inf)
    return np.asarray(np.argsort(-contrast, kind="stable"), dtype=np.int64)


def _rows(decoded: Decoded, rows: Ints) -> Decoded:
    d = decoded
    return Decoded(d.codes[rows], d.fired[rows], d.decoder, d.offset, d.rest[rows])


def _nearest(codes: Floats, fired: Floats) -> Ints:
    """For every concept all others by distance in log firing rate and log mass: [n, n - 1]."""
    place = np.log(np.stack([fired.mean(axis=0), codes.mean(axis=0)], axis=1) + 1e-6)
    place = (place - place.mean(axis=0)) / np.maximum(place.std(axis=0), 1e-9)
    distance = ((place[:, None] - place[None]) ** 2).sum(axis=2)
    np.fill_diagonal(distance, -1)
    return np.asarray(np.argsort(distance, axis=1, kind="stable")[:, 1:], dtype=np.int64)


def _matched(chosen: Ints, nearest: Ints, rng: np.random.Generator) -> Ints:
    """One random set: for each chosen concept one of the 20 nearest that are not chosen and not taken yet."""
    taken, out = np.zeros(len(nearest), bool), []
    taken[chosen] = True
    for concept in chosen:
        free = nearest[concept][~taken[nearest[concept]]][:NEAREST]
        pick = int(rng.choice(free))
        taken[pick] = True
        out.append(pick)
    return np.array(out, dtype=np.int64)


def _point(held: HeldOut, chosen: Ints, sets: list[Ints], mode: str, rest: bool, seed: int) -> dict[str, Any]:
    n = held.decoded.codes.shape[1]
    whole = held.logits(np.ones(n, bool), rest=True)

    def measured(concepts: Ints) -> tuple[dict[str, float], dict[str, Estimate]]:
        keep = np.isin(np.arange(n), concepts) == (mode == "keep only")
        return _measured(held, held.logits(keep, rest=rest), whole, seed)

    plain = [_values(held, _mask_logits(held, s, mode, rest, n), whole) for s in sets]
    own, intervals = measured(chosen)
    out: dict[str, Any] = {}
    for name, estimate in intervals.items():
        random = np.array([values[name] for values in plain])
        farther = np.abs(random - random.mean()) >= abs(own[name] - random.mean())
        out[name] = {
            **estimate.to_dict(), "random": estimate_of(float(random.mean()), random).to_dict(),
            "p": float((1 + farther.sum()) / (1 + len(random))),
        }  # fmt: skip
    return out


def _mask_logits(held: HeldOut, concepts: Ints, mode: str, rest: bool, n: int) -> Floats:
    return held.logits(np.isin(np.arange(n), concepts) == (mode == "keep only"), rest=rest)


def _values(held: HeldOut, logits: Floats, whole: Floats) -> dict[str, float]:
    """Change of the class' probability on its own images, and of balanced accuracy class against rest."""
    gap, right = _per_image(held, logits, whole)
    inside = held.labels == held.target
    weight = {side: unit_weights(held.units[inside == side])[0] for side in (True, False)}
    return {
        "probability": float(weight[True] @ gap[inside]),
        "balanced_accuracy": float(np.mean([weight[side] @ right[inside == side] for side in (True, False)])),
    }


def _measured(
    held: HeldOut, logits: Floats, whole: Floats, seed: int
) -> tuple[dict[str, float], dict[str, Estimate]]:
    """The values and their intervals over resampled units; the intact probe gives its level, not a change."""
    if logits is whole:
        gap, right = _softmax(whole)[:, held.target], _right(held, whole).astype(np.float64)
    else:
        gap, right = _per_image(held, logits, whole)
    inside = held.labels == held.target
    draws = {side: _unit_draws((gap if side else right)[inside == side], held.units[inside == side], seed)
             for side in (True, False)}  # fmt: skip
    hits = _unit_draws(right[inside], held.units[inside], seed)
    probability = draws[True]
    balanced = (hits[0] + draws[False][0]) / 2, (hits[1] + draws[False][1]) / 2
    values = {"probability": probability[0], "balanced_accuracy": balanced[0]}
    return values, {"probability": estimate_of(*probability), "balanced_accuracy": estimate_of(*balanced)}


def _per_image(held: HeldOut, logits: Floats, whole: Floats) -> tuple[Floats, Floats]:
    gap = _softmax(logits)[:, held.target] - _softmax(whole)[:, held.target]
    return gap, _right(held, logits).astype(np.float64) - _right(held, whole)


def _right(held: HeldOut, logits: Floats) -> NDArray[np.bool_]:
    return np.asarray((logits.argmax(axis=1) == held.target) == (held.labels == held.target))


def _softmax(logits: Floats) -> Floats:
    shifted = np.exp(logits - logits.max(axis=1, keepdims=True))
    return np.asarray(shifted / shifted.sum(axis=1, keepdims=True))


def _unit_draws(values: Floats, units: Ints, seed: int) -> tuple[float, Floats]:
    """Mean over units of their mean value, and its bootstrap draws."""
    names, place = np.unique(units, return_inverse=True)
    means = np.bincount(place, values) / np.bincount(place)
    rng = np.random.default_rng([seed, len(names)])
    return float(means.mean()), means[rng.integers(len(names), size=(DRAWS, len(names)))].mean(axis=1)
