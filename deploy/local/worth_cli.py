"""What concepts are worth, as commands of `cytosae concepts`: transfer, classify, effect, fewshot."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from cytosae_core.errors import DataError

from .worth_source import add_arguments, finish, open_cells, shown
from .worth_transfer import add_transfer

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from .worth_source import Opened


def register(commands: Any) -> None:
    """Add the commands to the sub-parsers of `cytosae concepts`."""
    add_transfer(commands)
    text = "subtype classification from concepts, nested cross-validation by patient"
    classify = commands.add_parser("classify", help=text, description=text)
    add_arguments(classify)
    classify.add_argument("--level", default="auto", help="auto, unit (patient or slide) or image")
    classify.set_defaults(run=_classify)
    text = "switch a class' concepts off, or keep only them, against matched random concepts"
    effect = commands.add_parser("effect", help=text, description=text)
    add_arguments(effect)
    effect.add_argument("--class", dest="target", required=True, metavar="C")
    effect.set_defaults(run=_effect)
    text = "name a concept from a few labelled cells: accuracy against the number of labels"
    fewshot = commands.add_parser("fewshot", help=text, description=text)
    add_arguments(fewshot)
    fewshot.add_argument("--class", dest="target", metavar="C", help="cells of this class are positive")
    fewshot.add_argument("--column", help="or: a column of labels.csv ...")
    fewshot.add_argument("--positive", help="... with this value (other values: negative, empty: left out)")
    fewshot.add_argument("--shots", default="1,2,5,10,20", help="labelled cells per side, with commas")
    fewshot.add_argument("--repeats", type=int, default=10)
    fewshot.set_defaults(run=_fewshot)


def _classify(options: argparse.Namespace) -> int:
    from cytosae_core.worth.classify import LEVELS, classify

    from .progress import Display

    if options.level not in LEVELS:
        raise DataError(f"Expected --level in {LEVELS}, got {options.level!r}.")
    with Display() as display:
        opened = open_cells(options, display)
        result = classify(
            opened.cells, opened.cohort, opened.coder, opened.classes, level=options.level,
            seed=options.seed, report=lambda name, done, total: display.bar(name)(done, total),
        )  # fmt: skip
    if finish(result, options.out / "classify.json", as_json=options.json):
        _print_classify(result)
    return 0


def _print_classify(result: Mapping[str, Any]) -> None:
    rows = [
        (name, shown(found["weighted_f1"]), shown(found["auroc"]))
        for name, found in result["methods"].items()
    ]
    title = f"Rows: {result['level']}; {result['rows']}; nested cross-validation by unit"
    _table(title, ("features", "weighted F1", "AUROC, one against rest"), rows)
    if result["dropped_units"]:
        print(
            f"{result['dropped_units']} units with several classes are left out (--level image keeps them)."
        )
    if result["warning"]:
        print(result["warning"])


def _effect(options: argparse.Namespace) -> int:
    from cytosae_core.worth.effect import concept_effect, decode

    from .progress import Display

    with Display() as display:
        opened = open_cells(options, display)
        if options.target not in opened.classes:
            raise DataError(f"Expected --class in {list(opened.classes)}, got {options.target!r}.")
        found = concept_effect(
            decode(opened.cells, opened.coder), opened.cells.labels, opened.cells.units,
            opened.classes.index(options.target), seed=options.seed, tick=display.bar("sets of concepts"),
        )  # fmt: skip
    result = {"class": options.target, "unit": opened.cells.unit, **found}
    if finish(result, options.out / "effect.json", as_json=options.json):
        _print_effect(result)
    return 0


def _print_effect(result: Mapping[str, Any]) -> None:
    intact = result["intact"]
    print(
        f"Intact probe, {result['held_out_units']} held-out units ({result['unit']}): "
        f"probability of {result['class']} {shown(intact['probability'])}, "
        f"balanced accuracy {shown(intact['balanced_accuracy'])}"
    )
    for mode, by_rest in result["curves"].items():
        for rest, points in by_rest.items():
            rows = [
                (str(p["k"]), shown(p["probability"]), shown(p["probability"]["random"]),
                 f"{p['probability']['p']:.3f}", shown(p["balanced_accuracy"]),
                 shown(p["balanced_accuracy"]["random"]))
                for p in points
            ]  # fmt: skip
            names = (
                "k",
                "change of probability",
                "matched random",
                "p",
                "change of accuracy",
                "matched random",
            )
            _table(f"{mode}, {rest}", names, rows)


def _fewshot(options: argparse.Namespace) -> int:
    from .progress import Display

    shots = _numbers(options.shots)
    if (options.target is None) == (options.column is None) or (options.column is None) != (
        options.positive is None
    ):
        raise DataError("Expected either --class, or --column with --positive.")
    with Display() as display:
        opened = open_cells(options, display)
        rows, positive = _sides(options, opened)
        result = {"unit": opened.cells.unit, "positive": int(positive.sum()),
                  "negative": int((~positive).sum()),
                  "curves": _curves(options, opened, rows, positive, shots, display)}  # fmt: skip
    if finish(result, options.out / "fewshot.json", as_json=options.json):
        _print_fewshot(result, shots)
    return 0


def _curves(
    options: argparse.Namespace, opened: Opened, rows: NDArray[np.int64], positive: NDArray[np.bool_],
    shots: tuple[int, ...], display: Any,
) -> dict[str, list[dict[str, Any]]]:  # fmt: skip
    from cytosae_core.worth.dictionaries import random_coder
    from cytosae_core.worth.fewshot import learning_curve
    from cytosae_core.worth.pooling import concept_pools, raw_pools

    cells, coder = opened.cells, opened.coder
    concepts = concept_pools(cells.read, cells.images, coder).mean[rows]
    features = {
        "concepts": concepts,
        "raw embeddings": raw_pools(cells.read, cells.images, coder).mean[rows],
        "random dictionary": concept_pools(cells.read, cells.images, random_coder(coder)).mean[rows],
        "shuffled labels": concepts,
    }
    return {
        name: [
            {"shots": t.shots, "unlabelled": t.unlabelled, "auroc": t.estimate.to_dict()}
            for t in learning_curve(
                values, positive, cells.units[rows], shots=shots, repeats=options.repeats,
                shuffle=name == "shuffled labels", tick=display.bar(f"repeats: {name}"),
            )
        ]
        for name, values in features.items()
    }  # fmt: skip


def _sides(options: argparse.Namespace, opened: Opened) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Rows that have an answer, and which of them are positive."""
    import numpy as np

    if options.column is None:
        if options.target not in opened.classes:
            raise DataError(f"Expected --class in {list(opened.classes)}, got {options.target!r}.")
        positive = opened.cells.labels == opened.classes.index(options.target)
        return np.arange(len(positive)), positive
    images = [opened.cohort.images[index] for index in opened.cells.store.image_index]
    values = [str(image.attributes.get(options.column, "")).strip() for image in images]
    known = sorted({value for value in values if value})
    if options.positive not in known:
        raise DataError(
            f"Expected --positive to be a value of column {options.column!r}, got {options.positive!r}.",
            hint=f"Values: {known[:10]}." if known else "No such column, or empty for these classes.",
        )
    rows = np.flatnonzero([bool(value) for value in values])
    return rows, np.array([values[row] == options.positive for row in rows])


def _numbers(text: str) -> tuple[int, ...]:
    try:
        found = tuple(int(part) for part in text.split(","))
    except ValueError as error:
        raise DataError(f"Expected --shots as numbers with commas, got {text!r}.") from error
    if min(found) < 1:
        raise DataError(f"Expected --shots >= 1, got {text!r}.")
    return found


def _print_fewshot(result: Mapping[str, Any], shots: tuple[int, ...]) -> None:
    rows = []
    for name, points in result["curves"].items():
        for unlabelled in (False, True):
            cells = [shown(p["auroc"], 2) for p in points if p["unlabelled"] == unlabelled]
            rows.append((name, "with" if unlabelled else "without", *cells))
    title = (
        f"Held-out AUROC by labelled cells per side; {result['positive']} positive, {result['negative']} not"
    )
    _table(title, ("features", "unlabelled", *(str(s) for s in shots)), rows)


def _table(title: str, names: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title=title)
    for name in names:
        table.add_column(name, overflow="fold")
    for row in rows:
        table.add_row(*row)
    Console().print(table)
