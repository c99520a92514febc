"""Weights files: what is refused and how it is named; conversion to safetensors; the digest pins a study."""

from __future__ import annotations

import json
import shutil
from argparse import ArgumentParser
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor

from cytosae_core.canonical import sha256_file
from cytosae_core.cohort import read_cohort
from cytosae_core.config import EncoderConfig
from cytosae_core.encoder import build_store, load_encoder
from cytosae_core.encoder.weights import convert, demo_file
from cytosae_core.errors import SetupError, StudyError
from cytosae_local.encoder_cli import register
from cytosae_local.yaml_study import encoder_for
from tests.federation import Federation, study_config
from tests.unit.test_encoder import fixed_input, official

State = dict[str, Tensor]


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("weights")
    yield official("dinobloom-s", folder)
    shutil.rmtree(folder)


@pytest.fixture(autouse=True)
def _no_big_files_left(tmp_path: Path) -> Iterator[None]:
    yield
    shutil.rmtree(tmp_path)


def changed(good: Path, folder: Path, change: Callable[[State], State]) -> Path:
    state = torch.load(good, weights_only=True)["teacher"]
    torch.save({"teacher": change(state)}, folder / "changed.pth")
    return folder / "changed.pth"


def with_tensor(key: str, value: Tensor) -> Callable[[State], State]:
    return lambda state: {**state, key: value}


def without(key: str) -> Callable[[State], State]:
    return lambda state: {name: value for name, value in state.items() if name != key}


def not_finite(value: float) -> Callable[[State], State]:
    def change(state: State) -> State:
        broken = state["backbone.blocks.7.mlp.fc1.weight"].clone()
        broken[3, 3] = value
        return {**state, "backbone.blocks.7.mlp.fc1.weight": broken}

    return change


def chunked(state: State) -> State:
    return {key.replace("backbone.blocks.", "backbone.blocks.0."): value for key, value in state.items()}


def heads_only(state: State) -> State:
    return {key: value for key, value in state.items() if "head" in key}


WRONG: dict[str, tuple[Callable[[State], State], str]] = {
    "vanilla table": (with_tensor("backbone.pos_embed", torch.zeros(1, 1370, 384)), "vanilla DINOv2"),
    "other size": (with_tensor("backbone.pos_embed", torch.zeros(1, 257, 768)), "It fits dinobloom-b"),
    "registers": (with_tensor("backbone.register_tokens", torch.zeros(1, 4, 384)), "register tokens"),
    "chunked": (chunked, r"blocks.0.3.*block_chunks=0"),
    "only heads": (heads_only, "only heads"),
    "training state": (with_tensor("student.x", torch.zeros(1)), "training state"),
    "surplus": (with_tensor("backbone.blocks.12.ls1.gamma", torch.zeros(384)), r"surplus=.*blocks.12"),
    "missing": (without("backbone.blocks.3.norm1.bias"), r"missing=.*blocks.3.norm1.bias.*\(1\)"),
    "misshapen": (with_tensor("backbone.norm.bias", torch.zeros(385)), r"norm.bias=\[385\], not \[384\]"),
    "no table": (without("backbone.pos_embed"), "position table"),
    "nan": (not_finite(float("nan")), "finite.*blocks.7.mlp.fc1"),
    "infinity": (not_finite(float("inf")), "finite.*blocks.7.mlp.fc1"),
    "integers": (with_tensor("backbone.norm.bias", torch.zeros(384, dtype=torch.int64)), "finite.*norm.bias"),
    "text": (lambda state: {**state, "backbone.norm.bias": "text"}, "only tensors"),  # type: ignore[dict-item]
}


@pytest.mark.parametrize("kind", WRONG)
def test_wrong_files_are_named(kind: str, good: Path, tmp_path: Path) -> None:
    change, text = WRONG[kind]
    path = changed(good, tmp_path, change)
    with pytest.raises(SetupError, match=text):
        load_encoder("dinobloom-s", path).encode(fixed_input())
    with pytest.raises(SetupError):
        convert(path, tmp_path / "out.safetensors")
    assert not (tmp_path / "out.safetensors").exists()


@pytest.mark.parametrize("content", [[1, 2], torch.zeros(3), {"model": {}}, {"teacher": []}, {"teacher": {}}])
def test_other_objects_are_setup_errors(content: object, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "x.pth")
    with pytest.raises(SetupError):
        load_encoder("dinobloom-s", tmp_path / "x.pth").encode(fixed_input())
    with pytest.raises(SetupError):
        convert(tmp_path / "x.pth", tmp_path / "out.safetensors")


