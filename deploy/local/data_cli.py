"""`cytosae data`: public data sets in their published folders."""

from __future__ import annotations

import argparse
import csv
import io
import json
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cytosae_core.cohort import Cohort


def register(parser: argparse.ArgumentParser) -> None:
    """Add the commands."""
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    presets = commands.add_parser("presets", help="public data sets whose folders are understood")
    presets.set_defaults(run=_presets)
    table = commands.add_parser(
        "table", help="write labels.csv for a public data set: then every command reads its folder"
    )
    table.add_argument("preset")
    table.add_argument("folder", type=Path)
    table.add_argument("--force", action="store_true", help="replace an existing labels.csv")
    table.add_argument("--json", action="store_true")
    table.set_defaults(run=_table)


def _presets(options: argparse.Namespace) -> int:
    from cytosae_core.cohort import presets

    print((presets.__doc__ or "").strip())
    return 0


def _table(options: argparse.Namespace) -> int:
    from cytosae_core.cohort import read_cohort
    from cytosae_core.errors import DataError
    from cytosae_core.tensors import write_atomic

    cohort = read_cohort(options.folder, preset=options.preset)
    target = options.folder / "labels.csv"
    if any(image.member for image in cohort.images):
        raise DataError(
            f"Expected images that are files, {options.preset} has none.",
            hint="Use --preset with the command that embeds.",
        )
    if target.exists() and not options.force:
        raise DataError(f"Expected no table at {target}.", hint="Look at it first, then use --force.")
    write_atomic(target, _csv(cohort, options.folder).encode())
    result = {
        "table": str(target),
        "unit": cohort.unit,
        "images": len(cohort.images),
        "classes": cohort.counts(),
    }
    if options.json:
        print(json.dumps(result))
        return 0
    for name, value in result.items():
        print(f"{name:8} {value}")
    return 0


def _csv(cohort: Cohort, folder: Path) -> str:
    """image, label, original_label and the unit's column, as `read_cohort` reads them."""
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(["image", "label", "original_label", cohort.unit])
    for image in cohort.images:
        path = image.path.relative_to(folder).as_posix()
        rows.writerow([path, image.label, image.attributes["original_label"], image.unit])
    return text.getvalue()
