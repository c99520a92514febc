"""Pictures at four scales: the right pixels, the same bytes every time, nothing trusted that comes from files."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure

from cytosae_core.concepts.barcode import compare, typical
from cytosae_core.concepts.contrasts import class_barcodes, contrast, likeness
from cytosae_core.errors import DataError
from cytosae_core.figures.barcode import Shown, barcode_figure, reduce_bars
from cytosae_core.figures.canvas import LOCAL_ONLY, NUMBERS_LOCAL_ONLY, write_figure
from cytosae_core.figures.classes import classes_figure, contrast_figure, likeness_figure
from cytosae_core.figures.gallery import About, ClassRow, Entry, UnitRow, render_gallery
from cytosae_core.figures.patch import (
    Cell,
    heat_map,
    overlay,
    patch_figure,
    patch_grid,
    strongest,
)
from cytosae_core.figures.sheet import Reference, Shot, references, sheet_figure, tile
from tests.records import record

HOSTILE = '<script>alert("x")</script> $\\frac{1}{$ \u202eevil'


def only(token: int, value: float = 2.0) -> np.ndarray:
    codes = np.zeros(257, np.float32)
    codes[token] = value
    return codes


def grey(height: int = 160, width: int = 160) -> np.ndarray:
    return np.full((height, width, 3), 128, np.uint8)


def words(figure: Figure) -> str:
    """Everything written on a figure."""
    found = [text.get_text() for text in figure.findobj(lambda item: hasattr(item, "get_text"))]
    return "\n".join(found)


# --- patch ---


def test_last_token_is_the_bottom_right_corner() -> None:
    """CytoSAE's demo draws it one patch late and fails here (mask index + 1, core.py:66)."""
    heat = heat_map(only(256), 160, 320)
    expected = np.zeros((160, 320))
    expected[150:, 300:] = 2.0
    assert np.array_equal(heat, expected)


def test_first_patch_is_the_top_left_corner_and_cls_is_nowhere() -> None:
    heat = heat_map(only(1), 160, 160)
    assert (heat[:10, :10] == 2).all() and heat.sum() == 200
    assert not heat_map(only(0), 160, 160).any()  # CLS alone
    assert not heat_map(only(0), 160, 160, smooth=True).any()


