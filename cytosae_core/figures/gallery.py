"""One offline page of concepts for a pathologist: every picture inside the page, no script, no outside reference.

Local only. Class names, unit names and everything else that comes from files is escaped once, where it is written.
"""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib import colormaps
from PIL import Image

from ..concepts.extracted import EDGES
from ..report.text import escape
from .gallery_style import CSS
from .patch import COLOURS, Pixels
from .sheet import GROUPS, VALUES, Reference, Shot, scale_of, tile

POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; form-action 'none'"
BANNER = "Local only, never part of anything that leaves: this page shows cells of this hospital."
HEADINGS = {
    "mean": "Strongest cells, averaged over the whole cell",
    "peak": "Strongest cells by one single patch (small details)",
    "strata": "One random cell per level, weak to strong: does the meaning hold when it is weak?",
}
RULES = {
    "cell": "; only patches of the stained cell count",
    "all": "; strengths also count one value for the whole image (CLS), which no map shows",
}
UNITS = {"patient": "patients", "slide": "slides", "source_file": "image files"}


@dataclass(frozen=True)
class ClassRow:
    """One class of a concept: cells of it, in how many the concept fires, mean code, corrected share (0 to 1)."""

    label: str
    cells: int
    fires: int
    mean: float
    share: float


@dataclass(frozen=True)
class UnitRow:
    """One patient of a concept: name, class (empty: several), cells, and the share of tokens above threshold."""

    name: str
    label: str
    cells: int
    share: float


@dataclass(frozen=True)
class Entry:
    """Everything the page says of one concept.

    Attributes:
        cells: cells in which it fires. evenness: prior-corrected entropy, 0 (one class) to 1 (all alike).
        units: units in which it occurs; None when the record has no barcodes.
        histogram: [28] firing tokens per bin of `EDGES`. top_units: the strongest units.
        references, shots: its reference cells. warnings: sentences.
    """

    concept: int
    cells: int
    evenness: float
    units: int | None
    classes: Sequence[ClassRow]
    top_units: Sequence[UnitRow]
    histogram: Sequence[int]
    references: Sequence[Reference]
    shots: Mapping[int, Shot]
    warnings: Sequence[str]

    @property
    def best(self) -> ClassRow | None:
        """The class with the largest corrected share; None for a concept that fires in none."""
        rows = [row for row in self.classes if row.share > 0]
        return max(rows, key=lambda row: row.share) if rows else None


@dataclass(frozen=True)
class About:
    """What the whole page is about: site, cells, units, their kind, tokens rule, threshold, digests, order."""

    site: str
    cells: int
    units: int
    unit: str
    rule: str
    tau: float
    n: int
    dictionary: str
    order: str


def render_gallery(entries: Sequence[Entry], about: About) -> str:
    """The page as HTML text (UTF-8), about 0.15 MB per concept."""
    title = f"Concepts in the cells of {about.site}"
    body = _opening(about, title) + _index(entries) + "".join(_article(entry, about) for entry in entries)
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{escape(POLICY)}">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        '<meta name="referrer" content="no-referrer">'
        f"<title>{escape(title)} (local only)</title><style>{CSS}</style></head>"
        f'<body><div class="band" role="note">{BANNER}</div><main id="top">{body}</main></body></html>\n'
    )


def plural(unit: str) -> str:
    """`patients`, `slides` or `image files`."""
    return UNITS.get(unit, f"{unit}s")


def _opening(about: About, title: str) -> str:
    where = RULES.get(about.rule, "")
    unit = plural(about.unit)
    return (
        f"<h1>{escape(title)}</h1>"
        "<p>A concept is a visual pattern that the model found by itself. It has a number, no name: naming it is "
        "up to you. For every cell below, the left picture is the cell as it is; the right one shows in colour "
        "<b>where</b> in the cell the model sees the concept, and how strongly. Grey means: not there.</p>"
        f"<p>{about.cells} cells of {about.units} {escape(unit)}, {about.n} concepts in all{where}. "
        f"Order here: {escape(about.order)}.</p>"
        '<p class="muted">Ask of each concept: is it the same structure in all of these cells? Is it a structure '
        f"of the cell at all, or dye, dirt, background, or one of the {escape(unit)}? Dictionary "
        f"{escape(about.dictionary[:12])}.</p>"
    )


