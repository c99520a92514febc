"""The four-scale commands, run as their user would: cells on disk, a fake encoder, a real pass, real pictures."""

from __future__ import annotations

import argparse
import csv
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import cytosae_local.concept_source as concept_source
from cytosae_core.cohort import read_cohort
from cytosae_core.cohort.ratings import read_ratings
from cytosae_core.concepts.coder import load_coder
from cytosae_core.concepts.extract import Cells, Settings, extract
from cytosae_core.concepts.extracted import Extracted, load_extracted
from cytosae_core.concepts.statistics import class_share
from cytosae_core.encoder import open_store
from cytosae_core.errors import CytosaeError, DataError, StudyError
from cytosae_core.sae.checkpoint import save_checkpoint
from cytosae_local import scales_cli
from cytosae_local.scales_gallery import useful, warnings_of
from cytosae_local.scales_io import numbers, plain
from tests.records import record

RED, BLUE = 0, 1  # concepts of the dictionary below; concept 2 never fires
SIDE = 96


class Colours:
    """A fake encoder, d = 4: a patch's token is its redness and blueness; CLS is very red."""

    d, digest = 4, "c" * 64

    def pixels(self, image: Any) -> np.ndarray:
        return np.asarray(image.resize((224, 224), Image.Resampling.BILINEAR))

    def mask_of(self, pixels: np.ndarray) -> np.ndarray:
        mask = np.ones(257, dtype=bool)
        mask[0] = False
        return mask

    def encode(self, images: torch.Tensor) -> torch.Tensor:
        """[B, 3, 224, 224] -> [B, 257, 4]."""
        patch = torch.nn.functional.avg_pool2d(images, 14).flatten(2).transpose(1, 2)  # [B, 256, 3]
        difference = patch[..., 0] - patch[..., 2]
        tokens = torch.zeros(len(images), 257, 4)
        tokens[:, 1:, 0], tokens[:, 1:, 1] = (difference - 1).clamp(min=0), (-1 - difference).clamp(min=0)
        tokens[:, 0, 0] = 50.0
        return tokens

    def canary(self) -> np.ndarray:
        return np.ones((8, 4), np.float32)


def picture(colour: tuple[int, int, int], patch: int) -> Image.Image:
    """A grey image whose patch `patch` (of 16 in a row, same row and column) has a colour; not square."""
    pixels = np.full((SIDE, 2 * SIDE, 3), 128, np.uint8)
    step = SIDE // 16
    pixels[patch * step : (patch + 1) * step, 2 * patch * step : 2 * (patch + 1) * step] = colour
    return Image.fromarray(pixels)


