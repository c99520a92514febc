"""One encoder: a frozen vision transformer, cut after one block, with its preprocessing and its digest."""

from __future__ import annotations

import logging
import sys
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
from .facts import IMAGENET_MEAN, IMAGENET_STD, EncoderFacts, empty_model, facts_of
from .precision import arithmetic, check_precision
from .weights import load_state, weights_digest, weights_file

LOG = logging.getLogger("cytosae.encoder")


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
    precision: str = "fp32",
    compile: bool = False,
) -> Encoder:
    """An encoder by name; its weights are read on first use, its digest at once.

    Args:
        name: one of `ENCODERS`, or `timm/<model name>` (see `facts`).
        weights: official DinoBloom `.pth` or own `.safetensors`; not needed for dinov2-s-demo.
        device: `auto` (cuda when there is one) or a torch device.
        layer: block after which tokens are taken, counted from 1; CytoSAE's (the last but one) when none.
        steps: preprocessing steps, each at most once, of `preprocess.STEPS`.
        precision: one of `precision.PRECISIONS`; anything but fp32 changes the digest.
        compile: fuse the blocks with torch.compile; without a compiler it says so and runs as usual.

    Raises:
        SetupError: unknown name, step, layer, precision or device; weights missing or not the pinned ones.
    """
    path = weights_file(name, weights)
    depth = facts_of(name).depth
    layer = default_layer(depth, "validate") if layer is None else layer
    if not 1 <= layer <= depth:
        raise SetupError(f"Expected 1 <= layer <= {depth}, got layer={layer}.")
    if len(set(steps)) != len(steps) or not set(steps) <= set(preprocess.STEPS):
        raise SetupError(f"Expected steps of {preprocess.STEPS}, each at most once, got {list(steps)}.")
    return Encoder(name, path, layer, steps, _device(device), check_precision(precision), compile)


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
    """See `load_encoder`.

    Attributes: name, d, depth, layer, steps, precision, digest (64 hex digits), fp32_digest (the same encoder's
    in fp32: what stored reference values belong to).
    """

    def __init__(
        self,
        name: str,
        path: Path,
        layer: int,
        steps: tuple[str, ...],
        device: torch.device,
        precision: str = "fp32",
        compile: bool = False,
    ) -> None:
        self._facts: EncoderFacts = facts_of(name)
        self.name, self.layer, self.steps, self.precision = name, layer, tuple(steps), precision
        self.d, self.depth, self.size = self._facts.d, self._facts.depth, self._facts.size
        self._path, self._device, self._compile = path, device, compile
        self._weights_sha256 = weights_digest(name, path)
        self.digest = digest_of(self._description(precision))
        self.fp32_digest = digest_of(self._description("fp32"))
        self._model: nn.Module | None = None
        self._at_once = sys.maxsize  # images; less when the GPU's memory did not suffice

    def _description(self, precision: str) -> dict[str, Any]:
        """What decides the tokens, as the digest covers it."""
        values: dict[str, Any] = {
            "urn": "urn:cytosae:encoder:v1",
            "name": self.name,
            "weights_sha256": self._weights_sha256,
            "layer": self.layer,
            "input": f"RGB, PIL bilinear {self.size}x{self.size}, ImageNet mean/std",
            "steps": sorted(self.steps),
            "reference_mean": preprocess.REFERENCE_MEAN.tolist() if "reinhard" in self.steps else [],
            "reference_std": preprocess.REFERENCE_STD.tolist() if "reinhard" in self.steps else [],
        }
        if precision != "fp32":
            values["precision"] = precision
        if self._own_colours():
            values["colours"] = [list(self._facts.mean), list(self._facts.std)]
        return values

    def pixels(self, image: Image.Image) -> NDArray[np.uint8]:
        """The image as the encoder sees it, [size, size, 3], colours matched if asked."""
        squashed = preprocess.squash(image, self.size)
        return preprocess.match_colours(squashed) if "reinhard" in self.steps else squashed

    def preprocess(self, image: Image.Image) -> Tensor:
        """float32 [3, size, size]."""
        return preprocess.to_input(self.pixels(image))

    def mask(self, image: Image.Image) -> Tensor:
        """bool [257]: tokens of the stained cell, or all patches without the step cell-mask; CLS false."""
        return torch.from_numpy(self.mask_of(self.pixels(image)))

    def mask_of(self, pixels: NDArray[np.uint8]) -> NDArray[np.bool_]:
        """The mask of an image that was preprocessed before."""
        return preprocess.cell_mask(pixels) if "cell-mask" in self.steps else preprocess.all_patches()

    @torch.inference_mode()
    def encode(self, images: Tensor) -> Tensor:
        """[B, 3, size, size] -> [B, 257, d] float32: the residual stream after block `layer`, CLS first.

        The forward pass stops there; no final norm (CytoSAE hooked_vit.py:45-53).

        Raises:
            SetupError: images of another shape; weights that are damaged or of another model.
        """
        if images.ndim != 4 or tuple(images.shape[1:]) != (3, self.size, self.size):
            raise SetupError(f"Expected images [B, 3, {self.size}, {self.size}], got {list(images.shape)}.")
        images = self._recoloured(images)
        try:
            return self._fitting(images)
        except Exception as error:  # a compiler fails in its own many ways, and only on first use
            if not self._compile or isinstance(error, SetupError):
                raise
            LOG.warning("torch.compile is not usable here (%s): going on without it.", type(error).__name__)
            self._compile, self._model = False, None
            return self._fitting(images)

    def _fitting(self, images: Tensor) -> Tensor:
        """All images at once, or in parts that the GPU's memory holds; what did not fit once is not tried again."""
        if len(images) > self._at_once:
            return torch.cat([self._fitting(part) for part in torch.split(images, self._at_once)])
        try:
            return self._forward(images)
        except torch.OutOfMemoryError:
            if len(images) == 1:
                raise SetupError(
                    "Expected GPU memory for one image.", hint="Close other programs, or use --device cpu."
                ) from None
        torch.cuda.empty_cache()
        self._at_once = (len(images) + 1) // 2
        LOG.warning("The GPU's memory does not suffice: going on with %d images at once.", self._at_once)
        return self._fitting(images)

    def _forward(self, images: Tensor) -> Tensor:
        model: Any = self._loaded()
        with arithmetic(self.precision, self._device):
            patches, prefix = model.forward_intermediates(
                images.to(self._device),
                indices=[self.layer - 1],
                norm=False,
                stop_early=True,
                output_fmt="NLC",
                return_prefix_tokens=True,
                intermediates_only=True,
            )[0]
            tokens: Tensor = torch.cat([prefix[:, :1], patches], dim=1)  # register tokens are no place
        return tokens.float().cpu()

    def _own_colours(self) -> bool:
        return (self._facts.mean, self._facts.std) != (IMAGENET_MEAN, IMAGENET_STD)

    def _recoloured(self, images: Tensor) -> Tensor:
        """From ImageNet's mean and standard deviation to those this model was trained with."""
        if not self._own_colours():
            return images
        mean, std = (torch.tensor(values)[:, None, None] for values in (self._facts.mean, self._facts.std))
        return (images * preprocess.STD + preprocess.MEAN - mean) / std

    def canary(self) -> NDArray[np.float32]:
        """Mean token of the upper left part of each of the 8 golden cells, [8, d]: what sites compare before round 1.

        The parts have another size and shape than the encoder's input, so that a wrong resize shows.
        """
        from ..phantom import golden_parts

        batch = torch.stack([self.preprocess(image) for image in golden_parts()])
        return np.asarray(self.encode(batch).mean(dim=1).numpy(), dtype=np.float32)

    def _loaded(self) -> nn.Module:
        if self._model is None:
            state = load_state(self.name, self._path, self._weights_sha256)
            model = empty_model(self._facts)
            model.load_state_dict(state, strict=True, assign=True)
            self._model = model.float().eval().requires_grad_(False).to(self._device)
            if self._compile:
                for block in model.blocks[: self.layer]:  # type: ignore[index]
                    block.compile()  # equal blocks share one compilation
        return self._model
