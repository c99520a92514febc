"""What patient-level privacy costs a training step: CPU seconds and memory over a plain step on the same tokens.

    python -m benchmarks.private_step --n 6144 --patients 16 --tokens 257 --d 384 --model topk --json [--opacus]

Each way is a fresh process with one thread; CPU seconds are the median of `--repeats` steps after one to warm up,
memory is the largest resident size above that before the first step. Tokens are normal numbers: more rows fire than
on real ones, which favours the plain step.

    plain     the model's own loss over all tokens at once, forward and backward; pursuit: codes and row gradient
    blocks    the same patient by patient, as the private step works: what smaller blocks alone change
    private   clipping, summing and noise of every number (sampling rate 1: all patients are in the step)
    hooks, ghost   Opacus on two nn.Linear (for pursuit: one, codes as its input); clipped sum and noise
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from statistics import median

import torch
from torch import Tensor, nn

from cytosae_core.privacy.gradients import PrivateGradient, Trainable
from cytosae_core.privacy.plan import PrivacyPlan
from cytosae_core.sae.models import PursuitModel, ReluModel, TopKModel
from cytosae_core.sae.pursuit import random_dictionary
from cytosae_core.sae.train import dictionary_gradient

PICKS, LIMIT_S = 16, 900
WAYS = ("plain", "blocks", "private")
OPACUS = ("hooks", "ghost")
Step = Callable[[], object]


def make(kind: str, n: int, d: int) -> Trainable:
    """A model at random; pursuit computes its Gram matrix here, as it does after every step."""
    if kind == "pursuit":
        return PursuitModel(random_dictionary(n, d, 0), PICKS)
    return ReluModel(d, n) if kind == "relu" else TopKModel(d, n, k=PICKS)


def plain(kind: str, model: Trainable, batches: list[Tensor]) -> None:
    """Gradients of the mean loss, batch by batch."""
    for tokens in batches:
        if isinstance(model, PursuitModel):
            dictionary_gradient(tokens, model.sparse(tokens), model.dictionary)
        else:
            (model.loss(tokens) / len(batches)).backward()


class Layers(nn.Module):
    """The model in layers that Opacus has hooks for: encoder and decoder untied, both biases after the products."""

    def __init__(self, kind: str, n: int, d: int) -> None:
        super().__init__()
        self.kind = kind
        self.encoder = nn.Identity() if kind == "pursuit" else nn.Linear(d, n)
        self.decoder = nn.Linear(n, d, bias=kind != "pursuit")

    def forward(self, x: Tensor) -> Tensor:
        """Codes [P, T, n] of `pursuit`, or tokens [P, T, d] -> reconstructions [P, T, d]."""
        codes = self.encoder(x)
        if self.kind != "pursuit":
            codes = torch.relu(codes)
        if self.kind == "topk":
            codes = torch.zeros_like(codes).scatter(-1, *reversed(codes.topk(PICKS, dim=-1)))
        return self.decoder(codes)


def opacus_step(way: str, kind: str, n: int, d: int, tokens: Tensor) -> Step:
    """One step of Opacus' own gradient sampling, clipping and noise (its generator is seeded: torch's)."""
    from opacus.grad_sample import GradSampleModule
    from opacus.grad_sample.grad_sample_module_fast_gradient_clipping import (
        GradSampleModuleFastGradientClipping,
    )
    from opacus.optimizers import DPOptimizer
    from opacus.optimizers.optimizer_fast_gradient_clipping import DPOptimizerFastGradientClipping
    from opacus.utils.fast_gradient_clipping_utils import DPTensorFastGradientClipping

    layers, ghost, patients = Layers(kind, n, d), way == "ghost", len(tokens)
    wrap = GradSampleModuleFastGradientClipping if ghost else GradSampleModule
    options = {"max_grad_norm": 1.0, "use_ghost_clipping": True} if ghost else {}
    module = wrap(layers, **options)
    optimiser = (DPOptimizerFastGradientClipping if ghost else DPOptimizer)(
        torch.optim.SGD(layers.parameters(), lr=1e-3),
        noise_multiplier=1.0, max_grad_norm=1.0, expected_batch_size=patients,
    )  # fmt: skip

    def step() -> None:
        x = tokens
        if kind == "pursuit":
            codes = make(kind, n, d).codes(tokens.flatten(0, 1))
            x = codes.view(patients, -1, n)
        losses = (module(x) - tokens).pow(2).mean(dim=(1, 2))
        if ghost:
            DPTensorFastGradientClipping(module, optimiser, losses).backward()
        else:
            losses.mean().backward()
        optimiser.step()
        optimiser.zero_grad()

    return step


def step_of(way: str, kind: str, n: int, d: int, tokens: Tensor, steps: int) -> Step:
    """The step to measure, on tokens [P, T, d]."""
    if way in OPACUS:
        return opacus_step(way, kind, n, d, tokens)
    patients, count = tokens.shape[:2]
    model = make(kind, n, d)
    private = PrivateGradient(PrivacyPlan(1.0, 1.0, 1.0, steps, 1e-5), patients, count)
    batches = list(tokens) if way == "blocks" else [tokens.flatten(0, 1)]

    def step() -> None:
        current = make(kind, n, d) if kind == "pursuit" else model  # the Gram matrix is part of the step
        if way == "private":
            private.step(current, list(tokens))
            return
        plain(kind, current, batches)
        if isinstance(current, nn.Module):
            current.zero_grad()

    return step


def resident(key: str) -> int:
    """Bytes of this process: VmRSS now, VmHWM the most since the last `clear`."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(key + ":"))


