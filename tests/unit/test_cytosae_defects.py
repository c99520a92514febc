"""Defects of the original that no other test shows absent, by their number in docs/decisions/005."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch

from cytosae_core.concepts import active
from cytosae_core.concepts.accumulate import Layout, empty_state
from cytosae_core.concepts.coder import Coder
from cytosae_core.concepts.extract import Cells, Settings, extract
from cytosae_core.concepts.statistics import summary, table
from cytosae_core.sae.init import public_centroids
from cytosae_core.sae.models import PursuitModel, ReluModel
from cytosae_core.sae.scale import TokenScale
from tests.federation import Federation, study_config

ROOT = Path(__file__).resolve().parents[2]
D, T = 8, 257
PLAIN = TokenScale(np.zeros(D, np.float32), 1.0)


def cells(tokens: np.ndarray, labels: list[str] | None = None, units: list[str] | None = None) -> Cells:
    masks = np.ones((len(tokens), T), bool)
    names = [str(index) for index in range(len(tokens))]
    return Cells(
        lambda start, stop: (tokens[start:stop], masks[start:stop]), labels or ["x"] * len(tokens), units or names,
        "patient", "e",
    )  # fmt: skip


def identity(k: int = 1) -> Coder:
    return Coder(PursuitModel(torch.eye(D), k), PLAIN, "identity")


def test_1_cell_count_does_not_leak_into_a_barcode() -> None:
    from cytosae_core.concepts.barcode import barcodes

    one = np.abs(np.random.default_rng(0).normal(size=(1, T, D))).astype(np.float32)
    tokens = np.concatenate([one] * 7)  # patient b has six times the cells of patient a
    found = extract(cells(tokens, units=["a"] + ["b"] * 6), identity(D), Settings())
    shares = barcodes(found)
    np.testing.assert_allclose(shares[0], shares[1])
    published = barcodes(found, cytosae_compatible=True)
    np.testing.assert_allclose(published[1], 6 * published[0])  # what the original's division does


def test_2_and_3_tokens_are_counted_as_tokens_and_rates_are_shares() -> None:
    tokens = np.abs(np.random.default_rng(1).normal(size=(5, T, D))).astype(np.float32) + 1
    found = extract(cells(tokens), identity(D), Settings())
    assert int(found.tokens[0]) == 5 * T and int(found.images[0]) == 5
    rates = table(found, np.zeros(5, np.int64))["token_rate"]
    assert rates.max() == 1.0  # every token fires: not 257


def test_2_a_training_budget_is_in_tokens(tmp_path, monkeypatch) -> None:
    """What a whole in-memory study draws for training is what its protocol says, in tokens."""
    from cytosae_client.site import StudyData

    drawn: list[int] = []
    original = StudyData.random_tokens

    def counted(self, images, count, purpose):
        tokens, position = original(self, images, count, purpose)
        if purpose.startswith("step"):
            drawn.append(len(tokens))
        return tokens, position

    monkeypatch.setattr(StudyData, "random_tokens", counted)
    study = study_config()
    Federation(tmp_path, study=study).run()
    training = study.training
    assert sum(drawn) == len(study.sites) * training.rounds * training.local_steps * training.batch_tokens


def test_5_inactive_concepts_have_no_reference_images_and_no_made_up_numbers() -> None:
    tokens = np.zeros((4, T, D), np.float32)
    tokens[2, 9, 0] = 3
    found = extract(cells(tokens), identity(), Settings())
    assert found.top_image[0].tolist() == [2] + [-1] * 9 and (found.top_image[1:] == -1).all()
    values = table(found, np.zeros(4, np.int64))
    assert np.isnan(values["mean_acts"][1:]).all() and (values["best_class"][1:] == -1).all()
    assert np.isfinite(values["mean_acts"][0]) and values["sparsity"][1:].max() == 0


def test_7_a_concept_of_one_patch_is_found_by_its_peak() -> None:
    tokens = np.zeros((2, T, D), np.float32)
    tokens[0, 100, 0] = 5  # strong in one patch
    tokens[1, :, 0] = 0.05  # weak everywhere: wins by the mean over tokens
    found = extract(cells(tokens), identity(), Settings())
    assert found.top_image[0, 0] == 1 and found.top_peak_image[0, 0] == 0
    assert found.top_peak[0, 0] == pytest.approx(5)


def test_8_live_is_not_everything_that_ever_fired() -> None:
    tokens = np.zeros((400, T, D), np.float32)
    tokens[:, :, 0] = 1
    tokens[:2, 3, 1:] = 1e-3  # fires twice, hardly
    told = summary(extract(cells(tokens), identity(D), Settings()))
    assert told["never_active"] == 0 and told["core"] == 1 and told["f_gt_1pct"] == 1
    assert told["mass_in_core"] > 0.999


def test_10_a_start_repeats_with_its_seed() -> None:
    tokens = np.random.default_rng(0).normal(size=(500, D)).astype(np.float32)
    assert public_centroids(tokens, 16, seed=3).tobytes() == public_centroids(tokens, 16, seed=3).tobytes()
    assert public_centroids(tokens, 16, seed=3).tobytes() != public_centroids(tokens, 16, seed=4).tobytes()


def test_14_never_tokens_times_concepts_beyond_one_block(monkeypatch) -> None:
    monkeypatch.setattr(active, "BLOCK", 64)
    largest = []
    product = torch.addmm

    def watched(*given, **named):
        out = product(*given, **named)
        largest.append(out.numel())
        return out

    monkeypatch.setattr(torch, "addmm", watched)
    model = ReluModel(D, 1024, seed=0).requires_grad_(False)
    tokens = np.random.default_rng(0).normal(size=(6, T, D)).astype(np.float32)
    extract(cells(tokens), Coder(model, PLAIN, "r"), Settings())
    assert largest and max(largest) <= 8 * T * 64  # 8 images per product, never 8 x 257 x 1,024


def test_16_no_image_is_opened_for_its_label(monkeypatch) -> None:
    from PIL import Image

    def opened(*given, **named):
        raise AssertionError("an image was opened")

    monkeypatch.setattr(Image, "open", opened)
    tokens = np.abs(np.random.default_rng(0).normal(size=(12, T, D))).astype(np.float32)
    found = extract(cells(tokens, labels=["a", "b"] * 6), identity(), Settings())
    assert np.isfinite(table(found, np.array([0, 1] * 6))["top_entropy"]).all()


def test_18_sums_do_not_grow_with_images() -> None:
    def size(images: int) -> int:
        layout = Layout(500, 4, 20, np.zeros(images, np.int64), np.zeros(images, np.int64), 0.2)
        return sum(values.nbytes for values in empty_state(layout).values())

    assert size(10) == size(100_000)


def test_21_and_25_nothing_of_the_original_baggage() -> None:
    for folder in ("cytosae_core", "server", "client", "deploy/local"):
        for path in (ROOT / folder).rglob("*.py"):
            text = path.read_text()
            assert not re.search(r"torch\.hub|^\s*(import|from) (wandb|clip|transformers)\b", text, re.M), (
                path
            )
            # the width of one published dictionary is a number in texts, never in code
            code = re.sub(r'""".*?"""|#.*', "", text, flags=re.S | re.M)
            assert not re.search(r"\b49_?152\b", code), path


def test_28_no_patient_disappears() -> None:
    tokens = np.abs(np.random.default_rng(0).normal(size=(6, T, D))).astype(np.float32)
    labels, units = ["a", "a", "b", "b", "a", "b"], ["p", "p", "q", "q", "mixed", "mixed"]
    found = extract(cells(tokens, labels, units), identity(), Settings())
    by_name = dict(zip(found.facts.unit_names, found.unit_class.tolist(), strict=True))
    assert by_name == {"p": 0, "q": 1, "mixed": -1}  # kept and marked
    assert found.unit_tokens.tolist() == [2 * T] * 3
