"""Values of report.json as text: reading without trust, escaping, numbers with their units.

Site names, labels and reasons come from other hospitals and are hostile input. Everything that reaches the
page passes `escape` once, in the function that writes the element.
"""

from __future__ import annotations

import html
import unicodedata
from collections.abc import Mapping
from typing import Any

Json = dict[str, Any]

# Unicode categories that can break XML or reorder a line: control, format (bidi), surrogate, line separators.
_UNSAFE = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp"})
REPORTED = "reported"
MOST = 1e15  # larger sizes are no numbers of a study
_REPLACEMENT = "\ufffd"
_UNITS = {"patient": "patients", "slide": "slides", "source_file": "source files"}


def clean(value: object) -> str:
    """`value` as one line without control, bidirectional or unpaired surrogate characters; None is empty."""
    if value is None:
        return ""
    text = " ".join(str(value).split())
    if text.isascii() and text.isprintable():
        return text
    return "".join(_REPLACEMENT if _unsafe(character) else character for character in text)


def _unsafe(character: str) -> bool:
    # U+FFFE and U+FFFF are unassigned, and not allowed in XML.
    return unicodedata.category(character) in _UNSAFE or ord(character) & 0xFFFE == 0xFFFE


def escape(value: object) -> str:
    """`value` for HTML or XML text and for attributes in double quotes."""
    return html.escape(clean(value), quote=True)


def short(value: object, limit: int) -> str:
    """`value` cut to `limit` characters, an ellipsis included."""
    text = clean(value)
    return text if len(text) <= limit else text[: limit - 1].rstrip() + "…"


def mapping(value: object) -> Json:
    """`value` when it is a mapping, else an empty one: missing parts of a report are allowed."""
    return dict(value) if isinstance(value, Mapping) else {}


def entries(value: object) -> list[Json]:
    """The mappings in a list; an empty list when `value` is not a list."""
    return [dict(item) for item in value if isinstance(item, Mapping)] if isinstance(value, list) else []


def lines(value: object) -> list[str]:
    """The texts in a list; an empty list when `value` is not a list."""
    return [clean(item) for item in value if item is not None] if isinstance(value, list) else []


def number(value: object) -> float | None:
    """A number, or None for null, text, booleans, NaN, infinities and what no report can hold (beyond `MOST`)."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    return float(value) if abs(value) <= MOST else None  # False for NaN; right for integers of any length


def numbers(value: object) -> dict[str, float | None]:
    """A mapping of names to numbers or None."""
    return {clean(name): number(item) for name, item in mapping(value).items()}


def mean(values: list[float | None]) -> float | None:
    """Mean of the known values; None when there is none."""
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def decimal(value: float | None, digits: int = 3) -> str:
    """0.165; an empty string for None."""
    if value is None:
        return ""
    text = f"{value:.{digits}f}"
    return (
        text[1:].replace("-", "−") if text.lstrip("-0.") == "" and text[0] == "-" else text.replace("-", "−")
    )


def compact(value: float | None, digits: int = 2) -> str:
    """.82 for a share or a correlation in a small cell: no leading zero."""
    text = decimal(value, digits)
    return text.replace("0.", ".", 1) if text.startswith(("0.", "−0.")) else text


def precise(value: float | None) -> str:
    """Two decimals; three where two would say 0.00, 1.00 or -0.00 of a value that is none of them to three."""
    if value is None:
        return ""
    away = min(abs(value), abs(abs(value) - 1))
    return decimal(value, 3 if 0.0005 <= away < 0.005 else 2)


def ends(value: object) -> tuple[float, float] | None:
    """The two finite ends of an interval, or None."""
    if not isinstance(value, list) or len(value) != 2:
        return None
    low, high = number(value[0]), number(value[1])
    return None if low is None or high is None else (low, high)


def span(interval: tuple[float, float] | None) -> str:
    """0.61 to 0.83; an empty string for None."""
    return "" if interval is None else f"{precise(interval[0])} to {precise(interval[1])}"


def stopped(text: str) -> str:
    """A sentence with its full stop; empty stays empty."""
    return text if not text or text.endswith((".", "!", "?")) else f"{text}."


def percent(value: float | None) -> str:
    """12 %; one digit below 10 %."""
    if value is None:
        return ""
    return f"{100 * value:.1f} %" if 0 < abs(value) < 0.0995 else f"{100 * value:.0f} %"


def whole(value: float | None) -> str:
    """12,401 with thousands separators."""
    return "" if value is None else f"{value:,.0f}"


def chance(value: float | None) -> str:
    """A probability: never 0 % or 100 %, which no finite study can show."""
    if value is None:
        return ""
    return "over 99 %" if value > 0.99 else "under 1 %" if value < 0.01 else f"{100 * value:.0f} %"


def byte_size(value: float | None) -> str:
    """Bytes in decimal units: 742 B, 13.2 kB, 12.4 MB."""
    if value is None:
        return ""
    for limit, unit in ((1e3, "B"), (1e6, "kB"), (1e9, "MB"), (1e12, "GB")):
        if value < limit * 0.9995:
            return f"{value:.0f} B" if unit == "B" else f"{value / limit * 1e3:.3g} {unit}"
    return f"{value / 1e12:.3g} TB"


def units_word(report: Json) -> str:
    """What is counted: patients, slides or source files; units when sites differ or do not say."""
    found = {clean(mapping(site).get("unit")) for site in mapping(report.get("sites")).values()} - {""}
    return _UNITS.get(found.pop(), "units") if len(found) == 1 else "units"


def unit_word(value: object) -> str:
    """Plural of one site's unit of counting."""
    return _UNITS.get(str(value), "units")


def status(site: Json) -> str:
    """What became of a site: `reported`, or `failed: ` and its code."""
    return clean(site.get("status") or REPORTED)


def suppressed(report: Json) -> str:
    """Why a cell is empty: too few patients, or nothing of this kind at the site; under `dp`, noise."""
    if mapping(report.get("study")).get("profile") == "dp":
        return "not told, or lost in noise"
    least = number(mapping(report.get("study")).get("min_units"))
    if least is None or least <= 1:
        return "no such cells at this site"
    return f"fewer than {whole(least)} {units_word(report)}"
