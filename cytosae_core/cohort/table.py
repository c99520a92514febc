"""labels.csv, read strictly: UTF-8, commas, one header, every cell in its place. Cells are text and stay text.

A byte order mark is accepted (spreadsheets write one). Nothing in a cell is ever evaluated: `=1+1` is a label of four
characters, `007` keeps its zeros.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from ..errors import DataError
from ..limits import MAX_CELL_CHARS, MAX_LINE_CHARS, MAX_PATH_CHARS, MAX_TABLE_BYTES
from .opening import read_input
from .words import shown

Row = dict[str, str]
NO_LABEL = frozenset({"", "nan", "null", "#n/a"})  # what programs write where a label is missing


def read_table(path: Path) -> list[Row]:
    """Rows by column name.

    Raises:
        DataError: a link, not a file, too large (CSV_LIMIT), or not a table with `image` and `label` (SCHEMA, LABEL).
    """
    try:
        raw = read_input(path, path.parent, MAX_TABLE_BYTES)
    except DataError as error:
        reason = "CSV_LIMIT" if error.reason == "FILE_LIMIT" else error.reason
        text = f"Expected labels.csv to be a plain file of at most {MAX_TABLE_BYTES} bytes, not a link."
        raise DataError(text, reason=reason) from None
    except OSError:
        raise DataError(
            "Expected a readable labels.csv.", hint="May this user read it?", reason="IO"
        ) from None
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise DataError(
            "Expected labels.csv in UTF-8.", hint="Save it as CSV UTF-8.", reason="SCHEMA"
        ) from None
    rows = _rows(text)
    for line, row in enumerate(rows, 2):
        _check(line, row)
    if "\0" in text:
        raise DataError(
            "Expected labels.csv to be text.",
            hint="Is it a spreadsheet? Save it as CSV.",
            reason="CSV_LIMIT",
        )
    return rows


def _rows(text: str) -> list[Row]:
    reader = csv.reader(_lines(text), strict=True)
    try:
        header = next(reader, [])
        _check_header(header)
        rows = []
        for cells in reader:
            if not cells:
                continue  # an empty line
            if len(cells) != len(header):
                raise DataError(
                    f"Expected {len(header)} cells in labels.csv line {reader.line_num}.", reason="SCHEMA"
                )
            if max(map(len, cells)) > MAX_CELL_CHARS:
                raise _limit(reader.line_num)
            rows.append(dict(zip(header, cells, strict=True)))
    except csv.Error:
        raise _limit(reader.line_num) from None
    return rows


def _lines(text: str) -> Iterator[str]:
    for number, line in enumerate(io.StringIO(text, newline=""), 1):
        if len(line) > MAX_LINE_CHARS:
            raise _limit(number)
        yield line


def _limit(line: int) -> DataError:
    return DataError(
        f"Expected a CSV table, labels.csv line {line}.",
        hint="A quote without its end, or a line without end?",
        reason="CSV_LIMIT",
    )


def _check_header(header: list[str]) -> None:
    missing = {"image", "label"} - set(header)
    if missing:
        raise DataError(
            f"Expected columns image and label in labels.csv, missing {sorted(missing)}.",
            hint="The first line names the columns, with commas between them.",
            reason="SCHEMA",
        )
    if len(set(header)) < len(header):
        raise DataError("Expected every column of labels.csv once.", hint="Rename one.", reason="SCHEMA")


def _check(line: int, row: Row) -> None:
    check_path(row["image"].strip(), line)
    if row["label"].strip().casefold() in NO_LABEL:
        raise DataError(
            f"Expected a label in labels.csv line {line}.", hint="Fill it or delete the row.", reason="LABEL"
        )


def check_path(relative: str, line: int = 0) -> None:
    """Refuse a path that is not plainly inside the folder: absolute, `..`, drive, backslash, NUL."""
    drive = relative[1:2] == ":"
    odd = "\\" in relative or "\0" in relative or len(relative) > MAX_PATH_CHARS
    if not relative or relative.startswith("/") or drive or odd or ".." in PurePosixPath(relative).parts:
        where = f" (labels.csv line {line})" if line else ""
        raise DataError(
            f"Expected a path inside the folder, got '{shown(relative)}'{where}.",
            hint="Relative, with / between folders.",
            reason="PATH",
        )
