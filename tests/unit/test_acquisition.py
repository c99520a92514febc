"""The acquisition card, the label map, and concepts that follow lamp, lens or size: what is told and refused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from scipy.stats import rankdata

from cytosae_client.events import Events
from cytosae_client.facts import site_facts
from cytosae_client.scoring import describe
from cytosae_client.site import Site, StudyData
from cytosae_client.steps import Steps
from cytosae_core import egress
from cytosae_core.allowed import HELLO_FACTS
from cytosae_core.cohort import check_cohort, read_cohort
from cytosae_core.concepts import acquisition as a
from cytosae_core.concepts.auroc import unit_auroc
from cytosae_core.concepts.scores import ImageScores
from cytosae_core.concepts.tables import Labelled
from cytosae_core.config import COLOUR_BINS, HISTOGRAM_BINS, IMAGE_FACTS, StudyConfig
from cytosae_core.errors import DataError, EgressError
from cytosae_core.policy import POLICIES, SitePolicy
from cytosae_core.sae.pursuit import random_dictionary
from cytosae_local.cli import main
from tests.federation import CLASSES, MASKED, D, FakeStore, N, make_site, make_tokens, study_config

OPEN = POLICIES["public-data"]
CARD = 'scanner: cellavision-dm96\nobjective: "100x-oil"\num_per_px: "0.101"\nstain: mgg\ncamera: ds-ri2\n'
NEW = (
    "confound",
    "auroc_adjusted",
    "image_facts",
    "image_histogram",
    "colour_class_mean",
    "colour_class_var",
)


def cohort_folder(folder: Path, files: dict[str, str] | None = None) -> Path:
    """Twelve cells of twelve patients: seg, band and lymph."""
    (folder / "images").mkdir(parents=True)
    rows = ["image,label,patient"]
    for index in range(12):
        Image.new("RGB", (24, 24), (20 * index, 90, 160)).save(folder / "images" / f"{index}.png")
        rows.append(f"{index}.png,{('seg', 'band', 'lymph')[index % 3]},p{index}")
    (folder / "labels.csv").write_text("\n".join(rows))
    for name, text in (files or {}).items():
        (folder / name).write_text(text)
    return folder


# The card


def test_a_card_is_read_shown_and_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = cohort_folder(tmp_path / "d", {"acquisition.yaml": CARD})
    cohort = read_cohort(folder)
    expected = {
        "scanner": "cellavision-dm96", "objective": "100x-oil", "um_per_px": "0.101", "stain": "mgg",
        "camera": "ds-ri2",
    }  # fmt: skip
    assert cohort.acquisition == expected
    main(["site", "check", str(folder), "--json"])
    shown = json.loads(capsys.readouterr().out)
    assert shown["acquisition"] == expected and shown["label_map"] == ""
    main(["site", "check", str(folder)])
    assert "cellavision-dm96" in capsys.readouterr().out
    store: Any = FakeStore(np.zeros((12, 257, D)))
    site = Site.of(cohort, store, MASKED, tmp_path / "home")
    facts = site_facts(site)
    assert {key: facts[key] for key in expected} == expected and "label_map" not in facts
    assert inspected({}, "hello", facts).facts == facts  # every form passes the door


def test_without_a_card_nothing_is_told(tmp_path: Path) -> None:
    cohort = read_cohort(cohort_folder(tmp_path / "d"))
    assert cohort.acquisition == {} and cohort.label_map == ""
    assert check_cohort(cohort).to_dict()["acquisition"] == {}
    site = make_site("site-0", tmp_path, MASKED, seed=0)
    assert not set(site_facts(site)) & {"scanner", "objective", "um_per_px", "stain", "camera", "label_map"}


def test_a_card_cannot_speak_for_the_software(tmp_path: Path) -> None:
    site = make_site(
        "site-0", tmp_path, MASKED, seed=0, acquisition={"policy_digest": "0" * 64, "stain": "mgg"}
    )
    assert site_facts(site)["policy_digest"] == MASKED.digest and site_facts(site)["stain"] == "mgg"


@pytest.mark.parametrize("text", ["0.1", "1", "12.5", "0.0001", "99.9999"])
def test_good_pixel_sizes(tmp_path: Path, text: str) -> None:
    folder = cohort_folder(tmp_path / "d", {"acquisition.yaml": f'um_per_px: "{text}"\n'})
    assert read_cohort(folder).acquisition == {"um_per_px": text}


BAD_CARDS = {
    "sentence": (
        'stain: mgg\nscanner: "the old one of Dr Weber"\n',
        "scanner as one coded word in acquisition.yaml:2",
    ),
    "words": ("stain: may gruenwald\n", "acquisition.yaml:1"),
    "capitals": ("stain: MGG\n", "acquisition.yaml:1"),
    "long": (f"stain: {'m' * 25}\n", "acquisition.yaml:1"),
    "serial": ('stain: mgg\ncamera: "sn-0012345"\n', "camera as one coded word in acquisition.yaml:2"),
    "date": ('scanner: "2024-11-03"\n', "acquisition.yaml:1"),
    "line break": ('scanner: "a\\nb"\n', "acquisition.yaml:1"),
    "empty": ('scanner: ""\n', "acquisition.yaml:1"),
    "accent": ('scanner: "mük"\n', "acquisition.yaml:1"),
    "list": ("stain: [mgg, pappenheim]\n", "acquisition.yaml:1"),
    "number": ("stain: 7\n", "acquisition.yaml:1"),
    "unknown": ("stain: mgg\n\nscaner: x\n", "'scaner', in acquisition.yaml:3"),
    "twice": ("stain: mgg\nstain: wright\n", "unique keys, got 'stain' twice in acquisition.yaml:2"),
    "anchor": ("stain: &x mgg\n", "no anchors, aliases or bare * in acquisition.yaml:1"),
    "tag": ("stain: !!python/name:os.system mgg\n", "no tags in acquisition.yaml:1"),
    "broken": ("stain: [mgg\n", "readable YAML in acquisition.yaml"),
    "nothing": ("", "a table of settings in acquisition.yaml"),
    "float": ("um_per_px: 0.1\n", "acquisition.yaml:1"),
    "zero": ('um_per_px: "0.0"\n', "um_per_px as a decimal number in acquisition.yaml:1"),
    "zeros": ('um_per_px: "00"\n', "acquisition.yaml:1"),
    "unit": ('um_per_px: "0.1 um"\n', "acquisition.yaml:1"),
    "true": ("um_per_px: true\n", "acquisition.yaml:1"),
    "huge": ("um_per_px: 100\n", "acquisition.yaml:1"),
    "fine": ('um_per_px: "0.12345"\n', "acquisition.yaml:1"),
}


@pytest.mark.parametrize("name", BAD_CARDS)
def test_bad_cards_are_refused_with_their_line(tmp_path: Path, name: str) -> None:
    text, said = BAD_CARDS[name]
    with pytest.raises(DataError) as error:
        read_cohort(cohort_folder(tmp_path / "d", {"acquisition.yaml": text}))
    assert said in str(error.value) and error.value.hint + error.value.reason
    assert "Weber" not in str(error.value)


@pytest.mark.parametrize("file", ["acquisition.yaml", "label-map.yaml"])
def test_links_folders_large_files_and_other_endings_are_refused(tmp_path: Path, file: str) -> None:
    folder = cohort_folder(tmp_path / "d")
    secret = tmp_path / "secret"
    secret.write_text("stain: mgg\n")
    path = folder / file
    for make in (
        lambda: path.symlink_to(secret),
        lambda: path.symlink_to(tmp_path / "gone"),
        lambda: path.hardlink_to(secret),
        lambda: path.mkdir(),
        lambda: path.write_text("# " + "x" * (1 << 17)),
        lambda: path.with_suffix(".yml").write_text("stain: mgg\n"),
    ):
        make()
        with pytest.raises(DataError, match=f"Expected {file}"):
            read_cohort(folder)
        for made in (path, path.with_suffix(".yml")):
            if made.is_dir():
                made.rmdir()
            made.unlink(missing_ok=True)
    assert len(read_cohort(folder).images) == 12


@pytest.mark.parametrize(
    ("name", "text"),
    [("scanner", "Dr Weber's scanner"), ("stain", "mgg\n"), ("camera", "12345"), ("camera", "a12345"),
     ("objective", "x" * 25), ("um_per_px", "0.1um"), ("um_per_px", "0"), ("label_map", "v1-" + "g" * 16),
     ("label_map", "v0-" + "a" * 16), ("note", "x")],
)  # fmt: skip
def test_the_door_refuses_free_text_whatever_read_the_card(name: str, text: str) -> None:
    with pytest.raises(EgressError):
        inspected({}, "hello", {name: text})


# The label map


MAP = 'version: 3\nmap:\n  seg: neutrophil\n  band: neutrophil\n  "lymph": lymphocyte\n'


def test_a_label_map_is_applied_once_named_and_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = cohort_folder(tmp_path / "d", {"label-map.yaml": MAP})
    cohort = read_cohort(folder)
    assert cohort.counts() == {"lymphocyte": 4, "neutrophil": 8}
    assert {image.attributes["original_label"] for image in cohort.images} == {"seg", "band", "lymph"}
    assert HELLO_FACTS["label_map"].fullmatch(cohort.label_map) and cohort.label_map.startswith("v3-")
    main(["site", "check", str(folder), "--json"])
    shown = json.loads(capsys.readouterr().out)
    assert shown["label_map"] == cohort.label_map and shown["classes"] == cohort.counts()
    store: Any = FakeStore(make_tokens(12, [0] * 12, 0.0, 0))
    site = Site.of(cohort, store, MASKED, tmp_path / "home")
    assert site_facts(site)["label_map"] == cohort.label_map
    study = StudyData(site, study_config())
    assert study.labelled.labels.tolist() == [2, 2, 0] * 4 and CLASSES[2] == "neutrophil"


def test_the_map_s_digest_follows_its_content(tmp_path: Path) -> None:
    texts = [
        MAP,
        MAP + "# a remark\n",
        MAP.replace("version: 3", "version: 4"),
        MAP.replace("band: neu", "band: Neu"),
    ]
    told = [
        read_cohort(cohort_folder(tmp_path / str(number), {"label-map.yaml": text})).label_map
        for number, text in enumerate(texts)
    ]
    assert told[0] == told[1] and len({text[-16:] for text in told}) == 3
    assert "neutrophil" not in " ".join(told)


def test_labels_are_mapped_once_and_the_rest_keeps_its_name(tmp_path: Path) -> None:
    text = "version: 1\nmap: {seg: band, band: seg}\n"
    cohort = read_cohort(cohort_folder(tmp_path / "d", {"label-map.yaml": text}), max_images=6)
    assert cohort.counts() == {"band": 2, "lymph": 2, "seg": 2}
    for image in cohort.images:
        assert image.attributes.get("original_label") == {"seg": "band", "band": "seg"}.get(image.label)


def test_a_label_that_no_image_has_is_named_with_its_line(tmp_path: Path) -> None:
    folder = cohort_folder(tmp_path / "d", {"label-map.yaml": MAP + "  limph: lymphocyte\n"})
    assert "label-map.yaml:6 maps 'limph', which no image has." in check_cohort(read_cohort(folder)).problems


BAD_MAPS = {
    "unknown": (MAP + "remark: hello\n", "'remark', in label-map.yaml:6"),
    "twice": (MAP + "  seg: monocyte\n", "unique keys, got 'seg' twice in label-map.yaml:6"),
    "no version": ("map: {seg: neutrophil}\n", "version: a whole number from 1 to 9999 in label-map.yaml"),
    "version 0": ("version: 0\nmap: {seg: x}\n", "version: a whole number from 1 to 9999 in label-map.yaml:1"),
    "version true": ("version: true\nmap: {seg: x}\n", "label-map.yaml:1"),
    "version text": ('version: "1"\nmap: {seg: x}\n', "label-map.yaml:1"),
    "no map": ("version: 1\n", "map: a table of 1 to 1000 labels in label-map.yaml"),
    "empty map": ("version: 1\nmap: {}\n", "label-map.yaml:2"),
    "list": ("version: 1\nmap: [seg, band]\n", "label-map.yaml:2"),
    "nested": ("version: 1\nmap:\n  seg: {a: b}\n", "a local label and a study class in label-map.yaml:3"),
    "number": ("version: 1\nmap:\n  seg: 4\n", "label-map.yaml:3"),
    "empty class": ('version: 1\nmap:\n  band: x\n  seg: ""\n', "label-map.yaml:4"),
    "spaces": ('version: 1\nmap:\n  " seg": x\n', "label-map.yaml:3"),
    "missing value": ('version: 1\nmap:\n  seg: "NaN"\n', "label-map.yaml:3"),
    "escape": ('version: 1\nmap:\n  seg: "\\e[2J"\n', "label-map.yaml:3"),
    "too many": ("version: 1\nmap:\n" + "".join(f"  a{i}: x\n" for i in range(1001)), "label-map.yaml:2"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD_MAPS)
def test_bad_label_maps_are_refused_with_their_line(tmp_path: Path, name: str) -> None:
    text, said = BAD_MAPS[name]
    with pytest.raises(DataError) as error:
        read_cohort(cohort_folder(tmp_path / "d", {"label-map.yaml": text}))
    assert said in str(error.value)


# Concepts that follow lamp, lens or size


def planted(
    units: int = 60, per_unit: int = 2, seed: int = 3
) -> tuple[ImageScores, Labelled, np.ndarray, np.ndarray]:
    """Concepts: 0 made of brightness, 1 against focus, 2 of the class only, 3 of cell size, 4 of nothing, 5 silent,
    6 the same in every cell of a class. Brightness and size differ between the three classes, too."""
    rng = np.random.default_rng(seed)
    images = units * per_unit
    labels = np.arange(images) % 3
    facts = rng.random((images, 4))
    facts[:, 0] = facts[:, 0] * 0.3 + 0.2 * labels
    facts[:, 3] = (facts[:, 3] * 0.3 + 0.1) * (1 + labels)
    noise = rng.random((images, 7)) * 0.02
    kind = [
        facts[:, 0] ** 3,
        2 - facts[:, 1 + 1],
        1.0 * labels,
        np.log(facts[:, 3]) + 3,
        noise[:, 4],
        0 * labels,
        1.0 * labels,
    ]
    largest = (np.stack(kind, axis=1) + noise).astype(np.float32)
    largest[:, 2] += rng.normal(0, 0.3, images)
    largest[:, 5] = 0
    largest[:, 6] = labels + 1
    fired = (largest > 0).astype(np.float32)
    scores = ImageScores(largest, largest, fired, rng.random((images, 5)).astype(np.float32))
    owner = np.repeat(np.arange(units), per_unit)
    known = Labelled(labels, owner, np.full((images, 1), -1), owner % 2, 3)
    colours = rng.dirichlet(np.full(COLOUR_BINS, 0.5), images).astype(np.float32)
    return scores, known, facts.astype(np.float32), colours


def test_planted_confounds_are_found_and_classes_are_not() -> None:
    scores, known, facts, _ = planted()
    found = a.confound(scores.largest, facts, known.labels, known.units)
    assert found[0, 0] > 0.9 and found[1, 2] < -0.9 and found[3, 3] > 0.9
    assert np.abs(found[2]).max() < 0.3 and np.abs(found[4]).max() < 0.3
    whole = a.confound(scores.largest, facts, np.zeros_like(known.labels), known.units)
    assert whole[2, 0] > 0.5  # without classes, that of the class alone would look like brightness
    assert np.isnan(found[5]).all() and np.isnan(found[6]).all()


def test_confound_of_a_class_alone_is_nothing_on_the_mean() -> None:
    """Only the class differs: brightness and concept both follow it, and nothing else."""
    draws = []
    for seed in range(30):
        rng = np.random.default_rng(seed)
        labels = np.arange(150) % 3
        facts = (labels[:, None] + rng.normal(0, 0.2, (150, 4))).astype(np.float32)
        score = (labels[:, None] + rng.normal(0, 0.2, (150, 1))).astype(np.float32)
        draws.append(a.confound(score, facts, labels, np.arange(150))[0])
    assert np.abs(np.mean(draws, axis=0)).max() < 0.05 and np.abs(draws).max() < 0.4


def test_confound_equals_a_slow_version(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    units = np.sort(rng.integers(0, 15, 70))
    labels = rng.integers(0, 3, 70)
    largest = rng.integers(0, 6, (70, 11)).astype(np.float32)  # many ties
    facts = rng.random((70, 4)).astype(np.float32)
    found = a.confound(largest, facts, labels, units)
    weight = np.array([1 / (units == unit).sum() for unit in units])
    for row in range(11):
        for column in range(4):
            left, right = rankdata(largest[:, row]), rankdata(facts[:, column])
            for index in range(3):
                own = labels == index
                left[own] -= np.average(left[own], weights=weight[own])
                right[own] -= np.average(right[own], weights=weight[own])
            slow = (weight * left * right).sum() / np.sqrt(
                (weight * left**2).sum() * (weight * right**2).sum()
            )
            assert found[row, column] == pytest.approx(slow, abs=1e-9)
    monkeypatch.setattr(a, "CHUNK_BYTES", 8 * 70 * 3)
    assert np.allclose(a.confound(largest, facts, labels, units), found, rtol=0, atol=1e-12)


def test_a_patient_with_many_cells_counts_once() -> None:
    rng = np.random.default_rng(1)
    score = rng.random((40, 1)).astype(np.float32)
    facts = np.repeat(rng.random((40, 1)), 4, axis=1).astype(np.float32)
    units = np.arange(40)
    many = np.concatenate([units, np.full(400, 40)])
    follow = np.linspace(0, 1, 400, dtype=np.float32)[
        :, None
    ]  # one patient's 400 cells follow brightness exactly
    found = a.confound(
        np.concatenate([score, follow]),
        np.concatenate([facts, np.repeat(follow, 4, axis=1)]),
        np.zeros(440, int),
        many,
    )
    alone = a.confound(np.concatenate([score, follow]), np.concatenate([facts, np.repeat(follow, 4, axis=1)]),
                       np.zeros(440, int), np.arange(440))  # fmt: skip
    assert found[0, 0] < 0.5 < alone[0, 0]


def test_cell_size_is_taken_out_of_a_concept_that_is_made_of_it() -> None:
    scores, known, facts, _ = planted(units=120)
    raw = [unit_auroc(scores.largest, known.labels == index, known.units).value for index in range(3)]
    values, behind = a.auroc_adjusted(scores.largest, facts, known.labels, known.units, 3, 2)
    assert (
        values.shape == (7, 5) == behind.shape and np.isnan(values[:, 3:]).all() and not behind[:, 3:].any()
    )
    assert raw[2][3] > 0.85 and abs(values[3, 2] - 0.5) < 0.15  # size: the largest class was told by it alone
    assert (
        raw[2][2] > 0.95 and values[2, 2] > 0.95
    )  # a class concept stays, though the classes differ in size
    assert np.all(
        behind[:, :3] == [unit_auroc(scores.largest, known.labels == i, known.units).units for i in range(3)]
    )


@pytest.mark.parametrize("size", [np.nan, 1.0, 0.25])
def test_nothing_is_adjusted_when_cell_size_is_unknown_or_the_same(size: float) -> None:
    scores, known, facts, colours = planted()
    facts[:, 3] = size
    values, behind = a.auroc_adjusted(scores.largest, facts, known.labels, known.units, 3, 1)
    assert np.isnan(values).all() and not behind.any()
    table = a.acquisition_tables(scores, known, facts, colours, MASKED)
    assert not table["confound"][1][:, 3].any() and table["confound"][1][0, 0] > 11
    released = inspected({name: egress.Release(*table[name]) for name in table if name.startswith("image_")})
    if np.isnan(size):
        assert np.isnan(released.tensors["image_facts"][3]).all()
        assert np.isnan(released.tensors["image_histogram"][3]).all()
    assert not np.isnan(released.tensors["image_facts"][:3]).any()


def test_moments_are_of_units(monkeypatch: pytest.MonkeyPatch) -> None:
    facts = np.repeat(np.array([[0.2], [0.4], [0.4], [0.9]]), 4, axis=1).astype(np.float32)
    units = np.array([0, 1, 1, 2])
    values, behind = a.fact_moments(facts, units, OPEN)
    assert values[0] == pytest.approx([0.5, np.std([0.2, 0.4, 0.9], ddof=1)]) and np.all(behind == 3)
    values, behind = a.fact_moments(facts[:1], units[:1], OPEN)
    assert behind[:, 0].tolist() == [1] * 4 and not behind[:, 1].any()  # one unit has no spread
    one = np.concatenate([np.full((30, 4), 1e-6), np.ones((1, 4))]).astype(np.float32)
    assert not a.fact_moments(one, np.arange(31), MASKED)[1].any()  # one patient makes the mean


def test_edges_are_ten_bins_of_every_fact() -> None:
    assert tuple(a.EDGES) == IMAGE_FACTS
    for edges in a.EDGES.values():
        assert len(edges) == HISTOGRAM_BINS - 1 and list(edges) == sorted(set(edges))


def test_a_histogram_counts_units_in_fixed_bins() -> None:
    facts = np.array([[0.1, 0.05, 9.0, 1.0], [0.36, 0.21, 0.6, 0.05], [0.95, 0.21, 0.6, 0.05]], np.float32)
    counts, behind = a.fact_histogram(facts, np.arange(3), OPEN)
    assert counts.sum(axis=1).tolist() == [3] * 4 and np.array_equal(counts, behind)
    assert np.flatnonzero(counts[0]).tolist() == [0, 1, 9] and counts[1, 4] == 2 and counts[1, 1] == 1
    assert counts[2, 9] == 1 and counts[2, 1] == 2 and counts[3, 0] == 2 and counts[3, 9] == 1


@pytest.mark.parametrize("seed", range(60))
def test_no_withheld_bin_follows_from_the_number_of_units(seed: int) -> None:
    rng = np.random.default_rng(seed)
    units = int(rng.integers(12, 400))
    centre = [np.mean(edges) for edges in a.EDGES.values()]
    facts = (centre + rng.normal(0, rng.uniform(0.01, 0.4), (units, 4))).astype(np.float32)
    counts, behind = a.fact_histogram(facts, np.arange(units), MASKED)
    shown = inspected({"image_histogram": egress.Release(counts, behind)}).tensors["image_histogram"]
    assert np.array_equal(
        np.isnan(shown), behind < MASKED.min_units
    )  # the door withholds no more and no less
    for row in range(4):
        hidden = np.isnan(shown[row])
        assert not hidden.any() or (hidden.sum() >= 2 and counts[row, hidden].sum() >= MASKED.min_units)
        assert not (counts[row, ~hidden] < MASKED.min_units).any()
        assert np.all(shown[row, ~hidden] % MASKED.round_to == 0)


def test_one_small_bin_alone_would_follow() -> None:
    """Without its partner the small bin is the total minus the rest; this is what the complement is for."""
    facts = np.repeat(np.array([0.4] * 40 + [0.45] * 30 + [0.55] * 3 + [0.6] * 27)[:, None], 4, axis=1)
    counts, behind = a.fact_histogram(facts.astype(np.float32), np.arange(100), MASKED)
    naive = [row[(row > 0) & (row < 11)].tolist() for row in counts]
    assert [3] in naive
    row = naive.index([3])
    assert (
        (behind[row] == 0).sum() >= 2
        and counts[row, behind[row] == 0].sum() >= 11
        and (behind[row] > 0).any()
    )


def test_colours_per_class_and_the_few_who_bring_one() -> None:
    _, known, _, colours = planted(units=90, per_unit=1)
    colours[:, 7] = 0
    colours[known.labels == 1, 7] = 0.1  # everybody of class 1
    colours[:, 8] = 0
    colours[np.flatnonzero(known.labels == 2)[:4], 8] = 0.3  # four patients
    colours[:, 9] = 0
    table = a.colour_classes(colours, known, MASKED)
    mean, behind = table["colour_class_mean"]
    assert mean.shape == (3, COLOUR_BINS) and mean[0] == pytest.approx(
        colours[known.labels == 0].mean(axis=0), abs=1e-6
    )
    assert table["colour_class_var"][0][0] == pytest.approx(colours[known.labels == 0].var(axis=0), abs=1e-6)
    assert behind[1, 7] == 30 and behind[0, 7] == 30 and mean[0, 7] == 0  # others have it, this class has not
    assert np.all(behind[:, 8] < MASKED.min_units) and not behind[:, 9].any()


def test_classes_outside_the_study_count_in_histograms_only() -> None:
    scores, known, facts, colours = planted()
    outside = replace(known, labels=np.where(known.labels == 2, -1, known.labels))
    table = a.acquisition_tables(scores, outside, facts, colours, OPEN)
    assert table["image_histogram"][0].sum(axis=1).tolist() == [60] * 4
    inside = outside.labels >= 0
    slow = a.confound(scores.largest[inside], facts[inside], outside.labels[inside], known.units[inside])
    assert np.allclose(table["confound"][0], slow.astype(np.float32), equal_nan=True)
    assert np.isnan(table["colour_class_mean"][0][2]).all() and not table["colour_class_mean"][1][2].any()
    nobody = a.acquisition_tables(scores, replace(known, labels=np.full(120, -1)), facts, colours, OPEN)
    assert not nobody["confound"][1].any() and not nobody["auroc_adjusted"][1].any()


def test_units_behind_a_confound_are_those_that_fired() -> None:
    scores, known, facts, colours = planted()
    scores.fired[20:, 1] = 0  # ten patients
    behind = a.acquisition_tables(scores, known, facts, colours, MASKED)
    assert np.all(behind["confound"][1][1] == 10) and np.all(behind["confound"][1][0] == 60)
    assert np.all(behind["auroc_adjusted"][1][1, :3] == 10) and not behind["confound"][1][5].any()


# A whole step


class Pictured(FakeStore):
    """A token store with facts of pictures, in memory."""

    def image_facts(self) -> np.ndarray:
        rng = np.random.default_rng(1)
        return (0.2 + 0.6 * rng.random((self.n_images, 4))).astype(np.float32)

    def colours(self) -> np.ndarray:
        return np.random.default_rng(2).dirichlet(np.ones(COLOUR_BINS), self.n_images).astype(np.float32)


def inspected(
    releases: dict[str, egress.Release], kind: str = "describe", facts: dict[str, str] | None = None
) -> egress.Outgoing:
    return egress.inspect({"kind": kind}, releases, facts or {}, MASKED, study_config().dims)


def described(
    home: Path, store: Any, policy: SitePolicy, study: StudyConfig, *, full: bool
) -> dict[str, egress.Release]:
    site = make_site("site-0", home, policy, seed=0, store=store, patients=store.n_images // 2)
    tensors = {
        "dictionary": random_dictionary(N, D, seed=1).numpy(),
        "mean": np.zeros(D, np.float32),
        "scale": np.ones(1, np.float32),
    }
    return describe(Steps(site, study, policy, Events(lambda event: None)), tensors, {"full": full}).releases


@pytest.fixture(scope="module")
def tokens() -> np.ndarray:
    labels = [index % 3 for index in range(120)]
    return make_tokens(120, labels, 0.0, 0)


@pytest.mark.parametrize("kind", ["train", "validate"])
def test_the_last_description_tells_them_and_passes_the_door(
    tmp_path: Path, tokens: np.ndarray, kind: str
) -> None:
    study = study_config(kind=kind)
    releases = described(tmp_path, Pictured(tokens), MASKED, study, full=True)
    assert set(NEW) <= set(releases)
    assert not set(NEW) & set(described(tmp_path, Pictured(tokens), MASKED, study, full=False))
    outgoing = inspected({name: values for name, values in releases.items() if name != "confound"})
    for name in NEW[1:]:
        assert np.isfinite(outgoing.tensors[name]).any(), name


def test_correlations_pass_the_door_with_their_sign(tmp_path: Path, tokens: np.ndarray) -> None:
    release = described(tmp_path, Pictured(tokens), MASKED, study_config(), full=True)["confound"]
    shown = inspected({"confound": release}).tensors["confound"]
    known = ~np.isnan(shown)
    assert (shown[known] < 0).any() and np.allclose(shown[known], release.values[known], atol=1e-3)


def test_a_store_without_facts_releases_none(tmp_path: Path, tokens: np.ndarray) -> None:
    releases = described(tmp_path, FakeStore(tokens), MASKED, study_config(), full=True)
    assert not set(NEW) & set(releases) and "same_site_null" in releases


def test_a_policy_that_does_not_name_them_keeps_them(tmp_path: Path, tokens: np.ndarray) -> None:
    older = replace(MASKED, metrics=tuple(name for name in MASKED.metrics if name not in NEW))
    releases = described(tmp_path, Pictured(tokens), older, study_config(), full=True)
    assert not set(NEW) & set(releases) and "auroc" in releases