@pytest.mark.parametrize(("height", "width"), [(160, 160), (224, 100), (97, 131), (16, 16), (9, 300)])
def test_every_patch_covers_its_share_of_the_original(height: int, width: int) -> None:
    """Pixel (y, x) belongs to the patch that holds its centre: rows r H / 16 .. (r + 1) H / 16."""
    codes = np.arange(257, dtype=np.float64)
    heat = heat_map(codes, height, width)
    for y, x in ((0, 0), (height - 1, width - 1), (height // 2, width // 3), (height // 5, width - 1)):
        row, column = int((y + 0.5) * 16 / height), int((x + 0.5) * 16 / width)
        assert heat[y, x] == 1 + 16 * row + column


def test_smooth_passes_through_patch_centres() -> None:
    rng = np.random.default_rng(0)
    codes = rng.random(257)
    heat = heat_map(codes, 16 * 5, 16 * 5, smooth=True)  # odd patches have a centre pixel
    assert heat[2::5, 2::5] == pytest.approx(codes[1:].reshape(16, 16))
    assert heat.min() >= codes[1:].min() and heat.max() <= codes[1:].max()


def test_wrong_number_of_tokens_is_refused() -> None:
    with pytest.raises(DataError, match=r"Expected codes \[257\]"):
        patch_grid(np.zeros(256))


def test_overlay_shows_intensity_and_leaves_silent_patches_bare() -> None:
    codes = only(256, 2.0)
    codes[255] = 1.0
    pixels = grey()
    drawn = overlay(pixels, heat_map(codes, 160, 160), 2.0)
    untouched = np.ones((160, 160), bool)
    untouched[150:, 140:] = False
    assert (drawn[untouched] == 128).all()
    strong, weak = drawn[155, 155], drawn[155, 145]
    assert not (strong == 128).all() and not (weak == 128).all()
    assert strong.astype(int).sum() < weak.astype(int).sum()  # darker is stronger: not a binary support


def test_strongest_patches_are_real_ones() -> None:
    codes = only(256, 3.0)
    codes[0], codes[1], codes[2] = 9.0, 2.0, 1.9  # CLS is largest; the third lies beside the second
    assert strongest(codes) == [(15, 15, 3.0), (0, 0, 2.0)]
    assert strongest(np.zeros(257)) == []


def test_patch_figure_draws_the_last_patch_at_the_bottom_right(tmp_path: Path) -> None:
    cells = [Cell(grey(64, 96), "one"), Cell(grey(), HOSTILE)]
    codes = np.stack([np.stack([only(256), only(0, 50.0)])] * 2)
    figure = patch_figure(cells, [7, 9], codes)
    text = words(figure)
    assert LOCAL_ONLY.upper() in text and "concept 7" in text and "does not fire in this cell" in text
    panel = next(axis for axis in figure.axes if axis.get_title(loc="left") == "concept 7")
    image = np.asarray(panel.images[0].get_array())
    assert image.shape == (64, 96, 3)  # the original's own pixels
    coloured = (image != 128).any(axis=2)
    assert coloured[60:, 90:].all() and coloured.sum() == 4 * 6
    assert panel.images[0].get_extent() == [0, 96, 64, 0]
    bar = figure.axes[-1]
    assert bar.get_ylim() == (0, 2.0)  # one scale, and CLS (50) has no part in it
    write_figure(figure, tmp_path / "patch.png")


def test_patch_figure_refuses_what_does_not_fit() -> None:
    with pytest.raises(DataError, match=r"Expected codes \[1, 2, 257\]"):
        patch_figure([Cell(grey(), "one")], [1, 2], np.zeros((1, 1, 257)))
    with pytest.raises(DataError, match="Expected codes"):
        patch_figure([], [], np.zeros((0, 0, 257)))


@pytest.mark.parametrize("suffix", ["png", "svg"])
def test_figures_are_the_same_bytes_every_time(tmp_path: Path, suffix: str) -> None:
    for name in ("one", "two"):
        figure = patch_figure([Cell(grey(), HOSTILE)], [3], only(256)[None, None])
        write_figure(figure, tmp_path / f"{name}.{suffix}")
    one, two = ((tmp_path / f"{name}.{suffix}").read_bytes() for name in ("one", "two"))
    assert one == two and len(one) > 1000
    assert b"dc:date" not in one and b"Software" not in one


def test_other_suffixes_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"\.png or \.svg"):
        write_figure(Figure(), tmp_path / "a.pdf")


# --- image ---


def shot(image: int, label: str = "monocyte") -> Shot:
    return Shot(grey(40, 60), only(256), label, image)


def test_placeholders_are_never_drawn() -> None:
    found = record(np.zeros((1, 3)), [10], [0])
    found.top_image[1, :2], found.top_mean[1, :2] = [4, 0], [0.5, 0.25]  # image 0 is a real one here
    found.top_peak_image[1, 0], found.top_peak[1, 0] = 6, 3.0
    found.strata_image[1, 2], found.strata_value[1, 2] = 5, 0.02
    assert references(found, 1) == [
        Reference("mean", 4, 0.5), Reference("mean", 0, 0.25), Reference("peak", 6, 3.0),
        Reference("strata", 5, pytest.approx(0.02)),
    ]  # fmt: skip
    assert references(found, 0) == []  # ten places of -1 each: no image at all, not ten times image 0
    with pytest.raises(DataError, match="0 <= concept < n=3"):
        references(found, 3)


def test_sheet_names_class_value_and_image(tmp_path: Path) -> None:
    chosen = [Reference("mean", 3, 0.25), Reference("strata", 8, 0.5)]
    figure = sheet_figure(17, chosen, {3: shot(3, "eosinophil"), 8: shot(8, HOSTILE)})
    text = words(figure)
    assert "eosinophil · mean 0.25\nimage 3" in text and "image 8" in text and "Concept 17" in text
    assert "no such cell" in text and LOCAL_ONLY.upper() in text  # nothing for the peak
    write_figure(figure, tmp_path / "sheet.png")


def test_tile_keeps_proportions_and_place() -> None:
    drawn = tile(shot(0), 2.0, side=120)  # 60 x 40 pixels: bars of white above and below
    assert drawn.shape == (120, 244, 3)
    right = drawn[:, 124:]
    coloured = (np.abs(right.astype(int) - 128) > 8).any(axis=2) & (right != 255).any(axis=2)
    rows, columns = np.nonzero(coloured)
    assert rows.min() >= 94 and rows.max() == 99 and columns.min() >= 111 and columns.max() == 119


# --- patient and class ---


def test_barcode_figure_says_what_it_rests_on(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    shares = rng.random((8, 30)) / 10
    shares[0, 4] = 0.9
    label = np.repeat([0, 1], 4)
    parts = typical(shares, np.full(8, 1000), 0), compare(shares, label, 0, 1)
    shown = [Shown("p0", shares[0]), Shown("p1", np.full(30, np.nan))]
    figure = barcode_figure(shown, *parts, title=HOSTILE)
    text = words(figure)
    assert NUMBERS_LOCAL_ONLY.upper() in text and "no barcode" in text and "only 2 other" in text
    assert "robust z against 7 other patients" in text and "\u202e" not in text
    write_figure(figure, tmp_path / "patient.svg")


def test_many_concepts_share_bars_and_the_largest_is_kept() -> None:
    shares = np.zeros(49_152)
    shares[[0, 30_001, 49_151]] = [0.1, 0.7, 0.2]
    place, kept = reduce_bars(shares)
    assert len(place) == 1200 and {0, 30_001, 49_151} <= set(place.astype(int))
    assert kept.max() == 0.7 and (shares[place.astype(int)] == kept).all()
    assert reduce_bars(shares[:5])[1].tolist() == shares[:5].tolist()


def test_class_figures_say_when_there_are_too_few(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    shares, label = rng.random((8, 20)), np.array([0, 0, 0, 0, 1, 1, 1, 2])
    means = class_barcodes(shares, label, 4)
    text = words(classes_figure(means, ["a", "b", HOSTILE, "d"], "patient"))
    assert "a: 4 patients" in text and "1 patient: too few for an interval" in text and "0 patients" in text
    few = contrast_figure(contrast(shares, label, 0, 2), "a", HOSTILE, "patient")
    assert "no interval and no test" in words(few)
    enough = contrast_figure(contrast(shares, label, 0, 1), "a", "b", "patient")
    assert "95 % bootstrap intervals" in words(enough)
    alike = likeness_figure(likeness(shares, label), ["a", "b", HOSTILE], [HOSTILE] * 8)
    for name, figure in (("few", few), ("enough", enough), ("alike", alike)):
        assert NUMBERS_LOCAL_ONLY.upper() in words(figure)
        write_figure(figure, tmp_path / f"{name}.png")


# --- gallery ---


class Page(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))


def entry(**changes: Any) -> Entry:
    values: dict[str, Any] = dict(
        concept=5, cells=12, evenness=0.25, units=2,
        classes=[ClassRow(HOSTILE, 10, 9, 0.5, 0.9), ClassRow("b", 30, 3, 0.05, 0.1)],
        top_units=[UnitRow(HOSTILE, "", 4, 0.2)], histogram=[0] * 10 + [3, 8, 1] + [0] * 15,
        references=[Reference("mean", 3, 0.25)], shots={3: shot(3, HOSTILE)},
        warnings=[f"Rare: only in {HOSTILE}"],
    )  # fmt: skip
    return Entry(**{**values, **changes})


ABOUT = About(HOSTILE, 40, 9, "patient", "cell", 0.2, 64, "d" * 64, "as asked")


def test_gallery_is_offline_escaped_and_says_it_is_local() -> None:
    page = render_gallery([entry(), entry(concept=6, warnings=[])], ABOUT)
    found = Page()
    found.feed(page)
    assert "script" not in {tag for tag, _ in found.tags} and "<script" not in page and "\u202e" not in page
    links = [a[key] for _, a in found.tags for key in ("src", "href") if a.get(key)]
    assert links and all(link.startswith(("#", "data:image/jpeg;base64,")) for link in links)
    targets = {attributes["id"] for _, attributes in found.tags if attributes.get("id")}
    assert {link[1:] for link in links if link.startswith("#")} <= targets
    assert not re.search(r"https?://|url\(|@import|//cdn", page)
    assert "never part of anything that leaves" in page
    assert all("alt" in attributes for tag, attributes in found.tags if tag == "img")
    assert "prefers-color-scheme:dark" in page and 'name="viewport"' in page


def test_gallery_says_what_is_known_of_a_concept() -> None:
    page = render_gallery([entry()], ABOUT)
    assert "12 cells" in page and "30 % of cells" in page and "2 of 9" in page
    assert "Rare: only in" in page and "read the warning" in page and "90 %" in page and "9 of 10" in page
    silent = entry(
        evenness=float("nan"), units=None, classes=[ClassRow("a", 10, 0, 0.0, 0.0)], top_units=[],
        histogram=[0] * 28, references=[], shots={}, warnings=[],
    )  # fmt: skip
    page = render_gallery([silent], ABOUT)
    assert "does not fire in any cell" in page and "not recorded" in page and "nan" not in page
