"""A dictionary ready to code tokens as a site stores them: model and token scale in one."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..errors import StudyError
from ..sae.checkpoint import Checkpoint, load_checkpoint
from ..sae.models import Model, model_from_tensors
from ..sae.scale import TokenScale


@dataclass(frozen=True)
class Coder:
    """Tokens [B, d] as stored -> codes [B, n]. `sha256` is that of the dictionary's tensor file.

    `pursuit` dictionaries carry the study's token mean and scale; `relu` and `topk` take tokens as they are
    (mean 0, scale 1), as CytoSAE does.
    """

    model: Model
    scale: TokenScale
    sha256: str

    @property
    def n(self) -> int:
        """Number of concepts."""
        return self.model.dictionary.shape[0]

    @property
    def d(self) -> int:
        """Token width."""
        return self.model.dictionary.shape[1]

    @torch.no_grad()
    def codes(self, tokens: Tensor) -> Tensor:
        """Dense codes [B, n] >= 0 of tokens [B, d] float32."""
        return self.model.codes(self.centred(tokens))

    def centred(self, tokens: Tensor) -> Tensor:
        """Tokens centred and scaled as the dictionary expects them."""
        return (tokens - torch.from_numpy(self.scale.mean)) / self.scale.scale


def load_coder(path: Path, *, sha256: str = "") -> Coder:
    """A coder from a dictionary on disk (`NAME.safetensors` + `NAME.json`).

    Raises:
        StudyError: missing, altered, of an unknown kind, or tensors that do not fit each other.
    """
    return coder_of(load_checkpoint(path, sha256=sha256))


def coder_of(loaded: Checkpoint) -> Coder:
    """A coder from a checkpoint that was read before."""
    kind = str(loaded.facts.get("model", ""))
    if kind not in ("pursuit", "relu", "topk"):
        raise StudyError(f"Expected model in ['pursuit', 'relu', 'topk'] in a dictionary, got {kind!r}.")
    tensors = {name: np.asarray(values, np.float32) for name, values in loaded.tensors.items()}
    mean, scale = tensors.pop("mean", None), tensors.pop("scale", None)
    if (mean is None) != (scale is None):
        raise StudyError("Expected mean and scale together in a dictionary.", hint="Copy the files again.")
    model = model_from_tensors(
        kind, {k: torch.from_numpy(v) for k, v in tensors.items()}, int(loaded.facts.get("k", 0))
    )
    d = model.dictionary.shape[1]
    if mean is None or scale is None:
        return Coder(model, TokenScale(np.zeros(d, np.float32), 1.0), loaded.sha256)
    if mean.shape != (d,) or scale.shape != (1,) or not float(scale[0]) > 0:
        raise StudyError(f"Expected mean[{d}] and scale[1] > 0 in a dictionary.")
    return Coder(model, TokenScale(mean, float(scale[0])), loaded.sha256)
