"""Local training of a pursuit dictionary: the clear reference in plain PyTorch.

One step: code a batch, take the gradient of half the mean squared error with respect to the dictionary, remove
its part along each row, one Adam step on the rows that fired, renormalise. Rows that did not fire do not move
(row-lazy Adam with its own step count per row). Adam starts fresh in every round: measured equal to keeping
it at the site (.0002 FVU), and a site that crashed repeats the round to the same bytes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from .pursuit import SparseCodes, gram_matrix, pursue, reconstruct, unit_rows

BETA1, BETA2, EPSILON = 0.9, 0.999, 1e-8

# Gives the batch of one step: [B, d] float32 centred and scaled tokens, and the unit of each token [B] int64.
Batches = Callable[[int], tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class LocalResult:
    """What one site's round gives, before the door.

    Attributes:
        dictionary: [n, d] float32, unit rows.
        fired: [n] int64, how many training tokens fired each row.
        units: [n] int64, in how many units a row fired.
        largest: [n] float32, largest share of one unit in a row's summed activation (dominance).
    """

    dictionary: Tensor
    fired: Tensor
    units: Tensor
    largest: Tensor


class RowAdam:
    """Adam (Kingma and Ba 2015) whose state of a row moves only when the row fired."""

    def __init__(self, n: int, d: int) -> None:
        self.mean = torch.zeros(n, d)
        self.square = torch.zeros(n, d)
        self.steps = torch.zeros(n)

    def change(self, gradient: Tensor, active: Tensor, learning_rate: float) -> Tensor:
        """The step for `active` rows [a], given their gradient [a, d]; returns [a, d] to be subtracted."""
        self.steps[active] += 1
        steps = self.steps[active, None]
        mean = self.mean[active].mul_(BETA1).add_(gradient, alpha=1 - BETA1)
        square = self.square[active].mul_(BETA2).addcmul_(gradient, gradient, value=1 - BETA2)
        self.mean[active], self.square[active] = mean, square
        root = (square / (1 - BETA2**steps)).sqrt_().add_(EPSILON)
        return learning_rate * (mean / (1 - BETA1**steps)) / root


@torch.no_grad()
def dictionary_gradient(tokens: Tensor, codes: SparseCodes, dictionary: Tensor) -> tuple[Tensor, Tensor]:
    """Gradient of mean_t 1/2 |x_t - x^_t|^2 at fixed codes, without its part along the rows.

    Returns:
        gradient [a, d] and the indices [a] of the rows that fired.
    """
    n = dictionary.shape[0]
    residual = tokens - reconstruct(codes, dictionary)
    dense = codes.dense(n)
    active = (dense > 0).any(dim=0).nonzero().squeeze(1)
    gradient = -(dense[:, active].T @ residual) / tokens.shape[0]
    rows = dictionary[active]
    return gradient - (gradient * rows).sum(dim=1, keepdim=True) * rows, active


def learning_rate_at(step: int, total: int, peak: float) -> float:
    """Linear warm-up over 2 % of the steps, flat, linear decay to zero over the last 30 %."""
    warm = min(1.0, (step + 1) / max(1.0, 0.02 * total))
    decay = min(1.0, (total - step) / max(1.0, 0.3 * total))
    return peak * min(warm, decay)


@torch.no_grad()
def train_local(
    dictionary: Tensor,
    batches: Batches,
    *,
    k: int,
    first: int,
    steps: int,
    total: int,
    peak: float,
    n_units: int,
) -> LocalResult:
    """Steps `first` .. `first + steps` of `total`, from `dictionary` [n, d] with unit rows.

    Args:
        batches: step -> tokens and their units.
        k: picks per token.
        peak: learning rate between warm-up and decay.
        n_units: how many units the site's training split has (units are 0 .. n_units - 1).
    """
    current = dictionary.clone()
    n = current.shape[0]
    adam = RowAdam(n, current.shape[1])
    mass = torch.zeros(n_units, n)
    fired = torch.zeros(n, dtype=torch.int64)
    for step in range(first, first + steps):
        tokens, units = batches(step)
        codes = pursue(tokens, current, k, gram_matrix(current))
        gradient, active = dictionary_gradient(tokens, codes, current)
        moved = current[active] - adam.change(gradient, active, learning_rate_at(step, total, peak))
        current[active] = unit_rows(moved)
        dense = codes.dense(n)
        fired += (dense > 0).sum(dim=0)
        mass.index_add_(0, units, dense)
    share = mass.max(dim=0).values / mass.sum(dim=0).clamp_min(1e-12)
    return LocalResult(current, fired, (mass > 0).sum(dim=0), share)
