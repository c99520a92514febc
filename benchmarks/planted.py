"""Does the report call planted concepts what they are? Studies of eight phantom hospitals with known truth.

    python -m benchmarks.planted [--studies 20] [--images 187] [--folder DIR] [--json]

Every study chooses, with its own seed, which of the two artefacts is about, at which hospitals it is common (four of
five cells) or rare (one of five), and which hospital alone has rods. Then it runs as any `validate` study (sites in
process, the door and the logs included) with a dictionary that was trained on the pool: another one every four
studies, because what one dictionary's concepts are called says little about the next. A property is called what
the strongest state of the concepts that speak of it best says (`READERS`), for true properties and for artefacts
alike. The limits of both shortcut checks were set on seeds 0 and 1; studies start at seed 4. How sure they must be
was set on seeds 100 to 103 with the dictionaries 100 to 104 (docs/decisions/009).
"""

from __future__ import annotations

import argparse
import functools
import json
import resource
import shutil
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from cytosae_client.site import Site
from cytosae_core.canonical import sha256_hex
from cytosae_core.config import (
    Attribute,
    DictionaryConfig,
    EncoderConfig,
    RoundsConfig,
    StatisticsConfig,
    StudyConfig,
    TrainingConfig,
)
from cytosae_core.encoder import load_encoder
from cytosae_core.keys import SigningKey
from cytosae_core.policy import named_policy
from cytosae_core.sae.init import public_centroids
from cytosae_core.sae.scale import TokenScale
from cytosae_core.sae.train import train_local
from cytosae_core.tensors import pack_tensors
from cytosae_local.federation import LocalStudy, run_local
from cytosae_local.sites import Embedded, embed

from .planted_pool import ARTEFACTS, CAMERAS, HARD, PROPERTIES, SINGLE, TRUE, write_pool

Array = NDArray[Any]
GROUPS = {"eosinophil": "granular", "neutrophil": "granular", "lymphocyte": "plain", "monocyte": "plain"}
ROWS, ACTIVE, LAYER, STEPS = 512, 16, 6, ("reinhard", "cell-mask")
READERS = 5
FIRST_SEED, SHARED_BY = 4, 4
GENERALISING = ("generalising", "validated")
RECURRING = ("recurring", "named", "provisional", *GENERALISING)
IMAGES_PER_SITE = 60  # about a third of a camera's pool: studies differ in their images


