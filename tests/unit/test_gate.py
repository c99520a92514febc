"""The base-model gate: honest dictionaries pass, every trap that a check is made for fails that check."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

from benchmarks.gate import PICKS, SiteTokens, federated, scaled, start, suspected
from cytosae_core.errors import EgressError
from cytosae_core.privacy.gate import (
    GateCheck,
    check_frozen,
    check_same,
    check_static,
    check_tokens,
    effective_rank,
    require,
    row_move_bound,
)
from cytosae_core.sae.models import PursuitModel, random_start
from cytosae_core.sae.pursuit import random_dictionary
from cytosae_core.sae.scale import TokenScale
from tests.traps import TRAPS, Base, made_tokens

N = 256


@pytest.fixture(scope="module")
def sites() -> dict[str, SiteTokens]:
    return {name: SiteTokens(made_tokens(40, seed)) for name, seed in (("a", 1), ("b", 2))}


@pytest.fixture(scope="module")
def bases(sites: dict[str, SiteTokens]) -> list[Base]:
    """The honest first dictionary and those of the next two rounds."""
    first = start(SiteTokens(made_tokens(40, 3)), sites, N, "public-kmeans", 0)
    return [base for _, _, base in federated(sites, first, 3, 0)]


def checks_of(
    site: SiteTokens, base: Base, last: Base | None = None, fvu: float | None = None
) -> list[GateCheck]:
    tokens, units = site.draw(site.test, 1024, 5)
    found = check_static(
        base.dictionary, previous=last.dictionary if last else None, max_row_move=1.0 if last else None
    )
    return found + check_tokens(
        PursuitModel(base.dictionary, base.k), base.scale, tokens, units,
        previous_fvu=fvu, previous_scale=last.scale if last else None,
    )  # fmt: skip


def failed(found: list[GateCheck]) -> set[str]:
    return {check.id for check in found if not check.ok}


def value(found: list[GateCheck], name: str) -> float:
    return next(check.value for check in found if check.id == name)


def test_honest_dictionaries_pass_first_and_later(sites: dict[str, SiteTokens], bases: list[Base]) -> None:
    for site in sites.values():
        last, fvu = None, None
        for base in bases:
            found = checks_of(site, base, last, fvu)
            require(found)
            last, fvu = base, value(found, "fvu")


FIRST = {
    "identical rows": "duplicates",
    "imprint, half identical": "duplicates",
    "imprint, staggered arc": "duplicates",
    "jitter .97": "fvu",
    "jitter .94": "residual-share",
    "near-zero rows": "unit-norm",
    "probes x 9": "unit-norm",
    "mean far away": "mean-shift",
    "scale / 100": "scale",
    "scale x 100": "scale",
    "ten useful rows": "busiest-row",
    "k = 1": "picks",
}
LATER = {
    "jitter .80, half": "row-move",
    "random rows": "row-move",
    "probes, unit": "row-move",
    "k-means of suspects": "row-move",
    "spikes": "row-move",
    "dead half and probes": "row-move",
    "blind in 25 % of the width": "fvu",
    "mean far away": "scale-same",
}


@pytest.mark.parametrize(("name", "check"), FIRST.items())
def test_a_trap_as_first_dictionary_fails_the_check_made_for_it(
    sites: dict[str, SiteTokens], bases: list[Base], name: str, check: str
) -> None:
    bad = TRAPS[name](bases[0], suspected(sites["a"], bases[0], 0), 0)
    found = checks_of(sites["a"], bad)
    assert check in failed(found)
    with pytest.raises(EgressError, match=check) as caught:
        require(found)
    assert (caught.value.code, caught.value.reason) == ("base", "MODEL_REJECT")


@pytest.mark.parametrize(("name", "check"), LATER.items())
def test_a_trap_after_honest_rounds_is_told_from_the_last_accepted(
    sites: dict[str, SiteTokens], bases: list[Base], name: str, check: str
) -> None:
    fvu = value(checks_of(sites["a"], bases[1]), "fvu")
    bad = TRAPS[name](bases[2], suspected(sites["a"], bases[2], 0), 0)
    assert check in failed(checks_of(sites["a"], bad, bases[1], fvu))


@pytest.mark.parametrize("name", ["jitter .80, half", "dead half and probes", "probes, unit"])
def test_what_passes_as_first_dictionary_is_not_the_start_that_the_protocol_names(
    sites: dict[str, SiteTokens], bases: list[Base], name: str
) -> None:
    bad = TRAPS[name](bases[0], suspected(sites["a"], bases[0], 0), 0)
    require(checks_of(sites["a"], bad))  # the known evasion: no statistic tells these from an honest start
    assert failed(check_same(bad.dictionary, bases[0].dictionary)) == {"same"}
    require(check_same(bases[0].dictionary.clone(), bases[0].dictionary))
    assert failed(check_same(bad.dictionary[:-1], bases[0].dictionary)) == {"same"}


def test_a_random_start_is_accepted_only_where_the_protocol_says_random(
    sites: dict[str, SiteTokens], bases: list[Base]
) -> None:
    site, base = sites["a"], bases[0]
    tokens, units = site.draw(site.test, 1024, 5)
    model = PursuitModel(random_dictionary(N, 64, 0), PICKS)
    require(check_tokens(model, base.scale, tokens, units, init="random"))
    ids = {check.id for check in check_tokens(model, base.scale, tokens, units)}
    assert {"residual-median", "residual-share", "rank-of-tokens-most"} <= ids


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_numbers_that_are_none_are_refused_before_anything_else(bad: float) -> None:
    rows = random_dictionary(8, 16, 0)
    rows[3, 2] = bad
    assert failed(check_static(rows)) == {"finite"}
    assert failed(check_frozen({"dictionary": rows})) == {"finite"}


def test_other_shape_than_the_last_is_refused() -> None:
    rows = random_dictionary(8, 16, 0)
    assert failed(check_static(rows[:7], previous=rows)) == {"shape"}
    assert failed(check_static(rows.reshape(-1), previous=None)) == {"shape"}


def test_clipped_updates_bound_every_row() -> None:
    rows = random_dictionary(64, 32, 0)
    far = torch.nn.functional.normalize(rows + 0.6 * torch.roll(rows, 1, 1), dim=1)
    assert "row-move" in failed(check_static(far, previous=rows, max_row_move=0.1))
    assert "row-move" not in failed(check_static(far, previous=rows, max_row_move=1.0))
    assert row_move_bound(1.0) == 2.0
    assert row_move_bound(0.5) == pytest.approx(2 * np.sin(np.arcsin(0.5) / 2))


def test_messages_name_checks_and_no_values() -> None:
    found = [GateCheck("fvu", 0.87654, 0.8, False), GateCheck("scale", 1.0, 1.5, True)]
    with pytest.raises(EgressError) as caught:
        require(found)
    assert "fvu" in str(caught.value) and "scale" not in str(caught.value)
    assert "876" not in str(caught.value)
    assert found[0].log() == {"id": "fvu", "value": "0.8765", "limit": "0.8"}
    require([])


def test_wide_dictionaries_are_sampled_in_bounded_memory() -> None:
    rows = random_dictionary(49_152, 32, 0)
    rows[:10_000] = rows[10_000:20_000]
    found = check_static(rows)
    assert value(found, "duplicates") == pytest.approx(20_000 / 49_152, abs=0.06)
    assert [c.value for c in check_static(rows)] == [c.value for c in found]


def test_effective_rank_of_known_matrices() -> None:
    assert effective_rank(torch.eye(16)) == pytest.approx(16)
    assert effective_rank(torch.ones(16, 4)) == pytest.approx(1, abs=1e-4)


def _untied() -> dict[str, torch.Tensor]:
    start_values = random_start(32, 128, 0)
    start_values["W_enc"] = start_values["W_enc"] * torch.linspace(0.2, 3, 128)
    start_values["b_enc"][5] = -40.0
    start_values["W_dec"][7] *= 5.0
    return start_values


def _with(name: str, change: Callable[[torch.Tensor], None]) -> dict[str, torch.Tensor]:
    tensors = _untied()
    change(tensors[name])
    return tensors


def test_frozen_models_uneven_as_published_ones_pass() -> None:
    require(check_frozen(_untied()))
    require(check_frozen({"dictionary": random_dictionary(64, 32, 0)}))


def test_frozen_models_with_values_that_no_training_gives_are_refused() -> None:
    assert "silent-rows" in failed(check_frozen(_with("W_dec", lambda t: t[:70].zero_())))
    assert failed(check_frozen(_with("b_enc", lambda t: t.fill_(1e6)))) == {"weight-size"}
    assert failed(check_frozen(_with("W_dec", lambda t: t[0].mul_(500)))) == {"decoder-rows"}


def test_scale_is_compared_with_the_sites_own(sites: dict[str, SiteTokens], bases: list[Base]) -> None:
    base = bases[0]
    wide = Base(base.dictionary, TokenScale(base.scale.mean, base.scale.scale * 2), base.k)
    assert failed(checks_of(sites["a"], wide)) == {"scale"}
    assert scaled(base, torch.from_numpy(base.scale.mean)[None]).abs().max() == 0
