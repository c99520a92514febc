"""`cytosae concepts extract`: all statistics of a dictionary on one site's cells, in one streaming pass."""

from __future__ import annotations

import argparse
import csv
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .concept_source import Source, add_source_arguments, open_source

if TYPE_CHECKING:
    from cytosae_core.concepts.extract import Cells, Settings
    from cytosae_core.concepts.extracted import Extracted


def register(commands: Any) -> None:
    """Add the command to `cytosae concepts`."""
    parser = commands.add_parser("extract", help="statistics of every concept on local cells, one pass")
    add_source_arguments(parser)
    group = parser.add_argument_group("what is counted")
    group.add_argument(
        "--tokens", default="all", help="all (257 with CLS, as CytoSAE), patches, or cell (stained cell only)"
    )
    group.add_argument("--tau", type=float, default=0.2, help="global barcode threshold (CytoSAE: 0.2)")
    group.add_argument(
        "--calibrate", type=float, default=0.0, metavar="SHARE", help="share of patients that set thresholds"
    )
    group.add_argument("--thresholds", type=Path, help="take thresholds from another extraction's folder")
    group.add_argument(
        "--split-by-class", action="store_true",
        help="barcodes per patient and class, for patients whose cells have several classes",
    )  # fmt: skip
    group.add_argument("--pairs", default="", help="concepts whose co-firing is counted: 3:17,5:9")
    group.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true")
    parser.set_defaults(run=_extract)


def _extract(options: argparse.Namespace) -> int:
    from cytosae_core.concepts.extract import extract

    from .progress import Display

    with Display() as display:
        source = open_source(options, display)
        settings = _settings(options, source.coder.sha256)
        found = extract(
            cells_of(source, split=options.split_by_class),
            source.coder,
            settings,
            folder=options.out,
            progress=display.bar("code cells"),
        )
    found.save(options.out)
    told = _write_derived(found, source, options.out)
    if options.json:
        print(json.dumps(told))
    else:
        _print(told, options.out)
    return 0


def cells_of(source: Source, *, split: bool = False) -> Cells:
    """The source's stored images as the pass wants them; `split`: a unit per patient and class."""
    from cytosae_core.concepts.extract import Cells

    images = source.images
    return Cells(
        read=source.read,
        labels=[image.label for image in images],
        units=[f"{image.unit} · {image.label}" if split else image.unit for image in images],
        unit=f"{source.cohort.unit}-class pair" if split else source.cohort.unit,
        encoder=source.store.encoder_digest,
    )


def _settings(options: argparse.Namespace, dictionary: str) -> Settings:
    import numpy as np

    from cytosae_core.concepts.extract import Settings
    from cytosae_core.concepts.extracted import load_extracted
    from cytosae_core.errors import DataError

    if options.split_by_class and options.calibrate:
        raise DataError(
            "Expected --calibrate without --split-by-class: a patient would be on both sides.",
            hint="Calibrate in a run of its own and give its folder with --thresholds.",
        )
    threshold, origin = None, ""
    if options.thresholds:
        other = load_extracted(options.thresholds)
        if other.facts.dictionary != dictionary:
            raise DataError("Expected --thresholds of the same dictionary.", hint="Extract with this one.")
        if np.isnan(other.threshold).any():
            raise DataError("Expected --thresholds with thresholds.", hint="Extract it with --calibrate.")
        threshold, origin = other.threshold, options.thresholds.resolve().name
    try:
        pairs = [[int(one) for one in pair.split(":")] for pair in options.pairs.split(",") if pair]
        table = np.array(pairs, np.int64).reshape(-1, 2)
    except ValueError as error:
        raise DataError(
            f"Expected --pairs as 3:17,5:9, got {options.pairs!r}.", hint="Two numbers each."
        ) from error
    return Settings(
        rule=options.tokens, tau=options.tau, calibrate=options.calibrate, threshold=threshold, origin=origin,
        pairs=table, seed=options.seed,
    )  # fmt: skip


def _write_derived(found: Extracted, source: Source, out: Path) -> dict[str, Any]:
    """derived.safetensors, concepts.csv and summary.json beside the sums; returns the summary."""
    import numpy as np

    from cytosae_core.concepts.statistics import summary, table
    from cytosae_core.tensors import pack_tensors, write_atomic

    place = {name: index for index, name in enumerate(found.facts.classes)}
    columns = table(found, np.array([place[image.label] for image in source.images], np.int64))
    write_atomic(out / "derived.safetensors", pack_tensors(columns))
    told: dict[str, Any] = {
        **summary(found), "tokens": found.facts.token_rule, "concepts": found.facts.n,
        "patients_or_units": len(found.facts.unit_names), "unit": found.facts.unit,
        "classes": list(found.facts.classes), "unit_tables": bool(len(found.unit_counts)),
    }  # fmt: skip
    write_atomic(out / "summary.json", json.dumps(told, indent=1).encode())
    with (out / "concepts.csv").open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        writer.writerow(["concept", *columns, "best_class_name"])
        for row in range(found.facts.n):
            best = int(columns["best_class"][row])
            name = found.facts.classes[best] if best >= 0 else ""
            writer.writerow([row, *(f"{values[row]:.6g}" for values in columns.values()), name])
    return told


def _print(told: dict[str, Any], out: Path) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title="Concepts on these cells", show_header=False)
    words = {
        "images": "images", "concepts": "concepts in the dictionary", "never_active": "never active",
        "f_gt_1pct": "active in more than 1 % of images", "image_l0": "concepts per image",
        "token_l0": "concepts per token", "core": "core concepts (mean > 0.001)",
        "mass_in_core": "share of activation in the core",
    }  # fmt: skip
    for key, text in words.items():
        value = told[key]
        table.add_row(text, f"{value:,}" if isinstance(value, int) else f"{value:.4g}")
    console = Console()
    console.print(table)
    if not told["unit_tables"]:
        console.print("Barcodes per unit were left out: too many units for one table (no patient ids?).")
    console.print(f"Wrote {out}/statistics.safetensors, derived.safetensors, concepts.csv. Local only.")
