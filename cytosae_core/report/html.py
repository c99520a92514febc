"""report.json as one offline page: no request to anywhere, readable in print, without pictures and without a script.

The page is for three readers: pathologists (first screen, concepts), hospital IT (what left), auditors (how to
check). Order of the code is order of the page: sections R0 to R21. Everything in `report` is untrusted text or
numbers. The page's one script searches the table of concepts; the policy names it by its digest and allows no other.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from . import (
    provenance,
    sections,
    sections_experts,
    sections_protocol,
    sections_results,
    sections_statistics,
    summary,
)
from .browse import SCRIPT_SHA256
from .page import section, tag, words
from .sections_linked import POLICY, linked_pages
from .style import CSS
from .text import Json, escape, lines, mapping

SCRIPTED = f"{POLICY}; script-src 'sha256-{SCRIPT_SHA256}'"
USE = "Research use; not a medical device."
Section = Callable[[Json, list[str]], str]
# R0 is the first screen.
SECTIONS: tuple[Section, ...] = (
    sections_protocol.protocol,
    sections_protocol.sites,
    sections_protocol.models,
    provenance.egress,
    sections_protocol.integrity,
    sections.quality,
    sections.concepts,
    sections_results.transfer,
    sections_results.calibrated,
    sections_results.subgroups,
    sections_results.robustness,
    sections_results.missing,
    sections_results.drifted,
    sections_experts.experts,
    sections.failures,
    sections_results.baselines,
    sections_protocol.limits,
    sections_protocol.checklist,
    sections_protocol.deviations,
    provenance.glossary,
    provenance.appendix,
)
CONTENTS = (
    "First page", "Intended use and protocol", "Sites and data", "Models", "Privacy: what left", "Integrity",
    "Quality of the dictionary", "All concepts", "A hospital never seen", "Calibration", "Subgroups", "Robustness",
    "Missing data", "Drift", "Experts", "Failures", "Baselines", "Limits", "Checklist", "Deviations", "Words",
    "How to check",
)  # fmt: skip


def render(report: Mapping[str, Any]) -> str:
    """The page for one report.json.

    Args:
        report: the values of report.json (URN urn:cytosae:report:v2). Any part may be missing or null; the page
            then says that it was not assessed and why.

    Returns:
        HTML text that encodes as UTF-8: the same bytes on every machine, under 5 MB at any number of concepts.
    """
    data = dict(report)
    marks = lines(data.get("watermarks"))
    main = tag("main", _first(data) + _results(data, marks), id="main")
    sheet = tag("div", summary.masthead(data) + main + _footer(data), class_="sheet")
    skip = words("a", "To the report", href="#main", class_="skip")
    band = words("aside", " · ".join(marks), class_="band", aria_label="Watermark") if marks else ""
    side = tag("div", escape(" · ".join([*marks, USE])), class_="side", aria_hidden="true")
    body = tag("body", skip + band + side + sheet, class_="marked" if marks else None)
    return f'<!DOCTYPE html>\n<html lang="en">{_head(data)}{body}</html>\n'


def render_pages(report: Mapping[str, Any], columns: Mapping[str, Any] | None = None) -> dict[str, str]:
    """report.html first, then the linked pages of a large study, by file name.

    Args:
        report: as for `render`.
        columns: tensors of report-sites.safetensors ([sites, n], rows of the dictionary), for the linked pages only:
            report.html is the same without them.
    """
    data = dict(report)
    return {"report.html": render(data), **({} if _compared(data) else linked_pages(data, columns))}


def _head(data: Json) -> str:
    return tag(
        "head",
        '<meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{escape(POLICY if _compared(data) else SCRIPTED)}">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        '<meta name="referrer" content="no-referrer">'
        '<meta name="color-scheme" content="light dark">'
        + words("title", data.get("title") or "Cross-site concept report")
        + f"<style>{CSS}</style>",
    )


def _first(data: Json) -> str:
    if _compared(data):
        shown = summary.opening(data) + sections_statistics.datasets_table(data)
        return tag("section", summary.use() + shown, class_="first")
    shown = summary.cover(data) + summary.glance(data) + summary.sites_table(data)
    return tag("section", summary.use() + shown, class_="first", id="R0") + _contents()


def _contents() -> str:
    items = [
        tag("li", words("span", f"R{index}") + words("a", name, href=f"#R{index}"))
        for index, name in enumerate(CONTENTS)
    ]
    return section("contents", "Contents", "", tag("ol", "".join(items), class_="contents"))


def _compared(data: Json) -> bool:
    """A comparison of data-set statistics: no study ran, so the pages of a run have nothing to show."""
    return mapping(data.get("study")).get("kind") == "compare"


def _results(data: Json, marks: list[str]) -> str:
    if _compared(data):
        parts = [part(data, marks) for part in (sections_statistics.use, sections_statistics.meaning)]
        return "".join([*parts, sections_statistics.gaps(data), provenance.check_statistics(data)])
    return "".join(part(data, marks) for part in SECTIONS)


def _footer(data: Json) -> str:
    said = "This page loads nothing from anywhere"
    said += " and runs no script." if _compared(data) else "; its only script searches the table of concepts."
    return tag("footer", f"{words('b', USE)} {said}")
