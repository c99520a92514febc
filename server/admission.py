"""A new site against a finished study: one site is asked, the finished sites' released tables stand in for theirs.

The new site sees an ordinary `validate` study: hello, describe of the finished (frozen) dictionary, score with probes
made from the finished sites' released class moments. No finished site is asked anything.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cytosae_core.audit.log import Log
from cytosae_core.audit.note import origin_of
from cytosae_core.audit.statement import read_leaf
from cytosae_core.canonical import parse_json, sha256_hex
from cytosae_core.config import COORDINATOR, SITE_NAME, RoundsConfig, StudyConfig, study_from_dict
from cytosae_core.envelope import REPLY, unpack
from cytosae_core.errors import StudyError
from cytosae_core.keys import SigningKey
from cytosae_core.lineage import MODEL_TENSORS
from cytosae_core.report.inputs import StudyResult
from cytosae_core.sae.checkpoint import Checkpoint, load_checkpoint
from cytosae_core.sae.scale import TokenScale
from cytosae_core.tensors import unpack_tensors

from .coordinator import Coordinator
from .loop import CANARY_TOLERANCE, StudyRun, Watch
from .record import pinned_keys
from .runfolder import ReplyTables, RunFolder
from .stages import checked_report
from .transport import Transport

Array = NDArray[Any]
MAX_NAME = 100


@dataclass(frozen=True)
class Finished:
    """A finished study, read back and checked.

    Attributes:
        study: its protocol (of a stage: the stage's). report, report_sha256: its report.json.
        key: the study key. site_keys: the sites' pinned keys, from the coordinator's log.
        model: its final dictionary with token mean and scale.
        tables: site -> released tables of the final dictionary. counts, canaries: from hello, by site.
    """

    study: StudyConfig
    report: dict[str, Any]
    report_sha256: str
    key: SigningKey
    site_keys: Mapping[str, str]
    model: Checkpoint
    tables: Mapping[str, Mapping[str, Array]]
    counts: Mapping[str, Array]
    canaries: Mapping[str, Array]


def read_finished(folder: Path) -> Finished:
    """The finished study in `folder` (of a study with stages: in its stage's folder).

    Raises:
        StudyError: not finished, or report or dictionary are not what was logged.
        VerificationError: a kept reply is not what its site signed.
    """
    path = folder / "run" / "study.json"
    if not path.exists() or not (folder / "study.key").exists():
        raise StudyError(f"Expected a finished study in {folder}.", hint="Run it to its report first.")
    study, key = (
        study_from_dict(parse_json(path.read_bytes())),
        SigningKey.load_or_create(folder / "study.key"),
    )
    report, digest = checked_report(folder, study, key)
    site_keys = _pinned(folder, study, key)
    run = RunFolder(folder / "run", study)
    described = run.kept_replies("describe-final")
    for site, data in described.items():
        unpack(data, REPLY, site_keys[site])
    hello = {site: unpack(data, REPLY, site_keys[site]) for site, data in run.kept_replies("hello").items()}
    tensors = {site: unpack_tensors(envelope.body) for site, envelope in hello.items()}
    return Finished(
        study, report, digest, key, site_keys, _model(folder, study, report),
        ReplyTables(run, "describe-final", sorted(described)),
        {site: found["counts"] for site, found in tensors.items()},
        {site: found["canary"] for site, found in tensors.items()},
    )  # fmt: skip


def _model(folder: Path, study: StudyConfig, report: Mapping[str, Any]) -> Checkpoint:
    path = folder / "dictionary" if study.kind == "train" else folder / "run" / "start"
    found = load_checkpoint(path)
    rows = next((found.tensors[name] for name in MODEL_TENSORS if name in found.tensors), np.zeros(0))
    if sha256_hex(np.ascontiguousarray(rows).tobytes()) != report["dictionary"]["sha256"]:
        raise StudyError(
            f"Expected the dictionary of the report at {path}.", hint="Restore it from a backup."
        )
    return found


def _pinned(folder: Path, study: StudyConfig, key: SigningKey) -> dict[str, str]:
    run, origin = folder / "run", origin_of(study.digest, COORDINATOR)
    opened = Log.open(
        run / "log", origin=origin, party=COORDINATOR, study=study.name, protocol=study.digest,
        signing=key, log_key=SigningKey.load_or_create(run / "keys" / "log.key"),
    )  # fmt: skip
    with closing(opened) as log:
        first = read_leaf(log.leaf(0), {key.public_hex[:16]: key.public_hex})
    return pinned_keys(run, first.predicate)


def admission_protocol(finished: Finished, site: str) -> StudyConfig:
    """The protocol that the new site sees: kind validate, the finished dictionary, and itself as the last site.

    Raises:
        StudyError: the name is not a site's, or the site took part already.
    """
    study = finished.study
    if not SITE_NAME.fullmatch(site) or site == COORDINATOR:
        raise StudyError("Expected a site name of letters, digits, '.', '_' and '-', at most 64.")
    if site in study.sites:
        raise StudyError(
            f"Expected a new site, site={site} took part in the study.", hint="Its numbers are in the report."
        )
    known = tuple(name for name in study.sites if name in finished.tables)
    question = (
        f"Does site {site} lie where the study {study.name} expects a new site? Its protocol is {study.digest}, "
        f"its report {finished.report_sha256}."
    )
    return StudyConfig(
        name=f"{study.name[: MAX_NAME - len(site) - 7]} admit {site}",
        sites=(*known, site),
        kind="validate",
        profile="evaluate_only",
        question=question,
        simulation=study.simulation,
        seed=study.seed,
        min_units=study.min_units,
        encoder=replace(study.encoder, digest=finished.report["encoder"]["digest"] or ""),
        dictionary=replace(study.dictionary, init="file", digest=finished.model.sha256),
        rounds=RoundsConfig(quorum=1, deadline_s=study.rounds.deadline_s, retries=study.rounds.retries),
        statistics=study.statistics,
        plan=replace(study.plan, stages=()),
    )


class AdmissionRun(StudyRun):
    """A run that asks the last site of its protocol only.

    Args:
        finished: the study that the site is compared with. site_key: the new site's pinned public key.
        others: as of `StudyRun`.
    """

    def __init__(
        self,
        finished: Finished,
        study: StudyConfig,
        site_key: str,
        transport: Transport,
        folder: RunFolder,
        watch: Watch = lambda event, details: None,
    ) -> None:
        keys = {**finished.site_keys, study.sites[-1]: site_key}
        coordinator = Coordinator(study, finished.key, {site: keys[site] for site in study.sites})
        super().__init__(coordinator, transport, folder, finished.model.tensors, watch)
        self._finished, self.site = finished, study.sites[-1]
        self._members = [self.site]

    def run(self, *, train_only: bool = False) -> StudyResult:
        """hello, describe and score with the new site; the result holds the finished sites' tables and counts too.

        Raises:
            StudyError: the site did not answer, or its golden cells give other features than the finished sites'.
        """
        result = super().run(train_only=train_only)
        result.counts = {**self._finished.counts, **result.counts}
        return result

    def _hello(self) -> None:
        super()._hello()
        data = self._folder.kept_replies("hello")[self.site]
        own = unpack_tensors(unpack(data, REPLY, self._coordinator.site_keys[self.site]).body)["canary"]
        middle = np.median(list(self._finished.canaries.values()), axis=0)
        size = max(float(np.sqrt((middle**2).mean())), 1e-12)
        self.result.canary_difference = float(np.abs(own - middle).max()) / size
        if self.result.canary_difference > CANARY_TOLERANCE:
            raise StudyError(
                f"Expected golden cells within {CANARY_TOLERANCE} of the finished sites', "
                f"got {self.result.canary_difference:.2g}.",
                hint="Install the same release and weights as the study's sites.",
            )

    def _describe(self, model: Mapping[str, Array], scale: TokenScale) -> None:
        super()._describe(model, scale)
        own = self.result.describe["final"]
        if self.site not in own:
            raise StudyError(
                f"Expected site={self.site} to describe the dictionary.", hint="Look at its log."
            )
        self.result.describe["final"] = Joined(own, self._finished.tables)


class Joined(Mapping[str, Mapping[str, Array]]):
    """Tables of two sets of sites, read on demand."""

    def __init__(self, *parts: Mapping[str, Mapping[str, Array]]) -> None:
        self._parts = parts

    def __getitem__(self, site: str) -> Mapping[str, Array]:
        for part in self._parts:
            if site in part:
                return part[site]
        raise KeyError(site)

    def __iter__(self) -> Iterator[str]:
        return (site for part in self._parts for site in part)

    def __len__(self) -> int:
        return sum(map(len, self._parts))
