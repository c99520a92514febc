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
from dataclasses import replace
from pathlib import Path
from typing import Any

from cytosae_core.canonical import canonical_json, parse_json
from cytosae_core.config import StudyConfig, load_yaml
from cytosae_core.encoder import Encoder, load_encoder
from cytosae_core.errors import StudyError
from cytosae_core.sae.checkpoint import load_checkpoint
from cytosae_server.deviations import PROGRAM, Deviations
from cytosae_server.stages import Stages
from cytosae_server.study import read_protocol

from .federation import LocalStudy, run_local
from .progress import Display
from .sites import embed, make_site

LOCAL_KEYS = {"sites", "policy", "start", "max_images", "weights"}


def run_yaml(path: Path, out: Path, *, compare: bool) -> Mapping[str, Any]:
    """Embed the sites, run the study (with stages: the open one), write the report; returns the report.

    Everything goes into `out`; a stage's run and report into its folder there (`result_folder`).
    """
    signed, local = read_protocol(path), local_section(path)
    study, folder = _to_run(path, signed, out)
    encoder = encoder_for(study, local, path.parent)
    start = {}
    if "start" in local:
        start = load_checkpoint(path.parent / str(local["start"]), sha256=study.dictionary.digest).tensors
    with Display() as display:
        if study.stage:
            display.say(f"- stage {study.stage}: {', '.join(study.sites)}")
        sites = {}
        for name in study.sites:
            item = embed(
                path.parent / str(local["sites"][name]), name, encoder, out / "stores",
                max_images=local.get("max_images"), progress=display.bar(name),
            )  # fmt: skip
            home = out / "homes" / name
            site = make_site(item, local["policy"], home, simulation=study.simulation)
            sites[name] = replace(site, state=home / f"state-{study.stage}") if study.stage else site
        plan = LocalStudy(study, sites, start, folder, None, compare=compare, encoder_depth=encoder.depth)
        return run_local(plan, display.watch)


def result_folder(out: Path) -> Path:
    """Where the run and report of the study in `out` are: `out`, or the folder of its open stage."""
    path = out / "study.yaml"
    if not path.exists() or not read_protocol(path).plan.stages or read_protocol(path).stage:
        return out
    folder: Path = Stages(out).folder
    return folder


def _to_run(path: Path, signed: StudyConfig, out: Path) -> tuple[StudyConfig, Path]:
    """Protocol and folder of what is to be run now."""
    if signed.stage:
        raise StudyError(
            f"Expected the signed protocol, got that of its stage={signed.stage}.",
            hint="Run the study.yaml in the folder above: it runs the stage that is open.",
        )
    if not signed.plan.stages:
        _check_same(out, signed)
        return signed, out
    if path.resolve() != (out / "study.yaml").resolve():
        raise StudyError(
            "Expected a study with stages to run in its own folder, as study.yaml.", hint="Leave out --out."
        )
    stages = Stages(out)
    folder, study = stages.start(), stages.protocol
    if (folder / "run" / "finished").exists():
        Deviations(folder, stages.key, study).add(
            f"Stage {study.stage} was run again after its report was made.",
            "The command to run it was given again.", by=PROGRAM,
        )  # fmt: skip
    return study, folder


def _check_same(out: Path, study: StudyConfig) -> None:
    """A folder with a run keeps its protocol, also after the report: a changed one is another study."""
    path = out / "run" / "study.json"
    if path.exists() and parse_json(path.read_bytes()) != parse_json(canonical_json(study.to_dict())):
        raise StudyError(
            "Expected the protocol that this folder's run began with.",
            hint="A changed protocol is another study: choose another --out, or move the old run away.",
        )


def local_section(path: Path) -> dict[str, Any]:
    """The section `local` of a study.yaml: folders on this machine."""
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


def encoder_for(study: StudyConfig, local: Mapping[str, Any], base: Path) -> Encoder:
    """The encoder that the protocol names, with its weights from the section `local`."""
    weights = base / str(local["weights"]) if "weights" in local else None
    encoder = load_encoder(
        study.encoder.name, weights, layer=study.encoder.layer or None, steps=study.encoder.steps
    )
    if study.encoder.digest and encoder.digest != study.encoder.digest:
        raise StudyError(
            "Expected the encoder that the protocol names by digest.", hint="Check weights and steps."
        )
    return encoder
