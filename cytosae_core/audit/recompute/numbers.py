"""Per site and over sites. Formulas: cytosae_core/report/*.py and docs/auditor.md."""

from __future__ import annotations

import math
import struct
from array import array
from collections.abc import Sequence
from typing import Any

from ..verify.bundle import Bundle
from ..verify.replies import Replies
from ..verify.verdict import Broken, Missing

COUNTS = ("images", "units", "train_units", "test_units")
QUALITY = ("sse", "ss_global", "ss_own", "tokens", "l0", "dead_fraction")
PROBES = (
    "standardised codes", "raw codes", "raw embeddings", "shuffled labels", "colour histogram", "same site",
)  # fmt: skip
META_TOLERANCE = 1e-6
CODES = {"float32": "f", "float16": "e"}


class Numbers:
    """Report and replies side by side. `count`: numbers that were compared."""

    def __init__(self, bundle: Bundle, replies: Replies) -> None:
        self.report = bundle.table("report.json", canonical=False)
        self.protocol, self.bundle, self.count = bundle.protocol, bundle, 0
        self.replies = replies
        statistics = self.protocol["statistics"]
        self.targets = [*statistics["classes"], *(item["name"] for item in statistics["attributes"])]
        self.order = ["final", *(["random"] if self.protocol["dictionary"]["model"] == "pursuit" else [])]
        self.order += ["init"] if self.protocol["kind"] == "train" else []

    def same(self, path: str, expected: Any, tolerance: float = 1e-9) -> None:
        """Raise unless the report says `expected` at `path`."""
        found = self.at(path)
        self.count += 1
        numeric = all(type(value) in (int, float) for value in (expected, found))
        if numeric and abs(expected - found) <= tolerance * max(1.0, abs(expected)):
            return
        if found != expected or numeric:
            raise Broken(
                f"The report says {found!r} where the replies give {expected!r}.", f"report.json {path}"
            )

    def close(self, path: str, expected: float | None, *, decimals: int = 0) -> None:
        """Raise unless the report shows `expected` with that many decimals (0: with 4 significant digits)."""
        self.count += 1
        if not _shows(found := self.at(path), expected, decimals, META_TOLERANCE):
            raise _differs(path, found, expected)

    def column(
        self, path: str, expected: Sequence[Any], *, decimals: int | None = None, tiny: bool = False
    ) -> None:
        """Raise unless the list at `path` shows the expected values (None and NaN: null), each as `close` does.

        Args:
            decimals: None: exactly these values. tiny: 4 significant digits of values next to 0, too.
        """
        floor = 0.0 if tiny else META_TOLERANCE
        found = self.at(path)
        if not isinstance(found, list) or len(found) != len(expected):
            raise Broken("Not a list with a value per concept.", f"report.json {path}")
        self.count += len(found)
        for place, (shown, value) in enumerate(zip(found, expected, strict=True)):
            if decimals is None:
                same = type(shown) is type(value) and shown == value
            else:
                same = _shows(shown, known(value) if value is not None else None, decimals, floor)
            if not same:
                raise _differs(f"{path}/{place}", shown, value)

    def at(self, path: str) -> Any:
        """The report's value at `path` (keys and indices, separated by /)."""
        found: Any = self.report
        for key in path.split("/"):
            found = found[int(key)] if isinstance(found, list) else found.get(key)
        return found

    def values(self, kind: str, number: int, site: str, name: str) -> Sequence[float] | None:
        """Numbers of one tensor; None when the site never gave this reply, or not this tensor in it."""
        found = self.replies.tensors.get((kind, number, site), {})
        if found is None:
            raise Missing(
                f"Reply {kind} {number} of {site} is not in the bundle, so its numbers were not recomputed."
            )
        if name not in found:
            return None
        tensor, code = found[name], CODES[found[name].dtype]
        return array("d", struct.unpack(f"<{math.prod(tensor.shape)}{code}", tensor.raw))

    def counted(self, site: str, name: str) -> Sequence[float] | None:
        """Counts of a site: those of its first answer, or under `dp` the noised ones beside its statistics."""
        return self.values("describe" if self.protocol["profile"] == "dp" else "hello", 0, site, name)

    def quality(self, which: str, site: str) -> dict[str, float | None]:
        """FVU and the other quality numbers of one dictionary at one site."""
        if which == "init" and self.protocol["profile"] == "dp":
            return _quality(self.values("describe", 0, site, "quality_init"))
        number = self.order.index(which) if which in self.order else -1
        return _quality(self.values("describe", number, site, "quality"))


