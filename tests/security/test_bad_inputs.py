"""The table of bad inputs (docs/bad-inputs.md), one test per row.

Every row plants a canary in file names, ids, EXIF, DICOM tags, table cells and the lowest bits of pixels, runs what
would see the input, and expects its reason. After each, in `Case.verdict`: the canary is in nothing that leaves, in
no log record and in no temporary file.
"""

from __future__ import annotations

import re
import tempfile
from pathlib import Path

import pytest

from . import rows_images, rows_numbers, rows_text
from .harness import Case, carries
from .rows import ROWS

MODULES = (rows_images, rows_text, rows_numbers)
TABLE = Path(__file__).resolve().parents[2] / "docs" / "bad-inputs.md"


@pytest.mark.parametrize("number", sorted(ROWS))
def test_row(
    number: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    case = Case(tmp_path, monkeypatch, capsys, caplog)
    with pytest.MonkeyPatch.context() as outer:
        outer.setattr(tempfile, "tempdir", str(scratch))
        caplog.set_level("DEBUG")
        ROWS[number](case)
        case.verdict(scratch)


def test_the_table_and_the_tests_name_the_same_rows() -> None:
    written = {int(found) for found in re.findall(r"^\| (\d+) \|", TABLE.read_text(), re.MULTILINE)}
    assert written == set(range(1, 91))
    assert set(ROWS) <= written


@pytest.mark.parametrize("form", ["plain", "hex", "base64", "zlib", "utf-16"])
def test_the_search_for_canaries_finds_them(form: str) -> None:
    """Positive control of the global assertion."""
    import base64
    import zlib

    canary = "CANARY-4f6b0cde-0000-4000-8000-123456789abc"
    raw = canary.encode()
    hidden = {
        "plain": raw, "hex": raw.hex().encode(), "base64": base64.b64encode(b"x" + raw),
        "zlib": zlib.compress(raw * 9), "utf-16": canary.encode("utf-16-le"),
    }[form]  # fmt: skip
    assert carries(b"before" + hidden + b"after", canary) and not carries(b"before after", canary)
