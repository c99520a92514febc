"""Training gradients that a patient's privacy can rest on: research only, and nothing made here leaves a site.

    x        T tokens of one patient                                    [T, d], a fixed T for every patient
    g        gradient of the mean loss over them; no other patient is in it                       float32
    |g|      over all tensors together, accumulated in float64
    sum      of g min(1, C (1 - 1e-6) / |g|) over a Poisson sample of the patients                 float64
    noise    Gaussian of standard deviation s C on every number, from the operating system's randomness
    divide   by q N, where N is public: the number of patients who happened to be in the step is not

One patient is one record, so its gradient is an ordinary backward pass in closed form, and clipping needs no second
one (f codes, e = dL/dx^, h = (e W_dec^T + l1 / T) where f > 0):

    pursuit    rows that fired, codes fixed, as in `sae.train`: f^T e without its part along each row
    topk, relu W_dec f^T e    W_enc (x - b_dec)^T h    b_enc sum_t h    b_dec sum_t e - W_enc sum_t h

Two forms of a product f^T e, chosen by size. Materialised: it is computed, measured and added, only at rows that
fired where codes are sparse. Gram (few tokens, all rows fire): |f^T e|^2 = sum_st (f_s.f_t)(e_s.e_t), and the clipped
product is added in one weighted pass.

Abadi et al. 2016 (arXiv 1607.00133) for the step, Goodfellow 2015 (arXiv 1510.01799) for the Gram form.
Measured against Opacus and a plain step: docs/decisions/012.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ..errors import StudyError
from ..sae.models import PursuitModel, ReluModel, TopKModel
from ..sae.pursuit import unit_rows
from ..sae.train import dictionary_gradient
from .noise import SAFE, SecureBytes, quick_normal
from .plan import PrivacyPlan

Trainable = PursuitModel | ReluModel | TopKModel
Gradient = dict[str, Tensor]
BLOCK = 1 << 15  # numbers converted to float64 at a time: they stay in the processor's cache
GRAM_TOKENS = 48  # up to which the Gram form is the faster one (measured: docs/decisions/012)


@dataclass(frozen=True)
class Part:
    """Materialised gradient `values` [a, ...] float32 of some `rows` [a] of one tensor; None: of all its rows."""

    name: str
    values: Tensor
    rows: Tensor | None = None

    def square(self) -> float:
        """Squared L2 norm of the very numbers that `add_to` adds, in float64."""
        return _square(self.values)

    def add_to(self, total: Tensor, weight: float) -> None:
        """Add `weight` times this to `total` [n, ...] float64, in place."""
        if self.rows is not None:
            few = max(1, BLOCK * len(self.rows) // max(1, self.values.numel()))  # rows of BLOCK numbers
            for rows, values in zip(torch.split(self.rows, few), torch.split(self.values, few), strict=True):
                total.index_add_(0, rows, values.double(), alpha=weight)
            return
        for sums, values in zip(_blocks(total), _blocks(self.values), strict=True):
            sums.add_(values.double(), alpha=weight)


@dataclass(frozen=True)
class Outer:
    """Gradient left^T right [a, d] that is not computed yet: `left` [T, a] and `right` [T, d] float32."""

    name: str
    left: Tensor
    right: Tensor
    rows: Tensor | None = None

    def square(self) -> float:
        """Squared L2 norm by the Gram form in float64, plus the most that its rounding can have hidden.

        Tokens can be made that cancel each other: then the sum is small and its rounding is not. |error| is at most
        (a + d + T^2) 2^-53 (sum_t |left_t| |right_t|)^2.
        """
        left, right = self.left.double(), self.right.double()
        square = float(((left @ left.T) * (right @ right.T)).sum())
        largest = float((left.norm(dim=1) * right.norm(dim=1)).sum())
        terms = left.shape[1] + right.shape[1] + len(left) ** 2 + 8
        return max(0.0, square) + terms * 2.0**-53 * largest**2

    def add_to(self, total: Tensor, weight: float) -> None:
        """Add `weight` left^T right to `total` [a, d] float64, in place and in one pass (all rows only)."""
        total.addmm_(self.left.double().T, self.right.double(), alpha=weight)

    def chosen(self) -> Part | Outer:
        """This, where the Gram form is the cheaper one; else its product."""
        if self.rows is None and len(self.left) <= GRAM_TOKENS:
            return self
        return Part(self.name, self.left.T @ self.right, self.rows)


def _blocks(values: Tensor) -> tuple[Tensor, ...]:
    return torch.split(values.reshape(-1), BLOCK)


def _square(values: Tensor) -> float:
    doubles = (block.double() for block in _blocks(values))
    return math.fsum(float(torch.dot(block, block)) for block in doubles) if values.numel() else 0.0


def patient_parts(model: Trainable, tokens: Tensor) -> list[Part | Outer]:
    """Gradient of the mean loss over one patient's tokens [T, d], each tensor named once.

    Losses: `pursuit` half the squared error of a token; `relu` and `topk` the squared error of a number, plus l1
    times a token's summed codes. AuxK of `topk` is left out: which latents are dead is known from all patients.
    Gradients of W_enc are transposed, [n, d].
    """
    if isinstance(model, PursuitModel):
        return [Part("dictionary", *dictionary_gradient(tokens, model.sparse(tokens), model.dictionary))]
    return _linear_parts(model, tokens)


@torch.no_grad()
def _linear_parts(model: ReluModel | TopKModel, tokens: Tensor) -> list[Part | Outer]:
    codes, rows = model.codes(tokens), None
    w_dec, w_enc = model.W_dec.data, model.W_enc.data
    if isinstance(model, TopKModel):
        rows = (codes > 0).any(dim=0).nonzero().squeeze(1)
        codes, w_dec, w_enc = codes[:, rows], w_dec[rows], w_enc[:, rows]
    error = (codes @ w_dec + model.b_dec - tokens) * (2 / tokens.numel())
    slopes = error @ w_dec.T
    if isinstance(model, ReluModel):
        slopes += model.l1 / len(tokens)
    slopes *= codes > 0
    b_enc = slopes.sum(dim=0)
    return [
        Outer("W_dec", codes, error, rows).chosen(),
        Outer("W_enc", slopes, tokens - model.b_dec, rows).chosen(),
        Part("b_enc", b_enc, rows),
        Part("b_dec", error.sum(dim=0) - w_enc @ b_enc),
    ]


def clip_weight(parts: Sequence[Part | Outer], clip: float) -> float:
    """What one patient's gradient is multiplied by: 1, or less so that its norm over all tensors is <= C (1 - 1e-6).

    0 for a gradient that is not finite: an error here would tell of one patient.
    """
    norm = math.sqrt(square) if math.isfinite(square := sum(part.square() for part in parts)) else math.inf
    return min(1.0, clip * SAFE / max(norm, 1e-300)) if math.isfinite(norm) else 0.0


def clipped_sum(model: Trainable, records: Iterable[Tensor], clip: float) -> Gradient:
    """Sum of the clipped gradients of patients' tokens [T, d], float64, BEFORE noise: for tests, never to be kept.

    No patient at all gives zeros. W_enc is transposed, [n, d].
    """
    n, d = model.dictionary.shape
    linear = {"W_enc": (n, d), "b_enc": (n,), "W_dec": (n, d), "b_dec": (d,)}
    shapes = {"dictionary": (n, d)} if isinstance(model, PursuitModel) else linear
    total = {name: torch.zeros(shape, dtype=torch.float64) for name, shape in shapes.items()}
    for tokens in records:
        parts = patient_parts(model, tokens)
        if weight := clip_weight(parts, clip):
            for part in parts:
                part.add_to(total[part.name], weight)
    return total


def poisson_sample(patients: int, rate: float, stream: SecureBytes) -> list[int]:
    """Which of `patients` are in a step: each with chance `rate`, on its own (64 bits each, rounded down)."""
    if rate >= 1:
        return list(range(patients))
    words = stream.words(patients, np.uint64)
    return [int(place) for place in np.flatnonzero(words < np.uint64(int(rate * 2**64)))]


def draw_tokens(tokens: Tensor, count: int, stream: SecureBytes) -> Tensor:
    """`count` of one patient's tokens [m, d], m >= 1, at random: none twice before each came once."""
    order = np.argsort(stream.words(len(tokens), np.uint64))
    return tokens[torch.from_numpy(np.resize(order, count))]


