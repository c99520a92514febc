"""Target: across sites, concepts classify white cells at least as well as the raw embeddings they come from.

    python -m benchmarks.transfer SITES_FOLDER OUT [--quick] --json

Leave-one-site-out balanced accuracy, features and strength chosen on the training sites only (`cytosae concepts
transfer`). `gap` is concepts minus raw embeddings with its 95 % interval: `met` when it is not below zero, `tie` when
the interval holds zero.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import sys
import time
from pathlib import Path
from typing import Any

from cytosae_local import worth_cli


def summary(table: dict[str, Any]) -> dict[str, Any]:
    """Per form: both accuracies, the gap with its interval, and the controls."""
    out = {}
    for form, found in table["forms"].items():
        rows, gap = found["rows"], found["difference"]["selected"]
        out[form] = {
            "concepts": rows["concepts, selected"]["mean"]["value"],
            "raw": rows["raw, selected"]["mean"]["value"],
            "random_dictionary": rows["random dictionary"]["mean"]["value"],
            "shuffled_labels": rows["shuffled labels"]["mean"]["value"],
            "gap": [gap["value"], gap["low"], gap["high"]],
            "met": gap["value"] >= 0,
            "tie": gap["low"] <= 0 <= gap["high"],
        }
    return out


def main() -> int:
    """Run the command and print one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("sites", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    commands = argparse.ArgumentParser()
    worth_cli.register(commands.add_subparsers(required=True))
    extra = ["--quick"] if given.quick else ["--seeds", "3"]
    options = commands.parse_args(["transfer", str(given.sites), str(given.out), "--json", *extra])
    started = time.perf_counter()
    with contextlib.redirect_stdout(io.StringIO()):
        options.run(options)
    table = json.loads((given.out / "transfer.json").read_text())
    print(json.dumps({"seconds": time.perf_counter() - started, **summary(table)}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
