"""The name of a dictionary: one digest that requests, log entries, checkpoints and the report use."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from numpy.typing import NDArray

from .canonical import digest_of, sha256_hex
from .tensors import pack_tensors

MODEL_TENSORS = ("dictionary", "W_dec", "W_enc", "b_dec", "b_enc")


def dictionary_digest(tensors: Mapping[str, NDArray[Any]]) -> str:
    """SHA-256 of the safetensors bytes of the model's tensors among `tensors`; empty when there is none."""
    model = {name: tensors[name] for name in MODEL_TENSORS if name in tensors}
    return sha256_hex(pack_tensors(model)) if model else ""


def job_of(kind: str, number: int, body_sha256: str, params: Mapping[str, Any]) -> str:
    """What is asked, as one digest: the same for every repeat of a request, whatever its nonce."""
    return digest_of({"kind": kind, "round": number, "body_sha256": body_sha256, "params": dict(params)})
