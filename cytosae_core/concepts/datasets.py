"""Statistics of one data set on disk: the published CytoSAE layout, or a folder of `cytosae concepts extract`.

Published layout (compute_sae_feature_data.py): `sae_sparsity.pt` [n] share of images with z > 0, `sae_mean_acts.pt`
[n] mean z over those images, `max_activating_image_{indices,values,label_indices}.pt` [n, 10], `top_entropy.pt` [n].
Only the first two are needed. `classnames.txt`, or `../classnames/NAME_classnames.txt`, names the labels.
"""

from __future__ import annotations

import pickle
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ..errors import DataError, MessageError
from ..tensors import unpack_tensors
from .extracted import load_extracted
from .statistics import CORE_MEAN, entropy_of_top

Floats = NDArray[np.float64]
MAX_BYTES = 1 << 31
MOST_IMAGES = 100_000_000
TOP_FILES = {name: f"max_activating_image_{name}.pt" for name in ("indices", "values", "label_indices")}


@dataclass(frozen=True)
class DataSet:
    """Statistics of the n concepts of one dictionary on one data set.

    Attributes:
        name: the folder's name.
        images: number of images, inferred from the frequencies where the layout does not say it.
        frequency: [n] share of images in which a concept fires.
        mean: [n] mean z over those images, NaN for a concept that never fires.
        entropy: [n] label entropy of the top ten in nats (NaN: unknown), or None when there is no such file.
        top_values, top_labels: [n, 10] or None; labels index `classes`.
        classes: names of the labels, empty when unknown.
        dictionary, encoder: SHA-256 of the dictionary and digest of the encoder; empty in the published layout.
    """

    name: str
    images: int
    frequency: Floats
    mean: Floats
    entropy: Floats | None = None
    top_values: Floats | None = None
    top_labels: NDArray[np.int64] | None = None
    classes: tuple[str, ...] = ()
    dictionary: str = ""
    encoder: str = ""

    @property
    def core(self) -> NDArray[np.bool_]:
        """Concepts whose mean z exceeds 10^-3 (the paper's criterion for a concept)."""
        return np.nan_to_num(self.mean, nan=0.0) > CORE_MEAN

    @property
    def mass(self) -> Floats:
        """Share of a concept in the sum of all z, up to a factor: frequency x mean."""
        return self.frequency * np.nan_to_num(self.mean, nan=0.0)

    def row(self) -> dict[str, float | int]:
        """The data set's line of numbers."""
        mass, core = self.mass, self.core
        return {
            "images": self.images,
            "never_active": int((self.frequency == 0).sum()),
            "f_gt_1pct": int((self.frequency > 0.01).sum()),
            "image_l0": float(self.frequency.sum()),
            "core": int(core.sum()),
            "mass_in_core": float(mass[core].sum() / mass.sum()) if mass.sum() > 0 else 0.0,
        }


def read_dataset(folder: Path) -> DataSet:
    """Read one folder.

    Raises:
        DataError: no such folder, a needed file is missing or damaged, shapes that do not fit, numbers outside
            their range.
    """
    if not folder.is_dir():
        raise DataError(f"Expected a folder of statistics at {folder}.", hint="Check the path.")
    if (folder / "statistics.json").is_file():
        return _extracted(folder)
    frequency = _vector(folder, "sae_sparsity.pt")
    mean = _vector(folder, "sae_mean_acts.pt", len(frequency))
    _check(folder, frequency, mean)
    top = {name: _table(folder, file, len(frequency)) for name, file in TOP_FILES.items()}
    known = (folder / "top_entropy.pt").is_file()
    entropy = _vector(folder, "top_entropy.pt", len(frequency)) if known else None
    labels = top["label_indices"]
    return DataSet(
        name=folder.resolve().name,
        images=infer_images(frequency, 0 if top["indices"] is None else int(top["indices"].max()) + 1),
        frequency=frequency,
        mean=mean,
        entropy=entropy,
        top_values=top["values"],
        top_labels=None if labels is None else labels.astype(np.int64),
        classes=_classes(folder),
    )


def _extracted(folder: Path) -> DataSet:
    found = load_extracted(folder)
    images = int(found.images[0])
    count = found.image_count
    mean = np.divide(found.image_total, count, out=np.full(len(count), np.nan), where=count > 0)
    return DataSet(
        name=folder.resolve().name,
        images=images,
        frequency=count / images,
        mean=mean,
        entropy=_derived_entropy(folder, len(count)),
        classes=found.facts.classes,
        dictionary=found.facts.dictionary,
        encoder=found.facts.encoder,
    )


