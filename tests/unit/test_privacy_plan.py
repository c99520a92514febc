"""A privacy plan: one promise, whose parts can't be changed alone; and what it would buy."""

from __future__ import annotations

import json
from dataclasses import FrozenInstanceError, replace

import pytest

from cytosae_core.errors import StudyError
from cytosae_core.privacy.advice import advise
from cytosae_core.privacy.plan import PrivacyPlan, plan_from_dict
from cytosae_local.cli import main

PLAN = PrivacyPlan(clip_norm=1.0, noise_multiplier=1.0, sampling_rate=0.01, steps=1000, delta=1e-5)


def test_p1_epsilon_follows_from_everything_else() -> None:
    assert PLAN.epsilon == pytest.approx(1.828, abs=1e-3)
    assert replace(PLAN, steps=2000).epsilon > PLAN.epsilon
    assert replace(PLAN, clip_norm=9.0).epsilon == PLAN.epsilon  # the noise grows with it
    with pytest.raises(FrozenInstanceError):
        PLAN.steps = 1  # type: ignore[misc]
    with pytest.raises(TypeError):
        PrivacyPlan(1.0, 1.0, 0.01, 1000, 1e-5, epsilon=0.1)  # type: ignore[call-arg]


@pytest.mark.parametrize(
    "change",
    [{"epsilon": 0.5}, {"epsilon": None}, {"noise_multiplier": 2.0}, {"steps": 10}, {"extra": 1}, {"unit": "cell"},
     {"accountant": "gdp"}, {"urn": "urn:other"}, {"sites_of_a_patient": 0}, {"clip_norm": 0.0}],
)  # fmt: skip
def test_p2_a_plan_that_does_not_give_its_epsilon_is_refused(change: dict[str, object]) -> None:
    values = json.loads(json.dumps(PLAN.to_dict()))
    assert plan_from_dict(values) == PLAN
    with pytest.raises(StudyError):
        plan_from_dict({**values, **change})


def test_p3_a_patient_at_two_sites_costs_what_half_the_noise_costs() -> None:
    twice = replace(PLAN, sites_of_a_patient=2)
    assert twice.epsilon == replace(PLAN, noise_multiplier=0.5).epsilon > PLAN.epsilon


def test_a_delta_for_too_many_patients_and_an_empty_promise_are_refused() -> None:
    PLAN.require(10_000)
    with pytest.raises(StudyError, match=r"delta <= 1 / \(10 patients\)"):
        PLAN.require(10_001)
    loud = replace(PLAN, noise_multiplier=0.3)
    assert not loud.meaningful
    with pytest.raises(StudyError, match="no meaningful guarantee"):
        loud.require(100)


def test_from_how_many_patients_on_it_pays() -> None:
    """Smallest numbers of the reference measurements: 870 at epsilon 4, 3,000 at epsilon 1, at width 384."""
    four, one = (advise(epsilon, 1e-5, width=384, sites=4) for epsilon in (4.0, 1.0))
    assert four.central == pytest.approx(870, rel=0.01) and one.central == pytest.approx(3000, rel=0.01)
    assert four.local == pytest.approx(2 * four.central, abs=1) and four.profile is None
    assert advise(8.0, 1e-5, width=128, sites=4).central == 500
    assert advise(4.0, 1e-5, width=384, sites=4, patients=900).profile == "dp"
    few = advise(4.0, 1e-5, width=384, sites=4, patients=400)
    assert few.profile == "evaluate_only" and few.visible == pytest.approx(
        1.05 * 768**0.5 * 1.529 / 400, rel=1e-3
    )
    assert advise(4.0, 1e-5, width=384, sites=4, sites_of_a_patient=2).central == pytest.approx(
        2 * 875, rel=0.01
    )


def test_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    asked = ["study", "plan-privacy", "--noise-multiplier", "5.276", "--steps", "2", "--width", "384"]
    assert main([*asked, "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert (
        facts["epsilon"] == pytest.approx(1, abs=1e-3)
        and facts["neighboring_relation"] == "add_or_remove_one"
    )
    assert facts["epsilon"] < facts["epsilon_opacus"] < 1.02 < facts["epsilon_replace_one"]
    assert facts["advice"]["central"] == pytest.approx(3015, abs=10) and facts["unit"] == "patient"
    assert main([*asked, "--patients", "2000"]) == 0
    text = capsys.readouterr().out
    assert "would not pay" in text and "frozen" in text and "kind: validate, profile: dp" in text


def test_the_command_says_no(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["study", "plan-privacy", "--noise-multiplier", "0.2"]) == 1
    assert "No meaningful guarantee" in capsys.readouterr().out
    assert main(["study", "plan-privacy", "--noise-multiplier", "9", "--patients", "20000"]) == 1
    assert "delta" in capsys.readouterr().err
    assert main(["study", "plan-privacy", "--noise-multiplier", "-1"]) == 1
    assert "Expected noise_multiplier" in capsys.readouterr().err
