"""Forest plots: every site, the pooled value, where a new hospital is expected. Influence of each site."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from . import svg
from .figure import FULL, HALF, NAME, Figure, Missing, name_width
from .figures_data import headline_sites, headlines, why
from .marks import Series
from .svg import FAINT, HOLD, INK, MUTED, PALETTE, Scale
from .text import Json, clean, ends, entries, mapping, number, precise, short, span, whole

ROW = 20.0
MANY = 24  # sites; with more, they are drawn side by side in the order of their values
Z = 1.959963984540054
RIGHT = 92.0  # px for values at the right of a forest plot
Interval = tuple[float, float]
DOT = Series("site", "square", PALETTE[0])


@dataclass(frozen=True)
class Forest:
    """What a forest plot draws: sites with value, standard error and units; pooled value, interval, prediction."""

    name: str
    unit: str
    sites: Mapping[str, Json]
    value: float | None
    interval: Interval | None
    prediction: Interval | None
    threshold: float | None = None
    marker: str = "threshold"

    @property
    def site_values(self) -> list[float]:
        """The value of every site."""
        return [number(entry.get("value")) or 0.0 for entry in self.sites.values()]

    @property
    def is_share(self) -> bool:
        """Whether values lie between 0 and 1: neither differences nor correlations."""
        return not any(word in self.unit for word in ("difference", "correlation"))

    def site_interval(self, site: str) -> Interval | None:
        """Value and 1.96 standard errors to both sides; None without a standard error."""
        value, error = (number(self.sites[site].get(key)) for key in ("value", "se"))
        return None if value is None or error is None else (value - Z * error, value + Z * error)


def forest_of(headline: Json) -> Forest:
    """A headline (or a subgroup) of report.json as a forest plot."""
    return Forest(
        clean(headline.get("name") or headline.get("id") or "?"),
        clean(headline.get("unit") or ""),
        headline_sites(headline),
        number(headline.get("value")),
        ends(headline.get("interval")),
        ends(headline.get("prediction")),
        number(headline.get("threshold")),
    )


def extent(item: Forest) -> Interval:
    """Round ends of an axis that shows a whole forest plot; intervals of shares are cut at 0 and 1."""
    sure = [*item.site_values, *(v for v in (item.value, item.threshold) if v is not None)]
    loose = [end for pair in (item.interval, item.prediction) if pair for end in pair]
    loose += [end for site in item.sites if (pair := item.site_interval(site)) for end in pair]
    if not sure:
        return (0.0, 1.0)
    low, high = min([*sure, *loose]), max([*sure, *loose])
    if item.is_share and min(sure) >= 0 and max(sure) <= 1:
        low, high = max(low, 0.0), min(high, 1.0)
    step = svg.nice_step(max(high - low, 0.05), 5)
    return (_down(low, step), -_down(-high, step))


def _down(value: float, step: float) -> float:
    return round((value + 1e-9) // step * step, 10)


def forest(headline: Json, marks: Sequence[str], key: str, first: bool = True) -> Figure | Missing:
    """F2: one headline at every site, pooled, with its prediction interval. `first`: with the whole explanation."""
    item = forest_of(headline)
    title = item.name
    if not item.sites:
        return Missing(title, why(headline))
    if len(item.sites) > MANY:
        body, width, height = _caterpillar(item)
    else:
        body, width, height = _rows(item)
    whole_text = _HOW_MANY if len(item.sites) > MANY else _HOW
    how = (whole_text if first else _SHORT).format(unit=item.unit or "value") + _compare(headline)
    how += "" if item.prediction else f" Not pooled: {why(headline)}."
    picture = svg.canvas(key, width, height, body, title, f"{title}: {summary(item)}. {how}", marks)
    return Figure(key, title, how, picture, _HEADER, forest_rows(item), width > HALF)


_HOW = (
    "Squares: {unit} of each site with its 95 % interval (1.96 standard errors) where sites gave one. Diamond: the "
    "pooled value and its 95 % interval. Bar below it: the prediction interval, where the value of one more hospital "
    "is expected 19 times in 20. Dashed: the threshold that was agreed before."
)
_HOW_MANY = (
    "Dots: {unit} of each site, the lowest at the left, with its 95 % interval (1.96 standard errors) where sites "
    "gave one. Line: the pooled value. Pale band: the prediction interval, where the value of one more hospital is "
    "expected 19 times in 20. Dashed: the threshold that was agreed before."
)
_SHORT = "Values are {unit}, drawn as in the first of these plots."


def _compare(headline: Json) -> str:
    """The headline's controls, in one sentence."""
    known = [
        f"{clean(item.get('name'))} {precise(value)}"
        for item in entries(headline.get("controls"))
        if (value := number(item.get("value"))) is not None
    ]
    return f" Compare: {'; '.join(known)}." if known else ""


