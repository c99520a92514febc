"""Does a concept's strongest class agree between two data sets with different class lists?

The label of a concept is the class that holds most of the sum of its ten largest z (the value-weighted majority of
the published top-10 files). Labels of both data sets are first mapped to shared classes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .datasets import DataSet, label_share

Json = dict[str, Any]
STRONG = 0.2  # a concept speaks in a data set when its largest z exceeds this
PURE = 0.9  # share of the top values held by one class

# Names in the public data sets -> shared classes; a name that is not listed is a class of its own.
_MEMBERS = {
    "basophil": ("basophil", "BAS"),
    "blast": ("myeloblast", "MOB", "MYO", "BLA"),
    "eosinophil": ("eosinophil", "EOS", "ABE"),
    "erythroblast": ("normoblast", "erythroblast", "EBO", "PEB"),
    "hairy cell": ("hairy_cell", "HAC"),
    "lymphocyte": (
        "lymphocyte", "lymphocyte_large_granular", "lymphocyte_neoplastic", "lymphocyte_reactive", "LYA", "LYT",
        "LYI",
    ),
    "metamyelocyte": ("metamyelocyte", "MMZ"),
    "monocyte": ("monocyte", "MON"),
    "myelocyte": ("myelocyte", "MYB"),
    "neutrophil, band": ("neutrophil_band", "NGB"),
    "neutrophil, segmented": ("neutrophil_segmented", "NGS"),
    "plasma cell": ("plasma_cell", "PLM"),
    "promyelocyte": ("promyelocyte", "promyelocyte_atypical", "PMO", "PMB", "FGC"),
    "smudge cell": ("smudge_cell", "KSC"),
}  # fmt: skip
SHARED = {name: shared for shared, names in _MEMBERS.items() for name in names}


def meaning_pairs(found: Sequence[DataSet], mapping: Mapping[str, str] = SHARED) -> list[Json]:
    """One entry per pair of data sets whose class names are known and overlap; see `class_agreement`."""
    pairs = []
    for a, b in combinations(found, 2):
        entry = class_agreement(a, b, mapping)
        if entry is not None:
            pairs.append(entry)
    return pairs


def class_agreement(a: DataSet, b: DataSet, mapping: Mapping[str, str] = SHARED) -> Json | None:
    """How often a concept speaks of the same class in both, for concepts that speak in both.

    Returns None when labels or names are unknown or no class is shared. `n` concepts; `agree` and its `chance`
    (product of the marginals) and `kappa`; the same for concepts that are pure in `a`, and pure in both; `classes`:
    per shared class, concepts that are pure in `a` and how many of them speak of it in `b`.
    """
    first, second = _majority(a, mapping), _majority(b, mapping)
    if first is None or second is None:
        return None
    shared = sorted(set(first[2]) & set(second[2]))
    if not shared:
        return None
    one, pure_one = _on(shared, first), first[1] >= PURE
    other, pure_other = _on(shared, second), second[1] >= PURE
    spoken = _speaks(a) & _speaks(b) & (one >= 0) & (other >= 0)
    agree = one == other
    return {
        "a": a.name, "b": b.name, **_kappa(one[spoken], other[spoken], len(shared)),
        "pure": _share(agree, spoken & pure_one), "pure_both": _share(agree, spoken & pure_one & pure_other),
        "classes": {
            name: _share(agree, spoken & pure_one & (one == index)) for index, name in enumerate(shared)
        },
    }  # fmt: skip


def _majority(
    found: DataSet, mapping: Mapping[str, str]
) -> tuple[NDArray[np.int64], NDArray[np.float64], list[str]] | None:
    """Index of the shared class, its share, and the names indexed; None when labels cannot be named."""
    if found.top_values is None or found.top_labels is None:
        return None
    if len(found.classes) <= int(found.top_labels.max()):
        return None
    named = [mapping.get(name, name) for name in found.classes]
    names = sorted(set(named))
    place = np.array([names.index(name) for name in named])
    share = label_share(found.top_values, place[found.top_labels])
    return share.argmax(axis=1).astype(np.int64), share.max(axis=1), names


def _on(
    shared: list[str], labels: tuple[NDArray[np.int64], NDArray[np.float64], list[str]]
) -> NDArray[np.int64]:
    """Index into `shared`, -1 for a class that is not shared."""
    place = np.array([shared.index(name) if name in shared else -1 for name in labels[2]])
    return np.asarray(place[labels[0]], np.int64)


def _speaks(found: DataSet) -> NDArray[np.bool_]:
    values = found.top_values
    return np.zeros(len(found.frequency), bool) if values is None else values[:, 0] > STRONG


def _kappa(one: NDArray[np.int64], other: NDArray[np.int64], classes: int) -> Json:
    """Cohen's kappa (1960) with its parts."""
    if not len(one):
        return {"n": 0, "agree": None, "chance": None, "kappa": None}
    shares = [np.bincount(labels, minlength=classes) / len(labels) for labels in (one, other)]
    agree, chance = float((one == other).mean()), float(shares[0] @ shares[1])
    kappa = (agree - chance) / (1 - chance) if chance < 1 else None
    return {"n": len(one), "agree": agree, "chance": chance, "kappa": kappa}


def _share(agree: NDArray[np.bool_], chosen: NDArray[np.bool_]) -> Json:
    count = int(chosen.sum())
    return {"n": count, "agree": float(agree[chosen].mean()) if count else None}
