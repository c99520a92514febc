"""HTML from small pure functions: elements, tables, figures, measures. Everything is escaped here, once."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from .figure import Figure, Missing
from .text import clean, escape


@dataclass(frozen=True)
class Gap:
    """A table cell without a number; it is drawn hatched and says why."""

    reason: str


TableCell = str | Gap
KINDS_OF_GAPS = ("suppressed: ", "not estimable: ")
MANY_COLUMNS = 6  # tables with more scroll by themselves on narrow screens
_NUMBERED = re.compile(r"R\d{1,2}")


def tag(name: str, content: str = "", /, **attributes: object) -> str:
    """One element. `content` is markup; attribute values are escaped; None is left out."""
    pairs = [
        (key.rstrip("_").replace("_", "-"), value) for key, value in attributes.items() if value is not None
    ]
    text = "".join(f' {key}="{escape(value)}"' for key, value in pairs)
    return f"<{name}{text}>{content}</{name}>"


def words(name: str, value: object, /, **attributes: object) -> str:
    """One element with plain text in it."""
    return tag(name, escape(value), **attributes)


def gap_text(reason: object) -> str:
    """The reason of a gap, after the kind of gap: not assessed, unless the reason names another kind itself."""
    said = clean(reason)
    return said if said.startswith(KINDS_OF_GAPS) else f"not assessed: {said}"


def absent(reason: object) -> str:
    """What stands in place of a part that has no numbers."""
    said = gap_text(reason)
    return words("p", f"{said[0].upper()}{said[1:]}.", class_="na")


def bullets(items: Sequence[str], kind: str = "ul") -> str:
    """A list of texts."""
    return tag(kind, "".join(words("li", item) for item in items), class_="plain")


def known(text: str, reason: str) -> TableCell:
    """`text`, or a gap with its reason when it is empty."""
    return text or Gap(reason)


def table(
    header: Sequence[str], rows: Sequence[Sequence[TableCell]], caption: str = "", right: int = 99
) -> str:
    """A table with its caption. The first column names the row; columns from index `right` on are right aligned."""
    head = "".join(words("th", name, scope="col", class_=_side(n, right)) for n, name in enumerate(header))
    body = "".join(tag("tr", "".join(_cell(c, n, right) for n, c in enumerate(row))) for row in rows)
    kind = "data many" if len(header) > MANY_COLUMNS else "data"
    name = {"aria_label": caption} if caption else {}
    inner = tag("table", tag("thead", tag("tr", head)) + tag("tbody", body), class_=kind, **name)
    shown = words("p", caption, class_="cap") if caption else ""
    return shown + tag("div", inner, class_="scroll", tabindex=0)


def _side(column: int, right: int) -> str | None:
    return "n" if column >= right else None


def _cell(cell: TableCell, column: int, right: int) -> str:
    if isinstance(cell, Gap):
        return tag("td", words("span", cell.reason), class_="gap")
    if column == 0:
        return words("th", cell, scope="row")
    return words("td", cell, class_=_side(column, right))


def details(summary: str, content: str) -> str:
    """Content behind a click; left out of print."""
    return tag("details", words("summary", summary) + content)


def figure(item: Figure | Missing) -> str:
    """A figure: title, picture, how to read it, and its numbers as a table; or why it is missing."""
    if isinstance(item, Missing):
        return tag("figure", words("h3", item.title) + absent(item.reason), class_="missing")
    plot = (
        tag("div", item.picture, class_="plot wide", tabindex=0)
        if item.wide
        else tag("div", item.picture, class_="plot")
    )
    numbers = details("The same numbers as a table", table(item.header, item.rows))
    return tag(
        "figure", words("h3", item.title) + plot + words("figcaption", item.how) + numbers, id=f"f-{item.key}"
    )


def pair(*items: Figure | Missing) -> str:
    """Figures side by side; wide ones keep a row of their own."""
    wide = [figure(item) for item in items if isinstance(item, Figure) and item.wide]
    half = [figure(item) for item in items if not (isinstance(item, Figure) and item.wide)]
    return (tag("div", "".join(half), class_="pair") if half else "") + "".join(wide)


def beside(item: Figure | Missing, content: str) -> str:
    """A figure with other content at its side; below it when the figure is wide."""
    if isinstance(item, Figure) and item.wide:
        return figure(item) + content
    return tag("div", figure(item) + content, class_="pair")


@dataclass(frozen=True)
class Measure:
    """A number, one plain sentence on what it is, and what it has to be compared with. Empty value: not assessed."""

    name: str
    value: str
    sentence: str
    control: str = ""
    reason: str = "no number was released"


def measures(items: Sequence[Measure], kind: str = "measures") -> str:
    """Numbers with their sentences, two a row; kind `measures one`: one a row."""
    return tag("dl", "".join(_measure(item) for item in items), class_=kind)


def _measure(item: Measure) -> str:
    value = words("b", item.value) if item.value else absent(item.reason)
    control = f" {words('span', item.control, class_='control')}" if item.control else ""
    return tag("div", words("dt", item.name) + tag("dd", f"{value}{escape(item.sentence)}{control}"))


def facts(items: Sequence[tuple[str, TableCell]]) -> str:
    """Names and values, one line each."""
    parts = []
    for name, value in items:
        shown = gap_text(value.reason) if isinstance(value, Gap) else value
        parts.append(words("dt", name) + words("dd", shown))
    return tag("dl", "".join(parts), class_="facts")


def section(key: str, title: str, intro: str, *parts: str) -> str:
    """A section with its heading and one sentence that says what it answers. Keys R0 .. R21 are shown as numbers."""
    number = words("span", key, class_="no") if _NUMBERED.fullmatch(key) else ""
    head = tag("h2", number + escape(title)) + (words("p", intro, class_="intro") if intro else "")
    return tag("section", head + "".join(parts), id=key)
