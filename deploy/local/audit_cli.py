"""`cytosae audit`: check a bundle, redo its computations, read single log entries, build the standalone verifier."""

from __future__ import annotations

import argparse
from pathlib import Path


def register(parser: argparse.ArgumentParser) -> None:
    """Add the commands."""
    from . import report_cli

    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    verify = commands.add_parser(
        "verify", help="check a bundle offline: exit 0 all passed, 1 failed, 2 not all checked"
    )
    verify.add_argument("bundle", type=Path, metavar="BUNDLE")
    verify.add_argument(
        "--keys", type=Path, help="keys.json as the parties gave it to you, not the bundle's own"
    )
    verify.add_argument("--json", action="store_true")
    verify.set_defaults(run=_verify)
    replay = commands.add_parser("replay", help="redo every round, report.json and report.html from a bundle")
    replay.add_argument("bundle", type=Path, metavar="BUNDLE")
    replay.add_argument("--json", action="store_true")
    replay.set_defaults(run=_replay)
    explain = commands.add_parser(
        "explain", help="say in words what a log entry says and what it is bound to"
    )
    explain.add_argument(
        "leaf", metavar="BUNDLE/PARTY/INDEX", help="such as bundle/site-a/12, or a file with one entry"
    )
    explain.set_defaults(run=_explain)
    pyz = commands.add_parser("pyz", help="build verifier.pyz: needs only Python and `cryptography`")
    pyz.add_argument("out", type=Path, metavar="OUT.pyz")
    pyz.set_defaults(run=_pyz)
    report_cli.register(commands)


def _verify(options: argparse.Namespace) -> int:
    from cytosae_core.audit.recompute.__main__ import run

    return run(options.bundle, options.keys, options.json)


def _replay(options: argparse.Namespace) -> int:
    from cytosae_core.audit.recompute.__main__ import read_bundle, show
    from cytosae_server.replay import replay_bundle

    return show(replay_bundle(read_bundle(options.bundle)), str(options.bundle), options.json)


def _explain(options: argparse.Namespace) -> int:
    from .audit_explain import explain

    print("\n".join(explain(options.leaf)))
    return 0


def _pyz(options: argparse.Namespace) -> int:
    from cytosae_core.canonical import sha256_hex

    from .verifier_pyz import build_pyz

    data = build_pyz()
    options.out.write_bytes(data)
    print(f"{options.out}: {len(data):,} bytes. Publish its SHA-256 apart from every bundle:")
    print(sha256_hex(data))
    return 0
