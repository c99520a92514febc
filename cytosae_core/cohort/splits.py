"""Splits by unit: all images of a patient on one side, classes balanced, the same on every machine."""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ..errors import DataError


def split_units(
    units: Sequence[str], labels: Sequence[str], shares: Sequence[float], *, salt: str
) -> NDArray[np.int64]:
    """Part 0 .. len(shares) - 1 of each image; images of a unit share a part.

    Units are dealt in the order of sha256(salt|unit); each goes to the part whose class counts lag its share most
    for the unit's own labels, then to the part that lags in units.
    """
    if len(units) != len(labels) or not shares or min(shares) <= 0:
        raise DataError("Expected one label per unit entry and positive shares.")
    want = np.asarray(shares, dtype=np.float64) / sum(shares)
    content: dict[str, Counter[str]] = defaultdict(Counter)
    for unit, label in zip(units, labels, strict=True):
        content[unit][label] += 1
    have: dict[str, NDArray[np.float64]] = defaultdict(lambda: np.zeros(len(want)))
    sizes, part_of = np.zeros(len(want)), {}
    for unit in sorted(content, key=lambda name: hashlib.sha256(f"{salt}|{name}".encode()).hexdigest()):
        lag = sum(
            (
                count * (want * (have[label].sum() + count) - have[label])
                for label, count in content[unit].items()
            ),
            start=np.zeros(len(want)),
        )
        lag = lag + 1e-3 * (want * (sizes.sum() + 1) - sizes)
        part = int(np.argmax(np.round(lag, 9)))
        part_of[unit] = part
        sizes[part] += 1
        for label, count in content[unit].items():
            have[label][part] += count
    return np.array([part_of[unit] for unit in units], dtype=np.int64)
