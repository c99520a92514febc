"""Public data sets in the folders that their authors publish."""

from __future__ import annotations

import json
from argparse import ArgumentParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cytosae_core.cohort import check_cohort, image_digest, npz, open_rgb, read_cohort
from cytosae_core.errors import DataError
from cytosae_local import data_cli
from cytosae_local.encoder_cli import register

# Paths as published, and what each image is: label, original label, unit.
LAYOUTS: dict[str, dict[str, tuple[str, str, str]]] = {
    "acevedo": {
        "PBC_dataset_normal_DIB/basophil/BA_799.jpg": ("basophil", "basophil/BA", "basophil/BA_799.jpg"),
        "PBC_dataset_normal_DIB/ig/MMY_10.jpg": ("metamyelocyte", "ig/MMY", "ig/MMY_10.jpg"),
        "PBC_dataset_normal_DIB/ig/PMY_11.jpg": ("promyelocyte", "ig/PMY", "ig/PMY_11.jpg"),
        "PBC_dataset_normal_DIB/neutrophil/BNE_12.jpg": ("neutrophil", "neutrophil/BNE", "neutrophil/BNE_12.jpg"),
    },
    "matek": {
        "AML-Cytomorphology/BAS/BAS_0001.tiff": ("basophil", "BAS", "BAS/BAS_0001.tiff"),
        "AML-Cytomorphology/MYO/MYO_0002.tiff": ("blast", "MYO", "MYO/MYO_0002.tiff"),
    },
    "bmc": {
        "bone_marrow_cell_dataset/MYB/0001-1000/MYB_00001.jpg": (
            "myelocyte", "MYB", "MYB/0001-1000/MYB_00001.jpg",
        ),
        "bone_marrow_cell_dataset/PEB/0001-1000/PEB_00002.jpg": (
            "erythroblast", "PEB", "PEB/0001-1000/PEB_00002.jpg",
        ),
    },
    "mll23": {
        "normoblast/a.TIF": ("erythroblast", "normoblast", "normoblast/a.TIF"),
        "lymphocyte_reactive/lymphocyte_reactive/b.TIF": (
            "lymphocyte", "lymphocyte_reactive", "lymphocyte_reactive/lymphocyte_reactive/b.TIF",
        ),
    },
    "hehr": {
        "data/NPM1/ABF/image_0.tif": ("NPM1", "NPM1", "ABF"),
        "data/NPM1/ABF/image_1.tif": ("NPM1", "NPM1", "ABF"),
        "data/control/AEC/image_0.tif": ("control", "control", "AEC"),
    },
}  # fmt: skip


