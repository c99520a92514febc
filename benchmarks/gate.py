"""Traps stopped and honest dictionaries passed, on real cells: fit on one block and site set, tested on others.

    python -m benchmarks.gate --json                       # needs the shared real cells; embeds them once
    python -m benchmarks.gate --sets held-a --rows 1024    # one set, one width

Images are the units. Every trap is given tokens of the site under attack. Printed per set: honest dictionaries passed
by the gate and by the egress checks (row mask and self-attack), traps stopped by the gate, by the egress checks with
the gate off, and by both. `left readable`: an independent, stronger reader still reads a cell in what would leave.
`bare`: cells that the signs or the direction of plain changes give back without mask and gate: what a trap is worth.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cytosae_core.aggregate.rules import RowAverage
from cytosae_core.cohort import read_cohort
from cytosae_core.encoder import build_store, load_encoder
from cytosae_core.errors import EgressError
from cytosae_core.privacy.gate import GateCheck, check_static, check_tokens
from cytosae_core.privacy.masking import mask_update
from cytosae_core.privacy.selfattack import Attack, attack
from cytosae_core.sae.init import public_centroids
from cytosae_core.sae.models import PursuitModel
from cytosae_core.sae.pursuit import random_dictionary
from cytosae_core.sae.scale import TokenScale, rows_from_centroids
from cytosae_core.sae.train import LocalResult, train_local
from tests.traps import TRAPS, Base

from .steps import seconds

# A reading of the independent reader that counts as a cell.
CELL = 0.90
PICKS, PEAK, CLIP, MIN_UNITS = 16, 6e-3, 1.0, 11
BARCELONA, BCCD, DRAASLAN = "barcelona-acevedo-pbc", "bccd-shenggan", "draaslan-romanowsky"
CHULA, CHULA_RED = "chula-wbc-rpi", "chula-rbc12"
# block, public corpus, sites. Limits were fitted on `fit`, refitted on `fit` and `test`, then frozen for the others.
SETS = {
    "fit": (6, BARCELONA, (BCCD, CHULA)),
    "test": (11, BARCELONA, (DRAASLAN, CHULA_RED)),
    "held-a": (9, CHULA, (BARCELONA, DRAASLAN)),
    "held-b": (3, BARCELONA, (BCCD, CHULA_RED)),
}
IMAGES = 120
HONEST_ROUNDS, TRAP_ROUNDS, LAST, PLANNED = (1, 2, 3, 4, 6, 8, 12), (1, 4), 12, 15


class SiteTokens:
    """A site's tokens [images, 257, d] float32, and images for training (60 %) and test; images are units."""

    def __init__(self, tokens: np.ndarray, seed: int = 0) -> None:
        self.tokens = tokens.astype(np.float32)
        order = np.random.default_rng(seed).permutation(len(tokens))
        cut = int(0.6 * len(tokens))
        self.train, self.test = np.sort(order[:cut]), np.sort(order[cut:])

    def draw(self, images: np.ndarray, count: int, seed: int) -> tuple[Tensor, Tensor]:
        """Raw tokens [count, d] and the position of their image in `images`."""
        rng = np.random.default_rng(seed)
        position = rng.integers(len(images), size=count)
        token = rng.integers(self.tokens.shape[1], size=count)
        return torch.from_numpy(self.tokens[images[position], token]), torch.from_numpy(position)


@dataclass
class Round:
    """One site's round on one dictionary, with everything that the checks need."""

    base: Base
    result: LocalResult
    used: Tensor
    units: Tensor
    background: Tensor
    background_units: Tensor


def scaled(base: Base, tokens: Tensor) -> Tensor:
    """Centred and scaled tokens."""
    return (tokens - torch.from_numpy(base.scale.mean)) / base.scale.scale


def local_round(site: SiteTokens, base: Base, number: int, rounds: int, seed: int) -> Round:
    """Train as a site does (client/steps.py), keeping the tokens used."""
    used: list[Tensor] = []
    units: list[Tensor] = []

    def batch(step: int) -> tuple[Tensor, Tensor]:
        tokens, position = site.draw(site.train, base.batch, 1000 * seed + step)
        used.append(scaled(base, tokens))
        units.append(position)
        return used[-1], position

    result = train_local(
        base.dictionary, batch, k=base.k, first=(number - 1) * base.steps, steps=base.steps,
        total=rounds * base.steps, peak=PEAK, n_units=len(site.train),
    )  # fmt: skip
    other, other_units = site.draw(site.test, 1024, 77 + seed)
    return Round(base, result, torch.cat(used), torch.cat(units), scaled(base, other), other_units)


