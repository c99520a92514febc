"""Every concept's columns and per-site values from the replies. Formulas: docs/auditor.md, report/agreement.py."""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping
from typing import Any

from ...canonical import sha256_hex
from ..verify.replies import read_tensors
from ..verify.verdict import Broken, Missing
from .meta import concept_of
from .numbers import Numbers, known, rounded

EFFECT, REPLICATED, CONTRADICTION_Z, MIN_SITES = 0.15, 0.10, 4.0, 3
VERDICTS = ("holds", "differs", "no class meaning", "too few patients")
POOLED = ("estimate", "low", "high", "prediction_low", "prediction_high", "probability_new_site")
SPREAD = ("tau2", "i2", "h2", "p")
FILE = "report-sites.safetensors"
Tables = Mapping[str, list[list[float]]]  # site -> AUROC [n, t], its error [n, t], firing rate [n], each flat


def check_concepts(numbers: Numbers) -> str:
    """Every concept's target, verdict, means, pooled numbers, per-site values and digest."""
    before, n, tables = numbers.count, numbers.protocol["dictionary"]["n"], dict[str, list[list[float]]]()
    for site in numbers.protocol["sites"]:
        found = [numbers.values("describe", 0, site, name) for name in ("auroc", "auroc_se", "firing_rate")]
        if given := [values for values in found if values is not None]:
            tables[site] = given
    part = numbers.report["concepts"]
    rows = part["columns"]["row"]
    if (
        sorted(rows) != list(range(n))
        or part["targets"] != numbers.targets
        or part["verdicts"] != [*VERDICTS]
    ):
        raise Broken("The report does not show every concept once.", "report.json concepts/columns/row")
    if any(len(values) != n for values in part["columns"].values()):
        raise Broken("A column does not have one value per concept.", "report.json concepts/columns")
    digests, shown = _digests(numbers), _Shown(numbers, list(tables))
    for place, row in enumerate(rows):
        if digests:
            numbers.same(f"concepts/columns/digest/{place}", digests[row])
        _check_concept(numbers, tables, place, row, shown)
    return f"{numbers.count - before} numbers of {n} concepts come out again."


def _check_concept(numbers: Numbers, tables: Tables, place: int, row: int, shown: _Shown) -> None:
    wide = len(numbers.targets)
    effects = [[value - 0.5 for value in table[0][row * wide :][:wide]] for table in tables.values()]
    errors = [table[1][row * wide :][:wide] for table in tables.values()]
    verdict, target, mean, sites = verdict_of(effects, errors)
    if target >= 0:
        sites = sum(not math.isnan(effect[target]) for effect in effects)
    for name, value in (("verdict", VERDICTS.index(verdict)), ("target", target), ("sites", sites)):
        numbers.same(f"concepts/columns/{name}/{place}", value)
    numbers.close(f"concepts/columns/mean/{place}", mean, decimals=4)
    at = max(target, 0)
    own = [effect[at] + 0.5 if target >= 0 else math.nan for effect in effects]
    own_se = [error[at] if target >= 0 else math.nan for error in errors]
    pooled = concept_of(own, own_se)
    for name in POOLED:
        numbers.close(f"concepts/columns/{name}/{place}", pooled[name], decimals=4)
    for name in SPREAD:
        numbers.close(f"concepts/columns/{name}/{place}", pooled[name])
    for site, auroc, error, table in zip(tables, own, own_se, tables.values(), strict=True):
        shown.check("auroc", site, place, row, auroc)
        shown.check("auroc_se", site, place, row, error if not math.isnan(auroc) else math.nan)
        shown.check("firing_rate", site, place, row, table[2][row])


