"""`cytosae study`: run a study from its protocol."""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path


def register(parser: argparse.ArgumentParser) -> None:
    """Add the commands."""
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    run = commands.add_parser("run", help="run or resume a study on this machine (simulation)")
    run.add_argument("study", type=Path, metavar="STUDY.yaml")
    run.add_argument("--out", type=Path, help="output folder (default: the study's folder)")
    run.add_argument("--json", action="store_true", help="end with one JSON line on standard output")
    run.add_argument("--no-comparators", action="store_true", help="skip pooled and local-only training")
    run.set_defaults(run=_run)
    show = commands.add_parser("show", help="print a protocol as it will be signed, and its digest")
    show.add_argument("study", type=Path, metavar="STUDY.yaml")
    show.add_argument("--json", action="store_true")
    show.set_defaults(run=_show)


def _run(options: argparse.Namespace) -> int:
    from .demo import print_outcome
    from .yaml_study import run_yaml

    started = time.monotonic()
    out = options.out or options.study.resolve().parent
    report = run_yaml(options.study, out, compare=not options.no_comparators)
    print_outcome(report, out, time.monotonic() - started, as_json=options.json)
    return 0


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
