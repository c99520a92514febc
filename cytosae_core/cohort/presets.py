"""Public data sets in the folders that their authors publish: where images are, and how to read class and patient.

    acevedo   Acevedo et al. 2020, Mendeley snkd93bnjr      PBC_dataset_normal_DIB/<class>/<code>_<number>.jpg
    matek     Matek et al. 2019, TCIA                       AML-Cytomorphology/<code>/<code>_0001.tiff
    bmc       Matek et al. 2021, TCIA                       bone_marrow_cell_dataset/<code>/<range>/<code>_00001.jpg
    mll23     Zenodo 14277609                               <class>/.../*.TIF
    hehr      Hehr et al. 2023, TCIA                        data/<subtype>/<patient>/*.tif
    bloodmnist  Yang et al. 2023                            bloodmnist*.npz (see npz.py)

Only hehr has patients. Its metadata.csv (age, sex) and matek's annotations.dat (a second opinion on some images)
are not read: class and patient are in the folders. Files that cannot be decoded, as bmc's MYB_05527.jpg, stay in the
cohort and are counted as unreadable. Labels follow the shared ontology of the project's sites; the attribute
`original_label` keeps the source's. hehr's label is the patient's diagnosis, not the cell's class.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from ..errors import DataError
from .cells import SUFFIXES, CellImage, refuse_links
from .npz import read_bloodmnist

IGNORED = frozenset({"__MACOSX", "augmented"})  # macOS archives; rotated copies in a re-upload of matek
Parts = tuple[str, ...]


@dataclass(frozen=True)
class Preset:
    """A data set's folders.

    Attributes:
        roots: where the class folders are, below the given folder; the first that exists.
        labels: original label -> the project's.
        original: original label of an image from its path's parts below the root.
        depth: parts that a path has at least.
        unit: `patient` when the second part is the patient, otherwise `source_file`.
    """

    roots: tuple[str, ...]
    labels: Mapping[str, str]
    original: Callable[[Parts], str] = lambda parts: parts[0]
    depth: int = 2
    unit: str = "source_file"


def _acevedo_label(parts: Parts) -> str:
    """`ig/PMY`: the folder alone does not tell promyelocytes, myelocytes and metamyelocytes apart."""
    return f"{parts[0]}/{parts[-1].split('_')[0].split('.')[0]}"


ACEVEDO = {
    "basophil/BA": "basophil", "eosinophil/EO": "eosinophil", "erythroblast/ERB": "erythroblast",
    "lymphocyte/LY": "lymphocyte", "monocyte/MO": "monocyte", "platelet/PLATELET": "platelet",
    "neutrophil/NEUTROPHIL": "neutrophil", "neutrophil/BNE": "neutrophil", "neutrophil/SNE": "neutrophil",
    "ig/IG": "immature_granulocyte", "ig/PMY": "promyelocyte", "ig/MY": "myelocyte", "ig/MMY": "metamyelocyte",
}  # fmt: skip
MATEK = {
    "BAS": "basophil", "EBO": "erythroblast", "EOS": "eosinophil", "KSC": "smudge_cell", "LYA": "lymphocyte",
    "LYT": "lymphocyte", "MMZ": "metamyelocyte", "MOB": "blast", "MON": "monocyte", "MYB": "myelocyte",
    "MYO": "blast", "NGB": "neutrophil", "NGS": "neutrophil", "PMB": "promyelocyte", "PMO": "promyelocyte",
}  # fmt: skip
BMC = {
    "ABE": "eosinophil", "ART": "artefact", "BAS": "basophil", "BLA": "blast", "EBO": "erythroblast",
    "EOS": "eosinophil", "FGC": "promyelocyte", "HAC": "hairy_cell", "KSC": "smudge_cell", "LYI": "lymphocyte",
    "LYT": "lymphocyte", "MMZ": "metamyelocyte", "MON": "monocyte", "MYB": "myelocyte", "NGB": "neutrophil",
    "NGS": "neutrophil", "NIF": "not_identifiable", "OTH": "other", "PEB": "erythroblast", "PLM": "plasma_cell",
    "PMO": "promyelocyte",
}  # fmt: skip
MLL23 = {
    "basophil": "basophil", "eosinophil": "eosinophil", "hairy_cell": "hairy_cell", "lymphocyte": "lymphocyte",
    "lymphocyte_large_granular": "lymphocyte", "lymphocyte_neoplastic": "lymphocyte",
    "lymphocyte_reactive": "lymphocyte", "metamyelocyte": "metamyelocyte", "monocyte": "monocyte",
    "myeloblast": "blast", "myelocyte": "myelocyte", "neutrophil_band": "neutrophil",
    "neutrophil_segmented": "neutrophil", "normoblast": "erythroblast", "plasma_cell": "plasma_cell",
    "promyelocyte": "promyelocyte", "promyelocyte_atypical": "promyelocyte", "smudge_cell": "smudge_cell",
}  # fmt: skip
HEHR = {name: name for name in ("CBFB_MYH11", "NPM1", "PML_RARA", "RUNX1_RUNX1T1", "control")}

PRESETS: dict[str, Preset] = {
    "acevedo": Preset(("PBC_dataset_normal_DIB", ""), ACEVEDO, _acevedo_label),
    "matek": Preset(("AML-Cytomorphology", "data/data", ""), MATEK),
    "bmc": Preset(("bone_marrow_cell_dataset", ""), BMC),
    "mll23": Preset(("",), MLL23),
    "hehr": Preset(("data", ""), HEHR, depth=3, unit="patient"),
}
NAMES = (*PRESETS, "bloodmnist")


def read_preset(folder: Path, name: str) -> tuple[str, list[CellImage]]:
    """Unit and images of a public data set.

    Raises:
        DataError: an unknown preset, a folder or class that the data set does not have, a link.
    """
    if name == "bloodmnist":
        return "source_file", read_bloodmnist(folder)
    if name not in PRESETS:
        raise DataError(f"Expected preset in {NAMES}, got preset={name!r}.")
    preset = PRESETS[name]
    root = next(path for part in (*preset.roots, "") if (path := folder / part).is_dir())
    return preset.unit, [_image(preset, name, root, path) for path in _files(folder, root)]


def _image(preset: Preset, name: str, root: Path, path: Path) -> CellImage:
    relative = PurePosixPath(path.relative_to(root).as_posix())
    if len(relative.parts) < preset.depth:
        raise DataError(
            f"Expected {preset.depth - 1} folders above an image of {name}, got {str(relative)[:80]!r}."
        )
    original = preset.original(relative.parts)
    if original not in preset.labels:
        raise DataError(
            f"Expected a class of {name} in {sorted(preset.labels)}, got {original[:80]!r}.",
            hint="Is it the published folder? Move other files out of it.",
        )
    unit = relative.parts[1] if preset.unit == "patient" else str(relative)
    return CellImage(0, path, preset.labels[original], unit, "", {"original_label": original})


def _files(folder: Path, root: Path) -> list[Path]:
    """Image files below `root`, sorted by path; hidden ones (macOS) are left out, links are refused."""
    refuse_links(folder, root)
    found = []
    for place, folders, names in os.walk(root):
        folders[:] = sorted(item for item in folders if item not in IGNORED and not item.startswith("."))
        for item in (*folders, *names):
            if item in folders or (Path(item).suffix.lower() in SUFFIXES and not item.startswith(".")):
                path = Path(place) / item
                if path.is_symlink():
                    refuse_links(folder, path)
                if item not in folders:
                    found.append(path)
    return sorted(found, key=lambda path: path.relative_to(root).parts)
