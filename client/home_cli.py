"""`cytosae site join | check | serve | ledger`: from an invite to a site that takes part."""

from __future__ import annotations

import argparse
import json
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .ledger_cli import ledger_command

if TYPE_CHECKING:
    from cytosae_core.invite import Invite

    from .preflight import Preflight, Row

Json = dict[str, Any]


def register(commands: Any) -> None:
    """Add the commands to `cytosae site`."""
    join = commands.add_parser("join", help="take an invite: make keys, policy and folder, enrol")
    join.add_argument("invite", type=Path, metavar="INVITE", help="the file from the coordinator")
    join.add_argument("--home", type=Path, help="this site's folder for the study (default ./STUDY-SITE)")
    join.add_argument("--yes", action="store_true", help="the study's fingerprint was compared already")
    join.add_argument(
        "--approval", choices=("never", "first_round_and_report", "always"), default="never",
        help="what waits for an officer (default never; site policy changes it)",
    )  # fmt: skip
    join.add_argument(
        "--offline", action="store_true", help="this hospital has no outgoing connection: files are carried"
    )
    join.add_argument(
        "--ledger", type=Path, metavar="FOLDER",
        help="one ledger for all studies on the same patients (default: one for this study); needed for profile dp",
    )  # fmt: skip
    join.add_argument("--json", action="store_true")
    join.set_defaults(run=_join)
    check = commands.add_parser(
        "check",
        help="check a folder of images and its table; in a site's home: everything that a round needs",
    )
    check.add_argument("data", type=Path, metavar="DATA")
    check.add_argument("--preset", help="folder layout of a public data set: see `cytosae data presets`")
    check.add_argument("--home", type=Path, help="made by `site join` (default: the one in this folder)")
    check.add_argument("--weights", type=Path, help="the encoder's weights (not for dinov2-s-demo)")
    check.add_argument("--quick", action="store_true", help="without encoder, embedding and dry round")
    check.add_argument("--json", action="store_true")
    check.set_defaults(run=_check)
    take = commands.add_parser("import", help="without a network: take files that the coordinator gave")
    take.add_argument("files", type=Path, nargs="+", metavar="FILE")
    give = commands.add_parser(
        "export", help="without a network: write what has to be carried to the coordinator"
    )
    give.add_argument("--to", type=Path, required=True, metavar="FOLDER")
    for parser, run in ((take, _import), (give, _export)):
        parser.add_argument("--home", type=Path)
        parser.add_argument("--json", action="store_true")
        parser.set_defaults(run=run)
    serve = commands.add_parser("serve", help="take part until stopped; reconnects for ever")
    serve.add_argument("--home", type=Path)
    serve.set_defaults(run=_serve)
    ledger = commands.add_parser("ledger", help="what this site has released, and what its policy leaves")
    ledger.add_argument("--home", type=Path)
    ledger.add_argument("--json", action="store_true")
    ledger.add_argument(
        "--plot", type=Path, metavar="FILE", help="profile dp: draw epsilon over time (.png, .svg)"
    )
    ledger.set_defaults(run=ledger_command)


# join -------------------------------------------------------------------------------------------------------


def _join(options: argparse.Namespace) -> int:
    from cytosae_core.errors import SetupError
    from cytosae_core.invite import MAX_BYTES, read_invite
    from cytosae_core.keys import fingerprint

    from .join import join

    if not options.invite.is_file():
        raise SetupError(
            f"Expected an invite file at {options.invite}.", hint="It comes from the study's coordinator."
        )
    if options.invite.stat().st_size > MAX_BYTES:
        raise SetupError(
            "Expected an invite file of at most 1 MB.", hint="It comes from the study's coordinator."
        )
    data = options.invite.read_bytes()
    invite = read_invite(data)
    _show(invite)
    if not options.yes and not _agreed(fingerprint(invite.study_key)):
        print("Nothing was made and nothing was sent.", file=sys.stderr)
        return 1
    home = join(data, options.home or Path(f"{_stem(invite.study)}-{invite.site}"), approval=options.approval)
    home.keep(
        offline=options.offline, **({"ledger": str(options.ledger.resolve())} if options.ledger else {})
    )
    sent, why = (False, "") if options.offline else _send(home)
    shown = fingerprint(home.site_key.public_hex)
    facts = {
        "home": str(home.folder), "site": invite.site, "site_fingerprint": shown,
        "study_fingerprint": fingerprint(invite.study_key), "enrolled": sent,
    }  # fmt: skip
    if options.json:
        print(json.dumps(facts))
        return 0
    print(f"\nHome of this site: {home.folder}")
    if options.offline:
        print("Messages go by files. Next: cytosae site export --to FOLDER, and carry it to the coordinator.")
    elif not sent:
        print(f"{why}\nSend enrolment.json from there to the coordinator, or let `site serve` try again.")
    print(f"Read this fingerprint of your site to the coordinator by phone:\n\n    {shown}\n")
    print("Next: cytosae site check DATA, then cytosae site serve.")
    return 0


