"""One encoder: a frozen vision transformer, cut after one block, with its preprocessing and its digest."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from ..canonical import digest_of
from ..errors import SetupError
from . import preprocess
from .weights import ENCODERS, check_variant, load_state, weights_digest, weights_file


@dataclass(frozen=True)
class EncoderSpec:
    """What a study says about its encoder. `layer` counts blocks from 1."""

    name: str = "dinov2-s-demo"
    layer: int = 6
    steps: tuple[str, ...] = preprocess.STEPS
    weights: Path | None = None


def default_layer(depth: int, kind: str) -> int:
    """`validate`: the last block but one, CytoSAE's. `train`: the middle one, whose concepts carry between
    hospitals (portability section 2)."""
    return depth - 1 if kind == "validate" else depth // 2


def load_encoder(
    name: str,
    weights: Path | None = None,
    device: str = "auto",
    *,
    layer: int | None = None,
    steps: tuple[str, ...] = (),
) -> Encoder:
    """An encoder by name; its weights are read on first use, its digest at once.

    Args:
        name: one of `ENCODERS`.
        weights: official DinoBloom `.pth` or own `.safetensors`; not needed for dinov2-s-demo.
        device: `auto` (cuda when there is one) or a torch device.
        layer: block after which tokens are taken, counted from 1; CytoSAE's (the last but one) when none.
        steps: preprocessing steps, each at most once, of `preprocess.STEPS`.

    Raises:
        SetupError: unknown name, step, layer or device; weights that are missing or not the pinned ones.
    """
    path = weights_file(name, weights)
    depth = ENCODERS[name].depth
    layer = default_layer(depth, "validate") if layer is None else layer
    if not 1 <= layer <= depth:
        raise SetupError(f"Expected 1 <= layer <= {depth}, got layer={layer}.")
    if len(set(steps)) != len(steps) or not set(steps) <= set(preprocess.STEPS):
        raise SetupError(f"Expected steps of {preprocess.STEPS}, each at most once, got {list(steps)}.")
    return Encoder(name, path, layer, steps, _device(device))


def _device(device: str) -> torch.device:
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        found = torch.device(device)
        torch.empty(0, device=found)
    except (RuntimeError, AssertionError) as error:  # torch raises either, by device
        raise SetupError(
            f"Expected a torch device of this machine, got device={device!r}.", hint="Try auto or cpu."
        ) from error
    return found


class Encoder:
    """See `load_encoder`. Attributes: name, d, depth, layer, steps, digest (64 hex digits)."""

    def __init__(
        self, name: str, path: Path, layer: int, steps: tuple[str, ...], device: torch.device
    ) -> None:
        facts = ENCODERS[name]
        self.name, self.d, self.depth, self.layer, self.steps = (
            name,
            facts.d,
            facts.depth,
            layer,
            tuple(steps),
        )
        self._path, self._device = path, device
        self._weights_sha256 = weights_digest(name, path)
        self.digest = digest_of(self._description())
        self._model: nn.Module | None = None

    def _description(self) -> dict[str, Any]:
        return {
            "urn": "urn:cytosae:encoder:v1",
            "name": self.name,
            "weights_sha256": self._weights_sha256,
            "layer": self.layer,
            "input": "RGB, PIL bilinear 224x224, ImageNet mean/std",
            "steps": sorted(self.steps),
            "reference_mean": preprocess.REFERENCE_MEAN.tolist() if "reinhard" in self.steps else [],
            "reference_std": preprocess.REFERENCE_STD.tolist() if "reinhard" in self.steps else [],
        }

    def pixels(self, image: Image.Image) -> NDArray[np.uint8]:
        """The image as the encoder sees it, [224, 224, 3], colours matched if asked."""
        squashed = preprocess.squash(image)
        return preprocess.match_colours(squashed) if "reinhard" in self.steps else squashed

    def preprocess(self, image: Image.Image) -> Tensor:
        """float32 [3, 224, 224]."""
        return preprocess.to_input(self.pixels(image))

    def mask(self, image: Image.Image) -> Tensor:
        """bool [257]: tokens of the stained cell, or all patches without the step cell-mask; CLS false."""
        return torch.from_numpy(self.mask_of(self.pixels(image)))

    def mask_of(self, pixels: NDArray[np.uint8]) -> NDArray[np.bool_]:
        """The mask of an image that was preprocessed before."""
        return preprocess.cell_mask(pixels) if "cell-mask" in self.steps else preprocess.all_patches()

    @torch.inference_mode()
    def encode(self, images: Tensor) -> Tensor:
        """[B, 3, 224, 224] -> [B, 257, d] float32: the residual stream after block `layer`, CLS first.

        The forward pass stops there; no final norm (CytoSAE hooked_vit.py:45-53).

        Raises:
            SetupError: images of another shape; weights that are damaged or of another model.
        """
        if images.ndim != 4 or tuple(images.shape[1:]) != (3, preprocess.SIZE, preprocess.SIZE):
            raise SetupError(f"Expected images [B, 3, 224, 224], got {list(images.shape)}.")
        model: Any = self._loaded()
        # TF32 would round the patch embedding to 10 bits on some cards: a difference between sites.
        with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
            patches, prefix = model.forward_intermediates(
                images.to(self._device),
                indices=[self.layer - 1],
                norm=False,
                stop_early=True,
                output_fmt="NLC",
                return_prefix_tokens=True,
                intermediates_only=True,
            )[0]
        tokens: Tensor = torch.cat([prefix, patches], dim=1)
        return tokens.float().cpu()

    def canary(self) -> NDArray[np.float32]:
        """Mean token of each of the 8 golden cells, [8, d]: what sites compare before round 1."""
        from ..phantom import golden_images

        batch = torch.stack([self.preprocess(image) for image in golden_images()])
        return np.asarray(self.encode(batch).mean(dim=1).numpy(), dtype=np.float32)

    def _loaded(self) -> nn.Module:
        if self._model is None:
            import timm

            state = load_state(self.name, self._path, self._weights_sha256)
            check_variant(self.name, state)
            with torch.device(
                "meta"
            ):  # no memory and no random numbers for weights that are replaced at once
                model: nn.Module = timm.create_model(
                    ENCODERS[self.name].timm_name, pretrained=False, img_size=preprocess.SIZE, num_classes=0
                )
            try:
                model.load_state_dict(state, strict=True, assign=True)
            except RuntimeError as error:
                raise SetupError(
                    f"Expected the weights of encoder={self.name}, the file holds another model.",
                    hint="Check the variant (S, B, L, G).",
                ) from error
            self._model = model.float().eval().requires_grad_(False).to(self._device)
        return self._model
