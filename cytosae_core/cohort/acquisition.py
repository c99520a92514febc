"""Two optional files beside labels.csv: how the pictures were taken, and what local labels are called in studies.

    acquisition.yaml    scanner, objective, um_per_px, stain, camera: coded words, never sentences
    label-map.yaml      version: 1
                        map: {seg: neutrophil, "band form": neutrophil}

Both are told to a study in `hello`: the card's words as they stand, the map as its version and digest only. So they
take the closed forms of `allowed.HELLO_FACTS`, and whatever else stands in them is refused with its line.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NoReturn

from ..allowed import HELLO_FACTS
from ..canonical import digest_of
from ..errors import CytosaeError, DataError
from ..strict_yaml import Document, parse_strict
from .cells import CellImage
from .opening import read_input
from .table import NO_LABEL
from .words import shown

CARD, LABEL_MAP = "acquisition.yaml", "label-map.yaml"
CARD_KEYS = ("scanner", "objective", "um_per_px", "stain", "camera")
MAX_BYTES, MAX_LABELS, MAX_CHARS, MAX_VERSION = 64 * 1024, 1000, 200, 9999
CODED = "1 to 24 of a-z, 0-9, '.', '+' and '-', with a letter and without five digits in a row, as \"mgg\"."
DECIMAL = 'A decimal in quotes, as "0.125": micrometres per pixel, at most four places.'


@dataclass(frozen=True)
class LabelMap:
    """What local labels are called in studies. A label that is not in it keeps its name.

    Attributes:
        version: the site's own number for it.
        classes: local label -> study class.
        lines: line of each local label in the file.
    """

    version: int
    classes: Mapping[str, str]
    lines: Mapping[str, int] = field(default_factory=dict, compare=False)

    @property
    def fact(self) -> str:
        """`v<version>-<first 16 hex digits of its SHA-256>`: which map it was, without its words."""
        values = {"urn": "urn:cytosae:label-map:v1", "version": self.version, "map": dict(self.classes)}
        return f"v{self.version}-{digest_of(values)[:16]}"

    def apply(self, images: Sequence[CellImage]) -> list[CellImage]:
        """The images under their study classes, once; the local label is kept as attribute `original_label`."""
        return [self._mapped(image) for image in images]

    def _mapped(self, image: CellImage) -> CellImage:
        if image.label not in self.classes:
            return image
        attributes = {"original_label": image.label, **image.attributes}
        return replace(image, label=self.classes[image.label], attributes=attributes)

    def idle(self, images: Sequence[CellImage]) -> list[str]:
        """Sentences about local labels that no image has: a spelling mistake looks like this."""
        found = {image.label for image in images}
        return [
            f"{LABEL_MAP}:{self.lines.get(label, 0)} maps {shown(label)!r}, which no image has."
            for label in self.classes
            if label not in found
        ]


def read_card(folder: Path) -> dict[str, str]:
    """The acquisition card of a cohort's folder; empty when it has none.

    Raises:
        DataError: not a plain file, not strict YAML, an unknown key, a value that is not of its closed form.
    """
    document = _read(folder, CARD)
    if document is None:
        return {}
    card = {}
    for key, value in document.values.items():
        if key not in CARD_KEYS:
            _refuse(CARD, document, key, f"a key in {list(CARD_KEYS)}, got {shown(key)[:24]!r},")
        # A whole number is a decimal too; YAML knows it without quotes. `true` is no number.
        text = str(value) if isinstance(value, int) and not isinstance(value, bool) else value
        if not isinstance(text, str) or not HELLO_FACTS[key].fullmatch(text):
            decimal = key == "um_per_px"
            what = f"{key} as {'a decimal number' if decimal else 'one coded word'}"
            _refuse(CARD, document, key, what, DECIMAL if decimal else CODED)
        card[key] = text
    return card


def read_label_map(folder: Path) -> LabelMap | None:
    """The label map of a cohort's folder; none when it has none.

    Raises:
        DataError: as `read_card`; a local label twice or empty, a class that is no name.
    """
    document = _read(folder, LABEL_MAP)
    if document is None:
        return None
    values = document.values
    for key in values:
        if key not in ("version", "map"):
            _refuse(LABEL_MAP, document, key, f"a key in ['version', 'map'], got {shown(key)[:24]!r},")
    version, entries = values.get("version"), values.get("map")
    if not isinstance(version, int) or isinstance(version, bool) or not 1 <= version <= MAX_VERSION:
        _refuse(LABEL_MAP, document, "version", f"version: a whole number from 1 to {MAX_VERSION}")
    if not isinstance(entries, dict) or not 0 < len(entries) <= MAX_LABELS:
        hint = "One line for each local label, as seg: neutrophil."
        _refuse(LABEL_MAP, document, "map", f"map: a table of 1 to {MAX_LABELS} labels", hint)
    for label, study in entries.items():
        if not (_is_label(label) and _is_label(study)):
            hint = f"Text of 1 to {MAX_CHARS} characters without spaces around it; quote odd words."
            _refuse(LABEL_MAP, document, f"map.{label}", "a local label and a study class", hint)
    lines = {label: document.lines.get(f"map.{label}", 0) for label in entries}
    return LabelMap(version, entries, lines)


def _is_label(text: Any) -> bool:
    good = isinstance(text, str) and 0 < len(text) <= MAX_CHARS and text.isprintable()
    return good and text == text.strip() and text.casefold() not in NO_LABEL


def _read(folder: Path, name: str) -> Document | None:
    twin = Path(name).with_suffix(".yml").name
    if (folder / twin).exists():  # it would be passed over without a word
        raise DataError(f"Expected {name}, got {twin}.", hint="Rename the file.", reason="SCHEMA")
    path = folder / name
    if not path.is_symlink() and not path.exists():
        return None
    try:
        return parse_strict(read_input(path, folder, MAX_BYTES), name)
    except OSError:
        raise DataError(f"Expected a readable {name}.", hint="May this user read it?", reason="IO") from None
    except DataError as error:
        text = f"Expected {name} to be a plain file of at most {MAX_BYTES} bytes, not a link."
        raise DataError(text, reason=error.reason) from None
    except CytosaeError as error:  # the words of the YAML reader, for lab staff
        raise DataError(str(error.args[0]), hint=error.hint, reason=error.reason) from None


def _refuse(name: str, document: Document, key: str, what: str, hint: str = "") -> NoReturn:
    line = document.lines.get(key)
    where = f"{name}:{line}" if line else name
    raise DataError(f"Expected {what} in {where}.", hint=hint, reason="SCHEMA")
