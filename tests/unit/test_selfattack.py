"""The site's attack on its own outgoing bytes: every reader finds what was planted for it, honest updates pass."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

from benchmarks.gate import MIN_UNITS, Round, SiteTokens, attack_of, federated, local_round, outgoing, start
from cytosae_core.errors import EgressError
from cytosae_core.privacy.masking import mask_update
from cytosae_core.privacy.selfattack import (
    Attack,
    Attacker,
    AttackLimits,
    attack,
    require_unreadable,
)
from cytosae_core.sae.models import TopKModel
from cytosae_core.sae.pursuit import random_dictionary, unit_rows
from tests.traps import Base, made_tokens

N, D, M = 96, 256, 600


def draw(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def parts() -> dict[str, Tensor]:
    """Tokens of 30 units, background of 10, a base and a change that has nothing to do with any of them."""
    return {
        "delta": (0.05 * draw(N, D, seed=0)).half(),
        "base": random_dictionary(N, D, 1),
        "tokens": draw(M, D, seed=2),
        "units": torch.arange(M) % 30,
        "background": draw(400, D, seed=3),
        "background_units": torch.arange(400) % 10,
    }


def read(parts: dict[str, Tensor], **changes: Tensor) -> Attack:
    return attack(**{**parts, **changes})


def readers(found: Attack) -> set[str]:
    return {reading.reader for reading in found.readings if reading.recoverable}


def test_a_change_that_knows_no_token_passes(parts: dict[str, Tensor]) -> None:
    found = read(parts)
    require_unreadable(found)
    assert (found.rows, found.tokens, found.background) == (N, M, 400)
    assert not found.readable.any()
    assert abs(found.membership_auc - 0.5) < 0.06


def _plant(parts: dict[str, Tensor], row: int, value: Tensor) -> Tensor:
    delta = parts["delta"].clone()
    delta[row] = value.half()
    return delta


def direction(parts: dict[str, Tensor]) -> Tensor:
    return _plant(parts, 4, -0.01 * parts["tokens"][9])


def signs(parts: dict[str, Tensor]) -> Tensor:
    token = parts["tokens"][9]
    return _plant(parts, 4, 0.01 * token.sign() * draw(D, seed=8).exp())


def ratio(parts: dict[str, Tensor]) -> Tensor:
    """The base row explains most of the token; the change is the rest of it, plus noise."""
    rest = normalize(parts["tokens"][9] - 0.0, dim=0)
    row = parts["base"][4]
    across = rest - (rest @ row) * row
    return _plant(parts, 4, 0.1 * across / across.norm())


def adjacent(parts: dict[str, Tensor]) -> Tensor:
    """Robbing the Fed: two rows share everything but one token."""
    shared = draw(D, seed=9)
    delta = _plant(parts, 4, 0.05 * shared)
    delta[5] = (0.05 * shared + 0.02 * parts["tokens"][9]).half()
    return delta


def least_squares(parts: dict[str, Tensor]) -> Tensor:
    """A token spread over six rows with large unrelated parts that cancel."""
    noise = draw(3, D, seed=10)
    piece = parts["tokens"][9] / 6
    delta = parts["delta"].clone()
    for index in range(3):
        delta[10 + 2 * index] = (0.02 * (piece + 0.7 * noise[index])).half()
        delta[11 + 2 * index] = (0.02 * (piece - 0.7 * noise[index])).half()
    return delta


def image_means(parts: dict[str, Tensor]) -> Tensor:
    return _plant(parts, 4, 0.3 * parts["tokens"][parts["units"] == 7].mean(dim=0))


@pytest.mark.parametrize(
    ("plant", "reader"),
    [
        (direction, "direction"),
        (signs, "signs"),
        (ratio, "ratio"),
        (adjacent, "adjacent"),
        (least_squares, "least squares"),
        (image_means, "image means"),
    ],
)
def test_every_reader_finds_what_was_planted_for_it(
    parts: dict[str, Tensor], plant: Callable[[dict[str, Tensor]], Tensor], reader: str
) -> None:
    found = read(parts, delta=plant(parts))
    assert reader in readers(found)
    with pytest.raises(EgressError, match=reader) as caught:
        require_unreadable(found)
    assert (caught.value.code, caught.value.reason) == ("egress", "SELF_ATTACK")
    assert "0." not in str(caught.value)  # no values in messages


def test_rows_that_are_neighbours_in_the_base_are_subtracted_too(parts: dict[str, Tensor]) -> None:
    """Far apart in the file, close in the dictionary: `sorted` finds them, `adjacent` does not."""
    base = parts["base"].clone()
    axis = normalize(draw(D, seed=11), dim=0)
    base += (
        3
        * torch.linspace(-1, 1, N)[torch.randperm(N, generator=torch.Generator().manual_seed(0))][:, None]
        * axis
    )
    order = (unit_rows(base) @ axis).argsort()
    first, second = int(order[40]), int(order[41])
    shared = draw(D, seed=9)
    delta = _plant(parts, first, 0.05 * shared)
    delta[second] = (0.05 * shared + 0.02 * parts["tokens"][9]).half()
    found = readers(read(parts, delta=delta, base=base))
    assert "sorted" in found and (abs(first - second) == 1 or "adjacent" not in found)


def test_readings_equal_a_plain_computation(parts: dict[str, Tensor]) -> None:
    found = {reading.reader: reading for reading in read(parts).readings}
    delta, tokens = parts["delta"].double(), parts["tokens"].double()
    x, row = normalize(tokens, dim=1), normalize(parts["base"].double(), dim=1)
    y = normalize(delta, dim=1)
    assert found["direction"].own_max == pytest.approx(float((x @ y.T).abs().max()), abs=1e-5)
    pattern = normalize(tokens.sign(), dim=1) @ normalize(delta.sign(), dim=1).T
    assert found["signs"].own_max == pytest.approx(float(pattern.abs().max()), abs=1e-5)
    across = normalize(y - (y * row).sum(dim=1, keepdim=True) * row, dim=1)
    left = x @ across.T / (1 - (x @ row.T) ** 2).sqrt()
    assert found["ratio"].own_max == pytest.approx(float(left.abs().max()), abs=2e-3)
    apart = normalize(delta[1:] - delta[:-1], dim=1)
    assert found["adjacent"].own_max == pytest.approx(float((x @ apart.T).abs().max()), abs=1e-5)
    means = normalize(torch.stack([tokens[parts["units"] == unit].mean(dim=0) for unit in range(30)]), dim=1)
    assert found["image means"].own_max == pytest.approx(float((means @ y.T).abs().max()), abs=1e-5)


def test_what_every_cell_of_the_site_has_is_no_cell(parts: dict[str, Tensor]) -> None:
    """A stain shared by own and other images is read equally well from the background."""
    stain = 40 * normalize(draw(D, seed=12), dim=0)
    found = read(
        parts,
        delta=_plant(parts, 4, 0.01 * stain),
        tokens=parts["tokens"] + stain,
        background=parts["background"] + stain,
    )
    own = next(reading for reading in found.readings if reading.reader == "direction")
    assert own.own_max > max(0.9, own.threshold) and own.background_max > 0.9
    require_unreadable(found)


def test_membership_is_measured_and_does_not_block(parts: dict[str, Tensor]) -> None:
    tokens = parts["tokens"][:N]
    delta = (0.05 * (unit_rows(draw(N, D, seed=13)) + 0.45 * unit_rows(tokens))).half()
    found = read(parts, delta=delta, tokens=tokens, units=parts["units"][:N])
    assert found.membership_auc > 0.95
    require_unreadable(found)
    assert found.log()[-1]["id"] == "membership auc"


def test_rows_of_zeros_are_not_released_and_read_nothing(parts: dict[str, Tensor]) -> None:
    found = read(parts, delta=torch.zeros_like(parts["delta"]))
    assert (found.rows, found.readings, found.recoverable) == (0, (), False)
    single = torch.zeros_like(parts["delta"])
    single[3] = parts["delta"][3]
    assert read(parts, delta=single).rows == 1


def test_the_log_is_decimal_text_without_rows(parts: dict[str, Tensor]) -> None:
    log = read(parts).log()
    assert [line["id"] for line in log][:3] == ["read direction", "read ratio", "read signs"]
    assert all(set(line) == {"id", "value", "limit"} and float(line["value"]) <= 1 for line in log)


@pytest.mark.parametrize(
    "changes",
    [
        {"delta": torch.zeros(N, D - 1)},
        {"tokens": torch.zeros(3, D - 1)},
        {"units": torch.zeros(3, dtype=torch.int64)},
        {"background": torch.zeros(0, D), "background_units": torch.zeros(0, dtype=torch.int64)},
        {"delta": torch.full((N, D), float("nan"))},
    ],
)
def test_what_cannot_be_attacked_does_not_leave(parts: dict[str, Tensor], changes: dict[str, Tensor]) -> None:
    with pytest.raises(EgressError):
        read(parts, **changes)


def test_the_same_bytes_are_attacked_once_and_others_anew(parts: dict[str, Tensor]) -> None:
    rest = [parts[name] for name in ("base", "tokens", "units", "background", "background_units")]
    attacker = Attacker(*rest)
    first = attacker(parts["delta"])
    assert attacker(parts["delta"].clone()) is first
    assert "direction" in readers(attacker(direction(parts)))
    strict = Attacker(*rest, AttackLimits(cosine=0.05, margin=-1.0))
    assert strict(parts["delta"]).recoverable


def test_the_mask_withholds_single_readable_rows_and_refuses_many(parts: dict[str, Tensor]) -> None:
    rest = [parts[name] for name in ("base", "tokens", "units", "background", "background_units")]

    def masked(delta: Tensor, min_units: int = 11) -> Tensor:
        update = mask_update(
            parts["base"], parts["base"] + delta.float(), torch.full((N,), 20), torch.full((N,), 0.1),
            torch.ones(N, dtype=torch.bool), parts["tokens"], 10.0, min_units=min_units, attacker=Attacker(*rest),
        )  # fmt: skip
        return update.units > 0

    assert (~masked(direction(parts))).nonzero().tolist() == [[4]]
    many = (0.01 * parts["tokens"][:N]).half()
    with pytest.raises(EgressError, match="token back") as caught:
        masked(many)
    assert caught.value.reason == "SELF_ATTACK"
    assert not masked(many, min_units=1).any()  # published images: withheld, no alarm


@pytest.fixture(scope="module")
def rounds() -> list[Round]:
    """Three honest rounds of two sites, n = 256, d = 64, tokens in memory."""
    sites = {name: SiteTokens(made_tokens(60, seed)) for name, seed in (("a", 1), ("b", 2))}
    first = start(SiteTokens(made_tokens(60, 3)), sites, 256, "public-kmeans", 0)
    return [found for _, done, _ in federated(sites, first, 3, 0) for found in done.values()]


def test_honest_masked_updates_pass(rounds: list[Round]) -> None:
    for found in rounds:
        delta = outgoing(found, MIN_UNITS)
        result = attack_of(found, delta)
        require_unreadable(result)
        assert result.rows > 100


def test_positive_control_signs_read_an_honest_encoder_and_plain_cosine_does_not() -> None:
    """20 Adam steps of an untied TopK encoder: rows moved by one token give it back by signs (audit section 0)."""
    tokens = 3 * draw(300, D, seed=20)
    model = TopKModel(D, 512, k=2)
    before = {name: value.detach().clone() for name, value in model.state_dict().items()}
    fired = torch.zeros(300, 512, dtype=torch.bool)
    optimiser = torch.optim.Adam(model.parameters(), lr=1e-3)
    for _ in range(20):
        fired |= model.codes(tokens).detach() > 0
        optimiser.zero_grad()
        model.loss(tokens).backward()
        optimiser.step()
        model.after_step()
    encoder, decoder = (model.W_enc.detach() - before["W_enc"]).T, model.W_dec.detach() - before["W_dec"]
    single = (fired.sum(dim=0) == 1).nonzero().squeeze(1)
    assert len(single) > 50
    assert _share_above(encoder[single].sign(), tokens.sign()) > 0.9
    assert _share_above(encoder[single], tokens) < 0.02
    assert _share_above(decoder[single].sign(), tokens.sign()) == 0
    assert _share_above(decoder[single], tokens) == 0


def _share_above(rows: Tensor, tokens: Tensor, limit: float = 0.95) -> float:
    """Share of rows with |cos| > limit to any token."""
    cosine = normalize(rows, dim=1) @ normalize(tokens, dim=1).T
    return float((cosine.abs().amax(dim=1) > limit).float().mean())


def test_canary_no_token_is_copied_into_what_a_site_releases() -> None:
    """Audit G15: a secret embedding in the training tokens, hard to explain, is in no released row and no
    dictionary: sites neither start nor restart rows from their data."""
    tokens = made_tokens(60, 1)
    canary = 12 * unit_rows(draw(1, tokens.shape[2], seed=30))[0]
    sites = {"a": SiteTokens(tokens), "b": SiteTokens(made_tokens(60, 2))}
    sites["a"].tokens[sites["a"].train[5], :40] = canary.numpy()
    base = start(SiteTokens(made_tokens(60, 3)), sites, 256, "public-kmeans", 0)
    worst = 0.0
    for _, done, current in federated(sites, base, 4, 0):
        secret = (canary - torch.from_numpy(current.scale.mean)) / current.scale.scale
        found = done["a"]
        delta = outgoing(found, MIN_UNITS).float()
        released = delta[(delta != 0).any(dim=1)]
        for rows in (released, current.dictionary + delta, current.dictionary):
            worst = max(worst, float((unit_rows(rows) @ normalize(secret, dim=0)).abs().max()))
    assert worst < 0.7
    restarted = Base(current.dictionary.clone(), current.scale)
    restarted.dictionary[7] = normalize(secret, dim=0)  # what resampling a dead row from data would do
    again = local_round(sites["a"], restarted, 4, 15, 0).result.dictionary
    assert (again @ normalize(secret, dim=0)).max() > 0.7
