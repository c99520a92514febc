"""What arrived, counted from the coordinator's log: the report's messages, bytes and withheld values.

The log and not the running program is counted, so that a study that was killed and resumed reports the same numbers
as one that was not, and an auditor finds them again.
"""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

from cytosae_core.audit.log import Log
from cytosae_core.canonical import parse_json
from cytosae_core.envelope import MAGIC
from cytosae_core.report.inputs import StudyResult

Json = dict[str, Any]


def tally(result: StudyResult, receipts: list[Json], payloads: Path, log: Log | None = None) -> None:
    """Set `received`, `suppressed`, `leaves`, `log`, `scratch` and the rounds' bytes of `result`.

    Args:
        receipts: predicates of the log's `ingress` entries, in order.
        payloads: folder of the signed replies, by SHA-256.
        log: the coordinator's; without it the report says that nothing was logged.
    """
    result.scratch = payloads.parent
    result.leaves, result.log = leaves_of(receipts), None
    places = [index for kinds in result.leaves.values() for found in kinds.values() for index in found]
    if log is not None and places:
        size = max(places) + 1
        result.log = (size, log.tree.root(size).hex())
    result.received, result.suppressed = {}, {}
    rounds = {record.round: 0 for record in result.rounds}
    last: dict[tuple[str, int, str], str] = {}
    for receipt in receipts:
        site, kind, number = receipt["site"], receipt["kind"], receipt["round"]
        entry = result.received.setdefault(site, {}).setdefault(kind, [0, 0])
        entry[0], entry[1] = entry[0] + 1, entry[1] + receipt["wire"]["bytes"]
        if receipt["status"] == "ok":
            last[kind, number, site] = receipt["payload"]["sha256"]
            if kind == "round" and number in rounds:
                rounds[number] += receipt["wire"]["bytes"]
    for (_, _, site), digest in last.items():
        totals = result.suppressed.setdefault(site, {})
        for name, count in header_of(payloads / f"{digest}.reply")["suppressed"].items():
            totals[name] = totals.get(name, 0) + int(count)
    for record in result.rounds:
        record.bytes = rounds[record.round]


def leaves_of(receipts: list[Json]) -> dict[str, dict[str, list[int]]]:
    """Site -> message kind -> places of its `ingress` entries in the coordinator's log, of replies that were used."""
    found: dict[str, dict[str, list[int]]] = {}
    for receipt in receipts:
        if receipt["status"] == "ok" and "seq" in receipt:
            found.setdefault(receipt["site"], {}).setdefault(receipt["kind"], []).append(int(receipt["seq"]))
    return found


def header_of(path: Path) -> Json:
    """The header of a kept reply, which was verified when it came; its tensors are not read."""
    with path.open("rb") as stream:
        (length,) = struct.unpack(">I", stream.read(len(MAGIC) + 4)[len(MAGIC) :])
        return dict(parse_json(stream.read(length)))
