"""What the gate, the door and the logs add to a site's round, and what sealing costs.

python -m benchmarks.door --json

The floor is the round's own work in the same run: local training and quality of the dictionary (n = 1,024, d = 384,
20 steps of 128 tokens, as in the demo). Limits: door and logs .05 of it; sealing 6 MB 100 ms. The statistical checks
(gate, self-attack) are recorded beside it: they cost more than that in process, see docs/measurements.md.
"""

from __future__ import annotations

import argparse
import functools
import json
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from cytosae_client import record, session, steps
from cytosae_client.base import LastBase
from cytosae_client.budget import SiteBudget
from cytosae_client.memory import RequestMemory
from cytosae_core import egress
from cytosae_core.config import DictionaryConfig, EncoderConfig, StatisticsConfig, TrainingConfig
from cytosae_core.sealed import REPLY_LABEL, ReplyKey, seal_box
from cytosae_server.desk import Ask
from tests import federation as small

D, N = 384, 1024
# part -> (owner, attribute) of what is timed; nothing is timed twice.
PARTS: dict[str, list[tuple[Any, str]]] = {
    "gate": [(steps, "check_static"), (steps, "check_tokens"), (LastBase, "keep"), (LastBase, "last")],
    "self-attack": [(steps.Attacker, "__call__")],
    "seen requests": [(RequestMemory, "accept")],
    "witness": [(record.SiteRecord, "witness")],
    "ledger": [(SiteBudget, "spend")],
    "log": [(record.SiteRecord, "egress"), (record.SiteRecord, "section"), (record.SiteRecord, "accepted")],
    "sign and seal": [(egress, "sign"), (egress, "seal_box")],
    "digests": [(session, "dictionary_digest"), (session, "unpack")],
}


class Clock:
    """Adds up seconds by part."""

    def __init__(self) -> None:
        self.spent = dict.fromkeys(PARTS, 0.0)

    def around(self, part: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """`function`, timed."""

        @functools.wraps(function)
        def timed(*args: Any, **kwargs: Any) -> Any:
            started = time.perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                self.spent[part] += time.perf_counter() - started

        return timed

    def start(self) -> None:
        """Wrap everything in `PARTS`."""
        for part, places in PARTS.items():
            for owner, name in places:
                setattr(owner, name, self.around(part, getattr(owner, name)))


def wide_federation(home: Path) -> small.Federation:
    """The in-memory federation at the demo's width, two sites, tokens of a few true directions."""
    small.D, small.TRUE = D, 200
    study = replace(
        small.study_config(2),
        encoder=EncoderConfig(name="fake", d=D, digest=small.ENCODER_DIGEST),
        dictionary=DictionaryConfig(n=N, k=16, init="random"),
        training=TrainingConfig(rounds=15, local_steps=20, batch_tokens=128),
        statistics=StatisticsConfig(classes=small.CLASSES, eval_tokens=2048),
    )
    return small.Federation(home, study=study)


def measure(rounds: int) -> dict[str, Any]:
    """Seconds by part, their sum over the rest of the round, and milliseconds to seal 6 MB."""
    with tempfile.TemporaryDirectory() as folder:
        federation = wide_federation(Path(folder))
        rows = np.random.default_rng(0).standard_normal((N, D)).astype(np.float32)
        rows /= np.linalg.norm(rows, axis=1, keepdims=True)
        tokens = federation.sites["site-0"].store.tokens(0, 8).astype(np.float32)
        tensors = {"dictionary": rows, "mean": tokens.mean(axis=(0, 1)), "scale": np.float32([tokens.std()])}
        ask = functools.partial(federation.ask, "site-0")
        ask(Ask("begin", 0, tensors, {}))
        ask(Ask("round", 1, tensors, {}))  # warm
        clock = Clock()
        clock.start()
        request, _ = federation.desk.request("site-0", Ask("round", 1, tensors, {}))
        started = time.perf_counter()
        for _ in range(rounds):
            reply = federation.sessions["site-0"].handle(request)
            if not reply or federation.logs[-1].code != "answered":
                raise SystemExit(f"the site did not answer: {federation.logs[-1]}")
            total = time.perf_counter() - started
            request, _ = federation.desk.request("site-0", Ask("round", 1, tensors, {}))
            started = time.perf_counter() - total
    added = sum(clock.spent.values())
    checks = clock.spent["gate"] + clock.spent["self-attack"]  # statistics of data: docs/measurements.md
    return {
        "rounds": rounds,
        "round_s": total / rounds,
        "added_over_round": added / (total - added),
        "door_and_logs_over_round": (added - checks) / (total - added),
        "parts_ms": {part: 1000 * value / rounds for part, value in clock.spent.items()},
        "seal_6mb_ms": seal_ms(),
    }


def seal_ms() -> float:
    """Milliseconds to seal 6 MB, best of five."""
    data, key = np.random.default_rng(0).bytes(6_000_000), ReplyKey()
    times = []
    for _ in range(5):
        started = time.perf_counter()
        seal_box(data, key.public_hex, REPLY_LABEL, "0" * 64)
        times.append(time.perf_counter() - started)
    return 1000 * min(times)


def main() -> int:
    """Print one JSON line; 1 when a limit is missed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    result = measure(options.rounds)
    print(json.dumps(result))
    return int(result["door_and_logs_over_round"] > 0.05)


if __name__ == "__main__":
    sys.exit(main())
