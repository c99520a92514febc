"""Few-shot naming: weights point at the right rows, unlabelled cells help where cells form groups."""

from __future__ import annotations

import numpy as np
import pytest

from cytosae_core.errors import DataError
from cytosae_core.worth.fewshot import learning_curve, neighbour_graph, refine, soft_logistic, spread_labels

CELLS, ROWS, SPEAKING = 240, 30, 4


def cells(strength: float = 1.2) -> tuple[np.ndarray, np.ndarray]:
    """Codes [cells, rows]; cells that show the concept have rows 0 .. 3 raised."""
    rng = np.random.default_rng(0)
    positive = np.arange(CELLS) % 3 == 0
    codes = rng.normal(size=(CELLS, ROWS))
    codes[:, :SPEAKING] += strength * (2 * positive[:, None] - 1)
    return codes, positive


def value(trials: list, shots: int, unlabelled: bool) -> float:
    return float(next(t for t in trials if (t.shots, t.unlabelled) == (shots, unlabelled)).estimate.value)


def test_weights_point_at_the_rows_that_speak_of_the_concept() -> None:
    codes, positive = cells()
    labelled = np.concatenate([np.flatnonzero(positive)[:10], np.flatnonzero(~positive)[:10]])
    found = refine(codes, labelled, positive[labelled])
    assert set(np.argsort(-found.weights)[:SPEAKING]) == set(range(SPEAKING))
    assert np.allclose(found.score(codes), found.scores)
    assert found.scores[positive].mean() > 0 > found.scores[~positive].mean()


def test_unlabelled_cells_help_when_cells_form_groups_and_shuffled_labels_do_not_name_anything() -> None:
    codes, positive = cells(2.0)
    real = learning_curve(codes, positive, np.arange(CELLS), shots=(1, 5), repeats=10)
    assert value(real, 1, True) > value(real, 1, False) + 0.02
    assert value(real, 5, True) > 0.95
    none = learning_curve(codes, positive, np.arange(CELLS), shots=(5,), repeats=20, shuffle=True)
    assert 0.25 < value(none, 5, False) < 0.75


def test_labels_spread_along_the_graph() -> None:
    """Two groups of directions, one label each: all members get their group's sign, balanced over sides."""
    rng = np.random.default_rng(1)
    x = rng.normal(scale=0.1, size=(60, 5))
    x[:30, 0] += 1
    x[30:, 1] += 1
    found = spread_labels(x, np.array([0, 40]), np.array([True, False]))
    assert (found[:30] > 0.5).all() and (found[30:] < -0.5).all()
    graph = neighbour_graph(x).toarray()
    assert np.allclose(graph, graph.T) and graph[:30, 30:].max() == 0
    assert np.linalg.eigvalsh(graph).max() <= 1 + 1e-9


def test_the_logistic_in_row_space_is_the_one_over_all_rows() -> None:
    """Gradient of the stated loss is zero at the weights, with more rows than cells."""
    rng = np.random.default_rng(2)
    x, target, share = rng.normal(size=(12, 40)), np.arange(12) % 2.0, rng.random(12)
    weights = soft_logistic(x, target, share, 0.3)
    wrong = target - 1 / (1 + np.exp(-(x @ weights[:-1] + weights[-1])))
    assert np.allclose(x.T @ (share * wrong), 0.3 * weights[:-1], atol=1e-5)
    assert abs(share @ wrong) < 1e-5


def test_bad_input() -> None:
    codes, positive = cells()
    with pytest.raises(DataError, match="shows the concept"):
        refine(codes, np.array([0, 3]), positive[[0, 3]])
    with pytest.raises(DataError, match="different labelled cells"):
        refine(codes, np.array([0, 0, 1]), positive[[0, 0, 1]])
    with pytest.raises(DataError, match="different labelled cells"):
        refine(codes, np.array([0, CELLS]), np.array([True, False]))
    with pytest.raises(DataError, match="finite"):
        refine(np.full_like(codes, np.nan), np.array([0, 1]), positive[[0, 1]])
    with pytest.raises(DataError, match="at least 210 cells"):
        learning_curve(codes, positive, np.arange(CELLS), shots=(100,))
