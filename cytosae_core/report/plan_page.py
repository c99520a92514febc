"""The plan that a hospital signs as a page and as Markdown: pure functions of `plan_document`'s values."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from .page import bullets, facts, section, table, tag, words
from .style import CSS
from .text import clean, escape

POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; form-action 'none'"
USE = "Research use; not a medical device."
# Inside a word an underscore is a letter, also in Markdown.
_EMPHASIS = re.compile(r"(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])")


def render_plan(document: Mapping[str, Any]) -> str:
    """The document as one HTML page: no script, no request to anywhere, A4 when printed."""
    mark = "SIMULATED SITES" if document["simulation"] else ""
    head = tag(
        "head",
        '<meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{escape(POLICY)}">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        + words("title", document["title"])
        + f"<style>{CSS}{SIGN_CSS}</style>",
    )
    lead = words("p", "What will be computed, what leaves, and what decides: agreed before the first number.")
    mast = tag("div", words("b", "CytoSAE Federation") + words("span", document["sha256"]), class_="masthead")
    top = tag("section", words("h1", document["title"]) + lead, class_="first")
    body = "".join(section(p["id"], p["title"], "", *map(_item, p["items"])) for p in document["sections"])
    sheet = tag(
        "main", mast + top + body + _signatures(document) + tag("footer", words("b", USE)), class_="sheet"
    )
    band = words("div", mark, class_="band", role="note") if mark else ""
    return f'<!DOCTYPE html>\n<html lang="en">{head}{tag("body", band + sheet)}</html>\n'


SIGN_CSS = """
.sign{display:grid;grid-template-columns:repeat(3,minmax(0,1fr));gap:24px;font:13px/1.5 var(--sans)}
.sign div{border-top:1px solid var(--ink);padding-top:6px;margin-top:56px}
.sign span{display:block;color:var(--muted)}
#leaves td:nth-child(4){white-space:nowrap}
@media print{ul.plain{font-size:10pt}.sign{break-inside:avoid}}
"""


def _signatures(document: Mapping[str, Any]) -> str:
    text = f"Signed for the protocol with SHA-256 {document['sha256']}, and for no other."
    boxes = "".join(
        tag("div", words("b", who) + words("span", "Name, place, date, signature"))
        for who in document["signers"]
    )
    return section("signatures", "Signatures", "", words("p", text), tag("div", boxes, class_="sign"))


def _item(item: Any) -> str:
    if isinstance(item, str):
        return words("p", item)
    if isinstance(item, list):
        return bullets(item)
    if "pairs" in item:
        return facts([(name, value) for name, value in item["pairs"]])
    return table(item["header"], item["rows"])


def plan_markdown(document: Mapping[str, Any]) -> str:
    """The document as Markdown."""
    out = [f"# {_plain(document['title'])}", "", f"Protocol SHA-256: `{document['sha256']}`", ""]
    if document["simulation"]:
        out += ["**SIMULATED SITES**", ""]
    for part in document["sections"]:
        out += [f"## {part['title']}", ""]
        for item in part["items"]:
            out += [*_markdown(item), ""]
    out += ["## Signatures", ""]
    for who in document["signers"]:
        out += [f"{who} (name, place, date, signature): ______________________________", ""]
    return "\n".join([*out, USE, ""])


def _markdown(item: Any) -> list[str]:
    if isinstance(item, str):
        return [_plain(item)]
    if isinstance(item, list):
        return [f"- {_plain(text)}" for text in item]
    if "pairs" in item:
        return [f"- {_plain(name)}: {_plain(value)}" for name, value in item["pairs"]]
    header, rows = item["header"], item["rows"]
    return [_row(header), _row(["---"] * len(header)), *map(_row, rows)]


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(_plain(cell) for cell in cells)} |"


def _plain(text: str) -> str:
    """One line in which nothing is Markdown or HTML."""
    out = clean(text)
    for mark in "\\`*[]<>|#":
        out = out.replace(mark, f"\\{mark}" if mark != "<" else "&lt;")
    return _EMPHASIS.sub(r"\\_", out)
