"""The rows, by number: `@row(n)` puts a function of a `Case` into `ROWS`."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .harness import Case

Row = Callable[["Case"], None]
ROWS: dict[int, Row] = {}


def row(number: int) -> Callable[[Row], Row]:
    """Register a row of the table."""

    def register(function: Row) -> Row:
        if number in ROWS:
            raise ValueError(f"row {number} twice")
        ROWS[number] = function
        return function

    return register
