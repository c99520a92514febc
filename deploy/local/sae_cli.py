"""`cytosae sae`: make, inspect, import and export dictionaries."""

from __future__ import annotations

import argparse
import json
from pathlib import Path


def register(parser: argparse.ArgumentParser) -> None:
    """Add the commands."""
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    init = commands.add_parser("init", help="public k-means centroids: where training starts")
    init.add_argument("data", type=Path, help="folder of PUBLIC images (never hospital images)")
    init.add_argument("out", type=Path, help="checkpoint to write, without suffix")
    init.add_argument("--rows", type=int, default=1024)
    init.add_argument("--seed", type=int, default=0)
    init.add_argument("--encoder", default="dinov2-s-demo")
    init.add_argument("--weights", type=Path)
    init.add_argument("--layer", type=int, help="block counted from 1 (default: the middle one)")
    init.set_defaults(run=_init)
    public = commands.add_parser(
        "public", help="a finished dictionary of PUBLIC images: what a study under profile dp starts from"
    )
    for name, text in (("data", "folder of PUBLIC images"), ("out", "checkpoint to write, without suffix")):
        public.add_argument(name, type=Path, help=text)
    public.add_argument("--rows", type=int, default=1024)
    public.add_argument("--active", type=int, default=16, metavar="K")
    public.add_argument("--train-steps", type=int, default=300, metavar="N")
    public.add_argument("--tokens-of-a-patient", type=int, default=64, metavar="T", help="as in the study")
    public.add_argument("--seed", type=int, default=0)
    public.add_argument("--encoder", default="dinov2-s-demo")
    public.add_argument("--weights", type=Path)
    public.add_argument("--layer", type=int, help="block counted from 1 (default: the middle one)")
    public.add_argument("--json", action="store_true")
    public.set_defaults(run=_public)
    importing = commands.add_parser("import", help="a published CytoSAE checkpoint -> safetensors + JSON")
    importing.add_argument("file", type=Path, metavar="FILE.pt")
    importing.add_argument("out", type=Path, help="folder for dictionary.safetensors and dictionary.json")
    importing.add_argument("--json", action="store_true")
    importing.set_defaults(run=_import)
    export = commands.add_parser("export", help="a dictionary for CytoSAE's own code or for SAELens")
    export.add_argument("dictionary", type=Path)
    export.add_argument("out", type=Path, help="folder to write")
    export.add_argument("--format", choices=("published", "saelens"), default="saelens")
    export.add_argument("--json", action="store_true")
    export.set_defaults(run=_export)
    show = commands.add_parser("show", help="facts of a dictionary on disk, verified")
    show.add_argument("path", type=Path)
    show.add_argument("--json", action="store_true")
    show.set_defaults(run=_show)


def _init(options: argparse.Namespace) -> int:
    from cytosae_core.encoder import default_layer, load_encoder
    from cytosae_core.encoder.facts import facts_of
    from cytosae_core.sae.checkpoint import save_checkpoint

    from .demo import STEPS, centroids
    from .progress import Display
    from .sites import embed

    layer = options.layer or default_layer(facts_of(options.encoder).depth, "train")
    encoder = load_encoder(options.encoder, options.weights, layer=layer, steps=STEPS)
    with Display() as display:
        corpus = embed(
            options.data,
            "public",
            encoder,
            options.out.parent / "stores",
            max_images=None,
            progress=display.bar("public"),
        )
    facts = {"encoder": encoder.digest, "seed": options.seed}
    digest = save_checkpoint(
        options.out, {"centroids": centroids(corpus, options.rows, seed=options.seed)}, facts
    )
    print(f"centroids {options.rows} x {encoder.d}  sha256 {digest}")
    return 0


def _public(options: argparse.Namespace) -> int:
    import numpy as np

    from cytosae_core.encoder import default_layer, load_encoder
    from cytosae_core.encoder.facts import facts_of
    from cytosae_core.sae.checkpoint import save_checkpoint
    from cytosae_core.sae.public import public_dictionary

    from .demo import STEPS, public_tokens
    from .progress import Display
    from .sites import embed, patients_of

    layer = options.layer or default_layer(facts_of(options.encoder).depth, "train")
    encoder = load_encoder(options.encoder, options.weights, layer=layer, steps=STEPS)
    with Display() as display:
        bar, stores = display.bar("public"), options.out.parent / "stores"
        corpus = embed(options.data, "public", encoder, stores, max_images=None, progress=bar)
        display.say(f"- {options.rows} rows from {corpus.store.n_images} public images")
        made = public_dictionary(
            np.asarray(public_tokens(corpus, seed=options.seed)), patients_of(corpus, options.tokens_of_a_patient),
            rows=options.rows, k=options.active, steps=options.train_steps, seed=options.seed,
        )  # fmt: skip
    facts = {
        "encoder": encoder.digest, "model": "pursuit", "k": options.active, "seed": options.seed,
        "second_clip": float(f"{made.second_clip:.6g}"), "tokens_of_a_patient": options.tokens_of_a_patient,
    }  # fmt: skip
    digest = save_checkpoint(options.out, made.tensors, facts)
    told = {"sha256": digest, "rows": options.rows, "d": encoder.d, **facts}
    if options.json:
        print(json.dumps(told))
    else:
        print(f"dictionary {options.rows} x {encoder.d}  sha256 {digest}")
        print(
            f"second_clip {told['second_clip']}   (twice the median of the public patients; goes into study.yaml)"
        )
    return 0


def _import(options: argparse.Namespace) -> int:
    from cytosae_core.sae.checkpoint import save_checkpoint
    from cytosae_core.sae.published import read_published

    found = read_published(options.file)
    digest = save_checkpoint(options.out / "dictionary", found.tensors, found.facts)
    told = {
        "sha256": digest, "n": found.facts["n"], "d": found.facts["d"], "model": "relu",
        "encoder": found.facts["encoder_hint"], "origin_sha256": found.facts["origin_sha256"],
    }  # fmt: skip
    if options.json:
        print(json.dumps({**told, "dictionary": str(options.out / "dictionary.safetensors")}))
        return 0
    print(f"relu dictionary: {told['n']} concepts on tokens of {told['d']} numbers ({told['encoder']})")
    print(f"wrote {options.out / 'dictionary.safetensors'}\nsha256 {digest}   (goes into study.yaml)")
    return 0


def _export(options: argparse.Namespace) -> int:
    from cytosae_core.sae.checkpoint import load_checkpoint
    from cytosae_core.sae.export import export_dictionary

    files = export_dictionary(load_checkpoint(options.dictionary), options.out, options.format)
    if options.json:
        print(json.dumps({"format": options.format, "files": [str(path) for path in files]}))
    else:
        print("\n".join(f"wrote {path}" for path in files))
    return 0


def _show(options: argparse.Namespace) -> int:
    from cytosae_core.sae.checkpoint import load_checkpoint

    loaded = load_checkpoint(options.path)
    shapes = {name: list(values.shape) for name, values in loaded.tensors.items()}
    if options.json:
        print(json.dumps({**loaded.facts, "tensors": shapes}))
        return 0
    for name, value in {**loaded.facts, **shapes}.items():
        print(f"{name:12} {value}")
    return 0