def write_cells(folder: Path) -> None:
    """Red cells of patients r0 .. r3, blue cells of b0 .. b3; image 0 is red in the last patch."""
    (folder / "images").mkdir(parents=True)
    rows = []
    for number in range(16):
        patient, red = number // 2, number < 8
        colour = (255, 0, 0) if red else (0, 0, 255)
        picture(colour, 15 if number == 0 else 3 + number % 5).save(folder / "images" / f"{number}.png")
        rows.append((f"{number}.png", "red<b>" if red else "blue", f"{'r' if red else 'b'}{patient % 4}"))
    with (folder / "labels.csv").open("w", newline="") as stream:
        csv.writer(stream).writerows([("image", "label", "patient"), *rows])


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with cells/, dictionary and, after one command, tokens/ and extracted/."""
    folder = tmp_path_factory.mktemp("site")
    write_cells(folder / "cells")
    facts = {"model": "pursuit", "k": 2}
    save_checkpoint(folder / "dictionary", {"dictionary": np.eye(4, dtype=np.float32)[[0, 1, 3]]}, facts)
    other = np.eye(4, dtype=np.float32)[[1, 0, 3]]
    save_checkpoint(folder / "other", {"dictionary": other}, facts)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(concept_source, "encoder_of", lambda options: Colours())
        run(
            "patch",
            *cells_of(folder),
            folder / "first",
            "--image",
            "0",
            "--concept",
            "0",
            "--store",
            folder / "tokens",
        )
    cohort, store = read_cohort(folder / "cells"), open_store(folder / "tokens")
    images = [cohort.images[index] for index in store.image_index]
    cells = Cells(
        lambda start, stop: (store.tokens(start, stop).astype(np.float32), store.mask()[start:stop]),
        [image.label for image in images], [image.unit for image in images], cohort.unit, Colours.digest,
    )  # fmt: skip
    extract(cells, load_coder(folder / "dictionary"), Settings(rule="patches")).save(folder / "extracted")
    return folder


def cells_of(folder: Path, dictionary: str = "dictionary") -> tuple[Path, Path]:
    return folder / "cells", folder / dictionary


def run(*arguments: object) -> int:
    """Parse and run as `cytosae concepts` does."""
    parser = argparse.ArgumentParser()
    scales_cli.register(parser.add_subparsers(required=True))
    options = parser.parse_args([str(argument) for argument in arguments])
    return int(options.run(options))


@pytest.fixture(autouse=True)
def _fake_encoder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(concept_source, "encoder_of", lambda options: Colours())


Runner = Callable[..., dict[str, Any]]


@pytest.fixture
def on_cells(site: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Runner:
    """Run a command on the cells with --json and give its numbers."""

    def go(command: str, *arguments: object, dictionary: str = "dictionary") -> dict[str, Any]:
        capsys.readouterr()
        out = tmp_path / "out"
        run(command, *cells_of(site, dictionary), out, "--store", site / "tokens", "--json", *arguments)
        values = json.loads(capsys.readouterr().out)
        assert "local only" in values["notice"] and all((out / name).is_file() for name in values["files"])
        return dict(values)

    return go


@pytest.fixture
def on_record(site: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Runner:
    """Run a command on a record with --json and give its numbers."""

    def go(command: str, *arguments: object, folder: Path | None = None) -> dict[str, Any]:
        capsys.readouterr()
        run(command, folder or site / "extracted", tmp_path / "out", "--json", *arguments)
        return dict(json.loads(capsys.readouterr().out))

    return go


def saved(tmp_path: Path, found: Extracted) -> Path:
    found.save(tmp_path / "record")
    return tmp_path / "record"


# --- patch and image ---


def test_red_corner_of_a_cell_is_found_in_that_corner(on_cells: Runner) -> None:
    """From the file's bottom right pixels over tokens and codes to the bottom right of the printed grid."""
    values = on_cells("patch", "--image", "0,9", "--concept", f"{RED},{BLUE}")
    red, no_blue, no_red, blue = (np.array(part["grid"]) for part in values["patches"])
    assert np.argwhere(red > 0).tolist() == [[15, 15]]
    assert np.argwhere(blue > 0).tolist() == [[7, 7]]  # image 9: patch 3 + 9 % 5
    assert not no_blue.any() and not no_red.any()
    assert values["patches"][0]["cls"] == pytest.approx(50) and red.max() < 10  # CLS is red, and is no patch


def test_smooth_and_svg(on_cells: Runner) -> None:
    values = on_cells("patch", "--image", "0", "--concept", "0", "--smooth", "--format", "svg")
    assert values["files"] == ["patch.svg"]


def test_sheet_shows_cells_of_the_concept_and_no_placeholder(on_cells: Runner, site: Path) -> None:
    values = on_cells("sheet", "--concept", f"{BLUE},2", "--extracted", site / "extracted")
    blue, silent = values["sheets"]
    assert values["files"] == ["concept-1.png", "concept-2.png"]
    assert {one["class"] for one in blue["references"]} == {"blue"}
    assert {one["image"] for one in blue["references"]} <= set(range(8, 16))
    assert {one["group"] for one in blue["references"]} >= {"mean", "peak"}
    assert silent["references"] == []  # never image 0 in place of none


