"""`cytosae concepts patch, sheet, patient, classes, gallery`: concepts at four scales, on this machine only."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cytosae_core.errors import DataError

from .concept_source import add_source_arguments, open_source
from .scales_io import (
    check_inside,
    code_images,
    finish,
    numbers,
    picture,
    pixels_of,
    read_extracted,
    shots_of,
    source_of_record,
)

if TYPE_CHECKING:
    from cytosae_core.concepts.extracted import Extracted


def register(commands: Any) -> None:
    """Add the commands to the sub-parsers of `cytosae concepts`."""
    _register_cells(commands)
    _register_patients(commands)


def _register_cells(commands: Any) -> None:
    patch = commands.add_parser("patch", help="where in a cell a concept fires, on the original image")
    add_source_arguments(patch)
    patch.add_argument(
        "--image", type=numbers, required=True, metavar="I[,J..]", help="stored images, from 0"
    )
    patch.add_argument("--concept", type=numbers, required=True, metavar="C[,D..]", help="concepts, from 0")
    patch.add_argument("--smooth", action="store_true", help="bilinear instead of the true patch grid")
    _drawn(patch, _patch)
    sheet = commands.add_parser("sheet", help="reference cells of concepts, strongest and per level")
    add_source_arguments(sheet)
    sheet.add_argument("--concept", type=numbers, required=True, metavar="C[,D..]")
    sheet.add_argument("--extracted", type=Path, required=True, help="folder of `cytosae concepts extract`")
    _drawn(sheet, _sheet)
    gallery = commands.add_parser("gallery", help="one offline page of concepts for a pathologist")
    add_source_arguments(gallery)
    gallery.add_argument("--extracted", type=Path, required=True, help="folder of `cytosae concepts extract`")
    chosen = gallery.add_mutually_exclusive_group()
    chosen.add_argument("--concepts", type=numbers, metavar="C[,D..]", help="these, in this order")
    chosen.add_argument("--top", type=int, default=24, help="the most useful ones (default 24)")
    gallery.add_argument(
        "--review-sheet", action="store_true", help="also write review.csv, which three experts fill in"
    )
    gallery.add_argument("--json", action="store_true", help="print the numbers behind the page")
    gallery.set_defaults(run=_gallery)


def _register_patients(commands: Any) -> None:
    patient = commands.add_parser("patient", help="barcode of a patient, what is typical, another patient")
    _record_arguments(patient)
    patient.add_argument(
        "--patient", required=True, help="id as in labels.csv (patient, slide or source file)"
    )
    patient.add_argument("--against", metavar="Q", help="compare with this patient")
    patient.add_argument("--within-class", action="store_true", help="typical against patients of the class")
    patient.add_argument(
        "--cytosae-compatible",
        action="store_true",
        help="also the published form: count / number of concepts",
    )
    _drawn(patient, _patient)
    classes = commands.add_parser("classes", help="mean barcodes, contrasts, likeness of patients")
    _record_arguments(classes)
    classes.add_argument(
        "--contrast", metavar="A:B", help="two classes (default: every class against the rest)"
    )
    classes.add_argument("--seed", type=int, default=0, help="of bootstrap and permutation")
    classes.add_argument(
        "--cytosae-compatible",
        action="store_true",
        help="also mean barcodes in the published form: count / number of concepts",
    )
    _drawn(classes, _classes)


def _record_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("extracted", type=Path, help="folder of `cytosae concepts extract`")
    parser.add_argument("out", type=Path, help="folder to write; stays on this machine")


def _drawn(parser: argparse.ArgumentParser, run: Any) -> None:
    parser.add_argument("--format", type=picture, default="png", help="png (default) or svg")
    parser.add_argument("--json", action="store_true", help="print the numbers behind the picture")
    parser.set_defaults(run=run)


def _patch(options: argparse.Namespace) -> int:
    import numpy as np

    from cytosae_core.figures.canvas import write_figure
    from cytosae_core.figures.patch import Cell, patch_figure, patch_grid

    from .progress import Display

    with Display() as display:
        source = open_source(options, display)
        check_inside("image", options.image, len(source.images))
        check_inside("concept", options.concept, source.coder.n)
        wanted = {image: options.concept for image in options.image}
        found = code_images(source, wanted, display.bar("code cells"))
    codes = np.stack([np.stack([found[i][c] for c in options.concept]) for i in options.image])
    cells = [Cell(pixels_of(source, i), f"image {i} · {source.images[i].label}") for i in options.image]
    path = options.out / f"patch.{options.format}"
    write_figure(patch_figure(cells, options.concept, codes, smooth=options.smooth), path)
    grids = [
        {
            "image": i, "class": source.images[i].label, "concept": c, "grid": patch_grid(found[i][c]),
            "cls": found[i][c][0],
        }
        for i in options.image
        for c in options.concept
    ]  # fmt: skip
    return finish(options, [path], {"patches": grids})


def _sheet(options: argparse.Namespace) -> int:
    from cytosae_core.figures.canvas import write_figure
    from cytosae_core.figures.sheet import references, sheet_figure

    from .progress import Display

    with Display() as display:
        source, found = source_of_record(options, display)
        chosen = {concept: references(found, concept) for concept in options.concept}
        wanted: dict[int, set[int]] = {}
        for concept, some in chosen.items():
            for reference in some:
                wanted.setdefault(reference.image, set()).add(concept)
        codes = code_images(source, wanted, display.bar("code cells"), found.facts.token_rule)
    written, values = [], []
    for concept, some in chosen.items():
        path = options.out / f"concept-{concept}.{options.format}"
        shots = shots_of(source, concept, codes)
        write_figure(sheet_figure(concept, some, shots, _fires(found, concept)), path)
        written.append(path)
        values.append(
            {"concept": concept, "references": [{**vars(r), "class": shots[r.image].label} for r in some]}
        )
    return finish(options, written, {"sheets": values})


def _fires(found: Extracted, concept: int) -> str:
    images = int(found.image_count[concept])
    where = {
        "cell": "; only patches of the stained cell count",
        "all": "; values also count the CLS token, which has no place on the cell",
    }.get(found.facts.token_rule, "")
    return f"fires in {images} of {int(found.images[0])} cells{where}"


def _patient(options: argparse.Namespace) -> int:
    from cytosae_core.figures.barcode import barcode_figure
    from cytosae_core.figures.canvas import write_figure

    from .scales_patients import patient_view

    found = read_extracted(options.extracted)
    view = patient_view(
        found, options.patient, options.against, within_class=options.within_class,
        compatible=options.cytosae_compatible,
    )  # fmt: skip
    path = options.out / f"patient.{options.format}"
    write_figure(barcode_figure(view.shown, view.typical, view.comparison, view.title), path)
    return finish(options, [path], view.values)


def _classes(options: argparse.Namespace) -> int:
    from cytosae_core.figures.canvas import write_figure

    from .scales_patients import classes_view

    found = read_extracted(options.extracted)
    view = classes_view(
        found, _two(options.contrast), seed=options.seed, compatible=options.cytosae_compatible
    )
    written = []
    for name, figure in view.figures:
        written.append(options.out / f"{name}.{options.format}")
        write_figure(figure, written[-1])
    return finish(options, written, view.values)


def _two(text: str | None) -> tuple[str, str] | None:
    if text is None:
        return None
    first, colon, second = text.partition(":")
    if not colon or not first or not second:
        raise DataError(f"Expected --contrast A:B, got {text!r}.", hint="Two class names with a colon.")
    return first, second


def _gallery(options: argparse.Namespace) -> int:
    from .scales_gallery import write_gallery

    return write_gallery(options)
