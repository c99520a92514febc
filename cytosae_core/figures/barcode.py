"""Patient scale: one barcode, two barcodes against each other, and the concepts typical of a patient."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from ..concepts.barcode import Comparison, Typical
from .canvas import DOWN, INK, MUTED, NUMBERS_LOCAL_ONLY, RULE, UP, name, paper, sheet

COLUMNS = 1200  # bars drawn at most; several concepts share one when there are more (the largest is shown)
NAMED = 8  # bars whose concept is written
LISTED = 20  # rows of a list
DISCOVERY = 0.05

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Shown:
    """One barcode to draw: shares [n] (NaN row: none), whose it is, and whether it is a share (else a count)."""

    title: str
    shares: Floats
    as_share: bool = True


def barcode_figure(
    barcodes: list[Shown],
    typical: Typical | None = None,
    comparison: Comparison | None = None,
    title: str = "",
) -> Figure:
    """Barcodes one above the other on one scale; below them what is typical, or what differs."""
    lists = [part for part in (typical, comparison) if part is not None]
    with paper():
        figure = sheet(
            8.6, 0.7 + 1.5 * len(barcodes) + 3.6 * bool(lists), NUMBERS_LOCAL_ONLY, name(title, 110)
        )
        heights = [1.5] * len(barcodes) + ([3.4] if lists else [])
        parts = figure.add_gridspec(len(heights), max(1, len(lists)), height_ratios=heights)
        for row, barcode in enumerate(barcodes):
            top = _top([one for one in barcodes if one.as_share == barcode.as_share])
            _bars(figure.add_subplot(parts[row, :]), barcode, top, last=row == len(barcodes) - 1)
        for column, part in enumerate(lists):
            axis = figure.add_subplot(parts[len(barcodes), column])
            if isinstance(part, Typical):
                _typical(axis, part)
            else:
                _differences(axis, part)
    return figure


def _top(barcodes: list[Shown]) -> float:
    return max((float(one.shares.max()) for one in barcodes if np.isfinite(one.shares).all()), default=1.0)


def reduce_bars(shares: Floats, columns: int = COLUMNS) -> tuple[Floats, Floats]:
    """(concept, share) of at most `columns` bars: of each run of neighbours the largest share."""
    if len(shares) <= columns:
        return np.arange(len(shares), dtype=np.float64), shares
    edges = np.linspace(0, len(shares), columns + 1).astype(int)
    kept = np.array([low + int(np.argmax(shares[low:high])) for low, high in pairwise(edges)])
    return kept.astype(np.float64), shares[kept]


def _bars(axis: Any, barcode: Shown, top: float, *, last: bool) -> None:
    axis.set_title(name(barcode.title, 120), loc="left", fontsize=8)
    axis.set_xlim(-0.5, len(barcode.shares) - 0.5)
    axis.set_ylim(0, 1.28 * top if top > 0 else 1)
    if barcode.as_share:
        axis.yaxis.set_major_formatter(lambda value, _: f"{100 * value:.3g} %")
    axis.set_ylabel("share of tokens" if barcode.as_share else "count / concepts")
    if last:
        axis.set_xlabel("concept")
    if not np.isfinite(barcode.shares).all():
        axis.text(0.5, 0.5, "no barcode", transform=axis.transAxes, ha="center", color=MUTED)
        return
    place, share = reduce_bars(barcode.shares)
    axis.vlines(place, 0, share, colors=INK, linewidths=0.7)
    written: list[int] = []
    for concept in np.argsort(-barcode.shares, kind="stable")[: 4 * NAMED].tolist():
        apart = all(abs(concept - other) > len(barcode.shares) / 40 for other in written)
        if barcode.shares[concept] > 0 and apart and len(written) < NAMED:
            written.append(concept)
            axis.annotate(
                str(concept), (concept, barcode.shares[concept]), (0, 2), textcoords="offset points",
                ha="center", fontsize=6.5, color=MUTED,
            )  # fmt: skip


def _typical(axis: Any, part: Typical) -> None:
    axis.set_title("typical of this patient (above the other patients)", loc="left")
    if not np.isfinite(part.z).any():
        _say(axis, part.basis)
        return
    chosen = np.argsort(-part.z, kind="stable")[:LISTED]
    chosen = chosen[part.z[chosen] > 0]
    called = part.q[chosen] <= DISCOVERY
    y = np.arange(len(chosen))
    axis.hlines(y, 0, part.z[chosen], colors=RULE, linewidths=1)
    axis.scatter(
        part.z[chosen][called], y[called], color=UP, s=16, zorder=3, label="false discoveries <= 5 %"
    )
    axis.scatter(
        part.z[chosen][~called], y[~called], facecolor="white", edgecolor=MUTED, s=16, zorder=3,
        label="may be chance",
    )  # fmt: skip
    axis.set_yticks(y, [str(concept) for concept in chosen])
    if len(chosen) and part.z[chosen[0]] > 30:
        axis.set_xscale("symlog", linthresh=10)
    axis.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axis.set_xlim(left=0)
    axis.invert_yaxis()
    axis.set_ylabel("concept")
    axis.set_xlabel(_wrapped(part.basis + (f". {part.warning}" if part.warning else "")))
    if len(chosen):
        axis.legend(frameon=False, fontsize=6.5, loc="lower right")


def _differences(axis: Any, part: Comparison) -> None:
    axis.set_title("first patient minus second", loc="left")
    chosen = np.argsort(-np.abs(part.difference), kind="stable")[:LISTED]
    chosen = chosen[part.difference[chosen] != 0]
    y = np.arange(len(chosen))
    if part.pairs:
        axis.barh(y, part.high[chosen] - part.low[chosen], left=part.low[chosen], height=0.7, color="#e4e8ea")
    colours = [UP if positive else DOWN for positive in part.difference[chosen] > 0]
    filled = part.outside[chosen] | (part.pairs == 0)
    face = [shade if full else "white" for shade, full in zip(colours, filled, strict=True)]
    axis.scatter(part.difference[chosen], y, s=16, c=face, edgecolors=colours, zorder=3)
    axis.axvline(0, color=MUTED, linewidth=0.6)
    axis.set_yticks(y, [str(concept) for concept in chosen])
    axis.invert_yaxis()
    axis.set_ylabel("concept")
    axis.xaxis.set_major_formatter(lambda value, _: f"{100 * value:+.3g} %")
    filled = "; filled: outside the grey range of other patients" if part.pairs else ""
    axis.set_xlabel(_wrapped(f"difference in share of tokens{filled}. {part.basis}"))


def _say(axis: Any, text: str) -> None:
    axis.axis("off")
    axis.text(0, 0.9, _wrapped(text, 56), transform=axis.transAxes, va="top", color=MUTED)


def _wrapped(text: str, width: int = 60) -> str:
    import textwrap

    return "\n".join(textwrap.wrap(text, width))
