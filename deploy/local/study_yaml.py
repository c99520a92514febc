"""study.yaml with comments: written once, whole, and only if it reads back as the same protocol."""

from __future__ import annotations

import json
import os
import re
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from cytosae_core.config import StudyConfig
from cytosae_core.errors import StudyError
from cytosae_core.plan import ENDPOINTS
from cytosae_server.study import read_protocol

_PLAIN = re.compile(r"[A-Za-z][A-Za-z0-9_-]*\Z")
_WORDS = frozenset({"y", "n", "yes", "no", "on", "off", "true", "false", "null", "none", "nan", "inf"})
HEAD = """\
# The protocol of one study. Everything above `local` is what the sites agree on; its SHA-256 is in every message.
# See it with `cytosae study show`, as a document with `cytosae study plan`. Changing it makes another study.
# docs/study.md explains every line.
"""
COMMENTS = {
    "kind": "train a dictionary together, or validate a finished one",
    "profile": "what may leave: evaluate_only (measurements), masked (also changes of dictionary rows), dp (noise)",
    "simulation": "true: all sites are folders on this machine; reports are watermarked",
    "min_units": "smallest number of patients behind any number that leaves",
    "sites": "coded names",
    "encoder": "turns images into tokens; digest empty: whatever the sites agree on",
    "dictionary": "n concepts, k active per patch; digest of the start file",
    "training": "used when kind is train",
    "rounds": "a step counts when quorum sites answer within the deadline",
    "statistics": "classes and attributes that concepts are tested for; how much is held out",
    "plan": "agreed before the first number",
    "privacy": "profile dp: what every patient is promised; all zero where another profile applies",
}
PLAN_COMMENTS = {
    "endpoints": "the numbers that decide; the primary one makes the verdict",
    "selection": "concepts: chosen anew for every site left out (loso), or listed",
    "support": "smallest number per class and site for averages over classes",
    "min_sites": "below this nothing is called generalising",
    "fdr": "false discovery rate over concepts and classes",
    "stages": "each opens when the one before meets its criteria: cytosae study advance",
}


def write_new(out: Path, study: StudyConfig, local: Mapping[str, Any] | None) -> Path:
    """Write OUT/study.yaml; returns its path.

    Raises:
        StudyError: there is one already (it is never replaced), or it would not read back as `study`.
    """
    path = out / "study.yaml"
    try:
        out.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=".study-", suffix=".yaml", dir=out)
    except OSError as error:
        raise StudyError(
            f"Expected a folder that can be written at {out}.", hint="Choose another."
        ) from error
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as stream:
            stream.write(commented(study, local))
            stream.flush()
            os.fsync(stream.fileno())
        if read_protocol(Path(name)) != study:
            raise StudyError(
                "Expected a protocol that reads back as it was written.", hint="Use plain names."
            )
        os.chmod(name, 0o644)
        os.link(name, path)  # fails when it exists, unlike a rename
    except FileExistsError as error:
        raise StudyError(f"Expected no study.yaml in {out} yet.", hint="Choose another folder.") from error
    finally:
        os.unlink(name)
    return path


def commented(study: StudyConfig, local: Mapping[str, Any] | None) -> str:
    """The protocol as YAML with a comment beside every part."""
    values = study.to_dict()
    left_out = {"stage", "part_of"} | (set() if study.profile == "dp" else {"privacy"})
    order = ["urn", *(name for name in study.__dataclass_fields__ if name not in left_out)]
    lines = [HEAD.rstrip()]
    for name in order:
        lines += _entry(name, values[name], COMMENTS.get(name, ""))
    if local:
        lines += ["", "# This machine only; not part of the protocol.", *_table("local", local)]
    return "\n".join([*lines, ""])


def _entry(name: str, value: Any, comment: str) -> list[str]:
    if name == "plan":
        return ["", f"# {comment}", *_plan(value)]
    if isinstance(value, dict):
        return ["", f"# {comment}", *_table(name, value)]
    return [f"{name}: {_inline(value)}{f'  # {comment}' if comment else ''}"]


def _table(name: str, values: Mapping[str, Any]) -> list[str]:
    return [f"{name}:", *(f"  {key}: {_inline(value)}" for key, value in values.items())]


def _plan(values: Mapping[str, Any]) -> Iterator[str]:
    yield "plan:"
    for key in (
        "hypothesis",
        "endpoints",
        "selection",
        "concepts",
        "support",
        "min_sites",
        "fdr",
        "multiplicity",
    ):
        comment = f"  # {PLAN_COMMENTS[key]}" if key in PLAN_COMMENTS else ""
        if key != "endpoints":
            yield f"  {key}: {_inline(values[key])}{comment}"
            continue
        yield f"  {key}:{comment}"
        for item in values[key]:
            yield f"    - {_inline(item)}  # {ENDPOINTS[item['name']]}"
    if not values["stages"]:
        yield f"  stages: []  # {PLAN_COMMENTS['stages']}"
        return
    yield f"  stages:  # {PLAN_COMMENTS['stages']}"
    for stage in values["stages"]:
        yield f"    - name: {stage['name']}"
        yield f"      sites: {_inline(stage['sites'])}{'' if stage['sites'] else '  # all'}"
        yield f"      criteria: {_inline(stage['criteria'])}"


def _inline(value: Any) -> str:
    """A value on one line, in YAML that can be read in one way only."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{_inline(key)}: {_inline(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_inline, value)) + "]"
    if isinstance(value, str):
        plain = _PLAIN.match(value) and value.lower() not in _WORDS
        return value if plain else json.dumps(value, ensure_ascii=False)
    if isinstance(value, float):
        return f"{value:.12f}".rstrip("0") + ("0" if value == int(value) else "")
    return json.dumps(value)
