"""The last dictionary that passed the site's gate: what the next one is compared with, across restarts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from cytosae_core.errors import CytosaeError
from cytosae_core.privacy.gate import GateCheck
from cytosae_core.sae.checkpoint import load_checkpoint, save_checkpoint
from cytosae_core.sae.scale import TokenScale


@dataclass(frozen=True)
class Accepted:
    """A dictionary [n, d], its mean and scale, the round it came for, its FVU on this site's held-out tokens."""

    dictionary: torch.Tensor
    scale: TokenScale
    round: int
    fvu: float


class LastBase:
    """Keeps one accepted dictionary in a study's folder of the site's state. It never leaves."""

    def __init__(self, folder: Path) -> None:
        self._path, self._last = folder / "accepted", None

    def keep(
        self, dictionary: torch.Tensor, scale: TokenScale, number: int, checks: Sequence[GateCheck]
    ) -> None:
        """Remember an accepted dictionary and what the check `fvu` said of it."""
        fvu = next((check.value for check in checks if check.id == "fvu"), 1.0)
        tensors = {
            "dictionary": dictionary.numpy(), "mean": scale.mean, "scale": np.array([scale.scale], np.float64)
        }  # fmt: skip
        save_checkpoint(self._path, tensors, {"round": number, "fvu": fvu})

    def last(self, shape: torch.Size) -> Accepted | None:
        """The last accepted dictionary, None before the first or when it has another shape."""
        try:
            found = load_checkpoint(self._path)
        except (CytosaeError, OSError):
            return None
        dictionary = torch.from_numpy(found.tensors["dictionary"].copy())
        if dictionary.shape != shape:
            return None
        scale = TokenScale(found.tensors["mean"], float(found.tensors["scale"][0]))
        return Accepted(dictionary, scale, int(found.facts["round"]), float(found.facts["fvu"]))
