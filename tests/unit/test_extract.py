"""The streaming pass against a dense computation of the same numbers, and what it refuses."""

from __future__ import annotations

from dataclasses import fields, replace

import numpy as np
import pytest
import torch

from cytosae_core.concepts import extract as module
from cytosae_core.concepts.accumulate import bin_of
from cytosae_core.concepts.active import ActiveCoder
from cytosae_core.concepts.coder import Coder
from cytosae_core.concepts.extract import Cells, Settings, extract, thresholds
from cytosae_core.concepts.extracted import ARRAYS, EDGES, STRATA, load_extracted
from cytosae_core.concepts.statistics import summary, table
from cytosae_core.errors import DataError
from cytosae_core.sae.models import PursuitModel, ReluModel, TopKModel
from cytosae_core.sae.pursuit import random_dictionary
from cytosae_core.sae.scale import TokenScale

D, N, IMAGES, T = 12, 40, 23, 257


def relu_coder(n: int = N) -> Coder:
    model = ReluModel(D, n, seed=3)
    with torch.no_grad():
        model.b_enc.copy_(torch.linspace(-3.2, -0.4, n))
        model.b_dec.copy_(torch.full((D,), 0.1))
    return Coder(model.requires_grad_(False), TokenScale(np.zeros(D, np.float32), 1.0), "relu")


def pursuit_coder() -> Coder:
    rows = random_dictionary(N, D, 5)
    return Coder(PursuitModel(rows, 6), TokenScale(np.full(D, 0.2, np.float32), 1.7), "pursuit")


def topk_coder() -> Coder:
    model = TopKModel(D, N, seed=1, k=5).requires_grad_(False)
    return Coder(model, TokenScale(np.zeros(D, np.float32), 1.0), "topk")


CODERS = {"relu": relu_coder, "pursuit": pursuit_coder, "topk": topk_coder}


