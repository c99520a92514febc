"""docs/security.md names tests that exist."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_every_test_file_that_the_threat_table_names_exists() -> None:
    text = (ROOT / "docs" / "security.md").read_text()
    named = set(re.findall(r"`((?:unit|integration|security|contract|e2e)/test_\w+\.py)`", text))
    assert len(named) > 15
    assert [name for name in sorted(named) if not (ROOT / "tests" / name).exists()] == []


def test_every_threat_has_a_number_of_its_own_and_a_defence() -> None:
    rows = re.findall(r"^\| T(\d+) \| (.+?) \| (.+?) \|", (ROOT / "docs" / "security.md").read_text(), re.M)
    assert [int(number) for number, _, _ in rows] == list(range(1, len(rows) + 1)) and len(rows) >= 23


def test_every_row_of_the_fault_table_names_a_test_that_exists() -> None:
    text = (ROOT / "docs" / "operations.md").read_text()
    rows = re.findall(r"^\| (.+?) \| (.+?) \| (.+?) \| (`.+`) \|$", text, re.M)
    known = {path.stem for path in (ROOT / "tests").rglob("test_*.py")}
    assert len(rows) >= 25
    for fault, said, lost, tests in rows:
        assert said and lost, fault
        for name in re.findall(r"`([^`]+)`", tests):
            exists = (ROOT / name).exists() if name.startswith("tests/") else name in known
            assert exists, f"{fault}: {name}"
