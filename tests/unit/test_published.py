"""The published checkpoint's layout: imported without running code, refused when it is something else."""

from __future__ import annotations

import json
import pickle
import sys
import types
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from cytosae_core.concepts.coder import load_coder
from cytosae_core.errors import StudyError
from cytosae_core.sae.checkpoint import load_checkpoint, save_checkpoint
from cytosae_core.sae.export import export_dictionary
from cytosae_core.sae.published import read_published
from cytosae_local.cli import main

D, N = 24, 96


def state(seed: int = 0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    draw = lambda *shape: torch.randn(*shape, generator=generator)  # noqa: E731
    return {"W_enc": draw(D, N), "b_enc": draw(N) - 2, "W_dec": draw(N, D), "b_dec": draw(D)}


def write(path: Path, content: dict, config: object = None, name: str = "ViTSAERunnerConfig") -> Path:
    """Save as the original does: an instance of a class of `src.sae_training.config` under "cfg"."""
    parents = [types.ModuleType(part) for part in ("src", "src.sae_training", "src.sae_training.config")]
    kind = type(name, (), {"__module__": parents[-1].__name__})
    setattr(parents[-1], name, kind)
    sys.modules.update({module.__name__: module for module in parents})
    try:
        instance = kind()
        instance.__dict__.update(config or {"d_in": D, "d_sae": N, "dtype": torch.float32, "lr": 4e-4})
        torch.save({"cfg": instance, **content}, path)
    finally:
        for module in parents:
            sys.modules.pop(module.__name__)
    return path


def test_import_needs_the_stub_and_scores_as_the_original_formula(tmp_path, capsys) -> None:
    tensors = state()
    file = write(tmp_path / "sae.pt", {"state_dict": tensors})
    with pytest.raises(pickle.UnpicklingError):  # torch alone refuses the config class
        torch.load(file, weights_only=True)
    assert main(["sae", "import", str(file), str(tmp_path / "out"), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["n"], told["d"]) == (N, D)
    coder = load_coder(tmp_path / "out", sha256=told["sha256"])
    x = torch.randn(50, D)
    wanted = torch.relu((x - tensors["b_dec"]) @ tensors["W_enc"] + tensors["b_enc"])
    assert torch.equal(coder.codes(x), wanted)
    assert torch.equal(coder.model.reconstruct(wanted), wanted @ tensors["W_dec"] + tensors["b_dec"])


@pytest.mark.parametrize("key", ["cfg", "config"])
def test_older_files_with_a_dict_are_read_too(tmp_path, key) -> None:
    torch.save(
        {key: {"d_in": D, "checkpoint_path": "/home/someone"}, "state_dict": state()}, tmp_path / "x.pt"
    )
    found = read_published(tmp_path / "x.pt")
    assert found.facts["origin_config"] == {"d_in": D}  # nothing of the trainer's machine


class _Evil:
    def __reduce__(self) -> tuple:
        return (open, (str(_Evil.target), "w"))


def test_code_in_a_checkpoint_is_not_run(tmp_path) -> None:
    _Evil.target = tmp_path / "owned"
    torch.save({"cfg": _Evil(), "state_dict": state()}, tmp_path / "evil.pt")
    with pytest.raises(StudyError, match="not run"):
        read_published(tmp_path / "evil.pt")
    assert not (tmp_path / "owned").exists()
    (tmp_path / "plain.pt").write_bytes(pickle.dumps({"cfg": _Evil(), "state_dict": {}}))
    with pytest.raises(StudyError):
        read_published(tmp_path / "plain.pt")
    assert not (tmp_path / "owned").exists()


def test_another_class_in_the_checkpoint_is_refused(tmp_path) -> None:
    file = write(tmp_path / "x.pt", {"state_dict": state()}, name="SomethingElse")
    with pytest.raises(StudyError, match="other code"):
        read_published(file)


def _broken(name: str) -> dict:
    tensors = state()
    if name == "missing":
        del tensors["b_enc"]
    elif name == "extra":
        tensors["W_gate"] = torch.zeros(D, N)
    elif name == "transposed":
        tensors["W_dec"] = tensors["W_dec"].T.contiguous()
    elif name == "nan":
        tensors["W_enc"][3, 3] = float("nan")
    elif name == "integers":
        tensors["b_dec"] = torch.zeros(D, dtype=torch.int64)
    elif name == "vector":
        tensors["W_enc"] = torch.zeros(D)
    return tensors


@pytest.mark.parametrize("name", ["missing", "extra", "transposed", "nan", "integers", "vector"])
def test_tensors_that_do_not_fit_are_refused(tmp_path, name) -> None:
    file = write(tmp_path / "x.pt", {"state_dict": _broken(name)})
    with pytest.raises(StudyError, match="Expected"):
        read_published(file)


@pytest.mark.parametrize("config", [{"d_in": D + 1}, {"d_sae": N * 2}, {"gated_sae": True}])
def test_a_config_that_contradicts_the_tensors_is_refused(tmp_path, config) -> None:
    with pytest.raises(StudyError, match="Expected"):
        read_published(write(tmp_path / "x.pt", {"state_dict": state()}, config))


def test_files_that_are_no_checkpoint(tmp_path, capsys) -> None:
    whole = write(tmp_path / "whole.pt", {"state_dict": state()}).read_bytes()
    (tmp_path / "cut.pt").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "empty.pt").write_bytes(b"")
    (tmp_path / "text.pt").write_text("hello")
    torch.save(state(), tmp_path / "bare.pt")
    torch.save([1, 2], tmp_path / "list.pt")
    with zipfile.ZipFile(tmp_path / "zip.pt", "w") as archive:
        archive.writestr("a", "b")
    for name in ("cut", "empty", "text", "bare", "list", "zip", "absent"):
        assert main(["sae", "import", str(tmp_path / f"{name}.pt"), str(tmp_path / "out")]) == 1
        assert "Expected" in capsys.readouterr().err
    assert not (tmp_path / "out" / "dictionary.safetensors").exists()


def test_export_to_the_published_layout_comes_back_bit_for_bit(tmp_path) -> None:
    found = read_published(write(tmp_path / "x.pt", {"state_dict": state()}))
    save_checkpoint(tmp_path / "d" / "dictionary", found.tensors, found.facts)
    export_dictionary(load_checkpoint(tmp_path / "d"), tmp_path / "back", "published")
    back = torch.load(tmp_path / "back" / "sparse_autoencoder.pt", weights_only=True)
    assert back["cfg"]["d_sae"] == N
    assert all(torch.equal(back["state_dict"][name], value) for name, value in state().items())


def test_saelens_folder_has_its_names_and_shapes(tmp_path, capsys) -> None:
    from safetensors.numpy import load_file

    found = read_published(write(tmp_path / "x.pt", {"state_dict": state()}))
    save_checkpoint(tmp_path / "dictionary", found.tensors, found.facts)
    assert main(["sae", "export", str(tmp_path / "dictionary"), str(tmp_path / "lens"), "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)["files"]) == 2
    config = json.loads((tmp_path / "lens" / "cfg.json").read_text())
    assert (config["architecture"], config["d_in"], config["d_sae"]) == ("standard", D, N)
    weights = load_file(tmp_path / "lens" / "sae_weights.safetensors")
    assert {name: values.shape for name, values in weights.items()} == {
        "W_enc": (D, N), "b_enc": (N,), "W_dec": (N, D), "b_dec": (D,)
    }  # fmt: skip


def test_a_pursuit_dictionary_goes_to_saelens_but_not_to_the_published_layout(tmp_path) -> None:
    rows = np.eye(D, dtype=np.float32)
    tensors = {"dictionary": rows, "mean": np.ones(D, np.float32), "scale": np.array([2.0], np.float32)}
    save_checkpoint(tmp_path / "dictionary", tensors, {"model": "pursuit", "k": 4})
    loaded = load_checkpoint(tmp_path / "dictionary")
    export_dictionary(loaded, tmp_path / "lens", "saelens")
    config = json.loads((tmp_path / "lens" / "cfg.json").read_text())
    assert (config["architecture"], config["max_iterations"]) == ("matching_pursuit", 4)
    with pytest.raises(StudyError, match="model=relu"):
        export_dictionary(loaded, tmp_path / "no", "published")
    with pytest.raises(StudyError, match="format"):
        export_dictionary(loaded, tmp_path / "no", "gguf")
