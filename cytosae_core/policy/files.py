"""`site-policy.yaml`: read strictly, write with comments."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import SetupError
from ..strict_yaml import parse_strict
from ..tensors import write_atomic
from .keys import KEYS, NAME, URN, Key, check_key
from .site_policy import SitePolicy, policy_from_dict, with_line

MAX_BYTES = 64 * 1024
_REQUIRED = ("name", "site", "valid.from", "valid.until", "profile", "approval.mode", "approval.officers")
_TABLES = {
    "valid": "When it holds. Outside these days nothing leaves.",
    "limits": "Budgets over all studies since valid.from, counted on disk before anything leaves.",
    "privacy": "Only for profile dp.",
    "disclosure": "Disclosure control. A unit is a patient; where the data names none: a slide, else a source file.",
    "gate": "What stops an update or a dictionary. Decimals are text.",
    "release": "What may leave, by name. Everything else is refused, also what a newer version would add.",
    "approval": "Who looks before something leaves.",
}
_PLAIN = re.compile(r"[a-z][a-z_]*\Z")


def load_policy(path: Path) -> SitePolicy:
    """The policy in a file.

    Raises:
        SetupError: code `policy` or `setup`, with file and line, and reason YAML_TAG, YAML_ALIAS, YAML_DUP,
            YAML_TYPE, YAML_SIZE, YAML_SYNTAX, POLICY or POLICY_TIME.
    """
    try:
        with path.open("rb") as stream:
            data = stream.read(MAX_BYTES + 1)
    except OSError as error:
        hint = f"cytosae site policy new {path.name} --site NAME"
        raise SetupError(f"Expected a policy at {path}.", hint=hint) from error
    return parse_policy(data, path.name)


def parse_policy(data: bytes, name: str = "site-policy.yaml") -> SitePolicy:
    """As `load_policy`, from bytes."""
    lines: Mapping[str, int] = {}
    try:
        if len(data) > MAX_BYTES:
            raise SetupError(f"Expected at most max_bytes={MAX_BYTES}.", reason="YAML_SIZE")
        document = parse_strict(data, name)
        lines = document.lines
        _check_keys(document.values, lines)
        policy = policy_from_dict(document.values, lines)
        _check_file(policy)
    except SetupError as error:
        raise with_line(error, name, lines) from error
    return policy


def _check_keys(values: Mapping[str, Any], lines: Mapping[str, int]) -> None:
    for key in KEYS:
        if key.path in _REQUIRED and key.path not in lines:
            raise SetupError(f"Expected the key {key.path}.", hint="See docs/policy.md.", reason="POLICY")
    if "disclosure_control" in values:
        raise SetupError(
            "Expected no disclosure_control: a file cannot switch it off.",
            hint="Published images in a simulation: --policy public-data.",
            reason="POLICY",
        )


def _check_file(policy: SitePolicy) -> None:
    """The bounds that a file must keep and code may not."""
    for key in KEYS:
        value = getattr(policy, key.attribute)
        if not (key.path.startswith("privacy.") and value == ""):
            check_key(key, value, policy.profile)


def write_policy(path: Path, policy: SitePolicy) -> None:
    """Write a policy for people: commented, in the table's order. `load_policy` gives the same digest back."""
    text = render_policy(policy)
    parse_policy(text.encode(), path.name)
    write_atomic(path, text.encode())


def render_policy(policy: SitePolicy) -> str:
    """The text of `write_policy`."""
    out = [
        f"# What may leave {policy.site or 'this hospital'}, with what limits. The hospital holds this file; a study",
        "# can only ask for less. A change needs a new signature: cytosae site policy sign FILE --key officer.key",
        "# In plain words: cytosae site policy explain FILE",
        f"urn: {URN}",
    ]
    table = ""
    for key in KEYS:
        value = getattr(policy, key.attribute)
        if key.path.startswith("privacy.") and value == "":
            continue
        first, _, last = key.path.rpartition(".")
        if first != table:
            table = first
            out += ["", f"# {_TABLES[first]}", f"{first}:"] if first else [""]
        out += _entry(key, last, value, "  " if first else "")
    return "\n".join(out) + "\n"


def _entry(key: Key, name: str, value: object, indent: str) -> list[str]:
    why = f"  # {key.why}" if key.why else ""
    if isinstance(value, tuple):
        if not value:
            return [f"{indent}{name}: []{why}"]
        return [f"{indent}{name}:{why}", *(f"{indent}  - {_text(item)}" for item in value)]
    return [f"{indent}{name}: {_text(value)}{why}"]


def _text(value: object) -> str:
    if isinstance(value, int):
        return str(value)
    return str(value) if _PLAIN.match(str(value)) and NAME.fullmatch(str(value)) else f'"{value}"'
