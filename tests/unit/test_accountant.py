"""Epsilon: against independently computed values, exact formulas and other accountants."""

from __future__ import annotations

import itertools
import math

import pytest

from cytosae_core.errors import StudyError
from cytosae_core.privacy.accountant import exact_delta, exact_epsilon, noise_for, pld_epsilon, strength

# noise multiplier, sampling rate, steps, delta; epsilon: add or remove one, replace one, and GDP's that is too small
KNOWN = [
    (1, 0.01, 1000, 1e-5, 1.828, 2.843, 1.618),
    (2, 0.05, 200, 1e-3, 1.009, 2.052, 0.965),
    (4, 0.1, 100, 1e-4, 0.815, 1.695, 0.787),
    (1, 0.1, 100, 1e-4, 5.966, 9.221, 5.264),
    (5, 0.25, 100, 1e-4, 1.756, 3.789, 1.718),
    (10, 1, 20, 1e-4, 1.495, 3.334, 1.499),
    (20, 1, 400, 1e-5, 4.377, 9.997, 4.380),
]


@pytest.mark.parametrize("known", KNOWN)
def test_a1_independent_values(known: tuple[float, ...]) -> None:
    noise, rate, steps, delta, epsilon, replaced, too_small = known
    found = pld_epsilon(noise, rate, int(steps), delta)
    assert epsilon - 0.0006 <= found <= 1.01 * epsilon
    assert replaced - 0.0006 <= pld_epsilon(noise, rate, int(steps), delta, "replace_one") <= 1.01 * replaced
    assert rate == 1 or found > too_small  # what the central limit approximation says is below it


@pytest.mark.parametrize("noise", [0.6, 1.081, 3.731, 20.0])
@pytest.mark.parametrize("steps", [1, 2, 50])
def test_a2_never_below_the_exact_value_without_sampling(noise: float, steps: int) -> None:
    exact = exact_epsilon(math.sqrt(steps) / noise, 1e-5)
    assert exact * (1 - 1e-9) <= pld_epsilon(noise, 1.0, steps, 1e-5) <= 1.002 * exact + 1e-3


def test_a3_more_steps_and_patients_cost_more_and_noise_less() -> None:
    assert all(
        a < b for a, b in itertools.pairwise(pld_epsilon(2, 0.1, steps, 1e-5) for steps in (1, 10, 100))
    )
    assert all(
        a < b for a, b in itertools.pairwise(pld_epsilon(2, rate, 20, 1e-5) for rate in (0.01, 0.2, 1))
    )
    assert all(a > b for a, b in itertools.pairwise(pld_epsilon(noise, 0.1, 20, 1e-5) for noise in (1, 2, 4)))
    assert pld_epsilon(2, 0.1, 20, 1e-7) > pld_epsilon(2, 0.1, 20, 1e-5)


@pytest.mark.parametrize(
    ("epsilon", "mu", "noise", "two"),
    [
        (1, 0.2681, 3.731, 5.276),
        (2, 0.5016, 1.994, 2.820),
        (4, 0.9249, 1.081, 1.529),
        (8, 1.6660, 0.600, 0.849),
    ],
)
def test_noise_of_equal_releases(epsilon: float, mu: float, noise: float, two: float) -> None:
    assert strength(epsilon, 1e-5) == pytest.approx(mu, abs=1e-4)
    assert noise_for(epsilon, 1e-5, 1) == pytest.approx(noise, abs=1e-3)
    assert noise_for(epsilon, 1e-5, 2) == pytest.approx(two, abs=1e-3)
    assert noise_for(epsilon, 1e-5, 2, 2) == pytest.approx(2 * two, abs=1e-3)
    assert exact_epsilon(strength(epsilon, 1e-5), 1e-5) == pytest.approx(epsilon, abs=1e-9)
    assert exact_delta(epsilon, strength(epsilon, 1e-5)) == pytest.approx(1e-5, rel=1e-6)


@pytest.mark.parametrize(
    "given",
    [
        (0.0, 0.1, 10, 1e-5), (-1.0, 0.1, 10, 1e-5), (math.nan, 0.1, 10, 1e-5), (math.inf, 0.1, 10, 1e-5),
        (1.0, 0.0, 10, 1e-5), (1.0, 1.1, 10, 1e-5), (1.0, 0.1, 0, 1e-5), (1.0, 0.1, 10, 0.0), (1.0, 0.1, 10, 0.5),
    ],
)  # fmt: skip
def test_values_that_promise_nothing_are_refused(given: tuple[float, float, int, float]) -> None:
    with pytest.raises(StudyError, match="Expected"):
        pld_epsilon(*given)
    with pytest.raises(StudyError, match="neighboring_relation"):
        pld_epsilon(1.0, 0.1, 10, 1e-5, "add_one_cell")
