"""The last dictionary that passed the site's gate: what the next one is compared with, across restarts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from cytosae_core.errors import CytosaeError, SetupError
from cytosae_core.privacy.gate import GateCheck
from cytosae_core.sae.scale import TokenScale
from cytosae_core.tensors import load_tensors, pack_tensors, write_atomic


@dataclass(frozen=True)
class Accepted:
    """A dictionary [n, d], its mean and scale, the round it came for, its FVU on this site's held-out tokens."""

    dictionary: torch.Tensor
    scale: TokenScale
    round: int
    fvu: float


class LastBase:
    """Keeps one accepted dictionary in a study's folder of the site's state. It never leaves.

    One file, replaced at once: after a crash it is the old one or the new one, never none.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / "accepted.safetensors"

    def keep(
        self, dictionary: torch.Tensor, scale: TokenScale, number: int, checks: Sequence[GateCheck]
    ) -> None:
        """Remember an accepted dictionary and what the check `fvu` said of it."""
        fvu = next((check.value for check in checks if check.id == "fvu"), 1.0)
        tensors = {
            "dictionary": dictionary.numpy(), "mean": scale.mean, "scale": np.array([scale.scale], np.float64),
            "round": np.array([number], np.int64), "fvu": np.array([fvu], np.float64),
        }  # fmt: skip
        write_atomic(self._path, pack_tensors(tensors))

    def last(self, shape: torch.Size) -> Accepted | None:
        """The last accepted dictionary, None before the first or when it has another shape.

        Raises:
            SetupError: the file is damaged. Without it a trap would be compared with nothing.
        """
        if not self._path.exists():
            return None
        try:
            found = load_tensors(self._path)
            dictionary = torch.from_numpy(found["dictionary"].copy())
            scale = TokenScale(found["mean"], float(found["scale"][0]))
            accepted = Accepted(dictionary, scale, int(found["round"][0]), float(found["fvu"][0]))
        except (CytosaeError, OSError, LookupError) as error:
            raise SetupError(
                "Expected the last accepted dictionary as it was kept.",
                hint="Restore accepted.safetensors in the study's state, or call the coordinator.",
            ) from error
        return accepted if dictionary.shape == shape else None
