"""What a cohort is made of: images, their labels and units; and the refusal of links."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from ..errors import DataError

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".dcm"})


@dataclass(frozen=True)
class CellImage:
    """One image. `unit` is the opaque patient, slide or source-file id: it never leaves the site.

    `member` names an image inside a .npz file, as `train/17`; empty for images that are files of their own.
    """

    index: int
    path: Path
    label: str
    unit: str
    split: str = ""
    attributes: Mapping[str, str] = field(default_factory=dict)
    member: str = ""

    @property
    def name(self) -> str:
        """File name, with the member where there is one: for local display."""
        return f"{self.path.name}[{self.member}]" if self.member else self.path.name


@dataclass(frozen=True)
class Cohort:
    """Images of one site. `unit` says what a unit is: `patient`, `slide` or `source_file`."""

    name: str
    unit: str
    images: tuple[CellImage, ...]

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
    """SHA-256 of the file's bytes, or of the pixels of a .npz member, 64 hex digits."""
    if image.member:
        from .npz import member_pixels

        return hashlib.sha256(member_pixels(image.path, image.member).tobytes()).hexdigest()
    return hashlib.sha256(image.path.read_bytes()).hexdigest()


def refuse_links(folder: Path, path: Path, where: str = "") -> None:
    """DataError when `path`, or a folder between it and `folder`, is a symbolic link."""
    step = path
    while step != folder:
        if step.is_symlink():
            raise DataError(f"Expected no symbolic links in a cohort{where}.", hint="Copy the file instead.")
        step = step.parent
