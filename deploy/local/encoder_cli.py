"""`cytosae encoder`: list and check encoders."""

from __future__ import annotations

import argparse
import json
from pathlib import Path


def register(parser: argparse.ArgumentParser) -> None:
    """Add the commands."""
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    listing = commands.add_parser("list", help="known encoders")
    listing.set_defaults(run=_list)
    check = commands.add_parser("check", help="features of the golden cells: compare between machines")
    check.add_argument("name", nargs="?", default="dinov2-s-demo")
    check.add_argument("--weights", type=Path)
    check.add_argument("--layer", type=int)
    check.add_argument("--json", action="store_true")
    check.set_defaults(run=_check)


def _list(options: argparse.Namespace) -> int:
    from cytosae_core.encoder import ENCODERS

    for name, facts in sorted(ENCODERS.items()):
        print(f"{name:16} d={facts.d:5} blocks={facts.depth}")
    return 0


def _check(options: argparse.Namespace) -> int:
    from cytosae_core.canonical import sha256_hex
    from cytosae_core.encoder import load_encoder

    encoder = load_encoder(options.name, options.weights, layer=options.layer)
    features = encoder.canary()
    norms = [round(float(value), 4) for value in (features**2).sum(axis=1) ** 0.5]
    rounded = sha256_hex(features.round(3).tobytes())
    result = {"encoder": encoder.name, "layer": encoder.layer, "digest": encoder.digest, "norms": norms}
    if options.json:
        print(json.dumps({**result, "sha256_3_decimals": rounded}))
        return 0
    for name, value in result.items():
        print(f"{name:10} {value}")
    return 0
