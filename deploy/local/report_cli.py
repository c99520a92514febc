"""`cytosae audit report`: compare two reports, and check one against conditions (for CI)."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

MET, NOT_MET, UNREADABLE = 0, 1, 2


def register(commands: Any) -> None:
    """Add the command."""
    parser = commands.add_parser("report", help="compare two reports, or check one against conditions")
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    diff = actions.add_parser("diff", help="what differs: exit 0 nothing, 1 something, 2 not readable")
    diff.add_argument("before", type=Path, metavar="A")
    diff.add_argument("after", type=Path, metavar="B")
    diff.add_argument("--json", action="store_true")
    diff.set_defaults(run=_diff)
    check = actions.add_parser(
        "check",
        help="does a report meet conditions: exit 0 yes, 1 no, 2 not readable",
        description="Conditions: verdict=generalises, integrity=logged, status=real, sites>=5, deviations<=0, "
        "headline.transfer.value>=0.5, headline.transfer.prediction.low>=0.4, concepts.generalising>=10.",
    )
    check.add_argument("report", type=Path, metavar="REPORT.json")
    check.add_argument("--require", nargs="+", action="extend", default=[], metavar="EXPR", required=True)
    check.add_argument("--json", action="store_true")
    check.set_defaults(run=_check)


def _read(path: Path) -> dict[str, Any]:
    """A report.json of a study, or of the folder that it lies in.

    Raises:
        StudyError: missing, not JSON, or not of this form.
    """
    from cytosae_core.canonical import parse_json
    from cytosae_core.errors import CytosaeError, StudyError
    from cytosae_core.report.schema import problems

    path = path / "report.json" if path.is_dir() else path
    try:
        report = parse_json(path.read_bytes(), max_bytes=1 << 28)
    except OSError as error:
        raise StudyError(f"Expected a report at {path}.") from error
    except CytosaeError as error:
        raise StudyError(f"Expected JSON in {path}: {error}") from error
    study = report.get("study") if isinstance(report, dict) else None
    if isinstance(study, dict) and study.get("kind") == "compare":
        raise StudyError(
            f"Expected a study's report.json, {path} compares statistics of data sets.",
            hint="It has no verdict and no conditions; read report.html beside it.",
        )
    if found := problems(report):
        raise StudyError(
            f"Expected a study's report.json in {path}: {found[0]}.", hint="Make it again with this release."
        )
    return dict(report)


def _diff(options: argparse.Namespace) -> int:
    from cytosae_core.errors import CytosaeError
    from cytosae_core.report.diff import diff, lines

    try:
        found = diff(_read(options.before), _read(options.after))
    except CytosaeError as error:
        return _unreadable(error)
    if options.json:
        print(json.dumps({"differences": found}))
    else:
        print("\n".join(lines(found)) or "Nothing differs.")
    return NOT_MET if found else MET


def _check(options: argparse.Namespace) -> int:
    from cytosae_core.errors import CytosaeError
    from cytosae_core.report.checks import require

    try:
        failed = require(_read(options.report), options.require)
    except CytosaeError as error:
        return _unreadable(error)
    if options.json:
        print(json.dumps({"met": not failed, "conditions": len(options.require), "failed": failed}))
    else:
        print(
            "\n".join(f"not met  {line}" for line in failed)
            or f"All {len(options.require)} conditions are met."
        )
    return NOT_MET if failed else MET


def _unreadable(error: Exception) -> int:
    print(f"cytosae: {error}", file=sys.stderr)
    return UNREADABLE
