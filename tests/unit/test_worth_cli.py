"""The four commands as their user runs them: cells on disk, a fake encoder, a real pass; and what they refuse."""

from __future__ import annotations

import argparse
import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from cytosae_core.errors import CytosaeError, DataError, StudyError
from cytosae_core.sae.checkpoint import save_checkpoint
from cytosae_local import worth_cli, worth_source, worth_transfer

CLASSES = ("blue", "red")


class Colours:
    """A fake encoder, d = 4: a patch's token is its colour (and a constant); CLS is zero."""

    d, digest, name, layer = 4, "c" * 64, "colours", 1

    def pixels(self, image: Any) -> np.ndarray:
        return np.asarray(image.resize((224, 224), Image.Resampling.BILINEAR))

    def mask_of(self, pixels: np.ndarray) -> np.ndarray:
        return np.arange(257) > 0

    def encode(self, images: torch.Tensor) -> torch.Tensor:
        patch = torch.nn.functional.avg_pool2d(images, 14).flatten(2).transpose(1, 2)
        return torch.cat(
            [torch.zeros(len(images), 1, 4), torch.nn.functional.pad(patch, (0, 1), value=1.0)], dim=1
        )

    def canary(self) -> np.ndarray:
        return np.ones((8, 4), np.float32)


def make_site(folder: Path, seed: int, *, patients: int = 28, images: int = 2) -> Path:
    """Noisy pictures, redder or bluer by class; half of the patients have each class; column `big`."""
    rng = np.random.default_rng(seed)
    (folder / "images").mkdir(parents=True)
    rows = []
    for patient in range(patients):
        for number in range(images):
            label = CLASSES[patient % 2]
            pixels = rng.integers(90, 130, size=(32, 32, 3))
            pixels[..., 2 * (label == "blue")] += rng.integers(10, 60) + 10 * seed
            name = f"{patient}-{number}.png"
            Image.fromarray(pixels.astype(np.uint8)).save(folder / "images" / name)
            rows.append((name, label, f"p{patient}", "yes" if label == "red" else "no"))
    with (folder / "labels.csv").open("w", newline="") as stream:
        csv.writer(stream).writerows([("image", "label", "patient", "big"), *rows])
    return folder