def _index(entries: Sequence[Entry]) -> str:
    words = (
        "Per cent: how much of a concept's strength falls to that class, as if every class had as many cells."
    )
    cards = "".join(_card(entry) for entry in entries)
    return f'<h3>Index</h3><p class="muted">{words}</p><ul class="index">{cards}</ul>'


def _card(entry: Entry) -> str:
    flag = '<span class="flag">read the warning</span>' if entry.warnings else ""
    picture = ""
    if entry.references:
        first = entry.references[0]
        picture = _picture(tile(entry.shots[first.image], scale_of(entry.shots.values())), "")
    words = f"<b>Concept {entry.concept}</b><br>{_speaks(entry)}{flag}"
    return f'<li><a href="#c{entry.concept}">{picture}{words}</a></li>'


def _speaks(entry: Entry) -> str:
    best = entry.best
    if best is None:
        return "does not fire in any cell"
    return f"{escape(best.label)}: {100 * best.share:.0f} %"


def _article(entry: Entry, about: About) -> str:
    warnings = "".join(f'<p class="warning"><b>Careful.</b> {escape(text)}</p>' for text in entry.warnings)
    top = scale_of(entry.shots.values())
    groups = "".join(_group(entry, kind, top) for kind in GROUPS)
    return (
        f'<article id="c{entry.concept}"><div class="head"><h2>Concept {entry.concept}</h2>'
        '<a href="#top">back to the index</a></div>'
        f"{warnings}{_facts(entry, about)}{_legend(top)}{groups}"
        f'<div class="two"><div>{_class_table(entry)}</div><div>{_unit_table(entry, about)}</div></div>'
        f"{_histogram(entry)}</article>"
    )


def _facts(entry: Entry, about: About) -> str:
    share = f"{100 * entry.cells / about.cells:.0f} % of cells" if about.cells else ""
    even = "-" if math.isnan(entry.evenness) else f"{entry.evenness:.2f}"
    units = "not recorded" if entry.units is None else f"{entry.units} of {about.units}"
    rows = [
        ("Fires in", f"{entry.cells} cells", share),
        ("Speaks most of", _speaks(entry), "of its strength, as if every class had as many cells"),
        (
            "Evenness over classes",
            even,
            "0: one class only. 1: all classes alike (entropy, corrected for size)",
        ),
        (f"Seen in {plural(about.unit)}", units, f"with at least one patch above {about.tau:g}"),
    ]
    return f'<dl class="facts">{"".join(_fact(*row) for row in rows)}</dl>'


def _fact(name: str, value: str, note: str) -> str:
    return f"<div><dt>{escape(name)}</dt><dd>{value}<small>{escape(note)}</small></dd></div>"


def _legend(top: float) -> str:
    colours = colormaps[COLOURS](np.linspace(0, 1, 9))[:, :3] * 255
    stops = ",".join("rgb({:.0f},{:.0f},{:.0f})".format(*colour) for colour in colours)
    return (
        f'<div class="scale" style="background:linear-gradient(90deg,{stops})" role="img" '
        f'aria-label="colour scale from 0 to {top:.2g}"></div>'
        f'<div class="ends"><span>weak</span><span>strength of a patch</span><span>{top:.2g}</span></div>'
    )


def _group(entry: Entry, kind: str, top: float) -> str:
    chosen = [reference for reference in entry.references if reference.group == kind]
    if not chosen:
        return ""
    tiles = "".join(_tile(entry, reference, top) for reference in chosen)
    return f'<h3>{HEADINGS[kind]}</h3><div class="tiles">{tiles}</div>'


