"""Concepts, headlines and sites of report.json as the page needs them, read without trust.

A column that is missing, too short or of another type counts as not assessed. Standard library only.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from .text import REPORTED, Json, clean, entries, lines, mapping, number, status

NAMED = {"target": "targets", "verdict": "verdicts", "state": "states", "review_term": "terms"}
SITE_TABLES = ("auroc", "auroc_se", "firing_rate")
LARGE = 2000  # concepts; with more, the catalogue continues on linked pages
PASS, FAIL, OPEN = 1, 0, -1
STATE_WORDS = {
    "not_assessed": "not assessed",
    "candidate": "candidate",
    "recurring": "recurring",
    "named": "named",
    "provisional": "provisional",
    "generalising": "generalising",
    "validated": "validated",
}
GATE_WORDS = {
    "support": "enough sites",
    "recurrence": "found again",
    "naming": "named by experts",
    "consistency": "same side everywhere",
    "prediction": "expected at a new site",
    "shortcut": "not the hospital",
    "confound": "not light or size",
    "ablation": "matters to the class",
    "held_out": "held at sites left out",
}


class Concepts:
    """The columns of `concepts`, one place per concept, strongest first.

    Attributes:
        count: concepts in the columns.
        columns: lists by name, as they are.
        names: `target`, `verdict` and `state`: index -> name.
        gates: names of gates that have values.
    """

    def __init__(self, report: Json) -> None:
        part = mapping(report.get("concepts"))
        self.columns = _lists(part.get("columns"))
        self.count = len(self.columns.get("id", ()))
        self.names = {name: _texts(part.get(key)) for name, key in NAMED.items()}
        self.facts = _texts(part.get("facts"))
        self._gates = _lists(part.get("gate_values"))
        self.gates = [clean(name) for name in _texts(part.get("gates")) if name in self._gates]
        self._tables = {
            name: {clean(site): values for site, values in _lists(mapping(table).get("sites")).items()}
            for name, table in mapping(part.get("tables")).items()
            if name in SITE_TABLES
        }
        self.file = clean(mapping(part.get("tables")).get("file") or "")

    def id(self, place: int) -> str:
        """The concept's name."""
        return clean(_item(self.columns, "id", place))

    def value(self, name: str, place: int) -> float | None:
        """One number of one concept."""
        return number(_item(self.columns, name, place))

    def values(self, name: str) -> list[float | None]:
        """One number of every concept."""
        column = self.columns.get(name, ())
        found = [number(value) for value in column[: self.count]]
        return found + [None] * (self.count - len(found))

    def name(self, kind: str, place: int) -> str:
        """`target`, `verdict` or `state` of a concept; empty when there is none."""
        return named(self.names[kind], _item(self.columns, kind, place))

    def gate(self, name: str, place: int) -> int:
        """1 pass, 0 fail, -1 not assessed."""
        value = _item(self._gates, name, place)
        return value if value in (PASS, FAIL) and not isinstance(value, bool) else OPEN

    def gate_column(self, name: str) -> list[object]:
        """The values of a gate as they are, at most one per concept."""
        return self._gates.get(name, [])[: self.count]

    def failed(self, place: int) -> list[str]:
        """Gates that this concept does not pass."""
        return [name for name in self.gates if self.gate(name, place) == FAIL]

    def interval(self, kind: str, place: int) -> tuple[float, float] | None:
        """Ends of `""` (95 % interval) or `prediction_` (prediction interval)."""
        low, high = (self.value(f"{kind}{end}", place) for end in ("low", "high"))
        return None if low is None or high is None else (low, high)

    def places(self, kind: str, wanted: str) -> list[int]:
        """Concepts with this verdict, state or target, in order."""
        names = self.names[kind]
        if wanted not in names:
            return []
        index = names.index(wanted)
        column = self.columns.get(kind, [])[: self.count]
        return [place for place, value in enumerate(column) if value == index and not isinstance(value, bool)]

    def counts(self, kind: str) -> dict[str, int]:
        """Concepts per verdict, state or target."""
        return {name: len(self.places(kind, name)) for name in self.names[kind]}

    def at(self, names: Sequence[str]) -> list[int]:
        """Places of named concepts; unknown names are left out."""
        wanted = set(names)
        found = {
            clean(name): place
            for place, name in enumerate(self.columns.get("id", []))
            if clean(name) in wanted
        }
        return [found[name] for name in names if name in found]

    @property
    def with_sites(self) -> bool:
        """Whether values of single sites are in the report itself."""
        return bool(self._tables.get("auroc"))

    def at_sites(self, name: str, place: int, sites: Sequence[str]) -> list[float | None]:
        """`auroc`, `auroc_se` or `firing_rate` of a concept at every site."""
        table = self._tables.get(name, {})
        return [number(_item(table, site, place)) for site in sites]