def test_tokens_of_the_pass_are_used_again(
    site: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(site / "extracted", tmp_path / "pass")
    shutil.copytree(site / "tokens", tmp_path / "pass" / "tokens")
    monkeypatch.setattr(Colours, "encode", None)  # encoding again would fail
    arguments = ("--concept", "0", "--extracted", tmp_path / "pass")
    run("sheet", *cells_of(site), tmp_path / "out", *arguments)
    assert not (tmp_path / "out" / "tokens").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--image", "16", "--concept", "0"), "0 <= image < 16, got image=16"),
        (("--image", "0", "--concept", "3"), "0 <= concept < 3, got concept=3"),
    ],
)
def test_patch_refuses_what_is_not_there(on_cells: Runner, arguments: tuple[str, ...], words: str) -> None:
    with pytest.raises(DataError, match=words):
        on_cells("patch", *arguments)


def test_sheet_refuses_an_unknown_concept_and_another_dictionary(on_cells: Runner, site: Path) -> None:
    with pytest.raises(DataError, match="concept=7"):
        on_cells("sheet", "--concept", "7", "--extracted", site / "extracted")
    with pytest.raises(StudyError, match="Expected an extraction of dictionary"):
        on_cells("sheet", "--concept", "0", "--extracted", site / "extracted", dictionary="other")


def test_record_of_other_cells_or_encoder_or_of_nothing(on_cells: Runner, site: Path, tmp_path: Path) -> None:
    good = load_extracted(site / "extracted")
    for changed, error, words in (
        (replace(good, images=np.array([15])), DataError, "these 16 images, got 15"),
        (replace(good, facts=replace(good.facts, encoder="f" * 64)), StudyError, "same encoder"),
        (replace(good, images=np.array([0])), DataError, "at least one image"),
    ):
        folder = saved(tmp_path, changed)
        with pytest.raises(error, match=words):
            on_cells("sheet", "--concept", "0", "--extracted", folder)
    with pytest.raises(DataError, match="cytosae concepts extract"):
        on_cells("sheet", "--concept", "0", "--extracted", tmp_path / "nowhere")


# --- gallery ---


def test_gallery_orders_and_warns(on_cells: Runner, site: Path, tmp_path: Path) -> None:
    values = on_cells("gallery", "--extracted", site / "extracted", "--top", "9")
    shown = {one["concept"]: one for one in values["concepts"]}
    assert set(shown) == {RED, BLUE}  # concept 2 never fires and is not offered
    assert shown[RED]["evenness"] == pytest.approx(0) and shown[RED]["units"] == 4
    assert shown[RED]["warnings"] == ["Rare: it fires in only 8 cells."]
    page = (tmp_path / "out" / "gallery.html").read_text()
    assert "red<b>" not in page and "red&lt;b&gt;" in page
    assert page.count('<article id="c') == 2 and "data:image/jpeg" in page


def test_a_review_sheet_can_be_filled_in_and_read(on_cells: Runner, site: Path, tmp_path: Path) -> None:
    on_cells("gallery", "--extracted", site / "extracted", "--concepts", "2,1,0", "--review-sheet")
    sheet = tmp_path / "out" / "review.csv"
    found = read_ratings(sheet.parent)
    assert found is not None and found.votes == ()
    facts = json.loads((site / "extracted" / "statistics.json").read_text())
    assert found.dictionary == facts["dictionary"]
    lines = sheet.read_text().splitlines()
    assert len(lines) == 2 + 3 * 3 and sorted({line.split(",")[1] for line in lines[2:]}) == [
        "r1",
        "r2",
        "r3",
    ]
    sheet.write_text(sheet.read_text().replace("c0001,r2,", "c0001,r2,granules"))
    filled = read_ratings(sheet.parent)
    assert filled is not None and filled.votes == ((1, 0),)


