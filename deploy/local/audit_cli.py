"""`cytosae audit`: check the sealed replies of a run against the report."""

from __future__ import annotations

import argparse
import json
from pathlib import Path


def register(parser: argparse.ArgumentParser) -> None:
    """Add the commands."""
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    replies = commands.add_parser("replies", help="verify every kept reply and recompute the site tables")
    replies.add_argument("folder", type=Path, metavar="OUT", help="study folder with run/ and report.json")
    replies.add_argument("--json", action="store_true")
    replies.set_defaults(run=_replies)


def _replies(options: argparse.Namespace) -> int:
    from cytosae_server.recheck import recheck

    checks = recheck(options.folder)
    if options.json:
        print(json.dumps(checks))
    else:
        for check in checks:
            print(f"{'PASS' if check['ok'] else 'FAIL'}  {check['what']}  {check['detail']}")
    return 0 if all(check["ok"] for check in checks) else 1
