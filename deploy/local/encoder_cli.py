"""`cytosae encoder`: list, fetch, convert and check encoders; embed images."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from .encoder_options import add_encoder_options, add_run_options, encoder_of


def register(parser: argparse.ArgumentParser) -> None:
    """Add the commands."""
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    listing = commands.add_parser("list", help="known encoders")
    listing.set_defaults(run=_list)
    _add_fetch(commands)
    _add_convert(commands)
    _add_check(commands)
    _add_embed(commands)


def _add_fetch(commands: Any) -> None:
    fetch = commands.add_parser("fetch", help="download an official weights file (the only command online)")
    fetch.add_argument("name", help="dinobloom-s, -b, -l, -g or timm/<model name>")
    fetch.add_argument("--out", type=Path, help="file to write (default: its usual name, here)")
    fetch.add_argument("--url", help="another address: https, or file:// and http://127.0.0.1")
    fetch.add_argument("--json", action="store_true")
    fetch.set_defaults(run=_fetch)


def _add_convert(commands: Any) -> None:
    convert = commands.add_parser("convert", help="check a weights file and write it as safetensors")
    convert.add_argument("file", type=Path, metavar="FILE.pth")
    convert.add_argument("out", type=Path, metavar="OUT.safetensors")
    convert.add_argument("--encoder", default="", help="its name (default: told from the file)")
    convert.add_argument("--force", action="store_true", help="replace another file at OUT")
    convert.add_argument("--json", action="store_true")
    convert.set_defaults(run=_convert)


def _add_check(commands: Any) -> None:
    check = commands.add_parser("check", help="does this machine give the tokens that it should?")
    check.add_argument("encoder", nargs="?", default="dinov2-s-demo", metavar="NAME")
    add_run_options(check, layer=6, steps="reinhard,cell-mask")
    check.add_argument("--write", type=Path, metavar="FILE", help="keep the features for another machine")
    check.add_argument("--against", type=Path, metavar="FILE", help="compare with features from elsewhere")
    check.add_argument("--json", action="store_true")
    check.set_defaults(run=_check)


def _add_embed(commands: Any) -> None:
    embed = commands.add_parser("embed", help="make the token store of a folder of images")
    embed.add_argument("data", type=Path, help="folder of images")
    embed.add_argument("store", type=Path, help="folder of the token store; goes on where it stopped")
    embed.add_argument("--preset", help="folder layout of a public data set: see `cytosae data presets`")
    embed.add_argument("--max-images", type=int, help="use at most this many, spread over classes")
    embed.add_argument("--batch", type=int, default=8, help="images per forward pass (default: %(default)s)")
    embed.add_argument("--workers", type=int, default=2, help="threads that decode (default: %(default)s)")
    embed.add_argument(
        "--shard",
        default="0/1",
        metavar="i/N",
        help="make every N-th part only, i = 0 .. N-1: for job arrays",
    )
    embed.add_argument("--json", action="store_true")
    add_encoder_options(embed)
    embed.set_defaults(run=_embed)


def _show(values: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print(json.dumps(values))
        return
    for name, value in values.items():
        print(f"{name:16} {value}")


def _list(options: argparse.Namespace) -> int:
    from cytosae_core.encoder import ENCODERS

    for name, facts in sorted(ENCODERS.items()):
        print(f"{name:16} d={facts.d:5} blocks={facts.depth}")
    print("timm/<name>      any plain ViT of timm with a CLS token, with --weights FILE")
    return 0


def _fetch(options: argparse.Namespace) -> int:
    from .encoder_fetch import check_url, download_bar, fetch, file_name, url_of

    url = options.url or url_of(options.name)
    check_url(url)
    target = options.out or Path(file_name(options.name))
    with download_bar(target.name) as tick:
        digest = fetch(url, target, tick)
    _show({"file": str(target), "sha256": digest, "from": url}, options.json)
    if not options.json:
        print(f"Next: cytosae encoder convert {target} OUT.safetensors --encoder {options.name}")
    return 0


def _convert(options: argparse.Namespace) -> int:
    from cytosae_core.encoder.weights import convert

    name, digest = convert(options.file, options.out, name=options.encoder, force=options.force)
    _show({"encoder": name, "file": str(options.out), "sha256": digest}, options.json)
    if not options.json:
        print(
            f"For study.yaml: encoder.digest covers these weights, layer and steps. Print it with\n"
            f"  cytosae encoder check {name} --weights {options.out} --layer LAYER --steps STEPS"
        )
    return 0


def _check(options: argparse.Namespace) -> int:
    from cytosae_core.encoder.golden import check_golden, golden_features, write_features

    encoder = encoder_of(options)
    features = golden_features(encoder)
    if options.write:
        write_features(options.write, {encoder.fp32_digest: features})
    found = check_golden(encoder, features, options.against)
    _show(
        {
            "encoder": encoder.name, "layer": encoder.layer, "steps": list(encoder.steps),
            "precision": encoder.precision, "digest": encoder.digest, "max_abs": found.max_abs,
            "max_relative": found.max_relative, "tolerance": found.tolerance, "inside": found.inside,
        },
        options.json,
    )  # fmt: skip
    if not options.json:
        print(_verdict(found.inside, encoder.precision, found.tolerance))
    return 1 if found.inside is False else 0


def _verdict(inside: bool | None, precision: str, tolerance: float) -> str:
    if inside is None:
        return (
            "No values are stored for this encoder. Compare machines with --write FILE here and --against FILE "
            "there, and the digest above."
        )
    word = "inside" if inside else "OUTSIDE"
    return (
        f"This run is {word} the tolerance of {precision}: {tolerance:g} of the stored values' root mean square, "
        "a small multiple of what was measured (cytosae_core/encoder/golden.py)."
    )


def _embed(options: argparse.Namespace) -> int:
    from cytosae_core.cohort import read_cohort
    from cytosae_core.encoder.build import BuildPlan, build_shards
    from cytosae_core.encoder.store import open_store

    from .progress import Display

    cohort = read_cohort(options.data, max_images=options.max_images, preset=options.preset)
    encoder = encoder_of(options)
    with Display() as display:
        plan = BuildPlan(
            batch=options.batch, workers=options.workers, lane=_lane(options.shard),
            progress=display.bar(f"embed {cohort.name}"),
        )  # fmt: skip
        complete = build_shards(cohort, encoder, options.store, plan)
    result: dict[str, Any] = {"store": str(options.store), "shard": options.shard, "complete": complete}
    if complete:
        store = open_store(options.store)
        result |= {"images": store.n_images, "failed": len(store.failed), "d": store.d, "key": store.key}
    _show(result, options.json)
    if not complete and not options.json:
        print("Other shards are missing: the last builder to finish completes the store.")
    return 0


def _lane(text: str) -> Any:
    from cytosae_core.encoder.build import Lane
    from cytosae_core.errors import SetupError

    index, _, count = text.partition("/")
    if not (index.isdecimal() and count.isdecimal()):
        raise SetupError(f"Expected --shard i/N, got {text!r}.", hint="For 4 jobs: 0/4, 1/4, 2/4, 3/4.")
    return Lane(int(index), int(count))
