"""Switching concepts off and on: a planted concept matters, matched random ones do not."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from cytosae_core.errors import DataError
from cytosae_core.worth.effect import Decoded, concept_effect, fit_readout, rank_concepts

N, D, PLANTED = 60, 20, 7


def planted(*, effect: float = 3.0, in_rest: bool = False) -> tuple[Decoded, np.ndarray, np.ndarray]:
    """200 images of two classes; the class shows in concept 7, or only in what is unexplained."""
    rng = np.random.default_rng(0)
    labels = np.arange(200) % 2
    codes = rng.gamma(2.0, 0.5, size=(200, N))
    decoder = np.linalg.qr(rng.normal(size=(N, D)))[0]
    decoder /= np.linalg.norm(decoder, axis=1, keepdims=True)
    rest = rng.normal(scale=0.1, size=(200, D))
    if in_rest:
        rest[:, 0] += effect * labels
    else:
        codes[:, PLANTED] += effect * labels
    return Decoded(codes, np.ones((200, N)), decoder, np.zeros(D), rest), labels, np.arange(200)


def curve(found: dict[str, Any], mode: str, rest: str) -> list[dict[str, Any]]:
    return list(found["curves"][mode][rest])


def test_a_planted_concept_is_ranked_first_and_matters_beyond_matched_ones() -> None:
    found = concept_effect(*planted(), 1)
    assert found["top"][0] == PLANTED
    assert found["intact"]["balanced_accuracy"]["value"] > 0.8
    first = curve(found, "off", "rest kept")[0]["probability"]
    assert first["high"] < -0.3 and first["p"] < 0.02
    assert first["random"]["low"] > -0.3 and first["value"] < first["random"]["low"]
    assert curve(found, "off", "rest kept")[0]["balanced_accuracy"]["value"] < -0.2


def test_without_a_planted_concept_switching_off_does_no_more_than_random() -> None:
    found = concept_effect(*planted(in_rest=True), 1)
    first = curve(found, "off", "rest kept")[0]["probability"]
    assert first["p"] > 0.02 and abs(first["value"]) < 0.2
    # the class is in what the dictionary did not explain: dropping that loses it, whatever is kept
    everything = curve(found, "off", "rest dropped")[0]["balanced_accuracy"]
    assert everything["value"] < -0.3
    assert curve(found, "off", "rest kept")[0]["balanced_accuracy"]["value"] > -0.1


def test_masking_all_but_nothing_changes_nothing() -> None:
    """x = offset + codes @ decoder + rest: nothing is added that was not there (no hard-coded bias)."""
    decoded, labels, _ = planted()
    probe = fit_readout(decoded.tokens, labels)
    whole = decoded.tokens @ probe.weights + probe.bias
    parts = (decoded.offset + decoded.rest) @ probe.weights + probe.bias
    assert np.allclose(parts + decoded.codes @ (decoded.decoder @ probe.weights), whole)


def test_sizes_stop_where_nothing_comparable_is_left() -> None:
    found = concept_effect(*planted(), 1)
    assert [point["k"] for point in curve(found, "off", "rest kept")] == [1, 2, 5, 10, 20]


def test_ranking_prefers_the_concept_of_the_class_to_the_most_active_one() -> None:
    codes = np.ones((40, 3)) + np.random.default_rng(1).normal(scale=0.1, size=(40, 3))
    positive = np.arange(40) < 20
    codes[:, 0] += 50  # active everywhere
    codes[positive, 2] += 1
    assert rank_concepts(codes, positive, np.arange(40))[0] == 2


def test_too_few_units() -> None:
    decoded, labels, _ = planted()
    with pytest.raises(DataError, match="at least 6 units"):
        concept_effect(decoded, labels, np.arange(200) % 8, 1)
