"""A site's last two steps: concept tables of a dictionary, and scores of the other sites' probes."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from cytosae_core.canonical import sha256_hex
from cytosae_core.concepts.ablation import ablation, class_backing
from cytosae_core.concepts.acquisition import acquisition_tables
from cytosae_core.concepts.auroc import unit_means
from cytosae_core.concepts.bootstrap import Column, balanced_draws, least_error, standard_error
from cytosae_core.concepts.calibration import calibration, class_logits
from cytosae_core.concepts.coverage import confidence, kept_parts
from cytosae_core.concepts.probe import (
    AppliedProbe,
    Probe,
    apply_probe,
    balanced_accuracy,
    site_recall,
    standardise,
)
from cytosae_core.concepts.recurrence import LocalTraining, recurrence
from cytosae_core.concepts.scores import ImageScores
from cytosae_core.concepts.shortcut import concept_site, concept_site_null
from cytosae_core.concepts.tables import (
    Labelled,
    Table,
    concept_tables,
    own_probe,
    own_views,
    probe_tables,
    same_site_null,
)
from cytosae_core.config import COVERAGE, PROBES, VIEWS, Attribute
from cytosae_core.egress import Release
from cytosae_core.sae.models import Model, PursuitModel
from cytosae_core.sae.scale import TokenScale

from .site import level
from .steps import Answer, Steps

Array = NDArray[Any]
SHUFFLES = 20
# The other sites' probes in the order of `config.PROBES`: view, and whether the site's labels are shuffled first (the
# control). Last comes the site's own probe.
PROBED = (
    ("standardised", False), ("raw", False), ("embedding", False), ("standardised", True), ("colour", False)
)  # fmt: skip
# Units that a class needs in both groups of a subgroup: fewer say nothing about an accuracy, and enough are left to
# resample.
SUBGROUP_UNITS = 5


def describe(steps: Steps, tensors: Mapping[str, Array], params: Mapping[str, Any]) -> Answer:
    """Concept tables of a dictionary; with `full`, also what probes and site-predictability need."""
    model, scale, checks = steps.frozen(tensors)
    scores = steps.score_all(model, scale)
    table = concept_tables(scores, steps.data.labelled, seed=steps.study.seed, dominance=steps.dominated)
    if params.get("full"):
        table |= probe_tables(scores, steps.data.labelled, dominance=steps.dominated)
        null = same_site_null(scores, steps.data.labelled, VIEWS, seed=steps.study.seed)
        table["same_site_null"] = (null, np.full(len(VIEWS), _half_units(steps)))
        table |= _pictures(steps, scores)
        table |= _recurrence(steps, model, scale, scores)
        table |= _ratings(steps)
    releases = {name: Release(values, units) for name, (values, units) in table.items()}
    return Answer({**releases, "quality": steps.quality(model, scale)}, checks=checks)


def _pictures(steps: Steps, scores: ImageScores) -> Table:
    """Whether concepts follow light, focus or size; nothing of a store that keeps no facts of its pictures, or that
    the hospital's policy does not name (policies may be older than these tensors)."""
    pictures = steps.data.pictures()
    if pictures is None:
        return {}
    table = acquisition_tables(scores, steps.data.labelled, *pictures, steps.policy)
    return {name: pair for name, pair in table.items() if steps.policy.allows(name)}


def _ratings(steps: Steps) -> Table:
    """Votes of this site's experts, and the raters behind each concept; nothing without a review of the very
    dictionary that the protocol names, or when the hospital's policy does not name it."""
    ratings, n = steps.site.ratings, steps.study.dictionary.n
    fits = ratings is not None and ratings.dictionary == steps.study.dictionary.digest
    if ratings is None or not fits or not steps.policy.allows("ratings"):
        return {}
    votes = ratings.table(n)
    return {"ratings": (votes.astype(np.float32), votes.sum(axis=1, keepdims=True))}


