"""Everything one streaming pass over a site's tokens knows about its concepts. Local: never leaves as a whole.

`statistics.safetensors` holds the arrays of `Extracted`, `statistics.json` the facts beside them.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..canonical import canonical_json, parse_json, sha256_hex
from ..errors import CytosaeError, DataError
from ..tensors import pack_tensors, unpack_tensors, write_atomic

URN = "urn:cytosae:extracted:v1"
Array = NDArray[Any]
# Value bins of a code: [0, EDGES[0]) is "does not fire" plus noise; then quarter-octave-free half decades.
EDGES = np.logspace(-4, 3, 29)  # 28 bins, four per decade, from 1e-4 to 1e3; the last takes all above
STRATA = np.logspace(-3, 2, 11)  # 10 levels of an image's largest code, half a decade each


@dataclass(frozen=True)
class Facts:
    """What the numbers are about.

    Attributes:
        model, n, d, dictionary: kind, size, token width and SHA-256 of the dictionary.
        encoder: the encoder's digest.
        token_rule: which tokens count: `all` (257 with CLS, as CytoSAE), `patches` or `cell` (stained cell).
        tau: global threshold of a barcode (CytoSAE: 0.2).
        unit: what a unit is: patient, slide or source_file.
        classes, unit_names: names by index. Unit names are patient or slide ids: they stay at the site.
        calibration: where the per-concept thresholds come from; empty when there are none.
    """

    model: str
    n: int
    d: int
    dictionary: str
    encoder: str
    token_rule: str
    tau: float
    unit: str
    classes: tuple[str, ...]
    unit_names: tuple[str, ...]
    calibration: str = ""


@dataclass(frozen=True)
class Extracted:
    """Sums of one pass; n concepts, N images, c classes, u units, z_i = mean code of image i over its tokens.

    Attributes:
        images: [1] N; tokens: [1] tokens counted over all images.
        image_count: [n] images with z_i > 0.
        token_count, total, square: [n] tokens that fire, sum and sum of squares of their codes.
        image_total, image_square: [n] sums over images of z_i and z_i^2.
        histogram: [n, 28] firing tokens per bin of `EDGES`.
        class_images, class_tokens: [c]; class_image_count, class_total, class_square: [c, n] as above, per class.
        unit_images, unit_tokens, unit_class: [u] (unit_class -1 when a unit has several classes).
        unit_counts: [u, n] tokens with a code above tau; unit_calibrated: the same above `threshold`.
        threshold: [n] calibrated threshold of every concept (NaN without calibration).
        unit_held_out: [u] 1 where a unit took no part in the calibration, so unit_calibrated may be used.
        top_image, top_mean: [n, 10] stored images with the largest z_i, best first (-1 and 0 where fewer fire).
        top_peak_image, top_peak: [n, 10] the same by the largest single code of an image.
        strata_image, strata_value: [n, 10] one random image per level of `STRATA` (its largest code), -1 if none.
        pairs: [m, 2] chosen concepts; pair_tokens, pair_images: [m] tokens and images in which both fire.
    """

    facts: Facts
    images: Array
    tokens: Array
    image_count: Array
    token_count: Array
    total: Array
    square: Array
    image_total: Array
    image_square: Array
    histogram: Array
    class_images: Array
    class_tokens: Array
    class_image_count: Array
    class_total: Array
    class_square: Array
    unit_images: Array
    unit_tokens: Array
    unit_class: Array
    unit_counts: Array
    unit_calibrated: Array
    threshold: Array
    unit_held_out: Array
    top_image: Array
    top_mean: Array
    top_peak_image: Array
    top_peak: Array
    strata_image: Array
    strata_value: Array
    pairs: Array
    pair_tokens: Array
    pair_images: Array

    def save(self, folder: Path) -> None:
        """Write both files atomically, tensors first."""
        folder.mkdir(parents=True, exist_ok=True)
        blob = pack_tensors({name: getattr(self, name) for name in ARRAYS})
        write_atomic(folder / "statistics.safetensors", blob)
        facts = {field.name: _plain(getattr(self.facts, field.name)) for field in fields(Facts)}
        write_atomic(
            folder / "statistics.json", canonical_json({**facts, "urn": URN, "sha256": sha256_hex(blob)})
        )


ARRAYS = tuple(field.name for field in fields(Extracted) if field.name != "facts")


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def load_extracted(folder: Path) -> Extracted:
    """Read and verify what `Extracted.save` wrote.

    Raises:
        DataError: missing, altered, or not of this program.
    """
    try:
        blob = (folder / "statistics.safetensors").read_bytes()
        found = parse_json((folder / "statistics.json").read_bytes(), max_bytes=1 << 28)
        if found["urn"] != URN or found["sha256"] != sha256_hex(blob):
            raise DataError("Expected statistics whose JSON names their tensors.", hint="Extract again.")
        tensors = unpack_tensors(blob)
        values = {field.name: found[field.name] for field in fields(Facts)}
        values |= {name: tuple(values[name]) for name in ("classes", "unit_names")}
        return Extracted(Facts(**values), **{name: tensors[name] for name in ARRAYS})
    except DataError:
        raise
    except (OSError, KeyError, TypeError, ValueError, CytosaeError) as error:
        raise DataError(
            "Expected a folder written by `cytosae concepts extract`.", hint="Run it on the cells first."
        ) from error