def outgoing(found: Round, min_units: int) -> Tensor:
    """What would leave [n, d] float16 after the row rules."""
    allowed = torch.ones(len(found.base.dictionary), dtype=torch.bool)
    update = mask_update(
        found.base.dictionary, found.result.dictionary, found.result.units, found.result.largest, allowed,
        found.used, CLIP, min_units=min_units,
    )  # fmt: skip
    return update.delta * (update.units >= min_units)[:, None]


def attack_of(found: Round, delta: Tensor) -> Attack:
    """The site's own attack on those bytes."""
    return attack(
        delta, found.base.dictionary, found.used, found.units, found.background, found.background_units
    )


def gate_of(
    site: SiteTokens, base: Base, last: tuple[Base, float] | None, init: str, seed: int
) -> list[GateCheck]:
    """All checks on one received dictionary; `last`: the accepted one before, and its FVU here."""
    previous, fvu = last or (None, None)
    checks = check_static(
        base.dictionary, previous=previous.dictionary if previous else None, max_row_move=CLIP
    )
    if not checks[0].ok:
        return checks
    tokens, units = site.draw(site.test, 1024, 31 + seed)
    return checks + check_tokens(
        PursuitModel(base.dictionary, base.k), base.scale, tokens, units, previous_fvu=fvu,
        previous_scale=previous.scale if previous else None, init=init,
    )  # fmt: skip


@torch.no_grad()
def strong_reader(found: Round, delta: Tensor, neighbours: int = 8) -> tuple[float, float]:
    """Independent of `selfattack`, and stronger than a real attacker: for every token the best of all planes of two
    released changes whose base rows are neighbours, with coefficients fitted to the very token (an oracle).

    Returns: best |cos| over own tokens, and over the background.
    """
    moved = (delta != 0).any(dim=1).nonzero().squeeze(1)
    if len(moved) < 2:
        return 0.0, 0.0
    change = torch.nn.functional.normalize(delta[moved].float(), dim=1)
    base = torch.nn.functional.normalize(found.base.dictionary[moved], dim=1)
    near = (base @ base.T - 2 * torch.eye(len(base))).topk(min(neighbours, len(base) - 1)).indices
    between = (change[:, None] * change[near]).sum(dim=2)  # [a, neighbours]
    best = []
    for tokens in (found.used, found.background):
        top = 0.0
        for part in torch.nn.functional.normalize(tokens, dim=1).split(256):
            p = part @ change.T
            for column in range(near.shape[1]):
                q, c = p[:, near[:, column]], between[:, column].clamp(-0.999, 0.999)
                top = max(top, float(((p * p + q * q - 2 * c * p * q) / (1 - c * c)).amax()))
        best.append(min(1.0, top) ** 0.5)
    return best[0], best[1]


def federated(
    sites: dict[str, SiteTokens], base: Base, rounds: int, seed: int
) -> Iterator[tuple[int, dict[str, Round], Base]]:
    """Honest rounds: (round number, every site's round, the dictionary that it started from)."""
    for number in range(1, rounds + 1):
        mean = RowAverage(base.dictionary.numpy(), "firing-weighted")
        done = {name: local_round(site, base, number, PLANNED, seed) for name, site in sites.items()}
        yield number, done, base
        for found in done.values():
            delta = outgoing(found, MIN_UNITS)
            fired = torch.where((delta != 0).any(dim=1), found.result.fired, 0).numpy()
            mean.fold(delta.numpy(), fired.astype(np.float32), base.steps * base.batch)
        base = Base(torch.from_numpy(mean.result()), base.scale, base.k)


