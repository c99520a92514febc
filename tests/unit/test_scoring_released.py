"""What a whole study in memory releases in `score` and `describe`, through the door, with the policy's limits."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cytosae_client.scoring import attribute_levels, describe, score, shared_classes
from cytosae_client.steps import Steps
from cytosae_core.config import PROBES, Attribute, StatisticsConfig
from cytosae_server.probes import COLOUR_VARIANCE, ScoreRequests
from tests.federation import CLASSES, MASKED, FakeStore, Federation, make_site, study_config

RELEASED = {
    "balanced_accuracy", "balanced_accuracy_se", "calibration", "coverage", "subgroup", "ablation",
    "concept_site", "concept_site_null", "site_recall",
}  # fmt: skip
RECURRENCE = ("recurrence", "recurrence_init", "recurrence_null")
COLOUR, OWN = PROBES.index("colour histogram"), PROBES.index("same site")


class PicturedStore(FakeStore):
    """A store that knows colours: each class has one that is its own, and there is some noise."""

    def __init__(self, tokens: np.ndarray, labels: list[int]) -> None:
        super().__init__(tokens)
        rng = np.random.default_rng(len(tokens))
        self._colours = rng.uniform(0, 0.01, (len(tokens), 64))
        self._colours[np.arange(len(tokens)), np.array(labels) + 5] += 0.5
        self._colours = (self._colours / self._colours.sum(axis=1, keepdims=True)).astype(np.float32)

    def colours(self) -> np.ndarray:
        return self._colours

    def image_facts(self) -> np.ndarray:
        return np.full((self.n_images, 4), np.nan, np.float32)


def statistics(**changes: Any) -> StatisticsConfig:
    base = study_config().statistics
    return replace(
        base, bootstrap=200, recurrence_steps=40, subgroups=(Attribute("granules", 0.5),), **changes
    )


def pictured(home: Path, name: str, seed: int) -> Any:
    site = make_site(name, home, MASKED, seed=seed)
    labels = [CLASSES.index(label) for label in site.labels]
    return replace(site, store=PicturedStore(site.store.tokens(0, 60), labels))


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Any:
    home = tmp_path_factory.mktemp("study")
    federation = Federation(home, study=study_config(statistics=statistics()))
    for index, name in enumerate(federation.study.sites[:2]):  # the third site keeps no pictures
        federation.sessions[name].site = pictured(home, name, index)
    return federation, federation.run()


def test_every_site_answers_with_every_tensor_of_its_shape(finished: Any) -> None:
    federation, run = finished
    dims = federation.study.dims
    for tables in run.result.scores.values():
        assert set(tables) >= RELEASED
        assert tables["calibration"].shape == (dims["c"], dims["k"])
        assert tables["ablation"].shape == (dims["n"], dims["c"])
        assert tables["subgroup"].shape == (1, 2) and tables["coverage"].shape == (dims["a"], 2)
        assert (tables["balanced_accuracy_se"][:4] > 0).all()
        assert (tables["balanced_accuracy_se"][:4] < 0.2).all()
        assert tables["balanced_accuracy"][OWN] > 0.8 and 0 < tables["balanced_accuracy_se"][OWN] < 0.2
    described = run.result.describe["final"]
    for site in described:
        tables = described[site]
        known = ~np.isnan(tables["recurrence"])
        assert known.sum() > 10
        assert np.mean(tables["recurrence"][known]) > np.mean(tables["recurrence_init"][known])
        assert 0 < tables["recurrence_null"][0] < 1
    assert not set(RECURRENCE) & set(run.result.describe["random"]["site-0"])


def test_the_colour_probe_is_scored_where_there_are_colours(finished: Any) -> None:
    _, run = finished
    found = {site: tables["balanced_accuracy"][COLOUR] for site, tables in run.result.scores.items()}
    assert found["site-0"] == 1.0 and found["site-1"] == 1.0
    assert np.isnan(found["site-2"]) and np.isnan(run.result.scores["site-2"]["balanced_accuracy_se"][COLOUR])


def test_a_probe_of_colours_is_made_of_the_other_sites_only(finished: Any) -> None:
    federation, run = finished
    described = run.result.describe["final"]
    requests = ScoreRequests(federation.study, described)
    sent = requests.tensors("site-0")
    assert np.allclose(sent["probe_colour_mean"], described["site-1"]["colour_class_mean"], equal_nan=True)
    assert (sent["probe_colour_var"] >= COLOUR_VARIANCE * 0.999).all()
    both = requests.tensors("site-2")["probe_colour_mean"]
    own = [described[site]["colour_class_mean"] for site in ("site-0", "site-1")]
    known = ~(np.isnan(own[0]) | np.isnan(own[1])).any(axis=0)
    assert known.any() and np.allclose(both[:, known], np.mean(own, axis=0)[:, known], atol=1e-6)


def test_without_colours_anywhere_no_probe_of_them_is_sent(tmp_path: Path) -> None:
    federation = Federation(tmp_path)
    run = federation.run()
    sent = ScoreRequests(federation.study, run.result.describe["final"]).tensors("site-0")
    assert not [name for name in sent if "colour" in name]
    for tables in run.result.scores.values():
        assert np.isnan(tables["balanced_accuracy"][COLOUR]) and "subgroup" not in tables
    assert not set(RECURRENCE) & set(run.result.describe["final"]["site-0"])  # nobody asked for it


def ask(federation: Federation, run: Any, site: str) -> tuple[Steps, dict[str, np.ndarray], dict[str, Any]]:
    requests = ScoreRequests(federation.study, run.result.describe["final"])
    scale = {"mean": run.scale.mean, "scale": np.array([run.scale.scale], np.float32)}
    tensors = {"dictionary": run.result.final, **scale, **requests.tensors(site)}
    return federation.sessions[site].steps, tensors, {"peers": requests.peers(site)}


def test_nothing_is_released_of_fewer_units_than_the_policy_asks_for(finished: Any) -> None:
    """The units behind each value, as the step tells the door."""
    federation, run = finished
    steps, tensors, params = ask(federation, run, "site-0")
    answer = score(steps, tensors, params)
    fired = (steps.score_all(*steps.model(model_of(tensors))).fired > 0).astype(int)
    patients = np.unique(steps.data.unit_index)
    fired_in = np.array([fired[steps.data.unit_index == unit].max(axis=0) for unit in patients]).sum(axis=0)
    for name in ("concept_site", "concept_site_null"):
        assert (np.asarray(answer.releases[name].units) <= fired_in).all()
    assert (np.asarray(answer.releases["ablation"].units) <= fired_in[:, None]).all()
    for name, release in answer.releases.items():
        units = np.broadcast_to(np.asarray(release.units), np.asarray(release.values).shape)
        assert units.max() <= 30, name
        assert (units[np.isnan(release.values)] == 0).all(), name


def model_of(tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {name: tensors[name] for name in ("dictionary", "mean", "scale")}


def test_an_old_policy_keeps_the_new_numbers_at_the_site(finished: Any) -> None:
    federation, run = finished
    steps, tensors, params = ask(federation, run, "site-0")
    names = tuple(name for name in MASKED.metrics if name not in RELEASED | set(RECURRENCE))
    policy = replace(MASKED, metrics=(*names, "site_recall", "recurrence_init"))
    old = Steps(steps.site, steps.study, policy, steps.events)
    assert set(score(old, tensors, params).releases) == {"site_recall"}
    assert not set(describe(old, model_of(tensors), {"full": True}).releases) & set(RECURRENCE)


def test_the_order_of_concepts_changes_nothing_but_the_order_of_answers(finished: Any) -> None:
    federation, run = finished
    steps, tensors, params = ask(federation, run, "site-0")
    plain = score(steps, tensors, params).releases
    turn = np.random.default_rng(0).permutation(federation.study.dictionary.n)
    turned = {}
    for name, values in tensors.items():
        concepts = name == "dictionary" or "code" in name or name.startswith(("probe_stand", "probe_raw"))
        axis = 0 if name == "dictionary" else values.ndim - 1
        turned[name] = np.take(values, turn, axis=axis) if concepts else values
    other = score(steps, turned, params).releases
    for name in ("concept_site", "concept_site_null", "ablation"):
        assert np.allclose(other[name].values, plain[name].values[turn], atol=2e-4, equal_nan=True), name
    for name in ("calibration", "balanced_accuracy", "balanced_accuracy_se", "subgroup"):
        assert np.allclose(other[name].values, plain[name].values, atol=1e-4, equal_nan=True), name


def test_a_site_signal_planted_in_one_concept_is_found_there(finished: Any) -> None:
    """The other sites' class means of one concept moved away: this site can be told by it, and by no other."""
    federation, run = finished
    steps, tensors, params = ask(federation, run, "site-0")
    before = score(steps, tensors, params).releases["concept_site"].values
    concept = int(np.flatnonzero(~np.isnan(before))[0])
    moved = {name: values.copy() for name, values in tensors.items()}
    moved["peer_code_half_class_mean"][1:, :, concept] += 100
    after = score(steps, moved, params).releases["concept_site"].values
    assert after[concept] == 1.0
    assert np.allclose(np.delete(after, concept), np.delete(before, concept), equal_nan=True)