class _Shown:
    """Per-site values as the report shows them: in report.json, or in the file that it names."""

    def __init__(self, numbers: Numbers, sites: list[str]) -> None:
        self._numbers, self._file = numbers, dict[str, tuple[float, ...]]()
        tables = numbers.report["concepts"]["tables"]
        self._inline, self._n = "file" not in tables, numbers.protocol["dictionary"]["n"]
        if self._inline and FILE in numbers.bundle.files:
            raise Broken("A file of per-site values that report.json does not name.", FILE)
        if self._inline:
            listed = {name: list(table["sites"]) for name, table in tables.items()}
        else:
            listed = {FILE: tables["sites"]}
            self._read(tables, len(sites))
        self._place = {site: index for index, site in enumerate(sites)}
        for name, found in listed.items():
            if found != sites:
                raise Broken(
                    "Other sites than those that described the concepts.",
                    f"report.json concepts/tables/{name}",
                )

    def _read(self, tables: Mapping[str, Any], sites: int) -> None:
        if FILE not in self._numbers.bundle.files:
            raise Missing(f"{FILE} is not in the bundle, so the concepts' per-site values were not compared.")
        data = self._numbers.bundle.get(FILE)
        if sha256_hex(data) != tables["sha256"]:
            raise Broken("Not the file that report.json names.", FILE)
        for name, tensor in read_tensors(data).items():
            if tensor.shape != [sites, self._n] or tensor.dtype != "float32":
                raise Broken(f"{name} is not a table of sites and concepts.", FILE)
            self._file[name] = struct.unpack(f"<{sites * self._n}f", tensor.raw)

    def check(self, name: str, site: str, place: int, row: int, value: float) -> None:
        """Raise unless the report shows this value of a site."""
        if self._inline:
            path, decimals = f"concepts/tables/{name}/sites/{site}/{place}", 4 if name == "auroc" else 0
            expected = known(value)
            self._numbers.same(
                path, round(value, 4) if decimals and expected is not None else rounded(expected)
            )
            return
        found = self._file[name][self._place[site] * self._n + row]
        self._numbers.count += 1
        if abs(found - value) > 1e-6 or math.isnan(found) != math.isnan(value):
            raise Broken(
                f"The file says {found!r} where the replies give {value!r}.", f"{FILE} {name} {site} {row}"
            )


def verdict_of(effects: list[list[float]], errors: list[list[float]]) -> tuple[str, int, float | None, int]:
    """Verdict, target, mean AUROC and number of sites of one concept from effects [sites][targets]."""
    targets = range(len(effects[0]) if effects else 0)
    given = [[row[t] for row in effects if not math.isnan(row[t])] for t in targets]
    mean = [sum(values) / max(len(values), 1) for values in given]
    sites = max((len(values) for values in given), default=0)
    if sites < MIN_SITES:
        return "too few patients", -1, None, sites
    weakest = [
        min(math.copysign(1, m) * value if m else 0.0 for value in values)
        if len(values) >= MIN_SITES
        else -math.inf
        for values, m in zip(given, mean, strict=True)
    ]
    holding = [w if abs(m) > EFFECT else -math.inf for w, m in zip(weakest, mean, strict=True)]
    best = max(targets, key=holding.__getitem__)
    if holding[best] > REPLICATED:
        return "holds", best, mean[best] + 0.5, sites
    loudness = [0.0 for _ in targets]
    for t in targets:
        loud = any(
            abs(e[t]) > EFFECT and abs(e[t]) > CONTRADICTION_Z * max(s[t], 1e-3)
            for e, s in zip(effects, errors, strict=True)
        )
        if loud and len(given[t]) >= MIN_SITES and weakest[t] <= REPLICATED:
            loudness[t] = max(abs(value) for value in given[t])
    loudest = max(targets, key=loudness.__getitem__)
    if loudness[loudest] > 0:
        return "differs", loudest, mean[loudest] + 0.5, sites
    top = max(targets, key=lambda t: abs(mean[t]))
    return "no class meaning", top, mean[top] + 0.5, sites


def _digests(numbers: Numbers) -> list[str]:
    """First digits of every dictionary row's SHA-256, when the last dictionary is in the bundle."""
    wanted = numbers.report["dictionary"]["sha256"]
    for data in numbers.bundle.under("dictionaries/").values():
        for tensor in read_tensors(data).values():
            if sha256_hex(tensor.raw) == wanted:
                size = len(tensor.raw) // tensor.shape[0]
                return [sha256_hex(tensor.raw[at : at + size])[:16] for at in range(0, len(tensor.raw), size)]
    return []
