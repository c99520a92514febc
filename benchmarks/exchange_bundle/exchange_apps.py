"""The bundle's two apps: a ServerApp that takes the time of every exchange, and a ClientApp that works by itself."""

from __future__ import annotations

import json
import time
from pathlib import Path

from flwr.app import Context, Message
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp

from cytosae_client.flower_blob import from_records, to_records
from cytosae_server.flower_grid import FlowerGrid

server = ServerApp()
client = ClientApp()


def main(grid: Grid, context: Context) -> None:
    """Ask the sites of plan.json in turn; one line a message in results.jsonl."""
    folder = Path(str(context.run_config["study"]))
    transport = FlowerGrid(grid, ttl_s=3600.0)
    with open(folder / "results.jsonl", "a") as results:
        for site, size in json.loads((folder / "plan.json").read_text()):
            start = time.monotonic()
            transport.send(site, f"{size}".encode(), 300.0)
            answers = transport.poll(300.0)
            line = {
                "site": site,
                "size": size,
                "seconds": time.monotonic() - start,
                "fault": answers[0].fault,
            }
            print(json.dumps({**line, "bytes": len(answers[0].data or b"")}), file=results, flush=True)


def query(message: Message, context: Context) -> Message:
    """Import torch, work, answer: what a Flower app does that has no agent behind it."""
    from exchange_work import work

    return Message(to_records(work(int(from_records(message.content)))), reply_to=message)


server.main()(main)
client.query()(query)