_HEADER = ("Site", "Value", "95 % interval", "Units")


def summary(item: Forest) -> str:
    """The pooled numbers of a forest plot in words."""
    said = [f"pooled {precise(item.value)}" if item.value is not None else "no pooled value"]
    if item.interval:
        said.append(f"95 % interval {span(item.interval)}")
    if item.prediction:
        said.append(f"prediction interval {span(item.prediction)}")
    return ", ".join(said)


def forest_rows(item: Forest) -> list[list[str]]:
    """The numbers of a forest plot."""
    rows = [
        [
            site,
            precise(number(entry.get("value"))),
            span(item.site_interval(site)) or "not released",
            whole(number(entry.get("units"))) or "not released",
        ]
        for site, entry in item.sites.items()
    ]
    rows.append(["Pooled", precise(item.value) or "none", span(item.interval) or "none", ""])
    return [*rows, ["A new hospital (prediction interval)", "", span(item.prediction) or "none", ""]]


def _rows(item: Forest) -> tuple[str, float, float]:
    left = max(name_width(list(item.sites)), name_width(["A new hospital"]))
    scale, top = Scale(*extent(item), left, HALF - RIGHT), 22.0
    bottom = top + ROW * (len(item.sites) + 2) + 6
    parts = [svg.x_axis(scale, top, bottom, item.unit, 4), *_threshold(item, scale, top, bottom)]
    for index, (site, entry) in enumerate(item.sites.items()):
        y = top + ROW * (index + 0.5)
        parts.append(svg.label(left - 10, y + 4, short(site, NAME), text_anchor="end"))
        parts.append(_site_mark(item, site, scale, y))
        units = whole(number(entry.get("units")))
        said = precise(number(entry.get("value"))) + (f", n {units}" if units else "")
        parts.append(svg.label(HALF - RIGHT + 12, y + 4, said, fill=MUTED))
    y = top + ROW * (len(item.sites) + 0.5) + 6
    parts.append(svg.line(8, y - ROW / 2 - 1, HALF, y - ROW / 2 - 1))
    return "".join([*parts, _pooled(item, scale, left, y)]), HALF, bottom + 38


def _site_mark(item: Forest, site: str, scale: Scale, y: float) -> str:
    value = number(item.sites[site].get("value")) or 0.0
    pair = item.site_interval(site)
    drawn = svg.line(scale(pair[0]), y, scale(pair[1]), y, PALETTE[0], stroke_width=1.4) if pair else ""
    return svg.hover(drawn + DOT.draw(scale(value), y, 3.8), f"{site}: {precise(value)}")


def _threshold(item: Forest, scale: Scale, top: float, bottom: float) -> list[str]:
    if item.threshold is None:
        return []
    x = scale(item.threshold)
    text = f"{item.marker} {svg.tick_text(item.threshold)}"
    room = svg.width_of(text, 10) / 2
    at = min(max(x, room + 2), HALF - room - 2)
    return [
        svg.line(x, top - 3, x, bottom, MUTED, stroke_dasharray="4 3"),
        svg.label(at, top - 8, text, fill=MUTED, font_size=10, text_anchor="middle"),
    ]


def _pooled(item: Forest, scale: Scale, left: float, y: float) -> str:
    """Diamond and prediction bar, with their names."""
    strong = {"text_anchor": "end", "font_weight": "bold"}
    parts = [svg.label(left - 10, y + 4, "Pooled", **strong)]
    if item.value is None or item.interval is None:
        parts.append(svg.label(scale.start + 6, y + 4, "not pooled", fill=MUTED, font_style="italic"))
    else:
        parts += [diamond(scale, item.value, item.interval, y, 6.0)]
        parts.append(svg.label(HALF - RIGHT + 12, y + 4, precise(item.value), font_weight="bold"))
    parts.append(svg.label(left - 10, y + ROW + 4, "A new hospital", **strong))
    if item.prediction:
        parts.append(bar(scale, item.prediction, y + ROW, 7.0))
        parts.append(svg.label(HALF - RIGHT + 12, y + ROW + 4, span(item.prediction)))
    else:
        parts.append(
            svg.label(scale.start + 6, y + ROW + 4, "not estimable", fill=MUTED, font_style="italic")
        )
    return "".join(parts)


