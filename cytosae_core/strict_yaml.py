"""YAML that can be read in one way only. `load_yaml` reads protocols, `read_strict` the site's policy.

`read_strict` takes less than YAML: tables, lists, quoted text, whole numbers, `true` and `false`. Every word that two
readers of YAML could take for two different things (`NO`, `1_000`, `010`, `0.5`, `1e5`, `2026-11-01`) must be quoted.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

import yaml

from .errors import SetupError, StudyError

_INTEGER = re.compile(r"-?(0|[1-9][0-9]{0,15})\Z")
_PLAIN_WORD = re.compile(r"[A-Za-z][A-Za-z0-9_:./-]*( [A-Za-z0-9_:./-]+)*\Z")
_NOT_WORDS = frozenset({"y", "n", "yes", "no", "on", "off", "true", "false", "null", "none", "nan", "inf"})
MAX_DEPTH = 8


class _StrictLoader(yaml.SafeLoader):
    """SafeLoader without anchors and with an error on duplicate keys."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        event = self.peek_event()  # type: ignore[no-untyped-call]
        if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None):
            line = event.start_mark.line + 1
            raise StudyError(f"Expected no anchors in YAML, line {line}.", reason="YAML_ALIAS")
        return super().compose_node(parent, index)

    def construct_mapping(self, node: Any, deep: bool = False) -> Any:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        for position, key in enumerate(keys):
            if key in keys[:position]:
                line = node.value[position][0].start_mark.line + 1
                raise StudyError(
                    f"Expected unique keys in YAML, got {key!r} twice, line {line}.", reason="YAML_DUP"
                )
        return super().construct_mapping(node, deep)


def load_yaml(path: Path) -> dict[str, Any]:
    """A YAML mapping, strictly: no anchors, no duplicate keys, no custom tags, at most 1 MiB."""
    try:
        if path.stat().st_size > 1 << 20:
            raise StudyError("Expected a YAML file of at most 1 MiB.", reason="YAML_SIZE")
        values = _StrictLoader(path.read_text("utf-8")).get_single_data()
    except FileNotFoundError as error:
        raise StudyError(f"Expected a file at {path}.", hint="Check the path.") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark else ""
        raise StudyError(f"Expected readable YAML in {path.name}{line}.", reason="YAML_SYNTAX") from error
    if not isinstance(values, dict) or not all(isinstance(key, str) for key in values):
        raise StudyError(f"Expected a table of settings in {path.name}.")
    return values


@dataclass(frozen=True)
class Document:
    """Values of a file, and the line of every key and list item (`limits.rounds`, `approval.officers.0`)."""

    values: dict[str, Any]
    lines: Mapping[str, int] = field(default_factory=dict)


def read_strict(path: Path, max_bytes: int = 64 * 1024) -> Document:
    """The file's table with line numbers.

    Raises:
        SetupError: with the line, and reason YAML_SIZE, YAML_TAG, YAML_ALIAS, YAML_DUP, YAML_TYPE or YAML_SYNTAX.
    """
    try:
        with path.open("rb") as stream:
            data = stream.read(max_bytes + 1)
    except OSError as error:
        raise SetupError(f"Expected a readable file at {path}.", hint="Check the path.") from error
    if len(data) > max_bytes:
        raise SetupError(f"Expected at most max_bytes={max_bytes} in {path.name}.", reason="YAML_SIZE")
    return parse_strict(data, path.name)


def parse_strict(data: bytes, name: str = "YAML") -> Document:
    """As `read_strict`, from bytes."""
    lines: dict[str, int] = {}
    try:
        text = data.decode("utf-8")
        _check_events(text, name)
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        value = _value(node, "", lines, name)
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        place = f"{name}:{mark.line + 1}" if mark else name
        raise SetupError(f"Expected readable YAML in {place}.", reason="YAML_SYNTAX") from error
    if not isinstance(value, dict):
        raise SetupError(f"Expected a table of settings in {name}.", reason="YAML_TYPE")
    return Document(value, lines)


def _fail(name: str, line: int, what: str, reason: str, hint: str = "") -> NoReturn:
    raise SetupError(f"Expected {what} in {name}:{line}.", hint=hint, reason=reason)


def _check_events(text: str, name: str) -> None:
    """Refuse tags, anchors, aliases, depth and a second document before anything is composed."""
    depth = documents = 0
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        line = event.start_mark.line + 1 if event.start_mark else 1
        if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None):
            _fail(name, line, "no anchors, aliases or bare *", "YAML_ALIAS", "Write the value out.")
        if getattr(event, "tag", None):
            _fail(name, line, "no tags", "YAML_TAG", "Remove the word that begins with '!'.")
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        documents += isinstance(event, yaml.DocumentStartEvent)
        if depth > MAX_DEPTH or documents > 1:
            _fail(name, line, f"one document of depth <= {MAX_DEPTH}", "YAML_TYPE")


def _value(node: Any, place: str, lines: dict[str, int], name: str) -> Any:
    if isinstance(node, yaml.MappingNode):
        return _table(node, place, lines, name)
    if isinstance(node, yaml.SequenceNode):
        items = []
        for index, child in enumerate(node.value):
            inner = f"{place}.{index}" if place else str(index)
            lines[inner] = child.start_mark.line + 1
            items.append(_value(child, inner, lines, name))
        return items
    if isinstance(node, yaml.ScalarNode):
        return _scalar(node, name)
    raise SetupError(f"Expected a table of settings in {name}.", reason="YAML_TYPE")


def _table(node: yaml.MappingNode, place: str, lines: dict[str, int], name: str) -> dict[str, Any]:
    out: dict[str, Any] = {}
    for key_node, child in node.value:
        line = key_node.start_mark.line + 1
        key = _scalar(key_node, name) if isinstance(key_node, yaml.ScalarNode) else None
        if not isinstance(key, str):
            _fail(name, line, "a word as key", "YAML_TYPE", "Keys are words, without quotes.")
        if key in out:
            _fail(name, line, f"unique keys, got {key[:40]!r} twice", "YAML_DUP", "Remove one of them.")
        inner = f"{place}.{key}" if place else key
        lines[inner] = line
        out[key] = _value(child, inner, lines, name)
    return out


def _scalar(node: yaml.ScalarNode, name: str) -> str | int | bool:
    text, line = str(node.value), node.start_mark.line + 1
    if node.style in ("'", '"'):
        return text
    if node.style is None and text in ("true", "false"):
        return text == "true"
    if node.style is None and _INTEGER.match(text) and text != "-0":
        return int(text)
    if node.style is None and _PLAIN_WORD.match(text) and text.lower() not in _NOT_WORDS:
        return text
    _fail(
        name, line, f"text in quotes, a whole number, true or false, got {text[:30]!r}", "YAML_TYPE",
        "Put it in double quotes; decimals and dates are text.",
    )  # fmt: skip
