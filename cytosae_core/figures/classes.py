"""Class scale: mean barcodes, signed contrasts with their intervals, and how patients resemble each other."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from ..concepts.contrasts import ClassBarcodes, Contrast, Likeness
from .barcode import NAMED, reduce_bars
from .canvas import DOWN, MUTED, NUMBERS_LOCAL_ONLY, RULE, UP, class_colour, name, paper, sheet

DISCOVERY = 0.05
NAMED_PATIENTS = 60  # more rows than this carry no names


def classes_figure(
    found: ClassBarcodes, classes: Sequence[str], unit: str, *, as_share: bool = True
) -> Figure:
    """One mean barcode per class, on one scale, with its 95 % interval where there are units enough.

    `as_share` false: the published form, counts divided by the number of concepts.
    """
    top = float(np.nanmax(np.maximum(found.mean, np.nan_to_num(found.high))))
    title = f"Mean barcode of every class, one {unit} one vote; grey: 95 % interval"
    if not as_share:
        title = f"Published form: counts, which grow with the cells per {unit}; grey: 95 % interval"
    with paper():
        figure = sheet(8.6, 0.8 + 1.35 * len(classes), NUMBERS_LOCAL_ONLY, title)
        axes = figure.subplots(len(classes), 1, squeeze=False, sharex=True)[:, 0]
        for index, label in enumerate(classes):
            _class_bars(axes[index], found, index, f"{name(label)}: {_count(found.units[index], unit)}", top)
            if as_share:
                axes[index].yaxis.set_major_formatter(lambda value, _: f"{100 * value:.3g} %")
            axes[index].set_ylabel("share of tokens" if as_share else "count / concepts", fontsize=7)
        axes[-1].set_xlabel("concept")
    return figure


def _count(units: int, unit: str) -> str:
    text = f"{units} {unit}{'' if units == 1 else 's'}"
    if units == 0:
        return f"{text} of this class alone: no mean"
    return text if units >= 3 else f"{text}: too few for an interval"


def _class_bars(axis: Any, found: ClassBarcodes, index: int, title: str, top: float) -> None:
    axis.set_title(title, loc="left", fontsize=8)
    axis.set_xlim(-0.5, found.mean.shape[1] - 0.5)
    axis.set_ylim(0, 1.1 * top if top > 0 else 1)
    if not found.units[index]:
        return
    place, share = reduce_bars(found.mean[index])
    rows = place.astype(int)
    if np.isfinite(found.low[index]).any():
        axis.vlines(place, found.low[index, rows], found.high[index, rows], colors="#c3cacf", linewidths=0.7)
    axis.vlines(place, 0, share, colors=class_colour(index), linewidths=0.8)
    mean, written = found.mean[index], list[int]()
    for concept in np.argsort(-mean, kind="stable")[: 4 * NAMED].tolist():
        apart = all(abs(concept - other) > len(mean) / 40 for other in written)
        if mean[concept] > 0 and apart and len(written) < NAMED:
            written.append(concept)
            axis.annotate(
                str(concept), (concept, mean[concept]), (0, 2), textcoords="offset points", ha="center",
                fontsize=6.5, color=MUTED,
            )  # fmt: skip


def contrast_figure(found: Contrast, first: str, second: str, unit: str, count: int = 50) -> Figure:
    """Signed differences, largest first either way; filled marks pass 5 % false discoveries."""
    chosen = found.top(count)
    y = np.arange(len(chosen))
    with paper():
        figure = sheet(7.2, 2.0 + 0.15 * max(6, len(chosen)), NUMBERS_LOCAL_ONLY)
        axis = figure.subplots()
        value, called = found.difference[chosen], found.q[chosen] <= DISCOVERY
        colour = [UP if positive else DOWN for positive in value > 0]
        face = [shade if passed else "white" for shade, passed in zip(colour, called, strict=True)]
        axis.axvline(0, color=MUTED, linewidth=0.6)
        if np.isfinite(found.low[chosen]).any():
            axis.hlines(y, found.low[chosen], found.high[chosen], colors=RULE, linewidths=2.5)
        if len(chosen):
            axis.scatter(value, y, s=13, c=face, edgecolors=colour, zorder=3)
        axis.set_yticks(y, [str(concept) for concept in chosen], fontsize=6)
        axis.set_ylim(max(1, len(chosen)) - 0.3, -0.7)
        axis.set_ylabel("concept")
        axis.xaxis.set_major_formatter(lambda value, _: f"{100 * value:+.3g} %")
        units = f"{found.units[0]} against {found.units[1]} {unit}s"
        axis.set_title(f"{name(first, 36)} (+) minus {name(second, 36)} (-), {units}", loc="left")
        tested = np.isfinite(found.q).any()
        filled = f"{int(called.sum())} filled: false discoveries <= 5 %; grey bars: " if tested else ""
        words = "\n".join(textwrap.wrap(filled + found.words, 92))
        axis.set_xlabel(f"difference of mean share of tokens\n{words}")
    return figure


def likeness_figure(found: Likeness, classes: Sequence[str], unit_names: Sequence[str]) -> Figure:
    """Patient against patient, ordered by class and by likeness within it."""
    side = min(9.0, max(3.6, 0.13 * len(found.order) + 2.0))
    with paper():
        figure = sheet(
            side + 1.2, side + 1.0, NUMBERS_LOCAL_ONLY, "How alike patients' barcodes are, by class"
        )
        axis = figure.subplots()
        image = axis.imshow(found.correlation, vmin=-1, vmax=1, cmap="RdBu_r", interpolation="nearest")
        _names(axis, found, unit_names)
        _strip(axis, found, classes)
        bar = figure.colorbar(image, ax=axis, shrink=0.6, aspect=26, pad=0.02)
        bar.set_label("Pearson correlation of barcodes over concepts")
    return figure


def _names(axis: Any, found: Likeness, unit_names: Sequence[str]) -> None:
    axis.set_xticks([])
    axis.set_yticks([])
    if len(found.order) <= NAMED_PATIENTS:
        axis.set_yticks(range(len(found.order)), [name(unit_names[i], 16) for i in found.order], fontsize=5.5)
    axis.tick_params(length=0)
    for spine in axis.spines.values():
        spine.set_visible(False)


def _strip(axis: Any, found: Likeness, classes: Sequence[str]) -> None:
    """Runs of classes as a coloured band above the map, with their names and a line between them."""
    m = len(found.label)
    edges = [0, *(np.flatnonzero(np.diff(found.label)) + 1).tolist(), m]
    for start, stop in pairwise(edges):
        label = int(found.label[start])
        text = name(classes[label], 14) if label >= 0 else "several classes"
        band = Rectangle(
            (start - 0.5, -0.5 - 0.03 * m), stop - start, 0.025 * m, color=class_colour(label), lw=0
        )
        band.set_clip_on(False)
        axis.add_patch(band)
        axis.text(start - 0.5, m - 0.5 + 0.01 * m, text, rotation=-40, ha="left", va="top", fontsize=6)
        for edge in (start,) if start else ():
            axis.axhline(edge - 0.5, color="white", linewidth=1.2)
            axis.axvline(edge - 0.5, color="white", linewidth=1.2)
