"""A finished study's result from its run folder, without asking any site: what `cytosae study report` draws again.

What no file of the run holds is taken from the report that is there: comparators and the second seed of a simulation,
the codes of sites that did not answer, deviations and the open stage.
"""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cytosae_core.audit.log import Log
from cytosae_core.audit.note import origin_of
from cytosae_core.audit.statement import read_leaf
from cytosae_core.canonical import parse_json
from cytosae_core.config import COORDINATOR, StudyConfig, study_from_dict
from cytosae_core.envelope import body_of
from cytosae_core.errors import StudyError
from cytosae_core.keys import SigningKey
from cytosae_core.lineage import MODEL_TENSORS
from cytosae_core.privacy.secagg_wire import SUMS
from cytosae_core.report.build import build
from cytosae_core.report.build_acquisition import stated_faults
from cytosae_core.report.evidence import Evidence
from cytosae_core.report.inputs import Comparators, RoundRecord, StudyResult
from cytosae_core.sae.checkpoint import load_checkpoint
from cytosae_core.tensors import unpack_tensors

from .deviations import Deviations
from .private import Total, added_rows, take_private
from .runfolder import ReplyTables, RunFolder
from .tally import header_of, tally

Array = NDArray[Any]
Json = dict[str, Any]


def rebuilt(folder: Path) -> Json:
    """report.json's values of the finished study in `folder`, from its run folder.

    Raises:
        StudyError: no finished study is there.
    """
    path = folder / "report.json"
    if not path.exists() or not (folder / "run" / "study.json").exists():
        raise StudyError(f"Expected a finished study in {folder}.", hint="Run it to its report first.")
    study = study_from_dict(parse_json((folder / "run" / "study.json").read_bytes()))
    stated = parse_json(path.read_bytes(), max_bytes=1 << 28)
    if not isinstance(stated, dict) or "comparators" not in stated:
        raise StudyError(f"Expected the report of a study in {path}.")
    result = _result(folder, study, stated)
    facts = {
        "encoder_depth": stated["encoder"]["depth"],
        "canary_tolerance": stated["encoder"]["canary_tolerance"],
    }
    report = build(Evidence(study, result, _comparators(stated), **facts), stability=stated["stability"])
    return report


def _comparators(stated: Json) -> Comparators | None:
    given, known = stated["comparators"], stated["overall"]["pooled_fvu"]
    if not any(given[name] for name in ("pooled", "local_only", "pca")) and known is None:
        return None
    return Comparators(given["pooled"] or {}, known, given["local_only"] or {}, given["pca"] or {})


def _result(folder: Path, study: StudyConfig, stated: Json) -> StudyResult:
    run, result = RunFolder(folder / "run", study), StudyResult()
    _hello(run, result)
    result.begin = {site: tensors["quality"] for site, tensors in _tensors(run, "begin").items()}
    for which in ("final", "random", "init"):
        sites = sorted(run.kept_replies(f"describe-{which}"))
        if sites:
            result.describe[which] = ReplyTables(run, f"describe-{which}", sites)
    result.scores = ReplyTables(run, "score", sorted(run.kept_replies("score")))
    _rounds(run, result)
    if study.kind != "train" or study.profile == "dp":
        tensors = load_checkpoint(folder / "run" / "start").tensors
        result.final = next(tensors[name] for name in MODEL_TENSORS if name in tensors)
    if study.profile == "dp":
        sums = {kind: run.kept_sum(kind) for kind in SUMS}
        totals = {kind: None if found is None else Total(*found) for kind, found in sums.items()}
        result.first, result.final = added_rows(study, result.final, totals)
        take_private(result, result.describe.get("final", {}))
    result.faults = stated_faults(stated)
    notes = Deviations(folder, SigningKey.load_or_create(folder / "study.key"), study)
    told = list((stated.get("protocol") or {}).get("deviations") or [])
    result.stage, result.deviations = study.stage or None, notes.printed() or told
    _tally(folder, study, result)
    return result


def _tensors(run: RunFolder, step: str) -> dict[str, dict[str, Array]]:
    return {site: unpack_tensors(body_of(data)) for site, data in run.kept_replies(step).items()}


def _hello(run: RunFolder, result: StudyResult) -> None:
    tables = _tensors(run, "hello")
    for site in tables:
        result.facts[site] = header_of(run.folder / "replies" / "hello" / f"{site}.reply")["facts"]
    result.take_counts(tables)
    features = [tensors["canary"] for tensors in tables.values()]
    middle = np.median(features, axis=0)
    size = max(float(np.sqrt((middle**2).mean())), 1e-12)
    result.canary_difference = max(float(np.abs(values - middle).max()) / size for values in features)


def _rounds(run: RunFolder, result: StudyResult) -> None:
    records = run.rounds()
    for record in records[1:]:
        quality = {
            site: np.array([np.nan if value is None else value for value in values], dtype=np.float32)
            for site, values in record["quality"].items()
        }
        result.rounds.append(RoundRecord(record["round"], quality, record["bytes"], record["faults"]))
    if records:
        result.first = run.dictionary(0, records[0]["dictionary"])
        result.final = run.dictionary(records[-1]["round"], records[-1]["dictionary"])


def _tally(folder: Path, study: StudyConfig, result: StudyResult) -> None:
    """What arrived before the first report was made, from the coordinator's own log."""
    run, key = folder / "run", SigningKey.load_or_create(folder / "study.key")
    log_key = SigningKey.load_or_create(run / "keys" / "log.key")
    origin = origin_of(study.digest, COORDINATOR)
    opened = Log.open(
        run / "log", origin=origin, party=COORDINATOR, study=study.name, protocol=study.digest,
        signing=key, log_key=log_key,
    )  # fmt: skip
    with closing(opened) as log:
        keys = {key.public_hex[:16]: key.public_hex}
        found = [read_leaf(leaf, keys) for leaf in log.leaves(0, log.size)]
        end = min((item.predicate["seq"] for item in found if item.kind == "report"), default=log.size)
        receipts = [
            item.predicate for item in found if item.kind == "ingress" and item.predicate["seq"] < end
        ]
        tally(result, receipts, run / "payloads", log)
