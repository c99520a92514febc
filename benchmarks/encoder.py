"""The encoder on this machine: seconds an image, and how far each precision is from fp32. Values are recorded only.

python -m benchmarks.encoder [--json] [--encoder NAME --weights FILE --device cuda]
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cytosae_core.encoder import Encoder, default_layer, load_encoder
from cytosae_core.encoder.facts import facts_of
from cytosae_core.encoder.golden import golden_features
from cytosae_core.encoder.precision import PRECISIONS
from cytosae_core.phantom import golden_images

STEPS = ("reinhard", "cell-mask")


def main() -> int:
    """Measure and print one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--encoder", default="dinov2-s-demo")
    parser.add_argument("--weights", type=Path)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--batches", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    depth = facts_of(options.encoder).depth
    result = {}
    for layer in (default_layer(depth, "train"), default_layer(depth, "validate")):
        result[f"block {layer}"] = _layer(options, layer)
    result["preprocessing_s_per_image"] = _preprocessing(options)
    print(json.dumps(result) if options.json else json.dumps(result, indent=2))
    return 0


def _layer(options: argparse.Namespace, layer: int) -> dict[str, Any]:
    exact: dict[str, Any] = {}
    rows: dict[str, Any] = {}
    for precision in PRECISIONS:
        encoder = _load(options, layer, precision)
        features = golden_features(encoder)
        exact = exact or features
        difference = max(
            float(np.abs(features[name] - exact[name]).max() / np.sqrt((exact[name] ** 2).mean()))
            for name in exact
        )
        seconds = _seconds(encoder, options.batches)
        rows[precision] = {"difference_over_rms": difference, "s_per_image": seconds}
    for row in rows.values():
        row["time_over_fp32"] = row["s_per_image"] / rows["fp32"]["s_per_image"]
    return rows


def _load(options: argparse.Namespace, layer: int, precision: str = "fp32") -> Encoder:
    return load_encoder(
        options.encoder, options.weights, options.device, layer=layer, steps=STEPS, precision=precision
    )


def _seconds(encoder: Encoder, batches: int) -> float:
    """Median seconds an image over batches of 8, the tokens back on the CPU."""
    cells = torch.stack([encoder.preprocess(image) for image in golden_images()])
    times = []
    for _ in range(batches):
        start = time.perf_counter()
        encoder.encode(cells)
        times.append((time.perf_counter() - start) / len(cells))
    return float(np.median(times))


def _preprocessing(options: argparse.Namespace) -> float:
    encoder = _load(options, 1)
    start = time.perf_counter()
    for image in golden_images():
        encoder.mask_of(encoder.pixels(image))
    return (time.perf_counter() - start) / 8


if __name__ == "__main__":
    raise SystemExit(main())