def diamond(scale: Scale, value: float, interval: Interval, y: float, half: float) -> str:
    """A diamond from end to end of an interval, widest at the value; at least 6 px wide."""
    x, low, high = scale(value), scale(interval[0]), scale(interval[1])
    low, high = min(low, x - 3), max(high, x + 3)
    path = f"M{low:.1f} {y:.1f}L{x:.1f} {y - half:.1f}L{high:.1f} {y:.1f}L{x:.1f} {y + half:.1f}z"
    return svg.hover(
        svg.el("path", d=path, fill=INK), f"pooled {precise(value)}, 95 % interval {span(interval)}"
    )


def bar(scale: Scale, prediction: Interval, y: float, height: float) -> str:
    """The prediction interval as a bar with ends."""
    low, high = scale(prediction[0]), scale(prediction[1])
    body = svg.rect(low, y - height / 2, max(high - low, 2.0), height, HOLD, fill_opacity="0.45")
    caps = "".join(svg.line(x, y - height, x, y + height, HOLD, stroke_width=1.6) for x in (low, high))
    return svg.hover(body + caps, f"prediction interval {span(prediction)}")


def _caterpillar(item: Forest) -> tuple[str, float, float]:
    """Many sites: side by side, lowest first, with pooled value and prediction interval across."""
    order = sorted(item.sites, key=lambda site: (number(item.sites[site].get("value")) or 0.0, site))
    left, right, top, bottom = 52.0, FULL - 108.0, 26.0, 230.0
    up = Scale(*extent(item), bottom, top)
    parts = [svg.y_axis(up, left, right, item.unit), *_across(item, up, left, right)]
    pitch = (right - left) / len(order)
    for index, site in enumerate(order):
        parts.append(_column(item, site, up, left + pitch * (index + 0.5)))
    text = f"{len(order)} sites, lowest first; the table below names them"
    parts.append(svg.label((left + right) / 2, bottom + 20, text, fill=MUTED, text_anchor="middle"))
    return "".join(parts), FULL, bottom + 32


def _across(item: Forest, up: Scale, left: float, right: float) -> list[str]:
    """Prediction interval, pooled value and threshold across a plot of many sites, with their names at the right."""
    parts, named = [], []
    if item.prediction:
        low, high = up(item.prediction[0]), up(item.prediction[1])
        parts.append(svg.rect(left, high, right - left, max(low - high, 1.0), HOLD, fill_opacity="0.16"))
        named.append((high, "a new hospital", HOLD))
    if item.value is not None:
        parts.append(svg.line(left, up(item.value), right, up(item.value), INK, stroke_width=1.2))
        named.append((up(item.value), f"pooled {precise(item.value)}", INK))
    if item.threshold is not None:
        y = up(item.threshold)
        parts.append(svg.line(left, y, right, y, MUTED, stroke_dasharray="4 3"))
        named.append((y, f"{item.marker} {svg.tick_text(item.threshold)}", MUTED))
    places = svg.spread([y for y, _, _ in named], 14, up.stop, up.start)
    for y, (_, name, colour) in zip(places, named, strict=True):
        parts.append(svg.label(right + 8, y + 4, name, fill=colour))
    return parts


def _column(item: Forest, site: str, up: Scale, x: float) -> str:
    value, pair = number(item.sites[site].get("value")) or 0.0, item.site_interval(site)
    drawn = svg.line(x, up(pair[0]), x, up(pair[1]), PALETTE[0]) if pair else ""
    dot = svg.el("circle", cx=x, cy=up(value), r=2.2, fill=PALETTE[0])
    return svg.hover(drawn + dot, f"{site}: {precise(value)}")


