"""One run of a private release with canaries in it (cytosae_core/privacy/auditing.py): the release as it is keeps its
promise as far as the audit can see, and every way of breaking it is seen.

Noise comes from the operating system, so these tests are random. Confidence .999: by the theorem a release that keeps
its promise is flagged with a chance of at most .001, whatever it does. Gaussian sums give away less than the theorem
allows for: in 4,000 simulated runs of each, right guesses lay 4.6 to 5.9 standard deviations below what a flag needs
(a chance of about 1e-6). All broken variants were flagged in all of 4,000 runs each. Of private gradients
fewer runs were made: 12 as they are (46 to 68 right guesses of 100, a flag needs 88), 3 of each variant (97 or more).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import numpy as np
import pytest
import torch
from scipy.stats import binom

from cytosae_core.errors import StudyError
from cytosae_core.privacy import metrics
from cytosae_core.privacy.accountant import noise_for
from cytosae_core.privacy.auditing import Audit, audit_sum, judge, lower_bound, p_value, presence
from cytosae_core.privacy.gradients import PrivateGradient, clipped_sum, descend
from cytosae_core.privacy.moments import second_moment
from cytosae_core.privacy.noise import clipped, discrete_gaussian, grid_for, integers, release
from cytosae_core.privacy.plan import PrivacyPlan
from cytosae_core.privacy.terms import PrivacyTerms
from cytosae_core.sae.models import PursuitModel
from cytosae_core.sae.pursuit import random_dictionary

Rows = np.ndarray
CANARIES, GUESSES, OTHERS, CONFIDENCE = 600, 100, 60, 0.999
# What a study promises: epsilon 1. Statistics have all of it; in a study with added concepts, second moments have a
# share of .48 of mu^2, and are held to the smaller epsilon of their own plan.
TERMS = PrivacyTerms(epsilon=1.0, delta=1e-5, patients=60, patients_in_all=1000)
WITH_ATOMS = PrivacyTerms(
    epsilon=1.0,
    delta=1e-5,
    patients=60,
    patients_in_all=1000,
    atoms=12,
    second_clip=2.0,
    tokens_of_a_patient=16,
)
LAYOUT = metrics.Layout(concepts=3, classes=240)
WIDTH = 64


@dataclass(frozen=True)
class Patients:
    """rows [p, size]: what each patient adds before clipping, canaries first; `parts(i)` [t, size]: what each of its
    images or tokens would add alone."""

    rows: Rows
    parts: Callable[[int], Rows]
    plan: PrivacyPlan


@cache
def plain() -> Patients:
    """Canaries of eight times the clip norm, each on an axis of its own, in eight equal tokens."""
    plan = TERMS.plan("describe", LAYOUT)
    rows = np.zeros((CANARIES + OTHERS, CANARIES + 100))
    rows[:CANARIES, :CANARIES] = 8 * plan.clip_norm * np.eye(CANARIES)
    rows[CANARIES:] = np.random.default_rng(0).standard_normal((OTHERS, rows.shape[1]))
    return Patients(rows, lambda index: np.repeat(rows[index : index + 1], 8, axis=0), plan)


@cache
def describe() -> Patients:
    """Patients as `describe` sees them: canaries have an image of every class, though one class was promised."""
    rng = np.random.default_rng(1)
    patients = []
    for index in range(CANARIES + OTHERS):
        classes = (
            np.arange(LAYOUT.classes) == index % LAYOUT.classes
            if index >= CANARIES
            else np.ones(LAYOUT.classes, bool)
        )
        scores = np.where(classes[:, None], 0.5 * rng.random((LAYOUT.classes, LAYOUT.concepts)), np.nan)
        patients.append(metrics.Patient(2 * rng.random(4), rng.random(LAYOUT.concepts), classes, scores))

    # What an image of one class says is what the patient says, less the other classes' numbers.
    own = np.stack([metrics.vector(_of_class(patients[0], group), LAYOUT) for group in range(LAYOUT.classes)])
    places = own != 0
    places[:, : -LAYOUT.classes * (1 + LAYOUT.concepts * metrics.BINS)] = True
    size = LAYOUT.concepts * metrics.BINS
    for group in range(LAYOUT.classes):
        start = LAYOUT.size - (LAYOUT.classes - group) * size
        places[group, start : start + size] = True

    def images(index: int) -> Rows:
        return rows[index] * places[patients[index].classes]

    rows = np.stack([metrics.vector(patient, LAYOUT) for patient in patients])
    assert (images(0) == own).all()
    return Patients(rows, images, TERMS.plan("describe", LAYOUT))


def _of_class(whole: metrics.Patient, group: int) -> metrics.Patient:
    one = np.arange(LAYOUT.classes) == group
    return metrics.Patient(whole.squares, whole.fired, one, np.where(one[:, None], whole.scores, np.nan))


@cache
def second() -> Patients:
    """Second moments of residual tokens: those of a patient lie along a direction of its own."""
    count = WITH_ATOMS.tokens_of_a_patient
    directions = np.random.default_rng(2).standard_normal((CANARIES + OTHERS, WIDTH))
    rows = np.stack([second_moment(np.stack([token, -token])) for token in directions])
    return Patients(
        rows,
        lambda index: np.repeat(rows[index : index + 1], count, axis=0),
        WITH_ATOMS.plan("second", LAYOUT),
    )


WORLDS = {"plain": plain, "describe": describe, "second": second}


# Variants: what a patient adds, and the noise over the promised one when `count` patients are in.


def per_patient(made: Patients, index: int) -> Rows:
    return clipped(made.rows[index : index + 1], made.plan.clip_norm)


def not_clipped(made: Patients, index: int) -> Rows:
    return made.rows[index : index + 1]


def per_token(made: Patients, index: int) -> Rows:
    return clipped(made.parts(index), made.plan.clip_norm)


@dataclass(frozen=True)
class Variant:
    adds: Callable[[Patients, int], Rows] = per_patient
    noise: Callable[[int], float] = lambda count: 1.0


BROKEN = {
    "no clip": Variant(adds=not_clipped),
    "noise over ten": Variant(noise=lambda count: 0.1),
    "noise over patients": Variant(noise=lambda count: 1 / count),
    "clip per token": Variant(adds=per_token),
}


@cache
def contributions(world: str, adds: Callable[[Patients, int], Rows]) -> Rows:
    """[p, size] what each patient adds to the sum."""
    made = WORLDS[world]()
    return np.stack([adds(made, index).sum(axis=0) for index in range(len(made.rows))])


def released(world: str, variant: Variant, included: np.ndarray) -> Rows:
    """The noised sum of the canaries that are in and of all others, less the others, whom the auditor knows."""
    made = WORLDS[world]()
    clip, noise = made.plan.clip_norm, made.plan.noise_multiplier
    grid = grid_for(clip, TERMS.patients_in_all, noise)
    chosen = np.concatenate([included, np.ones(OTHERS, bool)])
    sums = contributions(world, variant.adds)
    noise *= variant.noise(int(chosen.sum()))
    if variant.adds is per_patient:
        total = release(made.rows[chosen], clip, noise, grid)
    else:
        total = integers(sums[chosen], grid).sum(axis=0) + discrete_gaussian(
            sums.shape[1], noise * clip / grid
        )
    return np.asarray(total * grid - sums[CANARIES:].sum(axis=0))


def run(world: str, variant: Variant) -> Audit:
    canaries = contributions(world, variant.adds)[:CANARIES]
    return audit_sum(
        lambda included: released(world, variant, included), canaries, GUESSES, TERMS.delta, CONFIDENCE
    )


@pytest.mark.parametrize("world", WORLDS)
def test_a_release_keeps_its_promise(world: str) -> None:
    assert not run(world, Variant()).refutes(WORLDS[world]().plan.epsilon)


@pytest.mark.parametrize("variant", BROKEN)
@pytest.mark.parametrize("world", WORLDS)
def test_a_broken_release_is_flagged(world: str, variant: str) -> None:
    found = run(world, BROKEN[variant])
    assert found.refutes(WORLDS[world]().plan.epsilon), found


# Private gradients (research only): ten steps with all patients, on a dictionary in which every canary owns a row.

DRAWN, FOLLOWED, STEPS, RATE, SIDE = 8, 300, 10, 0.01, 16


@cache
def gradient_patients() -> tuple[PursuitModel, list[torch.Tensor]]:
    """Tokens of a canary are all 20 D_i + u_i with u_i across D_i: row i alone moves, by 20 times the clip norm."""
    rng = torch.Generator().manual_seed(1)
    model = PursuitModel(random_dictionary(FOLLOWED, SIDE, 0), 1)
    across = torch.randn(FOLLOWED, SIDE, generator=rng)
    across -= (across * model.dictionary).sum(dim=1, keepdim=True) * model.dictionary
    tokens = 20 * model.dictionary + across / across.norm(dim=1, keepdim=True)
    canaries = [token.expand(DRAWN, SIDE).contiguous() for token in tokens]
    return model, canaries + [torch.randn(DRAWN, SIDE, generator=rng) for _ in range(20)]


def gradient_plan(clip: float = 1.0, noise: float = 1.0) -> PrivacyPlan:
    """What is promised: epsilon 1 for all steps; `clip` and `noise` are factors that break it."""
    s = noise * noise_for(1.0, TERMS.delta, STEPS)
    return PrivacyPlan(clip_norm=clip, noise_multiplier=s, sampling_rate=1.0, steps=STEPS, delta=TERMS.delta)


def run_gradients(plan: PrivacyPlan, per_token: bool = False) -> Audit:
    """Ten released gradients, followed to new dictionaries; scores take the rows' first directions."""
    start, patients = gradient_patients()
    drawn = 1 if per_token else DRAWN
    records = [list(patient.split(drawn)) for patient in patients]
    alone = np.stack([clipped_sum(start, parts, 1.0)["dictionary"].numpy().ravel() for parts in records])

    def steps(included: np.ndarray) -> Rows:
        chosen = np.flatnonzero(np.append(included, np.ones(len(patients) - FOLLOWED, bool)))
        inside = [part for index in chosen for part in records[index]]
        private = PrivateGradient(plan, len(chosen), drawn)
        model, total = start, np.zeros(start.dictionary.numel())
        for _ in range(STEPS):
            gradient = private.step(model, inside)
            total += gradient["dictionary"].double().numpy().ravel() * len(chosen)
            model = descend(model, gradient, RATE)
        return np.asarray(total / STEPS - alone[FOLLOWED:].sum(axis=0))

    return audit_sum(steps, alone[:FOLLOWED], GUESSES, TERMS.delta, CONFIDENCE)


