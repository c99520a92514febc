"""`cytosae demo`: the whole path on this machine."""

from __future__ import annotations

import argparse
from pathlib import Path


def register(parser: argparse.ArgumentParser) -> None:
    """Add the demo's options."""
    parser.add_argument("--sites", type=Path, help="folder of site folders instead of synthetic hospitals")
    parser.add_argument("--public", help="site folder that is the public corpus for the start, not a member")
    parser.add_argument(
        "--public-member", action="store_true", help="the public corpus also takes part as a site"
    )
    parser.add_argument(
        "--frozen", type=Path, metavar="DICTIONARY",
        help="do not train: test this dictionary (such as demo-out/dictionary) at all sites",
    )  # fmt: skip
    parser.add_argument("--out", type=Path, default=Path("demo-out"), help="where everything is written")
    parser.add_argument("--quick", action="store_true", help="at most 80 images a site, stratified, seed 0")
    parser.add_argument("--json", action="store_true", help="end with one JSON line on standard output")
    parser.add_argument("--rounds", type=int, default=15, help="training rounds (default 15)")
    parser.add_argument("--rows", type=int, default=1024, help="dictionary rows (default 1024)")
    parser.add_argument(
        "--no-comparators", action="store_true", help="skip pooled, local-only and second seed"
    )
    parser.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> int:
    from .demo import run_demo

    return run_demo(options)
