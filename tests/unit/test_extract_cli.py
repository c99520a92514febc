"""`cytosae concepts extract` as its user runs it, on generated cells and the demo encoder."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest

from cytosae_core.concepts.extracted import load_extracted
from cytosae_core.phantom import DEMO_SITES, generate_site
from cytosae_core.sae.checkpoint import save_checkpoint
from cytosae_core.sae.pursuit import random_dictionary
from cytosae_local.cli import main

OPTIONS = ("--layer", "2", "--steps", "reinhard,cell-mask")


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("extract")
    for index in (0, 1):
        generate_site(
            folder / f"cells{index}", DEMO_SITES[index], patients=6, cells_per_patient=2, seed=index
        )
    tensors = {"mean": np.zeros(384, np.float32), "scale": np.ones(1, np.float32)}
    for name, seed in (("rows", 0), ("other", 1)):
        rows = random_dictionary(48, 384, seed).numpy()
        save_checkpoint(folder / name, {"dictionary": rows, **tensors}, {"model": "pursuit", "k": 8})
    save_checkpoint(
        folder / "narrow", {"dictionary": np.eye(4, dtype=np.float32)}, {"model": "pursuit", "k": 2}
    )
    save_checkpoint(folder / "strange", {"dictionary": np.eye(4, dtype=np.float32)}, {"model": "gpt"})
    return folder


def run(place: Path, *words: str, data: str = "cells0", dictionary: str = "rows", out: str = "out") -> int:
    return main(
        [
            "concepts",
            "extract",
            str(place / data),
            str(place / dictionary),
            str(place / out),
            *OPTIONS,
            *words,
        ]
    )


def test_extract_then_compare_two_hospitals(place, capsys) -> None:
    assert run(place, "--json", "--tokens", "cell", "--pairs", "1:2,3:4", "--calibrate", "0.4") == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["images"], told["concepts"], told["tokens"], told["unit"]) == (12, 48, "cell", "patient")
    with (place / "out" / "concepts.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    assert len(rows) == 48 and {row["best_class_name"] for row in rows} - {""} <= set(told["classes"])
    found = load_extracted(place / "out")
    assert found.facts.token_rule == "cell" and found.pairs.tolist() == [[1, 2], [3, 4]]
    assert run(place, "--tokens", "cell", "--thresholds", str(place / "out"), data="cells1", out="out1") == 0
    assert load_extracted(place / "out1").facts.calibration == "out"
    capsys.readouterr()
    assert main(["concepts", "compare-statistics", str(place / "out"), str(place / "out1"), "--json"]) == 0
    pair = json.loads(capsys.readouterr().out)["pairs"][0]
    assert pair["rho_entropy_all"]["value"] is not None and pair["top1000"]["value"] is None


def test_patients_with_several_classes_can_be_split(place) -> None:
    assert run(place, "--split-by-class", "--store", str(place / "out" / "tokens"), out="split") == 0
    found = load_extracted(place / "split")
    assert (found.unit_class >= 0).all() and found.facts.unit == "patient-class pair"
    assert all(" · " in name for name in found.facts.unit_names)


def test_statistics_of_another_dictionary_are_not_compared(place, capsys) -> None:
    assert run(place, dictionary="other", out="other-out") == 0
    assert run(place, out="again") == 0
    assert main(["concepts", "compare-statistics", str(place / "again"), str(place / "other-out")]) == 1
    assert "one dictionary" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "where"),
    [
        (("--tokens", "nucleus"), {}),
        (("--tau", "-1"), {}),
        (("--calibrate", "1.5"), {}),
        (("--pairs", "1-2"), {}),
        (("--pairs", "1:4800"), {}),
        (("--calibrate", "0.4", "--split-by-class"), {}),
        (("--thresholds", "nowhere"), {}),
        ((), {"dictionary": "narrow"}),
        ((), {"dictionary": "strange"}),
        ((), {"dictionary": "absent"}),
        ((), {"data": "absent"}),
    ],
)
def test_what_cannot_be_meant_is_refused_with_words(place, words, where, capsys) -> None:
    assert run(place, *words, **where) == 1
    error = capsys.readouterr().err
    assert "Expected" in error and "Traceback" not in error


def test_thresholds_must_fit_and_exist(place, capsys) -> None:
    assert run(place, out="plain") == 0
    assert run(place, "--thresholds", str(place / "plain"), out="x") == 1
    assert "--calibrate" in capsys.readouterr().err
    assert run(place, "--calibrate", "0.4", out="cal") == 0
    assert run(place, "--thresholds", str(place / "cal"), dictionary="other", out="x") == 1
    assert "same dictionary" in capsys.readouterr().err
