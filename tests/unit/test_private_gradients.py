"""Private gradients: guarantees D1 to D7, and two oracles (torch's autograd, Opacus' per-sample gradients)."""

from __future__ import annotations

import math
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.stats import kstest, norm
from torch import Tensor, nn
from torch.nn import functional

from cytosae_core.errors import StudyError
from cytosae_core.privacy.gradients import (
    GRAM_TOKENS,
    Gradient,
    Outer,
    PrivateGradient,
    Trainable,
    clip_weight,
    clipped_sum,
    descend,
    draw_tokens,
    patient_parts,
    poisson_sample,
)
from cytosae_core.privacy.noise import SAFE, SecureBytes
from cytosae_core.privacy.plan import PrivacyPlan
from cytosae_core.sae.models import PursuitModel, ReluModel, TopKModel
from cytosae_core.sae.pursuit import random_dictionary, unit_rows

ROOT = Path(__file__).resolve().parents[2]
D, N, CLIP = 12, 40, 0.05
KINDS = ("pursuit", "topk", "relu")
FEW, MANY = 7, GRAM_TOKENS + 13  # tokens of a patient: Gram form, materialised form
UNCLIPPED = 1e12


def make(kind: str) -> Trainable:
    if kind == "pursuit":
        return PursuitModel(random_dictionary(N, D, 3), 4)
    model = ReluModel(D, N, seed=3, l1=1e-2) if kind == "relu" else TopKModel(D, N, seed=3, k=4)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():  # untied, and no bias at 0
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
    return model


def records(count: int, tokens: int, seed: int = 0) -> Tensor:
    return torch.randn(count, tokens, D, generator=torch.Generator().manual_seed(seed))


def flat(gradient: Gradient) -> Tensor:
    return torch.cat([gradient[name].double().reshape(-1) for name in sorted(gradient)])


def autograd(model: Trainable, tokens: Tensor) -> Gradient:
    """Gradients of the model's own loss; pursuit: through normalised rows, at fixed codes."""
    if isinstance(model, PursuitModel):
        rows = model.dictionary.clone().requires_grad_()
        (0.5 * (model.codes(tokens) @ unit_rows(rows) - tokens).pow(2).sum(dim=1).mean()).backward()
        return {"dictionary": rows.grad}
    model.zero_grad()
    model.loss(tokens).backward()
    found = {name: value.grad.clone() for name, value in model.named_parameters()}
    return {**found, "W_enc": found["W_enc"].T}


def near(found: Tensor, wanted: Tensor, relative: float = 1e-5) -> bool:
    return bool((found - wanted).norm() <= relative * wanted.norm())


@pytest.mark.parametrize("tokens", [FEW, MANY])
@pytest.mark.parametrize("kind", KINDS)
def test_closed_forms_are_what_autograd_gives(kind: str, tokens: int) -> None:
    model, patients = make(kind), records(3, tokens)
    for patient in patients:
        wanted, found = autograd(model, patient), clipped_sum(model, [patient], UNCLIPPED)
        assert found.keys() == wanted.keys()
        assert all(near(found[name], wanted[name].double()) for name in wanted)
        square = sum(part.square() for part in patient_parts(model, patient))
        assert math.sqrt(square) == pytest.approx(float(flat(wanted).norm()), rel=1e-5)


def test_the_form_follows_from_the_number_of_tokens() -> None:
    few, many = (patient_parts(make("relu"), records(1, tokens)[0]) for tokens in (FEW, MANY))
    assert sum(isinstance(part, Outer) for part in few) == 2
    assert not any(isinstance(part, Outer) for part in many)


ADVERSARIAL = (0.0, 1e-30, 1e-6, 1.0, 1e3, 1e9, 1e18, 1e25, 3e38, math.inf, math.nan)


@pytest.mark.parametrize("tokens", [FEW, MANY])
@pytest.mark.parametrize("kind", KINDS)
def test_d1_one_patient_changes_the_sum_by_at_most_the_clip_norm(kind: str, tokens: int) -> None:
    model = make(kind)
    patients = [scale * record for scale, record in zip(ADVERSARIAL, records(11, tokens), strict=True)]
    patients.append(torch.cat([1e9 * patients[3], -1e9 * patients[3]])[:tokens])
    whole = flat(clipped_sum(model, patients, CLIP))
    for left_out in range(len(patients)):
        others = patients[:left_out] + patients[left_out + 1 :]
        change = float((whole - flat(clipped_sum(model, others, CLIP))).norm())
        assert change <= CLIP
        if left_out in (4, 5):  # huge, but finite: clipped to the norm and no further
            assert change > CLIP * SAFE * (1 - 1e-9)