def measure(args: argparse.Namespace) -> dict[str, float]:
    """CPU seconds and memory of one way, in this process."""
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", message=".*[Bb]ackward hook.*")
    tokens = torch.randn(args.patients, args.tokens, args.d, generator=torch.Generator().manual_seed(0))
    step = step_of(args.way, args.model, args.n, args.d, tokens, args.repeats + 1)
    Path("/proc/self/clear_refs").write_text("5")  # Linux: forget the peak so far
    before, times = resident("VmRSS"), []
    for _ in range(args.repeats + 1):
        started = time.process_time()
        step()
        times.append(time.process_time() - started)
    return {"cpu_s": median(times[1:]), "memory_mb": (resident("VmHWM") - before) / 1e6}


def in_a_process(way: str, arguments: list[str]) -> dict[str, float] | None:
    """The same, in a fresh process; None when it failed or took longer than LIMIT_S."""
    command = [sys.executable, "-m", "benchmarks.private_step", *arguments, "--way", way]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT_S, env=environment)
    except subprocess.TimeoutExpired:
        return None
    if done.returncode:
        print(done.stderr[-500:], file=sys.stderr)
        return None
    return {key: round(value, 4) for key, value in json.loads(done.stdout).items()}


def main() -> int:
    """Print one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__)
    for name, value in {"n": 6144, "patients": 16, "tokens": 257, "d": 384, "repeats": 3}.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--model", choices=("pursuit", "topk", "relu"), default="pursuit")
    parser.add_argument("--opacus", action="store_true", help="also Opacus' hooks and ghost clipping")
    parser.add_argument("--way", choices=(*WAYS, *OPACUS), help="only this one, in this process")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    if args.way:
        print(json.dumps(measure(args)))
        return 0
    names = ("n", "patients", "tokens", "d", "repeats", "model")
    arguments = [word for name in names for word in (f"--{name}", str(getattr(args, name)))]
    result: dict[str, object] = {name: getattr(args, name) for name in names}
    ways = {way: in_a_process(way, arguments) for way in (*WAYS, *(OPACUS if args.opacus else ()))}
    base = ways["plain"]
    for way, found in ways.items():
        result[way] = found
        if found and base and way != "plain":
            result[f"{way}_ratios"] = {key: round(found[key] / base[key], 2) for key in found}
    print(json.dumps(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
