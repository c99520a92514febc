"""JSON as others test it: RFC 8785 (canonical form) and JSONTestSuite (what is JSON and what is not)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from cytosae_core.canonical import canonical_json, parse_json
from cytosae_core.errors import MessageError

pytestmark = pytest.mark.shared

# Files that RFC 8259 allows and `parse_json` refuses: keys that come twice (RFC 7493 section 2.3, I-JSON).
EXCEPTIONS = {"y_object_duplicated_key": "JSON_DUP", "y_object_duplicated_key_and_value": "JSON_DUP"}

# Files that RFC 8259 leaves open (i_*): what happens with each, so that a change is seen.
OPEN = {
    "i_number_double_huge_neg_exp": "",
    "i_number_huge_exp": "JSON_NUM",
    "i_number_neg_int_huge_exp": "JSON_NUM",
    "i_number_pos_double_huge_exp": "JSON_NUM",
    "i_number_real_neg_overflow": "JSON_NUM",
    "i_number_real_pos_overflow": "JSON_NUM",
    "i_number_real_underflow": "",
    "i_number_too_big_neg_int": "JSON_NUM",
    "i_number_too_big_pos_int": "JSON_NUM",
    "i_number_very_big_negative_int": "JSON_NUM",
    "i_string_UTF-16LE_with_BOM": "JSON_UTF8",
    "i_structure_500_nested_arrays": "JSON_DEPTH",
    "i_structure_UTF-8_BOM_empty_object": "JSON_BOM",
}


def files(shared: Path, kind: str) -> list[Path]:
    return sorted((shared / "vectors" / "JSONTestSuite" / "test_parsing").glob(f"{kind}_*.json"))


def reason(data: bytes) -> str:
    try:
        parse_json(data)
    except MessageError as error:
        assert error.reason.startswith("JSON_")
        return error.reason
    return ""


def test_rfc_8785_vectors(shared: Path) -> None:
    folder = shared / "vectors" / "json-canonicalization" / "testdata"
    inputs = sorted((folder / "input").glob("*.json"))
    assert len(inputs) == 6
    for path in inputs:
        wanted = (folder / "output" / path.name).read_bytes()
        assert canonical_json(parse_json(path.read_bytes())) == wanted
        assert canonical_json(parse_json(wanted)) == wanted
        hexed = folder / "outhex" / path.with_suffix(".txt").name
        if hexed.exists():
            assert bytes.fromhex(hexed.read_text()) == wanted


def test_what_is_not_json_is_refused(shared: Path) -> None:
    bad = files(shared, "n")
    assert len(bad) == 188
    assert [path.name for path in bad if not reason(path.read_bytes())] == []


def test_what_is_json_is_read_as_python_reads_it(shared: Path) -> None:
    good = files(shared, "y")
    assert len(good) == 95
    refused = {path.stem: found for path in good if (found := reason(path.read_bytes()))}
    assert refused == EXCEPTIONS
    for path in good:
        if path.stem not in refused:
            assert parse_json(path.read_bytes()) == json.loads(path.read_bytes())


def test_what_the_standard_leaves_open(shared: Path) -> None:
    unsettled = files(shared, "i")
    assert len(unsettled) == 35
    for path in unsettled:
        assert reason(path.read_bytes()) == OPEN.get(path.stem, "JSON_UTF8"), path.name


@pytest.mark.parametrize("value", [2**53, -(2**53), 0, "é", "\U0001f600", [], {}, [None, True, 0.1]])
def test_what_is_written_is_read_again(value: Any) -> None:
    assert parse_json(canonical_json(value)) == value
