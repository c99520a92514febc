"""report.json as one offline page: no script, no request to anywhere, readable in print and without pictures.

The page is for three readers: pathologists (first screen, concepts), hospital IT (what left), auditors (how to
check). Order of the code is order of the page. Everything in `report` is untrusted text or numbers.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from . import provenance, sections, sections_statistics, summary
from .page import tag, words
from .style import CSS
from .text import escape, lines, mapping

POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; form-action 'none'"
USE = "Research use; not a medical device."


def render(report: Mapping[str, Any]) -> str:
    """The page for one report.json.

    Args:
        report: the values of report.json (URN urn:cytosae:report:v1). Any part may be missing or null; the page
            then says that it was not assessed and why.

    Returns:
        HTML text that encodes as UTF-8, about 0.2 MB for 5 sites and 1,024 concepts.
    """
    data = dict(report)
    marks = lines(data.get("watermarks"))
    sheet = tag(
        "main", summary.masthead(data) + _first(data) + _results(data, marks) + _footer(), class_="sheet"
    )
    band = tag("div", escape(" · ".join(marks)), class_="band", role="note") if marks else ""
    side = tag("div", escape(" · ".join([*marks, USE])), class_="side", aria_hidden="true")
    body = tag("body", band + side + sheet, class_="marked" if marks else None)
    return f'<!DOCTYPE html>\n<html lang="en">{_head(data)}{body}</html>\n'


def _head(data: dict[str, Any]) -> str:
    return tag(
        "head",
        '<meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{escape(POLICY)}">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        '<meta name="referrer" content="no-referrer">'
        + words("title", data.get("title") or "Cross-site concept report")
        + f"<style>{CSS}</style>",
    )


def _first(data: dict[str, Any]) -> str:
    if _compared(data):
        return tag(
            "section", summary.opening(data) + sections_statistics.datasets_table(data), class_="first"
        )
    return tag(
        "section", summary.opening(data) + summary.glance(data) + summary.sites_table(data), class_="first"
    )


def _compared(data: dict[str, Any]) -> bool:
    """A comparison of data-set statistics: no study ran, so the pages of a run have nothing to show."""
    return mapping(data.get("study")).get("kind") == "compare"


def _results(data: dict[str, Any], marks: list[str]) -> str:
    if _compared(data):
        parts = [section(data, marks) for section in (sections_statistics.use, sections_statistics.meaning)]
        return "".join([*parts, sections.gaps(data), provenance.check_statistics(data)])
    parts = [section(data, marks) for section in (sections.concepts, sections.transfer, sections.quality)]
    return "".join([*parts, provenance.egress(data, marks), sections.gaps(data), provenance.check(data)])


def _footer() -> str:
    return tag("footer", f"{words('b', USE)} This page loads nothing from anywhere and runs no script.")
