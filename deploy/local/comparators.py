"""What the federated dictionary is compared with, on one machine that holds all tokens: simulations only.

Pooled training sees as many tokens in all as the sites together, in the same number of sequential steps on the
same schedule. Local-only training is a site's own share of that budget. Every FVU is about the federated mean on
the same held-out tokens that the sites measure on.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from cytosae_client.site import StudyData
from cytosae_core.concepts.scores import quality
from cytosae_core.config import StudyConfig
from cytosae_core.report.inputs import quality_dict
from cytosae_core.sae.models import Model, PursuitModel
from cytosae_core.sae.scale import TokenScale
from cytosae_core.sae.train import train_local

Array = NDArray[Any]
Tick = Callable[[str], None]


class Pool:
    """All sites' tokens in one place."""

    def __init__(
        self, study: StudyConfig, data: Mapping[str, StudyData], scale: TokenScale, first: Array
    ) -> None:
        self.study, self.data, self.scale = study, dict(data), scale
        self.first = torch.from_numpy(first)
        self.test = {
            site: scale.apply(item.random_tokens(item.test, study.statistics.eval_tokens, "quality")[0])
            for site, item in self.data.items()
        }

    def fvu(self, model: Model) -> dict[str, float]:
        """FVU of a dictionary at every site."""
        found = {site: quality_dict(quality(tokens, model))["fvu"] for site, tokens in self.test.items()}
        return {site: value for site, value in found.items() if value is not None}

    def train(self, sites: list[str]) -> PursuitModel:
        """Train on some sites' tokens: a batch per step and site, exactly those that the rounds draw."""
        training = self.study.training
        steps = training.rounds * training.local_steps

        def batch(step: int) -> tuple[torch.Tensor, torch.Tensor]:
            parts = [
                self.data[site].random_tokens(self.data[site].train, training.batch_tokens, f"step {step}")[0]
                for site in sites
            ]
            tokens = torch.from_numpy(self.scale.apply(np.concatenate(parts)))
            return tokens, torch.zeros(len(tokens), dtype=torch.int64)

        k = self.study.dictionary.k
        result = train_local(
            self.first, batch, k=k, first=0, steps=steps, total=steps, peak=training.learning_rate, n_units=1
        )
        return PursuitModel(result.dictionary, k)

    def pca(self) -> dict[str, float]:
        """FVU of the k leading principal components of all training tokens: the linear floor at equal k."""
        count, total, square = 0, np.zeros(self.study.encoder.d), np.zeros((self.study.encoder.d,) * 2)
        for item in self.data.values():
            tokens = self.scale.apply(item.random_tokens(item.train, 20_000, "pca")[0]).astype(np.float64)
            total, square, count = total + tokens.sum(axis=0), square + tokens.T @ tokens, count + len(tokens)
        mean = total / count
        basis = np.linalg.eigh(square / count - np.outer(mean, mean))[1][:, -self.study.dictionary.k :]
        out = {}
        for site, test in self.test.items():
            centred = test - mean
            rest = centred - (centred @ basis) @ basis.T
            out[site] = float((rest**2).sum() / (test.astype(np.float64) ** 2).sum())
        return out


def local_matrix(pool: Pool, tick: Tick) -> dict[str, dict[str, float]]:
    """Dictionaries of single sites at every site: trained on -> tested on -> FVU."""
    matrix = {}
    for site in pool.data:
        matrix[site] = pool.fvu(pool.train([site]))
        tick(f"local-only {site}")
    return matrix