def test_d1_norms_are_accumulated_in_double_precision() -> None:
    rows = random_dictionary(9000, 384, 0)
    dense = ReluModel(384, 9000, start={
        "W_enc": torch.zeros(384, 9000), "b_enc": torch.ones(9000), "W_dec": rows, "b_dec": torch.zeros(384)
    })  # fmt: skip
    total = clipped_sum(dense, [torch.ones(MANY, 384)], 1e-9)
    assert 1e-9 * SAFE * (1 - 1e-9) < float(flat(total).norm()) <= 1e-9


@pytest.mark.parametrize("gap", [0.0, 1e-7, 1e-5, 1e-2])
def test_d1_holds_where_tokens_cancel_in_the_gram_form(gap: float) -> None:
    left, right = 1e4 * torch.rand(2, 500), 1e4 * torch.rand(2, 384)
    left[1], right[1] = left[0], -right[0] * (1 + gap)
    part = Outer("W_dec", left, right)
    product = left.double().T @ right.double()
    assert part.square() >= float(product.pow(2).sum())
    total = torch.zeros(500, 384, dtype=torch.float64)
    part.add_to(total, clip_weight([part], CLIP))
    assert float(total.norm()) <= CLIP


def plan(noise: float = 1.5, rate: float = 1.0, steps: int = 3) -> PrivacyPlan:
    return PrivacyPlan(CLIP, noise, rate, steps, 1e-5)


def wide(kind: str) -> Trainable:
    return PursuitModel(random_dictionary(400, 50, 1), 4) if kind == "pursuit" else make(kind)


@pytest.mark.parametrize("kind", KINDS)
def test_d2_noise_has_the_promised_size_with_and_without_patients(kind: str) -> None:
    model, settings = wide(kind), plan()
    width = model.dictionary.shape[1]
    patients = list(torch.randn(5, MANY, width))
    known = clipped_sum(model, patients, CLIP)
    for given in ([], patients):
        steps = [PrivateGradient(settings, 10, MANY).step(model, given) for _ in range(20)]
        for name, shape in known.items():
            drawn = [10 * step[name].double() for step in steps]
            drawn = [value.T if name == "W_enc" else value for value in drawn]
            noise = torch.stack([value - (shape if given else 0) for value in drawn]).flatten()
            assert (torch.stack(drawn) != 0).all()  # rows that no token fired are noised like all others
            assert kstest(noise.numpy() / (1.5 * CLIP), norm.cdf).pvalue > 1e-6


def test_d2_no_seed_makes_noise_come_again() -> None:
    def draw() -> Tensor:
        np.random.seed(1)
        torch.manual_seed(1)
        return flat(PrivateGradient(plan(), 10, FEW).step(make("pursuit"), []))

    first, second = draw(), draw()
    assert (first != second).all()


def test_d3_the_divisor_is_a_public_constant() -> None:
    model = make("topk")
    for present in (1, 3, 8):
        patients = list(records(present, FEW))
        private = PrivateGradient(plan(noise=1e-6), 1000, FEW)
        assert private.divisor == 1000
        found = private.step(model, patients)
        wanted = clipped_sum(model, patients, CLIP)["W_dec"] / 1000
        assert near(found["W_dec"].double(), wanted, 1e-4)
    assert PrivateGradient(plan(rate=0.25), 1000, FEW).divisor == 250


def test_d4_every_patient_is_sampled_on_its_own() -> None:
    rounds, patients, rate = 1000, 200, 0.15
    stream = SecureBytes()
    chosen = np.zeros((rounds, patients))
    for one in range(rounds):
        chosen[one, poisson_sample(patients, rate, stream)] = 1
    spread = math.sqrt(rate * (1 - rate) / rounds)
    assert np.abs(chosen.mean(axis=0) - rate).max() < 6 * spread
    # The size of a batch varies as that of independent draws does: a fixed-size batch has no variance at all.
    expected = patients * rate * (1 - rate)
    assert abs(chosen.sum(axis=1).var() / expected - 1) < 6 * math.sqrt(2 / rounds)
    together = np.abs(np.corrcoef(chosen.T) - np.eye(patients)).max()
    assert together < 6.5 / math.sqrt(rounds)
    assert poisson_sample(5, 1.0, stream) == [0, 1, 2, 3, 4] and poisson_sample(0, 0.5, stream) == []


