"""What CytoSAE's extraction does per batch, written from its description (docs/decisions/005), for timing only.

32 images: encoder and decoder products, the training loss, every intermediate kept by its hooks; then the token mean,
counts, sums and a top-10 merge. Afterwards: one image decoded per top-10 entry to read its label, and a loop over
concepts for the entropy.
"""

from __future__ import annotations

import io
import math

import torch
from PIL import Image
from torch import Tensor

BATCH = 32
TOP = 10


class OriginalPass:
    """State of the original's pass over [B, 257, d] token batches."""

    def __init__(self, tensors: dict[str, Tensor]) -> None:
        self.t = tensors
        n = len(tensors["b_enc"])
        self.mean_acts, self.sparsity = torch.zeros(n), torch.zeros(n)
        self.values, self.indices = torch.zeros(n, TOP), torch.zeros(n, TOP)
        self.images = 0

    @torch.no_grad()
    def add(self, tokens: Tensor) -> None:
        """One batch."""
        cache = self.forward(tokens)
        z = cache["feature_acts"].mean(dim=1).T  # [n, B]
        self.mean_acts += z.sum(dim=1)
        self.sparsity += (z > 0).sum(dim=1)
        numbers = torch.arange(self.images, self.images + len(tokens)).float().expand(len(z), -1)
        merged = torch.cat([self.values, z], dim=1)
        self.values, place = merged.topk(TOP, dim=1)
        self.indices = torch.cat([self.indices, numbers], dim=1).gather(1, place)
        self.images += len(tokens)

    def forward(self, tokens: Tensor) -> dict[str, Tensor]:
        """All intermediates of the autoencoder, kept alive as its hooks keep them."""
        t = self.t
        sae_in = tokens - t["b_dec"]
        hidden_pre = sae_in @ t["W_enc"] + t["b_enc"]
        feature_acts = torch.relu(hidden_pre)
        sae_out = feature_acts @ t["W_dec"] + t["b_dec"]
        mse = ((sae_out - tokens) ** 2 / tokens.norm(dim=-1, keepdim=True)).mean()
        l1 = 8e-5 * feature_acts.abs().sum(dim=-1).mean()
        return {
            "sae_in": sae_in, "hidden_pre": hidden_pre, "feature_acts": feature_acts, "sae_out": sae_out,
            "loss": mse + l1,
        }  # fmt: skip


def read_labels(jpegs: list[bytes], count: int) -> int:
    """Decode `count` images one by one, as reading a label through the image data set does; returns their width."""
    return sum(
        Image.open(io.BytesIO(jpegs[index % len(jpegs)])).convert("RGB").size[0] for index in range(count)
    )


def entropy_loop(values: Tensor, labels: Tensor) -> list[float]:
    """Label entropy, one concept after the other."""
    out = []
    for row_values, row_labels in zip(values, labels, strict=True):
        mass = {}
        for label in row_labels.unique():
            mass[int(label)] = row_values[row_labels == label].sum().item()
        total = sum(mass.values())
        shares = [value / total for value in mass.values()] if total else []
        out.append(-sum(p * math.log(p + 1e-9) for p in shares))
    return out
