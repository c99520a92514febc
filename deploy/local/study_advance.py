"""`cytosae study advance|deviate|report`: what a coordinator does with a study between its runs."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cytosae_server.stages import Outcome

SAME = "It is the report that the coordinator's log holds, byte for byte."
OTHER = (
    "It is NOT the report that the coordinator's log holds (later deviations, or another release of the program): an "
    "auditor's bundle made from it will not verify. The logged one can be made again by the release that made it."
)


def register(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the commands."""
    advance = commands.add_parser(
        "advance", help="check the open stage's criteria; open the next if all are met"
    )
    _folder(advance)
    advance.add_argument("--check", action="store_true", help="look only: open nothing")
    advance.add_argument("--json", action="store_true")
    advance.set_defaults(run=_advance)
    deviate = commands.add_parser("deviate", help="record what is done otherwise than the protocol says")
    _folder(deviate)
    deviate.add_argument("--what", required=True, metavar="TEXT", help="what is done otherwise, one sentence")
    deviate.add_argument("--why", required=True, metavar="TEXT", help="the reason, one sentence")
    deviate.add_argument("--json", action="store_true")
    deviate.set_defaults(run=_deviate)
    report = commands.add_parser("report", help="make the report's files again, without asking any site")
    _folder(report)
    report.add_argument("--json", action="store_true")
    report.set_defaults(run=_report)


def _folder(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", type=Path, metavar="OUT", help="folder of the study, with study.yaml")


def _advance(options: argparse.Namespace) -> int:
    from cytosae_server.stages import Stages

    stages = Stages(options.folder)
    if not stages.opened:
        return _first(options, stages.study.plan.stages[0].name, stages.start if not options.check else None)
    outcome = stages.check() if options.check else stages.advance()
    if options.json:
        print(json.dumps(outcome.to_dict(), allow_nan=False))
    else:
        _print(outcome, options.folder, check=options.check)
    return 0 if outcome.met else 1


def _first(options: argparse.Namespace, name: str, start: object) -> int:
    """No stage is open yet: nothing has to be met for the first one."""
    if callable(start):
        start()
    opened = start is not None
    if options.json:
        facts: dict[str, object] = {
            "stage": None,
            "met": True,
            "criteria": [],
            "next": name,
            "opened": opened,
        }
        print(json.dumps(facts))
    else:
        print(f"Stage {name} {'is open now' if opened else 'comes first'}: nothing has to be met for it.")
        print(f"Next: cytosae study run {options.folder / 'study.yaml'}")
    return 0


def _print(outcome: Outcome, folder: Path, *, check: bool) -> None:
    print(f"Stage {outcome.stage}, report sha256 {outcome.report_sha256[:16]}... as logged.")
    for item in outcome.findings:
        value = "no value" if item.value is None else f"{item.value:g} from {item.sites} of its sites"
        reason = f" ({item.reason})" if item.reason else ""
        print(f"  {'met    ' if item.met else 'NOT MET'}  {item.asked}: {value}{reason}")
    if not outcome.findings:
        print("  The protocol asks for no criteria here: a finished report is enough.")
    if not outcome.met:
        print(
            "The next stage stays closed."
            if outcome.next
            else "This is the last stage: its criteria are not met."
        )
    elif not outcome.next:
        print("This is the last stage: the study has met all that the protocol asked for.")
    elif check:
        print(f"Stage {outcome.next} can be opened: the same command without --check.")
    else:
        print(f"Stage {outcome.next} is open now. Next: cytosae study run {folder / 'study.yaml'}")


def _deviate(options: argparse.Namespace) -> int:
    from cytosae_core.keys import SigningKey
    from cytosae_server.deviations import Deviations
    from cytosae_server.stages import Stages
    from cytosae_server.study import read_protocol

    study, folder = read_protocol(options.folder / "study.yaml"), options.folder
    if study.plan.stages and not study.stage:
        stages = Stages(folder)
        study, folder = (stages.protocol, stages.folder) if stages.opened else (study, folder)
    notes = Deviations(folder, SigningKey.load_or_create(options.folder / "study.key"), study)
    new = notes.add(options.what, options.why)
    count, path = len(notes.printed()), folder / "deviations.json"
    if options.json:
        print(json.dumps({"path": str(path), "new": new, "count": count}))
        return 0
    print(f"{'Recorded' if new else 'It stands there already'}: {path}, {count} in all.")
    if (folder / "report.json").exists():
        print(
            "The report does not show it yet. Run the study again: no number is asked for again, and the sites"
        )
        print("cosign a report that prints it (a simulation runs afresh).")
    return 0


def _report(options: argparse.Namespace) -> int:
    from cytosae_core.canonical import parse_json, sha256_file
    from cytosae_core.config import study_from_dict
    from cytosae_core.keys import SigningKey
    from cytosae_server.stages import logged_reports
    from cytosae_server.study import rebuild_report

    from .yaml_study import result_folder

    folder = result_folder(options.folder)
    report = rebuild_report(folder)
    names = [name for name in ("report.json", "report.html", "report.csv") if (folder / name).exists()]
    study = study_from_dict(parse_json((folder / "run" / "study.json").read_bytes()))
    logged = logged_reports(folder, study, SigningKey.load_or_create(folder / "study.key"))
    same = sha256_file(folder / "report.json") in logged
    if options.json:
        facts = {"folder": str(folder), "files": names, "logged": same, "answer": report.get("answer")}
        print(json.dumps(facts, allow_nan=False))
        return 0
    print("\n".join(str(folder / name) for name in names))
    print(SAME if same else OTHER)
    return 0
