"""Figure F1: what became of a site's images, from its table to the units that were trained and tested on.

The width of a bar is a number of images (rounded by the site); the last bar is cut in the shares of the training and
held-out units. A stage that a site withheld ends hatched, at the smallest number that it can be.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from . import svg
from .figure import FULL, HALF, NAME, Figure, Missing
from .svg import MUTED, PALETTE, Scale
from .text import Json, clean, mapping, number, short, unit_word, whole

SITES = 12  # with more sites: all of them together, and the table
ONE_COLUMN = 3  # sites that fit under each other in half a column
BAR, PITCH, HEAD, STUB = 14.0, 21.0, 22.0, 14.0
STAGES = ("listed", "readable", "in a class")
HEADER = (
    "Site",
    "Listed",
    "Unreadable",
    "Readable, stored",
    "In the study's classes",
    "Units to train on",
    "Held out",
)
TITLE = "From the hospital's list to the numbers"
HOW = (
    "Images that a site's table lists, those that could be read and stored, and those of a kind that the study asks "
    "for; below them the {units} that were trained on and those kept apart for every test. Sites round these "
    "numbers, so small differences mean nothing. A hatched end: the number is withheld or not "
    "told, and is at least this large."
)


@dataclass(frozen=True)
class Flow:
    """One site's stages: images listed, stored, inside the classes; units; None where a number is withheld.

    `inside` is a sum of rounded numbers, drawn as no more than `stored`. `shown`: images in those classes that were
    released, a lower bound of `inside`.
    """

    site: str
    unit: str
    listed: float | None
    unreadable: float | None
    stored: float | None
    inside: float | None
    shown: float | None
    train: float | None
    test: float | None

    @property
    def images(self) -> tuple[float | None, float | None, float | None]:
        """The three stages that count images."""
        return self.listed, self.stored, self.inside


def flows(report: Json) -> list[Flow]:
    """Every site that told at least one number."""
    missing = mapping(report.get("missing"))
    found = []
    for name, given in mapping(report.get("sites")).items():
        site, part = mapping(given), mapping(missing.get(name))
        classes = [number(count) for count in mapping(site.get("classes")).values()]
        shown = [count for count in classes if count is not None]
        stored = number(site.get("images"))
        most = stored if stored is not None else float("inf")
        least = min(sum(shown), most) if shown else None
        flow = Flow(
            clean(name), unit_word(site.get("unit")), number(part.get("listed")), number(part.get("unreadable")),
            stored, least if len(shown) == len(classes) else None, least, number(site.get("train_units")),
            number(site.get("test_units")),
        )  # fmt: skip
        if any(value is not None for value in (*flow.images, flow.train)):
            found.append(flow)
    return found


def flow(report: Json, marks: Sequence[str]) -> Figure | Missing:
    """Stages of every site; of many sites, the sum of those that told all of them."""
    found = flows(report)
    if not found:
        return Missing(TITLE, "no site told how many images it has")
    shown = found if len(found) <= SITES else [_together(found)]
    most = max((value for item in shown for value in item.images if value is not None), default=1.0)
    columns = 1 if len(shown) <= ONE_COLUMN else 2
    height = HEAD + PITCH * 4 + 12
    parts = [svg.hatch("flow")]
    for index, item in enumerate(shown):
        x, y = (index % columns) * (FULL - HALF), (index // columns) * height
        parts.append(svg.el("g", _block(item, most), transform=f"translate({x} {y:.0f})"))
    how = HOW.format(units=shown[0].unit)
    if len(found) > SITES:
        how += f" Shown is the sum over sites; all {len(found)} stand in the table."
    width = HALF if columns == 1 else FULL
    rows = -(-len(shown) // columns)
    picture = svg.canvas("flow", width, height * rows, "".join(parts), TITLE, how, marks)
    return Figure("flow", TITLE, how, picture, HEADER, [_row(item) for item in found], columns > 1)


def _together(found: Sequence[Flow]) -> Flow:
    """The sum over the sites that told all three numbers of images; each stage is then of the same sites."""
    told = [item for item in found if None not in (*item.images, item.train, item.test)]
    if not told:
        return Flow("All sites", "units", *(None,) * 7)
    sums = [
        sum(getattr(item, name) or 0.0 for item in told)
        for name in ("listed", "unreadable", "stored", "inside", "shown", "train", "test")
    ]
    units = {item.unit for item in told}
    return Flow(f"{len(told)} of {len(found)} sites", units.pop() if len(units) == 1 else "units", *sums)


def _block(item: Flow, most: float) -> str:
    """One site: its name, three bars of images, one bar of units."""
    left = 74.0
    scale = Scale(0, max(most, 1.0), left, HALF - 66)
    parts = [svg.label(0, 13, short(item.site, 2 * NAME), font_weight="bold")]
    least = (
        item.stored,
        item.shown,
        item.shown,
    )  # a list holds what was stored; stored are those of any class
    for index, (name, value) in enumerate(zip(STAGES, item.images, strict=True)):
        y = HEAD + PITCH * index
        parts.append(svg.label(left - 8, y + 11, name, text_anchor="end", fill=MUTED))
        parts.append(_bar(scale, y, value, least[index]))
    return "".join(parts) + _units(item, left, HEAD + PITCH * 3 + 4)


def _bar(scale: Scale, y: float, value: float | None, least: float | None) -> str:
    """A bar with its number; where that is withheld, what it is at least, with a hatched end."""
    known = value if value is not None else least
    end = scale.start if known is None else max(scale(known), scale.start + 1)
    box = svg.rect(scale.start, y, end - scale.start, BAR, PALETTE[0]) if known is not None else ""
    if value is not None:
        return svg.hover(box, f"{whole(value)} images") + svg.label(end + 6, y + 11, whole(value))
    said = "not known" if least is None else f"≥ {whole(least)}"
    box += svg.rect(end, y, STUB, BAR, svg.hatched("flow"))
    return svg.hover(box, said) + svg.label(end + STUB + 6, y + 11, said, fill=MUTED)


def _units(item: Flow, left: float, y: float) -> str:
    """Units to train on and to test on, as two parts of one bar."""
    name = svg.label(left - 8, y + 11, item.unit, text_anchor="end", fill=MUTED)
    if item.train is None or item.test is None or item.train + item.test <= 0:
        return name + svg.label(left, y + 11, "withheld", fill=MUTED, font_style="italic")
    scale = Scale(0, item.train + item.test, left, HALF - 66)
    middle = scale(item.train)
    parts = (
        (left, middle, PALETTE[2], f"{whole(item.train)} to train on"),
        (middle, scale.stop, PALETTE[1], f"{whole(item.test)} held out"),
    )
    out = [name]
    for start, stop, colour, text in parts:
        box = svg.rect(start, y, max(stop - start - 1, 1.0), 4, colour)
        out.append(svg.hover(box, text) + svg.label(start, y + 15, text, font_size=10))
    return "".join(out)


def _row(item: Flow) -> list[str]:
    lower = f"at least {whole(item.shown)}" if item.shown is not None else "withheld"
    return [
        item.site,
        whole(item.listed) or "not told or withheld",
        whole(item.unreadable) or "not known",
        whole(item.stored) or "withheld",
        whole(item.inside) or lower,
        whole(item.train) or "withheld",
        whole(item.test) or "withheld",
    ]
