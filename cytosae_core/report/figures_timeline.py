"""Figure F12: the study step by step: which sites answered, what failed, how the log grew, what was changed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from . import svg
from .figure import FULL, HALF, Figure, Missing
from .marks import Series
from .svg import FAINT, MUTED, PALETTE, Scale
from .text import Json, clean, entries, lines, mapping, number, short, whole

TITLE = "The study, step by step"
BEFORE = (
    "hello",
    "moments",
    "begin",
    "sum_keys",
    "sum_shares",
    "second",
    "third",
    "sum_confirm",
    "sum_unmask",
)
AFTER = ("describe", "score", "close")
WORDS = {
    "hello": "hello", "moments": "scale", "begin": "start", "describe": "describe", "score": "test", "close": "close",
    "sum_keys": "keys", "sum_shares": "shares", "second": "moments", "third": "moments 2", "sum_masked": "masked",
    "sum_confirm": "members", "sum_unmask": "unmask",
}  # fmt: skip
NARROW = 11  # steps that fit into half a column
LABELS = 16  # names of steps below the picture; of more every second, third ...
LEFT, TOP, BARS, LOG = 92.0, 22.0, 56.0, 54.0
HEADER = ("Step", "Sites that answered", "What failed", "Log after it, entries")
HOW = (
    "Blue: sites that answered in a step, of all sites (outline). Crosses: sites that failed in it. Below: entries "
    "in the coordinator's log when the step was over; it only grows. Diamonds: what was done otherwise than planned, "
    "in its order, with dates; the log of steps carries none."
)
CROSS, DIAMOND = Series("failed", "cross", PALETTE[1]), Series("changed", "diamond", PALETTE[3])


@dataclass(frozen=True)
class Step:
    """One step: its name, sites that answered, site -> what failed, entries in the log after it (None: not known)."""

    name: str
    answered: int | None
    failed: Mapping[str, str]
    log: int | None


def steps(report: Json) -> list[Step]:
    """Steps in their order; rounds one by one. Steps of which the report says nothing are left out."""
    leaves, failed = _leaves(report), _failed(report)
    before = [_step(kind, leaves, failed) for kind in BEFORE]
    after = [_step(kind, leaves, failed) for kind in AFTER]
    found = [*before, *_rounds(report, leaves.get("round", {})), *after]
    return [step for step in found if step.answered or step.failed]


def _leaves(report: Json) -> dict[str, dict[str, list[int]]]:
    """Places in the coordinator's log by kind of message and site."""
    found: dict[str, dict[str, list[int]]] = {}
    for site, kinds in mapping(mapping(report.get("integrity")).get("leaves")).items():
        for kind, places in mapping(kinds).items():
            known = [number(place) for place in places] if isinstance(places, list) else []
            found.setdefault(clean(kind), {})[clean(site)] = [
                int(place) for place in known if place is not None
            ]
    return found


def _failed(report: Json) -> dict[str, dict[str, str]]:
    """What failed outside of rounds, by step and site."""
    found: dict[str, dict[str, str]] = {}
    for site, part in mapping(report.get("missing")).items():
        for text in lines(mapping(part).get("faults")):
            step, _, code = text.rpartition(": ")
            found.setdefault(step.partition(" ")[0].partition("-")[0], {})[clean(site)] = clean(code)
    return found


def _step(
    kind: str, leaves: Mapping[str, Mapping[str, list[int]]], failed: Mapping[str, Mapping[str, str]]
) -> Step:
    own = {site: places for site, places in leaves.get(kind, {}).items() if places}
    last = max((place for places in own.values() for place in places), default=-1)
    return Step(WORDS[kind], len(own), failed.get(kind, {}), last + 1 if own else None)


def _rounds(report: Json, leaves: Mapping[str, list[int]]) -> list[Step]:
    """Rounds; a round's entries of the log follow those of the round before, one per answer."""
    given = entries(report.get("rounds"))
    counts = [len(mapping(item.get("sites"))) for item in given]
    places = sorted(place for own in leaves.values() for place in own)
    whole_ = bool(places) and len(places) == sum(counts)
    found, seen = [], 0
    for item, count in zip(given, counts, strict=True):
        seen += count
        failed = {clean(site): clean(code) for site, code in mapping(item.get("faults")).items()}
        log = places[seen - 1] + 1 if whole_ and seen else None
        found.append(Step(whole(number(item.get("round"))) or "?", count, failed, log))
    return found


def timeline(report: Json, marks: Sequence[str]) -> Figure | Missing:
    """One column per step."""
    found = steps(report)
    if not found:
        return Missing(TITLE, "the report names neither messages in a log nor rounds of training")
    changes = entries(mapping(report.get("protocol")).get("deviations"))
    width = HALF if len(found) <= NARROW else FULL
    pitch = (width - LEFT - 14) / len(found)
    sites = max(len(mapping(report.get("sites"))), *(step.answered or 0 for step in found), 1)
    parts = [_answers(found, sites, pitch), _log(found, pitch), _names(found, pitch)]
    height = TOP + BARS + LOG + 62
    if changes:
        parts.append(_changes(changes, height + 8, width))
        height += 36
    how = HOW + _stage(report)
    picture = svg.canvas("timeline", width, height, "".join(parts), TITLE, how, marks)
    return Figure("timeline", TITLE, how, picture, HEADER, _rows(found, sites, changes), width > HALF)