@dataclass(frozen=True)
class Pool:
    """Embedded cameras by name, and the encoder's digest."""

    cameras: Mapping[str, Embedded]
    digest: str

    def dictionary(self, seed: int) -> dict[str, Array]:
        """Dictionary, mean and scale of the studies with this seed and its neighbours."""
        return _dictionary(tuple(item.store for item in self.cameras.values()), seed // SHARED_BY)


class Chosen:
    """A part of a token store, as a site's whole store."""

    def __init__(self, store: Any, images: Array) -> None:
        self._store, self._images = store, images
        self.d, self.n_images, self.canary = store.d, len(images), store.canary
        self.encoder_digest = store.encoder_digest

    def tokens(self, start: int, stop: int) -> Array:
        return np.concatenate([self._store.tokens(i, i + 1) for i in self._images[start:stop]])

    def mask(self) -> Array:
        return np.asarray(self._store.mask()[self._images])

    def gather(self, image: Array, token: Array) -> Array:
        return np.asarray(self._store.gather(self._images[image], token))

    def image_facts(self) -> Array:
        return np.asarray(self._store.image_facts()[self._images])

    def colours(self) -> Array:
        return np.asarray(self._store.colours()[self._images])


def make_pool(folder: Path, images: int, say: Any = print) -> Pool:
    """Draw and embed, or reuse what is there: at most 8 x 187 = 1,496 phantoms."""
    encoder = load_encoder("dinov2-s-demo", None, layer=LAYER, steps=STEPS)
    cameras = {}
    for camera in CAMERAS:
        write_pool(folder / "sites" / camera.name, camera, images, 0)
        place = folder / "sites" / camera.name
        cameras[camera.name] = embed(place, camera.name, encoder, folder / "stores", max_images=None)
        say(f"- {camera.name}: {images} phantoms embedded")
    return Pool(cameras, encoder.digest)


@functools.cache
def _dictionary(stores: tuple[Any, ...], seed: int) -> dict[str, Array]:
    """k-means of the pool's tokens, then 300 steps of training on all cameras."""
    rng = np.random.default_rng(seed)
    tokens = np.concatenate([_draw(store, 4000, rng) for store in stores])
    plain = tokens.astype(np.float64)
    scale = TokenScale.from_sums(plain.sum(axis=0), float((plain**2).sum()), float(len(plain)))
    rows = scale.apply(public_centroids(tokens, ROWS, seed=seed))
    first = torch.from_numpy(rows / np.linalg.norm(rows, axis=1, keepdims=True))

    def batch(step: int) -> tuple[torch.Tensor, torch.Tensor]:
        parts = np.concatenate([_draw(store, 64, rng) for store in stores])
        return torch.from_numpy(scale.apply(parts)), torch.zeros(len(parts), dtype=torch.int64)

    found = train_local(first, batch, k=ACTIVE, first=0, steps=300, total=300, peak=6e-3, n_units=1)
    size = np.array([scale.scale], np.float32)
    return {"dictionary": found.dictionary.numpy(), "mean": scale.mean.astype(np.float32), "scale": size}


def _draw(store: Any, count: int, rng: np.random.Generator) -> Array:
    return np.asarray(store.gather(rng.integers(store.n_images, size=count), rng.integers(257, size=count)))


def protocol(pool: Pool, seed: int) -> StudyConfig:
    """The study of one seed."""
    return StudyConfig(
        name=f"planted {seed}",
        sites=tuple(pool.cameras),
        kind="validate",
        profile="evaluate_only",
        simulation=True,
        seed=seed,
        encoder=EncoderConfig("dinov2-s-demo", LAYER, STEPS, 384, pool.digest),
        dictionary=DictionaryConfig(
            "pursuit", ROWS, ACTIVE, "file", sha256_hex(pack_tensors(pool.dictionary(seed)))
        ),
        training=TrainingConfig(batch_tokens=128),
        rounds=RoundsConfig(quorum=3),
        statistics=StatisticsConfig(
            classes=("granular", "plain"),
            attributes=tuple(Attribute(name, 0.5) for name in PROPERTIES),
            bootstrap=200,
            recurrence_steps=300,
        ),
    )


def hospitals(pool: Pool, seed: int, home: Path) -> tuple[dict[str, Site], str]:
    """Eight sites of one study, and the artefact that is about."""
    rng = np.random.default_rng((seed, 77))
    names = list(pool.cameras)
    artefact = ARTEFACTS[seed % len(ARTEFACTS)]
    common = set(rng.permutation(names)[: len(names) // 2])
    alone = str(rng.choice(names))
    sites = {}
    for name in names:
        chosen = choose(pool.cameras[name], artefact, name in common, name == alone, rng)
        sites[name] = _site(name, pool.cameras[name], chosen, home / name)
    return sites, artefact


def choose(
    camera: Embedded, artefact: str, common: bool, rods: bool, rng: np.random.Generator
) -> NDArray[np.int64]:
    """Images of one hospital: with the artefact four of five or one of five, the other artefact never."""
    truth = [camera.cohort.images[index].attributes for index in camera.store.image_index]
    flag = {name: np.array([row[name] == "1" for row in truth]) for name in PROPERTIES}
    other = next(name for name in ARTEFACTS if name != artefact)
    usable = ~flag[other] & (np.ones(len(truth), bool) if rods else ~flag[SINGLE[0]])
    few = int(
        rng.integers(12, 15)
    )  # at least 11 patients on both sides: otherwise nobody could even say AUROC
    wanted = {True: IMAGES_PER_SITE - few if common else few}
    wanted[False] = IMAGES_PER_SITE - wanted[True]
    parts = []
    for value, count in wanted.items():
        members = rng.permutation(np.flatnonzero(usable & (flag[artefact] == value)))
        parts.append(members[:count])
    return np.sort(np.concatenate(parts))


def _site(name: str, camera: Embedded, chosen: NDArray[np.int64], home: Path) -> Site:
    images = [camera.cohort.images[camera.store.image_index[index]] for index in chosen]
    return Site(
        name=name,
        store=Chosen(camera.store, chosen),
        labels=[GROUPS[image.label] for image in images],
        units=[image.unit for image in images],
        attributes=[image.attributes for image in images],
        unit="patient",
        policy=named_policy("evaluate_only"),
        key=SigningKey.load_or_create(home / "site.key"),
        state=home / "state",
        simulation=True,
    )


def run_study(pool: Pool, seed: int, out: Path) -> dict[str, Any]:
    """One study; what each property was called, and the artefact that was about."""
    shutil.rmtree(out, ignore_errors=True)
    sites, artefact = hospitals(pool, seed, out / "homes")
    plan = LocalStudy(protocol(pool, seed), sites, pool.dictionary(seed), out, compare=False)
    report = run_local(plan, lambda event, details: None)
    return {"seed": seed, "artefact": artefact, "called": called(report["concepts"])}


def called(concepts: Mapping[str, Any]) -> dict[str, str]:
    """Property -> strongest state among the concepts that speak of it best; `no concept` when none does."""
    columns, targets, states = concepts["columns"], concepts["targets"], concepts["states"]
    out = {}
    for name in PROPERTIES:
        mine = [row for row, target in enumerate(columns["target"]) if target == targets.index(name)]
        mine.sort(key=lambda row: -abs((columns["mean"][row] or 0.5) - 0.5))
        best = max((columns["state"][row] for row in mine[:READERS]), default=None)
        out[name] = "no concept" if best is None else str(states[best])
    return out


def tally(studies: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Rates over studies: with numerator and denominator."""
    true = [item["called"][name] in RECURRING for item in studies for name in TRUE]
    hard = [item["called"][name] in RECURRING for item in studies for name in HARD]
    artefacts = [item["called"][item["artefact"]] in GENERALISING for item in studies]
    single = [item["called"][name] in GENERALISING for item in studies for name in SINGLE]
    strong = [item["called"][name] in GENERALISING for item in studies for name in TRUE]
    pairs = {
        "true_recurring": true, "true_generalising": strong, "hard_recurring": hard,
        "artefact_generalising": artefacts, "single_site_generalising": single,
    }  # fmt: skip
    return {name: {"share": float(np.mean(found)), "n": len(found)} for name, found in pairs.items()}


def main() -> None:
    """Run the studies."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--studies", type=int, default=20)
    parser.add_argument("--images", type=int, default=187, help="phantoms per camera, eight cameras")
    parser.add_argument("--folder", type=Path, help="keep pool and studies here")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    folder = options.folder or Path(tempfile.mkdtemp(prefix="planted-"))
    started = time.monotonic()
    pool = make_pool(folder, options.images)
    embedded = time.monotonic() - started
    studies = []
    for seed in range(FIRST_SEED, FIRST_SEED + options.studies):
        studies.append(run_study(pool, seed, folder / "study"))
        if not options.json:
            print(seed, studies[-1]["artefact"], studies[-1]["called"], flush=True)
    result = {
        **tally(studies),
        "studies": len(studies),
        "phantoms": options.images * len(CAMERAS),
        "embed_seconds": round(embedded, 1),
        "seconds": round(time.monotonic() - started, 1),
        "peak_rss_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
    }
    print(json.dumps(result))
    if options.folder is None:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
