"""The demo: synthetic hospitals (or given site folders), real ViT features, federated rounds, a report."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
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
from cytosae_core.encoder import Encoder, load_encoder
from cytosae_core.errors import StudyError
from cytosae_core.keys import SigningKey
from cytosae_core.phantom import DEMO_SITES, PLANTED, PUBLIC_SITE, generate_site
from cytosae_core.policy import named_policy
from cytosae_core.sae.checkpoint import load_checkpoint
from cytosae_core.sae.init import public_centroids
from cytosae_core.tensors import pack_tensors
from cytosae_server.study import write_study_folder

from .federation import LocalStudy, run_local
from .progress import Display
from .sites import QUICK_IMAGES, Embedded, embed, make_site, site_folders

Array = NDArray[Any]
ENCODER, LAYER, STEPS = "dinov2-s-demo", 6, ("reinhard", "cell-mask")
PATIENTS, CELLS_PER_PATIENT = 48, 2
DEFAULT_PUBLIC = "barcelona-acevedo-pbc"
PUBLIC_TOKENS = 40_000
# Steps of a site's own dictionary, with which concepts are compared: about 3 s a site at 1,024 rows.
RECURRENCE_STEPS = 300


def run_demo(options: argparse.Namespace) -> int:
    """Everything, from images to report.html."""
    started = time.monotonic()
    out: Path = options.out
    out.mkdir(parents=True, exist_ok=True)
    with Display() as display:
        folders, public = _given(options) if options.sites else _phantoms(out, display)
        limit = QUICK_IMAGES if options.quick else None
        encoder = load_encoder(ENCODER, layer=LAYER, steps=STEPS)

        def embedded(folder: Path, shown: str) -> Embedded:
            stores, bar = out / "stores", display.bar(shown)
            return embed(folder, folder.name, encoder, stores, max_images=limit, progress=bar)

        corpus = None if options.frozen else embedded(public, "public cells")
        members = {name: embedded(folder, f"cells of {name}") for name, folder in folders.items()}
        if corpus is None:
            local = frozen_plan(options, out, members, encoder)
        else:
            local = _plan(options, out, members, corpus, encoder)
        report = run_local(local, display.watch)
    print_outcome(report, out, time.monotonic() - started, as_json=options.json)
    return 0


def _given(options: argparse.Namespace) -> tuple[dict[str, Path], Path]:
    folders = site_folders(options.sites)
    name = options.public or (DEFAULT_PUBLIC if DEFAULT_PUBLIC in folders else next(iter(folders)))
    if name not in folders:
        raise StudyError(
            f"Expected --public to name a site folder, got {name}.", hint=f"One of {list(folders)}."
        )
    public = folders[name] if options.public_member or options.frozen else folders.pop(name)
    if len(folders) < 2:
        raise StudyError(f"Expected at least 2 member sites beside the public corpus, got {len(folders)}.")
    return folders, public


def _phantoms(out: Path, display: Display) -> tuple[dict[str, Path], Path]:
    folders = {}
    for index, site in enumerate((*DEMO_SITES, PUBLIC_SITE)):
        folder = out / "public" if site is PUBLIC_SITE else out / "sites" / site.name
        generate_site(folder, site, patients=PATIENTS, cells_per_patient=CELLS_PER_PATIENT, seed=index)
        folders[site.name] = folder
    display.say(
        f"- {len(DEMO_SITES)} synthetic hospitals in {out / 'sites'}: different cameras, stains, patients"
    )
    return {site.name: folders[site.name] for site in DEMO_SITES}, folders[PUBLIC_SITE.name]


def _plan(
    options: argparse.Namespace,
    out: Path,
    embedded: Mapping[str, Embedded],
    corpus: Embedded,
    encoder: Encoder,
) -> LocalStudy:
    phantoms = options.sites is None
    start = {"centroids": centroids(corpus, options.rows, seed=0)}
    study = StudyConfig(
        name="demo" if phantoms else options.sites.resolve().name,
        sites=tuple(sorted(embedded)),
        simulation=True,
        min_units=named_policy(_policy(options, "masked")).min_units,
        encoder=EncoderConfig(ENCODER, LAYER, STEPS, encoder.d, encoder.digest),
        dictionary=DictionaryConfig(n=options.rows, digest=sha256_hex(pack_tensors(start))),
        training=TrainingConfig(rounds=options.rounds),
        rounds=RoundsConfig(quorum=2),
        statistics=StatisticsConfig(
            classes=_classes(embedded),
            attributes=_attributes(corpus) if phantoms else (),
            recurrence_steps=RECURRENCE_STEPS,
        ),
    )
    local = _ready(options, out, embedded, study, start, encoder)
    if options.no_comparators:
        return local
    return replace(
        local, restart=lambda seed: {"centroids": centroids(corpus, options.rows, seed=seed)}, compare=True
    )


def frozen_plan(
    options: argparse.Namespace, out: Path, embedded: Mapping[str, Embedded], encoder: Encoder
) -> LocalStudy:
    """A `validate` study of a dictionary that another demo trained, at all given sites."""
    found = load_checkpoint(options.frozen)
    start, k = found.tensors, found.facts.get("k")
    if set(start) != {"dictionary", "mean", "scale"} or not isinstance(k, int):
        raise StudyError(
            "Expected --frozen to name a pursuit dictionary.", hint="Such as demo-out/dictionary."
        )
    rows, width = start["dictionary"].shape
    phantoms = options.sites is None
    study = StudyConfig(
        name=f"frozen {'demo' if phantoms else options.sites.resolve().name}",
        sites=tuple(sorted(embedded)),
        kind="validate",
        profile="evaluate_only",
        simulation=True,
        min_units=named_policy(_policy(options, "evaluate_only")).min_units,
        encoder=EncoderConfig(ENCODER, LAYER, STEPS, width, encoder.digest),
        dictionary=DictionaryConfig("pursuit", rows, k, "file", sha256_hex(pack_tensors(start))),
        rounds=RoundsConfig(quorum=2),
        statistics=StatisticsConfig(
            classes=_classes(embedded),
            recurrence_steps=RECURRENCE_STEPS,
        ),
    )
    return _ready(options, out, embedded, study, start, encoder)


def _policy(options: argparse.Namespace, of_phantoms: str) -> str:
    """Real cells given on the command line are published ones."""
    return of_phantoms if options.sites is None else "public-data"


def _classes(embedded: Mapping[str, Embedded]) -> tuple[str, ...]:
    return tuple(sorted({label for item in embedded.values() for label in item.labels}))


def _ready(
    options: argparse.Namespace,
    out: Path,
    embedded: Mapping[str, Embedded],
    study: StudyConfig,
    start: Mapping[str, Array],
    encoder: Encoder,
) -> LocalStudy:
    """The hospitals of a protocol, and the study folder that a coordinator would hold."""
    policy = _policy(options, study.profile)
    sites = {
        name: make_site(item, policy, out / "homes" / name, simulation=True)
        for name, item in sorted(embedded.items())
    }
    _publish(out, study, start, sites, _local_section(options, out, sites, policy))
    return LocalStudy(study, sites, start, out, compare=False, encoder_depth=encoder.depth)


def _attributes(corpus: Embedded) -> tuple[Attribute, ...]:
    """Yes/no versions of the planted concepts: above their median on the public phantoms, which is public."""
    found = []
    for name in PLANTED:
        values = [float(image.attributes[name]) for image in corpus.cohort.images]
        found.append(Attribute(name, round(float(np.median(values)), 4)))
    return tuple(found)


def centroids(corpus: Embedded, n: int, *, seed: int) -> Array:
    """Public k-means centroids [n, d] of tokens drawn from the corpus."""
    return public_centroids(public_tokens(corpus, seed=seed), n, seed=seed)


def public_tokens(corpus: Embedded, *, seed: int) -> Array:
    """Tokens [PUBLIC_TOKENS, d] drawn from the corpus."""
    rng = np.random.default_rng(seed)
    image = rng.integers(corpus.store.n_images, size=PUBLIC_TOKENS)
    token = rng.integers(257, size=PUBLIC_TOKENS)
    return corpus.store.gather(image, token)


def _local_section(
    options: argparse.Namespace, out: Path, sites: Mapping[str, Site], policy: str
) -> dict[str, Any]:
    """What lets `cytosae study run OUT/study.yaml` find the same folders again."""
    base = Path("sites") if options.sites is None else options.sites.resolve()
    limit = {"max_images": QUICK_IMAGES} if options.quick else {}
    return {"sites": {name: str(base / name) for name in sites}, "policy": policy, "start": "start", **limit}


def _publish(
    out: Path,
    study: StudyConfig,
    start: Mapping[str, Array],
    sites: Mapping[str, Site],
    local: dict[str, Any],
) -> None:
    """The study folder that a coordinator would hold: protocol, start, pinned keys."""
    key = SigningKey.load_or_create(out / "study.key")
    keys = {name: site.key.public_hex for name, site in sites.items()}
    write_study_folder(out, study, start, keys, key.public_hex, local=local)


def print_outcome(report: Mapping[str, Any], out: Path, seconds: float, *, as_json: bool) -> None:
    """Where the report is and its three main findings, or one JSON line."""
    path = out / "report.html"
    if as_json:
        print(json.dumps(summary(report, path, seconds), allow_nan=False))
        return
    print(f"\nReport: {path}  (data: {out / 'report.json'}; {seconds:.0f} s)")
    for number, finding in enumerate(report["findings"], 1):
        print(f"  {number}. {finding}")


def summary(report: Mapping[str, Any], path: Path, seconds: float) -> dict[str, Any]:
    """The demo's JSON line."""
    names = ("images", "fvu", "l0", "dead_fraction")
    return {
        "report": str(path),
        "sites": {site: {name: values[name] for name in names} for site, values in report["sites"].items()},
        "pooled_fvu": report["overall"]["pooled_fvu"],
        "federated_fvu": report["overall"]["federated_fvu"],
        "bytes_out": {site: values["bytes_out"] for site, values in report["sites"].items()},
        "seconds": round(seconds, 1),
    }
