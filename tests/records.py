"""Records of a streaming pass made by hand, for tests of what is drawn and counted from them."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import numpy as np

from cytosae_core.concepts.accumulate import Layout, empty_state
from cytosae_core.concepts.extracted import Extracted, Facts


def record(
    counts: Any,
    tokens: Any,
    unit_class: Any,
    *,
    calibrated: Any = None,
    held_out: Any = None,
    n_images: int = 8,
) -> Extracted:
    """A record with given barcodes; everything else empty."""
    counts = np.asarray(counts, np.int32)
    u, n = counts.shape
    unit_class = np.asarray(unit_class, np.int64)
    classes = tuple(f"class{c}" for c in range(int(unit_class.max(initial=0)) + 1))
    layout = Layout(n, len(classes), u, np.zeros(n_images, np.int64), np.zeros(n_images, np.int64), 0.2)
    names = {field.name for field in fields(Extracted)}
    state = {key: value for key, value in empty_state(layout).items() if key in names}
    state |= {"unit_counts": counts, "unit_tokens": np.asarray(tokens, np.int64), "unit_class": unit_class}
    state |= {"unit_images": np.ones(u, np.int64), "pairs": np.zeros((0, 2), np.int64)}
    state |= {"tokens": np.array([int(np.sum(tokens))]), "images": np.array([n_images])}
    if calibrated is not None:
        state |= {"unit_calibrated": np.asarray(calibrated, np.int32), "threshold": np.full(n, 0.5)}
        state |= {"unit_held_out": np.asarray(held_out, np.int8)}
    facts = Facts(
        "pursuit", n, 6, "d" * 64, "e" * 64, "all", 0.2, "patient", classes,
        tuple(f"p{i}" for i in range(u)), "half of the units" if calibrated is not None else "",
    )  # fmt: skip
    return Extracted(facts, **state)