def _recurrence(steps: Steps, model: Model, scale: TokenScale, scores: ImageScores) -> Table:
    """Whether concepts come back in a dictionary that this site trains alone; nothing where the protocol asks for no
    step of it, the model is not a pursuit dictionary, or the hospital's policy does not name it."""
    wanted, data = steps.study.statistics.recurrence_steps, steps.data
    if not wanted or not isinstance(model, PursuitModel) or not steps.policy.allows("recurrence"):
        return {}

    def batch(step: int) -> tuple[torch.Tensor, torch.Tensor]:
        count = steps.study.training.batch_tokens
        tokens, position = data.random_tokens(data.train, count, f"recurrence {step}")
        return torch.from_numpy(scale.apply(tokens)), torch.from_numpy(data.train_unit[position])

    # The site's name makes the start its own: two sites that start alike would agree for that reason.
    seed = int(sha256_hex(f"{steps.study.seed}|{steps.site.name}|recurrence".encode())[:15], 16)
    peak, units = steps.study.training.learning_rate, data.n_train_units
    found = recurrence(model.dictionary.numpy(), LocalTraining(batch, wanted, peak, model.k, units, seed))
    behind = np.minimum(_units_that_fired(scores, data.labelled), units)
    # The site's dictionary has not passed the gate of a round: three decimals say what is asked, and little of it.
    table: Table = {
        "recurrence": (np.round(found.trained, 3).astype(np.float32), behind),
        "recurrence_init": (np.round(found.start, 3).astype(np.float32), behind),
        "recurrence_null": (np.round([found.null], 3).astype(np.float32), np.array([units])),
    }
    return {name: pair for name, pair in table.items() if steps.policy.allows(name)}


def score(steps: Steps, tensors: Mapping[str, Array], params: Mapping[str, Any]) -> Answer:
    """Score probes of the other sites on this site's images, and how readable the site is."""
    model, scale, checks = steps.frozen(
        {name: tensors[name] for name in tensors if not name.startswith(("probe_", "peer_"))}
    )
    scores = steps.score_all(model, scale)
    known = steps.data.labelled
    views: dict[str, Array] = dict(own_views(scores, known, known.labels >= 0))
    pictures = steps.data.pictures()
    if pictures is not None:
        views["colour"] = pictures[1]
    recalls = _recalls(steps, tensors, params, scores)
    table = _accuracies(steps, tensors, views)
    table["site_recall"] = (recalls, np.where(np.isnan(recalls), 0, _half_units(steps, 1)))
    found, fired = _applied(steps, tensors, views, "standardised"), _units_that_fired(scores, known)
    if found is not None:
        table |= _of_the_codes(steps, found, views["standardised"], scores, fired)
    table |= _sites_by_concept(steps, tensors, params, scores, fired)
    # A hospital's policy may be older than some of these tensors: then they stay there.
    return Answer(
        {name: Release(*pair) for name, pair in table.items() if steps.policy.allows(name)}, checks=checks
    )


def _applied(
    steps: Steps, tensors: Mapping[str, Array], views: Mapping[str, Array], view: str
) -> AppliedProbe | None:
    """The other sites' probe of one view on this site; None when either side lacks it."""
    if view not in views or f"probe_{view}_mean" not in tensors:
        return None
    mean, variance = (tensors[f"probe_{view}_{part}"].astype(np.float64) for part in ("mean", "var"))
    return apply_probe(Probe(mean, variance), views[view], steps.data.labelled.labels)


def _accuracies(steps: Steps, tensors: Mapping[str, Array], views: Mapping[str, Array]) -> Table:
    """balanced_accuracy and its error of every probe of `config.PROBES`, [p]."""
    known = steps.data.labelled
    values, errors = np.full(len(PROBES), np.nan), np.full(len(PROBES), np.nan)
    behind = np.zeros(len(PROBES), dtype=np.int64)
    columns: list[Column] = []
    owner: list[int] = []
    for place, found, made in _probed(steps, tensors, views):
        values[place] = np.mean([_accuracy(column, known.units) for column in made])
        behind[place] = len(np.unique(known.units[found.chosen]))
        columns += made
        owner += [place] * len(made)
    if columns:
        draws = _draws(steps, columns)
        for place in set(owner):  # the mean over shuffles is one number, so its error is that of the mean
            errors[place] = standard_error(draws[:, np.array(owner) == place].mean(axis=1))
            if owner.count(place) == 1:
                errors[place] = np.fmax(
                    errors[place], least_error(columns[owner.index(place)][1], known.units)
                )
    return {
        "balanced_accuracy": (values.astype(np.float32), behind),
        "balanced_accuracy_se": (errors.astype(np.float32), np.where(np.isnan(errors), 0, behind)),
    }