def test_d4_a_step_uses_the_sample_and_no_seed() -> None:
    model, patients = make("pursuit"), list(1e3 * records(64, FEW))
    norms = []
    for _ in range(2):
        torch.manual_seed(0)
        np.random.seed(0)
        found = PrivateGradient(plan(noise=1e-6, rate=0.5), 64, FEW).step(model, patients)
        norms.append(flat(found))
    assert not near(norms[0], norms[1], 1e-2)


@pytest.mark.parametrize("kind", KINDS)
def test_d5_tokens_of_a_patient_enter_its_own_gradient_only(kind: str) -> None:
    model, (first, second) = make(kind), 3 * records(2, MANY)
    idle = torch.arange(N) * 1000  # most latents count as dead, as AuxK would see them
    if isinstance(model, TopKModel):
        model.idle = idle.clone()
    alone = flat(clipped_sum(model, [first], CLIP)), flat(clipped_sum(model, [second], CLIP))
    together = flat(clipped_sum(model, [second, first], CLIP))
    assert near(together, alone[0] + alone[1], 1e-13)
    assert torch.equal(flat(clipped_sum(model, [first], CLIP)), alone[0])
    if isinstance(model, TopKModel):
        assert torch.equal(model.idle, idle)
        fresh = make(kind)
        assert torch.equal(flat(clipped_sum(fresh, [first], CLIP)), alone[0])


def test_d6_there_are_no_more_steps_than_the_plan_counts() -> None:
    private = PrivateGradient(plan(steps=2), 10, FEW)
    for _ in range(2):
        private.step(make("pursuit"), list(records(2, FEW)))
    with pytest.raises(StudyError, match="steps=2"):
        private.step(make("pursuit"), [])


def test_d7_nothing_that_sends_knows_private_gradients() -> None:
    sources = [
        path
        for folder in ("client", "server", "deploy", "cytosae_core")
        for path in (ROOT / folder).rglob("*.py")
    ]
    knows = [
        path.name
        for path in sources
        if re.search(r"privacy(\.| import )gradients|\.gradients import", path.read_text())
    ]
    assert len(sources) > 50 and knows == []


@pytest.mark.parametrize(
    "bad", [torch.zeros(0, D), torch.zeros(3, D + 1), torch.zeros(D), torch.zeros(3, D).double()]
)
def test_tokens_that_do_not_fit_are_refused_sampled_or_not(bad: Tensor) -> None:
    private = PrivateGradient(plan(rate=1e-9), 10, FEW)
    with pytest.raises(StudyError, match=f"d={D}"):
        private.step(make("relu"), [records(1, 3)[0], bad])
    assert private.taken == 0
    with pytest.raises(StudyError, match="patients >= 1"):
        PrivateGradient(plan(), 0, FEW)


def test_a_patient_s_tokens_are_drawn_evenly() -> None:
    tokens = torch.arange(10.0)[:, None]
    few, many = draw_tokens(tokens, 7, SecureBytes()), draw_tokens(tokens, 25, SecureBytes())
    assert few.shape == (7, 1) and len(few.unique()) == 7
    assert set(many.flatten().unique(return_counts=True)[1].tolist()) == {2, 3}


@pytest.mark.parametrize("kind", KINDS)
def test_descent_with_little_noise_learns(kind: str) -> None:
    truth = random_dictionary(10, D, 4)
    choice = torch.randint(10, (30, 20, 2), generator=torch.Generator().manual_seed(1))
    patients = list(truth[choice].sum(dim=2))
    model = make(kind)

    def unexplained() -> float:
        tokens = torch.cat(patients)
        with torch.no_grad():
            return float((model.reconstruct(model.codes(tokens)) - tokens).pow(2).mean())

    before, private = unexplained(), PrivateGradient(PrivacyPlan(1.0, 1e-3, 0.5, 25, 1e-5), 30, 20)
    for _ in range(25):
        model = descend(model, private.step(model, patients), 1.0)
    assert unexplained() < 0.7 * before
    assert torch.allclose(model.dictionary.norm(dim=1), torch.ones(N), atol=1e-5)


class _Bias(nn.Module):
    """x + sign value, in a module of its own so that Opacus can hook it."""

    def __init__(self, value: Tensor, sign: float) -> None:
        super().__init__()
        self.value, self.sign = nn.Parameter(value.clone()), sign

    def forward(self, x: Tensor) -> Tensor:
        return x + self.sign * self.value


