"""Meta-analysis: numpy's and the verifier's against metafor's published numbers and against each other."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.stats import t as student

from cytosae_core.audit.recompute.meta import meta_of, t_quantile
from cytosae_core.audit.recompute.meta import reml as plain_reml
from cytosae_core.report.meta import meta_auroc, random_effects, reml

# BCG vaccine trials (Colditz et al. 1994; metafor's dat.bcg): tpos, tneg, cpos, cneg.
BCG = np.array(
    [
        (4, 119, 11, 128), (6, 300, 29, 274), (3, 228, 11, 209), (62, 13536, 248, 12619), (33, 5036, 47, 5761),
        (180, 1361, 372, 1079), (8, 2537, 10, 619), (505, 87886, 499, 87892), (29, 7470, 45, 7232),
        (17, 1699, 65, 1600), (186, 50448, 141, 27197), (5, 2493, 3, 2338), (27, 16886, 29, 17825),
    ],
    dtype=float,
)  # fmt: skip


def bcg() -> tuple[np.ndarray, np.ndarray]:
    """Log risk ratios and their variances, as metafor's escalc(measure="RR")."""
    a, b, c, d = BCG.T
    return np.log((a / (a + b)) / (c / (c + d))), 1 / a - 1 / (a + b) + 1 / c - 1 / (c + d)


def test_bcg_equals_metafor() -> None:
    y, v = bcg()
    assert random_effects(y, v, "EE").mean == pytest.approx(-0.4303, abs=1e-4)
    assert random_effects(y, v, "EE").q == pytest.approx(152.2330, abs=1e-4)
    assert random_effects(y, v, "DL").mean == pytest.approx(-0.7141, abs=1e-4)
    fit = random_effects(y, v)
    assert (fit.tau2, fit.mean) == pytest.approx((0.3132, -0.7145), abs=1e-4)
    assert fit.i2 == pytest.approx(0.9222, abs=1e-4)


def test_the_verifiers_own_reml_equals_metafor() -> None:
    y, v = (list(map(float, values)) for values in bcg())
    tau2 = plain_reml(y, v)
    assert tau2 == pytest.approx(0.3132, abs=1e-4)
    weight = [1 / (item + tau2) for item in v]
    assert sum(w * e for w, e in zip(weight, y, strict=True)) / sum(weight) == pytest.approx(
        -0.7145, abs=1e-4
    )


def test_both_implementations_agree() -> None:
    rng = np.random.default_rng(0)
    estimated = 0
    for _ in range(300):
        sites = int(rng.integers(3, 12))
        aurocs = np.round(rng.uniform(0.5, 1.0) + rng.normal(0, 0.1, sites), 3).clip(0.001, 0.999)
        errors = [float(f"{value:.4g}") for value in rng.uniform(0.003, 0.15, sites)]
        ours, plain = meta_auroc(list(aurocs), errors), meta_of(list(map(float, aurocs)), errors)
        assert ours.keys() == plain.keys() and ours["status"] == plain["status"]
        estimated += ours["status"] == "estimated"
        for name, value in ours.items():
            if isinstance(value, float):
                assert plain[name] == pytest.approx(value, rel=1e-6, abs=1e-6), name
    assert estimated == 300


def test_numbers_that_only_a_hostile_site_sends_stop_nobody() -> None:
    rng = np.random.default_rng(1)
    for _ in range(500):
        aurocs = [float(value) for value in rng.choice([0.0001, 0.5, 0.731, 0.9999], size=4)]
        errors = [float(value) for value in rng.choice([1e-6, 1e-4, 0.03, 1.0], size=4)]
        ours, plain = meta_auroc(aurocs, errors), meta_of(aurocs, errors)
        assert ours["status"] == plain["status"] == "estimated"
        for name, value in ours.items():
            if isinstance(value, float):
                assert math.isfinite(value) and plain[name] == pytest.approx(value, rel=1e-6, abs=1e-6), name


def test_same_effect_everywhere_has_no_spread() -> None:
    fit = meta_auroc([0.8, 0.8, 0.8], [0.05, 0.05, 0.05])
    assert fit["estimate"] == pytest.approx(0.8) and fit["tau2"] == 0 and fit["i2"] == 0
    assert fit["prediction_low"] < fit["low"] < 0.8 < fit["high"] < fit["prediction_high"]


def test_sites_that_differ_have_spread() -> None:
    fit = meta_auroc([0.55, 0.75, 0.95], [0.02, 0.02, 0.02])
    assert fit["tau2"] > 0.5 and fit["i2"] > 0.9 and fit["h2"] > 10


@pytest.mark.parametrize(
    ("aurocs", "errors"),
    [
        ([0.8, 0.9], [0.1, 0.1]),
        ([0.8, 0.9, 1.0], [0.1] * 3),
        ([0.8, 0.0, 0.9], [0.1] * 3),
        ([0.7] * 3, [0.1, 0.1, 0.0]),
        ([0.7] * 3, [0.1, 0.1, 1e-200]),
        ([0.7] * 3, [0.1, 0.1, 2.0]),
    ],
)
def test_not_estimable_says_so(aurocs: list[float], errors: list[float]) -> None:
    for found in (meta_auroc(aurocs, errors), meta_of(aurocs, errors)):
        assert found["status"] == "not_estimable" and found["sites"] == len(aurocs)
        assert found["estimate"] is None and found["prediction_low"] is None
    assert meta_auroc([0.7] * 3, [0.1, 0.1, None])["status"] == "not_estimable"


def test_numbers_that_are_no_effects_are_refused() -> None:
    with pytest.raises(ValueError, match="at least 3"):
        random_effects(np.zeros(2), np.ones(2))
    with pytest.raises(ValueError, match="method"):
        random_effects(np.zeros(3), np.ones(3), "ML")


def test_t_quantiles() -> None:
    for df in (1, 2, 3, 4, 5, 7, 12, 29, 126):
        assert t_quantile(df) == pytest.approx(float(student.ppf(0.975, df)), abs=1e-9)


def test_reml_is_where_the_restricted_likelihood_is_largest() -> None:
    y, v = bcg()

    def likelihood(tau2: float) -> float:
        w = 1 / (v + tau2)
        mean = w @ y / w.sum()
        return -0.5 * (np.log(v + tau2).sum() + math.log(w.sum()) + w @ (y - mean) ** 2)

    best = reml(y, v)
    assert likelihood(best) > max(likelihood(best - 0.01), likelihood(best + 0.01))