def _tile(entry: Entry, reference: Reference, top: float) -> str:
    shot = entry.shots[reference.image]
    value = f"{VALUES[reference.group]} {reference.value:.2g}"
    fired = int((shot.codes[1:] > 0).sum())
    where = f"concept {entry.concept} in {fired} of 256 patches, {value}"
    alt = f"{shot.label}, image {shot.image}: the cell, and {where}"
    return (
        f'<figure class="tile">{_picture(tile(shot, top), alt)}'
        f"<figcaption>{escape(shot.label)}<br><span>{value}, image {shot.image}</span></figcaption></figure>"
    )


def _picture(pixels: Pixels, alt: str) -> str:
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "JPEG", quality=86, subsampling=0)
    data = base64.b64encode(stream.getvalue()).decode()
    height, width = pixels.shape[:2]
    return f'<img alt="{escape(alt)}" width="{width}" height="{height}" src="data:image/jpeg;base64,{data}">'


def _class_table(entry: Entry) -> str:
    rows = "".join(
        f'<tr><td>{escape(row.label)}</td><td class="n">{row.fires} of {row.cells}</td>'
        f'<td class="n">{row.mean:.2g}</td><td class="n">{100 * row.share:.0f} %</td></tr>'
        for row in sorted(entry.classes, key=lambda row: -row.share)
    )
    head = '<th>Class</th><th class="n">fires in cells</th><th class="n">mean</th><th class="n">corrected share</th>'
    note = '<p class="muted">Corrected share: as if every class had as many cells.</p>'
    return f'<h3>Classes</h3><div class="scroll"><table><tr>{head}</tr>{rows}</table></div>{note}'


def _unit_table(entry: Entry, about: About) -> str:
    title = f"<h3>Strongest {escape(plural(about.unit))}</h3>"
    if not entry.top_units:
        return f'{title}<p class="muted">None above the threshold, or not recorded.</p>'
    rows = "".join(
        f"<tr><td>{escape(row.name)}</td><td>{escape(row.label or 'several')}</td>"
        f'<td class="n">{row.cells}</td><td class="n">{100 * row.share:.2g} %</td></tr>'
        for row in entry.top_units
    )
    head = f'<th>{escape(about.unit.replace("source_file", "image file"))}</th><th>class</th><th class="n">cells</th>'
    head += '<th class="n">share of its patches</th>'
    return f'{title}<div class="scroll"><table><tr>{head}</tr>{rows}</table></div>'


def _histogram(entry: Entry) -> str:
    """Firing patches per strength, half-decades of `EDGES` on a logarithmic axis."""
    counts = [int(count) for count in entry.histogram]
    filled = [index for index, count in enumerate(counts) if count]
    if not filled:
        return ""
    low, high = filled[0], filled[-1] + 1
    width, largest = 440 / (high - low), max(counts)
    bars = "".join(
        f'<rect x="{10 + (i - low) * width:.1f}" y="{100 - 90 * counts[i] / largest:.1f}" '
        f'width="{max(1.0, width - 2):.1f}" height="{90 * counts[i] / largest:.1f}"/>'
        for i in range(low, high)
    )
    weak, strong = f"{EDGES[low]:.2g}", f"{EDGES[high]:.2g}"
    ends = f'<text x="10" y="116">{weak}</text><text x="450" y="116" text-anchor="end">{strong}</text>'
    words = (
        f"Strengths of the {sum(counts)} patches in which concept {entry.concept} fires: {weak} to {strong}."
    )
    return (
        "<h3>How strong is it where it fires? (logarithmic)</h3>"
        f'<svg viewBox="0 0 460 122" role="img" aria-label="{escape(words)}">{bars}'
        f'<line x1="10" x2="450" y1="100.5" y2="100.5"/>{ends}</svg><p class="muted">{escape(words)}</p>'
    )


def gallery_facts(entry: Entry) -> dict[str, Any]:
    """The numbers of an entry, for --json."""
    return {
        "concept": entry.concept, "cells": entry.cells, "evenness": entry.evenness, "units": entry.units,
        "warnings": list(entry.warnings), "classes": [vars(row) for row in entry.classes],
        "top_units": [vars(row) for row in entry.top_units], "histogram": [int(v) for v in entry.histogram],
        "references": [vars(reference) for reference in entry.references],
    }  # fmt: skip