def _probed(
    steps: Steps, tensors: Mapping[str, Array], views: Mapping[str, Array]
) -> Iterator[tuple[int, AppliedProbe, list[Column]]]:
    """Place in `config.PROBES`, probe on its images, and its columns, of all probes that can be asked here."""
    known = steps.data.labelled
    for place, (view, shuffle) in enumerate(PROBED):
        if (found := _applied(steps, tensors, views, view)) is not None:
            yield place, found, _columns(found, known, steps.study.seed if shuffle else None)
    others = _applied(steps, tensors, views, "standardised")
    found = None if others is None else own_probe(views["standardised"], known, others)
    if found is not None:
        yield len(PROBED), found, _columns(found, known)


def _columns(found: AppliedProbe, known: Labelled, shuffled_with: int | None = None) -> list[Column]:
    """Right answers and the labels that they were right about, [images] each; one pair for each shuffle."""
    predicted = found.scores.argmax(axis=1)
    labels = known.labels[found.chosen]
    if shuffled_with is None:
        return [_spread(found, predicted == labels, labels)]
    rng = np.random.default_rng(shuffled_with)
    others = [rng.permutation(labels) for _ in range(SHUFFLES)]
    return [_spread(found, predicted == other, other) for other in others]


def _spread(found: AppliedProbe, right: Array, labels: Array) -> Column:
    """Values of the tested images at their places among all images; the others count in no class (-1)."""
    whole = np.zeros(len(found.chosen)), np.full(len(found.chosen), -1, dtype=np.int64)
    whole[0][found.chosen], whole[1][found.chosen] = right, labels
    return whole


def _accuracy(column: Column, units: Array) -> float:
    right, labels = column
    counted = labels >= 0
    answers = np.where(right[counted] > 0, labels[counted], -1)
    return balanced_accuracy(answers, labels[counted], units[counted])


def _draws(steps: Steps, columns: list[Column]) -> Array:
    statistics = steps.study.statistics
    return balanced_draws(
        columns, steps.data.labelled.units, draws=statistics.bootstrap, seed=steps.study.seed
    )


def _of_the_codes(
    steps: Steps, found: AppliedProbe, features: Array, scores: ImageScores, fired: Array
) -> Table:
    """What is asked of the probe on standardised codes: calibration, coverage, ablation, subgroups."""
    known, chosen = steps.data.labelled, found.chosen
    labels, units = known.labels[chosen], known.units[chosen]
    values, class_units = calibration(class_logits(found.scores), labels, units)
    falls = ablation(found, features[chosen], labels, units)
    behind = class_backing(scores.mean[chosen], labels, units, fired, known.n_classes, steps.dominated)
    table = {
        "calibration": (values.astype(np.float32), np.where(np.isnan(values), 0, class_units[:, None])),
        "ablation": (falls.astype(np.float32), np.where(np.isnan(falls), 0, behind)),
    }
    if steps.policy.allows("coverage"):
        table["coverage"] = _coverage(steps, found)
    if steps.study.statistics.subgroups:
        table["subgroup"] = _subgroups(steps, found)
    return table


def _coverage(steps: Steps, found: AppliedProbe) -> tuple[Array, Array]:
    """coverage [a, 2]: balanced accuracy and its error on the most confident shares of cells, and units behind."""
    known = steps.data.labelled
    right, labels = _columns(found, known)[0]
    sure = np.zeros(len(labels))
    sure[found.chosen] = confidence(found.scores)
    parts = kept_parts(sure, labels, known.units, steps.policy.min_units)
    values = np.full((len(COVERAGE), 2), np.nan)
    rows = np.flatnonzero(parts.units)
    columns = [(right, np.where(parts.kept[row], labels, -1)) for row in rows]
    if columns:
        errors = standard_error(_draws(steps, columns))
        for place, (row, column) in enumerate(zip(rows, columns, strict=True)):
            least = least_error(column[1], known.units)
            values[row] = _accuracy(column, known.units), np.fmax(errors[place], least)
    return values.astype(np.float32), np.where(np.isnan(values), 0, parts.units[:, None])


