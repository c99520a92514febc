"""`cytosae site preview | approve | withdraw`: look at what would leave, let it leave, leave the study."""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console

Json = dict[str, Any]


def register(commands: Any) -> None:
    """Add the commands to `cytosae site`."""
    preview = commands.add_parser(
        "preview", help="what would leave: the table of a policy, or a dry round on own data"
    )
    preview.add_argument("--policy", default="masked", help="policy file, or masked, evaluate_only")
    preview.add_argument("--data", type=Path, help="folder of images: run a dry round on them")
    preview.add_argument("--name", help="this site's name in the study")
    preview.add_argument("--study", type=Path, help="protocol (study.yaml)")
    preview.add_argument("--start", type=Path, help="the study's start file (default: beside the protocol)")
    preview.add_argument("--home", type=Path, help="folder for key, state and token store")
    preview.add_argument("--weights", type=Path, help="the encoder's weights (not for dinov2-s-demo)")
    preview.add_argument("--preset", help="folder layout of a public data set: see `cytosae data presets`")
    preview.add_argument(
        "--relay-uid", type=int, default=None, help="user id of the relay (default: this user)"
    )
    preview.add_argument(
        "--simulation", action="store_true", help="public or synthetic cells on this machine"
    )
    preview.add_argument("--json", action="store_true")
    preview.set_defaults(run=_preview)
    approve = commands.add_parser("approve", help="officer: list, approve or clear what the door holds back")
    approve.add_argument("--home", type=Path, required=True)
    approve.add_argument("--key", type=Path, help="the officer's key")
    approve.add_argument("--policy", help="the signed policy file")
    approve.add_argument("--job", help="approve this waiting reply (default: only list)")
    approve.add_argument("--clear", action="store_true", help="let a stopped study answer again")
    approve.add_argument("--json", action="store_true")
    approve.set_defaults(run=_approve)
    withdraw = commands.add_parser("withdraw", help="a site leaves a study, or a patient leaves all of them")
    withdraw.add_argument("--home", type=Path, required=True)
    withdraw.add_argument("--study", type=Path, help="the site leaves this study (study.yaml)")
    withdraw.add_argument("--patient", help="this patient leaves (needs --data)")
    withdraw.add_argument("--data", type=Path)
    withdraw.add_argument("--preset")
    withdraw.add_argument("--json", action="store_true")
    withdraw.set_defaults(run=_withdraw)


def _preview(options: argparse.Namespace) -> int:
    result = _dry_round(options) if options.data else _table(options)
    if options.json:
        print(json.dumps(result, allow_nan=False))
        return 0 if not result.get("stopped") else 1
    if options.data:
        print_round(result)
    else:
        from rich.console import Console

        _print_table(Console(), result)
    return 0 if not result.get("stopped") else 1


def _table(options: argparse.Namespace) -> Json:
    from cytosae_core import egress
    from cytosae_core.policy import POLICIES, load_policy, named_policy

    policy = named_policy(options.policy) if options.policy in POLICIES else load_policy(Path(options.policy))
    return {
        "policy": policy.name,
        "sha256": policy.digest,
        "min_units": policy.min_units,
        "fields": egress.describe(policy),
        "never": list(egress.NEVER),
    }


def _dry_round(options: argparse.Namespace) -> Json:
    from cytosae_core.errors import SetupError
    from cytosae_core.sae.checkpoint import load_checkpoint

    from .preview import Preview
    from .progress import progress
    from .serve import make_site

    for name in ("name", "study", "home"):
        if getattr(options, name) is None:
            raise SetupError(f"Expected --{name} for a dry round.", hint="See cytosae site preview --help.")
    uid = os.getuid() if options.relay_uid is None else options.relay_uid
    site, study = make_site(options, uid)
    start = options.start or options.study.resolve().parent / "start"
    has_start = start.with_suffix(".safetensors").exists() or start.is_dir()
    tensors = load_checkpoint(start, sha256=study.dictionary.digest).tensors if has_start else {}
    with progress("dry round") as tick:
        return Preview(site, study, tensors).run(tick)


def _print_table(console: Console, result: Json) -> None:
    from rich.table import Table

    table = Table(
        title=f"What may leave under policy {result['policy']} (at least {result['min_units']} units per number)"
    )
    for column in result["fields"][0]:
        table.add_column(column)
    for row in result["fields"]:
        table.add_row(*row.values())
    console.print(table)
    console.print("Never: " + "; ".join(result["never"]) + ".", markup=False)
    console.print("relay isolation: none when agent and relay share a user", markup=False)


_WIDTHS = {"step": 8, "tensor": 24, "shape": 14, "bytes": 9, "withheld": 8}
_SHORT = {"float32": "f32", "float16": "f16"}


