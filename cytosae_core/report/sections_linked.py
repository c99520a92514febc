"""Linked pages of a large study: every concept with the AUROC of every site, as plain lines of text. No script.

Numbers of single sites are written through a table of the 101 possible texts, so that 5 million of them take seconds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .browse import PER_PAGE, page_count, page_name, page_span, row_cells
from .figures_data import Concepts, concept_sites
from .page import tag, words
from .style import CSS
from .text import Json, clean, escape, lines, mapping, short

POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; form-action 'none'"
WIDTHS = (9, 17, 14, 17, 7, 16, 16, 7)  # characters of the columns before the sites
HEADS = ("concept", "speaks of", "state", "verdict", "AUROC", "95 % interval", "new hospital", "sites")
EVERY = 40  # lines between two headers
CELL = 4  # characters of one site's value
WIDE = ".sheet{max-width:none}h1{font-size:22px}"
_TEXTS = np.array(
    [list(text.rjust(CELL).encode()) for text in (*(f".{n:02d}" for n in range(100)), "1.0", "-")], np.uint8
)
NONE = 101  # index of "no value"


def linked_pages(report: Json, columns: Mapping[str, Any] | None) -> dict[str, str]:
    """Pages beside report.html; none up to `LARGE` concepts.

    Args:
        columns: float32 `auroc` [sites, n] in the order of the dictionary's rows, as in report-sites.safetensors;
            None: values of sites from the report's own tables, or left out.
    """
    concepts = Concepts(report)
    count = page_count(concepts)
    if not count:
        return {}
    sites, values = _site_values(report, concepts, columns)
    return {
        page_name(number): _page(report, concepts, number, count, sites, values)
        for number in range(1, count + 1)
    }


def _site_values(
    report: Json, concepts: Concepts, columns: Mapping[str, Any] | None
) -> tuple[list[str], NDArray[np.uint8] | None]:
    """Sites, and per concept (order of the columns) and site the index of its text; None: no values at hand."""
    tables = mapping(mapping(report.get("concepts")).get("tables"))
    if columns is not None and "auroc" in columns:
        sites = lines(tables.get("sites")) or concept_sites(report)
        table = np.asarray(columns["auroc"], dtype=np.float32)
        order = np.array([0 if row is None else int(row) for row in concepts.values("row")], np.int64)
        if table.ndim == 2 and table.shape[0] == len(sites) and table.shape[1] and order.min(initial=0) >= 0:
            inside = order < table.shape[1]
            found = _indices(table).T[np.where(inside, order, 0)]
            found[~inside] = NONE
            return sites, found
    if concepts.with_sites:
        sites = concept_sites(report)
        rows = [
            [np.nan if value is None else value for value in concepts.at_sites("auroc", place, sites)]
            for place in range(concepts.count)
        ]
        return sites, _indices(np.array(rows, np.float32).reshape(concepts.count, len(sites)))
    return concept_sites(report), None


def _indices(values: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Index in `_TEXTS` of every AUROC: hundredths, or `NONE`."""
    known = (values >= 0) & (values <= 1)  # False for NaN
    return np.where(known, np.rint(np.where(known, values, 0) * np.float32(100)), NONE).astype(np.uint8)


def _page(
    report: Json,
    concepts: Concepts,
    number: int,
    count: int,
    sites: Sequence[str],
    values: NDArray[np.uint8] | None,
) -> str:
    start = (number - 1) * PER_PAGE
    stop = min(start + PER_PAGE, concepts.count)
    title = f"Concepts {start + 1:,} to {stop:,} of {concepts.count:,}"
    marks = lines(report.get("watermarks"))
    band = words("aside", " · ".join(marks), class_="band", aria_label="Watermark") if marks else ""
    side = words("div", " · ".join([*marks, "Research use"]), class_="side", aria_hidden="true")
    head = words("h1", title) + words("p", _explain(values is not None), class_="small")
    listing = tag("pre", _lines(concepts, start, stop, len(sites), values), class_="rows", tabindex=0)
    main = tag("main", head + (_key(sites) if values is not None else "") + listing, id="main")
    name = escape(clean(report.get("title") or "Cross-site concept report"))
    top = tag("header", f"<b>{name}</b>" + _ways(number, count), class_="masthead")
    foot = tag(
        "footer", "<b>Research use; not a medical device.</b> This page loads nothing and runs no script."
    )
    body = tag(
        "body",
        band + side + tag("div", top + main + foot, class_="sheet"),
        class_="marked" if marks else None,
    )
    return f'<!DOCTYPE html>\n<html lang="en">{_head(title)}{body}</html>\n'


def _head(title: str) -> str:
    meta = (
        '<meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{escape(POLICY)}">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        '<meta name="referrer" content="no-referrer">'
    )
    return tag("head", meta + words("title", title) + f"<style>{CSS}{WIDE}</style>")


def _explain(with_sites: bool) -> str:
    said = (
        "One line per concept, strongest first. AUROC pooled over sites (.5 says nothing), its 95 % interval, and "
        "the interval in which a new hospital is expected."
    )
    if not with_sites:
        return f"{said} Values of single sites: not assessed here, they are in report-sites.safetensors."
    return (
        f"{said} Then the AUROC of every site, in the order of the list; a dash: withheld, or not assessed."
    )


def _key(sites: Sequence[str]) -> str:
    items = "".join(tag("li", f"<span>{index}</span>{escape(site)}") for index, site in enumerate(sites, 1))
    return tag("details", words("summary", "Sites by number") + tag("ul", items, class_="contents"))


def _ways(number: int, count: int) -> str:
    ways = [words("a", "Report", href="report.html#R7")]
    if number > 1:
        ways.append(words("a", "Stronger concepts", href=page_name(number - 1), rel="prev"))
    if number < count:
        ways.append(words("a", "Weaker concepts", href=page_name(number + 1), rel="next"))
    return tag("nav", " · ".join(ways), aria_label="Pages")


def _lines(concepts: Concepts, start: int, stop: int, sites: int, values: NDArray[np.uint8] | None) -> str:
    header = "".join(text.ljust(width) for text, width in zip(HEADS, WIDTHS, strict=True))
    if values is not None:
        header += "".join(str(index).rjust(CELL) for index in range(1, sites + 1))
    out: list[str] = []
    for place in range(start, stop):
        if (place - start) % EVERY == 0:
            out.append(f"\n{header}" if out else header)
        out.append(_line(concepts, place) + _row_text(values, place))
    return "\n".join(out)


def _row_text(values: NDArray[np.uint8] | None, place: int) -> str:
    return "" if values is None else _TEXTS[values[place]].tobytes().decode("ascii")


def _line(concepts: Concepts, place: int) -> str:
    name, *rest = row_cells(concepts, place)[: len(WIDTHS)]
    shown = [short(text, width - 1).ljust(width) for text, width in zip(rest, WIDTHS[1:], strict=True)]
    pad = " " * max(WIDTHS[0] - len(name), 1)
    return f'<b id="{escape(name)}">{escape(name)}</b>{pad}{_plain("".join(shown))}'


def _plain(text: str) -> str:
    """Escaped, with its spaces: `escape` would fold them."""
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def page_names(report: Json) -> list[str]:
    """Names and contents of the linked pages, for the appendix."""
    concepts = Concepts(report)
    return [f"{page_name(n)}: {page_span(concepts, n)}" for n in range(1, page_count(concepts) + 1)]