def _derived_entropy(folder: Path, length: int) -> Floats | None:
    """CytoSAE's label entropy, which `cytosae concepts extract` writes beside its sums."""
    path = folder / "derived.safetensors"
    if not path.is_file():
        return None
    try:
        values = np.asarray(unpack_tensors(path.read_bytes())["top_entropy"], np.float64)
    except (OSError, KeyError, MessageError) as error:
        raise DataError(
            "Expected derived.safetensors as `cytosae concepts extract` wrote it.", hint="Run it again."
        ) from error
    return values if len(values) == length else None


def infer_images(frequency: Floats, at_least: int = 0) -> int:
    """The smallest N >= `at_least` for which every float32 frequency is a whole number of images over N.

    Raises:
        DataError: no N up to 100 million fits, or no concept fires.
    """
    positive = np.unique(frequency[frequency > 0])
    if not len(positive):
        raise DataError("Expected a concept that fires somewhere.", hint="Are these sae_sparsity values?")
    smallest = float(positive[0])
    for count in range(1, int(min(smallest * MOST_IMAGES, 10_000)) + 1):
        images = round(count / smallest)
        # float32 has 24 bits: a frequency times N is off by at most N x 6e-8 of itself.
        whole = positive * images
        if images >= at_least and (np.abs(whole - np.round(whole)) <= 1e-7 * whole + 1e-6).all():
            return int(images)
    raise DataError("Expected image frequencies that fit one number of images.", hint="Are they rounded?")


def _load(folder: Path, file: str) -> NDArray[Any]:
    """A tensor file; only tensors are read, nothing in it is run."""
    path = folder / file
    if not path.is_file():
        raise DataError(f"Expected {file} in {folder}.", hint="Is this a folder of published statistics?")
    if path.stat().st_size > MAX_BYTES:
        raise DataError(f"Expected {file} of at most {MAX_BYTES >> 30} GiB.")
    try:
        value = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise DataError(f"Expected only a tensor in {file}; it asks for code, which is not run.") from error
    except Exception as error:  # a damaged zip fails in many ways
        raise DataError(f"Expected a readable tensor in {file}.", hint="Copy it again.") from error
    if not isinstance(value, torch.Tensor):
        raise DataError(f"Expected a tensor in {file}.")
    return np.asarray(value.detach().numpy(), dtype=np.float64)


def _vector(folder: Path, file: str, length: int | None = None) -> Floats:
    values = _load(folder, file)
    if values.ndim != 1 or not len(values) or (length is not None and len(values) != length):
        raise DataError(f"Expected one number per concept in {file}, got shape {list(values.shape)}.")
    return values


def _table(folder: Path, file: str, length: int) -> Floats | None:
    if not (folder / file).is_file():
        return None
    values = _load(folder, file)
    if values.ndim != 2 or len(values) != length or not np.isfinite(values).all():
        raise DataError(f"Expected a table with one row per concept in {file}, got {list(values.shape)}.")
    return values


def _check(folder: Path, frequency: Floats, mean: Floats) -> None:
    if not (np.isfinite(frequency).all() and frequency.min() >= 0 and frequency.max() <= 1):
        raise DataError(f"Expected frequencies between 0 and 1 in sae_sparsity.pt of {folder.name}.")
    if np.isinf(mean).any() or np.nanmin(mean, initial=0.0) < 0 or np.isnan(mean[frequency > 0]).any():
        raise DataError(
            f"Expected mean activations >= 0 in sae_mean_acts.pt of {folder.name}, NaN only where nothing fires."
        )


def _classes(folder: Path) -> tuple[str, ...]:
    name = folder.resolve().name
    for path in (folder / "classnames.txt", folder.parent / "classnames" / f"{name}_classnames.txt"):
        if path.is_file():
            try:
                return tuple(line.strip() for line in path.read_text("utf-8").splitlines() if line.strip())
            except (OSError, UnicodeDecodeError) as error:
                raise DataError(f"Expected class names in UTF-8 in {path.name}.") from error
    return ()


def recomputed_entropy(found: DataSet) -> Floats | None:
    """The label entropy from the top ten, [n], to check top_entropy.pt; None when labels or values are absent."""
    if found.top_values is None or found.top_labels is None:
        return None
    share = label_share(found.top_values, found.top_labels)
    return entropy_of_top(share)


def label_share(values: Floats, labels: NDArray[np.int64]) -> Floats:
    """[n, c]: share of the summed top values that each label holds; rows of zeros where nothing fires."""
    n, c = len(values), int(labels.max()) + 1
    place = np.arange(n)[:, None] * c + labels
    mass = np.bincount(place.ravel(), np.maximum(values, 0).ravel(), minlength=n * c).reshape(n, c)
    total = mass.sum(axis=1, keepdims=True)
    return np.asarray(np.divide(mass, total, out=np.zeros_like(mass), where=total > 0))
