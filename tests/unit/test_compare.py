"""Statistics of data sets in the published layout: read, compared, reported; hand-computed values; bad input."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr

from cytosae_core.concepts.compare import PAIR_KEYS, compare, controls, jaccard, spearman, top_overlap
from cytosae_core.concepts.datasets import DataSet, infer_images, read_dataset, recomputed_entropy
from cytosae_core.concepts.meaning import class_agreement
from cytosae_core.errors import DataError
from cytosae_core.report.html import render
from cytosae_core.report.statistics import build_statistics_report
from cytosae_local.cli import main

N = 1500


def write(folder: Path, seed: int, images: int = 5000, *, optional: bool = True) -> Path:
    """A data-set folder in the published layout, with float32 frequencies of whole images."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(seed)
    shared = np.random.default_rng(0).gamma(0.3, 0.2, N)
    count = rng.binomial(images, np.clip(shared * rng.lognormal(0, 0.3, N), 0, 1))
    count[:3] = 0
    mean = np.where(count > 0, shared * rng.lognormal(-4, 0.3, N), np.nan)
    torch.save(torch.tensor(count / images, dtype=torch.float32), folder / "sae_sparsity.pt")
    torch.save(torch.tensor(mean, dtype=torch.float32), folder / "sae_mean_acts.pt")
    if optional:
        values = np.sort(rng.random((N, 10)), axis=1)[:, ::-1].copy()
        labels = rng.integers(3, size=(N, 10))
        torch.save(torch.tensor(values), folder / "max_activating_image_values.pt")
        torch.save(torch.tensor(labels), folder / "max_activating_image_label_indices.pt")
        p = np.stack([(values * (labels == c)).sum(1) for c in range(3)], axis=1)
        p /= p.sum(axis=1, keepdims=True)
        torch.save(torch.tensor(-(p * np.log(p + 1e-9)).sum(1)), folder / "top_entropy.pt")
        (folder / "classnames.txt").write_text("lymphocyte\nMON\neosinophil\n")
    return folder


@pytest.fixture
def folders(tmp_path) -> list[Path]:
    return [write(tmp_path / "a", 1), write(tmp_path / "b", 2, 731), write(tmp_path / "c", 3, optional=False)]


