"""A whole study over real Flower: TLS, node keys, external superexec, three SuperNodes with relays and agents.

Small phantoms, real features; one SuperNode is killed on the way and the study ends with the other two.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from cytosae_client.session import Session
from cytosae_client.site import Site
from cytosae_core.canonical import sha256_hex
from cytosae_core.cohort import read_cohort
from cytosae_core.config import (
    DictionaryConfig,
    EncoderConfig,
    RoundsConfig,
    StatisticsConfig,
    StudyConfig,
    TrainingConfig,
)
from cytosae_core.encoder import build_store, load_encoder
from cytosae_core.keys import SigningKey
from cytosae_core.phantom import CLASSES, DEMO_SITES, generate_site
from cytosae_core.policy import named_policy
from cytosae_core.sae.init import public_centroids
from cytosae_core.tensors import pack_tensors, unpack_tensors
from cytosae_server.study import write_study_folder
from tests.federation import make_site
from tests.flower_bench import FlowerBench
from tests.integration.test_private_study import POLICY, private_study, start
from tests.integration.test_secure_study import SECURE, away

pytestmark = pytest.mark.flower
ROUNDS, ROWS = 3, 64


def make_sites(folder: Path) -> dict[str, Site]:
    """Three phantom hospitals of 12 patients with real features."""
    encoder = load_encoder("dinov2-s-demo", layer=3, steps=("reinhard", "cell-mask"))
    sites = {}
    for index, phantom in enumerate(DEMO_SITES[:3]):
        data = folder / phantom.name
        generate_site(data, phantom, patients=12, cells_per_patient=1, seed=index)
        cohort = read_cohort(data)
        store = build_store(cohort, encoder, folder / "stores" / phantom.name)
        home = folder / "homes" / phantom.name
        sites[phantom.name] = Site.of(cohort, store, named_policy("public-data"), home, simulation=True)
    return sites


def make_study(folder: Path, sites: dict[str, Site]) -> StudyConfig:
    """The coordinator's folder: protocol, start, pinned keys."""
    some = next(iter(sites.values())).store
    rng = np.random.default_rng(0)
    tokens = some.gather(rng.integers(some.n_images, size=2000), rng.integers(257, size=2000))
    start = {"centroids": public_centroids(tokens, ROWS, seed=0)}
    study = StudyConfig(
        name="flower-test",
        sites=tuple(sorted(sites)),
        simulation=True,
        min_units=1,
        encoder=EncoderConfig(layer=3, digest=some.encoder_digest),
        dictionary=DictionaryConfig(n=ROWS, k=8, digest=sha256_hex(pack_tensors(start))),
        training=TrainingConfig(rounds=ROUNDS, local_steps=5, batch_tokens=64),
        rounds=RoundsConfig(quorum=2, deadline_s=45.0),
        statistics=StatisticsConfig(classes=CLASSES, eval_tokens=512),
    )
    key = SigningKey.load_or_create(folder / "study.key")
    keys = {name: site.key.public_hex for name, site in sites.items()}
    write_study_folder(folder, study, start, keys, key.public_hex)
    return study


def test_a_study_over_flower_survives_a_killed_supernode(tmp_path: Path) -> None:
    sites = make_sites(tmp_path / "sites")
    folder = tmp_path / "study"
    study = make_study(folder, sites)
    public = (folder / "study-key.pub").read_text().strip()
    sessions = {name: Session(replace(site), study, public) for name, site in sites.items()}
    victim = study.sites[-1]
    (tmp_path / "bench").mkdir()
    with FlowerBench(
        tmp_path / "bench", {name: session.handle for name, session in sessions.items()}
    ) as bench:

        def kill_after_the_first_round() -> bool:
            if not (folder / "run" / "rounds" / "0001.json").exists():
                return False
            bench.kill_supernode(victim)
            return True

        status = bench.run_study(folder, timeout_s=800, during=kill_after_the_first_round)
        assert status == "finished:completed", bench.run_log()
    report = json.loads((folder / "report.json").read_text())
    assert len(report["rounds"]) == ROUNDS and (folder / "report.html").exists()
    assert report["sites"][victim]["status"].startswith("failed")
    survivors = [name for name in study.sites if name != victim]
    assert all(report["sites"][name]["status"] == "reported" for name in survivors)
    assert report["rounds"][0]["faults"] == {}
    for session in sessions.values():
        session.close()


def test_a_secure_sum_over_flower_survives_a_site_that_drops_out(tmp_path: Path) -> None:
    """Four sites with made tokens under the profile dp; one fails when it should mask its moments."""
    folder = tmp_path / "study"
    base = private_study(SECURE)
    names = tuple(f"site-{index}" for index in range(4))
    study = replace(base, sites=names, rounds=RoundsConfig(quorum=3, deadline_s=45.0, retries=0))
    sites = {
        name: make_site(name, tmp_path / "homes", POLICY, seed=index) for index, name in enumerate(names)
    }
    key = SigningKey.load_or_create(folder / "study.key")
    write_study_folder(
        folder, study, start(), {name: site.key.public_hex for name, site in sites.items()}, key.public_hex
    )
    sessions = {name: Session(site, study, key.public_hex) for name, site in sites.items()}
    handlers = {name: session.handle for name, session in sessions.items()}
    handlers[names[-1]] = away("sum_masked")(handlers[names[-1]])
    (tmp_path / "bench").mkdir()
    with FlowerBench(tmp_path / "bench", handlers) as bench:
        status = bench.run_study(folder, timeout_s=800)
        assert status == "finished:completed", bench.run_log()
    total = unpack_tensors((folder / "run" / "sums" / "second.safetensors").read_bytes())
    drawn = [
        unpack_tensors(next(sessions[name].state.glob("release-second-*.safetensors")).read_bytes())["total"]
        for name in names[:-1]
    ]
    assert int(total["sites"][0]) == 3 and (total["values"] == np.sum(drawn, axis=0)).all()
    report = json.loads((folder / "report.json").read_text())
    assert report["sites"][names[-1]]["status"].startswith("failed")
    assert report["egress"]["privacy"]["secure_aggregation"] and report["egress"]["privacy"]["epsilon"] == 8.0
    for session in sessions.values():
        session.close()
