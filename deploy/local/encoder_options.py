"""The encoder as command-line options, the same for every command that embeds images."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cytosae_core.encoder import Encoder

# Written out, so that the parser starts without torch; a test compares them with `precision.PRECISIONS`.
PRECISIONS = ("fp32", "tf32", "bf16", "fp16")


def add_encoder_options(parser: argparse.ArgumentParser) -> None:
    """--encoder --weights --layer --steps --device --precision --compile."""
    group = parser.add_argument_group("encoder")
    group.add_argument(
        "--encoder", default="dinov2-s-demo", help="see `cytosae encoder list`, or timm/<model name>"
    )
    add_run_options(group)


def add_run_options(group: argparse._ActionsContainer, *, layer: int | None = None, steps: str = "") -> None:
    """All encoder options but the name, with other defaults where given."""
    group.add_argument("--weights", type=Path, help="official .pth or converted .safetensors")
    group.add_argument(
        "--layer", type=int, default=layer,
        help="block counted from 1 (default: %(default)s; None is CytoSAE's, the last but one)",
    )  # fmt: skip
    group.add_argument(
        "--steps",
        default=steps,
        help="preprocessing steps with commas: reinhard,cell-mask (default: %(default)r)",
    )
    group.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1 ...")
    group.add_argument(
        "--precision", default="fp32", choices=PRECISIONS, help="arithmetic; part of the digest unless fp32"
    )
    group.add_argument("--compile", action="store_true", help="fuse the blocks with torch.compile")


def encoder_of(options: argparse.Namespace) -> Encoder:
    """The encoder that the options name; SetupError when they do not fit."""
    from cytosae_core.encoder import load_encoder

    return load_encoder(
        options.encoder,
        options.weights,
        options.device,
        layer=options.layer,
        steps=tuple(step for step in options.steps.split(",") if step),
        precision=options.precision,
        compile=options.compile,
    )
