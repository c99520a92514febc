"""Attention pooling, the learned rival of the mean: a small network over tokens (or a patient's images).

Attention-based multiple-instance learning (Ilse et al. 2018, equation 8 without gate): weights
softmax(w . tanh(V x)) over a bag's instances, a linear head on the weighted mean.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from .ridge import Scaler

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
HIDDEN, EPOCHS, BATCH, RATE = 16, 30, 32, 2e-3


class _Pool(nn.Module):
    def __init__(self, d: int, n_classes: int) -> None:
        super().__init__()
        self.score = nn.Sequential(nn.Linear(d, HIDDEN), nn.Tanh(), nn.Linear(HIDDEN, 1))
        self.head = nn.Linear(d, n_classes)

    def forward(self, bags: Tensor, present: Tensor) -> Tensor:
        weight = self.score(bags).squeeze(2).masked_fill(~present, -torch.inf).softmax(dim=1)
        out: Tensor = self.head((weight[:, :, None] * bags).sum(dim=1))
        return out


@dataclass(frozen=True)
class AttentionPooling:
    """`bags` [rows, t, d] float32 and which of their instances exist [rows, t]; settings are weight decays."""

    bags: NDArray[np.float32]
    present: NDArray[np.bool_]
    settings: tuple[float, ...] = (1e-2, 1.0)
    seed: int = 0

    def predict(self, train: Ints, labels: Ints, test: Ints, setting: float, n_classes: int) -> Floats:
        """See `crossval.Method`: class-balanced cross-entropy, AdamW, a fixed number of epochs."""
        scaler = Scaler.fit(self.bags[train][self.present[train]][::7])
        generator = torch.Generator().manual_seed(self.seed)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            model = _Pool(self.bags.shape[2], n_classes)
        counts = np.bincount(labels, minlength=n_classes)
        balance = torch.from_numpy(len(labels) / np.maximum(counts, 1) / n_classes).float()
        optimiser = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=setting)
        x, present = self._tensors(train, scaler)
        y = torch.from_numpy(labels)
        for _ in range(EPOCHS):
            for rows in torch.randperm(len(y), generator=generator).split(BATCH):  # type: ignore[no-untyped-call]
                optimiser.zero_grad()
                loss = nn.functional.cross_entropy(model(x[rows], present[rows]), y[rows], weight=balance)
                loss.backward()  # type: ignore[no-untyped-call]
                optimiser.step()
        with torch.no_grad():
            found = model(*self._tensors(test, scaler)).softmax(dim=1)
        return np.asarray(found.numpy(), np.float64)

    def _tensors(self, rows: Ints, scaler: Scaler) -> tuple[Tensor, Tensor]:
        values = scaler.apply(self.bags[rows]).astype(np.float32)
        return torch.from_numpy(values), torch.from_numpy(self.present[rows])


def make_bags(parts: list[NDArray[np.float32]], largest: int, *, seed: int = 0) -> AttentionPooling:
    """Bags of at most `largest` instances each (a random choice where there are more), from arrays [t_i, d]."""
    rng = np.random.default_rng(seed)
    bags = np.zeros((len(parts), largest, parts[0].shape[1]), np.float32)
    present = np.zeros((len(parts), largest), bool)
    for row, part in enumerate(parts):
        chosen = part if len(part) <= largest else part[rng.permutation(len(part))[:largest]]
        bags[row, : len(chosen)], present[row, : len(chosen)] = chosen, True
    return AttentionPooling(bags, present, seed=seed)