def make(folder: Path, paths: list[str]) -> Path:
    for seed, name in enumerate(paths):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(seed).integers(0, 255, (20, 20, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(path)
    return folder


@pytest.mark.parametrize("name", LAYOUTS)
def test_the_published_layout_is_read(name: str, tmp_path: Path) -> None:
    folder = make(tmp_path, list(LAYOUTS[name]))
    (folder / "annotations.dat").write_text("not an image")
    (folder / "metadata.csv").write_text("patient_id,age\nABF,99\n")
    hidden = (folder / next(iter(LAYOUTS[name]))).parent / "._resource.jpg"
    hidden.write_bytes(b"macOS")
    cohort = read_cohort(folder, preset=name)
    found = {
        image.path.relative_to(folder).as_posix(): (
            image.label,
            image.attributes["original_label"],
            image.unit,
        )
        for image in cohort.images
    }
    assert found == LAYOUTS[name]
    assert cohort.unit == ("patient" if name == "hehr" else "source_file")
    assert [image.index for image in cohort.images] == list(range(len(cohort.images)))
    assert all(set(image.attributes) == {"original_label"} for image in cohort.images)
    assert check_cohort(cohort).unreadable == 0


def test_the_class_folders_may_be_given_themselves(tmp_path: Path) -> None:
    make(tmp_path, list(LAYOUTS["matek"]))
    inside = read_cohort(tmp_path / "AML-Cytomorphology", preset="matek")
    assert [image.unit for image in inside.images] == ["BAS/BAS_0001.tiff", "MYO/MYO_0002.tiff"]


def test_known_defects_are_counted_or_left_out(tmp_path: Path) -> None:
    make(tmp_path, [*LAYOUTS["bmc"], "bone_marrow_cell_dataset/__MACOSX/BAS/BAS_1.jpg"])
    broken = tmp_path / "bone_marrow_cell_dataset/MYB/5001-6000/MYB_05527.jpg"
    broken.parent.mkdir(parents=True)
    broken.write_bytes(b"")
    cohort = read_cohort(tmp_path, preset="bmc")
    assert len(cohort.images) == 3 and check_cohort(cohort).unreadable_files == ["MYB_05527.jpg"]


@pytest.mark.parametrize(
    ("name", "path", "text"),
    [
        ("matek", "AML-Cytomorphology/XYZ/XYZ_0001.tiff", "class of matek"),
        ("acevedo", "PBC_dataset_normal_DIB/neutrophil/ZZZ_1.jpg", "neutrophil/ZZZ"),
        ("hehr", "data/NPM1/image_0.tif", "2 folders above"),
        ("mll23", "loose.tif", "1 folders above"),
    ],
)
def test_what_is_not_as_published_is_a_data_error(name: str, path: str, text: str, tmp_path: Path) -> None:
    make(tmp_path, [*LAYOUTS[name], path])
    with pytest.raises(DataError, match=text):
        read_cohort(tmp_path, preset=name)


def test_unknown_presets_and_empty_folders_are_data_errors(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="preset='tiktok'"):
        read_cohort(tmp_path, preset="tiktok")
    with pytest.raises(DataError, match="at least one image"):
        read_cohort(tmp_path, preset="mll23")


@pytest.mark.parametrize("what", ["file", "class folder", "range folder", "root"])
def test_links_are_refused(what: str, tmp_path: Path) -> None:
    folder = make(tmp_path / "bmc", list(LAYOUTS["bmc"]))
    root = folder / "bone_marrow_cell_dataset"
    moved = {
        "file": root / "MYB/0001-1000/MYB_00001.jpg", "class folder": root / "MYB",
        "range folder": root / "MYB/0001-1000", "root": root,
    }[what]  # fmt: skip
    moved.rename(tmp_path / "elsewhere")
    moved.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(DataError, match="symbolic links"):
        read_cohort(folder, preset="bmc")


def bloodmnist(folder: Path, size: int = 28, **changes: np.ndarray) -> Path:
    folder.mkdir(exist_ok=True)
    rng = np.random.default_rng(size)
    arrays = {}
    for split, count in (("train", 5), ("val", 2), ("test", 3)):
        arrays[f"{split}_images"] = rng.integers(0, 255, (count, size, size, 3), dtype=np.uint8)
        arrays[f"{split}_labels"] = rng.integers(0, 8, (count, 1), dtype=np.uint8)
    name = "bloodmnist.npz" if size == 28 else f"bloodmnist_{size}.npz"
    np.savez_compressed(folder / name, **{**arrays, **changes})
    return folder


@pytest.mark.parametrize("size", [28, 64])
def test_bloodmnist_images_have_their_pixels_labels_and_splits(size: int, tmp_path: Path) -> None:
    cohort = read_cohort(bloodmnist(tmp_path, size), preset="bloodmnist")
    assert cohort.unit == "source_file" and len(cohort.units) == len(cohort.images) == 10
    assert [image.split for image in cohort.images] == ["train"] * 5 + ["val"] * 2 + ["test"] * 3
    (path,) = tmp_path.glob("*.npz")
    with np.load(path) as arrays:
        for image in (cohort.images[3], cohort.images[9]):
            position = int(image.member.partition("/")[2])
            assert np.array_equal(np.asarray(open_rgb(image)), arrays[f"{image.split}_images"][position])
            label = arrays[f"{image.split}_labels"][position, 0]
            assert image.label == npz.LABELS[label] and image.attributes == {"original_label": str(label)}
    assert len({image_digest(image) for image in cohort.images}) == 10
    assert cohort.images[0].name == f"{path.name}[train/0]" and check_cohort(cohort).sizes == {
        f"{size}x{size}": 10
    }


def test_bloodmnist_replaced_while_in_use_is_noticed(tmp_path: Path) -> None:
    cohort = read_cohort(bloodmnist(tmp_path), preset="bloodmnist")
    before = image_digest(cohort.images[0])
    images = np.zeros((4, 28, 28, 3), np.uint8)
    bloodmnist(tmp_path, train_images=images, train_labels=np.zeros((4, 1), np.uint8))
    assert image_digest(cohort.images[0]) != before
    with pytest.raises(DataError, match="train/4"):
        open_rgb(cohort.images[4])


@pytest.mark.parametrize(
    "changes",
    [
        {"train_labels": np.array([[9]] * 5, np.uint8)},
        {"train_labels": np.zeros((4, 1), np.uint8)},
        {"train_images": np.zeros((5, 28, 30, 3), np.uint8)},
        {"train_images": np.zeros((5, 28, 28), np.uint8)},
        {"train_images": np.zeros((5, 28, 28, 3), np.float32)},
        {"train_images": np.array([{}] * 5, dtype=object)},
        {"val_labels": np.array([{}] * 2, dtype=object)},
    ],
)
def test_other_arrays_are_data_errors(changes: dict[str, np.ndarray], tmp_path: Path) -> None:
    with pytest.raises(DataError):
        read_cohort(bloodmnist(tmp_path, **changes), preset="bloodmnist")


def test_damaged_missing_or_several_npz_files_are_data_errors(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(DataError, match="one bloodmnist"):
        read_cohort(tmp_path, preset="bloodmnist")
    bloodmnist(tmp_path, 64)
    bloodmnist(tmp_path, 28)
    with pytest.raises(DataError, match="found 2"):
        read_cohort(tmp_path, preset="bloodmnist")
    (tmp_path / "bloodmnist_64.npz").unlink()
    monkeypatch.setattr(npz, "MAX_ARRAY_BYTES", 1000)
    with pytest.raises(DataError, match="at most 1000 bytes"):
        read_cohort(tmp_path, preset="bloodmnist")
    path = tmp_path / "bloodmnist.npz"
    for data in (b"", b"rubbish", path.read_bytes()[:-200]):
        path.write_bytes(data)
        with pytest.raises(DataError, match="readable"):
            read_cohort(tmp_path, preset="bloodmnist")


def data(*arguments: str) -> int:
    parser = ArgumentParser()
    data_cli.register(parser)
    options = parser.parse_args(arguments)
    return int(options.run(options))


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_written_table_gives_the_same_cohort(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = make(tmp_path, list(LAYOUTS[name]))
    preset = read_cohort(folder, preset=name)
    assert data("table", name, str(folder), "--json") == 0
    assert json.loads(capsys.readouterr().out)["images"] == len(preset.images)
    assert read_cohort(folder) == preset
    with pytest.raises(DataError, match="no table"):
        data("table", name, str(folder))
    assert data("table", name, str(folder), "--force") == 0


def test_a_table_cannot_name_members_of_an_npz(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="files"):
        data("table", "bloodmnist", str(bloodmnist(tmp_path)))
    assert data("presets") == 0


def test_embedding_a_preset(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    parser = ArgumentParser()
    register(parser)
    arguments = ["embed", str(bloodmnist(tmp_path / "d")), str(tmp_path / "s"), "--preset", "bloodmnist"]
    options = parser.parse_args([*arguments, "--layer", "1", "--max-images", "3", "--json"])
    assert options.run(options) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["images"], found["complete"], found["d"]) == (3, True, 384)
