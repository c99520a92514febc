"""Membership: is this image in the study? AUC and true positives at 1 % false ones, by what leaves the site."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import norm
from torch import Tensor

from cytosae_core.errors import EgressError
from cytosae_core.privacy.accountant import strength
from cytosae_core.privacy.moments import (
    second_moment,
)
from cytosae_core.privacy.noise import clipped, grid_for, release
from cytosae_core.privacy.plan import PrivacyPlan
from cytosae_core.privacy.terms import PrivacyTerms
from cytosae_core.sae.pursuit import SparseCodes, reconstruct, unit_rows

from .attack_world import (
    BATCH,
    DELTA,
    EPSILONS,
    FALSE,
    MEMBERS,
    STEPS,
    Floats,
    Trial,
    World,
    drawn,
    local_round,
    metrics_of,
    public_clip,
    sent,
    statistics,
    trials,
)

Scores = dict[str, tuple[list[float], list[float]]]  # attack -> scores of members, of others


def record(found: Scores, name: str, values: NDArray[Any], trial: Trial) -> None:
    """Scores of a trial's candidates, members first."""
    cut = len(trial.members)
    found.setdefault(name, ([], []))
    found[name][0].extend(values[:cut].tolist())
    found[name][1].extend(values[cut:].tolist())


def rates(inside: list[float], outside: list[float]) -> tuple[float, float]:
    """AUC, and true positives at `FALSE` false ones (at most)."""
    own, other = np.array(inside), np.sort(np.array(outside))
    below = np.searchsorted(other, own, "left") + np.searchsorted(other, own, "right")
    threshold = other[-1 - int(FALSE * len(other))]
    return float(below.mean() / (2 * len(other))), float((own > threshold).mean())


def best(found: Scores) -> dict[str, Any]:
    """The attack with the largest AUC, and every attack's."""
    told = {name: rates(*values) for name, values in found.items()}
    name = max(told, key=lambda key: told[key][0])
    return {
        "attack": name, "auc": told[name][0], "tpr": told[name][1], "candidates": sum(map(len, found[name])),
        "all": {key: [round(value, 3) for value in pair] for key, pair in told.items()},
    }  # fmt: skip


def metrics_membership(world: World, trial: Trial, found: Scores) -> None:
    """Homer et al. 2008: does the candidate lean where the release leans, away from other images of the site?"""
    told = metrics_of(world, trial.members)
    views = {
        "firing_rate": world.scores.fired, "code_all_mean": world.scores.mean,
        "embedding_all_mean": world.scores.embedding,
    }  # fmt: skip
    total = np.zeros(len(trial.candidates))
    for name, values in views.items():
        one, other = values[trial.candidates].astype(np.float64), values[trial.reference].astype(np.float64)
        usable = np.isfinite(told[name]) & (other.std(axis=0) > 0)
        one, other, shown = one[:, usable], other[:, usable], told[name][usable]
        centre, spread = other.mean(axis=0), other.std(axis=0)
        score = ((one - centre) / spread) @ ((shown - centre) / spread)
        record(found, name, score, trial)
        total += score / score.std()
        scatter = np.cov(other.T) / np.outer(spread, spread)
        whitened = np.linalg.solve(scatter + 0.3 * np.eye(len(scatter)), (shown - centre) / spread)
        record(found, f"{name}, whitened", ((one - centre) / spread) @ whitened, trial)
    record(found, "all three", total, trial)


def metrics_all_others(world: World, trial: Trial, count: int) -> float:
    """Share of candidates whose presence changes any released number: who knows all others compares the bytes."""
    without = metrics_of(world, trial.members)
    changed = 0
    for candidate in trial.others[:count]:
        told = metrics_of(world, np.sort(np.append(trial.members, candidate)))
        changed += any(not np.array_equal(told[name], without[name], equal_nan=True) for name in told)
    return changed / count


def masked_membership(world: World, trial: Trial, seed: int, found: Scores) -> None:
    """Scores of candidates on a round's row changes; `calibrated`: less the same on the attacker's own training."""
    told = sent(world, local_round(world, trial.members, seed), trial.others)
    own = local_round(world, trial.reference, 1000 + seed)
    shadow = own.result.dictionary - world.base
    shadow = shadow * (told["delta"] != 0).any(dim=1, keepdim=True)
    plain = {}
    for place, delta in (("", told["delta"]), ("shadow", shadow)):
        plain["cosine" + place] = _nearest(world, delta, trial.candidates)
        plain["gradient" + place] = _agreement(world, delta, trial.candidates)
        plain["direction" + place] = _agreement(world, unit_rows(delta), trial.candidates)
    for name in ("cosine", "gradient", "direction"):
        record(found, name, plain[name], trial)
        record(found, f"{name}, calibrated", plain[name] - plain[name + "shadow"], trial)
    counts = told["fired"].numpy()
    shown = np.isfinite(counts)
    fired = world.scores.fired[:, shown].astype(np.float64)
    centre, spread = fired[trial.reference].mean(axis=0), fired[trial.reference].std(axis=0) + 1e-9
    lean = (counts[shown] / (STEPS * BATCH) - centre) / spread
    record(found, "row counts", ((fired[trial.candidates] - centre) / spread) @ lean, trial)


