"""Dictionaries for other programs: the published CytoSAE layout and SAELens' folder."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ..errors import StudyError
from ..tensors import pack_tensors, write_atomic
from .checkpoint import Checkpoint
from .published import NAMES

Array = NDArray[Any]
FORMATS = ("published", "saelens")


def export_dictionary(loaded: Checkpoint, out: Path, kind: str) -> list[Path]:
    """Write a dictionary under `out` for another program; returns the files written.

    `published`: `sparse_autoencoder.pt` = `{"cfg": dict, "state_dict": {...}}` (CytoSAE's loader takes a dict),
    for `relu`. `saelens`: `cfg.json` and `sae_weights.safetensors`, for all three models; a `pursuit` dictionary
    becomes their `matching_pursuit`, whose codes are `scale` times ours because they take tokens unscaled.

    Raises:
        StudyError: a format that cannot hold this model, or an unknown one.
    """
    if kind not in FORMATS:
        raise StudyError(f"Expected a format in {FORMATS}, got {kind!r}.")
    model = str(loaded.facts.get("model"))
    out.mkdir(parents=True, exist_ok=True)
    if kind == "published":
        if model != "relu":
            raise StudyError(f"Expected model=relu for the published layout, got model={model}.")
        return [_published(loaded, out)]
    return _saelens(loaded, out, model)


def _published(loaded: Checkpoint, out: Path) -> Path:
    path = out / "sparse_autoencoder.pt"
    d, n = loaded.tensors["W_enc"].shape
    config = {**loaded.facts.get("origin_config", {}), "d_in": d, "d_sae": n}
    state = {name: torch.from_numpy(np.array(loaded.tensors[name], np.float32)) for name in NAMES}
    temporary = out / ".sparse_autoencoder.pt.tmp"
    torch.save({"cfg": config, "state_dict": state}, temporary)
    temporary.replace(path)
    return path


def _saelens(loaded: Checkpoint, out: Path, model: str) -> list[Path]:
    tensors, extra = _saelens_tensors(loaded, model)
    n, d = tensors["W_dec"].shape
    config = {
        "architecture": {"relu": "standard", "topk": "topk", "pursuit": "matching_pursuit"}[model],
        "d_in": d, "d_sae": n, "dtype": "float32", "device": "cpu", "apply_b_dec_to_input": True,
        "normalize_activations": "none", "reshape_activations": "none",
        "metadata": {"cytosae_dictionary_sha256": loaded.sha256}, **extra,
    }  # fmt: skip
    weights, cfg = out / "sae_weights.safetensors", out / "cfg.json"
    write_atomic(weights, pack_tensors(tensors))
    write_atomic(cfg, json.dumps(config, indent=1).encode())
    return [cfg, weights]


def _saelens_tensors(loaded: Checkpoint, model: str) -> tuple[Mapping[str, Array], dict[str, Any]]:
    given = loaded.tensors
    k = int(loaded.facts.get("k", 0))
    if model == "pursuit":
        rows = given["dictionary"]
        mean = given.get("mean", np.zeros(rows.shape[1], np.float32))
        stop = {"max_iterations": k, "residual_threshold": 0.0, "stop_on_duplicate_support": False}
        return {"W_dec": rows, "b_dec": mean}, stop
    if model not in ("relu", "topk"):
        raise StudyError(f"Expected model in ['pursuit', 'relu', 'topk'], got {model!r}.")
    extra = {"k": k, "rescale_acts_by_decoder_norm": False} if model == "topk" else {}
    return {name: given[name] for name in NAMES}, extra
