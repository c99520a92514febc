"""`cytosae study invite|confirm|start|resume|status|stop`: a study between hospitals, over Flower."""

from __future__ import annotations

import argparse
import json
import os
import signal
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cytosae_core.processes import alive

if TYPE_CHECKING:
    from cytosae_core.config import StudyConfig

STOP_S = 60.0


def register(commands: Any) -> None:
    """Add the commands."""
    invite = commands.add_parser(
        "invite", help="write one site's invite: a small file without secrets of yours"
    )
    invite.add_argument("site", metavar="SITE")
    _folder(invite)
    invite.add_argument(
        "--endpoint", metavar="HOST:PORT", help="where sites reach this machine; kept for the next one"
    )
    invite.add_argument("--days", type=int, default=14, help="the invite is good for so long (default 14)")
    invite.add_argument("--to", type=Path, metavar="FILE", help="default: SITE.invite.json")
    invite.set_defaults(run=_invite)
    confirm = commands.add_parser(
        "confirm", help="let a site in, after its fingerprint was read out by phone"
    )
    confirm.add_argument("site", metavar="SITE")
    _folder(confirm)
    confirm.add_argument("--fingerprint", required=True, metavar="TEXT", help="what the site reads out")
    confirm.add_argument("--enrolment", type=Path, metavar="FILE", help="of a site that could not send it")
    confirm.set_defaults(run=_confirm)
    for name, text in (
        ("start", "open the study to its sites and run it to its end"),
        ("resume", "the same as start"),
    ):
        start = commands.add_parser(name, help=text)
        _folder(start)
        start.add_argument(
            "--listen", default="0.0.0.0:8443", metavar="HOST:PORT", help="default 0.0.0.0:8443"
        )
        start.add_argument(
            "--wait", type=float, default=3600.0, metavar="SECONDS", help="for all sites (default 3600)"
        )
        start.add_argument(
            "--without", action="append", default=[], metavar="SITE", help="do not wait for this one"
        )
        start.add_argument(
            "--by-files", action="append", default=[], metavar="SITE",
            help="this site has no network: its messages are files in OUT/net/mail/SITE",
        )  # fmt: skip
        start.set_defaults(run=_start)
    for name, text, run in (
        ("status", "sites, run and programs", _status),
        ("stop", "stop it; resumable", _stop),
    ):
        other = commands.add_parser(name, help=text)
        _folder(other)
        other.set_defaults(run=run)

    keep = commands.add_parser(
        "backup", help="a stopped study as one file (it holds the study's private keys)"
    )
    _folder(keep)
    keep.add_argument("--to", type=Path, required=True, metavar="FILE")
    keep.set_defaults(run=_backup)
    back = commands.add_parser("restore", help="make a study's folder from the newest backup")
    back.add_argument("file", type=Path, metavar="FILE")
    _folder(back)
    back.set_defaults(run=_restore)


def _backup(options: argparse.Namespace) -> int:
    from cytosae_server.backup import backup

    facts = backup(options.folder, options.to)
    print(
        json.dumps(facts) if options.json else f"{facts['path']}: {facts['files']} files. Keep it like a key."
    )
    return 0


def _restore(options: argparse.Namespace) -> int:
    from cytosae_server.backup import restore

    facts = restore(options.file, options.folder)
    print(
        json.dumps(facts) if options.json else f"{facts['path']}: {facts['files']} files, all as they were."
    )
    return 0


