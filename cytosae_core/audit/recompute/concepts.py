"""Every concept's columns, per-site values, gates, state and place. Formulas: docs/auditor.md."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ...canonical import sha256_hex
from ..verify.replies import read_tensors
from ..verify.verdict import Broken, Missing
from .columns import Columns, columns_of
from .experts import TERMS, check_experts
from .gates import GATES, STATES, failures_of, first_unsorted, gates_of, state_of
from .given import Given, read_given
from .numbers import Numbers
from .shown import check_shown
from .verdicts import VERDICTS

FACTS = ("brightness", "saturation", "focus", "cell size")
WHOLE = ("target", "verdict", "sites", "confound_of", "recurrence_sites", "review_raters", "review_term")
DIGITS = ("tau2", "i2", "h2", "ablation", "firing_rate")  # 4 significant digits; all others have 4 decimals
SMALL = ("p", "q")  # 4 significant digits, also where they are tiny
NAMED = ("id", "row", "digest", "state")


def check_concepts(numbers: Numbers, held: list[Any]) -> str:
    """Every concept's columns, per-site values and digest, and the shares of meanings that hold elsewhere.

    `held` gets what the checks after this one go on with: the tables, and all columns.
    """
    before, rows = numbers.count, _rows(numbers)
    given = read_given(numbers)
    columns = columns_of(given)
    held.append((given, columns, rows))
    numbers.same("concepts/columns/id", [f"c{row:04d}" for row in rows])
    if digests := _digests(numbers):
        numbers.column("concepts/columns/digest", [digests[row] for row in rows])
    for name, values in columns.by_name.items():
        _check_column(numbers, name, [values[row] for row in rows])
    check_shown(numbers, given.sites, columns.sites, [int(target) for target in columns.by_name["target"]])
    left = sorted(numbers.report["concepts"]["columns"].keys() - columns.by_name.keys() - set(NAMED))
    text = f"{numbers.count - before} numbers of {given.n} concepts come out again."
    return f"{text} Not recomputed: {', '.join(left)}." if left else text


def check_replication(numbers: Numbers, held: list[Any]) -> str:
    """Per site left out, the meanings that the others chose, and how many held."""
    before, (given, columns, _) = numbers.count, _held(held)
    stated = numbers.report["agreement"]["replication"]
    if list(stated) != given.sites:
        raise Broken(
            "Other sites than those that described the concepts.", "report.json agreement/replication"
        )
    for place, site in enumerate(given.sites):
        for name, value in columns.folds.stated(place).items():
            numbers.same(f"agreement/replication/{site}/{name}", value)
    numbers.same("agreement/holds_shuffled", columns.holds_shuffled)
    return f"{numbers.count - before} counts and shares of meanings at sites left out come out again."


def check_states(numbers: Numbers, held: list[Any]) -> str:
    """Every concept's gates and state, their order, and the concepts that did not hold."""
    before, plan, (given, columns, rows) = numbers.count, numbers.protocol["plan"], _held(held)
    for name, words in (("gates", GATES), ("states", STATES), ("facts", FACTS), ("terms", TERMS)):
        numbers.same(f"concepts/{name}", [*words])
    shown = [{"row": row, **{name: column[row] for name, column in columns.by_name.items()}} for row in rows]
    passed = [
        gates_of(c, columns.same_side[row], float(plan["fdr"])) for c, row in zip(shown, rows, strict=True)
    ]
    if numbers.report["concepts"]["gate_values"].keys() != set(GATES):
        raise Broken("Other gates than those of docs/auditor.md.", "report.json concepts/gate_values")
    for name in GATES:
        numbers.column(f"concepts/gate_values/{name}", [marks[name] for marks in passed])
    states = [state_of(marks, c["sites"], plan["min_sites"]) for marks, c in zip(passed, shown, strict=True)]
    numbers.column("concepts/columns/state", states)
    _check_order(shown, states)
    numbers.same("failures", failures_of(shown, passed, states))
    return f"{numbers.count - before} gates and states of {given.n} concepts, and what did not hold, come out again."


def check_review(numbers: Numbers, held: list[Any]) -> str:
    """How far experts agree."""
    return check_experts(numbers, _held(held)[0])


def _check_order(shown: list[dict[str, float]], states: list[int]) -> None:
    keys = [
        (state, int(c["verdict"]), abs(c["mean"] - 0.5) if c["mean"] == c["mean"] else -1.0, int(c["row"]))
        for state, c in zip(states, shown, strict=True)
    ]
    if (place := first_unsorted(keys)) >= 0:
        raise Broken(
            "A concept stands behind one that comes later.", f"report.json concepts/columns/row/{place}"
        )


def _held(held: list[Any]) -> tuple[Given, Columns, list[int]]:
    if not held:
        raise Missing("Not reached: the concepts' numbers were not recomputed.")
    given, columns, rows = held[0]
    return given, columns, rows


def _rows(numbers: Numbers) -> list[int]:
    """Rows of the dictionary in the order of the report."""
    n, part = numbers.protocol["dictionary"]["n"], numbers.report["concepts"]
    rows: list[int] = part["columns"]["row"]
    whole = sorted(rows) == list(range(n)) and part["count"] == n
    if not whole or part["targets"] != numbers.targets or part["verdicts"] != [*VERDICTS]:
        raise Broken("The report does not show every concept once.", "report.json concepts/columns/row")
    if any(len(values) != n for values in part["columns"].values()):
        raise Broken("A column does not have one value per concept.", "report.json concepts/columns")
    return rows


def _check_column(numbers: Numbers, name: str, values: list[float]) -> None:
    place, whole = f"concepts/columns/{name}", name in WHOLE
    shown: list[Any] = [(int(value) if whole else value) if value == value else None for value in values]
    numbers.column(
        place, shown, decimals=None if whole else 0 if name in DIGITS + SMALL else 4, tiny=name in SMALL
    )


def _digests(numbers: Numbers) -> list[str]:
    """First digits of every dictionary row's SHA-256, when the last dictionary is in the bundle."""
    wanted = numbers.report["dictionary"]["sha256"]
    for data in numbers.bundle.under("dictionaries/").values():
        for tensor in read_tensors(data).values():
            if sha256_hex(tensor.raw) == wanted:
                size = len(tensor.raw) // tensor.shape[0]
                return [sha256_hex(tensor.raw[at : at + size])[:16] for at in range(0, len(tensor.raw), size)]
    return []


CHECKS: dict[str, Callable[[Numbers, list[Any]], str]] = {
    "numbers of the concepts": check_concepts,
    "replication": check_replication,
    "states of the concepts": check_states,
    "experts": check_review,
}
