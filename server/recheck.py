"""Recheck a study folder offline: signatures of kept replies, then every site number that they carry.

What it does not cover: replies of the rounds are kept as digests only, so the averaging itself is not redone.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from cytosae_core import egress
from cytosae_core.canonical import parse_json
from cytosae_core.config import StudyConfig
from cytosae_core.errors import CytosaeError, StudyError
from cytosae_core.report.inputs import quality_dict

from .study import read_protocol, read_site_keys

Check = dict[str, Any]


def recheck(folder: Path) -> list[Check]:
    """One entry per check: what, ok, detail."""
    study, keys = read_protocol(folder / "study.yaml"), read_site_keys(folder / "site-keys.json")
    try:
        report = parse_json((folder / "report.json").read_bytes(), max_bytes=1 << 28)
    except OSError as error:
        raise StudyError("Expected report.json in the folder.", hint="Finish the study first.") from error
    same = report["study"]["protocol_sha256"] == study.digest
    checks: list[Check] = [{"what": "protocol", "ok": same, "detail": study.digest[:16]}]
    for path in sorted((folder / "run" / "replies").glob("*/*.reply")):
        checks += _check_reply(path, study, keys, report)
    if len(checks) == 1:
        checks.append({"what": "replies", "ok": False, "detail": "none kept in run/replies"})
    return checks


def _check_reply(path: Path, study: StudyConfig, keys: dict[str, str], report: dict[str, Any]) -> list[Check]:
    site, step = path.stem, path.parent.name
    what = f"{step} of {site}"
    expected = {"study": study.name, "protocol": study.digest, "site": site}
    try:
        reply = egress.open(path.read_bytes(), keys[site], expected, study.dims)
    except (CytosaeError, KeyError) as error:
        return [{"what": what, "ok": False, "detail": f"signature or content: {error}"}]
    checks: list[Check] = [{"what": what, "ok": True, "detail": f"signed, {reply.size} bytes"}]
    if step == "describe-final":
        fvu = quality_dict(reply.tensors["quality"])["fvu"]
        same = report["sites"][site]["fvu"] == fvu
        checks.append({"what": f"FVU of {site}", "ok": same, "detail": f"{fvu} in the reply"})
        checks.append(_check_concepts(site, reply, report))
    return checks


def _check_concepts(site: str, reply: egress.Reply, report: dict[str, Any]) -> Check:
    targets = report["study"]["targets"]
    wrong = 0
    for concept in report["concepts"]:
        shown = concept["auroc"].get(site)
        if shown is not None:
            value = float(reply.tensors["auroc"][concept["row"], targets.index(concept["target"])])
            wrong += abs(value - shown["value"]) > 1e-4
    return {"what": f"AUROC table of {site}", "ok": wrong == 0, "detail": f"{wrong} differences"}
