"""What an attacker gets from what leaves a site, by egress profile, on real cells: membership and reconstruction.

    python -m benchmarks.private_attacks SITES_FOLDER STORES_FOLDER --json

Everything attacked has passed the code that a site runs: row mask, self-attack, disclosure control, noise. An image
is the patient throughout: the source names no patients. Public tokens, dictionary and clip norms come from another
source. Attackers:

    population   holds all tokens of the candidate, and other images of the same site that are not in the study
    all others   knows every other patient exactly, and everything else but the noise

Membership: AUC and true positives at 1 % false ones over candidates of all trials, half of them members. The best of
several scores is told, chosen by its AUC: too high rather than too low. Reconstruction: share of the tokens used of
which a vector read from the release has |cos| > .95, and the same for as many tokens of unused images (chance).
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .attack_membership import membership
from .attack_reading import reconstruction
from .attack_world import world


def main() -> int:
    """Print one JSON line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("sites", type=Path)
    parser.add_argument("stores", type=Path)
    parser.add_argument("--trials", type=int, default=10)
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    made, out, started = world(given.sites, given.stores), {}, time.process_time()
    parts: dict[str, Callable[[], dict[str, Any]]] = {
        "reconstruction": lambda: reconstruction(made), "membership": lambda: membership(made, given.trials),
    }  # fmt: skip
    for name, work in parts.items():
        out[name] = work()
        print(json.dumps({name: out[name]}), file=sys.stderr, flush=True)
    print(json.dumps({**out, "cpu_seconds": round(time.process_time() - started)}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