def test_private_gradients_keep_their_promise() -> None:
    assert gradient_plan().epsilon == pytest.approx(1.0, abs=1e-3)
    assert not run_gradients(gradient_plan()).refutes(gradient_plan().epsilon)


GRADIENTS = {
    "no clip": (gradient_plan(clip=100.0, noise=0.01), False),  # the same noise
    "noise over ten": (gradient_plan(noise=0.1), False),
    "noise over patients": (gradient_plan(noise=1 / 200), False),
    "clip per token": (gradient_plan(), True),
}


@pytest.mark.parametrize("variant", GRADIENTS)
def test_broken_private_gradients_are_flagged(variant: str) -> None:
    found = run_gradients(*GRADIENTS[variant])
    assert found.refutes(gradient_plan().epsilon), found


def test_the_promises_are_those_of_a_study() -> None:
    assert WORLDS["describe"]().plan.epsilon == pytest.approx(1.0, rel=1e-3)
    assert 0.6 < WORLDS["second"]().plan.epsilon < 0.72
    # Canaries reach the clip norm, up to its last millionth: nothing of the promise is left unused.
    for world in WORLDS:
        norms = np.linalg.norm(contributions(world, per_patient)[:CANARIES], axis=1)
        assert norms == pytest.approx(WORLDS[world]().plan.clip_norm, rel=2e-6)