def start(public: SiteTokens, sites: dict[str, SiteTokens], n: int, init: str, seed: int) -> Base:
    """The honest first dictionary: federated mean and scale, public k-means or random rows."""
    parts = [
        site.tokens[site.train].reshape(-1, site.tokens.shape[2]).astype(np.float64)
        for site in sites.values()
    ]
    scale = TokenScale.from_sums(
        sum(p.sum(axis=0) for p in parts), float(sum((p**2).sum() for p in parts)), sum(map(len, parts))
    )
    if init == "random":
        return Base(random_dictionary(n, len(scale.mean), seed), scale, PICKS)
    everything = np.arange(len(public.tokens))
    tokens, _ = public.draw(everything, min(40_000, 257 * len(everything)), seed)
    rows = rows_from_centroids(public_centroids(tokens.numpy(), n, seed=seed), scale)
    return Base(torch.from_numpy(rows), scale, PICKS)


def examine(found: Round, checks: list[GateCheck]) -> dict[str, Any]:
    """What the gate, the egress checks and the independent reader say of one dictionary at one site."""
    failed = [check.id for check in checks if not check.ok]
    try:
        delta = outgoing(found, MIN_UNITS)
        attacked = attack_of(found, delta)
        readers = [reading.reader for reading in attacked.readings if reading.recoverable]
        own, seen = strong_reader(found, delta)
        auc, rows = attacked.membership_auc, attacked.rows
        best = {reading.reader: round(reading.own_max, 3) for reading in attacked.readings}
    except EgressError as error:
        readers, own, seen, auc, rows, best = [error.reason], 0.0, 0.0, 0.5, 0, {}
    return {
        "gate": failed, "egress": readers, "rows": rows, "auc": round(auc, 3), "best": best,
        "strong": [round(own, 3), round(seen, 3)], "left_readable": not readers and own >= max(CELL, seen + 0.1),
        "bare": bare(found),
    }  # fmt: skip


def bare(found: Round) -> int:
    """Distinct training tokens above .95 by direction or signs in the plain change, no mask, no gate."""
    change = torch.nan_to_num(found.result.dictionary - found.base.dictionary)
    hit = torch.zeros(len(found.used), dtype=torch.bool)
    for left, right in ((change, found.used), (change.sign(), found.used.sign())):
        rows = torch.nn.functional.normalize(left, dim=1)
        for start in range(0, len(right), 512):
            cosine = torch.nn.functional.normalize(right[start : start + 512], dim=1) @ rows.T
            hit[start : start + 512] |= cosine.abs().amax(dim=1) > 0.95
    return int(hit.sum())


def run(
    sites: dict[str, SiteTokens],
    public: SiteTokens,
    n: int,
    init: str,
    seed: int,
    targets: tuple[str, ...] = (),
) -> Iterator[dict[str, Any]]:
    """Every honest dictionary of one study at every site, and every trap at `targets` (all sites when empty)."""
    last: dict[str, tuple[Base, float]] = {}
    for number, done, base in federated(sites, start(public, sites, n, init, seed), LAST, seed):
        for name, found in done.items():
            about = {"site": name, "n": n, "seed": seed, "round": number, "init": init}
            checks = gate_of(sites[name], base, last.get(name), init, 100 * seed + number)
            if number in HONEST_ROUNDS:
                yield {"kind": "honest", **about, **examine(found, checks)}
            if number in TRAP_ROUNDS and init != "random" and name in (targets or sites):
                suspects = suspected(sites[name], base, seed)
                for kind, trap in TRAPS.items():
                    bad = trap(base, suspects, seed)
                    bad_checks = gate_of(sites[name], bad, last.get(name), init, 100 * seed + number)
                    bad_found = local_round(sites[name], bad, number, PLANNED, seed)
                    yield {"kind": kind, **about, **examine(bad_found, bad_checks)}
            last[name] = (base, next((check.value for check in checks if check.id == "fvu"), 1.0))


def suspected(site: SiteTokens, base: Base, seed: int) -> Tensor:
    """All tokens of one training image, then 4,096 random ones: more than a coordinator could know."""
    one = torch.from_numpy(site.tokens[site.train[seed]])
    return scaled(base, torch.cat([one, site.draw(site.train, 4096, 5 + seed)[0]]))


def summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Counts as `k/n`."""

    def share(chosen: list[dict[str, Any]], test: Callable[[dict[str, Any]], bool]) -> str:
        return f"{sum(map(test, chosen))}/{len(chosen)}"

    honest = [row for row in rows if row["kind"] == "honest"]
    traps = [row for row in rows if row["kind"] != "honest"]
    out: dict[str, Any] = {
        "honest passed by the gate, first": share(
            [r for r in honest if r["round"] == 1], lambda r: not r["gate"]
        ),
        "honest passed by the gate, later": share(
            [r for r in honest if r["round"] > 1], lambda r: not r["gate"]
        ),
        "honest passed at egress": share(honest, lambda r: not r["egress"]),
        "honest failed": dict(Counter(c for r in honest for c in (*r["gate"], *r["egress"]))),
        "honest left readable": share(honest, lambda r: r["left_readable"]),
        "honest membership auc": [min(r["auc"] for r in honest), max(r["auc"] for r in honest)],
    }
    for number in TRAP_ROUNDS:
        these = [r for r in traps if r["round"] == number]
        out[f"traps, round {number}"] = {
            "stopped by the gate": share(these, lambda r: bool(r["gate"])),
            "blocked at egress, gate off": share(these, lambda r: bool(r["egress"])),
            "blocked at egress or nothing readable left": share(these, lambda r: not r["left_readable"]),
            "stopped by gate or egress": share(these, lambda r: bool(r["gate"] or r["egress"])),
            "passed the gate": dict(Counter(r["kind"] for r in these if not r["gate"])),
            "bare cells": {
                kind: sum(r["bare"] for r in these if r["kind"] == kind)
                for kind in TRAPS
                if any(r["bare"] for r in these if r["kind"] == kind)
            },
        }
    return out


def cost(site: SiteTokens, base: Base) -> dict[str, float]:
    """Seconds of one site's round at n rows and 20 x 128 tokens, and what gate and attack add, as ratios.

    Floor of the attack: one float32 product of the round's tokens with the rows.
    """
    found = local_round(site, base, 1, PLANNED, 0)
    delta = outgoing(found, MIN_UNITS)
    train = seconds(lambda: local_round(site, base, 1, PLANNED, 0), 5)
    floor = seconds(lambda: found.used @ base.dictionary.T, 15)
    read = seconds(lambda: attack_of(found, delta), 9)
    check = seconds(lambda: gate_of(site, base, (base, 1.0), "public-kmeans", 0), 9)
    return {
        "train_s": train,
        "attack_to_train": read / train,
        "attack_to_floor": read / floor,
        "floor_to_train": floor / train,
        "gate_to_train": check / train,
        "rows_released": float((delta != 0).any(dim=1).sum()),
    }


def load(shared: Path, stores: Path, name: str, layer: int) -> SiteTokens:
    """A site's tokens, embedded once with the demo encoder."""
    encoder = load_encoder("dinov2-s-demo", layer=layer, steps=("reinhard", "cell-mask"))
    cohort = read_cohort(shared / "data" / "sites" / name, name=name, max_images=IMAGES)
    store = build_store(cohort, encoder, stores / f"{name}-{layer}-{IMAGES}")
    return SiteTokens(store.tokens(0, store.n_images))


def main() -> int:
    """One JSON line: a summary for every set, and seconds."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shared", type=Path, default=Path(__file__).resolve().parents[2] / "shared")
    parser.add_argument("--stores", type=Path, default=Path(tempfile.gettempdir()) / "cytosae-gate")
    parser.add_argument("--sets", nargs="+", choices=list(SETS), default=list(SETS))
    parser.add_argument("--rows", nargs="+", type=int, default=[1024, 256])
    parser.add_argument("--raw", type=Path, help="write one JSON line for every dictionary here")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    started, out = time.monotonic(), {}
    for name in options.sets:
        layer, public, members = SETS[name]
        sites = {member: load(options.shared, options.stores, member, layer) for member in members}
        corpus = load(options.shared, options.stores, public, layer)
        rows = [
            {"set": name, **row}
            for n in options.rows
            for init, seeds in (("public-kmeans", (0, 1)), ("random", (0,)))
            for seed in seeds
            for row in run(sites, corpus, n, init, seed)
        ]
        if options.raw:
            with options.raw.open("a") as stream:
                stream.writelines(json.dumps(row) + "\n" for row in rows)
        out[name] = summary(rows)
        out["cost"] = cost(sites[members[0]], start(corpus, sites, 1024, "public-kmeans", 0))
    print(json.dumps({**out, "seconds": round(time.monotonic() - started)}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
