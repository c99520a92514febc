"""The coordinator's study folder: everything that a run needs, and what it writes.

study.yaml        the protocol            start.safetensors   public centroids or the frozen dictionary
study.key         the study key (0600)    site-keys.json      pinned public key of every site
study-key.pub     its public part         run/                state (see runfolder.py)
report.json, report.html, dictionary.*    results
"""

from __future__ import annotations

import json
import os
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
from cytosae_core.report import html
from cytosae_core.report.build import build_report
from cytosae_core.report.columns import FILE, columns_of, is_large_report
from cytosae_core.report.management import render_both
from cytosae_core.report.table_csv import write_csv
from cytosae_core.report.text_json import report_bytes
from cytosae_core.sae.checkpoint import load_checkpoint, save_checkpoint
from cytosae_core.tensors import write_atomic

from .coordinator import Coordinator
from .deviations import Deviations
from .loop import CANARY_TOLERANCE, StudyRun
from .rebuild import rebuilt
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
    notes = Deviations(folder, key, study)
    try:
        with notes.stops():
            result = run.run()
        result.stage, result.deviations = study.stage or None, notes.of_run(result)
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
    """report.json, report.html (with its linked pages), report.csv, one page for directors in two languages, and the
    column file of a large study, each atomically; returns the SHA-256 of report.json and report.html.

    Raises:
        StudyError: the report names a column file that is not in `out` / run.
    """
    out.mkdir(parents=True, exist_ok=True)
    columns = _place_columns(out, report)
    data = report_bytes(report)
    write_atomic(out / "report.json", data)
    pages = draw_pages(dict(report), columns)
    both = render_both(report) if report.get("headlines") else {}  # data sets are not hospitals
    for name, page in {**pages, **both}.items():
        write_atomic(out / name, page.encode())
    write_csv(out / "report.csv", report)
    return sha256_hex(data), sha256_hex(pages["report.html"].encode())


def draw_pages(report: dict[str, Any], columns: Mapping[str, Array] | None) -> Mapping[str, str]:
    """report.html first; pages of a large study beside it."""
    return dict(html.render_pages(report, columns))


def _place_columns(out: Path, report: Mapping[str, Any]) -> dict[str, Array] | None:
    """Bring the column file of a large study from the run folder beside the report, and open it."""
    made = out / "run" / FILE
    if is_large_report(report) and made.exists():
        os.replace(made, out / FILE)
    return columns_of(report, out)


def rebuild_report(folder: Path) -> dict[str, Any]:
    """Make report.json, report.html and report.csv of a finished study again, without asking any site."""
    report = rebuilt(folder)
    write_report(folder, report)
    return report