@pytest.fixture(scope="module")
def cells() -> tuple[Cells, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    tokens = rng.normal(size=(IMAGES, T, D)).astype(np.float32)
    mask = rng.random((IMAGES, T)) < 0.4
    mask[:, 0] = False
    labels = [("eosinophil", "lymphocyte", "monocyte")[i % 3] for i in range(IMAGES)]
    units = [f"p{i % 7}" for i in range(IMAGES)]
    read = lambda start, stop: (tokens[start:stop], mask[start:stop])  # noqa: E731
    return Cells(read, labels, units, "patient", "enc"), tokens, mask


def dense(coder: Coder, tokens: np.ndarray) -> np.ndarray:
    return coder.codes(torch.from_numpy(tokens)).numpy().astype(np.float64)


@pytest.mark.parametrize("wide", [False, True])
def test_the_screen_loses_nothing_that_fires(wide) -> None:
    """Tokens and biases made so that thousands of products lie within rounding of the threshold."""
    generator = torch.Generator().manual_seed(7)
    n, d = 700, 64
    model = ReluModel(d, n)
    tokens = torch.randn(3, 50, d, generator=generator) * (100.0 if wide else 1.0)
    with torch.no_grad():
        model.W_enc.copy_(torch.randn(d, n, generator=generator) * torch.logspace(-3, 3, n))
        exact = tokens.reshape(-1, d).double() @ model.W_enc.double()
        nudge = torch.linspace(-3e-3, 3e-3, n).double()  # rounding to bfloat16 moves products by up to 4e-3
        model.b_enc.copy_((-exact.amax(dim=0) * (1 + nudge)).float())
        model.b_dec.zero_()
    coder = Coder(model.requires_grad_(False), TokenScale(np.zeros(d, np.float32), 1.0), "edge")
    images = [part.numpy() for part in tokens]
    fired = {}
    for screen in (False, True):
        fired[screen] = np.zeros((3, n))
        for part in ActiveCoder(coder, screen=screen).active_codes(images):
            fired[screen][part.image, part.concepts] = part.codes.max(axis=1)
    assert 200 < (fired[False] > 0).sum() < 2000  # the edge is in the data
    scale = np.abs(exact.numpy()).max(axis=0)
    differ = (fired[True] > 0) != (fired[False] > 0)
    assert (
        np.maximum(fired[True], fired[False])[differ] <= 1e-6 * np.broadcast_to(scale, differ.shape)[differ]
    ).all()
    np.testing.assert_allclose(fired[True], fired[False], atol=1e-5 * scale.max())


@pytest.mark.parametrize(
    ("kind", "screen"), [("relu", False), ("relu", True), ("pursuit", False), ("topk", False)]
)
@pytest.mark.parametrize("rule", ["all", "patches", "cell"])
def test_sums_equal_the_dense_computation(cells, kind, screen, rule, monkeypatch) -> None:
    monkeypatch.setattr("cytosae_core.concepts.active.BLOCK", 7)
    monkeypatch.setattr("cytosae_core.concepts.active.has_fast_bfloat16", lambda: screen)
    source, tokens, mask = cells
    coder = CODERS[kind]()
    found = extract(source, coder, Settings(rule=rule, tau=0.5, pairs=np.array([[1, 2], [3, 9]])))
    keep = {"all": np.ones_like(mask), "patches": np.ones_like(mask), "cell": mask}[rule]
    if rule == "patches":
        keep[:, 0] = False
    codes = [dense(coder, tokens[i][keep[i]]) for i in range(IMAGES)]
    z = np.array([c.mean(axis=0) for c in codes])
    every = np.concatenate(codes)
    label = np.array([sorted(set(source.labels)).index(name) for name in source.labels])
    unit = np.array([int(name[1:]) for name in source.units])
    near = {"rtol": 1e-4, "atol": 1e-5}
    assert found.images[0] == IMAGES and found.tokens[0] == len(every) == found.unit_tokens.sum()
    np.testing.assert_allclose(found.image_count, (z > 0).sum(axis=0), atol=1)
    np.testing.assert_allclose(found.token_count, (every > 0).sum(axis=0), atol=1)
    np.testing.assert_allclose(found.total, every.sum(axis=0), **near)
    np.testing.assert_allclose(found.square, (every**2).sum(axis=0), **near)
    np.testing.assert_allclose(found.image_total, z.sum(axis=0), **near)
    np.testing.assert_allclose(found.image_square, (z**2).sum(axis=0), **near)
    np.testing.assert_array_equal(found.histogram.sum(axis=1), found.token_count)
    for index in range(3):
        np.testing.assert_allclose(found.class_total[index], z[label == index].sum(axis=0), **near)
        np.testing.assert_allclose(found.class_square[index], (z[label == index] ** 2).sum(axis=0), **near)
    for index in range(7):
        wanted = sum((codes[i] > 0.5).sum(axis=0) for i in np.flatnonzero(unit == index))
        np.testing.assert_allclose(found.unit_counts[index], wanted, atol=1)
    order = np.argsort(-z, axis=0, kind="stable")[:10].T
    np.testing.assert_allclose(
        found.top_mean, np.maximum(np.take_along_axis(z, order.T, axis=0).T, 0), **near
    )
    peak = np.array([c.max(axis=0) for c in codes])
    np.testing.assert_allclose(found.top_peak, np.sort(peak, axis=0)[::-1][:10].T, **near)
    both = [sum(int(((c[:, a] > 0) & (c[:, b] > 0)).sum()) for c in codes) for a, b in ((1, 2), (3, 9))]
    np.testing.assert_array_equal(found.pair_tokens, both)


def test_the_top_images_hold_the_top_values_and_placeholders_stay_minus_one(cells) -> None:
    source, tokens, _ = cells
    coder = relu_coder()
    found = extract(source, coder, Settings())
    z = np.array([dense(coder, tokens[i]).mean(axis=0) for i in range(IMAGES)])
    for concept in range(N):
        images = found.top_image[concept]
        real = images >= 0
        np.testing.assert_allclose(
            z[images[real], concept], found.top_mean[concept][real], rtol=1e-4, atol=1e-6
        )
        assert len(set(images[real].tolist())) == real.sum()  # no image twice
        assert real.sum() == min(10, (z[:, concept] > 0).sum())
    assert (found.top_image == -1).any()  # the case exists in this test


def test_strata_hold_an_image_of_that_level(cells) -> None:
    source, tokens, _ = cells
    coder = relu_coder()
    found = extract(source, coder, Settings())
    peak = np.array([dense(coder, tokens[i]).max(axis=0) for i in range(IMAGES)])
    levels = np.searchsorted(STRATA, peak, side="right") - 1
    for concept in range(N):
        for level in range(len(STRATA) - 1):
            image = found.strata_image[concept, level]
            if image >= 0:
                assert levels[image, concept] == level
            else:
                assert not (levels[:, concept] == level).any()


def test_cytosae_definitions(cells) -> None:
    source, tokens, _ = cells
    coder = relu_coder()
    found = extract(source, coder, Settings())
    label = np.array([sorted(set(source.labels)).index(name) for name in source.labels])
    z = np.array([dense(coder, tokens[i]).mean(axis=0) for i in range(IMAGES)])
    values = table(found, label)
    np.testing.assert_allclose(values["sparsity"], (z > 0).mean(axis=0))
    with np.errstate(invalid="ignore"):
        np.testing.assert_allclose(values["mean_acts"], z.sum(axis=0) / (z > 0).sum(axis=0), rtol=1e-4)
    for concept in range(N):  # the original's loop (analysis/utils.py:33-53)
        top = np.argsort(-z[:, concept], kind="stable")[:10]
        mass = np.zeros(3)
        for image in top:
            mass[label[image]] += z[image, concept]
        if mass.sum() == 0:
            assert np.isnan(values["top_entropy"][concept]) and np.isnan(values["mean_acts"][concept])
            continue
        p = mass / mass.sum()
        assert values["top_entropy"][concept] == pytest.approx(-(p * np.log(p + 1e-9)).sum(), abs=1e-5)
    assert summary(found)["image_l0"] == pytest.approx((z > 0).mean(axis=0).sum())


def test_class_correction_undoes_imbalance() -> None:
    rng = np.random.default_rng(1)
    labels = ["a"] * 90 + ["b"] * 10
    tokens = np.abs(rng.normal(size=(100, T, D))).astype(np.float32)
    cells = Cells(
        lambda s, e: (tokens[s:e], np.ones((e - s, T), bool)),
        labels,
        [str(i) for i in range(100)],
        "slide",
        "e",
    )
    coder = Coder(PursuitModel(torch.eye(D), D), TokenScale(np.zeros(D, np.float32), 1.0), "x")
    values = table(extract(cells, coder, Settings()), np.array([0] * 90 + [1] * 10))
    assert values["entropy"].min() > 0.99 * np.log(2)  # both classes alike, however many cells
    assert values["top_purity"].mean() > 0.8  # the top ten images follow the class sizes


def test_calibrated_thresholds_come_from_other_units(cells) -> None:
    source, _, _ = cells
    found = extract(source, relu_coder(), Settings(calibrate=0.4))
    held = found.unit_held_out.astype(bool)
    assert held.any() and not held.all()
    assert (found.unit_calibrated[~held] == 0).all() and (found.unit_calibrated[held].sum() > 0)
    assert not np.isnan(found.threshold).any()
    reused = extract(source, relu_coder(), Settings(threshold=found.threshold, origin="elsewhere"))
    assert reused.unit_held_out.all() and reused.facts.calibration == "elsewhere"
    np.testing.assert_array_equal(reused.unit_calibrated[held], found.unit_calibrated[held])


def test_threshold_is_the_edge_that_one_percent_exceed() -> None:
    histogram = np.zeros((3, len(EDGES) - 1), np.int64)
    histogram[0, 10], histogram[0, 20] = 500, 9
    histogram[1, 5] = 10
    result = thresholds(histogram, 1000)
    assert result[0] == EDGES[11]  # 9 of 1,000 tokens lie above it, 509 above the edge before
    assert result[1] == EDGES[0] and result[2] == EDGES[0]


def test_bins_match_their_edges() -> None:
    values = np.geomspace(1.1e-4, 900, 400)
    np.testing.assert_array_equal(bin_of(values), np.searchsorted(EDGES, values, side="right") - 1)
    assert bin_of(np.array([1e-9, 1e9])).tolist() == [0, len(EDGES) - 2]


def test_a_stopped_pass_goes_on_to_the_same_bytes(cells, tmp_path, monkeypatch) -> None:
    source, _, _ = cells
    whole = extract(source, relu_coder(), Settings(calibrate=0.4))
    calls = {"left": 3}

    def interrupt(done: int, total: int) -> None:
        calls["left"] -= 1
        if calls["left"] == 0:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        extract(source, relu_coder(), Settings(calibrate=0.4), folder=tmp_path, progress=interrupt)
    assert (tmp_path / "progress.safetensors").is_file()
    seen: list[int] = []
    again = extract(
        source,
        relu_coder(),
        Settings(calibrate=0.4),
        folder=tmp_path,
        progress=lambda done, _: seen.append(done),
    )
    assert seen[0] > module.CHUNK and not (tmp_path / "progress.safetensors").exists()
    for name in ARRAYS:
        np.testing.assert_array_equal(getattr(again, name), getattr(whole, name), err_msg=name)


def test_a_saved_state_of_other_settings_is_not_taken_up(cells, tmp_path) -> None:
    source, _, _ = cells

    def stop(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        extract(source, relu_coder(), Settings(), folder=tmp_path, progress=stop)
    seen: list[int] = []
    extract(
        source, relu_coder(), Settings(tau=0.3), folder=tmp_path, progress=lambda done, _: seen.append(done)
    )
    assert seen[0] == module.CHUNK


def test_saved_statistics_come_back_and_alterations_are_seen(cells, tmp_path) -> None:
    source, _, _ = cells
    found = extract(source, pursuit_coder(), Settings(rule="cell"))
    found.save(tmp_path)
    back = load_extracted(tmp_path)
    assert back.facts == found.facts
    for field in fields(found):
        if field.name != "facts":
            np.testing.assert_array_equal(getattr(back, field.name), getattr(found, field.name))
    blob = bytearray((tmp_path / "statistics.safetensors").read_bytes())
    blob[-1] ^= 1
    (tmp_path / "statistics.safetensors").write_bytes(blob)
    with pytest.raises(DataError, match="Expected statistics"):
        load_extracted(tmp_path)
    with pytest.raises(DataError, match="concepts extract"):
        load_extracted(tmp_path / "nowhere")


@pytest.mark.parametrize(
    "settings",
    [
        {"rule": "cls"},
        {"tau": -1.0},
        {"tau": float("nan")},
        {"calibrate": 1.0},
        {"pairs": np.array([[1, N]])},
        {"pairs": np.array([[2, 2]])},
        {"threshold": np.zeros(3)},
        {"threshold": np.zeros(N), "calibrate": 0.5},
    ],
)
def test_settings_that_cannot_be_meant_are_refused(cells, settings) -> None:
    with pytest.raises(DataError, match="Expected"):
        extract(cells[0], relu_coder(), Settings(**settings))


def test_no_images_and_one_unit_are_refused(cells) -> None:
    with pytest.raises(DataError, match="at least one stored image"):
        extract(replace(cells[0], labels=[], units=[]), relu_coder(), Settings())
    with pytest.raises(DataError, match="both sides"):
        extract(replace(cells[0], units=["one"] * IMAGES), relu_coder(), Settings(calibrate=0.3))


def test_unit_tables_are_left_out_when_they_would_grow_with_images(cells, monkeypatch) -> None:
    monkeypatch.setattr("cytosae_core.concepts.accumulate.UNIT_TABLE_BYTES", 100)
    found = extract(cells[0], relu_coder(), Settings())
    assert found.unit_counts.shape == (0, N) and found.unit_tokens.shape == (7,)
