"""A study between hospitals on loopback, by its commands only: invite, join, confirm, check, start, serve, report.

Real TLS, real Caddy, real Flower; every party is processes of its own with a folder of its own. On the way one site's
SuperNode and the coordinator's SuperLink are killed: nobody is asked, and the study completes.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
from pathlib import Path

import pytest

from cytosae_core.phantom import DEMO_SITES, generate_site
from tests.flower_processes import free_ports
from tests.hospitals import CYTOSAE, PATIENTS, cytosae, make_study, party_processes, until

pytestmark = pytest.mark.flower
SITES, ROUNDS = DEMO_SITES[:2], 3


def test_from_an_invite_to_a_report(tmp_path: Path) -> None:
    desk, study = tmp_path / "desk", tmp_path / "desk" / "out"
    make_study(study, tmp_path / "data", [site.name for site in SITES], rounds=ROUNDS, deadline_s=120.0)
    endpoint = f"127.0.0.1:{free_ports(1)[0]}"
    for site in SITES:
        cytosae(desk, "study", "invite", site.name, "out", "--endpoint", endpoint)
    start = [CYTOSAE, "study", "start", str(study), "--listen", endpoint, "--wait", "300"]
    with party_processes(tmp_path) as processes:
        processes.start("coordinator", start)
        until(lambda: "The study is open" in processes.log("coordinator"), 300, "an open study", processes)
        again = subprocess.run(start, capture_output=True, text=True, timeout=60)
        assert again.returncode == 1 and "no other start" in again.stderr
        homes = {}
        for index, site in enumerate(SITES):
            place = tmp_path / site.name
            generate_site(place / "cells", site, patients=PATIENTS, cells_per_patient=1, seed=index)
            joined = cytosae(place, "site", "join", str(desk / f"{site.name}.invite.json"), "--yes")
            assert joined["enrolled"]
            homes[site.name] = Path(joined["home"])
            confirm = ["study", "confirm", site.name, "out", "--fingerprint"]
            assert "Somebody else" in cytosae(desk, *confirm, "no", code=1)["said"]
            cytosae(desk, *confirm, joined["site_fingerprint"])
            checked = cytosae(place, "site", "check", "cells")
            assert not checked["failed"] and checked["dry_round"]["stopped"] is None
            serve = [CYTOSAE, "site", "serve", "--home", str(homes[site.name])]
            processes.start(f"serve {site.name}", serve)
        until((study / "run" / "rounds" / "0001.json").exists, 600, "the first round", processes)
        state = json.loads((study / "net" / "state.json").read_text())
        os.kill(state["children"]["superlink"]["pid"], signal.SIGKILL)
        site_state = json.loads((homes[SITES[0].name] / "state.json").read_text())
        os.kill(site_state["children"]["supernode"]["pid"], signal.SIGKILL)
        until((study / "report.json").exists, 800, "a report", processes)
        until(lambda: "Report:" in processes.log("coordinator"), 120, "the end of start", processes)
        report = json.loads((study / "report.json").read_text())
        assert len(report["rounds"]) == ROUNDS
        assert all(report["sites"][site.name]["status"] == "reported" for site in SITES)
        for site in SITES:
            assert processes.end(f"serve {site.name}", signal.SIGTERM) == 0
            spent = cytosae(tmp_path / site.name, "site", "ledger")
            assert spent["spent"]["rounds"] == ROUNDS
    for words in (
        ("study", "bundle", "out", "--to", "bundle"),
        ("audit", "verify", "bundle", "--keys", "bundle/keys.json"),
    ):
        done = subprocess.run([CYTOSAE, *words], cwd=desk, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stdout + done.stderr
