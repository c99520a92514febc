"""Row averaging: exact, order-free, and silent rows stay."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from cytosae_core.aggregate.rules import RowAverage
from cytosae_core.errors import MessageError, StudyError


def unit(n: int = 6, d: int = 4) -> np.ndarray:
    rows = np.random.default_rng(0).standard_normal((n, d)).astype(np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def updates(count: int, n: int = 6, d: int = 4) -> list[tuple[np.ndarray, np.ndarray]]:
    rng = np.random.default_rng(1)
    return [
        (rng.normal(0, 0.1, (n, d)).astype(np.float16), rng.integers(1, 5000, n).astype(np.float32))
        for _ in range(count)
    ]


def test_any_order_gives_the_same_bytes() -> None:
    results = set()
    for order in itertools.permutations(updates(4)):
        average = RowAverage(unit(), "firing-weighted")
        for delta, fired in order:
            average.fold(delta, fired, 100)
        results.add(average.result().tobytes())
    assert len(results) == 1


def test_weights_are_firing_counts() -> None:
    base = np.array([[1.0, 0.0]], np.float32)
    average = RowAverage(base, "firing-weighted")
    average.fold(np.array([[0, 0.5]], np.float16), np.array([30], np.float32), 1)
    average.fold(np.array([[0, 0.25]], np.float16), np.array([10], np.float32), 1)
    expected = np.array([1.0, (30 * 0.5 + 10 * 0.25) / 40])
    assert np.allclose(average.result()[0], expected / np.linalg.norm(expected))


def test_size_weights_ignore_counts() -> None:
    average = RowAverage(np.array([[1.0, 0.0]], np.float32), "size-weighted")
    average.fold(np.array([[0, 0.5]], np.float16), np.array([99], np.float32), 10)
    average.fold(np.array([[0, 0.25]], np.float16), np.array([1], np.float32), 30)
    expected = np.array([1.0, (10 * 0.5 + 30 * 0.25) / 40])
    assert np.allclose(average.result()[0], expected / np.linalg.norm(expected))


def test_withheld_rows_stay_and_do_not_weigh() -> None:
    base = unit(2, 3)
    average = RowAverage(base, "firing-weighted")
    delta = np.array([[0, 0, 0], [0.1, 0, 0]], np.float16)
    average.fold(delta, np.array([np.nan, 20], np.float32), 1)
    average.fold(np.zeros((2, 3), np.float16), np.full(2, np.nan, np.float32), 1)
    moved = average.result()
    assert np.allclose(moved[0], base[0])
    expected = base[1] + delta[1].astype(np.float64)
    assert np.allclose(moved[1], expected / np.linalg.norm(expected), atol=1e-6)


def test_hostile_updates_are_refused() -> None:
    average = RowAverage(unit(), "firing-weighted")
    with pytest.raises(MessageError):
        average.fold(np.zeros((5, 4), np.float16), np.ones(6, np.float32), 1)
    with pytest.raises(MessageError):
        average.fold(np.full((6, 4), 1000, np.float16), np.ones(6, np.float32), 1)
    with pytest.raises(StudyError):
        RowAverage(unit(), "best")
