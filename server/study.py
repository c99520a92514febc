"""The coordinator's study folder: everything that a run needs, and what it writes.

study.yaml        the protocol            start.safetensors   public centroids or the frozen dictionary
study.key         the study key (0600)    site-keys.json      pinned public key of every site
study-key.pub     its public part         run/                state (see runfolder.py)
report.json, report.html, dictionary.*    results
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray

from cytosae_core.canonical import canonical_json, parse_json, sha256_hex
from cytosae_core.config import StudyConfig, load_yaml, study_from_dict
from cytosae_core.errors import StudyError
from cytosae_core.keys import SigningKey
from cytosae_core.report.build import build_report
from cytosae_core.report.html import render
from cytosae_core.sae.checkpoint import load_checkpoint, save_checkpoint
from cytosae_core.tensors import write_atomic

from .coordinator import Coordinator
from .loop import CANARY_TOLERANCE, StudyRun
from .runfolder import RunFolder
from .transport import Transport

Array = NDArray[Any]


def write_study_folder(
    folder: Path,
    study: StudyConfig,
    start: Mapping[str, Array],
    site_keys: Mapping[str, str],
    study_key: str,
    *,
    local: Mapping[str, Any] | None = None,
) -> None:
    """Write protocol, start, pinned site keys and the study key's public part.

    `local` (folders on this machine, for simulations) stands beside the protocol and is not part of its digest.
    """
    folder.mkdir(parents=True, exist_ok=True)
    values = json.loads(canonical_json(study.to_dict()))
    text = yaml.safe_dump({**values, "local": dict(local)} if local else values, sort_keys=False)
    write_atomic(folder / "study.yaml", text.encode())
    if start:
        save_checkpoint(folder / "start", start, {"study": study.digest})
    write_atomic(folder / "site-keys.json", canonical_json(dict(site_keys)))
    write_atomic(folder / "study-key.pub", f"{study_key}\n".encode())


def read_protocol(path: Path) -> StudyConfig:
    """The protocol of a `study.yaml`; the section `local` (folders on one machine) is not part of it."""
    values = load_yaml(path)
    values.pop("local", None)
    return study_from_dict(values)


def read_site_keys(path: Path) -> dict[str, str]:
    """Pinned public keys by site."""
    try:
        values = parse_json(path.read_bytes())
    except OSError as error:
        raise StudyError("Expected site-keys.json in the study folder.", hint="Enrol the sites.") from error
    if not isinstance(values, dict) or not all(isinstance(key, str) for key in values.values()):
        raise StudyError("Expected site-keys.json to map site names to public keys.")
    return {str(name): key for name, key in values.items()}


def run_study_folder(folder: Path, transport: Transport, watch: Any = lambda event, details: None) -> int:
    """Run (or resume) the study in `folder` over `transport` and write its report; returns 0.

    Raises:
        StudyError: protocol, start or keys are missing or do not fit; a quorum was missed.
    """
    study = read_protocol(folder / "study.yaml")
    needs_start = study.kind == "validate" or study.dictionary.init != "random"
    start = load_checkpoint(folder / "start", sha256=study.dictionary.digest).tensors if needs_start else {}
    key = SigningKey.load_or_create(folder / "study.key")
    coordinator = Coordinator(study, key, read_site_keys(folder / "site-keys.json"))
    run = StudyRun(coordinator, transport, RunFolder(folder / "run", study), start, watch)
    try:
        result = run.run()
        report = dict(build_report(study, result, None, canary_tolerance=CANARY_TOLERANCE))
        run.close(*write_report(folder, report))
    finally:
        transport.close()
        run.record.close()
    if study.kind == "train":
        facts = {"model": "pursuit", "k": study.dictionary.k, "study": study.digest}
        save_checkpoint(folder / "dictionary", trained_tensors(run), facts)
    return 0


def trained_tensors(run: StudyRun) -> dict[str, Array]:
    """The trained dictionary with its token mean and scale: what a `validate` study starts from."""
    scale = np.array([run.scale.scale], np.float32)
    return {"dictionary": run.result.final, "mean": run.scale.mean, "scale": scale}


def write_report(out: Path, report: Mapping[str, Any]) -> tuple[str, str]:
    """report.json and report.html, each atomically; returns their SHA-256."""
    out.mkdir(parents=True, exist_ok=True)
    data = json.dumps(report, indent=1, allow_nan=False).encode()
    write_atomic(out / "report.json", data)
    page = render(dict(report)).encode()
    write_atomic(out / "report.html", page)
    return sha256_hex(data), sha256_hex(page)
