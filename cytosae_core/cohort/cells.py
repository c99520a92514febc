"""What a cohort is made of: images, their labels and units; and the refusal of links."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from .opening import read_input
from .ratings import Ratings
from .words import refusal

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".dcm"})


@dataclass(frozen=True)
class CellImage:
    """One image. `unit` is the opaque patient, slide or source-file id: it never leaves the site.

    `member` names an image inside a .npz file, as `train/17`; empty for images that are files of their own.
    `root` is the cohort's folder: between it and the file no folder may be a link.
    """

    index: int
    path: Path
    label: str
    unit: str
    split: str = ""
    attributes: Mapping[str, str] = field(default_factory=dict)
    member: str = ""
    root: Path | None = field(default=None, compare=False, repr=False)

    @property
    def name(self) -> str:
        """File name, with the member where there is one: for local display."""
        return f"{self.path.name}[{self.member}]" if self.member else self.path.name


@dataclass(frozen=True)
class Cohort:
    """Images of one site. `unit` says what a unit is: `patient`, `slide` or `source_file`.

    `acquisition` is the card of how they were taken (empty: nobody said), `label_map` names the map that gave them
    the labels of studies (empty: labels are as they were), `notes` are sentences for local display, `ratings` is what
    experts said of concepts.
    """

    name: str
    unit: str
    images: tuple[CellImage, ...]
    acquisition: Mapping[str, str] = field(default_factory=dict)
    label_map: str = ""
    notes: tuple[str, ...] = ()
    ratings: Ratings | None = None

    @property
    def classes(self) -> tuple[str, ...]:
        """Labels, sorted."""
        return tuple(sorted({image.label for image in self.images}))

    @property
    def units(self) -> tuple[str, ...]:
        """Unit ids, sorted."""
        return tuple(sorted({image.unit for image in self.images}))

    def counts(self) -> dict[str, int]:
        """Images per label."""
        return dict(sorted(Counter(image.label for image in self.images).items()))


def image_digest(image: CellImage) -> str:
    """SHA-256 of the file's bytes, or of the pixels of a .npz member, 64 hex digits.

    Raises:
        DataError: a link or not a plain file. OSError: cannot be read.
    """
    if image.member:
        from .npz import member_pixels

        return hashlib.sha256(member_pixels(image.path, image.member).tobytes()).hexdigest()
    return hashlib.sha256(read_input(image.path, image.root)).hexdigest()


def refuse_links(folder: Path, path: Path, where: str = "") -> None:
    """DataError when `path`, or a folder between it and `folder`, is a symbolic link, or the file a hard link.

    A hard link's other name may lie outside the folder, and nothing tells.
    """
    if path.is_file() and path.lstat().st_nlink > 1:
        raise refusal("SYMLINK", where=where)
    step = path
    while step != folder:
        if step.is_symlink():
            raise refusal("SYMLINK", where=where)
        step = step.parent
