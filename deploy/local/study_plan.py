"""`cytosae study plan`: the protocol as a document that a hospital reads and signs."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

SUFFIXES = (".html", ".md")


def register(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command."""
    plan = commands.add_parser("plan", help="the protocol as a document that a hospital reads and signs")
    plan.add_argument("study", type=Path, metavar="STUDY.yaml")
    plan.add_argument(
        "--out", type=Path, metavar="FILE", help="FILE.html or FILE.md (default: on the screen)"
    )
    plan.add_argument("--json", action="store_true", help="the document's values as JSON")
    plan.set_defaults(run=_plan)


def _plan(options: argparse.Namespace) -> int:
    from cytosae_core.errors import StudyError
    from cytosae_core.report.plan_document import plan_document
    from cytosae_core.report.plan_page import plan_markdown, render_plan
    from cytosae_core.tensors import write_atomic
    from cytosae_server.study import read_protocol

    path: Path = options.study / "study.yaml" if options.study.is_dir() else options.study
    if options.out and options.out.suffix not in SUFFIXES:
        raise StudyError(f"Expected --out to end in {' or '.join(SUFFIXES)}, got {options.out.name}.")
    if options.out and options.out.resolve() == path.resolve():
        raise StudyError("Expected --out to be another file than the protocol.")
    document = plan_document(read_protocol(path))
    if options.out:
        text = render_plan(document) if options.out.suffix == ".html" else plan_markdown(document)
        options.out.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(options.out, text.encode())
    if options.json:
        print(json.dumps({**document, "path": str(options.out) if options.out else None}, allow_nan=False))
    elif options.out:
        print(f"{options.out}  (protocol sha256 {document['sha256']})")
    else:
        print(plan_markdown(document), end="")
    return 0