@pytest.fixture(autouse=True)
def _fake_encoder(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (worth_source, worth_transfer):
        monkeypatch.setattr(module, "encoder_of", lambda options: Colours())


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_site(tmp_path_factory.mktemp("one") / "site", 0)


@pytest.fixture
def dictionary(tmp_path: Path) -> Path:
    rows = np.random.default_rng(0).normal(size=(12, 4)).astype(np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    tensors = {"dictionary": rows, "mean": np.zeros(4, np.float32), "scale": np.ones(1, np.float32)}
    save_checkpoint(tmp_path / "rows", tensors, {"model": "pursuit", "k": 3})
    return tmp_path / "rows"


def run(*arguments: object) -> int:
    parser = argparse.ArgumentParser()
    worth_cli.register(parser.add_subparsers(required=True))
    options = parser.parse_args([str(argument) for argument in arguments])
    return int(options.run(options))


def answer(capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    return dict(json.loads(capsys.readouterr().out.strip().splitlines()[-1]))


def test_classify_by_patient(
    site: Path, dictionary: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("classify", site, dictionary, tmp_path / "out", "--json") == 0
    found = answer(capsys)
    assert found["level"] == "patient" and found["rows"] == {"blue": 14, "red": 14}
    assert "few units" in found["warning"]
    wanted = {"barcode", "codes", "raw, mean", "raw, attention", "colour histogram", "random dictionary"}
    assert set(found["methods"]) == {*wanted, "shuffled labels"}
    assert found["methods"]["codes"]["auroc"]["value"] > 0.9
    assert found["methods"]["colour histogram"]["auroc"]["value"] > 0.9
    assert found["methods"]["shuffled labels"]["auroc"]["low"] < 0.6
    assert json.loads((tmp_path / "out/classify.json").read_text()) == found


def test_classify_prints_a_table_and_says_the_level(
    site: Path, dictionary: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("classify", site, dictionary, tmp_path / "out", "--level", "image") == 0
    shown = capsys.readouterr().out
    assert "image (folds and intervals by patient)" in " ".join(shown.split())
    assert "weighted F1" in shown


def test_effect_and_fewshot(
    site: Path, dictionary: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("effect", site, dictionary, tmp_path / "out", "--class", "red", "--json") == 0
    found = answer(capsys)
    assert [p["k"] for p in found["curves"]["off"]["rest kept"]] == [1, 2]
    assert found["intact"]["balanced_accuracy"]["value"] > 0.9 and found["unit"] == "patient"
    few = ("fewshot", site, dictionary, tmp_path / "out", "--shots", "1,3", "--repeats", 4, "--json")
    assert run(*few, "--column", "big", "--positive", "yes") == 0
    by_column = answer(capsys)
    assert run(*few, "--class", "red") == 0
    assert by_column == answer(capsys)
    assert set(by_column["curves"]) == {"concepts", "raw embeddings", "random dictionary", "shuffled labels"}
    assert next(p for p in by_column["curves"]["concepts"] if p["shots"] == 3)["auroc"]["value"] > 0.8
    assert run("fewshot", *few[1:-1], "--class", "red") == 0
    assert "Held-out AUROC" in capsys.readouterr().out


def test_transfer_and_its_stores_are_reused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sites, out = tmp_path / "sites", tmp_path / "out"
    for seed, name in enumerate(("a", "b", "c")):
        make_site(sites / name, seed)
    make_site(sites / "tiny", 3, patients=4)
    quick = (
        "transfer",
        sites,
        out,
        "--classes",
        ",".join(CLASSES),
        "--rows",
        12,
        "--train-steps",
        3,
        "--k",
        3,
    )
    assert run(*quick, "--quick", "--json") == 0
    captured = capsys.readouterr()
    found = json.loads(captured.out)
    assert "tiny left out" in captured.err
    assert set(found["sites"]) == {"a", "b", "c"} and found["sites"]["a"]["unit"] == "patient"
    for form in ("plain", "standardised", "inductive"):
        rows = found["forms"][form]["rows"]
        assert {"raw, mean", "concepts n12 k3, mean", "random dictionary", "shuffled labels"} < set(rows)
    assert found["forms"]["standardised"]["rows"]["raw, mean"]["mean"]["value"] > 0.9
    stamps = {path: path.stat().st_mtime_ns for path in out.glob("stores/*/tokens-*.npy")}
    assert stamps and run(*quick, "--seeds", 1) == 0
    assert stamps == {path: path.stat().st_mtime_ns for path in out.glob("stores/*/tokens-*.npy")}
    assert "left-out site" in capsys.readouterr().out
    assert (out / "dictionaries/n12.safetensors").is_file()


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        (("classify", "SITE", "ROWS", "OUT", "--classes", "red"), DataError, "2 classes"),
        (("classify", "SITE", "ROWS", "OUT", "--classes", "red,green"), DataError, "green"),
        (("classify", "SITE", "ROWS", "OUT", "--level", "cell"), DataError, "--level in"),
        (("classify", "SITE", "ROWS", "OUT", "--per-class", "4"), DataError, "at least 6 units"),
        (("classify", "SITE", "ROWS", "OUT", "--per-class", "0"), DataError, "--per-class >= 1"),
        (("classify", "SITE", "none", "OUT"), StudyError, "dictionary at"),
        (("effect", "SITE", "ROWS", "OUT", "--class", "green"), DataError, "--class in"),
        (("fewshot", "SITE", "ROWS", "OUT"), DataError, "either --class"),
        (
            ("fewshot", "SITE", "ROWS", "OUT", "--column", "big", "--positive", "maybe"),
            DataError,
            "'no', 'yes'",
        ),
        (("fewshot", "SITE", "ROWS", "OUT", "--column", "x", "--positive", "1"), DataError, "No such column"),
        (
            ("fewshot", "SITE", "ROWS", "OUT", "--class", "red", "--shots", "a"),
            DataError,
            "--shots as numbers",
        ),
        (("fewshot", "SITE", "ROWS", "OUT", "--class", "red", "--shots", "0"), DataError, "--shots >= 1"),
        (("fewshot", "SITE", "ROWS", "OUT", "--class", "red"), DataError, "at least 50 cells"),
        (("transfer", "SITE", "OUT", "--rows", "many"), DataError, "--rows as numbers"),
        (("transfer", "SITE", "OUT", "--seeds", "0"), DataError, "positive --rows"),
        (("transfer", "SITE", "OUT", "--classes", "red"), DataError, "2 different --classes"),
        (("transfer", "SITES", "OUT", "--classes", "red,blue"), DataError, "at least 3 sites"),
        (("transfer", "nowhere", "OUT"), DataError, "folder of site folders"),
    ],
)
def test_what_is_refused(
    arguments: tuple[str, ...],
    error: type[CytosaeError],
    words: str,
    site: Path,
    dictionary: Path,
    tmp_path: Path,
) -> None:
    places = {"SITE": site, "SITES": site.parent, "ROWS": dictionary, "OUT": tmp_path / "out"}
    with pytest.raises(error, match=words):
        run(*(places.get(argument, argument) for argument in arguments))


def test_a_dictionary_of_another_width_is_refused(site: Path, tmp_path: Path) -> None:
    save_checkpoint(
        tmp_path / "wide", {"dictionary": np.eye(5, dtype=np.float32)}, {"model": "pursuit", "k": 2}
    )
    with pytest.raises(StudyError, match="d=4, got d=5"):
        run("classify", site, tmp_path / "wide", tmp_path / "out")
