"""Cells of chosen classes plus a dictionary, as command-line arguments of `classify`, `effect` and `fewshot`."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cytosae_core.errors import DataError, StudyError

from .encoder_options import add_encoder_options, encoder_of

if TYPE_CHECKING:
    from cytosae_core.cohort import Cohort
    from cytosae_core.concepts.coder import Coder
    from cytosae_core.worth.cells import Cells


@dataclass(frozen=True)
class Opened:
    """One site's cells of `classes`, their cohort, and the dictionary that codes them."""

    cells: Cells
    cohort: Cohort
    coder: Coder
    classes: tuple[str, ...]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """DATA DICTIONARY OUT, classes, the encoder's options, --json."""
    parser.add_argument("data", type=Path, metavar="DATA", help="folder of images of one site")
    parser.add_argument("dictionary", type=Path, metavar="DICTIONARY", help="without or with .safetensors")
    parser.add_argument("out", type=Path, metavar="OUT", help="token store and result; stays on this machine")
    parser.add_argument("--classes", default="", help="with commas (default: all)")
    parser.add_argument("--per-class", type=int, default=200, help="images per class at most")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true")
    add_encoder_options(parser)
    parser.set_defaults(layer=6, steps="reinhard,cell-mask")


def open_cells(options: argparse.Namespace, display: Any) -> Opened:
    """Read the table, keep the classes, make or go on with the token store in OUT/tokens.

    Raises:
        DataError, SetupError, StudyError: no such class, unusable images or store, unfitting dictionary.
    """
    from cytosae_core.cohort import read_cohort
    from cytosae_core.concepts.coder import load_coder
    from cytosae_core.encoder import build_store
    from cytosae_core.worth.cells import cells_of, of_classes

    if options.per_class < 1:
        raise DataError(f"Expected --per-class >= 1, got {options.per_class}.")
    coder, encoder = load_coder(options.dictionary), encoder_of(options)
    if coder.d != encoder.d:
        raise StudyError(
            f"Expected a dictionary for tokens with d={encoder.d}, got d={coder.d}.",
            hint="Name the encoder it was trained on with --encoder.",
        )
    cohort = read_cohort(options.data)
    classes = tuple(label for label in options.classes.split(",") if label) or cohort.classes
    chosen = of_classes(cohort, classes, per_class=options.per_class)
    options.out.mkdir(parents=True, exist_ok=True)
    store = build_store(chosen, encoder, options.out / "tokens", progress=display.bar("encode cells"))
    return Opened(cells_of(chosen, store, classes), chosen, coder, classes)


def finish(result: Mapping[str, Any], path: Path, *, as_json: bool) -> bool:
    """Write the result beside its tokens; print it as one JSON line if asked. True: somebody wants it pretty."""
    text = json.dumps(result, allow_nan=False)
    path.write_text(json.dumps(result, indent=1, allow_nan=False))
    if as_json:
        print(text)
    return not as_json


def shown(value: Mapping[str, float], digits: int = 3) -> str:
    """A value with its interval."""
    return f"{value['value']:.{digits}f} [{value['low']:.{digits}f}, {value['high']:.{digits}f}]"
