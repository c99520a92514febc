"""What was done otherwise than the protocol says: the signed list against what the report prints."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from ...canonical import canonical_json, sha256_hex
from ...signatures import verify_signature
from ..statement import COORDINATOR
from ..verify.bundle import Bundle
from ..verify.verdict import need

FILE, URN = "deviations.json", "urn:cytosae:deviations:v1"
FIRST = "0" * 64


def check_deviations(bundle: Bundle) -> str:
    """Signed, in one chain, and all in the report, oldest first."""
    shown = bundle.table("report.json", canonical=False)["protocol"]["deviations"]
    signed = list(_of_this_study(bundle)) if FILE in bundle.files else []
    for place, (said, entry) in enumerate(zip(shown, signed, strict=False)):
        need(said == entry, "The report says something else than was signed.", f"{FILE} {place}")
    need(
        len(shown) == len(signed),
        f"The report prints {len(shown)} deviations, {len(signed)} are signed.",
        "report.json protocol/deviations",
    )
    return f"{len(shown)} deviations are signed by the study key, in one chain, and printed."


def _of_this_study(bundle: Bundle) -> Iterator[dict[str, str]]:
    """{at, what, why} as the report prints them; of a stage, what happened in earlier ones says so."""
    content, previous = bundle.table(FILE), FIRST
    key, protocol = bundle.keys[COORDINATOR]["signing"], bundle.protocol
    need(content["urn"] == URN, "Not a list of deviations.", FILE)
    for place, entry in enumerate(content["entries"]):
        fields = {name: value for name, value in entry.items() if name != "signature"}
        need(entry["prev"] == previous, "An entry does not follow the one before.", f"{FILE} {place}")
        verify_signature(key, URN, canonical_json(fields), bytes.fromhex(entry["signature"]))
        previous = sha256_hex(canonical_json(entry))
        if entry["protocol"] == (protocol["part_of"] or bundle.digest):
            yield {"at": entry["at"], "what": _in_words(entry, protocol["stage"]), "why": entry["why"]}


def _in_words(entry: Mapping[str, Any], stage: str) -> str:
    if entry["stage"] == stage:
        return str(entry["what"])
    place = f"Stage {entry['stage']}" if entry["stage"] else "Before the first stage"
    return f"{place}: {entry['what']}"
