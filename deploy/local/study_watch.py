"""`cytosae study watch`: a running study in the terminal, or as a page for this machine's browser."""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Group

LOOK_S = 1.0
Json = dict[str, Any]


def register(commands: Any) -> None:
    """Add the command."""
    watch = commands.add_parser("watch", help="sites, rounds, faults and logs of a study, live")
    watch.add_argument("folder", type=Path, metavar="OUT", help="the study's folder")
    watch.add_argument(
        "--web",
        type=int,
        nargs="?",
        const=8765,
        metavar="PORT",
        help="a page on 127.0.0.1 (default port 8765)",
    )
    watch.add_argument("--once", action="store_true", help="show it once and end")
    watch.add_argument("--json", action="store_true", help="the snapshot as JSON, once")
    watch.set_defaults(run=_watch)


def _watch(options: argparse.Namespace) -> int:
    from cytosae_server.watch import snapshot

    state = snapshot(options.folder)
    if options.json:
        print(json.dumps(state))
        return 0
    if options.web is not None:
        return _serve(options.folder, options.web)
    if options.once or not sys.stdout.isatty():
        from rich.console import Console

        Console().print(_screen(state))
        return 0
    return _live(options.folder)


def _serve(folder: Path, port: int) -> int:
    import uvicorn

    from cytosae_core.errors import SetupError
    from cytosae_server.watch_app import dashboard

    if not 1 <= port <= 65535:
        raise SetupError(f"Expected a port, got --web {port}.", hint="8765 is the default.")
    print(f"http://127.0.0.1:{port}/ (Prometheus: /metrics). Ctrl-C ends it; the study goes on.", flush=True)
    uvicorn.run(
        dashboard(folder), host="127.0.0.1", port=port, log_level="error", access_log=False,
        timeout_graceful_shutdown=1,
    )  # fmt: skip
    return 0


def _live(folder: Path) -> int:
    from rich.live import Live

    from cytosae_server.watch import snapshot

    try:
        with Live(_screen(snapshot(folder)), refresh_per_second=2, screen=True) as live:
            while True:
                time.sleep(LOOK_S)
                live.update(_screen(snapshot(folder)))
    except KeyboardInterrupt:
        return 0


def _screen(state: Json) -> Group:
    from rich.console import Group
    from rich.text import Text

    from cytosae_core.report.text import byte_size
    from cytosae_server.watch_page import headline, trouble

    mark = "  SIMULATED SITES" if state["simulation"] else ""
    done = f"{state['rounds_done']} of {state['rounds']} rounds, {byte_size(state['bytes'])} arrived"
    lines = [
        Text(f"{state['study']}{mark}", style="bold"),
        Text(headline(state)),
        *([Text(failed, style="bold red")] if (failed := trouble(state)) else []),
        Text(f"{done}; {state['privacy']}", style="dim"),
    ]
    return Group(*lines, _sites(state), *_faults(state), _programs(state))


def _sites(state: Json) -> Any:
    from rich.table import Table

    from cytosae_server.watch_page import ENROLMENT, doing

    table = Table(
        "site", "enrolment", "now", "rounds", "FVU", "trend", "missed", "log", box=None, pad_edge=False
    )
    for name, site in state["sites"].items():
        fvu = "" if site["fvu"] is None else f"{site['fvu']:.3f}"
        path = [entry["sites"].get(name, {}).get("fvu") for entry in state["training"]]
        head = state["logs"][name]
        table.add_row(
            name, ENROLMENT[site["enrolment"]], doing(site, state["at"]), str(site["rounds"]), fvu, spark(path),
            str(site["faults"]), f"{head['size']} entries" if head else "",
        )  # fmt: skip
    return table


def spark(values: list[float | None], width: int = 24) -> str:
    """The last values as bars: a full bar is the highest of them."""
    known = [value for value in values if value is not None][-width:]
    top = max(known, default=0.0)
    return "".join("▁▂▃▄▅▆▇█"[min(7, int(8 * value / top))] for value in known) if top > 0 else ""


def _faults(state: Json) -> list[Any]:
    from rich.text import Text

    return [
        Text(f"! {f['site']}, {f['step']}: {f['what']} ({f['code']}). {f['do']}", style="yellow")
        for f in state["faults"][:5]
    ]


def _programs(state: Json) -> Any:
    from rich.text import Text

    from cytosae_server.watch_page import down_word

    return Text(
        "  ".join(
            f"{name}{' runs' if child['running'] else down_word(state)}"
            for name, child in state["programs"].items()
        ),
        style="dim",
    )
