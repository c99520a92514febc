"""`cytosae study run STUDY.yaml`: the general form of the demo, kinds `train` and `validate`.

Beside the protocol, the file has a section `local`, which is not part of the protocol's digest:

    local:
      sites: {site-a: folder, site-b: folder}    # relative to the file
      policy: masked                             # or evaluate_only, public-data
      start: start                               # checkpoint of centroids or of the frozen dictionary
      max_images: 80                             # optional
      weights: DinoBloom-B.pth                   # optional, for encoders that need a file
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cytosae_core.config import StudyConfig, load_yaml
from cytosae_core.encoder import Encoder, load_encoder
from cytosae_core.errors import StudyError
from cytosae_core.sae.checkpoint import load_checkpoint
from cytosae_server.study import read_protocol

from .federation import LocalStudy, run_local
from .progress import Display
from .sites import embed, make_site

LOCAL_KEYS = {"sites", "policy", "start", "max_images", "weights"}


def run_yaml(path: Path, out: Path, *, compare: bool) -> Mapping[str, Any]:
    """Embed the sites, run the study, write the report into `out`; returns the report."""
    study, local = read_protocol(path), _local(path)
    encoder = _encoder(study, local, path.parent)
    start = {}
    if "start" in local:
        start = load_checkpoint(path.parent / str(local["start"]), sha256=study.dictionary.digest).tensors
    with Display() as display:
        sites = {}
        for name in study.sites:
            folder = path.parent / str(local["sites"][name])
            item = embed(
                folder,
                name,
                encoder,
                out / "stores",
                max_images=local.get("max_images"),
                progress=display.bar(name),
            )
            sites[name] = make_site(item, local["policy"], out / "homes" / name, simulation=study.simulation)
        plan = LocalStudy(study, sites, start, out, None, compare=compare, encoder_depth=encoder.depth)
        return run_local(plan, display.watch)


def _local(path: Path) -> dict[str, Any]:
    study, local = read_protocol(path), load_yaml(path).get("local")
    if not isinstance(local, dict) or not set(local) <= LOCAL_KEYS:
        raise StudyError(
            f"Expected a section local with keys in {sorted(LOCAL_KEYS)}.", hint="See docs/study.md."
        )
    folders = local.get("sites")
    if not isinstance(folders, dict) or set(folders) != set(study.sites):
        raise StudyError("Expected local.sites to name a folder for every site of the study.")
    local.setdefault("policy", "evaluate_only" if study.kind == "validate" else "masked")
    return local


def _encoder(study: StudyConfig, local: Mapping[str, Any], base: Path) -> Encoder:
    weights = base / str(local["weights"]) if "weights" in local else None
    encoder = load_encoder(
        study.encoder.name, weights, layer=study.encoder.layer or None, steps=study.encoder.steps
    )
    if study.encoder.digest and encoder.digest != study.encoder.digest:
        raise StudyError(
            "Expected the encoder that the protocol names by digest.", hint="Check weights and steps."
        )
    return encoder