def print_round(result: Json) -> None:
    """A dry round as a table: every tensor that would leave."""
    from rich.console import Console
    from rich.table import Table

    console = Console()
    behind = f"{result['profile']}, at least {result['min_units']} {result['unit']} units behind every number"
    table = Table(title=f"Would leave in one dry round ({behind})", box=None, pad_edge=False)
    for column in ("step", "tensor", "shape", "bytes", "withheld", "first values"):
        right = column in ("bytes", "withheld")
        table.add_column(
            column, justify="right" if right else "left", no_wrap=True, min_width=_WIDTHS.get(column, 1)
        )
    for message in result["messages"]:
        rows = [(name, "text", str(len(value)), "", value[:20]) for name, value in message["facts"].items()]
        rows += [_row(tensor) for tensor in message["tensors"]]
        for index, row in enumerate(rows):
            table.add_row("" if index else message["kind"], *row)
    console.print(table)
    total = sum(message["bytes"] for message in result["messages"])
    most = result["whole_study"]
    for line in (
        f"{len(result['messages'])} messages, {total:,} bytes before sealing. In the whole study at most "
        f"{most['rounds']} rounds, {most['messages']} messages, {most['bytes']:,} bytes.",
        f"relay isolation: {result['relay_isolation']}",
    ):
        console.print(line, markup=False, highlight=False)
    if result["stopped"]:
        stopped = result["stopped"]
        console.print(
            f"STOPPED in {stopped['kind']} at step {stopped['step']} ({stopped['gate']}): {stopped['why']}"
        )
    else:
        console.print(
            "Nothing was sent, logged or spent. Never: images, names, ids, single cells or patients."
        )


def _row(tensor: Json) -> tuple[str, str, str, str, str]:
    shape = "x".join(map(str, tensor["shape"]))
    values = " ".join("-" if value is None else f"{value:.3g}" for value in tensor["values"][:2])
    return (
        tensor["name"],
        f"{_SHORT.get(tensor['dtype'], tensor['dtype'])} {shape}",
        f"{tensor['bytes']:,}",
        f"{tensor['suppressed']:,}",
        values,
    )


def _approve(options: argparse.Namespace) -> int:
    from cytosae_core.errors import SetupError
    from cytosae_core.keys import SigningKey
    from cytosae_core.policy import load_signed

    from .approval import Approvals

    folders = sorted(path.parent for path in (options.home / "state").glob("*/study.json"))
    cleared = 0
    if options.clear:
        for folder in folders:
            cleared += (folder / "stopped").exists()
            (folder / "stopped").unlink(missing_ok=True)
    if options.job and (options.key is None or options.policy is None):
        raise SetupError("Expected --key and --policy to approve.", hint="The policy names the officers.")
    policy = load_signed(Path(options.policy), options.home) if options.policy else None
    waiting = []
    for folder in folders:
        if policy is not None and options.job and (folder / "pending" / f"{options.job}.json").exists():
            Approvals(folder, policy).approve(options.job, SigningKey.load_or_create(options.key))
        waiting += [json.loads(path.read_bytes()) for path in sorted((folder / "pending").glob("*.json"))]
    if options.json:
        print(json.dumps({"waiting": waiting, "cleared": cleared}))
        return 0
    for item in waiting:
        print(f"{item['job']}  {item['kind']} round {item['round']}  {item['bytes']:,} bytes")
        for tensor in item["tensors"]:
            print(f"    {tensor['name']} {tensor['dtype']} {tensor['shape']} withheld {tensor['suppressed']}")
    print(f"{len(waiting)} waiting, {cleared} cleared")
    return 0


def _withdraw(options: argparse.Namespace) -> int:
    from cytosae_core.cohort import read_cohort
    from cytosae_core.config import load_yaml, study_from_dict
    from cytosae_core.errors import SetupError

    from .withdraw import Withdrawn

    if bool(options.patient) == bool(options.study) or (options.patient and not options.data):
        raise SetupError(
            "Expected either --study STUDY.yaml or --patient ID --data FOLDER.", hint="Stop the agent first."
        )
    if options.patient:
        cohort = read_cohort(options.data, preset=options.preset)
        deleted = Withdrawn(options.home).patient(options.patient, cohort)
    else:
        values = load_yaml(options.study)
        values.pop("local", None)
        deleted = Withdrawn(options.home).site(study_from_dict(values))
    scope = "patient" if options.patient else "site"
    if options.json:
        print(json.dumps({"scope": scope, "payloads_deleted": deleted}))
    else:
        print(f"{scope} withdrawn; {deleted} files deleted; logged. Later releases are made without them.")
        print("What left before cannot be called back: `cytosae site preview` and the log say what it was.")
    return 0
