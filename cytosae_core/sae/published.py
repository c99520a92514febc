"""The published CytoSAE checkpoint -> safetensors + JSON, without executing a byte of it.

Layout (sparse_autoencoder.py:640-652 of CytoSAE): a zip of `{"cfg": <pickled config object>, "state_dict": {...}}`;
older PatchSAE files say "config", and the config may be a dict. The config's class belongs to the original's source
tree: a stub stands in for it, and torch's restricted unpickler refuses everything else.
"""

from __future__ import annotations

import pickle
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..canonical import sha256_file
from ..errors import StudyError

NAMES = ("W_enc", "b_enc", "W_dec", "b_dec")
# Where the config class lived over the project's history; nothing else may be named in a file.
CONFIG_CLASSES = tuple(
    f"{module}.{name}"
    for module in ("src.sae_training.config", "sae_training.config", "src.sae_training.config_utils")
    for name in ("ViTSAERunnerConfig", "Config")
)
# Settings worth keeping; paths, user and run names of the trainer's machine are dropped.
KEPT = (
    "block_layer", "module_name", "vit_model_cls_name", "model_name", "dataset_name", "d_in", "d_sae",
    "expansion_factor", "l1_coefficient", "lr", "seed", "b_dec_init_method", "class_token", "gated_sae",
    "total_training_tokens", "use_ghost_grads", "mse_cls_coefficient", "lr_warm_up_steps", "batch_size",
)  # fmt: skip
MAX_BYTES = 32 * 1024**3
# Width of the tokens -> the DinoBloom that makes them (cytosae.md section 1: block -2).
ENCODER_OF_WIDTH = {384: "dinobloom-s", 768: "dinobloom-b", 1024: "dinobloom-l", 1536: "dinobloom-g"}


class _Stub:
    """Stands in for the config class; only its plain values are read."""


@dataclass(frozen=True)
class Published:
    """Tensors W_enc [d, n], b_enc [n], W_dec [n, d], b_dec [d] float32, and the facts to keep beside them."""

    tensors: dict[str, NDArray[np.float32]]
    facts: dict[str, Any]


def read_published(path: Path) -> Published:
    """Read and verify a published checkpoint.

    Raises:
        StudyError: not readable without executing code, missing or unfitting tensors, numbers that are not
            finite, a gated autoencoder, or a config that contradicts the shapes.
    """
    if not path.is_file():
        raise StudyError(f"Expected a checkpoint at {path}.", hint="Check the path.")
    if path.stat().st_size > MAX_BYTES:
        raise StudyError(f"Expected a checkpoint of at most {MAX_BYTES >> 30} GiB.", hint="Is it this file?")
    content = _load(path)
    state = content.get("state_dict") if isinstance(content, dict) else None
    if not isinstance(state, dict):
        raise StudyError('Expected a checkpoint with the key "state_dict".', hint="Is it another model?")
    config = _config(content)
    tensors = _tensors(state)
    _agree(config, tensors)
    d, n = tensors["W_enc"].shape
    facts = {
        "model": "relu", "k": 0, "n": n, "d": d, "origin": "published CytoSAE checkpoint",
        "origin_sha256": sha256_file(path), "origin_config": config,
        "encoder_hint": ENCODER_OF_WIDTH.get(d, ""),
    }  # fmt: skip
    return Published(tensors, facts)


def _load(path: Path) -> Any:
    """The file's content; classes other than the stub's are refused by torch before anything runs."""
    stubs = [(_Stub, name) for name in CONFIG_CLASSES]
    try:
        with torch.serialization.safe_globals(stubs):  # type: ignore[arg-type]
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise StudyError(
            "Expected a checkpoint with tensors and one config only; it asks for other code, which is not run.",
            hint="Get the file from its publisher again.",
        ) from error
    except Exception as error:  # a damaged zip fails in many ways
        raise StudyError("Expected a readable checkpoint.", hint="Download it again.") from error


def _config(content: dict[Any, Any]) -> dict[str, Any]:
    found = content.get("cfg", content.get("config"))
    values = found if isinstance(found, dict) else vars(found) if isinstance(found, _Stub) else {}
    plain = {name: values[name] for name in KEPT if name in values}
    return {name: value for name, value in plain.items() if isinstance(value, bool | int | float | str)}


def _tensors(state: dict[Any, Any]) -> dict[str, NDArray[np.float32]]:
    if set(state) != set(NAMES):
        raise StudyError(
            f"Expected tensors {sorted(NAMES)}, got {sorted(str(name)[:40] for name in state)[:8]}.",
            hint="Gated, transcoder and other autoencoders are not CytoSAE's.",
        )
    if not all(isinstance(state[name], Tensor) and state[name].is_floating_point() for name in NAMES):
        raise StudyError("Expected floating-point tensors in a checkpoint.", hint="Download it again.")
    tensors = {name: state[name].detach().float().numpy() for name in NAMES}
    if tensors["W_enc"].ndim != 2:
        raise StudyError(f"Expected W_enc[d, n], got shape {list(tensors['W_enc'].shape)}.")
    d, n = tensors["W_enc"].shape
    wanted = {"W_enc": (d, n), "b_enc": (n,), "W_dec": (n, d), "b_dec": (d,)}
    for name, shape in wanted.items():
        if tensors[name].shape != shape:
            raise StudyError(f"Expected {name}{list(shape)}, got {list(tensors[name].shape)}.")
        if not np.isfinite(tensors[name]).all():
            raise StudyError(f"Expected finite numbers in {name}.", hint="Download the file again.")
    return tensors


def _agree(config: dict[str, Any], tensors: dict[str, NDArray[np.float32]]) -> None:
    """Some users loaded a file as another kind without noticing (SAELens issue 553): compare what it says."""
    if config.get("gated_sae"):
        raise StudyError(
            "Expected a ReLU autoencoder, the file says gated_sae.", hint="It would score wrongly."
        )
    d, n = tensors["W_enc"].shape
    for name, value in (("d_in", d), ("d_sae", n)):
        if name in config and config[name] != value:
            raise StudyError(f"Expected {name}={config[name]} as its config says, the tensors have {value}.")