def test_gallery_of_chosen_concepts_keeps_their_order(on_cells: Runner, site: Path) -> None:
    values = on_cells("gallery", "--extracted", site / "extracted", "--concepts", "2,1")
    assert [one["concept"] for one in values["concepts"]] == [2, BLUE]
    assert values["concepts"][0]["warnings"] == ["It does not fire in any of these cells."]


def test_gallery_warns_when_few_patients_or_few_cells_carry_a_concept() -> None:
    counts = [[90, 5, 10, 0, 10], [5, 5, 10, 0, 10], [5, 0, 10, 0, 10], [0, 0, 10, 0, 10]]
    found = record(counts, [300] * 4, [0, 0, 0, 1])
    found.image_count[:] = [40, 40, 40, 0, 40]
    found.class_images[:], found.class_image_count[:] = 30, 20
    found.class_total[:] = [[1, 1, 3, 0, 1], [1, 1, 1, 0, 9]]
    found.class_image_count[1, 4] = 1  # concept 4 speaks of class1 by one cell
    share = class_share(found)
    said = [warnings_of(found, concept, share) for concept in range(5)]
    assert said[0] == ["90 % of its patches above the threshold come from one of the patients: p0."]
    assert said[1] == ["Rare: above the threshold in only 2 of 4 patients."] and said[2] == []
    assert said[4] == ["What it says of class1 rests on 1 cell of that class."]
    assert useful(found).tolist() == [2, 4, 0, 1]  # clean ones first, then by how clearly a class stands out


def test_gallery_refuses_bad_choices(on_cells: Runner, site: Path) -> None:
    with pytest.raises(DataError, match="concept=3"):
        on_cells("gallery", "--extracted", site / "extracted", "--concepts", "0,3")
    with pytest.raises(DataError, match="--top >= 1"):
        on_cells("gallery", "--extracted", site / "extracted", "--top", "0")


# --- patient and class ---


def test_patient_barcode_is_a_share_of_its_patches(on_record: Runner) -> None:
    values = on_record("patient", "--patient", "r1", "--against", "b1")
    assert values["patient"] == {"name": "r1", "class": "red<b>", "images": 2, "tokens": 512}
    assert values["barcodes"][0]["values"] == pytest.approx([2 / 512, 0, 0], rel=1e-4)
    first = values["comparison"]["concepts"][0]
    assert first["difference"] == pytest.approx(2 / 512, rel=1e-4) and not first["outside"]
    assert "one of each one's class" in values["comparison"]["basis"]
    assert "7 other patients" in values["typical"]["basis"]


def test_patient_in_the_published_form(on_record: Runner) -> None:
    values = on_record("patient", "--patient", "r1", "--cytosae-compatible")
    forms = {one["kind"]: one["values"] for one in values["barcodes"]}
    assert forms["cytosae_compatible"] == pytest.approx(
        [2 / 3, 0, 0], rel=1e-4
    )  # two patches / three concepts
    assert forms["threshold"] == pytest.approx([2 / 512, 0, 0], rel=1e-4)


def test_patient_beside_calibrated_thresholds(on_record: Runner, tmp_path: Path) -> None:
    found = record(
        [[4, 2]] * 5, [100] * 5, [0] * 5, calibrated=[[1, 2]] * 5, held_out=[1, 0, 1, 1, 1]
    )  # fmt: skip
    folder = saved(tmp_path, found)
    values = on_record("patient", "--patient", "p0", "--against", "p1", folder=folder)
    held_out, not_held_out = (one["values"] for one in values["barcodes"] if one["kind"] == "calibrated")
    assert held_out == [0.01, 0.02] and not_held_out == [None, None]


