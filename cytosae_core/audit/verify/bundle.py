"""A bundle's files: layout, manifest, protocol and keys, before anything in them is believed."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from ...canonical import canonical_json, parse_json, sha256_hex
from ..statement import COORDINATOR, LISTS, PARTY
from .verdict import Missing, need

LAYOUT = re.compile(
    rf"(protocol|keys|report|deviations)\.json|report\.html|report-sites\.safetensors|logs/{PARTY.pattern}/(checkpoint|tile/[0-9a-z/.]+)"
    rf"|payloads/[0-9a-f]{{64}}\.reply|policies/{PARTY.pattern}\.json|dictionaries/[0-9a-f]{{64}}\.safetensors"
    r"|lists/[0-9a-f]{64}\.json"
)


class Bundle:
    """Files by path. What is asked for and not there, or not readable, is a broken link."""

    def __init__(self, files: Mapping[str, bytes]) -> None:
        self.files = files

    def get(self, path: str) -> bytes:
        """A file's bytes."""
        need(path in self.files, f"{path} is missing.", path)
        return self.files[path]

    def table(self, path: str, *, canonical: bool = True) -> dict[str, Any]:
        """A JSON object, written canonically."""
        value = parse_json(self.get(path), max_bytes=1 << 28)
        same = isinstance(value, dict) and not (canonical and canonical_json(value) != self.files[path])
        need(same, f"{path} is not one JSON object as this format writes it.", path)
        return dict(value)

    def under(self, folder: str) -> dict[str, bytes]:
        """Files below a folder, by the rest of their path."""
        return {path[len(folder) :]: data for path, data in self.files.items() if path.startswith(folder)}

    def fill(self, fields: dict[str, Any]) -> None:
        """Put the lists that an entry names by digest into its fields."""
        for name in LISTS.keys() & fields.keys():
            path = f"lists/{fields[name]}.json"
            if isinstance(fields[name], str):
                need(sha256_hex(self.get(path)) == fields[name], "Not the list that the log names.", path)
                fields[name] = parse_json(self.get(path), max_bytes=1 << 28)

    @property
    def protocol(self) -> dict[str, Any]:
        """The study's protocol."""
        return self.table("protocol.json")

    @property
    def digest(self) -> str:
        """The protocol's SHA-256."""
        return sha256_hex(self.get("protocol.json"))

    @property
    def keys(self) -> dict[str, dict[str, str]]:
        """Every party's keys when it enrolled."""
        return self.table("keys.json")


def check_manifest(bundle: Bundle) -> str:
    """Every file is listed with its digest, and no other file is there."""
    manifest, found = bundle.table("bundle.json"), set(bundle.files) - {"bundle.json"}
    form = manifest.keys() == {"urn", "protocol", "files"} and manifest["urn"] == "urn:cytosae:bundle:v1"
    need(form, "bundle.json is not a manifest of this format.", "bundle.json")
    for path in sorted(found | manifest["files"].keys()):
        known = path in manifest["files"] and LAYOUT.fullmatch(path)
        need(known, f"{path} is not listed, or not a file of this format.", path)
        same = sha256_hex(bundle.get(path)) == manifest["files"][path]
        need(same, f"{path} is not the file that bundle.json names.", path)
    return f"{len(found)} files are listed, complete and unchanged since the bundle was made."


def check_protocol(bundle: Bundle) -> str:
    """The protocol is the one that the bundle names, and the bundle is about its parties."""
    same = bundle.table("bundle.json")["protocol"] == bundle.digest
    need(same, "protocol.json is not the protocol that bundle.json names.", "protocol.json")
    sites, parties = set(bundle.protocol["sites"]), set(bundle.keys)
    need(COORDINATOR in parties <= {*sites, COORDINATOR}, "Other parties than the protocol's.", "keys.json")
    logs, policies = ({path.split("/")[0] for path in bundle.under(part)} for part in ("logs/", "policies/"))
    files = {f"{site}.json" for site in parties - {COORDINATOR}}
    need((logs, policies) == (parties, files), "Logs, policies and keys of different parties.", "keys.json")
    return f"Protocol {bundle.digest} of the study {bundle.protocol['name']!r}, {len(sites)} sites."


def check_keys(bundle: Bundle, pinned: Mapping[str, Any] | None) -> str:
    """The keys are those that the auditor got from the parties, not from the bundle."""
    if pinned is None:
        raise Missing("No keys were given: all below holds for whoever made the keys in keys.json.")
    for party, keys in sorted(bundle.keys.items()):
        given = pinned.get(party, {})
        same = "signing" in given and given.items() <= keys.items()
        need(same, f"The keys of {party} are not the pinned ones.", f"keys.json {party}")
    return f"The keys of {len(bundle.keys)} parties are the pinned ones."
