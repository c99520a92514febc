"""Does this machine give the tokens that it should? The golden cells against values stored in the package.

Differences are the largest absolute one, and that over the stored values' root mean square: the same number as the
coordinator's canary (server/loop.py), which drops a site above 2e-3.

Measured with dinov2-s-demo on an x86 CPU with AVX-512, torch 2.14.1, blocks 6 and 11, all three tables below against
fp32, largest difference over root mean square (`benchmarks/encoder.py` repeats it):

    fp32    other batch sizes and thread counts 0; AVX2 7e-6; no vector units 9.1e-6
    fp16    autocast: 8.4e-3 after block 6, 1.4e-2 after block 11
    bf16    autocast: 4.2e-2 after block 6, 1.7e-1 after block 11
    tf32    not measurable on a CPU; its products have fp16's mantissa, so fp16's tolerance is used
    a wrong resize (bicubic, nearest ...) instead of bilinear: 2.0e-1 to 9.5e-1

So only fp32 passes the protocol's canary beside fp32 sites; a study in bf16 or fp16 needs it at every site. Check the
preprocessing in fp32: bf16's tolerance is as wide as a wrong resize.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from ..errors import MessageError, SetupError
from ..phantom import golden_images, golden_parts
from ..tensors import pack_tensors, unpack_tensors, write_atomic
from .encoder import Encoder

STORED = "golden_features.tensors"
# Largest difference over root mean square; a small multiple of what was measured (see above).
TOLERANCE = {"fp32": 1e-4, "tf32": 3e-2, "fp16": 3e-2, "bf16": 4e-1}
TABLES = ("mean", "cls", "crop")
Features = dict[str, NDArray[np.float32]]


@dataclass(frozen=True)
class GoldenCheck:
    """Differences from the stored values; `inside` is None where nothing is stored for this encoder."""

    max_abs: float | None
    max_relative: float | None
    tolerance: float
    inside: bool | None


def golden_features(encoder: Encoder) -> Features:
    """`mean` and `cls`: mean token and CLS token of the 8 golden cells, float32 [8, d] each. `crop`: mean token of
    their upper left parts, which have another size: the cells are 224 x 224, so only these see the resize."""
    cells = golden_images()
    whole = encoder.encode(torch.stack([encoder.preprocess(cell) for cell in cells]))
    parts = encoder.encode(torch.stack([encoder.preprocess(part) for part in golden_parts()]))
    tables = {"mean": whole.mean(dim=1), "cls": whole[:, 0], "crop": parts.mean(dim=1)}
    return {name: np.array(tables[name].numpy(), dtype=np.float32) for name in TABLES}


def check_golden(encoder: Encoder, features: Features, against: Path | None = None) -> GoldenCheck:
    """Compare with the values stored in the package, or with a file that `write_features` made elsewhere.

    Raises:
        SetupError: the file cannot be read or holds another encoder's values.
    """
    tolerance = TOLERANCE[encoder.precision]
    stored = _stored(encoder.fp32_digest, against)
    if stored is None:
        return GoldenCheck(None, None, tolerance, None)
    absolute, relative = 0.0, 0.0
    for name, values in stored.items():
        largest = float(np.abs(features[name] - values).max())
        absolute = max(absolute, largest)
        relative = max(relative, largest / max(float(np.sqrt(np.mean(values**2))), 1e-12))
    inside = bool(np.isfinite(relative) and relative <= tolerance)
    return GoldenCheck(absolute, relative, tolerance, inside)


def write_features(path: Path, features_of: dict[str, Features]) -> None:
    """Features by the encoder's fp32 digest, to compare on another machine."""
    tensors = {f"{digest}/{name}": v for digest, table in features_of.items() for name, v in table.items()}
    try:
        write_atomic(path, pack_tensors(tensors))
    except OSError as error:
        raise SetupError(f"Expected to write {path}.", hint="Check the folder.") from error


def _stored(digest: str, against: Path | None) -> Features | None:
    try:
        data = against.read_bytes() if against else (files(__package__) / STORED).read_bytes()
        tensors = unpack_tensors(data)
    except (OSError, MessageError) as error:
        raise SetupError("Expected a readable file of golden features.", hint="Make it again.") from error
    found = {name: tensors.get(f"{digest}/{name}") for name in TABLES}
    kept = {name: values for name, values in found.items() if values is not None}
    if against is not None and len(kept) != len(TABLES):
        raise SetupError(
            "Expected golden features of the same encoder: name, weights, layer and steps.",
            hint="Give both machines the same options.",
        )
    return kept if len(kept) == len(TABLES) else None