def _check_patients(patients: Sequence[Tensor], width: int) -> None:
    """Every patient before every step, sampled or not: an error must not depend on the sample."""
    for tokens in patients:
        if tokens.ndim != 2 or not len(tokens) or tokens.shape[1] != width or tokens.dtype != torch.float32:
            raise StudyError(
                f"Expected tokens [m, d] float32 with m >= 1 and d={width} of each patient, "
                f"got {list(tokens.shape)} {tokens.dtype}."
            )


def noised_mean(total: Tensor, scale: float, divisor: float, stream: SecureBytes) -> Tensor:
    """(total + scale N(0, 1)) / divisor as float32, same shape; noise on every number of `total` (float64)."""
    out = torch.empty(total.shape)
    for sums, numbers in zip(_blocks(total), _blocks(out), strict=True):
        noise = torch.from_numpy(quick_normal(len(sums), stream))
        numbers.copy_(noise.mul_(scale).add_(sums).div_(divisor))
    return out


class PrivateGradient:
    """Noised gradients of one training run under one plan.

    Args:
        plan: clip norm, noise, sampling rate and steps; its epsilon is that of all steps together.
        patients: N, a public number that does not follow from the data at hand.
        tokens_per_patient: T.

    Raises:
        StudyError: a number below 1, more steps than the plan counts, or tokens of another width.

    Guarantees (tests/unit/test_private_gradients.py):
        D1. One patient more or less changes the sum before noise by at most clip_norm in L2 norm over all tensors
            (float64), whatever the patient's tokens are.
        D2. The noise on every number has standard deviation noise_multiplier clip_norm before the division; nothing
            in the process (seeds, numpy, torch) makes it come again; a step without any patient has it as well.
        D3. The divisor is sampling_rate times `patients`, whoever is in the step.
        D4. Each patient is in a step with chance sampling_rate, on its own.
        D5. A patient's tokens enter its own gradient only: no statistic of several patients is used or kept.
        D6. There are no more steps than the plan counts.
        D7. Nothing that sends knows this module.

    Not promised: the noise is floating point (see `noise.quick_normal`), and a step's time tells how many were in it.
    """

    def __init__(self, plan: PrivacyPlan, patients: int, tokens_per_patient: int) -> None:
        if patients < 1 or tokens_per_patient < 1:
            raise StudyError(
                f"Expected patients >= 1 and tokens_per_patient >= 1, got {patients} and {tokens_per_patient}."
            )
        self.plan, self.tokens_per_patient, self.taken = plan, tokens_per_patient, 0
        self.divisor = plan.sampling_rate * patients

    def step(self, model: Trainable, patients: Sequence[Tensor]) -> Gradient:
        """The gradient of one step, float32, each tensor in the model's shape.

        Args:
            patients: tokens [m, d] of every patient of the site, centred by public numbers only.
        """
        if self.taken >= self.plan.steps:
            raise StudyError(f"Expected at most steps={self.plan.steps}, as the plan counts.")
        _check_patients(patients, model.dictionary.shape[1])
        self.taken += 1
        stream = SecureBytes()  # a new key per step: one ChaCha20 stream ends after 2^38 bytes
        chosen = poisson_sample(len(patients), self.plan.sampling_rate, stream)
        records = (draw_tokens(patients[place], self.tokens_per_patient, stream) for place in chosen)
        total = clipped_sum(model, records, self.plan.clip_norm)
        scale = self.plan.noise_multiplier * self.plan.clip_norm
        means = {name: noised_mean(total.pop(name), scale, self.divisor, stream) for name in list(total)}
        return {name: mean.T if name == "W_enc" else mean for name, mean in means.items()}


@torch.no_grad()
def descend(model: Trainable, gradient: Gradient, learning_rate: float) -> Trainable:
    """One step of plain gradient descent, rows back to unit norm: sees noised numbers only, so it costs no privacy.

    `relu` and `topk` change in place; `pursuit` is made anew with its Gram matrix.
    """
    if isinstance(model, PursuitModel):
        return PursuitModel(unit_rows(model.dictionary - learning_rate * gradient["dictionary"]), model.k)
    for name, parameter in model.named_parameters():
        parameter.sub_(gradient[name], alpha=learning_rate)
    model.after_step()
    return model
