"""What the four-scale commands share: checked arguments, cells with their codes, and JSON of what is drawn."""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cytosae_core.errors import DataError, StudyError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from cytosae_core.concepts.extracted import Extracted
    from cytosae_core.figures.sheet import Shot

    from .concept_source import Source

LOCAL_ONLY = "local only: shows cells of this hospital; nothing here may leave it"


def numbers(text: str) -> list[int]:
    """`3,17` as whole numbers, each once, in the given order (type of --image and --concept)."""
    try:
        found = list(dict.fromkeys(int(part) for part in text.split(",")))
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"expected whole numbers with commas, got {text!r}") from error
    if min(found) < 0:
        raise argparse.ArgumentTypeError(f"expected numbers >= 0, got {text!r}")
    return found


def check_inside(what: str, chosen: Iterable[int], count: int) -> None:
    """DataError unless every number is below `count`."""
    for value in chosen:
        if not 0 <= value < count:
            raise DataError(f"Expected 0 <= {what} < {count}, got {what}={value}.")


def read_extracted(folder: Path, source: Source | None = None) -> Extracted:
    """The record of a pass; with a source, checked to be about the same dictionary, encoder and images.

    Raises:
        DataError: no record, an empty one, or one of other images.
        StudyError: a record of another dictionary or encoder.
    """
    from cytosae_core.concepts.extracted import load_extracted

    found = load_extracted(folder)
    if not int(found.images[0]):
        raise DataError("Expected an extraction with at least one image.", hint="Extract the concepts again.")
    if source is None:
        return found
    if found.facts.dictionary != source.coder.sha256:
        raise StudyError(
            f"Expected an extraction of dictionary {source.coder.sha256[:12]}, got {found.facts.dictionary[:12]}.",
            hint="Name the dictionary that was extracted, or extract again.",
        )
    if found.facts.encoder != source.store.encoder_digest:
        raise StudyError(
            "Expected an extraction under the same encoder.",
            hint="Use the same --encoder, --layer and --steps.",
        )
    if int(found.images[0]) != source.store.n_images:
        raise DataError(
            f"Expected an extraction of these {source.store.n_images} images, got {int(found.images[0])}.",
            hint="Use the same DATA and --max-images.",
        )
    return found


def source_of_record(options: argparse.Namespace, display: Any) -> tuple[Source, Extracted]:
    """Cells with the record about them (--extracted); the pass's own token store is used when --store is not given.

    Raises:
        DataError, SetupError, StudyError: as `open_source` and `read_extracted`.
    """
    from .concept_source import open_source

    beside = options.extracted / "tokens"
    if options.store is None and (beside / "index.json").is_file():
        options.store = beside
    source = open_source(options, display)
    return source, read_extracted(options.extracted, source)


def code_images(
    source: Source,
    wanted: Mapping[int, Iterable[int]],
    progress: Callable[[int, int], None],
    rule: str = "all",
) -> dict[int, dict[int, NDArray[np.float32]]]:
    """Codes [257] (CLS first) of chosen concepts in chosen stored images: {image: {concept: codes}}.

    Every image is coded once, one at a time. With rule `cell`, patches outside the stained cell are 0: the pass
    did not count them either.
    """
    import numpy as np
    import torch

    result: dict[int, dict[int, NDArray[np.float32]]] = {}
    for done, (image, concepts) in enumerate(sorted(wanted.items()), 1):
        tokens, mask = source.read(image, image + 1)
        codes = source.coder.codes(torch.from_numpy(np.ascontiguousarray(tokens[0]))).numpy()
        if rule == "cell":
            codes = codes * mask[0][:, None]
        result[image] = {concept: codes[:, concept].copy() for concept in concepts}
        progress(done, len(wanted))
    return result


def pixels_of(source: Source, image: int) -> NDArray[np.uint8]:
    """RGB [H, W, 3] of a stored image at its original size."""
    import numpy as np

    from cytosae_core.cohort import open_rgb

    return np.asarray(open_rgb(source.images[image]), dtype=np.uint8)


def shots_of(
    source: Source, concept: int, codes: Mapping[int, Mapping[int, NDArray[Any]]]
) -> dict[int, Shot]:
    """Everything drawn of a concept, by stored image."""
    from cytosae_core.figures.sheet import Shot

    return {
        image: Shot(pixels_of(source, image), values[concept], source.images[image].label, image)
        for image, values in codes.items()
        if concept in values
    }


def picture(text: str) -> str:
    """Type of --format: png or svg."""
    if text not in ("png", "svg"):
        raise argparse.ArgumentTypeError(f"expected png or svg, got {text!r}")
    return text


def plain(value: Any) -> Any:
    """Arrays, numpy numbers and NaN as JSON values (NaN and infinity become null)."""
    import numpy as np

    if isinstance(value, np.ndarray):
        return [plain(item) for item in value.tolist()]
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, np.generic):
        return plain(value.item())
    if isinstance(value, float):
        return float(f"{value:.6g}") if math.isfinite(value) else None
    return value


def finish(options: argparse.Namespace, written: list[Path], values: Mapping[str, Any]) -> int:
    """Say what was written; with --json the numbers behind it, on standard output."""
    if options.json:
        facts = {"notice": LOCAL_ONLY, "files": [path.name for path in written], **values}
        print(json.dumps(plain(facts), allow_nan=False))
        return 0
    for path in written:
        print(path)
    print(LOCAL_ONLY)
    return 0
