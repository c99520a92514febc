"""Cohorts: both folder forms, units, splits, and every kind of bad input."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cytosae_core.cohort import check_cohort, image_digest, open_rgb, read_cohort, split_units
from cytosae_core.cohort import reading as reading_module
from cytosae_core.errors import DataError


def picture(path: Path, seed: int = 0, size: int = 12) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    values = np.random.default_rng(seed).integers(0, 255, (size, size, 3), dtype=np.uint8)
    Image.fromarray(values).save(path)


def table(folder: Path, text: str, images: int = 4, where: str = "images") -> Path:
    for index in range(images):
        picture(folder / where / f"c{index}.png", index)
    (folder / "labels.csv").write_text(text)
    return folder


GOOD = "image,label,patient,colour\nc0.png,a,p1,red\nc1.png,b,p1,blue\nc2.png,a,p2,\nc3.png,b,p2,red\n"


def test_table_with_patients_and_attributes(tmp_path: Path) -> None:
    cohort = read_cohort(table(tmp_path, GOOD), name="north")
    assert (cohort.name, cohort.unit, cohort.classes, cohort.units) == (
        "north",
        "patient",
        ("a", "b"),
        ("p1", "p2"),
    )
    assert cohort.counts() == {"a": 2, "b": 2} and [image.index for image in cohort.images] == [0, 1, 2, 3]
    assert cohort.images[1].attributes == {"colour": "blue"}
    assert open_rgb(cohort.images[0]).size == (12, 12) and len(image_digest(cohort.images[0])) == 64


def test_class_folders(tmp_path: Path) -> None:
    for label in ("x", "y"):
        for index, suffix in enumerate((".png", ".jpg", ".bmp", ".tif")):
            picture(tmp_path / label / f"{index}{suffix}", index)
    (tmp_path / "x" / "notes.txt").write_text("not an image")
    cohort = read_cohort(tmp_path)
    assert cohort.unit == "source_file" and cohort.counts() == {"x": 4, "y": 4} and len(cohort.units) == 8
    assert check_cohort(cohort).unreadable == 0


@pytest.mark.parametrize(
    ("columns", "cells", "unit"),
    [
        ("image,label,patient,slide", "p,s", "patient"),
        ("image,label,patient,slide", ",s", "slide"),
        ("image,label,patient_or_slide,source_file", "s,f", "slide"),
        ("image,label,patient_or_slide,source_file", ",f", "source_file"),
        ("image,label", "", "source_file"),
    ],
)
def test_the_unit_is_the_best_complete_column(tmp_path: Path, columns: str, cells: str, unit: str) -> None:
    rows = "".join(f"c{i}.png,a{',' + cells if cells else ''}\n" for i in range(4))
    assert read_cohort(table(tmp_path, f"{columns}\n{rows}")).unit == unit


@pytest.mark.shared
def test_real_sites_are_read(shared: Path) -> None:
    expected = {"bccd-shenggan": 922, "chula-rbc12": 1680, "chula-wbc-rpi": 511, "draaslan-romanowsky": 402}
    for name, images in expected.items():
        cohort = read_cohort(shared / "data" / "sites" / name)
        assert len(cohort.images) == images
        assert cohort.unit == ("slide" if name == "chula-wbc-rpi" else "source_file")


def test_subsample_is_stratified_spread_and_repeats(tmp_path: Path) -> None:
    rows = "".join(f"c{i}.png,{'a' if i < 15 else 'b'},p{i % 5}\n" for i in range(20))
    folder = table(tmp_path, "image,label,patient\n" + rows, images=20)
    first, again = (read_cohort(folder, max_images=10) for _ in range(2))
    assert first == again and first.counts() == {"a": 5, "b": 5}
    assert len({image.unit for image in first.images if image.label == "a"}) == 5
    assert read_cohort(folder, max_images=10, seed=1) != first


BAD: dict[str, Callable[[Path], object]] = {
    "no folder": lambda f: f / "missing",
    "no images": lambda f: f,
    "missing column": lambda f: table(f, "image,kind\nc0.png,a\n"),
    "empty label": lambda f: table(f, "image,label\nc0.png,\n"),
    "short row": lambda f: table(f, "image,label,patient\nc0.png,a\n"),
    "long row": lambda f: table(f, "image,label\nc0.png,a,b,c\n"),
    "outside": lambda f: table(f, "image,label\n../c0.png,a\n"),
    "absolute": lambda f: table(f, "image,label\n/etc/hosts.png,a\n"),
    "backslash": lambda f: table(f, "image,label\n..\\c0.png,a\n"),
    "missing file": lambda f: table(f, "image,label\nnone.png,a\n"),
    "not an image type": lambda f: table(f, "image,label\nlabels.csv,a\n"),
    "twice": lambda f: table(f, "image,label\nc0.png,a\nc0.png,b\n"),
    "nul": lambda f: table(f, "image,label\nc0.png,a\0\n"),
    "quotes": lambda f: table(f, 'image,label\n"c0.png,a\n'),
    "empty table": lambda f: table(f, "image,label\n"),
    "nothing at all": lambda f: table(f, ""),
}


@pytest.mark.parametrize("kind", BAD)
def test_bad_tables_are_data_errors(tmp_path: Path, kind: str) -> None:
    folder = BAD[kind](tmp_path)
    with pytest.raises(DataError):
        read_cohort(Path(str(folder)))


def test_binary_table_is_a_data_error(tmp_path: Path) -> None:
    (tmp_path / "labels.csv").write_bytes(b"PK\x03\x04\xff\xfe" * 20)
    with pytest.raises(DataError):
        read_cohort(tmp_path)


def test_links_are_refused(tmp_path: Path) -> None:
    folder = table(tmp_path / "data", GOOD)
    (tmp_path / "alias").symlink_to(folder)
    with pytest.raises(DataError):
        read_cohort(tmp_path / "alias")
    target = folder / "images" / "c0.png"
    target.rename(tmp_path / "elsewhere.png")
    target.symlink_to(tmp_path / "elsewhere.png")
    with pytest.raises(DataError):
        read_cohort(folder)


def test_formulas_are_just_text(tmp_path: Path) -> None:
    assert read_cohort(table(tmp_path, "image,label\nc0.png,=1+1\n")).classes == ("=1+1",)


def test_unreadable_and_bombs_are_data_errors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cohort = read_cohort(table(tmp_path, GOOD))
    whole = cohort.images[0].path.read_bytes()
    cohort.images[0].path.write_bytes(whole[: len(whole) // 2])
    cohort.images[1].path.write_bytes(b"GIF89a rubbish")
    for index in (0, 1):
        with pytest.raises(DataError):
            open_rgb(cohort.images[index])
    monkeypatch.setattr(reading_module, "MAX_PIXELS", 100)
    with pytest.raises(DataError):
        open_rgb(cohort.images[2])


def test_check_counts_what_is_wrong_and_goes_on(tmp_path: Path) -> None:
    rows = "".join(f"c{i}.png,a,p{i}\n" for i in range(40))
    cohort = read_cohort(table(tmp_path, "image,label,patient\n" + rows, images=40))
    cohort.images[7].path.write_bytes(b"")
    cohort.images[8].path.write_bytes(cohort.images[9].path.read_bytes())
    seen: list[tuple[int, int]] = []
    found = check_cohort(cohort, progress=lambda done, total: seen.append((done, total)))
    assert found.unreadable == 1 and found.unreadable_files == ["c7.png"] and found.usable
    assert found.duplicates == [("c8.png", "c9.png")] and any("copy of" in text for text in found.problems)
    assert found.to_dict()["units"] == 40 and found.mean_rgb is not None and seen[-1] == (40, 40)


def test_check_says_when_a_cohort_is_unusable(tmp_path: Path) -> None:
    cohort = read_cohort(table(tmp_path, GOOD))
    for image in cohort.images[:2]:
        image.path.write_bytes(b"")
    found = check_cohort(cohort)
    assert not found.usable and any("suppressed" in text for text in found.problems)


def test_split_keeps_units_whole_and_classes_even() -> None:
    units = [f"p{index // 2}" for index in range(96)]
    labels = [str(index % 4) for index in range(96)]
    parts = split_units(units, labels, (0.5, 0.5), salt="x")
    for unit in set(units):
        assert len({part for part, name in zip(parts, units, strict=True) if name == unit}) == 1
    for label in "0123":
        assert abs(sum(p == 0 for p, name in zip(parts, labels, strict=True) if name == label) - 12) <= 1
    assert (split_units(units, labels, (0.5, 0.5), salt="x") == parts).all()
    assert (split_units(units, labels, (0.5, 0.5), salt="y") != parts).any()
    share = split_units(units, labels, (0.6, 0.4), salt="x")
    assert 0.5 < (share == 0).mean() < 0.7


def test_split_of_nonsense_is_a_data_error() -> None:
    for arguments in ((["a"], ["b", "c"], (1.0,)), (["a"], ["b"], ()), (["a"], ["b"], (1.0, 0.0))):
        with pytest.raises(DataError):
            split_units(*arguments, salt="x")


def test_a_slide_in_two_splits_is_flagged_and_a_patient_refused(tmp_path: Path) -> None:
    rows = "".join(f"c{i}.png,a,u{i // 2},{('train', 'test')[i % 2]}\n" for i in range(4))
    found = check_cohort(read_cohort(table(tmp_path, "image,label,slide,split\n" + rows)))
    assert any("more than one split" in text for text in found.problems)
    with pytest.raises(DataError) as caught:
        read_cohort(table(tmp_path, "image,label,patient,split\n" + rows))
    assert caught.value.reason == "LEAKAGE"


def test_unreadable_files_are_counted_by_reason_and_the_decoder_is_named(tmp_path: Path) -> None:
    cohort = read_cohort(table(tmp_path, GOOD))
    cohort.images[0].path.write_bytes(b"")
    cohort.images[1].path.write_bytes(b"GIF89a " + bytes(40))
    found = check_cohort(cohort).to_dict()
    assert found["reasons"] == {"EMPTY": 1, "MAGIC": 1} and found["decoder"].startswith("separate process")
