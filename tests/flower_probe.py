"""A ServerApp for tests of the transport alone: sends what a plan says, writes down what came back.

It travels in a bundle of its own (`test_flower.py`), so that `FlowerGrid` meets a real Flower run
without a study. The plan is `plan.json` in the folder named by the run-config key `study`; the results go to
`results.jsonl` there, one line an answer, as they arrive.
"""

from __future__ import annotations

import hashlib
import json
import time
from pathlib import Path
from typing import Any

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from cytosae_server.flower_grid import FlowerGrid

app = ServerApp()


def payload(command: str, size: int) -> bytes:
    """A request: a line that tells the test's agent what to do, then bytes that do not compress."""
    body = b"".join(hashlib.sha256(f"{command}{i}".encode()).digest() for i in range(size // 32 + 1))
    return command.encode() + b"\n" + body[:size]


def main(grid: Grid, context: Context) -> None:
    """Send every entry of the plan, then poll until each has its answer."""
    folder = Path(str(context.run_config["study"]))
    plan: list[dict[str, Any]] = json.loads((folder / "plan.json").read_text())
    errors: list[dict[str, Any]] = []
    transport = FlowerGrid(_Spy(grid, errors), ttl_s=3600.0)
    with open(folder / "results.jsonl", "a") as results:
        print(json.dumps({"sites": transport.sites()}), file=results, flush=True)
        start, waiting = time.monotonic(), {}
        for entry in plan:
            data = payload(entry["command"], entry["size"])
            waiting[transport.send(entry["site"], data, entry["deadline_s"])] = (entry, data)
        while waiting:
            for answer in transport.poll(5.0):
                entry, data = waiting.pop(answer.ticket)
                line = {**entry, "fault": answer.fault, "site_of_answer": answer.site}
                line |= {"same": answer.data == data, "seconds": time.monotonic() - start, "errors": errors}
                print(json.dumps(line), file=results, flush=True)
    transport.close()


app.main()(main)


class _Spy:
    """Notes down all that Flower says about failed messages: more than `FlowerGrid` lets through."""

    def __init__(self, grid: Grid, errors: list[dict[str, Any]]) -> None:
        self._grid, self._errors = grid, errors

    def __getattr__(self, name: str) -> Any:
        return getattr(self._grid, name)

    def pull_messages(self, message_ids: list[str]) -> list[Any]:
        messages = list(self._grid.pull_messages(message_ids))
        for message in messages:
            if message.has_error():
                self._errors.append({"code": message.error.code, "reason": message.error.reason})
        return messages
