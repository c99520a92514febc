"""A whole study on this machine: sites in process over LocalGrid, comparators, report."""

from __future__ import annotations

import contextlib
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cytosae_client.session import Session
from cytosae_client.site import Site, StudyData
from cytosae_core.canonical import sha256_hex
from cytosae_core.config import StudyConfig
from cytosae_core.keys import SigningKey
from cytosae_core.report.build import build_report
from cytosae_core.report.inputs import Comparators, StudyResult
from cytosae_core.sae.checkpoint import save_checkpoint
from cytosae_core.tensors import pack_tensors
from cytosae_server.coordinator import Coordinator
from cytosae_server.deviations import Deviations
from cytosae_server.loop import CANARY_TOLERANCE, StudyRun
from cytosae_server.runfolder import RunFolder
from cytosae_server.study import trained_tensors, write_report
from cytosae_server.transport import LocalGrid

from .comparators import Pool, local_matrix

Array = NDArray[Any]
Watch = Callable[[str, Mapping[str, Any]], None]
OTHER_SEED = 1
COMPARATORS = "dictionaries trained on all images in one place and at single sites"


@dataclass(frozen=True)
class LocalStudy:
    """Protocol, sites, start tensors (`centroids` or a frozen model) and the output folder.

    Attributes:
        restart: seed -> start tensors of another seed, for the stability between seeds; None skips it.
        compare: also train pooled and local-only dictionaries.
    """

    study: StudyConfig
    sites: Mapping[str, Site]
    start: Mapping[str, Array]
    out: Path
    restart: Callable[[int], Mapping[str, Array]] | None = None
    compare: bool = True
    encoder_depth: int = 12


def run_local(local: LocalStudy, watch: Watch) -> dict[str, Any]:
    """Run the study and write `report.json`, `report.html` and the final dictionary; returns the report."""
    started = time.monotonic()
    clear_finished(local)
    notes = Deviations(local.out, SigningKey.load_or_create(local.out / "study.key"), local.study)
    with _federation(local, local.study, local.start, local.out / "run", watch) as run:
        with notes.stops():
            result = run.run()
        skipped = "" if local.compare or local.study.kind != "train" else COMPARATORS
        result.stage, result.deviations = local.study.stage or None, notes.of_run(result, skipped=skipped)
        comparators = _compare(local, result, run, watch) if local.study.kind == "train" else None
        facts = {"encoder_depth": local.encoder_depth, "canary_tolerance": CANARY_TOLERANCE}
        report = dict(build_report(local.study, result, comparators, **facts))
        watch("reported", {"seconds": time.monotonic() - started})
        run.close(*write_report(local.out, report))
    if local.study.kind == "train":
        save_checkpoint(
            local.out / "dictionary", trained_tensors(run),
            {"model": "pursuit", "k": local.study.dictionary.k, "study": local.study.digest},
        )  # fmt: skip
    (local.out / "run" / "finished").touch()
    return report


def clear_finished(local: LocalStudy) -> None:
    """A finished or deleted run starts afresh (token stores and keys stay); an unfinished one goes on.

    The sites' logs and budgets of these two studies go too: they witnessed a coordinator's log that is gone. Only in
    a simulation can both sides agree to forget.
    """
    if (local.out / "run" / "finished").exists() or not (local.out / "run").exists():
        for name in ("run", "run-other-seed"):
            shutil.rmtree(local.out / name, ignore_errors=True)
        for site in local.sites.values():
            shutil.rmtree(site.state, ignore_errors=True)


@contextlib.contextmanager
def _federation(
    local: LocalStudy, study: StudyConfig, start: Mapping[str, Array], folder: Path, watch: Watch
) -> Iterator[StudyRun]:
    """Sites in this process and a run over them; files and threads are released at the end."""
    key = SigningKey.load_or_create(local.out / "study.key")
    sessions = {
        name: Session(replace(site, start=start), study, key.public_hex) for name, site in local.sites.items()
    }
    keys = {name: site.key.public_hex for name, site in local.sites.items()}
    grid = LocalGrid({name: session.handle for name, session in sessions.items()})
    run = StudyRun(Coordinator(study, key, keys), grid, RunFolder(folder, study), start, watch)
    try:
        yield run
    finally:
        grid.close()
        run.record.close()
        for session in sessions.values():
            session.close()


def _compare(local: LocalStudy, result: StudyResult, run: StudyRun, watch: Watch) -> Comparators:
    out = Comparators()
    if local.restart is not None:
        out.other_seed_number = OTHER_SEED
        start = local.restart(OTHER_SEED)
        dictionary = replace(local.study.dictionary, digest=sha256_hex(pack_tensors(start)))
        other_study = replace(local.study, seed=OTHER_SEED, dictionary=dictionary)
        with _federation(local, other_study, start, local.out / "run-other-seed", watch) as other_run:
            other = other_run.run(train_only=True)
        out.other_seed = (other.final, other.first)
    if not local.compare:
        return out
    watch("step", {"step": "comparators", "round": 0, "of": 0})
    data = {name: StudyData(local.sites[name], local.study) for name in result.describe["final"]}
    pool = Pool(local.study, data, run.scale, result.first)
    out.pooled = pool.fvu(pool.train(list(data)))
    out.pooled_total = float(np.mean(list(out.pooled.values())))
    watch("comparator", {"name": "pooled"})
    out.pca = pool.pca()
    out.local_only = local_matrix(pool, lambda name: watch("comparator", {"name": name}))
    return out
