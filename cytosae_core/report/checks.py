"""`report check`: does a report meet conditions such as verdict=generalises or headline.transfer.value>=0.5?

verdict=generalises                  state of the verdict
integrity=logged                     whether the log's entries are in the report
status=real                          not a simulation
sites>=5                             sites that reported
deviations<=0                        deviations from the protocol
headline.ID.value>=0.5               also .prediction.low, .prediction.high, .interval.low, .interval.high, .tau2,
                                     .probability_new_site, .passes=yes, .status=estimated, .n.sites
concepts.generalising>=10            concepts in a state (validated ones count as generalising too) or verdict
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ..errors import StudyError
from .rows import state_counts, verdict_counts

Report = Mapping[str, Any]
EXPRESSION = re.compile(r"\s*([a-z_][a-z0-9_. -]*?)\s*(>=|<=|!=|==|=|>|<)\s*(\S(?:.*\S)?)\s*")
COMPARE: dict[str, Callable[[Any, Any], bool]] = {
    ">=": operator.ge, "<=": operator.le, ">": operator.gt, "<": operator.lt,
    "=": operator.eq, "==": operator.eq, "!=": operator.ne,
}  # fmt: skip
ENDS = {"low": 0, "high": 1}
FIELDS = ("value", "tau2", "i2", "probability_new_site", "status", "passes", "threshold")


def require(report: Report, expressions: Sequence[str]) -> list[str]:
    """What is not met, one line per condition, empty when all are met. A number that the report does not have never
    meets anything.

    Raises:
        StudyError: an expression, or the name in it, is not known.
    """
    found = []
    for text in expressions:
        name, sign, wanted = _parsed(text)
        value = lookup(report, name)
        if not _holds(value, sign, wanted):
            shown = (
                "not in this report" if value is None else repr(value) if isinstance(value, float) else value
            )
            found.append(f"{text.strip()}: {name} is {shown}")
    return found


def _parsed(text: str) -> tuple[str, str, str]:
    match = EXPRESSION.fullmatch(text)
    if match is None:
        raise StudyError(
            f"Expected a condition such as verdict=generalises, got {text!r}.",
            hint="See cytosae audit report check -h.",
        )
    name, sign, wanted = match.groups()
    return name, sign, wanted


def _holds(value: Any, sign: str, wanted: str) -> bool:
    if value is None:
        return False
    if isinstance(value, str):
        if sign not in ("=", "==", "!="):
            raise StudyError(f"Expected = or != for words, got {sign!r} {wanted!r}.")
        return COMPARE[sign](value, wanted)
    try:
        return COMPARE[sign](float(value), float(wanted))
    except ValueError as error:
        raise StudyError(f"Expected a number, got {wanted!r}.") from error


def lookup(report: Report, name: str) -> Any:
    """The report's value for a name: a number, a word, or None when the report does not have it.

    Raises:
        StudyError: no report has such a name.
    """
    head, *rest = name.split(".")
    if head == "headline" and len(rest) >= 2:
        return _headline(report, rest[0], rest[1:])
    if head == "concepts" and len(rest) == 1:
        return _concepts(report, rest[0])
    if rest or head not in _SIMPLE:
        raise StudyError(
            f"Expected a known name, got {name!r}.", hint=f"Known: {sorted(_SIMPLE)}, headline., concepts."
        )
    return _SIMPLE[head](report)


_SIMPLE: dict[str, Callable[[Report], Any]] = {
    "verdict": lambda report: report["verdict"]["state"],
    "integrity": lambda report: report["integrity"]["status"],
    "status": lambda report: report["status"],
    "sites": lambda report: sum(site["status"] == "reported" for site in report["sites"].values()),
    "deviations": lambda report: len(report["protocol"]["deviations"]),
    "stage": lambda report: report["protocol"]["stage"],
}


def _headline(report: Report, name: str, path: Sequence[str]) -> Any:
    part = next((item for item in report["headlines"] if item["id"] == name), None)
    if part is None:
        known = [item["id"] for item in report["headlines"]]
        raise StudyError(f"Expected a headline of this report, got {name!r}.", hint=f"Known: {known}.")
    if path[0] in ("interval", "prediction") and len(path) == 2 and path[1] in ENDS:
        ends = part[path[0]]
        return None if ends is None else ends[ENDS[path[1]]]
    if path[0] == "n" and len(path) == 2 and path[1] in part["n"]:
        return part["n"][path[1]]
    if len(path) != 1 or path[0] not in FIELDS:
        raise StudyError(f"Expected headline.{name}.value or the like, got {'.'.join(path)!r}.")
    value = part[path[0]]
    return {True: "yes", False: "no"}[value] if isinstance(value, bool) else value


def _concepts(report: Report, name: str) -> int:
    states, verdicts = state_counts(report), verdict_counts(report)
    if name == "generalising":
        return states["generalising"] + states["validated"]
    known = {**states, **{verdict.replace(" ", "_"): count for verdict, count in verdicts.items()}}
    if name not in known:
        raise StudyError(
            f"Expected a state or verdict of concepts, got {name!r}.", hint=f"Known: {sorted(known)}."
        )
    return known[name]