def test_conversion_keeps_every_bit_and_names_the_variant(good: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.safetensors"
    name, digest = convert(good, out)
    assert name == "dinobloom-s" and digest == sha256_file(out)
    first, second = load_encoder("dinobloom-s", good), load_encoder("dinobloom-s", out)
    assert torch.equal(first.encode(fixed_input()), second.encode(fixed_input()))
    assert convert(good, tmp_path / "again.safetensors")[1] == digest  # the same bytes everywhere
    assert convert(out, tmp_path / "from-safetensors.safetensors") == (name, digest)
    assert convert(good, out) == (name, digest)  # the same content is no other file


def test_half_precision_weights_stay_half_precision(good: Path, tmp_path: Path) -> None:
    half = changed(good, tmp_path, lambda state: {key: value.half() for key, value in state.items()})
    convert(half, tmp_path / "half.safetensors")
    assert (tmp_path / "half.safetensors").stat().st_size < 0.6 * good.stat().st_size
    pair = (load_encoder("dinobloom-s", path) for path in (half, tmp_path / "half.safetensors"))
    first, second = (encoder.encode(fixed_input()) for encoder in pair)
    assert torch.equal(first, second)


def test_another_file_is_not_overwritten_without_force(good: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.safetensors"
    out.write_bytes(b"mine")
    with pytest.raises(SetupError, match="--force"):
        convert(good, out)
    assert out.read_bytes() == b"mine"
    convert(good, out, force=True)
    assert out.stat().st_size > 80e6
    with pytest.raises(SetupError, match="ends in"):
        convert(good, tmp_path / "out.bin")
    with pytest.raises(SetupError, match="Check the path"):
        convert(tmp_path / "nothing.pth", tmp_path / "new.safetensors")
    with pytest.raises(SetupError, match="Check the folder"):
        convert(good, tmp_path / "missing" / "new.safetensors")


def test_a_name_that_does_not_fit_the_file_is_refused(good: Path, tmp_path: Path) -> None:
    with pytest.raises(SetupError, match=r"It fits .*dinobloom-s"):
        convert(good, tmp_path / "out.safetensors", name="dinobloom-b")
    three = changed(good, tmp_path, lambda s: {k: v for k, v in s.items() if ".blocks.11." not in k})
    with pytest.raises(SetupError, match=r"d=384 and blocks=11"):
        convert(three, tmp_path / "out.safetensors")


def test_the_demo_converts_to_its_own_tokens(tmp_path: Path) -> None:
    source = demo_file()
    name, _ = convert(source, tmp_path / "demo.safetensors", name="dinov2-s-demo")
    pair = (load_encoder(name, path, layer=1) for path in (None, tmp_path / "demo.safetensors"))
    first, second = (encoder.encode(fixed_input()) for encoder in pair)
    assert torch.equal(first, second)


def test_the_command_prints_variant_and_digest(
    good: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    parser = ArgumentParser()
    register(parser)
    out = tmp_path / "out.safetensors"
    options = parser.parse_args(["convert", str(good), str(out), "--json"])
    assert options.run(options) == 0
    found = json.loads(capsys.readouterr().out)
    assert found == {"encoder": "dinobloom-s", "file": str(out), "sha256": sha256_file(out)}


# The study pins the encoder's digest, which covers the weights file.


def other_weights(good: Path, folder: Path) -> Path:
    return changed(good, folder, lambda s: {**s, "backbone.norm.bias": s["backbone.norm.bias"] + 1})


def test_a_local_study_refuses_other_weights(good: Path, tmp_path: Path) -> None:
    convert(good, tmp_path / "good.safetensors")
    convert(other_weights(good, tmp_path), tmp_path / "other.safetensors")
    digest = load_encoder("dinobloom-s", tmp_path / "good.safetensors", layer=6).digest
    pinned = EncoderConfig(name="dinobloom-s", layer=6, steps=(), digest=digest)
    study = replace(study_config(), encoder=pinned)
    assert encoder_for(study, {"weights": "good.safetensors"}, tmp_path).digest == digest
    with pytest.raises(StudyError, match="digest"):
        encoder_for(study, {"weights": "other.safetensors"}, tmp_path)


def test_the_coordinator_drops_a_site_with_other_weights(good: Path, tmp_path: Path) -> None:
    """Digests of real files: what `hello` carries is the token store's, written when it was built."""
    (tmp_path / "cells" / "a").mkdir(parents=True)
    Image.new("RGB", (20, 20), (90, 40, 120)).save(tmp_path / "cells" / "a" / "1.png")
    digests = []
    for path in (good, other_weights(good, tmp_path)):
        encoder = load_encoder("dinobloom-s", path, layer=1)
        store = build_store(read_cohort(tmp_path / "cells"), encoder, tmp_path / path.stem)
        digests.append(store.encoder_digest)
    assert len(set(digests)) == 2
    study = study_config()
    federation = Federation(tmp_path, replace(study, encoder=replace(study.encoder, digest=digests[0])))
    for index, site in enumerate(federation.sites.values()):
        site.store.encoder_digest = digests[index == 1]  # type: ignore[attr-defined]
    run = federation.run()
    assert ("site-1", "hello", "encoder") in run.result.faults
    assert {site for site, _, _ in run.result.faults} == {"site-1"}