def _show(invite: Invite) -> None:
    """What the study is and what it would take, in one paragraph, on standard error."""
    from cytosae_core.keys import fingerprint
    from cytosae_core.policy import demand

    study = invite.config
    most = demand(study)
    lines = [
        f"Study {invite.study}, for site {invite.site}: {study.plan.hypothesis or study.kind}",
        f"{len(study.sites)} sites, profile {study.profile}, {study.dictionary.n} concepts of {study.encoder.name}.",
        f"At most {most.rounds} rounds, {most.messages} messages and {most.bytes / 1e6:,.1f} MB leave in all: only",
        f"numbers about at least {study.min_units} patients: no image, no file name, no patient id.",
        f"Fingerprint of the study: {fingerprint(invite.study_key)}",
    ]
    print("\n".join(lines), file=sys.stderr)


def _agreed(shown: str) -> bool:
    from cytosae_core.errors import SetupError

    if not sys.stdin.isatty():
        raise SetupError(
            "Expected a terminal, or --yes.", hint="Compare the fingerprint with the coordinator first."
        )
    print(
        f"Call the coordinator. Is this the fingerprint that you hear?  {shown}  [y/N] ",
        end="",
        file=sys.stderr,
    )
    sys.stderr.flush()
    return sys.stdin.readline().strip().lower() in ("y", "yes")


def _send(home: Any) -> tuple[bool, str]:
    from cytosae_core.errors import SetupError
    from cytosae_core.tensors import write_atomic

    from .join import enrolment, fetch_start, post_enrolment

    data = enrolment(home)
    write_atomic(home.folder / "enrolment.json", data)
    try:
        post_enrolment(home, data)
        home.keep(enrolled=True)
        fetch_start(home)
    except SetupError as error:
        return bool(home.facts.get("enrolled")), str(error)
    return True, ""


def _stem(text: str) -> str:
    return "".join(letter if letter.isalnum() else "-" for letter in text.lower()).strip("-") or "study"


# check ------------------------------------------------------------------------------------------------------


def _check(options: argparse.Namespace) -> int:
    from .home import find_home

    home = find_home(options.home)
    if home is None:
        return _check_images(options)
    from .preflight import Preflight

    return _preflight(
        Preflight(home, options.data, options.weights, options.preset, options.quick), options.json
    )


def _preflight(preflight: Preflight, as_json: bool) -> int:
    from .door_cli import print_round
    from .preflight import FAIL

    rows = []
    for row in preflight.rows():
        rows.append(row)
        if not as_json:
            print_row(row)
    failed = [row.name for row in rows if row.state == FAIL]
    if as_json:
        shown = [{"name": row.name, "state": row.state, "found": row.found, "fix": row.fix} for row in rows]
        print(
            json.dumps({"rows": shown, "failed": failed, "dry_round": preflight.dry or None}, allow_nan=False)
        )
        return int(bool(failed))
    if preflight.dry:
        print_round(preflight.dry)
    if failed:
        print(f"\n{len(failed)} to mend: {', '.join(failed)}. Then the same command again.")
    else:
        print("\nReady. Next: cytosae site serve")
    return int(bool(failed))


def print_row(row: Row) -> None:
    """One line of a preflight: state, name, what was found, what to do."""
    from rich.console import Console
    from rich.text import Text

    from .preflight import OK

    style = {"ok": "green", "WARN": "yellow", "FAIL": "bold red"}[row.state]
    line = Text.assemble((f"{row.state:5}", style), f"{row.name:14}", row.found)
    if row.state != OK and row.fix:
        line.append(f"\n{'':19}{row.fix}", style="italic")
    Console(soft_wrap=True).print(line)


def _check_images(options: argparse.Namespace) -> int:
    from rich.console import Console

    from cytosae_core.cohort import check_cohort, read_cohort

    from .progress import progress

    with progress("checking images") as tick:
        result = check_cohort(read_cohort(options.data, preset=options.preset), progress=tick)
    if options.json:
        print(json.dumps(result.to_dict()))
    else:
        console = Console()
        for name, value in result.to_dict().items():
            console.print(f"[bold]{name}[/bold] {value}", highlight=False)
        for problem in result.problems:
            console.print(f"! {problem}", markup=False)
    return 0 if result.usable else 1


# import and export ----------------------------------------------------------------------------------------


def _import(options: argparse.Namespace) -> int:
    from .home import need_home
    from .offline import take

    found = {}
    for name, what in take(need_home(options.home), options.files):
        found[name] = what
        if not options.json:
            print(f"{name}: {what}", flush=True)
    if options.json:
        print(json.dumps(found))
    elif any(what.startswith("answered") for what in found.values()):
        print("Next: cytosae site export --to FOLDER")
    return int(any(what.startswith("refused") for what in found.values()))


def _export(options: argparse.Namespace) -> int:
    from .home import need_home
    from .offline import give

    names = give(need_home(options.home), options.to)
    if options.json:
        print(json.dumps({"files": names}))
    else:
        print(f"Carry to the coordinator: {', '.join(names)}" if names else "Nothing waits to be carried.")
    return 0


# serve ------------------------------------------------------------------------------------------------------


def _serve(options: argparse.Namespace) -> int:
    from .home import need_home
    from .serve_site import SiteServer

    def interrupted(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, interrupted)
    server = SiteServer(need_home(options.home), lambda text: print(text, flush=True))
    try:
        server.run()
    except KeyboardInterrupt:
        print("Stopped. The same command goes on.", flush=True)
    return 0
