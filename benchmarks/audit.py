"""How long an auditor waits: verify a bundle with a coordinator's log of about 1,000 entries.

python -m benchmarks.audit --json
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path

import numpy as np

from cytosae_core.audit.recompute import audit_bundle
from tests.bundles import COORDINATOR, Study

from .steps import seconds

SITES = tuple(f"site-{index}" for index in range(5))


def main() -> int:
    """Print leaves, bytes and seconds of one verification."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--leaves", type=int, default=1000, help="entries in the coordinator's log")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as home:
        filled = Study(
            Path(home), SITES, n=1024, most=10**6, extra=lambda study: _fill(study, options.leaves)
        )
        files = filled.build()
    verdict = audit_bundle(files, pinned=json.loads(files["keys.json"]))
    if verdict.exit_code:
        raise SystemExit(f"Expected a bundle that verifies, got {verdict.to_dict()['first_broken']}.")
    took = seconds(lambda: audit_bundle(files, pinned=json.loads(files["keys.json"])), repeats=3)
    leaves = sum(int(check.text.split()[0]) for check in verdict.checks if check.name.startswith("log of"))
    result = {"leaves": leaves, "bytes": sum(map(len, files.values())), "seconds": round(took, 3)}
    print(json.dumps(result) if options.json else result)
    return 0


def _fill(study: Study, leaves: int) -> None:
    """Repeat one step until the coordinator's log is long enough: a release, and a receipt per site."""
    number = 1
    while study.parties[COORDINATOR].log.size < leaves - len(SITES) - 2:
        quality = np.full(6, number, np.float32)
        study.step("survey", number, {site: {"quality": quality} for site in SITES})
        number += 1


if __name__ == "__main__":
    sys.exit(main())
