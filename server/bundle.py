"""The auditor's bundle: everything that a report rests on, in one folder that is checked offline (docs/auditor.md).

The same run gives the same bytes: nothing is signed or dated here, files are copied from what parties signed.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

from cytosae_core.audit.log import Log, Mirror, tile_files
from cytosae_core.audit.note import origin_of, parse_checkpoint, split_note, unbase64
from cytosae_core.audit.statement import COORDINATOR, LISTS, Chain, Statement
from cytosae_core.audit.verify.logs import cosigners_needed
from cytosae_core.canonical import canonical_json, parse_json, sha256_hex
from cytosae_core.config import StudyConfig, study_from_dict
from cytosae_core.errors import StudyError
from cytosae_core.keys import SigningKey
from cytosae_core.lineage import MODEL_TENSORS, dictionary_digest
from cytosae_core.report.columns import FILE as SITES_FILE
from cytosae_core.tensors import load_tensors, pack_tensors, write_atomic

from .deviations import FILE as DEVIATIONS
from .deviations import Deviations
from .record import kept_list, pinned_keys

URN = "urn:cytosae:bundle:v1"
Files = dict[str, bytes]


def bundle_command(options: argparse.Namespace) -> int:
    """`cytosae study bundle OUT [--to BUNDLE] [--no-updates]`."""
    folder: Path = options.folder
    if not (folder / "study.key").exists() or not (folder / "report.json").exists():
        raise StudyError(f"Expected a finished study in {folder}.", hint="Run it to its report first.")
    out = options.to or folder / "bundle"
    files = bundle_files(folder, updates=not options.no_updates)
    write_bundle(out, files)
    size = sum(map(len, files.values()))
    print(f"{out}: {len(files)} files, {size:,} bytes. Check it: cytosae audit verify {out} --keys KEYS.json")
    print("Publish bundle.json's SHA-256 where it cannot be changed later:")
    print(sha256_hex(files["bundle.json"]))
    return 0


def write_bundle(out: Path, files: Mapping[str, bytes]) -> None:
    """Write a bundle into a folder that is new or empty.

    Raises:
        StudyError: something is there already.
    """
    if out.exists() and any(out.iterdir()):
        raise StudyError(f"Expected an empty folder, got {out}.", hint="Choose another --to.")
    for name, data in files.items():
        target = out / name
        target.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(target, data)


def bundle_files(folder: Path, *, updates: bool = True) -> Files:
    """Every file of the bundle of the finished study in `folder`.

    Args:
        folder: holds study.key, run/, report.json, report.html, and start.safetensors of a frozen dictionary.
        updates: also the sites' replies of the rounds; without them nobody can redo the averaging.

    Raises:
        StudyError: a deviation was recorded that the report does not print.
    """
    study = study_from_dict(parse_json((folder / "run" / "study.json").read_bytes()))
    _check_deviations(folder, study)
    run, files = folder / "run", Files()
    statements: dict[str, list[Statement]] = {}
    for party, opened, note in _logs(study, folder):
        tiles = tile_files(opened, note)
        files |= {f"logs/{party}/{name}": data for name, data in tiles.items()}
        statements[party] = _read(opened, note, party, study.digest)
    keys = {party: found[0].predicate["keys"] for party, found in statements.items()}
    files |= {"protocol.json": canonical_json(study.to_dict()), "keys.json": canonical_json(keys)}
    for site in set(statements) - {COORDINATOR}:
        files[f"policies/{site}.json"] = (run / "policies" / f"{site}.json").read_bytes()
    files |= _payloads(run, statements, updates)
    files |= _lists(run, statements[COORDINATOR])
    files |= _dictionaries(folder, statements[COORDINATOR])
    for name in ("report.json", "report.html", SITES_FILE, DEVIATIONS):
        if name.startswith("report.") or (folder / name).exists():
            files[name] = (folder / name).read_bytes()
    manifest = {"urn": URN, "protocol": study.digest}
    listed = {name: sha256_hex(data) for name, data in files.items()}
    return {**files, "bundle.json": canonical_json({**manifest, "files": listed})}


def _check_deviations(folder: Path, study: StudyConfig) -> None:
    """The report prints all that was recorded: an auditor would refuse one that does not."""
    signed = Deviations(folder, SigningKey.load_or_create(folder / "study.key"), study).printed()
    shown = parse_json((folder / "report.json").read_bytes(), max_bytes=1 << 28)["protocol"]["deviations"]
    if signed != shown:
        raise StudyError(
            f"Expected a report with all {len(signed)} deviations, got one with {len(shown)}.",
            hint="Run the study again: it asks for no number again, and the sites cosign a report that prints them.",
        )


def _logs(study: StudyConfig, folder: Path) -> Iterator[tuple[str, Log | Mirror, bytes]]:
    """Every party's log with the checkpoint that goes into the bundle."""
    run, key = folder / "run", SigningKey.load_or_create(folder / "study.key")
    log_key = SigningKey.load_or_create(run / "keys" / "log.key")
    origin = origin_of(study.digest, COORDINATOR)
    with closing(
        Log.open(
            run / "log", origin=origin, party=COORDINATOR, study=study.name, protocol=study.digest,
            signing=key, log_key=log_key,
        )
    ) as log:  # fmt: skip
        pinned = pinned_keys(run, _statement(log.leaf(0))["predicate"])
        yield COORDINATOR, log, _coordinator_head(log, len(study.sites))
    for site in study.sites:
        path = run / "keys" / f"{site}.json"
        if not path.exists():
            continue  # it never answered: the coordinator's log says so
        vkey, origin = parse_json(path.read_bytes())["log"], origin_of(study.digest, site)
        mirror = Mirror(run / "mirrors" / site, origin=origin, vkey=vkey, party=site, signing=pinned[site])
        with closing(mirror):
            yield site, mirror, mirror.cosigned_checkpoint() or mirror.checkpoint()


