"""report.json's bytes: readable where people read, one line per column where there are many numbers."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any


def report_bytes(report: Mapping[str, Any]) -> bytes:
    """report.json as UTF-8: the same report gives the same bytes. NaN and infinity are errors (ValueError)."""
    parts = [f" {json.dumps(name)}: {_value(name, value)}" for name, value in report.items()]
    return ("{\n" + ",\n".join(parts) + "\n}").encode()


def _value(name: str, value: Any) -> str:
    if name == "concepts" and isinstance(value, Mapping):
        return _lines(value, 1)
    return json.dumps(value, indent=1, allow_nan=False)


def _lines(table: Mapping[str, Any], depth: int) -> str:
    """An object with one line per entry; lists are never broken."""
    indent = " " * (depth + 1)
    parts = [
        f"{indent}{json.dumps(name)}: {_lines(value, depth + 1) if isinstance(value, Mapping) else _compact(value)}"
        for name, value in table.items()
    ]
    return "{\n" + ",\n".join(parts) + f"\n{' ' * depth}}}" if parts else "{}"


def _compact(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"), allow_nan=False)
