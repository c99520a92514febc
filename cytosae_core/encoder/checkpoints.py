"""Weights files -> a timm state dict, strictly: every name, every shape, every number. Nothing runs code.

DinoBloom's official layout is `{"teacher": {"backbone.<key>": tensor}}` with 257 positions; heads and `mask_token`
are dropped (DinoBloom train.py:134-143, CytoSAE tasks/utils.py:104-112). timm's own files and ours are flat.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_safetensors
from torch import Tensor

from ..errors import SetupError
from .facts import ENCODERS, POSITIONS, TIMM, empty_model, facts_of

State = dict[str, Tensor]
HEADS = ("dino_head", "ibot_head")
AGAIN = "Download or copy it again."
# Keys that say which other model a file holds: (pattern, what it is, what to do).
FOREIGN = (
    (r"^blocks\.\d+\.\d+\.", "chunked blocks (blocks.0.3.)", "Export it with block_chunks=0."),
    (r"^(register_tokens|reg_token)$", "a model with register tokens", "Take the one without registers."),
    (r"^(student|teacher|module|model)\.", "a training state", "Take the published backbone."),
)


def read_safetensors(path: Path) -> State:
    """All tensors of a safetensors file; SetupError when it is damaged."""
    try:
        return dict(load_safetensors(path.read_bytes()))
    except (SafetensorError, OSError, ValueError) as error:
        raise SetupError("Expected a readable safetensors file of weights.", hint=AGAIN) from error


def read_torch(path: Path) -> dict[str, Any]:
    """A .pth file read without running code; SetupError when it is damaged, empty or holds other things."""
    try:
        content: Any = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # the restricted unpickler fails in many ways on bytes that are no checkpoint
        raise SetupError("Expected a readable checkpoint.", hint=AGAIN) from error
    if not isinstance(content, dict):
        raise SetupError(f"Expected a table in the checkpoint, got type={type(content).__name__}.")
    return content


def dinobloom_state(path: Path) -> State:
    """The backbone of an official DinoBloom checkpoint under timm's names."""
    teacher = read_torch(path).get("teacher")
    if not isinstance(teacher, dict):
        raise SetupError(
            'Expected a DinoBloom checkpoint with the key "teacher".',
            hint="Is it another model? Then use --encoder timm/<model name>.",
        )
    state = {}
    for key, value in teacher.items():
        if any(head in str(key) for head in HEADS) or str(key).endswith("mask_token"):
            continue
        name = str(key).removeprefix("backbone.")
        # DinoBloom-G has SwiGLU blocks, whose two matrices timm calls fc1 and fc2.
        state[name.replace(".mlp.w12.", ".mlp.fc1.").replace(".mlp.w3.", ".mlp.fc2.")] = value
    if not state:
        raise SetupError("Expected a backbone in the checkpoint, it holds only heads.", hint=AGAIN)
    return state


def timm_state(name: str, path: Path) -> State:
    """A flat state dict for a timm model, from .safetensors or .pth; a table of other size is resampled by timm."""
    from timm.models.vision_transformer import checkpoint_filter_fn

    whole: dict[str, Any] = (
        dict(read_safetensors(path)) if path.suffix == ".safetensors" else read_torch(path)
    )
    content = next((whole[key] for key in ("state_dict", "model") if key in whole), whole)
    _only_tensors(content)
    flat = {key: value for key, value in content.items() if not key.startswith("head.")}
    model = empty_model(facts_of(name))
    _refuse_foreign(name, flat, set(model.state_dict()))
    try:
        return dict(checkpoint_filter_fn(flat, model))
    except (RuntimeError, KeyError, AttributeError, TypeError) as error:
        raise SetupError(f"Expected the weights of encoder={name}, the file holds another model.") from error


def check_state(name: str, state: State) -> None:
    """Refuse a state that is not exactly this encoder's, and say what it is instead.

    Raises:
        SetupError: another variant, missing, surplus or misshapen tensors, numbers that are not finite.
    """
    _only_tensors(state)
    wanted = {key: tuple(value.shape) for key, value in empty_model(facts_of(name)).state_dict().items()}
    _refuse_foreign(name, state, set(wanted))
    _check_positions(name, state, wanted["pos_embed"])
    _same_names(name, set(wanted), set(state))
    for key, value in sorted(state.items()):
        if tuple(value.shape) != wanted[key]:
            raise SetupError(
                f"Expected the weights of encoder={name}, the file holds another model: "
                f"{key}={list(value.shape)}, not {list(wanted[key])}."
            )
        if not value.is_floating_point() or not bool(torch.isfinite(value).all()):
            raise SetupError(f"Expected finite numbers in the weights, {key} has others.", hint=AGAIN)


def variant_of(state: State) -> str:
    """The DinoBloom variant that has this width and number of blocks; SetupError when there is none."""
    _only_tensors(state)
    _refuse_foreign("dinobloom", state, set())
    width = int(state["pos_embed"].shape[-1]) if state.get("pos_embed", torch.empty(0)).ndim == 3 else 0
    blocks = {key.split(".")[1] for key in state if key.startswith("blocks.")}
    for name, facts in ENCODERS.items():
        if name.startswith("dinobloom") and (facts.d, facts.depth) == (width, len(blocks)):
            return name
    raise SetupError(
        f"Expected a DinoBloom model, the file has d={width} and blocks={len(blocks)}.",
        hint="Name the model: --encoder timm/<model name>.",
    )


def _only_tensors(state: Any) -> None:
    if not isinstance(state, dict) or not state:
        raise SetupError("Expected a table of tensors in the weights file.", hint=AGAIN)
    if not all(isinstance(key, str) and isinstance(value, Tensor) for key, value in state.items()):
        raise SetupError("Expected only tensors in the weights file.", hint=AGAIN)


def _refuse_foreign(name: str, state: State, own: set[str]) -> None:
    """Keys of another kind of model; `own` are the names that this encoder has."""
    for pattern, found, hint in FOREIGN:
        if any(re.match(pattern, key) for key in set(state) - own):
            raise SetupError(f"Expected the weights of encoder={name}, the file holds {found}.", hint=hint)


def _check_positions(name: str, state: State, expected: tuple[int, ...]) -> None:
    """The width or the position table tells most mistakes."""
    shape = tuple(state.get("pos_embed", torch.empty(0)).shape)
    if shape == expected:
        return
    fitting = [other for other, facts in ENCODERS.items() if shape == (1, POSITIONS, facts.d)]
    hint = "DinoBloom's table is for 224 x 224; vanilla DINOv2 files have 1370 positions."
    if name.startswith(TIMM):
        hint = "Check the model's name."
    raise SetupError(
        f"Expected the weights of encoder={name}, the file holds another model: "
        f"position table {list(shape)}, not {list(expected)}.",
        hint=f"It fits {' or '.join(fitting)}." if fitting else hint,
    )


def _same_names(name: str, wanted: set[str], found: set[str]) -> None:
    if wanted == found:
        return
    missing, surplus = sorted(wanted - found), sorted(found - wanted)
    raise SetupError(
        f"Expected the weights of encoder={name}, the file holds another model: "
        f"missing={missing[:3]} ({len(missing)}), surplus={surplus[:3]} ({len(surplus)}).",
        hint="Check the variant (S, B, L, G).",
    )
