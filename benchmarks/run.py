"""`make bench`: every benchmark in a process of its own; one line each, kept in benchmarks/results.jsonl."""

from __future__ import annotations

import json
import platform
import subprocess
import sys
import time
from pathlib import Path

RUNS = {
    "audit, 1,000 entries": ("benchmarks.audit",),
    "door and logs": ("benchmarks.door",),
    "coordinator, 5 sites": ("benchmarks.coordinator", "--sites", "5"),
    "coordinator, 100 sites": ("benchmarks.coordinator", "--sites", "100"),
    "coordinator, 10 and 400 sites": ("benchmarks.many_sites",),
    "embedding and training": ("benchmarks.steps",),
    "encoder": ("benchmarks.encoder",),
    "extraction": ("benchmarks.extract",),
    "report, 10 sites": ("benchmarks.report", "--sites", "10", "--concepts", "6144"),
    "report, 100 sites": ("benchmarks.report", "--sites", "100", "--concepts", "49152"),
    "planted concepts, 20 studies": ("benchmarks.planted",),
}


def main() -> int:
    """Run all; seconds are recorded, never asserted."""
    lines = []
    for name, command in RUNS.items():
        done = subprocess.run(
            [sys.executable, "-m", *command, "--json"], capture_output=True, text=True, check=True
        )
        result = json.loads(done.stdout.strip().splitlines()[-1])
        lines.append({"name": name, "at": int(time.time()), "cpu": platform.machine(), **result})
        print(f"{name}: {json.dumps(result)}")
    with (Path(__file__).parent / "results.jsonl").open("a") as stream:
        stream.writelines(json.dumps(line) + "\n" for line in lines)
    return 0


if __name__ == "__main__":
    sys.exit(main())
