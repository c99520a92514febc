"""Phantoms: repeatable bytes, a table that tells the truth, concepts that show in the pixels."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from cytosae_core.cohort import check_cohort, read_cohort
from cytosae_core.errors import DataError, SetupError
from cytosae_core.phantom import (
    CLASSES,
    DEMO_SITES,
    PLANTED,
    PUBLIC_SITE,
    generate_site,
    golden_images,
    phantom,
)
from cytosae_core.phantom import golden as golden_module
from cytosae_core.phantom.cell import Concepts, dye_amounts
from cytosae_core.phantom.sites import photograph

PLAIN = Concepts(
    nuclear_lobes=2,
    granule_density=0.3,
    granule_redness=0.5,
    vacuoles=0,
    nc_ratio=0.35,
    chromatin_texture=0.3,
    cell_size=0.5,
)


def dyes(**changes: float) -> np.ndarray:
    values = {**PLAIN.__dict__, **changes}
    return dye_amounts(Concepts(**values), 1.0, np.random.default_rng(3))  # type: ignore[arg-type]


def test_site_folder_is_a_good_cohort_and_repeats(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        generate_site(tmp_path / folder, DEMO_SITES[0], patients=4, cells_per_patient=2, seed=5)
    first, second = (sorted((tmp_path / folder).rglob("*.*")) for folder in ("a", "b"))
    assert [path.read_bytes() for path in first] == [path.read_bytes() for path in second]
    cohort = read_cohort(tmp_path / "a")
    assert cohort.unit == "patient" and cohort.counts() == {name: 2 for name in CLASSES}
    assert set(cohort.images[0].attributes) == set(PLANTED) and check_cohort(cohort).usable


def test_a_finished_site_is_left_alone_and_another_is_refused(tmp_path: Path) -> None:
    generate_site(tmp_path, DEMO_SITES[0], patients=2, cells_per_patient=2, seed=1)
    before = (tmp_path / "labels.csv").stat().st_mtime_ns
    generate_site(tmp_path, DEMO_SITES[0], patients=2, cells_per_patient=2, seed=1)
    assert (tmp_path / "labels.csv").stat().st_mtime_ns == before
    with pytest.raises(DataError):
        generate_site(tmp_path, DEMO_SITES[1], patients=2, cells_per_patient=2, seed=1)
    with pytest.raises(DataError):
        generate_site(tmp_path / "odd", DEMO_SITES[0], patients=3, cells_per_patient=1)


def test_five_hospitals_with_names_and_colours_of_their_own() -> None:
    assert len({site.name for site in (*DEMO_SITES, PUBLIC_SITE)}) == 6
    means = [np.asarray(phantom("neutrophil", site, (1, 2, 3))[0]).mean(axis=(0, 1)) for site in DEMO_SITES]
    gaps = [np.abs(a - b).max() for i, a in enumerate(means) for b in means[:i]]
    assert min(gaps) > 4


def test_planted_concepts_show_in_the_dyes() -> None:
    nuclear = dyes()[..., 0] > 0.5
    assert (dyes(nc_ratio=0.6)[..., 0] > 0.5).sum() > 1.3 * nuclear.sum()
    assert (
        dyes(granule_density=0.9, granule_redness=1.0)[..., 1][60:160, 60:160].sum()
        > dyes(granule_redness=1.0)[..., 1][60:160, 60:160].sum()
    )
    assert dyes(vacuoles=6)[..., 2].sum() < dyes()[..., 2].sum()
    assert (dyes(cell_size=0.9)[..., 2] > 0.1).sum() > (dyes(cell_size=0.1)[..., 2] > 0.1).sum()
    rough, smooth = (dyes(chromatin_texture=value)[..., 0] for value in (1.0, 0.0))
    assert rough[rough > 0.4].std() > smooth[smooth > 0.4].std()


def test_classes_overlap_in_every_concept() -> None:
    rows = {label: [phantom(label, PUBLIC_SITE, (7, n, 0))[1] for n in range(30)] for label in CLASSES}
    for name in PLANTED:
        ranges = [
            np.percentile([getattr(concepts, name) for concepts in values], [5, 95])
            for values in rows.values()
        ]
        assert max(low for low, _ in ranges) <= min(high for _, high in ranges), name


def test_camera_darkens_with_stain() -> None:
    amounts = dyes()
    pale, dark = (
        np.asarray(photograph(amounts, type(PUBLIC_SITE)("x", stain=(s, s, s)), np.random.default_rng(0)))
        for s in (0.5, 1.5)
    )
    assert dark.mean() < pale.mean()


def test_golden_cells_are_eight_and_an_altered_one_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert [image.size for image in golden_images()] == [(224, 224)] * 8
    source = Path(golden_module.__file__).parent / "golden"
    (tmp_path / "golden").mkdir()
    for path in source.iterdir():
        (tmp_path / "golden" / path.name).write_bytes(path.read_bytes())
    broken = tmp_path / "golden" / "golden-3.png"
    broken.write_bytes(broken.read_bytes()[:-1] + b"\0")
    monkeypatch.setattr(golden_module, "files", lambda package: tmp_path)
    with pytest.raises(SetupError):
        golden_images()