def mini(headline: Json, marks: Sequence[str], threshold: str = "threshold", text: str = "") -> str:
    """The primary headline in small: sites as ticks, diamond, prediction bar, threshold (with its name).

    Args:
        text: what readers of screens hear; by default the numbers in English.
    """
    item = replace(forest_of(headline), marker=threshold)
    scale, y = Scale(*extent(item), 12, HALF - 12), 34.0
    parts = [svg.line(scale.start, y + 36, scale.stop, y + 36), *_threshold(item, scale, 20.0, y + 36)]
    for value in scale.ticks(4):
        parts.append(svg.line(scale(value), y + 33, scale(value), y + 39, MUTED))
        parts.append(svg.label(scale(value), y + 52, svg.tick_text(value), fill=MUTED, text_anchor="middle"))
    for site, entry in item.sites.items():
        x = scale(number(entry.get("value")) or 0.0)
        parts.append(svg.hover(svg.line(x, y - 10, x, y - 3, PALETTE[0], stroke_width=1.6), site))
    if item.prediction:
        parts.append(bar(scale, item.prediction, y + 23, 6.0))
    if item.value is not None and item.interval:
        parts.append(diamond(scale, item.value, item.interval, y + 8, 6.0))
    said = text or (
        f"{summary(item)}. Short lines: sites. Diamond: pooled value and 95 % interval. Bar: prediction interval."
    )
    return svg.canvas("headline", HALF, y + 58, "".join(parts), item.name, said, marks)


def subgroup_forest(part: Json, marks: Sequence[str], index: int) -> Figure | Missing:
    """F8: what a property changes at every site: accuracy with it minus without it."""
    named = {
        **part,
        "name": f"With “{clean(part.get('name'))}” minus without",
        "unit": "difference of balanced accuracies",
    }
    made = forest({**named, "threshold": 0.0}, marks, f"subgroup-{index}")
    if isinstance(made, Missing):
        return made
    how = made.how.replace("the threshold that was agreed before", "no difference")
    picture = made.picture.replace(">threshold 0<", ">no difference<")
    return Figure(made.key, made.title, how, picture, made.header, made.rows, made.wide)


def influence(report: Json, marks: Sequence[str]) -> Figure | Missing:
    """F13: the primary headline without each site in turn."""
    title = "Does the answer hang on one site?"
    for headline in headlines(report)[:1]:
        given = {clean(site): number(v) for site, v in mapping(headline.get("influence")).items()}
        known = {site: value for site, value in given.items() if value is not None}
        if known:
            return _influence(headline, known, marks, title)
        return Missing(title, "leaving one out needs more than three sites with the primary number")
    return Missing(title, "the report has no headline")


def _influence(headline: Json, known: Mapping[str, float], marks: Sequence[str], title: str) -> Figure:
    item, pooled = forest_of(headline), number(headline.get("value"))
    away = {site: abs(value - (pooled if pooled is not None else value)) for site, value in known.items()}
    shown = sorted(known, key=lambda site: (-away[site], site))[:MANY]
    left = name_width(shown)
    values = [*known.values(), *([pooled] if pooled is not None else [])]
    low, high = min(values), max(values)
    step = svg.nice_step(max(high - low, 0.02), 4)
    scale, top = Scale(_down(low, step), -_down(-high, step), left, HALF - 46), 22.0
    bottom = top + ROW * len(shown)
    parts = [svg.x_axis(scale, top, bottom, f"{item.unit}, pooled without the site", 4)]
    if pooled is not None:
        x = scale(pooled)
        parts.append(svg.line(x, top - 3, x, bottom, MUTED, stroke_dasharray="4 3"))
        parts.append(
            svg.label(
                x, top - 8, f"all sites {precise(pooled)}", fill=MUTED, font_size=10, text_anchor="middle"
            )
        )
    for index, site in enumerate(shown):
        y = top + ROW * (index + 0.5)
        parts.append(svg.label(left - 10, y + 4, short(site, NAME), text_anchor="end"))
        parts.append(svg.line(scale.start, y, scale.stop, y, FAINT))
        parts.append(
            svg.hover(DOT.draw(scale(known[site]), y, 3.8), f"without {site}: {precise(known[site])}")
        )
    how = (
        f"{item.name}: the pooled value when one site is left out, the site that moves it most on top. A dot on the "
        f"other side of the threshold ({precise(item.threshold) or 'none was set'}) would mean that one site decides."
    )
    picture = svg.canvas("influence", HALF, bottom + 38, "".join(parts), title, how, marks)
    rows = [[site, precise(known[site])] for site in known]
    return Figure("influence", title, how, picture, ("Without", "Pooled value"), rows)
