"""What a coordinator wants to see of a study, read from its folder: nothing is asked, nothing is changed.

Works while the study runs, after it, and on a copy of the folder.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from cytosae_core.audit.note import parse_checkpoint, split_note
from cytosae_core.canonical import parse_json
from cytosae_core.config import StudyConfig
from cytosae_core.errors import CytosaeError
from cytosae_core.processes import alive
from cytosae_core.report.inputs import quality_dict

from .faultwords import fault_words
from .study import read_protocol

Json = dict[str, Any]
KEPT_EVENTS = 40
ENROLMENT = (("confirmed", "confirmed"), ("pending", "pending"), ("invites", "invited"))


def snapshot(folder: Path) -> Json:
    """All that is shown, as JSON values.

    Raises:
        StudyError: no protocol in the folder.
    """
    study = read_protocol(folder / "study.yaml")
    state, progress = _json(folder / "net" / "state.json"), _json(folder / "run" / "progress.json")
    records = [_json(path) for path in sorted((folder / "run" / "rounds").glob("*.json"))][1:]
    rounds = [_round(record) for record in records if record]
    done = (folder / "report.json").exists()
    return {
        "study": study.name, "protocol": study.digest, "kind": study.kind, "simulation": study.simulation,
        "status": _status(state, done), "failures": {} if done else dict(state.get("failures", {})),
        "now": _now(study, progress, done),
        "rounds_done": len(rounds), "rounds": study.training.rounds if study.kind == "train" else 0,
        "seconds_left": _left(folder, study, len(rounds)),
        "sites": {site: _site(folder, site, state, progress, rounds) for site in study.sites},
        "training": rounds, "bytes": sum(entry["bytes"] for entry in rounds),
        "programs": {name: _program(child) for name, child in dict(state.get("children", {})).items()},
        "logs": {"coordinator": _head(folder / "run" / "log")}
        | {site: _head(folder / "run" / "mirrors" / site) for site in study.sites},
        "privacy": "no differential privacy is claimed",
        "faults": _faults(progress, rounds), "events": _events(folder), "report": done, "at": int(time.time()),
    }  # fmt: skip


def _status(state: Json, done: bool) -> str:
    if done:
        return "complete"
    status = str(state.get("status", "not started"))
    if status not in ("not started", "stopped") and not alive(int(state.get("pid", 0))):
        return "killed"
    return {"finished:completed": "complete", "": "running"}.get(status, status)


def _now(study: StudyConfig, progress: Json, done: bool) -> Json:
    if done or not progress:
        return {"step": "", "round": 0, "of": 0}
    return {name: progress.get(name, 0) for name in ("step", "round", "of")}


def _left(folder: Path, study: StudyConfig, done: int) -> int | None:
    """Seconds that the rounds still need at the pace of the last ones; None before two are done."""
    paths = sorted((folder / "run" / "rounds").glob("*.json"))[-6:]
    if study.kind != "train" or done < 2 or len(paths) < 3 or (folder / "report.json").exists():
        return None
    times = [path.stat().st_mtime for path in paths]
    pace = float(np.median(np.diff(times)))
    return round(pace * (study.training.rounds - done))


def _round(record: Json) -> Json:
    quality = {
        site: quality_dict(np.array([np.nan if v is None else v for v in values], np.float64))
        for site, values in dict(record.get("quality", {})).items()
    }
    return {
        "round": record.get("round", 0), "bytes": record.get("bytes", 0), "faults": dict(record.get("faults", {})),
        "sites": {site: {"fvu": values["fvu"]} for site, values in quality.items()},
        "received": dict(record.get("received", {})),
    }  # fmt: skip


def _site(folder: Path, site: str, state: Json, progress: Json, rounds: list[Json]) -> Json:
    enrolment = next(
        (word for name, word in ENROLMENT if (folder / "net" / name / f"{site}.json").exists()), ""
    )
    dropped = dict(progress.get("dropped", {})).get(site)
    now = dict(dict(progress.get("sites", {})).get(site, {}))
    fvu = [entry["sites"][site]["fvu"] for entry in rounds if site in entry["sites"]]
    return {
        "enrolment": enrolment, "online": _online(site, state),
        "doing": str(now.get("state", "")), "since": now.get("since"), "dropped": dropped,
        "rounds": sum(site in entry["sites"] for entry in rounds), "fvu": fvu[-1] if fvu else None,
        "bytes": sum(entry["received"].get(site, 0) for entry in rounds),
        "faults": sum(site in entry["faults"] for entry in rounds),
    }  # fmt: skip


def _online(site: str, state: Json) -> bool | None:
    """None: nobody looks, because the study does not run."""
    runs = state.get("online") is not None and _status(state, False) in ("running", "waiting")
    return site in state["online"] if runs else None


def _faults(progress: Json, rounds: list[Json]) -> list[Json]:
    """Newest first: what did not come, why, and what to do."""
    found = [
        (f"round {entry['round']}", site, code) for entry in rounds for site, code in entry["faults"].items()
    ]
    found += [(entry["step"], site, entry["code"]) for site, entry in progress.get("dropped", {}).items()]
    return [
        {"step": step, "site": site, "code": code, "what": fault_words(code)[0], "do": fault_words(code)[1]}
        for step, site, code in reversed(found)
    ]


def _program(child: Mapping[str, Any]) -> Json:
    return {"running": bool(child.get("running")), "starts": int(child.get("starts", 0))}


def _head(folder: Path) -> Json | None:
    """Size and root of the newest signed head; None before the first."""
    try:
        head = parse_checkpoint(split_note((folder / "checkpoint").read_bytes())[0])
    except (OSError, CytosaeError):
        return None
    return {"size": head.size, "root": head.root.hex()}


def _events(folder: Path) -> list[Json]:
    path = folder / "net" / "events.jsonl"
    if not path.exists():
        return []
    lines = path.read_text(encoding="utf-8").splitlines()[-KEPT_EVENTS:]
    out = []
    for line in reversed(lines):
        with contextlib.suppress(ValueError):
            out.append(dict(json.loads(line)))
    return out


def _json(path: Path) -> Json:
    """A file's values; nothing when it is not there. All are written atomically."""
    with contextlib.suppress(OSError, CytosaeError):
        found = parse_json(path.read_bytes())
        return dict(found) if isinstance(found, dict) else {}
    return {}
