"""Per-site values of the concepts as the report shows them: in report.json, or in the file that it names."""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from typing import Any

from ...canonical import sha256_hex
from ..verify.replies import read_tensors
from ..verify.verdict import Broken, Missing
from .numbers import Numbers

FILE = "report-sites.safetensors"
DECIMALS = {"auroc": 4, "auroc_se": 0, "firing_rate": 0}  # 0: 4 significant digits
OK, SUPPRESSED, NOT_ASSESSED = 0, 1, 2
Found = Mapping[str, Sequence[Sequence[float]]]  # name -> [sites] of [n] by row


def check_shown(numbers: Numbers, sites: list[str], found: Found, target: Sequence[int]) -> None:
    """Raise unless the report shows these values of these sites. `target`: of every row; -1: it has none."""
    tables = numbers.report["concepts"]["tables"]
    if "file" in tables:
        _same_sites(FILE, list(tables["sites"]), sites)
        _check_file(numbers, tables, sites, found)
        return
    if FILE in numbers.bundle.files:
        raise Broken("A file of per-site values that report.json does not name.", FILE)
    for name, values in found.items():
        _same_sites(name, list(tables[name]["sites"]), sites)
        for site, row in zip(sites, values, strict=True):
            _check_inline(numbers, name, site, row, target)


def _same_sites(name: str, shown: list[str], sites: list[str]) -> None:
    if shown != sites:
        text = "Other sites than those that described the concepts."
        raise Broken(text, f"report.json concepts/tables/{name}")


def _check_inline(
    numbers: Numbers, name: str, site: str, values: Sequence[float], target: Sequence[int]
) -> None:
    rows, place = numbers.report["concepts"]["columns"]["row"], f"concepts/tables/{name}"
    numbers.column(f"{place}/sites/{site}", [values[row] for row in rows], decimals=DECIMALS[name])
    codes = [_code(name, values[row], target[row]) for row in rows]
    status = numbers.at(f"{place}/status/{site}")
    numbers.same(f"{place}/status/{site}", codes[0] if status == codes[0] and len(set(codes)) == 1 else codes)


def _code(name: str, value: float, target: int) -> int:
    if name != "firing_rate" and target < 0:
        return NOT_ASSESSED
    return OK if value == value else SUPPRESSED


def _check_file(numbers: Numbers, tables: Mapping[str, Any], sites: list[str], found: Found) -> None:
    if FILE not in numbers.bundle.files:
        raise Missing(f"{FILE} is not in the bundle, so the concepts' per-site values were not compared.")
    data, n = numbers.bundle.get(FILE), numbers.protocol["dictionary"]["n"]
    if sha256_hex(data) != tables["sha256"]:
        raise Broken("Not the file that report.json names.", FILE)
    tensors = read_tensors(data)
    if tensors.keys() != found.keys():
        raise Broken("Other tables than those of the concepts.", FILE)
    for name, tensor in tensors.items():
        if tensor.shape != [len(sites), n] or tensor.dtype != "float32":
            raise Broken(f"{name} is not a table of sites and concepts.", FILE)
        values = struct.unpack(f"<{len(sites) * n}f", tensor.raw)
        for place, site in enumerate(sites):
            _check_row(
                numbers, f"{FILE} {name} {site}", values[place * n : (place + 1) * n], found[name][place]
            )


def _check_row(numbers: Numbers, where: str, shown: Sequence[float], expected: Sequence[float]) -> None:
    for row, (a, b) in enumerate(zip(shown, expected, strict=True)):
        numbers.count += 1
        if abs(a - b) > 1e-6 or (a == a) != (b == b):
            raise Broken(f"The file says {a!r} where the replies give {b!r}.", f"{where} {row}")