def _stage(report: Json) -> str:
    """The open stage, where the plan has stages."""
    plan = mapping(report.get("protocol"))
    stage = clean(plan.get("stage") or "")
    return f" This is the stage “{stage}” of the study." if stage else ""


def _answers(found: Sequence[Step], sites: int, pitch: float) -> str:
    """Bars of sites that answered, crosses for those that failed."""
    up = Scale(0, sites, TOP + BARS, TOP)
    parts = [svg.label(LEFT - 10, TOP + BARS - 4, "sites", text_anchor="end", fill=MUTED)]
    for index, step in enumerate(found):
        x, count = LEFT + pitch * index, step.answered or 0
        box = svg.rect(x + pitch * 0.15, TOP, pitch * 0.7, BARS, "none", stroke=FAINT)
        box += svg.rect(x + pitch * 0.15, up(count), pitch * 0.7, TOP + BARS - up(count), PALETTE[0])
        parts.append(svg.hover(box, f"{step.name}: {count} of {sites} sites answered"))
        if pitch >= 20:
            parts.append(svg.label(x + pitch / 2, TOP - 6, str(count), text_anchor="middle", fill=MUTED))
        if step.failed:
            said = "; ".join(f"{site}: {code}" for site, code in step.failed.items())
            parts.append(svg.hover(CROSS.draw(x + pitch / 2, TOP + BARS + 12), f"failed: {said}"))
    return "".join(parts)


def _log(found: Sequence[Step], pitch: float) -> str:
    """Entries of the log after every step, as a line that only rises."""
    top = TOP + BARS + 26
    name = svg.label(LEFT - 10, top + LOG - 4, "log entries", text_anchor="end", fill=MUTED)
    known = [(index, step.log) for index, step in enumerate(found) if step.log is not None]
    if not known:
        return name + svg.label(LEFT, top + LOG - 4, "not logged", fill=MUTED, font_style="italic")
    up = Scale(0, max(log for _, log in known), top + LOG, top)
    points = [(LEFT + pitch * (index + 0.5), up(log)) for index, log in known]
    base = svg.line(LEFT, top + LOG, LEFT + pitch * len(found), top + LOG)
    dots = "".join(svg.el("circle", cx=x, cy=y, r=2.5, fill=PALETTE[2]) for x, y in points)
    (x, y), last = points[-1], known[-1][1]
    value = svg.label(x, y - 6, whole(last), text_anchor="middle")
    return name + base + svg.polyline(points, PALETTE[2], stroke_width=1.6) + dots + value


def _names(found: Sequence[Step], pitch: float) -> str:
    y, every = TOP + BARS + LOG + 40, max(1, -(-len(found) // LABELS))
    parts = []
    for index, step in enumerate(found):
        if index % every == 0 or not step.name.isdigit():
            x = LEFT + pitch * (index + 0.5)
            turn = None if step.name.isdigit() else f"rotate(-35 {x:.1f} {y:.1f})"
            anchor = "middle" if step.name.isdigit() else "end"
            parts.append(
                svg.label(x, y, step.name, fill=MUTED, font_size=10, text_anchor=anchor, transform=turn)
            )
    return "".join(parts)


def _changes(changes: Sequence[Json], y: float, width: float) -> str:
    """Diamonds with dates, in order."""
    pitch = min(90.0, (width - LEFT - 14) / len(changes))
    parts = [svg.label(LEFT - 10, y + 4, "changes", text_anchor="end", fill=MUTED)]
    for index, item in enumerate(changes):
        x = LEFT + pitch * index + 6
        said = f"{clean(item.get('at'))}: {clean(item.get('what'))}"
        parts.append(svg.hover(DIAMOND.draw(x, y), said))
        if pitch >= 70:
            parts.append(svg.label(x + 10, y + 4, short(item.get("at") or "no date", 12), font_size=10))
    return "".join(parts)


def _rows(found: Sequence[Step], sites: int, changes: Sequence[Json]) -> list[list[str]]:
    rows = []
    for step in found:
        name = f"round {step.name}" if step.name.isdigit() else step.name
        failed = "; ".join(f"{site}: {code}" for site, code in step.failed.items()) or "nothing"
        log = whole(step.log) if step.log is not None else "not known"
        rows.append([name, f"{step.answered or 0} of {sites}", failed, log])
    for item in changes:
        rows.append([f"change, {clean(item.get('at') or 'no date')}", "", clean(item.get("what") or ""), ""])
    return rows