def test_contract_keys_and_values(folders, capsys) -> None:
    assert main(["concepts", "compare-statistics", *map(str, folders), "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert set(result) == {"datasets", "pairs"} and set(result["datasets"]) == {"a", "b", "c"}
    assert result["datasets"]["a"].keys() == {
        "images", "never_active", "f_gt_1pct", "image_l0", "core", "mass_in_core"
    }  # fmt: skip
    assert [(pair["a"], pair["b"]) for pair in result["pairs"]] == [("a", "b"), ("a", "c"), ("b", "c")]
    first = result["pairs"][0]
    assert set(first) == {"a", "b", *PAIR_KEYS}
    for key in PAIR_KEYS:
        low, high = first[key]["ci"]
        assert low <= first[key]["value"] <= high and low < high
    assert result["pairs"][1]["rho_entropy_all"] == {"value": None, "ci": [None, None]}
    assert result["datasets"]["b"]["images"] == 731 and result["datasets"]["b"]["never_active"] >= 3


def test_point_values_equal_an_independent_computation(folders) -> None:
    a, b = read_dataset(folders[0]), read_dataset(folders[1])
    pair = compare([a, b], resamples=5)["pairs"][0]
    known = ~np.isnan(a.mean) & ~np.isnan(b.mean)
    core = (np.nan_to_num(a.mean) > 1e-3) | (np.nan_to_num(b.mean) > 1e-3)
    assert pair["rho_freq_all"]["value"] == pytest.approx(spearmanr(a.frequency, b.frequency)[0])
    assert pair["rho_mean_all"]["value"] == pytest.approx(spearmanr(a.mean[known], b.mean[known])[0])
    chosen = known & core
    assert pair["rho_mean_core"]["value"] == pytest.approx(spearmanr(a.mean[chosen], b.mean[chosen])[0])
    mass = [d.frequency * np.nan_to_num(d.mean) for d in (a, b)]
    tops = [set(np.argsort(-values, kind="stable")[:100]) for values in mass]
    assert pair["top100"]["value"] == len(tops[0] & tops[1]) / 100


def test_resampled_spearman_is_the_one_of_the_repeated_concepts() -> None:
    rng = np.random.default_rng(4)
    x, y = np.round(rng.random(60), 1), np.round(rng.random(60), 1)  # many ties
    times = rng.multinomial(60, np.full(60, 1 / 60)).astype(float)
    again = np.repeat(np.arange(60), times.astype(int))
    value = spearman(x, y, np.ones(60, bool))
    assert value(times) == pytest.approx(spearmanr(x[again], y[again])[0])


def test_overlaps_by_hand() -> None:
    a, b = np.array([5.0, 4, 3, 2, 1]), np.array([5.0, 1, 4, 2, 3])
    assert top_overlap(a, b, 3)(np.ones(5)) == pytest.approx(2 / 3)
    # concept 0 drawn three times fills all three places of both
    assert top_overlap(a, b, 3)(np.array([3.0, 0, 0, 1, 1])) == pytest.approx(1)
    assert np.isnan(top_overlap(a, b, 6)(np.ones(5)))
    first, second = np.array([1, 1, 0, 0, 1], bool), np.array([1, 0, 0, 1, 1], bool)
    assert jaccard(first, second)(np.ones(5)) == pytest.approx(2 / 4)
    assert jaccard(first, second)(np.array([2.0, 1, 0, 0, 0])) == pytest.approx(2 / 3)


def test_the_same_seed_gives_the_same_interval_and_another_does_not(folders) -> None:
    found = [read_dataset(folder) for folder in folders[:2]]
    once, again, other = (compare(found, seed=seed, resamples=20) for seed in (0, 0, 1))
    assert once == again and once != other


def test_number_of_images_from_float32_frequencies() -> None:
    for images in (7, 997, 18_365, 171_373):
        count = np.random.default_rng(images).integers(0, images, 3000)
        assert infer_images((count / images).astype(np.float32).astype(float)) == images
    with pytest.raises(DataError, match="one number of images"):
        infer_images(np.random.default_rng(0).random(500))
    with pytest.raises(DataError, match="fires somewhere"):
        infer_images(np.zeros(5))


def test_entropy_file_is_reproduced_from_the_top_ten(folders) -> None:
    found = read_dataset(folders[0])
    np.testing.assert_allclose(recomputed_entropy(found), found.entropy, atol=1e-9)
    assert recomputed_entropy(read_dataset(folders[2])) is None


def test_controls_know_chance_and_ceiling(folders) -> None:
    a, b = read_dataset(folders[0]), read_dataset(folders[1])
    found = controls(a, b)
    assert abs(found["shuffled"]) < 0.1 < 0.8 < found["ceiling"] <= 1


def test_class_meaning_by_hand() -> None:
    def of(name: str, labels: list[int], classes: tuple[str, ...], top: float = 0.5) -> DataSet:
        n = len(labels)
        values = np.full((n, 10), 0.1)
        values[:, 0] = top
        return DataSet(
            name,
            10,
            np.full(n, 0.5),
            np.full(n, 0.01),
            None,
            values,
            np.repeat(labels, 10).reshape(n, 10),
            classes,
        )

    a = of("a", [0, 0, 1, 2], ("lymphocyte", "monocyte", "hairy_cell"))
    b = of("b", [0, 1, 1, 1], ("LYT", "MON"))
    found = class_agreement(a, b)
    assert found is not None
    assert (found["n"], found["agree"]) == (3, pytest.approx(2 / 3))  # hairy cells are not in b
    assert found["chance"] == pytest.approx(2 / 3 * 1 / 3 + 1 / 3 * 2 / 3)
    assert found["classes"]["lymphocyte"] == {"n": 2, "agree": 0.5}
    assert class_agreement(a, of("b", [0] * 4, ())) is None
    assert class_agreement(a, of("b", [0] * 4, ("LYT",), top=0.1))["n"] == 0


def test_the_report_shows_every_value_and_no_hostile_markup(folders, tmp_path) -> None:
    evil = write(tmp_path / "<script>alert(1)", 5)
    (evil / "classnames.txt").write_text("<b>x\nMON\neosinophil\n")
    found = [read_dataset(folder) for folder in [*folders, evil]]
    result = compare(found, resamples=10)
    page = render(build_statistics_report(found, result, seed=0))
    assert "<script>" not in page and "<b>x" not in page
    value = result["pairs"][0]["rho_freq_core"]["value"]
    assert f"{value:.3f}" in page and "Not assessed" in page and "5,000" in page


def test_report_files_are_written(folders, tmp_path, capsys) -> None:
    out = tmp_path / "report"
    assert main(["concepts", "compare-statistics", *map(str, folders[:2]), "--report", str(out)]) == 0
    assert json.loads((out / "report.json").read_text())["study"]["kind"] == "compare"
    assert "Are the same concepts in use?" in (out / "report.html").read_text()


class _Evil:
    def __reduce__(self) -> tuple:
        return (open, (str(_Evil.target), "w"))


def _spoil(folder: Path, what: str) -> None:
    good = torch.load(folder / "sae_sparsity.pt", weights_only=True)
    if what == "missing":
        (folder / "sae_mean_acts.pt").unlink()
    elif what == "cut":
        data = (folder / "sae_sparsity.pt").read_bytes()
        (folder / "sae_sparsity.pt").write_bytes(data[: len(data) // 2])
    elif what == "matrix":
        torch.save(good.reshape(-1, 2), folder / "sae_sparsity.pt")
    elif what == "above one":
        torch.save(good * 100, folder / "sae_sparsity.pt")
    elif what == "nan":
        torch.save(torch.full((N,), float("nan")), folder / "sae_mean_acts.pt")
    elif what == "short":
        torch.save(good[:-1], folder / "top_entropy.pt")
    elif what == "dict":
        torch.save({"x": good}, folder / "sae_sparsity.pt")
    elif what == "code":
        _Evil.target = folder / "owned"
        torch.save(_Evil(), folder / "sae_sparsity.pt")
    elif what == "pickle":
        _Evil.target = folder / "owned"
        (folder / "sae_sparsity.pt").write_bytes(pickle.dumps(_Evil()))
    elif what == "names":
        (folder / "classnames.txt").write_bytes(b"\xff\xfe\x00")


SPOILT = ("missing", "cut", "matrix", "above one", "nan", "short", "dict", "code", "pickle", "names")


@pytest.mark.parametrize("what", SPOILT)
def test_damaged_folders_are_refused_and_nothing_is_run(folders, what, capsys) -> None:
    _spoil(folders[0], what)
    assert main(["concepts", "compare-statistics", *map(str, folders)]) == 1
    error = capsys.readouterr().err
    assert "Expected" in error and "Traceback" not in error
    assert not (folders[0] / "owned").exists()


def test_wrong_sets_of_folders_are_refused(folders, tmp_path, capsys) -> None:
    run = lambda *names: main(["concepts", "compare-statistics", *map(str, names)])  # noqa: E731
    assert run(folders[0]) == 1 and run(folders[0], folders[0]) == 1 and run(folders[0], tmp_path / "no") == 1
    torch.save(torch.tensor([0.5, 1.0]), folders[1] / "sae_sparsity.pt")
    torch.save(torch.tensor([0.5, 1.0]), folders[1] / "sae_mean_acts.pt")
    for name in ("indices", "values", "label_indices"):
        (folders[1] / f"max_activating_image_{name}.pt").unlink(missing_ok=True)
    (folders[1] / "top_entropy.pt").unlink()
    assert run(folders[0], folders[1]) == 1
    assert "one dictionary" in capsys.readouterr().err


# Printed values of the reference's section 3b: value and decimals.
TABLE = {
    ("mll23", "matek"): (".449", ".548", ".817", ".451", ".920", ".301", ".23", ".57", ".034", ".176"),
    ("mll23", "hehr"): (".692", ".733", ".806", ".379", ".980", ".241", ".29", ".48", None, None),
    ("matek", "hehr"): (".398", ".644", ".781", ".698", ".919", ".448", ".29", ".54", None, None),
}
COLUMNS = (
    "rho_freq_all", "rho_mean_all", "rho_freq_core", "rho_mean_core", "jaccard_core", "jaccard_f1", "top100",
    "top1000", "rho_entropy_all", "rho_entropy_core",
)  # fmt: skip
ROWS = {
    "mll23": (41_621, 0, 7_701, 1_853, 3_801, "99.94"),
    "matek": (18_365, 4, 23_837, 2_390, 4_116, "99.63"),
    "hehr": (81_214, 0, 31_493, 2_800, 3_860, "99.55"),
}


@pytest.mark.shared
def test_published_statistics_come_out_to_the_printed_digits(shared) -> None:
    found = [read_dataset(shared / "data" / "cytosae_statistics" / name) for name in ROWS]
    result = compare(found, resamples=10)
    for name, (images, never, often, l0, core, mass) in ROWS.items():
        row = result["datasets"][name]
        assert (row["images"], row["never_active"], row["f_gt_1pct"], row["core"]) == (
            images,
            never,
            often,
            core,
        )
        assert round(row["image_l0"]) == l0 and f"{100 * row['mass_in_core']:.2f}" == mass
    for pair in result["pairs"]:
        for key, printed in zip(COLUMNS, TABLE[pair["a"], pair["b"]], strict=True):
            value = pair[key]["value"]
            shown = None if value is None else f"{value:.{len(printed) - 1}f}".removeprefix("0")
            assert shown == printed, (pair["a"], pair["b"], key, value)
    meaning = class_agreement(found[0], found[1])
    assert meaning is not None
    assert (meaning["n"], meaning["pure"]["n"], meaning["pure_both"]["n"]) == (2_840, 1_152, 474)
    digits = [meaning["agree"], meaning["chance"], meaning["kappa"], meaning["pure"]["agree"]]
    assert [f"{value:.3f}" for value in digits] == ["0.490", "0.179", "0.379", "0.665"]
    assert f"{meaning['pure_both']['agree']:.3f}" == "0.880"
    for item in found[:2]:
        assert np.nanmax(np.abs(recomputed_entropy(item) - item.entropy)) < 5e-7
