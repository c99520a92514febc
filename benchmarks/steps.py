"""Embedding and training, each as a ratio to a floor measured in the same run.

    python -m benchmarks.steps --json

Floor of embedding: one plain forward pass of the same batch to the same block. Floor of a training step: one product
of the batch with the dictionary.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import torch

from cytosae_core.cohort import read_cohort
from cytosae_core.encoder import build_store, load_encoder
from cytosae_core.phantom import PUBLIC_SITE, generate_site
from cytosae_core.sae.pursuit import gram_matrix, pursue, random_dictionary
from cytosae_core.sae.train import train_local

IMAGES, BATCH, TOKENS, ROWS, WIDTH, PICKS = 32, 8, 512, 1024, 384, 16


def seconds(work: Callable[[], object], repeats: int) -> float:
    """Median wall seconds of `repeats` calls after one warm-up."""
    work()
    times = []
    for _ in range(repeats):
        started = time.perf_counter()
        work()
        times.append(time.perf_counter() - started)
    return median(times)


def embedding(layer: int) -> dict[str, float]:
    """Images per second through decode, preprocessing, transformer and store, and the ratio to the transformer."""
    encoder = load_encoder("dinov2-s-demo", layer=layer, steps=("reinhard", "cell-mask"))
    batch = torch.randn(BATCH, 3, 224, 224)
    floor = seconds(lambda: encoder.encode(batch), 3) / BATCH
    with tempfile.TemporaryDirectory() as name:
        generate_site(Path(name) / "cells", PUBLIC_SITE, patients=IMAGES, cells_per_patient=1)
        cohort = read_cohort(Path(name) / "cells")
        started = time.perf_counter()
        build_store(cohort, encoder, Path(name) / "store")
        each = (time.perf_counter() - started) / (IMAGES + 8)  # the 8 golden cells are embedded too
    return {"images_per_s": 1 / each, "ratio_to_forward_pass": each / floor}


def training() -> dict[str, float]:
    """One pursuit training step and its coding, in units of one product tokens x dictionary."""
    tokens, dictionary = torch.randn(TOKENS, WIDTH), random_dictionary(ROWS, WIDTH, 0)
    units = torch.zeros(TOKENS, dtype=torch.int64)
    gram = gram_matrix(dictionary)
    floor = seconds(lambda: tokens @ dictionary.T, 50)
    code = seconds(lambda: pursue(tokens, dictionary, PICKS, gram), 10)
    step = seconds(
        lambda: train_local(
            dictionary, lambda _: (tokens, units), k=PICKS, first=0, steps=5, total=100, peak=1e-3, n_units=1
        ),
        3,
    )
    return {"step_ms": 1000 * step / 5, "coding_products": code / floor, "step_products": step / 5 / floor}


def main() -> int:
    """Print one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true")
    parser.parse_args()
    print(json.dumps({"block_6": embedding(6), "block_11": embedding(11), "pursuit": training()}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
