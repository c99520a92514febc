"""Does a report.json have the form of schema.json (JSON Schema, draft 2020-12)? Standard library only.

Knows exactly the words that schema.json uses; any other word in a schema is an error, so that nothing goes unchecked.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from importlib.resources import files
from typing import Any

Schema = Mapping[str, Any]
Errors = Iterator[str]
TYPES: dict[str, tuple[type, ...]] = {
    "object": (dict,),
    "array": (list,),
    "string": (str,),
    "boolean": (bool,),
    "null": (type(None),),
    "integer": (int,),
    "number": (int, float),
}
SILENT = ("$schema", "$id", "$defs", "title", "then", "else")
MOST = 20


@cache
def schema() -> dict[str, Any]:
    """The schema of a study's report.json."""
    return dict(json.loads((files("cytosae_core.report") / "schema.json").read_text()))


def problems(report: Any) -> list[str]:
    """What is wrong with a report.json's values, as `place: what`, at most 20; empty when nothing is."""
    found = []
    for line in _check(report, schema(), "report"):
        found.append(line)
        if len(found) == MOST:
            break
    return found or _lengths(report)


def _lengths(report: Mapping[str, Any]) -> list[str]:
    """What a schema cannot say: every column and table has one value per concept."""
    part, found = report["concepts"], []
    lists = {f"columns/{name}": values for name, values in part["columns"].items()}
    lists |= {f"gate_values/{name}": values for name, values in part["gate_values"].items()}
    for name, table in part["tables"].items() if "file" not in part["tables"] else ():
        lists |= {f"tables/{name}/{site}": values for site, values in table["sites"].items()}
        lists |= {f"tables/{name}/status/{s}": v for s, v in table["status"].items() if isinstance(v, list)}
    for name, values in lists.items():
        if len(values) != part["count"]:
            found.append(f"report/concepts/{name}: {len(values)} values for {part['count']} concepts")
    return found[:MOST]


def _check(value: Any, rules: Schema, place: str) -> Errors:
    for word, rule in rules.items():
        if word not in SILENT:
            yield from _WORDS[word](value, rule, rules, place)


def _type(value: Any, rule: Any, _: Schema, place: str) -> Errors:
    names = [rule] if isinstance(rule, str) else rule
    plain = [name for name in names if name not in ("integer", "number")]
    fits = isinstance(value, tuple(kind for name in plain for kind in TYPES[name])) if plain else False
    for name in set(names) - set(plain):
        fits |= isinstance(value, TYPES[name]) and not isinstance(value, bool)
    if not fits:
        yield f"{place}: {type(value).__name__} instead of {' or '.join(names)}"


def _properties(value: Any, rule: Schema, _: Schema, place: str) -> Errors:
    for name in value if isinstance(value, dict) else ():
        if name in rule:
            yield from _check(value[name], rule[name], f"{place}/{name}")


def _others(value: Any, rule: Any, rules: Schema, place: str) -> Errors:
    for name in value if isinstance(value, dict) and rule is not True else ():
        if name not in rules.get("properties", {}):
            yield from (
                [f"{place}: unknown {name}"]
                if rule is False
                else _check(value[name], rule, f"{place}/{name}")
            )


def _required(value: Any, rule: Any, _: Schema, place: str) -> Errors:
    if isinstance(value, dict):
        yield from (f"{place}: no {name}" for name in rule if name not in value)


def _items(value: Any, rule: Schema, _: Schema, place: str) -> Errors:
    for index, item in enumerate(value if isinstance(value, list) else ()):
        yield from _check(item, rule, f"{place}/{index}")


def _any_of(value: Any, rule: Any, _: Schema, place: str) -> Errors:
    if all(next(_check(value, option, place), None) for option in rule):
        yield f"{place}: fits none of {len(rule)} forms"


def _one_of(value: Any, rule: Any, _: Schema, place: str) -> Errors:
    fitting = sum(next(_check(value, option, place), None) is None for option in rule)
    if fitting != 1:
        yield f"{place}: fits {fitting} of {len(rule)} forms instead of one"


def _all_of(value: Any, rule: Any, _: Schema, place: str) -> Errors:
    for part in rule:
        yield from _check(value, part, place)


def _if(value: Any, rule: Schema, rules: Schema, place: str) -> Errors:
    branch = "then" if next(_check(value, rule, place), None) is None else "else"
    yield from _check(value, rules.get(branch, {}), place)


def _plain(fits: Callable[[Any, Any], bool], kinds: tuple[type, ...], what: str) -> Callable[..., Errors]:
    def check(value: Any, rule: Any, _: Schema, place: str) -> Errors:
        if isinstance(value, kinds) and not isinstance(value, bool) and not fits(value, rule):
            yield f"{place}: {str(value)[:40]!r} is not {what} {str(rule)[:80]}"

    return check


def _same(value: Any, rule: Any, _: Schema, place: str) -> Errors:
    if value != rule or type(value) is not type(rule):
        yield f"{place}: {str(value)[:60]!r} instead of {str(rule)[:60]!r}"


def _among(value: Any, rule: Any, _: Schema, place: str) -> Errors:
    if not any(value == item and type(value) is type(item) for item in rule):
        yield f"{place}: {str(value)[:40]!r} is none of {rule}"


def _reference(value: Any, rule: str, _: Schema, place: str) -> Errors:
    yield from _check(value, schema()["$defs"][rule.removeprefix("#/$defs/")], place)


NUMBER, TEXT, LIST = (int, float), (str,), (list,)
_WORDS: dict[str, Callable[..., Errors]] = {
    "type": _type,
    "properties": _properties,
    "additionalProperties": _others,
    "required": _required,
    "items": _items,
    "anyOf": _any_of,
    "oneOf": _one_of,
    "allOf": _all_of,
    "if": _if,
    "const": _same,
    "enum": _among,
    "$ref": _reference,
    "minimum": _plain(lambda value, rule: bool(value >= rule), NUMBER, "at least"),
    "maximum": _plain(lambda value, rule: bool(value <= rule), NUMBER, "at most"),
    "minLength": _plain(lambda value, rule: len(value) >= rule, TEXT, "of at least this length:"),
    "minItems": _plain(lambda value, rule: len(value) >= rule, LIST, "of at least this length:"),
    "maxItems": _plain(lambda value, rule: len(value) <= rule, LIST, "of at most this length:"),
    "pattern": _plain(lambda value, rule: re.search(rule, value) is not None, TEXT, "of the form"),
}
