"""`cytosae concepts gallery`: choose concepts, code their cells, write one page."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from cytosae_core.cohort.ratings import FILE as RATINGS
from cytosae_core.concepts.barcode import barcodes
from cytosae_core.concepts.extracted import Extracted
from cytosae_core.concepts.statistics import class_share, share_entropy
from cytosae_core.errors import DataError
from cytosae_core.figures.gallery import (
    About,
    ClassRow,
    Entry,
    UnitRow,
    gallery_facts,
    plural,
    render_gallery,
)
from cytosae_core.figures.sheet import references
from cytosae_core.tensors import write_atomic

from .progress import Display
from .scales_io import check_inside, code_images, finish, shots_of, source_of_record

if TYPE_CHECKING:
    from .concept_source import Source

RATERS = 3  # of a review sheet: votes of fewer stay at the site
RARE_UNITS = 3  # seen in fewer: a pattern of these patients, not of a disease
RARE_CELLS = 10
LEADING_CELLS = 5  # firing cells of the class that a concept speaks most of
DOMINATED = 0.5  # share of a concept's tokens that one unit holds
SHOWN_UNITS = 6
ORDER = "concepts without a warning first, then by how clearly one class stands out"


def write_gallery(options: argparse.Namespace) -> int:
    """Write OUT/gallery.html.

    Raises:
        DataError: unknown concept, --top below 1, or a record that does not fit the cells.
    """
    if options.concepts is None and options.top < 1:
        raise DataError(f"Expected --top >= 1, got {options.top}.")
    with Display() as display:
        source, found = source_of_record(options, display)
        check_inside("concept", options.concepts or [], found.facts.n)
        chosen = options.concepts or useful(found)[: options.top].tolist()
        order = "as they were asked for" if options.concepts else ORDER
        entries = make_entries(found, source, chosen, display.bar("code cells"))
    page = render_gallery(entries, _about(found, source, order))
    options.out.mkdir(parents=True, exist_ok=True)
    path, paths = options.out / "gallery.html", []
    write_atomic(path, page.encode("utf-8", "replace"))
    if options.review_sheet:
        paths.append(options.out / RATINGS)
        write_atomic(paths[0], review_sheet(found.facts.dictionary, chosen).encode())
    return finish(
        options, [path, *paths], {"order": order, "concepts": [gallery_facts(entry) for entry in entries]}
    )


def review_sheet(dictionary: str, chosen: list[int]) -> str:
    """An empty `review.csv`: every rater goes through the concepts in an order of their own."""
    lines = [f"# dictionary: {dictionary}", "concept,rater,term"]
    for rater in range(1, RATERS + 1):
        order = np.random.default_rng([rater, len(chosen)]).permutation(chosen)
        lines += [f"c{concept:04d},r{rater}," for concept in order.tolist()]
    return "\n".join(lines) + "\n"


def useful(found: Extracted) -> NDArray[np.int64]:
    """Concepts that fire, those without a warning first, then by smallest prior-corrected entropy over classes."""
    share = class_share(found)
    entropy = share_entropy(share)
    flagged = np.array([bool(warnings_of(found, concept, share)) for concept in range(found.facts.n)])
    order = np.lexsort((np.nan_to_num(entropy, nan=np.inf), flagged))
    return np.asarray(order[found.image_count[order] > 0], dtype=np.int64)


def warnings_of(found: Extracted, concept: int, share: NDArray[np.float64]) -> list[str]:
    """What a reader must know before trusting a concept: too few units, one unit, too few cells (of its class).

    `share` is `class_share(found)`.
    """
    cells, unit = int(found.image_count[concept]), plural(found.facts.unit)
    if cells == 0:
        return ["It does not fire in any of these cells."]
    texts = []
    counts = _counts(found, concept)
    if counts is not None and (counts > 0).sum() < RARE_UNITS:
        seen = int((counts > 0).sum())
        texts.append(f"Rare: above the threshold in only {seen} of {len(counts)} {unit}.")
    elif counts is not None and len(counts) > 2 and counts.max() > DOMINATED * counts.sum():
        name = found.facts.unit_names[int(counts.argmax())]
        held = 100 * counts.max() / counts.sum()
        texts.append(f"{held:.0f} % of its patches above the threshold come from one of the {unit}: {name}.")
    if cells < RARE_CELLS:
        texts.append(f"Rare: it fires in only {cells} cells.")
    best = int(share[:, concept].argmax())
    leading = int(found.class_image_count[best, concept])
    if share[best, concept] > 0 and leading < LEADING_CELLS:
        label = found.facts.classes[best]
        texts.append(f"What it says of {label} rests on {leading} cell{'s' * (leading != 1)} of that class.")
    return texts


def _counts(found: Extracted, concept: int) -> NDArray[np.int64] | None:
    """Tokens above the threshold per unit; None when the record has no barcodes."""
    if len(found.unit_counts) != len(found.facts.unit_names):
        return None
    return np.asarray(found.unit_counts[:, concept], dtype=np.int64)


def make_entries(
    found: Extracted, source: Source, chosen: list[int], progress: Callable[[int, int], None]
) -> list[Entry]:
    """Everything the page says of the chosen concepts; every image is coded once."""
    named = {concept: references(found, concept) for concept in chosen}
    wanted: dict[int, set[int]] = {}
    for concept, some in named.items():
        for reference in some:
            wanted.setdefault(reference.image, set()).add(concept)
    codes = code_images(source, wanted, progress, found.facts.token_rule)
    share = class_share(found)
    evenness = share_entropy(share) / max(math.log(max(len(found.facts.classes), 2)), 1e-9)
    return [
        Entry(
            concept=concept, cells=int(found.image_count[concept]), evenness=float(evenness[concept]),
            units=_units(found, concept), classes=_class_rows(found, share, concept),
            top_units=_unit_rows(found, concept), histogram=found.histogram[concept].tolist(),
            references=some, shots=shots_of(source, concept, codes), warnings=warnings_of(found, concept, share),
        )
        for concept, some in named.items()
    ]  # fmt: skip


def _units(found: Extracted, concept: int) -> int | None:
    counts = _counts(found, concept)
    return None if counts is None else int((counts > 0).sum())


def _class_rows(found: Extracted, share: NDArray[np.float64], concept: int) -> list[ClassRow]:
    return [
        ClassRow(
            label, int(found.class_images[c]), int(found.class_image_count[c, concept]),
            float(found.class_total[c, concept]) / max(1, int(found.class_images[c])), float(share[c, concept]),
        )
        for c, label in enumerate(found.facts.classes)
    ]  # fmt: skip


def _unit_rows(found: Extracted, concept: int) -> list[UnitRow]:
    if _counts(found, concept) is None:
        return []
    shares = np.nan_to_num(barcodes(found)[:, concept])
    rows = []
    for unit in np.argsort(-shares, kind="stable")[:SHOWN_UNITS].tolist():
        if shares[unit] > 0:
            label = int(found.unit_class[unit])
            name = found.facts.classes[label] if label >= 0 else ""
            cells = int(found.unit_images[unit])
            rows.append(UnitRow(found.facts.unit_names[unit], name, cells, float(shares[unit])))
    return rows


def _about(found: Extracted, source: Source, order: str) -> About:
    facts = found.facts
    return About(
        site=source.cohort.name, cells=int(found.images[0]), units=len(facts.unit_names), unit=facts.unit,
        rule=facts.token_rule, tau=facts.tau, n=facts.n, dictionary=facts.dictionary, order=order,
    )  # fmt: skip