def named(names: Sequence[str], index: object) -> str:
    """The name at an index; empty for -1 and anything else that is no index."""
    if isinstance(index, bool) or not isinstance(index, int) or not 0 <= index < len(names):
        return ""
    return names[index]


def _item(columns: Mapping[str, list[object]], name: str, place: int) -> object:
    column = columns.get(name, ())
    return column[place] if place < len(column) else None


def _lists(value: object) -> dict[str, list[object]]:
    return {str(name): item for name, item in mapping(value).items() if isinstance(item, list)}


def _texts(value: object) -> list[str]:
    """A list of names; nothing is left out, so that indices stay right."""
    return [clean(item) for item in value] if isinstance(value, list) else []


def state_word(name: str) -> str:
    """A state as the page says it."""
    return STATE_WORDS.get(name, name.replace("_", " "))


def gate_word(name: str) -> str:
    """A gate as the page says it."""
    return GATE_WORDS.get(name, name.replace("_", " "))


def concept_sites(report: Json) -> list[str]:
    """Sites that could speak about concepts: reported, in the report's order."""
    facts = mapping(report.get("sites"))
    spoken = [clean(name) for name, site in facts.items() if status(mapping(site)) == REPORTED]
    return spoken or [clean(name) for name in facts]


def headlines(report: Json) -> list[Json]:
    """The numbers that decide, primary first."""
    found = entries(report.get("headlines"))
    return [
        *(item for item in found if item.get("primary")),
        *(item for item in found if not item.get("primary")),
    ]


def headline_sites(headline: Json) -> dict[str, Json]:
    """What every site says of a headline: {site: {value, se, units}}, sites with a value only."""
    given = {clean(site): mapping(entry) for site, entry in mapping(headline.get("sites")).items()}
    return {site: entry for site, entry in given.items() if number(entry.get("value")) is not None}


def headline_named(report: Json, name: str) -> Json:
    """The headline with this id, or nothing."""
    return next((item for item in headlines(report) if item.get("id") == name), {})


def why(headline: Json) -> str:
    """Why a headline has no number, in its own words."""
    said = clean(headline.get("reason") or "")
    state = clean(headline.get("status") or "not_assessed").replace("_", " ")
    return f"{state}: {said}" if said and state != "not assessed" else said or "the report does not have it"


def said_reason(report: Json, item: str, otherwise: str) -> str:
    """The report's own reason for a missing item, else a general one."""
    for entry in entries(report.get("not_assessed")):
        if item in str(entry.get("item", "")) and entry.get("reason"):
            return str(entry["reason"])
    return otherwise


def site_names(report: Json) -> list[str]:
    """All sites of the study."""
    return [clean(name) for name in mapping(report.get("sites"))]


def primary_of(report: Json) -> Json:
    """The headline that makes the verdict; empty when there is none."""
    return next(iter(headlines(report)), {})


def caveats(report: Json) -> list[str]:
    """The strongest limits."""
    return lines(mapping(report.get("verdict")).get("caveats"))