@pytest.mark.parametrize(
    ("canaries", "guesses", "correct", "delta", "printed"),
    [(1000, 100, 75, 1e-4, 0.673), (100_000, 1510, 1439, 1e-5, 2.675)],
    ids=["appendix D", "section 7"],
)
def test_e1_bounds_of_the_paper(
    canaries: int, guesses: int, correct: int, delta: float, printed: float
) -> None:
    assert lower_bound(canaries, guesses, correct, delta, 0.95) == pytest.approx(printed, abs=1e-3)


def test_e1_without_delta_it_is_a_binomial_test_and_delta_only_lowers_it() -> None:
    assert p_value(100, 80, 60, 0.7, 0.0) == pytest.approx(binom.sf(59, 80, 1 / (1 + math.exp(-0.7))))
    assert lower_bound(300, 100, 100, 0.0) == pytest.approx(3.49, abs=0.01)  # nothing above can be seen
    bounds = [lower_bound(300, 100, 95, delta) for delta in (0.0, 1e-6, 1e-4, 1e-2)]
    assert bounds == sorted(bounds, reverse=True) and bounds[0] > bounds[2] > bounds[3]
    more = [lower_bound(300, 100, correct, 1e-5) for correct in (40, 60, 70, 80, 90, 100)]
    assert more == sorted(more) and more[0] == 0.0 and more[-1] > more[-2] > more[2]


