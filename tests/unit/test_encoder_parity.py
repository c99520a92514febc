"""Our tokens against a second implementation of DINOv2, written from its definition over the official key names.

Oquab et al. 2023; facebookresearch/dinov2 vision_transformer.py, layers/block.py, attention.py, layer_scale.py,
swiglu_ffn.py: pre-norm blocks with LayerScale, exact GELU or SwiGLU, LayerNorm with eps 1e-6, heads of 64. It runs in
float64, so that the difference is ours alone.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import timm
import torch
from torch import Tensor, nn
from torch.nn import functional

from cytosae_core.encoder import ENCODERS, load_encoder
from cytosae_core.encoder import checkpoints as checkpoints_module
from cytosae_core.encoder import encoder as encoder_module
from cytosae_core.encoder.facts import EncoderFacts

State = dict[str, Tensor]
SWIGLU = {"dinobloom-g": 4096}  # hidden width: 2/3 of 4d, rounded up to a multiple of 8
DEPTH = {"dinobloom-s": 12, "dinobloom-b": 12, "dinobloom-l": 3, "dinobloom-g": 3}
# LayerScale that brings mean |x| to about 8 after the last block but one, where CytoSAE reads.
GAIN = {"dinobloom-s": 1.4, "dinobloom-b": 1.4, "dinobloom-l": 4.0, "dinobloom-g": 4.6}


def random_checkpoint(name: str, folder: Path) -> tuple[Path, State]:
    """An official-looking file with random weights, of a size that makes mean |x| about 8 near the end."""
    d, depth, hidden = ENCODERS[name].d, DEPTH[name], SWIGLU.get(name, 0)
    generator = torch.Generator().manual_seed(d)

    def normal(*shape: int, scale: float) -> Tensor:
        return torch.randn(*shape, generator=generator) * scale

    state = {
        "cls_token": normal(1, 1, d, scale=1.0), "pos_embed": normal(1, 257, d, scale=1.0),
        "mask_token": normal(1, d, scale=1.0), "patch_embed.proj.weight": normal(d, 3, 14, 14, scale=0.05),
        "patch_embed.proj.bias": normal(d, scale=0.1), "norm.weight": normal(d, scale=1.0),
        "norm.bias": normal(d, scale=1.0),
    }  # fmt: skip
    for block in range(depth):
        shapes = {"attn.qkv": (3 * d, d), "attn.proj": (d, d)}
        shapes |= {"mlp.w12": (2 * hidden, d), "mlp.w3": (d, hidden)} if hidden else {}
        shapes |= {} if hidden else {"mlp.fc1": (4 * d, d), "mlp.fc2": (d, 4 * d)}
        for layer, (rows, columns) in shapes.items():
            gain = 1.0 if "w12" in layer else 1.4  # SwiGLU multiplies two of these
            state[f"blocks.{block}.{layer}.weight"] = normal(rows, columns, scale=gain * columns**-0.5)
            state[f"blocks.{block}.{layer}.bias"] = normal(rows, scale=0.1)
        for part in ("norm1", "norm2"):
            state[f"blocks.{block}.{part}.weight"] = 1 + normal(d, scale=0.2)
            state[f"blocks.{block}.{part}.bias"] = normal(d, scale=0.1)
        for part in ("ls1", "ls2"):
            state[f"blocks.{block}.{part}.gamma"] = GAIN[name] * (1 + normal(d, scale=0.2))
    path = folder / f"{name}.pth"
    heads = {"dino_head.mlp.0.weight": torch.zeros(2, 2), "ibot_head.last_layer.weight": torch.zeros(2, 2)}
    torch.save({"teacher": {**{f"backbone.{key}": value for key, value in state.items()}, **heads}}, path)
    return path, state


def independent(state: State, images: Tensor, layers: int) -> list[Tensor]:
    """Residual stream [B, 257, d] float64 before the first block and after each of the first `layers`."""
    w = {key: value.double() for key, value in state.items()}
    patches = functional.unfold(images.double(), kernel_size=14, stride=14).transpose(1, 2)
    x = patches @ w["patch_embed.proj.weight"].flatten(1).T + w["patch_embed.proj.bias"]
    x = torch.cat([w["cls_token"].expand(len(x), -1, -1), x], dim=1) + w["pos_embed"]
    stream = [x]
    for block in range(layers):
        part = {key.split(".", 2)[2]: value for key, value in w.items() if key.startswith(f"blocks.{block}.")}
        x = x + part["ls1.gamma"] * attention(part, norm(part, "norm1", x))
        x = x + part["ls2.gamma"] * feed_forward(part, norm(part, "norm2", x))
        stream.append(x)
    return stream


def norm(part: State, name: str, x: Tensor) -> Tensor:
    centred = x - x.mean(dim=-1, keepdim=True)
    spread = (centred.square().mean(dim=-1, keepdim=True) + 1e-6).sqrt()
    return centred / spread * part[f"{name}.weight"] + part[f"{name}.bias"]


def linear(part: State, name: str, x: Tensor) -> Tensor:
    return x @ part[f"{name}.weight"].T + part[f"{name}.bias"]


def attention(part: State, x: Tensor) -> Tensor:
    batch, tokens, d = x.shape
    split = linear(part, "attn.qkv", x).reshape(batch, tokens, 3, d // 64, 64).permute(2, 0, 3, 1, 4)
    query, key, value = split
    weights = torch.softmax(query @ key.transpose(-1, -2) / 8, dim=-1)  # sqrt(64) = 8
    return linear(part, "attn.proj", (weights @ value).transpose(1, 2).reshape(batch, tokens, d))


def feed_forward(part: State, x: Tensor) -> Tensor:
    if "mlp.w12.weight" in part:
        gate, value = linear(part, "mlp.w12", x).chunk(2, dim=-1)
        return linear(part, "mlp.w3", gate * torch.sigmoid(gate) * value)
    hidden = linear(part, "mlp.fc1", x)
    return linear(part, "mlp.fc2", hidden * 0.5 * (1 + torch.erf(hidden / 2**0.5)))


def shallow(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """The same encoder with fewer blocks: whole L and G would take gigabytes."""
    facts = EncoderFacts(ENCODERS[name].timm_name, ENCODERS[name].d, DEPTH[name])
    monkeypatch.setitem(ENCODERS, name, facts)

    def empty(facts: EncoderFacts) -> nn.Module:
        with torch.device("meta"):
            return timm.create_model(facts.timm_name, img_size=224, num_classes=0, depth=facts.depth)

    for module in (checkpoints_module, encoder_module):
        monkeypatch.setattr(module, "empty_model", empty)


@pytest.mark.parametrize("name", DEPTH)
def test_tokens_equal_an_independent_dinov2(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if DEPTH[name] != ENCODERS[name].depth:
        shallow(monkeypatch, name)
    path, state = random_checkpoint(name, tmp_path)
    images = torch.randn(1, 3, 224, 224)
    encoder = load_encoder(name, path, "cpu")
    assert encoder.layer == DEPTH[name] - 1  # after block -2, before the last block and the final norm
    stream = independent(state, images, DEPTH[name])
    found = encoder.encode(images).double()
    path.unlink()  # hundreds of megabytes
    size = float(stream[encoder.layer].abs().mean())
    difference = float((found - stream[encoder.layer]).abs().max())
    print(f"{name}: mean |x| {size:.2f}, largest difference {difference:.1e}")
    assert 6 < size < 10 and difference < 1e-4
    # Controls: one block more or less, or LayerScale left out, is far outside.
    for layer in (encoder.layer - 1, encoder.layer + 1):
        assert float((found - stream[layer]).abs().max()) > 1
    bare = independent({**state, "blocks.0.ls1.gamma": torch.ones(1)}, images, 1)
    assert float((bare[1] - stream[1]).abs().max()) > 1
