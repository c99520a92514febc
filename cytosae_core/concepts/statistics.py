"""Numbers per concept from the sums of a pass: CytoSAE's own definitions, and ours beside them.

Names: N images, T tokens, c classes, n concepts; z_i = mean code of image i over its tokens.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from .extracted import Extracted

Floats = NDArray[np.float64]
Array = NDArray[Any]
ENTROPY_EPSILON = 1e-9  # analysis/utils.py:33-53 of CytoSAE


def table(found: Extracted, labels: NDArray[np.int64]) -> dict[str, Array]:
    """All statistics per concept, each [n]; `labels` [N] is the class index of every stored image.

    CytoSAE's: `sparsity` (share of images with z > 0), `mean_acts` (mean z over those images, NaN when none),
    `top_entropy` (nats, over the ten images with the largest z, weighted by z). Ours: `token_rate`,
    `code_mean` and `code_variance` over tokens, `entropy` and `purity` corrected for class sizes, `top_purity`,
    `label_std`, `best_class` (-1 for a concept that never fires).
    """
    counts = found.image_count
    tokens = float(found.tokens[0])
    mean = found.total / tokens
    share = class_share(found)
    return {
        "sparsity": counts / float(found.images[0]),
        "mean_acts": _ratio(found.image_total, counts),
        "token_rate": found.token_count / tokens,
        "code_mean": mean,
        "code_variance": np.maximum(found.square / tokens - mean**2, 0),
        "top_entropy": top_entropy(found, labels),
        "entropy": share_entropy(share),
        "purity": np.where(counts > 0, share.max(axis=0), np.nan),
        "top_purity": top_purity(found, labels),
        "label_std": label_std(found, labels),
        "best_class": np.where(counts > 0, share.argmax(axis=0), -1),
    }


def class_share(found: Extracted) -> Floats:
    """[c, n]: each class's mean z divided by the sum over classes of mean z, so that class sizes do not count.

    Columns sum to 1, or are 0 for concepts that never fire in a labelled image.
    """
    mean = found.class_total / np.maximum(found.class_images, 1)[:, None]
    total = mean.sum(axis=0)
    return np.asarray(np.divide(mean, total, out=np.zeros_like(mean), where=total > 0))


def share_entropy(share: Floats) -> Floats:
    """-sum p ln p [n] in nats; NaN for columns that are all zero."""
    terms = np.where(share > 0, share * np.log(np.where(share > 0, share, 1.0)), 0.0)
    return np.asarray(np.where(share.sum(axis=0) > 0, -terms.sum(axis=0), np.nan))


def _top_share(found: Extracted, labels: NDArray[np.int64]) -> Floats:
    """[n, c]: share of the top ten values (by z) that images of each class hold; placeholders hold nothing."""
    real = found.top_image >= 0
    of = np.where(real, labels[np.where(real, found.top_image, 0)], -1)
    values = np.where(real, found.top_mean, 0.0)
    per_class = np.stack(
        [(values * (of == index)).sum(axis=1) for index in range(len(found.facts.classes))], axis=1
    )
    total = values.sum(axis=1, keepdims=True)
    return np.asarray(np.divide(per_class, total, out=np.zeros_like(per_class), where=total > 0))


def top_entropy(found: Extracted, labels: NDArray[np.int64]) -> Floats:
    """CytoSAE's label entropy [n] in nats: H = -sum_c p_c ln(p_c + 1e-9), p_c = share of the top-10 sum of z.

    NaN for concepts that never fire (the original gives NaN as well).
    """
    return entropy_of_top(_top_share(found, labels))


def entropy_of_top(share: Floats) -> Floats:
    """The formula of `top_entropy` on shares [n, c]."""
    value = -(share * np.log(share + ENTROPY_EPSILON)).sum(axis=1)
    return np.asarray(np.where(share.sum(axis=1) > 0, value, np.nan))


def top_purity(found: Extracted, labels: NDArray[np.int64]) -> Floats:
    """Largest class share of the top ten values [n]; NaN for concepts that never fire."""
    share = _top_share(found, labels)
    return np.asarray(np.where(share.sum(axis=1) > 0, share.max(axis=1), np.nan))


def label_std(found: Extracted, labels: NDArray[np.int64]) -> Floats:
    """Standard deviation [n] of the class index over the top images (PatchSAE, arXiv 2412.05276).

    It depends on the order of the classes, which means nothing in blood cells: kept for comparison only.
    """
    real = found.top_image >= 0
    of = np.where(real, labels[np.where(real, found.top_image, 0)], 0).astype(np.float64)
    count = np.maximum(real.sum(axis=1), 1)
    mean = of.sum(axis=1) / count
    spread = np.where(real, (of - mean[:, None]) ** 2, 0.0).sum(axis=1) / count
    return np.asarray(np.where(real.any(axis=1), np.sqrt(spread), np.nan))


def summary(found: Extracted) -> dict[str, float | int]:
    """Of the whole dictionary: the data-set row of the published statistics (reference in docs/concepts.md)."""
    sparsity = found.image_count / float(found.images[0])
    mean = _ratio(found.image_total, found.image_count)
    core = np.nan_to_num(mean, nan=0.0) > CORE_MEAN
    mass = found.image_total
    return {
        "images": int(found.images[0]),
        "never_active": int((found.image_count == 0).sum()),
        "f_gt_1pct": int((sparsity > 0.01).sum()),
        "image_l0": float(sparsity.sum()),
        "core": int(core.sum()),
        "mass_in_core": float(mass[core].sum() / mass.sum()) if mass.sum() else 0.0,
        "token_l0": float(found.token_count.sum() / found.tokens[0]),
    }


CORE_MEAN = 1e-3  # a concept is in the core when the mean z over its active images exceeds this


def _ratio(total: Array, count: Array) -> Floats:
    return np.asarray(np.divide(total, count, out=np.full(len(total), np.nan), where=count > 0))
