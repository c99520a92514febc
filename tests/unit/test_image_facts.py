"""Facts of pictures: against slow versions, of the colours as the camera saw them, and as safe on disk as tokens."""

from __future__ import annotations

import colorsys
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageFilter
from scipy import ndimage

from cytosae_core.canonical import canonical_json, parse_json
from cytosae_core.cohort import read_cohort
from cytosae_core.config import COLOUR_BINS, IMAGE_FACTS
from cytosae_core.encoder import build, build_store, image_facts, open_store, preprocess
from cytosae_core.encoder.build import BuildPlan, Lane, build_shards
from cytosae_core.errors import SetupError

NOISE = np.random.default_rng(5).integers(0, 256, (224, 224, 3), dtype=np.uint8)


class Matching:
    """A fake encoder that matches colours, with a stained cell of a known number of patches."""

    d, digest = 4, "b" * 64

    def __init__(self, patches: int = 64) -> None:
        self.patches, self.encoded, self.seen = patches, 0, list[np.ndarray]()

    def pixels(self, image: Any) -> np.ndarray:
        self.seen.append(preprocess.match_colours(preprocess.squash(image)))
        return self.seen[-1]

    def mask_of(self, pixels: np.ndarray) -> np.ndarray:
        return (np.arange(257) > 0) & (np.arange(257) <= self.patches)

    def encode(self, images: torch.Tensor) -> torch.Tensor:
        self.encoded += len(images)
        return images.mean(dim=(1, 2, 3))[:, None, None] + torch.zeros(1, 257, 4)

    def canary(self) -> np.ndarray:
        return np.ones((8, 4), np.float32)


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Ten pictures of one noise under ever more light, three to a shard."""
    monkeypatch.setattr(build, "SHARD", 3)
    folder = tmp_path / "data" / "a"
    folder.mkdir(parents=True)
    small = NOISE[:40, :40] / 255.0
    for index in range(10):
        lit = (small * (60 + 18 * index)).astype(np.uint8)
        Image.fromarray(lit).save(folder / f"{index}.png")
    return folder.parent


def facts(pixels: np.ndarray) -> np.ndarray:
    return image_facts.facts_of(Image.fromarray(pixels))


def test_facts_equal_their_slow_definitions() -> None:
    found = facts(NOISE)
    grey = NOISE.astype(float) @ [0.299, 0.587, 0.114]
    assert found[0] == pytest.approx(grey.mean() / 255, abs=2e-3)
    some = NOISE[:40].reshape(-1, 3)
    slow = np.mean([colorsys.rgb_to_hsv(*(pixel / 255))[1] for pixel in some])
    assert image_facts.saturation(some[None]) == pytest.approx(slow, abs=1e-6)
    inner = ndimage.laplace(np.round(grey))[
        1:-1, 1:-1
    ]  # SciPy's sign is the opposite: the variance is the same
    assert found[2] == pytest.approx(np.log10(1 + inner.var()), abs=2e-3)
    slow_shares, _ = np.histogramdd(NOISE.reshape(-1, 3), bins=[np.arange(0, 257, 64)] * 3)
    assert np.allclose(found[3:], slow_shares.ravel() / (224 * 224))
    assert found.dtype == np.float32 and found.shape == (image_facts.WIDTH,) == (3 + COLOUR_BINS,)
    assert found[3:].sum() == pytest.approx(1)


FLAT = [
    ((0, 0, 0), 0, 0, 0),
    ((255, 255, 255), 1, 0, 63),
    ((255, 0, 0), 0.299, 1, 48),
    ((10, 70, 130), 0.231, 0.923, 6),
]


@pytest.mark.parametrize(("colour", "brightness", "saturation", "bin_"), FLAT)
def test_flat_pictures(colour: tuple[int, int, int], brightness: float, saturation: float, bin_: int) -> None:
    found = image_facts.facts_of(Image.new("RGB", (31, 57), colour))
    assert found[:3] == pytest.approx([brightness, saturation, 0], abs=3e-3)
    assert found[3:].argmax() == bin_ and found[3 + bin_] == 1


def test_focus_falls_with_blur_and_nothing_else_moves_much() -> None:
    smooth = ndimage.gaussian_filter(NOISE, (1, 1, 0)).astype(np.uint8)
    picture = Image.fromarray(smooth)
    values = [image_facts.facts_of(picture.filter(ImageFilter.GaussianBlur(size))) for size in (0, 1, 2, 4)]
    focus = [value[2] for value in values]
    assert focus == sorted(focus, reverse=True) and focus[0] - focus[-1] > 0.5
    assert np.ptp([value[0] for value in values]) < 0.01


@pytest.mark.parametrize("mode", ["L", "RGBA", "P"])
def test_other_modes_are_read_as_rgb(mode: str) -> None:
    picture = Image.fromarray(NOISE).convert(mode)
    assert np.allclose(image_facts.facts_of(picture), image_facts.facts_of(picture.convert("RGB")))


def test_facts_are_of_the_picture_before_its_colours_are_matched(data: Path, tmp_path: Path) -> None:
    encoder = Matching()
    store = build_store(read_cohort(data), encoder, tmp_path / "s")
    light = store.image_facts()[:, 0]
    assert store.image_facts().shape == (10, len(IMAGE_FACTS)) and store.colours().shape == (10, COLOUR_BINS)
    assert np.all(np.diff(light) > 0.02) and light[-1] > 3 * light[0]
    matched = [facts(pixels)[0] for pixels in encoder.seen]
    assert np.ptp(matched) < 0.1 * np.ptp(light)  # after matching, the lamp cannot be told any more
    assert np.allclose(store.colours().sum(axis=1), 1)


def test_cell_size_is_the_stored_mask_s_and_unknown_without_a_mask(data: Path, tmp_path: Path) -> None:
    marked = build_store(read_cohort(data), Matching(64), tmp_path / "a").image_facts()[:, 3]
    assert np.all(marked == 64 / 256)
    assert np.isnan(build_store(read_cohort(data), Matching(256), tmp_path / "b").image_facts()[:, 3]).all()
    masks = np.ones((2, 257), bool)
    masks[0, 1:129] = False
    assert image_facts.cell_size(masks).tolist() == [0.5, 1.0]  # one cell that fills its picture is a size


def test_facts_keep_step_with_images_that_cannot_be_read(data: Path, tmp_path: Path) -> None:
    whole = build_store(read_cohort(data), Matching(), tmp_path / "a")
    (data / "a" / "4.png").write_bytes(b"no picture, and long enough to be one")
    part = build_store(read_cohort(data), Matching(), tmp_path / "b")
    assert part.failed == (4,)
    assert np.array_equal(part.image_facts(), np.delete(whole.image_facts(), 4, axis=0))
    assert np.array_equal(part.colours(), np.delete(whole.colours(), 4, axis=0))


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


@pytest.mark.parametrize("lost", ["facts-00001.npy", "shard-00001.json"])
def test_a_shard_without_its_facts_is_made_again_to_the_same_bytes(
    data: Path, tmp_path: Path, lost: str
) -> None:
    encoder, folder = Matching(), tmp_path / "s"
    build_store(read_cohort(data), encoder, folder)
    before = contents(folder)
    (folder / "index.json").unlink()
    (folder / lost).unlink()
    (folder / ".facts-00001.npy.7.tmp").write_bytes(b"half")  # as a kill inside a write leaves it
    build_store(read_cohort(data), encoder, folder)
    assert encoder.encoded == 13 and contents(folder) == before
    assert {"facts-00000.npy", "facts-00003.npy"} <= set(before)


def test_facts_do_not_depend_on_batches_workers_or_lanes(data: Path, tmp_path: Path) -> None:
    cohort = read_cohort(data)
    build_store(cohort, Matching(), tmp_path / "a")
    build_store(cohort, Matching(), tmp_path / "b", batch=2, workers=3)
    for index in (1, 0):
        build_shards(cohort, Matching(), tmp_path / "c", BuildPlan(lane=Lane(index, 2)))
    assert contents(tmp_path / "a") == contents(tmp_path / "b") == contents(tmp_path / "c")


@pytest.mark.parametrize("damage", ["short", "shape", "type", "object"])
def test_damaged_facts_are_refused(data: Path, tmp_path: Path, damage: str) -> None:
    folder = build_store(read_cohort(data), Matching(), tmp_path / "s").folder
    path = folder / "facts-00002.npy"
    values = np.load(path)
    if damage == "short":
        path.write_bytes(path.read_bytes()[:-40])
    elif damage == "object":
        np.save(path, np.array([{"a": 1}], dtype=object), allow_pickle=True)
    else:
        np.save(path, values[:-1] if damage == "shape" else values.astype(np.float64))
    with pytest.raises(SetupError, match="complete token store"):
        open_store(folder)


def test_a_store_of_the_last_version_says_what_to_do(data: Path, tmp_path: Path) -> None:
    folder, cohort = tmp_path / "s", read_cohort(data)
    build_store(cohort, Matching(), folder)
    index = parse_json((folder / "index.json").read_bytes())
    (folder / "index.json").write_bytes(canonical_json({**index, "urn": "urn:cytosae:tokens:v2"}))
    (folder / "key").write_text("0" * 64)  # the version is part of the key
    for path in folder.glob("facts-*"):
        path.unlink()
    for call in (lambda: open_store(folder), lambda: build_store(cohort, Matching(), folder)):
        with pytest.raises(
            SetupError, match=r"version 3, got version 2.*Delete .*embeds the images again"
        ) as error:
            call()
        assert str(folder) in str(error.value) and error.value.reason == "STORE_VERSION"
    again = build_store(cohort, Matching(), folder, rebuild=True)
    assert json.loads((folder / "index.json").read_text())["urn"] == "urn:cytosae:tokens:v3"
    assert len(again.image_facts()) == 10