def _coordinator_head(log: Log, sites: int) -> bytes:
    """The newest head with enough cosignatures that holds the report; failing that the best that there is."""
    last = max((i for i, leaf in enumerate(log.leaves(0, log.size)) if _is_report(leaf)), default=0)
    for count in range(cosigners_needed(sites), 0, -1):
        note = log.cosigned_checkpoint(count)
        if note and _size(note) > last:
            return note
    return log.checkpoint()


def _is_report(leaf: bytes) -> bool:
    return bool(_statement(leaf)["predicateType"] == "urn:cytosae:report:v1")


def _statement(leaf: bytes) -> dict[str, Any]:
    """A leaf's statement, its signature not looked at."""
    return dict(parse_json(unbase64(parse_json(leaf)["payload"])))


def _size(note: bytes) -> int:
    return parse_checkpoint(split_note(note)[0]).size


def _read(log: Log | Mirror, note: bytes, party: str, protocol: str) -> list[Statement]:
    chain = Chain(party, protocol, _statement(log.leaf(0))["predicate"]["keys"]["signing"])
    return [chain.read(leaf) for leaf in log.leaves(0, _size(note))]


def _payloads(run: Path, statements: Mapping[str, list[Statement]], updates: bool) -> Files:
    found = Files()
    for party, items in statements.items():
        for item in items if party != COORDINATOR else ():
            if item.kind != "egress" or (item.predicate["kind"] == "round" and not updates):
                continue
            name = f"{item.predicate['payload']['sha256']}.reply"
            if (
                run / "payloads" / name
            ).exists():  # what never arrived, or was deleted on request, is not there
                found[f"payloads/{name}"] = (run / "payloads" / name).read_bytes()
    return found


def _lists(run: Path, statements: list[Statement]) -> Files:
    """What entries of the coordinator's log name by digest because it does not fit into them."""
    digests = {
        value for item in statements for name in LISTS if isinstance(value := item.predicate.get(name), str)
    }
    return {f"lists/{digest}.json": kept_list(run, digest) for digest in sorted(digests)}


def _dictionaries(folder: Path, statements: list[Statement]) -> Files:
    """The first and the last released dictionary, as their digests name them."""
    released: dict[tuple[Any, ...], str] = {
        (item.predicate["kind"], item.predicate["round"]): item.predicate["dictionary_sha256"]
        for item in statements
        if item.kind == "release"
    }
    steps = (("begin", 0), ("second", 0), ("sum_masked", 0), ("describe", 0))
    wanted, found = {released.get(step) for step in steps}, Files()
    for path in [*sorted((folder / "run").glob("*.safetensors")), folder / "start.safetensors"]:
        tensors = load_tensors(path) if path.exists() else {}
        model = {name: tensors[name] for name in MODEL_TENSORS if name in tensors}
        if (digest := dictionary_digest(model)) in wanted and digest:
            found[f"dictionaries/{digest}.safetensors"] = pack_tensors(model)
    return found
