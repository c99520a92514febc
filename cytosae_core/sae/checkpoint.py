"""Dictionaries on disk: `NAME.safetensors` plus `NAME.json` (model, k, digests, scale). numpy only."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..canonical import canonical_json, parse_json, sha256_file, sha256_hex
from ..errors import StudyError
from ..tensors import load_tensors, pack_tensors, write_atomic

URN = "urn:cytosae:dictionary:v1"


@dataclass(frozen=True)
class Checkpoint:
    """Named float32 tensors, the facts beside them and the SHA-256 of the tensor file."""

    tensors: dict[str, NDArray[Any]]
    facts: dict[str, Any]
    sha256: str


def save_checkpoint(path: Path, tensors: Mapping[str, NDArray[Any]], facts: Mapping[str, Any]) -> str:
    """Write both files atomically (tensors first); returns the SHA-256 of the tensor file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    blob = pack_tensors(tensors)
    digest = sha256_hex(blob)
    write_atomic(path.with_suffix(".safetensors"), blob)
    write_atomic(path.with_suffix(".json"), canonical_json({**facts, "urn": URN, "sha256": digest}))
    return digest


def load_checkpoint(path: Path, *, sha256: str = "") -> Checkpoint:
    """Read and verify a checkpoint: its name with or without suffix, or a folder that holds `dictionary`.

    Raises:
        StudyError: missing, altered (digest), not finite, or not the digest that was asked for.
    """
    path = path / "dictionary" if path.is_dir() else path
    try:
        digest = sha256_file(path.with_suffix(".safetensors"))
        facts = parse_json(path.with_suffix(".json").read_bytes())
    except OSError as error:
        raise StudyError(f"Expected a dictionary at {path}.", hint="Check the path.") from error
    if not isinstance(facts, dict) or facts.get("urn") != URN or facts.get("sha256") != digest:
        raise StudyError("Expected a dictionary whose JSON names its tensors.", hint="Copy both files again.")
    if sha256 and sha256 != digest:
        raise StudyError(f"Expected dictionary sha256={sha256}, got {digest}.")
    tensors = load_tensors(path.with_suffix(".safetensors"))
    if not all(np.isfinite(values).all() for values in tensors.values()):
        raise StudyError("Expected finite numbers in a dictionary.")
    return Checkpoint(tensors, facts, digest)
