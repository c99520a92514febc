"""A bundle's files: layout, manifest, protocol and keys, before anything in them is believed."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from ...canonical import canonical_json, parse_json, sha256_hex
from ..statement import COORDINATOR, PARTY
from .verdict import Broken, Missing

MAX_JSON = 1 << 28
LAYOUT = re.compile(
    rf"protocol\.json|keys\.json|report\.json|report\.html|logs/{PARTY.pattern}/(checkpoint|tile/[0-9a-z/.]+)"
    rf"|payloads/[0-9a-f]{{64}}\.reply|policies/{PARTY.pattern}\.json|dictionaries/[0-9a-f]{{64}}\.safetensors"
)


class Bundle:
    """Files by path. What is asked for and not there, or not readable, is a broken link."""

    def __init__(self, files: Mapping[str, bytes]) -> None:
        self.files = files

    def get(self, path: str) -> bytes:
        """A file's bytes."""
        if path not in self.files:
            raise Broken(f"{path} is missing.", path)
        return self.files[path]

    def table(self, path: str, *, canonical: bool = True) -> dict[str, Any]:
        """A JSON object, written canonically."""
        data = self.get(path)
        value = parse_json(data, max_bytes=MAX_JSON)
        if not isinstance(value, dict) or (canonical and canonical_json(value) != data):
            raise Broken(f"{path} is not one canonical JSON object.", path)
        return value

    def under(self, folder: str) -> dict[str, bytes]:
        """Files below a folder, by the rest of their path."""
        return {path[len(folder) :]: data for path, data in self.files.items() if path.startswith(folder)}

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
    manifest = bundle.table("bundle.json")
    if manifest.keys() != {"urn", "protocol", "files"} or manifest["urn"] != "urn:cytosae:bundle:v1":
        raise Broken("bundle.json is not a manifest of this format.", "bundle.json")
    listed, found = manifest["files"], set(bundle.files) - {"bundle.json"}
    for path in sorted(set(listed) | found):
        if path not in listed or not LAYOUT.fullmatch(path):
            raise Broken(f"{path} is not part of the bundle: not listed, or not a file of this format.", path)
        if sha256_hex(bundle.get(path)) != listed[path]:
            raise Broken(f"{path} is not the file that bundle.json names.", path)
    return f"{len(found)} files are listed, complete and unchanged since the bundle was made."


def check_protocol(bundle: Bundle) -> str:
    """The protocol is the one that the bundle names."""
    if bundle.table("bundle.json")["protocol"] != bundle.digest:
        raise Broken("protocol.json is not the protocol that bundle.json names.", "protocol.json")
    names = {*bundle.protocol["sites"], COORDINATOR}
    if COORDINATOR not in bundle.keys or not set(bundle.keys) <= names:
        raise Broken("keys.json names other parties than the protocol.", "keys.json")
    logs, policies = ({path.split("/")[0] for path in bundle.under(part)} for part in ("logs/", "policies/"))
    if logs != set(bundle.keys) or policies != {f"{name}.json" for name in logs - {COORDINATOR}}:
        raise Broken("Logs, policies and keys are not of the same parties.", "keys.json")
    return f"Protocol {bundle.digest} of the study {bundle.protocol['name']!r}, {len(names) - 1} sites."


def check_keys(bundle: Bundle, pinned: Mapping[str, Any] | None) -> str:
    """The keys are those that the auditor got from the parties, not from the bundle."""
    if pinned is None:
        raise Missing("No keys were given: everything below holds for whoever made the keys in keys.json.")
    for party in sorted({*bundle.keys, *pinned}):
        if bundle.keys.get(party) != pinned.get(party):
            raise Broken(f"The keys of {party} are not the pinned ones.", f"keys.json {party}")
    return f"The keys of {len(pinned)} parties are the pinned ones."
