"""`cytosae study`: plan a study, run it, take it through its stages, hand it to an auditor."""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

from . import privacy_cli, study_admit, study_advance, study_net, study_new, study_plan, study_watch


def register(parser: argparse.ArgumentParser) -> None:
    """Add the commands."""
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    study_new.register(commands)
    study_plan.register(commands)
    run = commands.add_parser(
        "run", help="run or resume a study, or its open stage, on this machine (simulation)"
    )
    run.add_argument("study", type=Path, metavar="STUDY.yaml")
    run.add_argument("--out", type=Path, help="output folder (default: the study's folder)")
    run.add_argument("--json", action="store_true", help="end with one JSON line on standard output")
    run.add_argument("--no-comparators", action="store_true", help="skip pooled and local-only training")
    run.set_defaults(run=_run)
    show = commands.add_parser("show", help="print a protocol as it will be signed, and its digest")
    show.add_argument("study", type=Path, metavar="STUDY.yaml")
    show.add_argument("--json", action="store_true")
    show.set_defaults(run=_show)
    bundle = commands.add_parser("bundle", help="write everything that an auditor needs into one folder")
    bundle.add_argument(
        "folder", type=Path, metavar="OUT", help="folder of a finished study, with run/ and report.json"
    )
    bundle.add_argument("--to", type=Path, help="the bundle's folder, new or empty (default: OUT/bundle)")
    bundle.add_argument("--no-updates", action="store_true", help="without the sites' replies of the rounds")
    bundle.set_defaults(run=_bundle)
    study_advance.register(commands)
    study_admit.register(commands)
    privacy_cli.register(commands)
    study_net.register(commands)
    study_watch.register(commands)


def _run(options: argparse.Namespace) -> int:
    from .demo import print_outcome
    from .yaml_study import result_folder, run_yaml

    started = time.monotonic()
    out = options.out or options.study.resolve().parent
    report = run_yaml(options.study, out, compare=not options.no_comparators)
    print_outcome(report, result_folder(out), time.monotonic() - started, as_json=options.json)
    return 0


def _bundle(options: argparse.Namespace) -> int:
    from cytosae_server.bundle import bundle_command

    return int(bundle_command(options))


def _show(options: argparse.Namespace) -> int:
    from cytosae_server.study import read_protocol

    study = read_protocol(options.study)
    if options.json:
        print(json.dumps({**study.to_dict(), "sha256": study.digest}))
        return 0
    for name, value in study.to_dict().items():
        print(f"{name:12} {value}")
    print(f"{'sha256':12} {study.digest}")
    return 0
