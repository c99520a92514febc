"""How long an auditor waits for the report's numbers in plain Python: a bundle of made-up statistics, verified.

python -m benchmarks.recompute --sites 5 --concepts 49152 --json
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path

from cytosae_core.audit.recompute import audit_bundle
from tests.made_bundles import MadeStudy

from .report import peak_mb


def main() -> int:
    """Print sizes, seconds and peak memory of one verification."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sites", type=int, default=10)
    parser.add_argument("--concepts", type=int, default=6144)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    sites = [f"site-{index:03d}" for index in range(options.sites)]
    with tempfile.TemporaryDirectory() as home:
        files = MadeStudy(Path(home), sites, n=options.concepts, largest=10**9).build()
    before, started = peak_mb(), time.perf_counter()
    verdict = audit_bundle(files, pinned=json.loads(files["keys.json"]))
    took = time.perf_counter() - started
    if verdict.exit_code:
        raise SystemExit(f"Expected a bundle that verifies, got {verdict.to_dict()['first_broken']}.")
    compared = sum(int(check.text.split()[0]) for check in verdict.checks if "come out again" in check.text)
    result = {
        "sites": options.sites,
        "concepts": options.concepts,
        "bundle_mb": round(sum(map(len, files.values())) / 1e6, 1),
        "values": compared,
        "seconds": round(took, 1),
        "peak_rss_mb": round(peak_mb()),
        "start_rss_mb": round(before),
    }
    print(json.dumps(result) if options.json else result)
    return 0


if __name__ == "__main__":
    sys.exit(main())