def _units_that_fired(scores: ImageScores, known: Labelled) -> Array:
    """In how many of the site's units each concept fires, [n]."""
    return np.asarray((unit_means(scores.fired, known.units)[0] > 0).sum(axis=0))


def _subgroups(steps: Steps, found: AppliedProbe) -> tuple[Array, Array]:
    """Balanced accuracy where an attribute is 1 minus where it is 0, and its error: [u, 2], and the units behind.

    Classes count that `SUBGROUP_UNITS` units or more have in both groups, so that the gap is not one of their mix.
    """
    known, asked = steps.data.labelled, steps.study.statistics.subgroups
    values, behind = np.full((len(asked), 2), np.nan), np.zeros((len(asked), 1), dtype=np.int64)
    right, labels = _columns(found, known)[0]
    for row, attribute in enumerate(asked):
        levels = attribute_levels(steps.site.attributes, attribute)
        usable = shared_classes(labels, known.units, levels)
        groups = [
            (right, np.where((levels == level) & np.isin(labels, usable), labels, -1)) for level in (1, 0)
        ]
        if len(usable) < 2:
            continue
        draws = _draws(steps, groups)
        values[row, 0] = _accuracy(groups[0], known.units) - _accuracy(groups[1], known.units)
        least = [least_error(group, known.units) for _, group in groups]
        values[row, 1] = max(float(standard_error(draws[:, 0] - draws[:, 1])), math.hypot(*least))
        behind[row] = min(len(np.unique(known.units[group >= 0])) for _, group in groups)
    return values.astype(np.float32), np.where(np.isnan(values), 0, behind)


def attribute_levels(rows: Sequence[Mapping[str, str]], attribute: Attribute) -> Array:
    """1, 0 or -1 (unknown) per image for a yes/no property, by the rule of the study's attributes."""
    return np.array([level(row.get(attribute.name, ""), attribute.above) for row in rows], dtype=np.int64)


def shared_classes(labels: Array, units: Array, levels: Array) -> list[int]:
    """Classes (of `labels` [images], -1 for none) that enough units have in both groups of `levels` [images]."""
    usable = []
    for index in np.unique(labels[labels >= 0]):
        sizes = [len(np.unique(units[(labels == index) & (levels == level)])) for level in (0, 1)]
        if min(sizes) >= SUBGROUP_UNITS:
            usable.append(int(index))
    return usable


def _sites_by_concept(
    steps: Steps,
    tensors: Mapping[str, Array],
    params: Mapping[str, Any],
    scores: ImageScores,
    fired: Array,
) -> Table:
    """concept_site and concept_site_null, [n]: codes as they are, since standardising them takes the site off."""
    known = steps.data.labelled
    test = (known.labels >= 0) & (known.halves == 1)
    if not test.any():
        return {}
    peers = [_peer(tensors, "code", place, "raw")[0] for place, _ in enumerate(_peers(steps, params), 1)]
    own = _peer(tensors, "code", 0, "raw")[0]
    share, behind = concept_site(scores.mean[test], known.labels[test], known.units[test], own, peers)
    null = concept_site_null(scores.mean, known, seed=steps.study.seed)
    return {
        "concept_site": (share.astype(np.float32), np.where(np.isnan(share), 0, np.minimum(fired, behind))),
        "concept_site_null": (
            null.astype(np.float32),
            np.where(np.isnan(null), 0, np.minimum(fired, _half_units(steps, 1))),
        ),
    }


def _peers(steps: Steps, params: Mapping[str, Any]) -> list[int]:
    """Sites (places in the protocol) whose moments follow this site's own, in their order."""
    count = len(steps.study.sites)
    return [int(index) for index in params.get("peers", []) if 0 <= int(index) < count]


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
    peers = _peers(steps, params)
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