def _folder(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", type=Path, metavar="OUT", help="the study's folder")
    parser.add_argument("--json", action="store_true")


def _invite(options: argparse.Namespace) -> int:
    from cytosae_core.errors import StudyError
    from cytosae_core.keys import fingerprint
    from cytosae_core.tensors import write_atomic
    from cytosae_server.enrolment import Enrolments

    held = Enrolments(options.folder)
    _needs_start(options.folder, held.study)
    kept = held.net / "endpoint"
    endpoint = options.endpoint or (kept.read_text().strip() if kept.exists() else "")
    if not endpoint:
        raise StudyError(
            "Expected --endpoint HOST:PORT for the first invite.", hint="The address that sites reach."
        )
    data = held.invite(options.site, endpoint, days=options.days)
    write_atomic(kept, endpoint.encode())
    path = options.to or Path(f"{options.site}.invite.json")
    write_atomic(path, data)
    shown = fingerprint(held.key.public_hex)
    if options.json:
        print(
            json.dumps(
                {"path": str(path), "site": options.site, "study_fingerprint": shown, "bytes": len(data)}
            )
        )
        return 0
    print(f"{path}: send it to {options.site}. It is good for {options.days} days and one site.")
    print(f"Fingerprint of the study, to read out by phone: {shown}")
    return 0


def _needs_start(folder: Path, study: StudyConfig) -> None:
    """Raises StudyError where the protocol names a start file and the folder has none, or another one."""
    from cytosae_core.errors import StudyError
    from cytosae_core.sae.checkpoint import load_checkpoint

    if study.kind == "train" and study.dictionary.init == "random":
        return
    try:
        load_checkpoint(folder / "start", sha256=study.dictionary.digest)
    except StudyError as error:
        raise StudyError(
            f"Expected the protocol's start file as start.safetensors and start.json in {folder}: {error.args[0]}",
            hint="Copy both files there, before the first invite: sites fetch them, and invites name the digest.",
        ) from error


def _confirm(options: argparse.Namespace) -> int:
    from cytosae_server.enrolment import Enrolments

    held = Enrolments(options.folder)
    if options.enrolment:
        held.receive(options.enrolment.read_bytes())
    shown = held.confirm(options.site, options.fingerprint)
    carry = held.to_carry(options.site) if options.enrolment else None
    if options.json:
        print(json.dumps({"site": options.site, "fingerprint": shown, "states": held.states()}))
        return 0
    left = [site for site, state in held.states().items() if state != "confirmed"]
    print(f"{options.site} is in the study (key {shown}).")
    if carry:
        print(f"To carry to it, for `cytosae site import`: the files in {carry}")
    print(
        f"Not yet confirmed: {', '.join(left)}."
        if left
        else f"All are in: cytosae study start {options.folder}"
    )
    return 0


def _start(options: argparse.Namespace) -> int:
    from cytosae_core.errors import StudyError
    from cytosae_server.runner import Listen, Runner
    from cytosae_server.study import read_protocol

    host, _, port = options.listen.rpartition(":")
    kept = options.folder / "net" / "endpoint"
    if not host or not port.isdigit() or not kept.exists():
        raise StudyError(
            "Expected --listen HOST:PORT, and an invite before.", hint="cytosae study invite SITE OUT"
        )
    _needs_start(options.folder, read_protocol(options.folder / "study.yaml"))
    name = kept.read_text().strip().rpartition(":")[0]

    def say(text: str) -> None:
        print(text, flush=True)

    runner = Runner(
        options.folder, Listen(host, int(port), (name,)), without=tuple(options.without),
        by_files=tuple(options.by_files), say=say,
    )  # fmt: skip
    signal.signal(signal.SIGTERM, _interrupted)
    try:
        return int(runner.run(wait_s=options.wait))
    except KeyboardInterrupt:
        print("Stopped; the same command goes on.", flush=True)
        return 130


def _interrupted(number: int, frame: object) -> None:
    raise KeyboardInterrupt


def _state(folder: Path) -> dict[str, Any]:
    path = folder / "net" / "state.json"
    found = json.loads(path.read_text()) if path.exists() else {}
    return {} if found.get("status") == "stopped" else dict(found)


def _status(options: argparse.Namespace) -> int:
    from cytosae_server.enrolment import Enrolments

    held, state = Enrolments(options.folder), _state(options.folder)
    rounds = sorted((options.folder / "run" / "rounds").glob("*.json"))
    ended = (
        "complete" if (options.folder / "report.json").exists() else "stopped" if rounds else "not started"
    )
    facts = {
        "study": held.study.name, "sites": held.states(), "online": state.get("online", []),
        "run": state.get("status", ended), "rounds_done": max(0, len(rounds) - 1),
        "rounds": held.study.training.rounds if held.study.kind == "train" else 0,
        "report": (options.folder / "report.json").exists(), "programs": state.get("children", {}),
    }  # fmt: skip
    if options.json:
        print(json.dumps(facts))
        return 0
    print(f"{facts['study']}: {facts['run']}, round {facts['rounds_done']} of {facts['rounds']}")
    for site, where in facts["sites"].items():
        print(f"  {site:24} {where or 'not invited'}")
    for name, child in facts["programs"].items():
        print(f"  {name:24} {'runs' if child['running'] else 'DOWN'}, started {child['starts']} times")
    return 0


def _stop(options: argparse.Namespace) -> int:
    state = _state(options.folder)
    pid = int(state.get("pid", 0))
    if not pid or not alive(pid):
        print(json.dumps({"stopped": False}) if options.json else "The study does not run.")
        return 0
    os.kill(pid, signal.SIGTERM)
    end = time.monotonic() + STOP_S
    while alive(pid) and time.monotonic() < end:
        time.sleep(0.2)
    gone: bool = not alive(pid)
    print(json.dumps({"stopped": gone}) if options.json else "Stopped." if gone else f"pid={pid} still runs.")
    return int(not gone)
