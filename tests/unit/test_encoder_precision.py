"""Precision, compilation, and `cytosae encoder check`: the golden cells against stored values."""

from __future__ import annotations

import json
import logging
from argparse import ArgumentParser
from pathlib import Path

import numpy as np
import pytest
import torch

from cytosae_core.encoder import golden, load_encoder
from cytosae_core.encoder.golden import TOLERANCE, check_golden, golden_features
from cytosae_core.encoder.precision import PRECISIONS, arithmetic
from cytosae_core.errors import SetupError
from cytosae_local import encoder_options
from cytosae_local.encoder_cli import register
from cytosae_server.loop import CANARY_TOLERANCE
from tests.unit.test_encoder import fixed_input, official

STEPS = ("reinhard", "cell-mask")
CPU = torch.device("cpu")


def test_precision_is_part_of_the_digest_unless_fp32() -> None:
    made = {name: load_encoder("dinov2-s-demo", layer=6, steps=STEPS, precision=name) for name in PRECISIONS}
    assert len({encoder.digest for encoder in made.values()}) == 4
    assert {encoder.fp32_digest for encoder in made.values()} == {made["fp32"].digest}
    # The digest that studies already pin: it may not move.
    assert made["fp32"].digest == "ef1ae128a603b93450129ca2073b23d7611cff8a32676475df8acf256ca69574"
    assert encoder_options.PRECISIONS == PRECISIONS
    with pytest.raises(SetupError, match="precision='fp8'"):
        load_encoder("dinov2-s-demo", precision="fp8")


@pytest.mark.parametrize(("precision", "least"), [("bf16", 1e-3), ("fp16", 1e-4)])
def test_half_precision_rounds_but_leaves_as_float32(precision: str, least: float) -> None:
    exact = load_encoder("dinov2-s-demo", None, "cpu", layer=2).encode(fixed_input())
    found = load_encoder("dinov2-s-demo", None, "cpu", layer=2, precision=precision).encode(fixed_input())
    assert found.dtype == torch.float32
    difference = float((found - exact).norm() / exact.norm())
    assert least < difference < 20 * least


@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_forward_pass_sets_its_own_arithmetic_and_gives_the_process_its_own_back(precision: str) -> None:
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")  # as another library may have left it
    try:
        with arithmetic(precision, CPU):
            assert torch.backends.cudnn.allow_tf32 == (precision == "tf32")
            assert torch.backends.cuda.matmul.allow_tf32 == (precision == "tf32")
            assert torch.is_autocast_enabled("cpu") == (precision in ("bf16", "fp16"))
        assert torch.get_float32_matmul_precision() == "medium"
        exact = load_encoder("dinov2-s-demo", None, "cpu", layer=1).encode(fixed_input())
    finally:
        torch.set_float32_matmul_precision(before)
    assert torch.equal(exact, load_encoder("dinov2-s-demo", None, "cpu", layer=1).encode(fixed_input()))


