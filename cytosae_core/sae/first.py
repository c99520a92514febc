"""The first dictionary of a training study: a function of the protocol, the public start file and the federation's
mean and scale, so that coordinator and sites compute the same one. numpy only."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..config import StudyConfig
from ..errors import StudyError
from .scale import TokenScale, rows_from_centroids

Array = NDArray[Any]


def first_dictionary(study: StudyConfig, start: Mapping[str, Array], scale: TokenScale) -> Array:
    """Unit rows [n, d] float32.

    Args:
        start: tensors of the protocol's start file: `centroids` (public-kmeans) or `dictionary` (file); unused for
            `random`.

    Raises:
        StudyError: the start does not fit the protocol.
    """
    config, d = study.dictionary, study.encoder.d
    if config.init == "random":
        return random_rows(config.n, d, study.seed)
    name = "centroids" if config.init == "public-kmeans" else "dictionary"
    rows = start.get(name)
    if rows is None or rows.shape != (config.n, d):
        raise StudyError(f"Expected a start file with {name}[{config.n}, {d}].", hint="cytosae sae init")
    if name == "centroids":
        return rows_from_centroids(rows, scale)
    return np.asarray(rows / np.linalg.norm(rows, axis=1, keepdims=True), dtype=np.float32)


def random_rows(n: int, d: int, seed: int) -> Array:
    """Random unit rows [n, d] float32 (PCG64): a control, and the start where no public tokens exist."""
    rows = np.random.default_rng(seed).standard_normal((n, d))
    return np.asarray(rows / np.linalg.norm(rows, axis=1, keepdims=True), dtype=np.float32)