def _shows(found: Any, expected: float | None, decimals: int, floor: float) -> bool:
    """Whether `found` is `expected` with `decimals` decimals (0: 4 significant digits), but for `META_TOLERANCE`."""
    if expected is None or type(found) not in (int, float):
        return found is expected
    if expected == 0:
        return bool(abs(found) <= floor)
    unit = 10.0**-decimals if decimals else 10.0 ** (math.floor(math.log10(abs(expected))) - 3)
    return bool(abs(found - expected) <= unit / 2 + max(floor, META_TOLERANCE * abs(expected)))


def _differs(path: str, found: Any, expected: Any) -> Broken:
    return Broken(f"The report says {found!r} where the replies give {expected!r}.", f"report.json {path}")


def check_site(numbers: Numbers, site: str) -> str:
    """What a site is, how well the dictionary fits there, and what left it."""
    before, place = numbers.count, f"sites/{site}"
    counts = [known(value) for value in numbers.counted(site, "counts") or []]
    for name, value in zip(COUNTS, counts, strict=False):
        numbers.same(f"{place}/{name}", value)
    units = [known(value) for value in numbers.counted(site, "class_units") or []]
    for key, values in (("classes", counts[len(COUNTS) :]), ("class_units", units)):
        for name, value in zip(numbers.protocol["statistics"]["classes"], values, strict=False):
            numbers.same(f"{place}/{key}/{name}", value)
    final = numbers.quality("final", site)
    for name in ("fvu", "fvu_own_mean", "l0", "dead_fraction"):
        numbers.same(f"{place}/{name}", final.get(name))
    for which in ("init", "random"):
        numbers.same(f"{place}/fvu_{which}", numbers.quality(which, site).get("fvu"))
    received = numbers.replies.received[site]
    numbers.same(f"{place}/bytes_out", sum(fields["wire"]["bytes"] for fields in received))
    numbers.same(f"{place}/messages_out", len(received))
    for kind in sorted({fields["kind"] for fields in received}):
        sizes = [fields["wire"]["bytes"] for fields in received if fields["kind"] == kind]
        numbers.same(f"egress/sites/{site}/by_kind/{kind}/bytes", sum(sizes))
        numbers.same(f"egress/sites/{site}/by_kind/{kind}/count", len(sizes))
    accuracy = numbers.values("score", 0, site, "balanced_accuracy")
    for name, value in zip(PROBES, accuracy or [], strict=False):
        numbers.same(f"loso/views/{name}/{site}", rounded(known(value)))
    return f"{numbers.count - before} numbers of {site} come out again."


def check_overall(numbers: Numbers) -> str:
    """The protocol, every site and every round are in the report; means over sites, and the rounds."""
    before, sites = numbers.count, numbers.protocol["sites"]
    numbers.same("study/protocol_sha256", numbers.bundle.digest)
    shown = {f"sites {site}" for site in numbers.report["sites"]}
    shown |= {
        f"round {entry['round']} {site}" for entry in numbers.report["rounds"] for site in entry["sites"]
    }
    given = {f"sites {site}" for site in sites}
    given |= {f"round {number} {site}" for kind, number, site in numbers.replies.tensors if kind == "round"}
    for item in sorted(shown ^ given):
        raise Broken(f"{item}: in the report or among the replies, but not in both.", f"report.json {item}")
    final = [numbers.quality("final", site) for site in sites]
    for name, which in (("federated_fvu", "final"), ("fvu_init", "init"), ("fvu_random", "random")):
        numbers.same(f"overall/{name}", _mean([numbers.quality(which, site).get("fvu") for site in sites]))
    for name in ("l0", "dead_fraction"):
        numbers.same(f"overall/{name}", _mean([quality.get(name) for quality in final]))
    for index, entry in enumerate(numbers.report["rounds"]):
        values = {
            site: _quality(numbers.values("round", entry["round"], site, "quality")).get("fvu")
            for site in entry["sites"]
        }
        numbers.same(f"rounds/{index}/fvu", _mean(list(values.values())))
        for site, value in values.items():
            numbers.same(f"rounds/{index}/sites/{site}", value)
    return f"{numbers.count - before} means over sites and rounds come out again."


def _quality(values: Sequence[float] | None) -> dict[str, float | None]:
    named = dict(zip(QUALITY, map(known, values or []), strict=False))
    sse, total, own = (named.get(name) for name in ("sse", "ss_global", "ss_own"))
    named["fvu"] = sse / total if sse is not None and total else None
    named["fvu_own_mean"] = sse / own if sse is not None and own else None
    return named


def known(value: float) -> float | None:
    """The number, or None for NaN."""
    return None if math.isnan(value) else value


def rounded(value: float | None) -> float | None:
    """4 significant digits."""
    return None if value is None else float(f"{value:.4g}")


def _mean(values: list[float | None]) -> float | None:
    found = [value for value in values if value is not None]
    return math.fsum(found) / len(found) if found else None
