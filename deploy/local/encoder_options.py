"""The encoder as command-line options, the same for every command that embeds images."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cytosae_core.encoder import Encoder


def add_encoder_options(parser: argparse.ArgumentParser) -> None:
    """--encoder --weights --layer --steps --device."""
    group = parser.add_argument_group("encoder")
    group.add_argument("--encoder", default="dinov2-s-demo", help="see `cytosae encoder list`")
    group.add_argument("--weights", type=Path, help="official .pth or converted .safetensors")
    group.add_argument("--layer", type=int, help="block counted from 1 (default: CytoSAE's, the last but one)")
    group.add_argument("--steps", default="", help="preprocessing steps with commas: reinhard,cell-mask")
    group.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1 ...")


def encoder_of(options: argparse.Namespace) -> Encoder:
    """The encoder that the options name; SetupError when they do not fit."""
    from cytosae_core.encoder import load_encoder

    steps = tuple(step for step in options.steps.split(",") if step)
    return load_encoder(options.encoder, options.weights, options.device, layer=options.layer, steps=steps)
