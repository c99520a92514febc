"""How long a hospital waits for the machine between its three commands: join, check, serve until it is online.

    python -m benchmarks.onboarding [--patients 200] --json

A coordinator and two sites on loopback, with TLS, Caddy and Flower, on phantom cells; the second site joins first, so
that the study only waits for the one that is timed. What people do meanwhile (type three commands, read a fingerprint
to each other by phone) is not in these seconds.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cytosae_core.phantom import DEMO_SITES, generate_site
from tests.flower_processes import free_ports
from tests.hospitals import CYTOSAE, cytosae, make_study, party_processes, until

SITES = DEMO_SITES[:2]


def measure(folder: Path, patients: int) -> dict[str, float]:
    """Seconds of each command of the last site, and until the coordinator sees it online."""
    desk, study = folder / "desk", folder / "desk" / "out"
    make_study(study, folder / "data", [site.name for site in SITES], rounds=2, deadline_s=120.0)
    endpoint = f"127.0.0.1:{free_ports(1)[0]}"
    for site in SITES:
        cytosae(desk, "study", "invite", site.name, "out", "--endpoint", endpoint)
        generate_site(folder / site.name / "cells", site, patients=patients, cells_per_patient=1, seed=1)
    seconds: dict[str, float] = {}
    with party_processes(folder) as processes:
        processes.start(
            "coordinator", [CYTOSAE, "study", "start", str(study), "--listen", endpoint, "--wait", "600"]
        )
        until(lambda: "The study is open" in processes.log("coordinator"), 120, "an open study", processes)
        for site in reversed(SITES):
            place = folder / site.name
            invite = str(desk / f"{site.name}.invite.json")
            joined, seconds["join"] = timed(lambda p=place, i=invite: cytosae(p, "site", "join", i, "--yes"))
            cytosae(desk, "study", "confirm", site.name, "out", "--fingerprint", joined["site_fingerprint"])
            _, seconds["check"] = timed(lambda p=place: cytosae(p, "site", "check", "cells"))
            begun = time.monotonic()
            processes.start(f"serve {site.name}", [CYTOSAE, "site", "serve", "--home", str(joined["home"])])
            until(lambda name=site.name: name in online(study), 300, "the site online", processes)
            seconds["serve_until_online"] = time.monotonic() - begun
    return {name: round(value, 1) for name, value in seconds.items()}


def timed(work: Callable[[], Any]) -> tuple[Any, float]:
    """What `work` gives, and its seconds."""
    begun = time.monotonic()
    return work(), time.monotonic() - begun


def online(study: Path) -> list[str]:
    """Sites that the coordinator sees."""
    path = study / "net" / "state.json"
    return list(json.loads(path.read_text()).get("online", [])) if path.exists() else []


def main() -> int:
    """Print one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--patients", type=int, default=200)
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        found = measure(Path(name), given.patients)
    print(json.dumps({"commands": 3, "patients": given.patients, **found}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
