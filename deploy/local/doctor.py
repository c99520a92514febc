"""`cytosae doctor`: what is wrong on this machine, in a site's home, or in a study's folder; and what to do."""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cytosae_client.home import Home
    from cytosae_client.preflight import Row

PACKAGES = ("cytosae-federation", "flwr", "torch", "timm", "cryptography", "numpy")
FREE_BYTES, SOON_DAYS = 2 << 30, 10.0


def register(parser: argparse.ArgumentParser) -> None:
    """Add the command's options."""
    parser.add_argument(
        "folder", type=Path, nargs="?", metavar="FOLDER", help="a site's home or a study's folder"
    )
    parser.add_argument("--json", action="store_true")
    parser.set_defaults(run=_doctor)


def _doctor(options: argparse.Namespace) -> int:
    from cytosae_client.home_cli import print_row
    from cytosae_client.preflight import FAIL

    found = []
    for row in rows(options.folder):
        found.append(row)
        if not options.json:
            print_row(row)
    failed = [row.name for row in found if row.state == FAIL]
    if options.json:
        shown = [{"name": row.name, "state": row.state, "found": row.found, "fix": row.fix} for row in found]
        print(json.dumps({"rows": shown, "failed": failed}))
    elif failed:
        print(f"\n{len(failed)} to mend: {', '.join(failed)}")
    return int(bool(failed))


def rows(folder: Path | None) -> Iterator[Row]:
    """One row per thing looked at.

    Raises:
        SetupError: the folder is neither a site's home nor a study's folder.
    """
    from cytosae_client.home import Home, find_home
    from cytosae_core.errors import SetupError

    yield from _machine(folder or Path.cwd())
    home = find_home(None) if folder is None else None
    if folder is not None and (folder / "site.json").exists():
        home = Home(folder.resolve())
    if home is not None:
        yield from _site(home)
    elif folder is not None and (folder / "study.key").exists():
        yield from _study(folder)
    elif folder is not None:
        raise SetupError(
            "Expected a site's home or a study's folder.", hint="cytosae doctor looks at the machine."
        )


def _machine(folder: Path) -> Iterator[Row]:
    from importlib.metadata import PackageNotFoundError, version

    from cytosae_client.preflight import FAIL, OK, WARN, Row

    names = []
    for name in PACKAGES:
        try:
            names.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            names.append(f"{name} MISSING")
    state = FAIL if any("MISSING" in name for name in names) else OK
    yield Row("packages", state, ", ".join(names), "pip install -c constraints.txt cytosae-federation")
    free = shutil.disk_usage(folder).free
    yield Row("disk", OK if free >= FREE_BYTES else FAIL, f"{free / 1e9:.1f} GB free here", "Free 2 GB.")
    synced = _synchronised()
    said = {
        True: "synchronised",
        False: "NOT synchronised",
        None: "this system does not say whether it is set by NTP",
    }
    yield Row("clock", FAIL if synced is False else OK if synced else WARN, said[synced], "Switch NTP on.")


def _synchronised() -> bool | None:
    program = shutil.which("timedatectl")
    if program is None:
        return None
    done = subprocess.run(
        [program, "show", "--property", "NTPSynchronized", "--value"],
        capture_output=True, text=True, timeout=10, check=False,
    )  # fmt: skip
    return {"yes": True, "no": False}.get(done.stdout.strip())


def _site(home: Home) -> Iterator[Row]:
    from cytosae_client.preflight import OK, WARN, Preflight, Row
    from cytosae_client.serve_site import read_state
    from cytosae_core.processes import alive

    state = read_state(home)
    runs = state.get("status", "stopped") != "stopped" and alive(int(state.get("pid", 0)))
    children = dict(state.get("children", {}))
    again = [
        f"{name} was started {child['starts']} times"
        for name, child in children.items()
        if child["starts"] > 1
    ]
    found = "; ".join([str(state["status"]), *again]) if runs else "not running"
    yield Row(
        "serve", OK if runs and not again else WARN, found, "cytosae site serve; logs/NAME.log says why."
    )
    data = home.facts.get("data")
    if not data:
        yield Row("data", WARN, "no folder of images was checked yet", "cytosae site check DATA")
        return
    weights = Path(home.facts["weights"]) if home.facts.get("weights") else None
    yield from Preflight(home, Path(data), weights, home.facts.get("preset"), quick=True).rows()


def _study(folder: Path) -> Iterator[Row]:
    from cytosae_client.preflight import FAIL, OK, WARN, Row
    from cytosae_core.errors import CytosaeError
    from cytosae_server.pki import days_left
    from cytosae_server.proxy import caddy
    from cytosae_server.watch import snapshot
    from cytosae_server.watch_page import headline

    state = snapshot(folder)
    yield Row("study", OK, headline(state))
    open_keys = [p.name for p in folder.rglob("*.key") if p.stat().st_mode & 0o077]
    fix = "chmod 600 on them."
    yield Row("keys", FAIL if open_keys else OK, ", ".join(open_keys) or "readable by their owner only", fix)
    try:
        yield Row("proxy", OK, f"Caddy is here: {Path(caddy()).name}")
    except CytosaeError as error:
        yield Row("proxy", FAIL, error.args[0], error.hint)
    for name in ("ca", "server"):
        path = folder / "net" / f"{name}.crt"
        if path.exists():
            left = days_left(path)
            found = f"good for {left:.0f} days"
            yield Row(
                f"{name}.crt",
                OK if left > SOON_DAYS else WARN if left > 0 else FAIL,
                found,
                "study start renews it.",
            )
    for site, entry in state["sites"].items():
        good = entry["enrolment"] == "confirmed" and not entry["dropped"]
        yield Row(site, OK if good else WARN, entry["enrolment"] or "not invited", "cytosae study watch OUT")
    for fault in state["faults"][:5]:
        yield Row("fault", WARN, f"{fault['site']}, {fault['step']}: {fault['what']}", fault["do"])
    database = folder / "net" / "superlink.db"
    if database.exists():
        yield Row("database", OK, f"{database.stat().st_size / 1e6:.0f} MB; compacted at every start")
