"""The trap suite (audit A5 to A7): with the gate, traps are refused; without it, the row mask and the site's attack
on its own bytes still let nothing readable out. Honest dictionaries pass both. Both rates on real cells with more
sites, widths and seeds: `python -m benchmarks.gate`, docs/decisions/007.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.functional import normalize

import benchmarks.gate as bench
from benchmarks.gate import (
    CELL,
    SiteTokens,
    local_round,
    outgoing,
    run,
    scaled,
    start,
    strong_reader,
    suspected,
)
from cytosae_core.cohort import read_cohort
from cytosae_core.encoder import build_store, load_encoder
from cytosae_core.sae.models import TopKModel
from tests.traps import TRAPS, made_tokens

# Only the recomputed start or aggregate (`check_same`) tells these from an honest first dictionary.
EVADE_FIRST = {
    "random rows",
    "probes, unit",
    "k-means of suspects",
    "spikes",
    "dead half and probes",
    "jitter .94, half",
    "jitter .80, half",
    "blind in 2 % of the width",
    "blind in 25 % of the width",
    "blind to one cell",
    "one step",
    "one step, blind in 25 % of the width",
}
# `one step` is an honest dictionary under another, signed protocol; `blind to one cell` moves rows by no more than
# honest rounds do. Only the recomputed aggregate tells them; nothing readable leaves.
EVADE_LATER = {"one step", "blind to one cell"}


def study(sites: dict[str, SiteTokens], public: SiteTokens, n: int) -> list[dict[str, Any]]:
    return list(run(sites, public, n, "public-kmeans", 0, targets=(next(iter(sites)),)))


@pytest.fixture(scope="module")
def rows() -> list[dict[str, Any]]:
    """Every honest dictionary at two sites, every trap at one, as first dictionary and in round 4; in memory."""
    patch = pytest.MonkeyPatch()
    patch.setattr(bench, "LAST", 4)
    sites = {name: SiteTokens(made_tokens(48, seed)) for name, seed in (("a", 1), ("b", 2))}
    try:
        return study(sites, SiteTokens(made_tokens(48, 3)), 256)
    finally:
        patch.undo()


def test_honest_dictionaries_pass_gate_and_egress(rows: list[dict[str, Any]]) -> None:
    honest = [row for row in rows if row["kind"] == "honest"]
    assert len(honest) == 8
    assert [row for row in honest if row["gate"] or row["egress"] or row["left_readable"]] == []


def test_traps_after_honest_rounds_are_refused_by_the_gate(rows: list[dict[str, Any]]) -> None:
    passed = {
        row["kind"] for row in rows if row["round"] == 4 and row["kind"] != "honest" and not row["gate"]
    }
    assert passed <= EVADE_LATER


def test_traps_as_first_dictionary_are_refused_but_for_the_known_ones(rows: list[dict[str, Any]]) -> None:
    passed = {
        row["kind"] for row in rows if row["round"] == 1 and row["kind"] != "honest" and not row["gate"]
    }
    assert passed <= EVADE_FIRST


@pytest.mark.parametrize("kind", TRAPS)
def test_with_the_gate_off_nothing_readable_leaves(rows: list[dict[str, Any]], kind: str) -> None:
    """Blocked, or an independent reader with the very tokens in hand reads no cell from what leaves."""
    for row in (row for row in rows if row["kind"] == kind):
        assert row["egress"] or not row["left_readable"]
        assert row["egress"] or row["strong"][0] < 0.95


def test_the_traps_bite_without_any_defence(rows: list[dict[str, Any]]) -> None:
    """Positive control: what plain changes give back, no mask and no gate."""
    cells = {kind: sum(row["bare"] for row in rows if row["kind"] == kind) for kind in TRAPS}
    assert cells["jitter .97"] > 10 and cells["near-zero rows"] > 50
    assert sum(row["bare"] for row in rows if row["kind"] == "honest") == 0


def test_the_independent_reader_finds_a_planted_cell(rows: list[dict[str, Any]]) -> None:
    site = SiteTokens(made_tokens(60, 1))
    base = start(SiteTokens(made_tokens(60, 3)), {"a": site}, 256, "public-kmeans", 0)
    found = local_round(site, base, 1, 15, 0)
    delta = outgoing(found, bench.MIN_UNITS)
    delta[5] = (0.1 * normalize(found.used[7], dim=0)).half()
    own, seen = strong_reader(found, delta)
    assert own > 0.99 > CELL > seen


@pytest.fixture(scope="module")
def real(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, SiteTokens], SiteTokens]:
    """Real cells through the third block: 48 images a site, two sites and the public corpus."""
    encoder = load_encoder("dinov2-s-demo", layer=3, steps=("reinhard", "cell-mask"))
    found = {}
    for name in (bench.BARCELONA, bench.BCCD, bench.CHULA_RED):
        cohort = read_cohort(shared / "data" / "sites" / name, name=name, max_images=48)
        store = build_store(cohort, encoder, tmp_path_factory.mktemp("gate") / name)
        found[name] = SiteTokens(store.tokens(0, store.n_images))
    return found, found.pop(bench.BARCELONA)


@pytest.mark.shared
def test_real_cells_honest_pass_and_traps_are_stopped(
    real: tuple[dict[str, SiteTokens], SiteTokens], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bench, "LAST", 4)
    monkeypatch.setattr(bench, "TRAP_ROUNDS", (4,))
    rows = study(*real, 256)
    honest = [row for row in rows if row["kind"] == "honest"]
    assert [row for row in honest if row["gate"] or row["egress"]] == []
    traps = [row for row in rows if row["kind"] != "honest"]
    assert {row["kind"] for row in traps if not row["gate"]} <= EVADE_LATER
    assert not any(row["left_readable"] for row in traps)


@pytest.mark.shared
def test_real_cells_signs_read_an_honest_encoder_and_no_dictionary(
    real: tuple[dict[str, SiteTokens], SiteTokens],
) -> None:
    """Positive control of the sign reader: > 90 % of the rows that one image moved, where plain cosine finds none."""
    sites, public = real
    found = encoder_leak(sites[bench.BCCD], start(public, sites, 256, "public-kmeans", 0), 2048)
    assert found["rows of one image"] > 50
    assert found["by signs"] > 0.9 * found["rows of one image"]
    assert found["plainly"] < 0.02 * found["rows of one image"]
    assert found["decoder"] == found["released dictionary"] == 0


def encoder_leak(site: SiteTokens, base: bench.Base, width: int) -> dict[str, int]:
    """20 Adam steps of an untied TopK model and of a dictionary on the same 20 x 128 tokens: rows read back."""
    found = local_round(site, base, 1, 15, 0)
    model = TopKModel(base.dictionary.shape[1], width, k=base.k)
    before = {name: value.detach().clone() for name, value in model.state_dict().items()}
    optimiser = torch.optim.Adam(model.parameters(), lr=1e-3)
    images = torch.zeros(len(site.train), width, dtype=torch.bool)
    for tokens, units in zip(found.used.split(base.batch), found.units.split(base.batch), strict=True):
        fired = (model.codes(tokens).detach() > 0).float()
        images |= torch.zeros(images.shape).index_add_(0, units, fired) > 0
        optimiser.zero_grad()
        model.loss(tokens).backward()
        optimiser.step()
        model.after_step()
    single = (images.sum(dim=0) == 1).nonzero().squeeze(1)
    encoder = (model.W_enc.detach() - before["W_enc"]).T[single]
    decoder = (model.W_dec.detach() - before["W_dec"])[single]

    def count(rows: torch.Tensor, tokens: torch.Tensor) -> int:
        cosine = normalize(rows, dim=1) @ normalize(tokens, dim=1).T
        return int((cosine.abs().amax(dim=1) > 0.95).sum())

    delta = outgoing(found, bench.MIN_UNITS).float()
    return {
        "rows of one image": len(single),
        "by signs": count(encoder.sign(), found.used.sign()),
        "plainly": count(encoder, found.used),
        "decoder": count(decoder.sign(), found.used.sign()) + count(decoder, found.used),
        "released dictionary": count(delta.sign(), found.used.sign()) + count(delta, found.used),
    }


def test_scaling_is_the_sites(rows: list[dict[str, Any]]) -> None:
    """The harness hands traps more than a coordinator has: tokens of the very site, one whole image first."""
    site = SiteTokens(made_tokens(60, 1))
    base = start(SiteTokens(made_tokens(60, 3)), {"a": site}, 64, "public-kmeans", 0)
    one = scaled(base, torch.from_numpy(site.tokens[site.train[0]]))
    assert torch.equal(suspected(site, base, 0)[:257], one)
