"""From a record of a pass to what the patient and class commands draw and print."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from cytosae_core.concepts.barcode import Comparison, Typical, barcodes, compare, find_unit, typical
from cytosae_core.concepts.contrasts import (
    MIN_UNITS,
    ClassBarcodes,
    Contrast,
    Likeness,
    class_barcodes,
    contrast,
    likeness,
    one_vs_rest,
)
from cytosae_core.concepts.extracted import Extracted
from cytosae_core.errors import DataError
from cytosae_core.figures.barcode import Shown
from cytosae_core.figures.classes import classes_figure, contrast_figure, likeness_figure

Floats = NDArray[np.float64]
LISTED = 50


@dataclass(frozen=True)
class PatientView:
    """What `cytosae concepts patient` draws, and its numbers."""

    title: str
    shown: list[Shown]
    typical: Typical
    comparison: Comparison | None
    values: dict[str, Any]


def patient_view(
    found: Extracted, patient: str, against: str | None, *, within_class: bool, compatible: bool
) -> PatientView:
    """Barcodes of one patient (and of another), what is typical, and what differs.

    Raises:
        DataError: unknown patient, the same one twice, no barcodes in the record.
    """
    shares = barcodes(found)
    unit = find_unit(found, patient)
    other = None if against is None else find_unit(found, against)
    among = None
    if within_class:
        if found.unit_class[unit] < 0:
            raise DataError("Expected a patient with cells of one class for --within-class.")
        among = np.asarray(found.unit_class == found.unit_class[unit])
    apart = typical(shares, found.unit_tokens, unit, among=among)
    comparison = None if other is None else compare(shares, found.unit_class, unit, other)
    chosen = [unit] if other is None else [unit, other]
    shown, drawn = _shown(found, shares, chosen, compatible)
    values: dict[str, Any] = {
        "unit": found.facts.unit, "tau": found.facts.tau, "patient": _facts(found, unit), "barcodes": drawn,
        "typical": _typical_values(apart), "within_class": within_class,
    }  # fmt: skip
    if comparison is not None and other is not None:
        values["against"] = _facts(found, other)
        values["comparison"] = _comparison_values(comparison)
    names = " against ".join(found.facts.unit_names[i] for i in chosen)
    return PatientView(f"{found.facts.unit} {names}", shown, apart, comparison, values)


def _facts(found: Extracted, unit: int) -> dict[str, Any]:
    label = int(found.unit_class[unit])
    return {
        "name": found.facts.unit_names[unit],
        "class": found.facts.classes[label] if label >= 0 else None,
        "images": int(found.unit_images[unit]),
        "tokens": int(found.unit_tokens[unit]),
    }


def _shown(
    found: Extracted, shares: Floats, units: list[int], compatible: bool
) -> tuple[list[Shown], list[dict[str, Any]]]:
    kinds = [("threshold", f"codes above {found.facts.tau:g}", shares)]
    if found.facts.calibration:
        text = f"each concept's own threshold (from {found.facts.calibration})"
        kinds.append(("calibrated", text, barcodes(found, calibrated=True)))
    if compatible:
        text = f"published form: counts / {found.facts.n} concepts, grows with the number of cells"
        kinds.append(("cytosae_compatible", text, barcodes(found, cytosae_compatible=True)))
    shown, values = [], []
    for kind, text, table in kinds:
        for unit in units:
            who = _facts(found, unit)
            about = f"{who['name']}, {who['class'] or 'several classes'}, {who['images']} cells: {text}"
            if kind == "calibrated" and not found.unit_held_out[unit]:
                about += "; helped to set the thresholds, so it has none"
            shown.append(Shown(about, table[unit], as_share=kind != "cytosae_compatible"))
            values.append({"kind": kind, "patient": who["name"], "values": table[unit]})
    return shown, values


def _typical_values(apart: Typical) -> dict[str, Any]:
    order = np.argsort(-np.nan_to_num(apart.z), kind="stable")[:LISTED]
    rows = [{"concept": int(c), "z": apart.z[c], "q": apart.q[c]} for c in order if apart.z[c] > 0]
    return {"basis": apart.basis, "warning": apart.warning, "others": apart.others, "concepts": rows}


def _comparison_values(found: Comparison) -> dict[str, Any]:
    order = np.argsort(-np.abs(found.difference), kind="stable")[:LISTED]
    rows = [
        {
            "concept": int(c), "difference": found.difference[c], "low": found.low[c], "high": found.high[c],
            "p": found.p[c], "outside": bool(found.outside[c]),
        }
        for c in order
        if found.difference[c] != 0
    ]  # fmt: skip
    return {"basis": found.basis, "others": found.others, "pairs": found.pairs, "concepts": rows}


@dataclass(frozen=True)
class ClassesView:
    """What `cytosae concepts classes` draws (file name, figure), and its numbers."""

    figures: list[tuple[str, Figure]]
    values: dict[str, Any]


def classes_view(
    found: Extracted, pair: tuple[str, str] | None, *, seed: int, compatible: bool
) -> ClassesView:
    """Mean barcodes, contrasts (one pair, or every class against the rest) and likeness of patients.

    The published form (count / number of concepts) changes mean barcodes only: a Pearson correlation does not see
    by what each patient's counts are divided.

    Raises:
        DataError: unknown class, a contrast without units, no barcodes in the record.
    """
    shares, classes, unit = barcodes(found), found.facts.classes, found.facts.unit
    means = class_barcodes(shares, found.unit_class, len(classes), seed=seed)
    contrasts = _contrasts(found, shares, means, pair, seed)
    alike = likeness(shares, found.unit_class)
    figures = [("class-barcodes", classes_figure(means, classes, unit))]
    if compatible:
        published = barcodes(found, cytosae_compatible=True)
        counts = class_barcodes(published, found.unit_class, len(classes), seed=seed)
        figures.append(("class-barcodes-cytosae", classes_figure(counts, classes, unit, as_share=False)))
    figures += [
        (f"contrast-{number}", contrast_figure(result, first, second, unit))
        for number, (first, second, result) in enumerate(contrasts)
    ]
    figures.append(("likeness", likeness_figure(alike, classes, found.facts.unit_names)))
    values = {
        "unit": unit, "tau": found.facts.tau, "classes": _class_values(found, means),
        "units_of_several_classes": int((found.unit_class < 0).sum()),
        "contrasts": [_contrast_values(*one) for one in contrasts],
        "likeness": _likeness_values(found, alike),
    }  # fmt: skip
    if compatible:
        values["cytosae_compatible"] = counts.mean
    return ClassesView(figures, values)


def _contrasts(
    found: Extracted, shares: Floats, means: ClassBarcodes, pair: tuple[str, str] | None, seed: int
) -> list[tuple[str, str, Contrast]]:
    classes = found.facts.classes
    if pair is not None:
        for label in pair:
            if label not in classes:
                raise DataError(f"Expected classes of {list(classes)} in --contrast, got {label!r}.")
        first, second = (classes.index(label) for label in pair)
        return [(*pair, contrast(shares, found.unit_class, first, second, seed=seed))]
    present = np.flatnonzero(means.units).tolist()
    if len(present) < 2:
        return []
    return [
        (classes[c], "mean of the other classes", one_vs_rest(shares, found.unit_class, c, seed=seed))
        for c in present
    ]


def _class_values(found: Extracted, means: ClassBarcodes) -> list[dict[str, Any]]:
    return [
        {
            "class": label, "units": int(means.units[c]),
            "note": "" if means.units[c] >= MIN_UNITS else f"fewer than {MIN_UNITS} units: no interval",
            "mean": means.mean[c], "low": means.low[c], "high": means.high[c],
        }
        for c, label in enumerate(found.facts.classes)
    ]  # fmt: skip


def _contrast_values(first: str, second: str, found: Contrast) -> dict[str, Any]:
    rows = [
        {
            "concept": c, "difference": found.difference[c], "low": found.low[c], "high": found.high[c],
            "p": found.p[c], "q": found.q[c],
        }
        for c in found.top(LISTED).tolist()
    ]  # fmt: skip
    return {
        "first": first, "second": second, "units": list(found.units), "tested": found.tested,
        "smallest_p": found.attainable, "words": found.words, "concepts": rows,
    }  # fmt: skip


def _likeness_values(found: Extracted, likely: Likeness) -> dict[str, Any]:
    return {
        "order": [found.facts.unit_names[i] for i in likely.order],
        "class": [found.facts.classes[c] if c >= 0 else None for c in likely.label],
        "correlation": likely.correlation,
    }