def test_patient_refuses_the_unknown_and_itself(on_record: Runner) -> None:
    for arguments, words in (
        (("--patient", "zz"), "Expected a patient of the extraction, got 'zz'"),
        (("--patient", "r1", "--against", "zz"), "got 'zz'"),
        (("--patient", "r1", "--against", "r1"), "two different patients"),
    ):
        with pytest.raises(DataError, match=words):
            on_record("patient", *arguments)


def test_within_class_needs_a_class(on_record: Runner, tmp_path: Path) -> None:
    assert on_record("patient", "--patient", "r1", "--within-class")["typical"]["others"] == 3
    mixed = saved(tmp_path, record([[1]] * 5, [10] * 5, [-1, 0, 0, 0, 0]))
    with pytest.raises(DataError, match="one class"):
        on_record("patient", "--patient", "p0", "--within-class", folder=mixed)


def test_classes_contrast_red_and_blue(on_record: Runner) -> None:
    values = on_record("classes", "--contrast", "blue:red<b>", "--cytosae-compatible")
    (contrast,) = values["contrasts"]
    assert [one["concept"] for one in contrast["concepts"]] == [BLUE, RED]  # most positive first
    assert contrast["concepts"][0]["difference"] == pytest.approx(2 / 512, rel=1e-4)
    assert contrast["concepts"][0]["p"] == pytest.approx(2 / 70, rel=1e-4)  # 4 of 8: 70 splits
    assert contrast["units"] == [4, 4] and values["classes"][0]["units"] == 4
    assert values["likeness"]["class"] == ["blue"] * 4 + ["red<b>"] * 4
    assert values["files"] == [
        "class-barcodes.png", "class-barcodes-cytosae.png", "contrast-0.png", "likeness.png",
    ]  # fmt: skip
    assert values["cytosae_compatible"][0] == pytest.approx([0, 2 / 3, 0], rel=1e-4)


def test_classes_without_a_pair_are_set_against_the_rest(on_record: Runner) -> None:
    values = on_record("classes", "--format", "svg")
    assert [one["first"] for one in values["contrasts"]] == ["blue", "red<b>"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("blue", "A:B"),
        (":blue", "A:B"),
        ("blue:green", "got 'green'"),
        ("blue:blue", "two different classes"),
    ],
)
def test_bad_contrasts(on_record: Runner, text: str, words: str) -> None:
    with pytest.raises(DataError, match=words):
        on_record("classes", "--contrast", text)


def test_one_class_has_no_contrast_and_two_patients_no_interval(on_record: Runner, tmp_path: Path) -> None:
    values = on_record("classes", folder=saved(tmp_path, record([[1, 2], [2, 1]], [10, 10], [0, 0])))
    assert values["contrasts"] == [] and values["classes"][0]["low"] == [None, None]
    assert "fewer than 3 units" in values["classes"][0]["note"]


def test_records_without_barcodes_or_tokens(on_record: Runner, tmp_path: Path) -> None:
    found = record([[1, 2], [2, 1]], [10, 10], [0, 0])
    for changed, words in (
        (replace(found, unit_counts=np.zeros((0, 2), np.int32)), "barcodes per patient"),
        (replace(found, tokens=np.array([0])), "at least one token"),
        (replace(found, unit_class=np.array([-1, -1])), "single class"),
    ):
        with pytest.raises(CytosaeError, match=words):
            on_record("classes", folder=saved(tmp_path, changed))


def test_numbers_and_json() -> None:
    assert numbers("3,17,3") == [3, 17]
    for text in ("", "a", "1,,2", "-1"):
        with pytest.raises(argparse.ArgumentTypeError):
            numbers(text)
    assert plain({"a": np.array([1.0, np.nan]), "b": (np.int64(3), np.bool_(True))}) == {
        "a": [1, None],
        "b": [3, True],
    }


def test_without_json_the_files_are_named(
    site: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run("classes", site / "extracted", tmp_path / "out", "--contrast", "blue:red<b>")
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1].startswith("local only") and all(Path(line).is_file() for line in lines[:-1])