class _Untied(nn.Module):
    """relu or topk in layers; b_dec is two biases here, whose gradients add up to its own."""

    def __init__(self, model: ReluModel | TopKModel) -> None:
        super().__init__()
        d, n = model.W_enc.shape
        self.k = model.k if isinstance(model, TopKModel) else n
        self.before, self.encoder, self.decoder = (
            _Bias(model.b_dec.data, -1.0),
            nn.Linear(d, n),
            nn.Linear(n, d),
        )
        for layer, weight, bias in (
            (self.encoder, model.W_enc.T, model.b_enc),
            (self.decoder, model.W_dec.T, model.b_dec),
        ):
            layer.weight.data, layer.bias.data = weight.data.contiguous().clone(), bias.data.clone()

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        codes = torch.relu(self.encoder(self.before(x)))
        top = codes.topk(self.k, dim=-1)
        codes = torch.zeros_like(codes).scatter(-1, top.indices, top.values)
        return self.decoder(codes), codes


def opacus_samples(module: nn.Module, patients: Tensor, l1: float) -> dict[str, Tensor]:
    """Per-patient gradients [P, ...] by Opacus' hooks, mean loss over each patient's tokens."""
    from opacus.grad_sample import GradSampleModule, register_grad_sampler

    def of_bias(layer: _Bias, _: list[Tensor], back: Tensor) -> dict[nn.Parameter, Tensor]:
        return {layer.value: layer.sign * back.sum(dim=1)}

    register_grad_sampler(_Bias)(of_bias)
    hooked = GradSampleModule(module)
    out, codes = hooked(
        patients.clone().requires_grad_()
    )  # else torch warns of hooks without input gradients
    error = (out - patients).pow(2).mean(dim=(1, 2)) + l1 * codes.sum(dim=2).mean(dim=1)
    error.mean().backward()
    return {name.removeprefix("_module."): value.grad_sample for name, value in hooked.named_parameters()}


@pytest.mark.parametrize("tokens", [FEW, MANY])
@pytest.mark.parametrize("kind", ["topk", "relu"])
def test_untied_gradients_and_clipped_sums_equal_those_of_opacus(kind: str, tokens: int) -> None:
    model, patients = make(kind), records(6, tokens)
    found = opacus_samples(_Untied(model), patients, getattr(model, "l1", 0.0))
    theirs = {
        "W_enc": found["encoder.weight"],
        "b_enc": found["encoder.bias"],
        "W_dec": found["decoder.weight"].transpose(1, 2),
        "b_dec": found["decoder.bias"] + found["before.value"],
    }
    each = torch.stack([flat({name: value[p] for name, value in theirs.items()}) for p in range(6)])
    ours = torch.stack([flat(clipped_sum(model, [patient], UNCLIPPED)) for patient in patients])
    assert all(near(one, other) for one, other in zip(ours, each, strict=True))
    clip = float(each.norm(dim=1).median())  # half of the patients are clipped
    wanted = (each * (clip / each.norm(dim=1)).clamp(max=1.0)[:, None]).sum(dim=0)
    assert near(flat(clipped_sum(model, patients, clip)), wanted)


class _Tied(nn.Module):
    """The decoder is the encoder's weight transposed, used as a function: Opacus' hooks see one of its two uses."""

    def __init__(self, rows: Tensor) -> None:
        super().__init__()
        self.encoder = nn.Linear(rows.shape[1], rows.shape[0], bias=False)
        self.encoder.weight.data = rows.clone()

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        codes = torch.relu(self.encoder(x))
        return functional.linear(codes, self.encoder.weight.T), codes


def test_opacus_is_silently_wrong_on_a_tied_decoder_and_untied_gradients_are_right() -> None:
    rows, patients = random_dictionary(N, D, 0), records(8, MANY)

    def loss(weight: Tensor, tokens: Tensor) -> Tensor:
        return (torch.relu(tokens @ weight.T) @ weight - tokens).pow(2).mean()

    true = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0))(rows, patients)
    theirs = opacus_samples(_Tied(rows), patients, 0.0)["encoder.weight"]
    ratio = true.flatten(1).norm(dim=1) / theirs.flatten(1).norm(dim=1)
    assert (
        float(ratio.min()) > 1.5
    )  # clipped by a norm that is too small: a patient weighs over 1.5 clip norms
    # Ours keeps the two uses apart. Their gradients at equal weights must add up to the true one of the tied weight.
    model = ReluModel(D, N, l1=0.0, start={
        "W_enc": rows.T.clone(), "b_enc": torch.zeros(N), "W_dec": rows.clone(), "b_dec": torch.zeros(D)
    })  # fmt: skip
    for patient, wanted in zip(patients, true, strict=True):
        found = clipped_sum(model, [patient], UNCLIPPED)
        assert near(found["W_enc"] + found["W_dec"], wanted.double())