# Subgroups


def test_levels_of_an_attribute() -> None:
    rows = [{"age": "70"}, {"age": "12"}, {"age": ""}, {}, {"age": "old"}]
    assert attribute_levels(rows, Attribute("age", 65)).tolist() == [1, 0, -1, -1, -1]


def test_a_class_counts_in_a_subgroup_with_five_units_on_both_sides() -> None:
    units = np.arange(40)
    labels, levels = np.repeat([0, 1], 20), np.tile([0, 1], 20)
    assert shared_classes(labels, units, levels) == [0, 1]
    levels[20:32] = 0  # class 1 keeps four units of level 1
    assert shared_classes(labels, units, levels) == [0]
    assert shared_classes(np.full(40, -1), units, levels) == []


def test_a_subgroup_on_which_the_probe_fails_has_the_gap_that_was_planted(tmp_path: Path) -> None:
    """Where granules are absent the labels are shuffled: accuracy falls to chance there, and only there."""
    federation = Federation(tmp_path, study=study_config(statistics=statistics()))
    run = federation.run()
    plain_steps, tensors, params = ask(federation, run, "site-0")
    plain = score(plain_steps, tensors, params).releases["subgroup"]
    site = federation.sites["site-0"]
    spoiled = np.array([row["granules"] == "0" for row in site.attributes])
    labels = np.array(site.labels, dtype=object)
    labels[spoiled] = np.roll(labels[spoiled], 7)
    federation.sessions["site-0"].site = replace(site, labels=labels.tolist())
    steps = Steps(federation.sessions["site-0"].site, federation.study, MASKED, plain_steps.events)
    found = score(steps, tensors, params).releases["subgroup"]
    assert abs(plain.values[0, 0]) < 3 * plain.values[0, 1] + 0.05
    assert found.values[0, 0] > 0.3 and found.values[0, 0] > 3 * found.values[0, 1] > 0.03
    assert np.asarray(found.units).min() >= 11
