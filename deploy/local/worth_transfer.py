"""`cytosae concepts transfer`: do concepts carry a cell class to a site that gave no labels?"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cytosae_core.errors import DataError

from .encoder_options import add_encoder_options, encoder_of

if TYPE_CHECKING:
    from cytosae_core.concepts.coder import Coder
    from cytosae_core.worth.cells import Cells

CLASSES = "neutrophil,eosinophil,lymphocyte,monocyte"
WORDS = (
    "Balanced accuracy at the site left out [95 % interval: units resampled, sites not]. The probe, its strength and "
    "the selected features are chosen on the other sites only."
)


def add_transfer(commands: Any) -> None:
    """Add the command."""
    text = "leave-one-site-out classification: concepts against raw embeddings"
    parser = commands.add_parser("transfer", help=text, description=text)
    parser.add_argument("sites", type=Path, metavar="SITES_FOLDER", help="one sub-folder per site")
    parser.add_argument("out", type=Path, metavar="OUT", help="token stores, dictionaries, transfer.json")
    parser.add_argument("--classes", default=CLASSES, help=f"with commas (default: {CLASSES})")
    parser.add_argument("--per-class", type=int, default=150, help="images per class and site at most")
    parser.add_argument("--rows", default="512,1024", help="dictionary sizes with commas")
    parser.add_argument("--seeds", type=int, default=2, help="dictionaries per size")
    parser.add_argument("--train-steps", type=int, default=300, help="steps of 512 tokens each")
    parser.add_argument("--k", default="32,64", help="picks per token when coding, with commas")
    parser.add_argument("--quick", action="store_true", help="one seed, one size, fewer controls")
    parser.add_argument("--json", action="store_true")
    add_encoder_options(parser)
    parser.set_defaults(run=_run, layer=6, steps="reinhard,cell-mask")


def _run(options: argparse.Namespace) -> int:
    from cytosae_core.worth.transfer_run import Transfer

    from .progress import Display

    plan = _plan(options)
    options.out.mkdir(parents=True, exist_ok=True)
    classes = tuple(label for label in options.classes.split(",") if label)
    with Display() as display:
        sites = _sites(options, classes, display)
        work = Transfer(sites, len(classes), plan, lambda name, done, total: display.bar(name)(done, total))
        table = work.run()
    save_coders(work.coders, options.out / "dictionaries", options.encoder)
    result = {
        "classes": list(classes), "layer": options.layer, "steps": options.steps, "seeds": plan.seeds,
        "sites": {name: _size(cells, classes) for name, cells in sites.items()}, "forms": table,
    }  # fmt: skip
    (options.out / "transfer.json").write_text(json.dumps(result, indent=1, allow_nan=False))
    print(json.dumps(result, allow_nan=False)) if options.json else _print(result)
    return 0


def _plan(options: argparse.Namespace) -> Any:
    from cytosae_core.worth.transfer_run import Plan

    rows, k = _numbers("--rows", options.rows), _numbers("--k", options.k)
    numbers = (*rows, *k, options.seeds, options.per_class)
    if min(numbers) < 1 or options.train_steps < 0:
        raise DataError("Expected positive --rows, --seeds, --k, --per-class and --train-steps >= 0.")
    if options.quick:
        return Plan(rows[:1], 1, options.train_steps, k[:1], strict=False)
    return Plan(rows, options.seeds, options.train_steps, k)


def _numbers(name: str, text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError as error:
        raise DataError(f"Expected {name} as numbers with commas, got {text!r}.") from error


def _sites(options: argparse.Namespace, classes: tuple[str, ...], display: Any) -> dict[str, Cells]:
    """Sites that have every class often enough; the others are named and left out."""
    from cytosae_core.cohort import read_cohort
    from cytosae_core.encoder import build_store
    from cytosae_core.worth.cells import cells_of, of_classes
    from cytosae_core.worth.transfer_run import MIN_PER_CLASS

    from .sites import site_folders

    if len(set(classes)) < 2:
        raise DataError(f"Expected at least 2 different --classes, got {list(classes)}.")
    encoder, found = encoder_of(options), {}
    for name, folder in site_folders(options.sites).items():
        cohort = read_cohort(folder, name=name)
        if min(cohort.counts().get(label, 0) for label in classes) < MIN_PER_CLASS:
            display.say(f"- {name} left out: fewer than {MIN_PER_CLASS} images of some class")
            continue
        chosen = of_classes(cohort, classes, per_class=options.per_class)
        store = options.out / "stores" / f"{name}-{options.layer}-{options.per_class}"
        tokens = build_store(chosen, encoder, store, progress=display.bar(f"cells of {name}"))
        found[name] = cells_of(chosen, tokens, classes)
    return found


def save_coders(coders: Mapping[str, Coder], folder: Path, encoder: str) -> None:
    """Keep dictionaries for the other commands."""
    import numpy as np

    from cytosae_core.sae.checkpoint import save_checkpoint

    for name, coder in coders.items():
        tensors = {
            "dictionary": coder.model.dictionary.numpy(),
            "mean": coder.scale.mean,
            "scale": np.array([coder.scale.scale], np.float32),
        }
        facts = {"model": "pursuit", "k": int(getattr(coder.model, "k", 0)), "encoder": encoder}
        save_checkpoint(folder / name, tensors, facts)


def _size(cells: Cells, classes: tuple[str, ...]) -> dict[str, Any]:
    import numpy as np

    counts = np.bincount(cells.labels, minlength=len(classes)).tolist()
    units = len(np.unique(cells.units))
    return {"images": dict(zip(classes, counts, strict=True)), "units": units, "unit": cells.unit}


def _print(result: Mapping[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console()
    sites = list(result["sites"])
    for form, found in result["forms"].items():
        table = Table(title=f"{form}, block {result['layer']}")
        for name in ("features", *sites, "mean", "mean by image"):
            table.add_column(name, overflow="fold")
        for name, row in found["rows"].items():
            cells = [_shown(row["sites"][site]) for site in sites]
            table.add_row(name, *cells, _shown(row["mean"]), f"{row['mean_by_image']:.3f}")
        console.print(table)
        for name, value in found["difference"].items():
            console.print(f"  concepts - raw, {name}: {_shown(value)}", markup=False, highlight=False)
        for kind, chosen in found["selected"].items():
            console.print(f"  selected {kind}: {chosen}", markup=False, highlight=False)
    console.print(WORDS, highlight=False, markup=False)


def _shown(value: Mapping[str, float]) -> str:
    return f"{value['value']:.3f} [{value['low']:.2f}, {value['high']:.2f}]"