@pytest.mark.parametrize("epsilon", [0.3, 1.0, 3.0])
@pytest.mark.parametrize("confidence", [0.9, 0.95, 0.999])
def test_e2_randomised_response_is_rarely_refuted(epsilon: float, confidence: float) -> None:
    correct = np.arange(201)
    told = binom.pmf(correct, 200, 1 / (1 + math.exp(-epsilon)))
    refuted = np.array([p_value(200, 200, int(v), epsilon, 0.0) < 1 - confidence for v in correct])
    assert 0 < told[refuted].sum() <= 1 - confidence
    first = int(refuted.argmax())
    assert lower_bound(200, 200, first - 1, 0.0, confidence) <= epsilon
    assert lower_bound(200, 200, first, 0.0, confidence) > epsilon


def test_e2_a_release_that_tells_everything_with_chance_delta_is_rarely_refuted() -> None:
    epsilon, delta, correct = 1.0, 0.01, np.arange(101)
    told = (1 - delta) * binom.pmf(correct, 100, 1 / (1 + math.exp(-epsilon)))
    told[100] += delta
    refuted = np.array([p_value(100, 100, int(v), epsilon, delta) < 0.05 for v in correct])
    assert told[refuted].sum() <= 0.05
    # Without the term for delta, the same at confidence .995 would be wrong twice as often as it says.
    wrong = np.array([p_value(100, 100, int(v), epsilon, 0.0) < 0.005 for v in correct])
    assert told[wrong].sum() > 0.01


def test_guesses_are_the_highest_and_the_lowest_scores() -> None:
    included = np.arange(10) % 2 == 0
    found = judge(np.where(included, 1.0, -1.0) + np.arange(10) / 100, included, 6, 0.0)
    assert (found.correct, found.guesses, found.canaries) == (6, 6, 10)
    assert judge(np.where(included, -1.0, 1.0), included, 6, 0.0).correct == 0


def test_presence_takes_off_what_canaries_share() -> None:
    canaries = np.random.default_rng(3).standard_normal((20, 50)) + 5
    lengths = np.linalg.norm(canaries, axis=1)
    assert presence(canaries[::2].sum(axis=0), canaries) / lengths == pytest.approx([1, 0] * 10, abs=1e-8)


def test_numbers_that_do_not_fit_are_refused() -> None:
    for numbers in ((10, 12, 5), (10, 8, 9)):
        with pytest.raises(StudyError, match="correct <= guesses <= canaries"):
            p_value(*numbers, 1.0, 0.0)
    with pytest.raises(StudyError, match="confidence"):
        lower_bound(10, 10, 5, 0.0, 1.0)
    with pytest.raises(StudyError, match="even number"):
        judge(np.zeros(4), np.zeros(4, bool), 3, 0.0)
    with pytest.raises(StudyError, match="not zero"):
        presence(np.zeros(3), np.zeros((2, 3)))
