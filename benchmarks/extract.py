"""Extraction against one encoder product and against the original's dense pass: time, memory, end to end.

    python -m benchmarks.extract [--json] [--small]

n = 49,152 concepts, d = 768, float32, CPU. Tokens and weights are synthetic; biases are set so that a concept fires
in as many images as the published dictionary's does on its training set (a gamma law with the same image L0 of 1,853
when those files are not there). Each side runs in a process of its own; times are CPU seconds of the process divided
by CPU seconds of the encoder product measured in the same process, so that other load does not matter much.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch: spinning threads would count as work

import numpy as np
import torch
from PIL import Image
from scipy.stats import norm
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # also when run as a file

from benchmarks.original import BATCH, TOP, OriginalPass, entropy_loop, read_labels
from cytosae_core.concepts.accumulate import Accumulator, Layout
from cytosae_core.concepts.active import ActiveCoder
from cytosae_core.concepts.coder import Coder
from cytosae_core.sae.models import ReluModel
from cytosae_core.sae.scale import TokenScale

ROOT = Path(__file__).resolve().parents[1]
N, D, T, CLASSES = 49_152, 768, 257, 18
CHUNK = 8  # images per product, as concepts/extract.py
PUBLISHED_SPARSITY = Path("data/cytosae_statistics/mll23/sae_sparsity.pt")


def frequencies(n: int) -> np.ndarray:
    """Share of images in which each concept fires: published values, or a law with the same mean."""
    path = Path(os.environ.get("CYTOSAE_SHARED", ROOT.parent / "shared")) / PUBLISHED_SPARSITY
    if path.is_file() and n == N:
        return np.asarray(torch.load(path, map_location="cpu", weights_only=True).double().numpy())
    return np.clip(np.random.default_rng(0).gamma(0.08, 1853 / 49152 / 0.08, n), 0, 1)


def weights(n: int, dense: bool) -> dict[str, Tensor]:
    """Random unit directions, and biases that give the wanted firing on N(0, 1) tokens (bias 0: half of all fire)."""
    generator = torch.Generator().manual_seed(0)
    rows = torch.nn.functional.normalize(torch.randn(n, D, generator=generator), dim=1)
    per_token = 1 - (1 - np.clip(frequencies(n), 1e-7, 0.9999)) ** (1 / T)
    bias = torch.zeros(n) if dense else torch.from_numpy(norm.ppf(per_token)).float()
    return {"W_enc": rows.T.contiguous(), "b_enc": bias, "W_dec": rows, "b_dec": torch.zeros(D)}


def tokens_of(images: int) -> Tensor:
    return torch.randn(images, T, D, generator=torch.Generator().manual_seed(1))


def cpu(work: Callable[[], object], repeats: int) -> float:
    """Median CPU seconds of a call (all threads), after one warm-up."""
    work()
    times = []
    for _ in range(repeats):
        started = time.process_time()
        work()
        times.append(time.process_time() - started)
    return median(times)


def product(tensors: dict[str, Tensor], repeats: int) -> float:
    """CPU seconds of one encoder product per image: the floor."""
    x = tokens_of(CHUNK).reshape(-1, D)
    out = torch.empty(len(x), tensors["W_enc"].shape[1])
    return cpu(lambda: torch.mm(x, tensors["W_enc"], out=out), repeats) / CHUNK


def ours(n: int, dense: bool, repeats: int) -> dict[str, float]:
    """Our pass per image, its ratio to the product, and the memory at its peak (taken before the floor is run)."""
    before = peak_mb()
    tensors = weights(n, dense)
    coder = Coder(
        ReluModel(D, n, start=tensors).requires_grad_(False), TokenScale(np.zeros(D, np.float32), 1.0), "x"
    )
    active = ActiveCoder(coder)
    layout = Layout(n, CLASSES, 8, np.arange(10_000) % CLASSES, np.arange(10_000) % 8, 0.2)
    sums, images = Accumulator(layout), tokens_of(CHUNK).numpy()
    place = iter(range(0, 10_000, CHUNK))

    def step() -> None:
        start = next(place)
        parts: list[list] = [[] for _ in range(CHUNK)]
        for part in active.active_codes(list(images)):
            parts[part.image].append(part)
        for offset, found in enumerate(parts):
            sums.begin(start + offset, T)
            for part in found:
                sums.add(start + offset, part)
            sums.end()

    each = cpu(step, repeats) / CHUNK
    peak = peak_mb()
    floor = product(tensors, repeats)
    fired = float(sums.state["token_count"].sum() / sums.state["tokens"][0])
    return {
        "s": each,
        "floor_s": floor,
        "ratio": each / floor,
        "peak_mb": peak,
        "import_mb": before,
        "token_l0": fired,
    }


def original(n: int, dense: bool, repeats: int) -> dict[str, float]:
    """The original's pass per image, its label reading and its entropy loop."""
    before = peak_mb()
    tensors = weights(n, dense)
    run, batch = OriginalPass(tensors), tokens_of(BATCH)
    each = cpu(lambda: run.add(batch), max(1, repeats // 3)) / BATCH
    peak = peak_mb()
    floor = product(tensors, repeats)
    jpegs = [_jpeg(seed) for seed in range(4)]
    decode = cpu(lambda: read_labels(jpegs, 200), 3) / 200
    some = 2000
    labels = torch.randint(CLASSES, (some, TOP))
    loop = cpu(lambda: entropy_loop(torch.rand(some, TOP), labels), 1) / some
    return {
        "s": each, "floor_s": floor, "ratio": each / floor, "peak_mb": peak, "import_mb": before,
        "labels_s": decode * n * TOP, "entropy_s": loop * n,
    }  # fmt: skip


def _jpeg(seed: int) -> bytes:
    """A smooth 360 x 363 picture, the size of the published data sets' cells."""
    small = np.random.default_rng(seed).integers(0, 256, (24, 24, 3), np.uint8)
    stream = io.BytesIO()
    Image.fromarray(small).resize((360, 363), Image.Resampling.BICUBIC).save(stream, "JPEG", quality=95)
    return stream.getvalue()


def peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def side(name: str, n: int, dense: bool, repeats: int) -> dict[str, float]:
    """One side in a fresh process."""
    command = [
        sys.executable,
        "-m",
        "benchmarks.extract",
        "--side",
        name,
        "--n",
        str(n),
        "--repeats",
        str(repeats),
    ]
    done = subprocess.run(
        [*command, *(["--dense"] if dense else [])], capture_output=True, text=True, check=True, cwd=ROOT
    )
    return dict(json.loads(done.stdout.strip().splitlines()[-1]))


def compare(n: int, repeats: int) -> dict[str, object]:
    """All ratios."""
    mine, theirs, worst = (
        side("ours", n, False, repeats),
        side("original", n, False, repeats),
        side("ours", n, True, repeats),
    )
    # one unit for both sides: encoder products, so that a busier minute of one side does not count
    unit = mine["floor_s"]
    end_to_end = {}
    for images in (1_000, 5_000, 18_365, 41_621):
        original_s = images * theirs["ratio"] * unit + theirs["labels_s"] + theirs["entropy_s"]
        end_to_end[f"{images} images"] = round(original_s / (images * mine["s"] + 0.2), 2)
    return {
        "pass_to_product": round(mine["ratio"], 3), "pass_to_product_when_half_fires": round(worst["ratio"], 3),
        "original_pass_to_product": round(theirs["ratio"], 3),
        "pass_faster_than_original": round(theirs["ratio"] / mine["ratio"], 2),
        "end_to_end_faster_than_original": end_to_end,
        "peak_mb": round(mine["peak_mb"]), "original_peak_mb": round(theirs["peak_mb"]),
        "memory_ratio": round(theirs["peak_mb"] / mine["peak_mb"], 1),
        "memory_ratio_beyond_imports": round(
            (theirs["peak_mb"] - theirs["import_mb"]) / (mine["peak_mb"] - mine["import_mb"]), 1
        ),
        "token_l0": round(mine["token_l0"], 1), "ours": mine, "original": theirs,
    }  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--small", action="store_true", help="n = 6,144: a minute instead of several")
    parser.add_argument("--side", choices=("ours", "original"))
    parser.add_argument("--n", type=int, default=N)
    parser.add_argument("--dense", action="store_true")
    parser.add_argument("--repeats", type=int, default=8)
    options = parser.parse_args()
    if options.side:
        print(
            json.dumps(
                {"ours": ours, "original": original}[options.side](options.n, options.dense, options.repeats)
            )
        )
        return 0
    result = compare(6_144 if options.small else options.n, options.repeats)
    if options.json:
        print(json.dumps(result))
    else:
        for name, value in result.items():
            print(f"{name:34} {value}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