def test_without_a_compiler_it_says_so_and_goes_on(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def no_compiler(*_: object, **__: object) -> None:
        raise RuntimeError("no g++ here")

    monkeypatch.setattr(torch.nn.Module, "compile", no_compiler)
    encoder = load_encoder("dinov2-s-demo", None, "cpu", layer=1, compile=True)
    plain = load_encoder("dinov2-s-demo", None, "cpu", layer=1)
    with caplog.at_level(logging.WARNING):
        assert torch.equal(encoder.encode(fixed_input()), plain.encode(fixed_input()))
    assert "torch.compile is not usable here" in caplog.text and encoder.digest == plain.digest


def test_a_compiled_pass_that_fails_later_also_goes_on(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Compilers fail on first use, not when asked to compile."""

    def compile_lazily(block: torch.nn.Module) -> None:
        block.forward = lambda *_, **__: (_ for _ in ()).throw(RuntimeError("backend"))  # type: ignore[method-assign]

    monkeypatch.setattr(torch.nn.Module, "compile", compile_lazily)
    encoder = load_encoder("dinov2-s-demo", None, "cpu", layer=1, compile=True)
    with caplog.at_level(logging.WARNING):
        assert torch.isfinite(encoder.encode(fixed_input())).all()
    assert caplog.text.count("torch.compile") == 1
    encoder.encode(fixed_input())
    assert caplog.text.count("torch.compile") == 1


def test_errors_that_are_not_the_compilers_stay_errors(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = official("dinobloom-s", tmp_path)
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(SetupError), caplog.at_level(logging.WARNING):
        load_encoder("dinobloom-s", path, "cpu", compile=True).encode(fixed_input())
    assert caplog.text == ""


# Stored values


@pytest.mark.parametrize("layer", [6, 11])
def test_the_golden_cells_give_the_stored_values(layer: int) -> None:
    encoder = load_encoder("dinov2-s-demo", None, "cpu", layer=layer, steps=STEPS)
    found = check_golden(encoder, golden_features(encoder))
    assert found.inside is True and found.max_relative is not None and found.max_relative < 1e-4


def test_tolerances_agree_in_kind_with_the_protocols_canary() -> None:
    """fp32 must pass the coordinator's canary with room to spare; what we call fp16 and bf16 must not."""
    assert TOLERANCE["fp32"] <= CANARY_TOLERANCE / 10
    exact = load_encoder("dinov2-s-demo", None, "cpu", layer=6, steps=STEPS).canary()
    size = float(np.sqrt((exact**2).mean()))
    for precision in ("fp16", "bf16"):
        other = load_encoder("dinov2-s-demo", None, "cpu", layer=6, steps=STEPS, precision=precision)
        difference = float(np.abs(other.canary() - exact).max()) / size
        assert CANARY_TOLERANCE < difference < TOLERANCE[precision]


def test_a_wrong_resize_is_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    from PIL import Image

    from cytosae_core.encoder import preprocess

    def nearest(image: Image.Image, size: int) -> np.ndarray:
        return np.asarray(image.convert("RGB").resize((size, size), Image.Resampling.NEAREST))

    encoder = load_encoder("dinov2-s-demo", None, "cpu", layer=6, steps=STEPS)
    monkeypatch.setattr(preprocess, "squash", nearest)
    found = check_golden(encoder, golden_features(encoder))
    assert found.inside is False and found.max_relative is not None
    assert found.max_relative > 10 * CANARY_TOLERANCE


def check(*arguments: str) -> int:
    parser = ArgumentParser()
    register(parser)
    options = parser.parse_args(["check", "--device", "cpu", *arguments])
    return int(options.run(options))


def test_the_command_says_inside_outside_or_nothing_stored(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert check("--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["inside"] is True and found["layer"] == 6 and found["tolerance"] == 1e-4
    assert check("--layer", "2", "--write", str(tmp_path / "here")) == 0
    told = capsys.readouterr().out
    assert "No values are stored" in told and "--against" in told
    assert check("--layer", "2", "--against", str(tmp_path / "here"), "--json") == 0
    assert json.loads(capsys.readouterr().out)["max_abs"] == 0
    assert check("--layer", "2", "--precision", "bf16", "--against", str(tmp_path / "here")) == 0
    monkeypatch.setitem(golden.TOLERANCE, "bf16", 1e-6)
    assert check("--layer", "2", "--precision", "bf16", "--against", str(tmp_path / "here")) == 1
    assert "OUTSIDE the tolerance of bf16" in capsys.readouterr().out


def test_features_of_another_encoder_or_damaged_files_are_setup_errors(tmp_path: Path) -> None:
    assert check("--layer", "2", "--write", str(tmp_path / "here"), "--json") == 0
    for arguments in (("--layer", "3"), ("--layer", "2", "--steps", "")):
        with pytest.raises(SetupError, match="same encoder"):
            check(*arguments, "--against", str(tmp_path / "here"))
    (tmp_path / "here").write_bytes(b"rubbish")
    with pytest.raises(SetupError, match="readable file"):
        check("--layer", "2", "--against", str(tmp_path / "here"))