def _nearest(world: World, delta: Tensor, images: NDArray[np.int64]) -> Floats:
    """Mean over an image's tokens of the best |cos| with a row's change (the self-attack's membership score)."""
    rows = unit_rows(delta[(delta != 0).any(dim=1)])
    values = [(unit_rows(world.tokens[image]) @ rows.T).abs().amax(dim=1).mean() for image in images]
    return torch.stack(values).double().numpy()


def _agreement(world: World, delta: Tensor, images: NDArray[np.int64]) -> Floats:
    """Mean over an image's tokens of <what the token alone would change, what changed>."""
    across = delta - (delta * world.base).sum(dim=1, keepdim=True) * world.base
    size = world.tokens.shape[1]
    values = []
    for image in images:
        part = slice(image * size, (image + 1) * size)
        codes = SparseCodes(world.codes.rows[part], world.codes.values[part])
        values.append((reconstruct(codes, across) * world.rest[image]).sum(dim=1).mean())
    return torch.stack(values).double().numpy()


def masked_all_others(world: World, trial: Trial, count: int) -> float:
    """Share of candidates found by doing the round again with and without them: draws follow from public seeds."""
    right = 0
    for number, candidate in enumerate(trial.others[:count]):
        grown = np.sort(np.append(trial.members, candidate))
        told = sent(world, local_round(world, grown, number), trial.reference)["delta"]
        with_it, without = (
            sent(world, local_round(world, images, number), trial.reference)["delta"]
            for images in (grown, trial.members)
        )
        right += torch.equal(told, with_it) and not torch.equal(told, without)
    return right / count


def private_membership(
    rows: Floats, plan: PrivacyPlan, trial: Trial, population: Scores, others: Scores, whole: bool
) -> None:
    """Both attackers on one noised sum of the members' rows [images, size].

    whole: also try the best test of one candidate. Where all rows are alike and releases are few, its noise is one
    number per release that all candidates share, and candidates of one release must not be compared by it.
    """
    clip = plan.clip_norm
    grid = grid_for(clip, 1000, plan.noise_multiplier)
    total = release(rows[trial.members], clip, plan.noise_multiplier, grid) * grid
    cut = clipped(rows, clip)
    candidates, centre = cut[trial.candidates], cut[trial.reference].mean(axis=0)
    left = total - cut[trial.members].sum(axis=0)  # the noise, and each member beside it
    member = np.arange(len(candidates)) < len(trial.members)
    directions = {"projection": candidates, "projection beside the mean": candidates - centre}
    for name in directions if whole else list(directions)[1:]:
        unit = directions[name] / np.linalg.norm(directions[name], axis=1, keepdims=True)
        record(others, name, unit @ left + member * (unit * candidates).sum(axis=1), trial)
    lean = total - len(trial.members) * centre
    record(population, "projection", (candidates - centre) @ lean, trial)


def private_rows(world: World, count: int) -> dict[str, Any]:
    """Membership under `dp`: statistics with the whole epsilon; second moments with .3 of mu^2 (added concepts)."""
    found = {}
    rows, layout = statistics(world)
    moments = np.stack([second_moment(drawn(world, image)) for image in range(len(world.tokens))])
    clip = public_clip(world)
    for epsilon in EPSILONS:
        plain = PrivacyTerms(epsilon=epsilon, delta=DELTA, patients=MEMBERS, patients_in_all=1000)
        atoms = PrivacyTerms(
            epsilon=epsilon, delta=DELTA, patients=MEMBERS, patients_in_all=1000, atoms=24, second_clip=clip
        )
        for name, values, plan, repeats in (
            ("statistics", rows, plain.plan("describe", layout), 4 * count),
            ("second moments", moments, atoms.plan("second", layout), count),
        ):
            population: Scores = {}
            others: Scores = {}
            for trial in trials(repeats, len(values)):
                private_membership(values, plan, trial, population, others, name == "statistics")
            auc, tpr = _most(1 / plan.noise_multiplier)
            found[f"dp {epsilon:g}, {name}"] = {
                "population": best(population), "all others": best(others), "noise allows": {"auc": auc, "tpr": tpr},
                "clipped": float((np.linalg.norm(values, axis=1) > plan.clip_norm).mean()),
            }  # fmt: skip
        auc, tpr = _most(strength(epsilon, DELTA))
        found[f"dp {epsilon:g}, all together"] = {"noise allows": {"auc": auc, "tpr": tpr}}
    return found


def _most(mu: float) -> tuple[float, float]:
    """AUC and true positives at `FALSE` of the best test of N(mu, 1) against N(0, 1)."""
    return float(norm.cdf(mu / np.sqrt(2))), float(norm.sf(norm.isf(FALSE) - mu))


def membership(world: World, count: int) -> dict[str, Any]:
    """AUC and true positives at 1 % false ones, by profile and attacker."""
    frozen: Scores = {}
    masked: Scores = {}
    blocked = 0
    for seed, trial in enumerate(trials(count, len(world.tokens))):
        metrics_membership(world, trial, frozen)
        try:
            masked_membership(world, trial, seed, masked)
        except EgressError:
            blocked += 1
    one = next(trials(1, len(world.tokens)))
    return {
        "evaluate_only": {"population": best(frozen), "all others": metrics_all_others(world, one, 20)},
        "masked": {
            "population": best(masked), "all others": masked_all_others(world, one, 2), "rounds blocked": blocked,
        },
        **private_rows(world, count),
    }  # fmt: skip
