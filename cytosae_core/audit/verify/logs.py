"""Every party's log: leaves, order, signatures, tree, head, and who cosigned the head."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ...errors import VerificationError
from ..merkle import leaf_hash, root_of
from ..note import Checkpoint, open_checkpoint, origin_of, parse_checkpoint, parse_vkey, split_note
from ..statement import COORDINATOR, Chain, Statement
from ..tiles import TILE_WIDTH, read_entries, tile_path, widths
from .bundle import Bundle
from .verdict import Broken

Fields = dict[str, Any]


@dataclass
class PartyLog:
    """One party's log, after all of it was verified."""

    party: str
    chain: Chain
    head: Checkpoint
    hashes: list[bytes]
    statements: list[Statement] = field(default_factory=list)
    _roots: dict[int, str] = field(default_factory=dict)

    def of(self, *kinds: str) -> Iterator[Fields]:
        """Predicates of these kinds, in order; `seq` is the leaf's index."""
        return (item.predicate for item in self.statements if item.kind in kinds)

    def has(self, size: int, root: str) -> bool:
        """Whether this log went through that head."""
        if size not in self._roots:
            self._roots[size] = root_of(self.hashes[:size]).hex()
        return size <= len(self.hashes) and self._roots[size] == root


Logs = Mapping[str, PartyLog]


def at(party: str, fields: Fields, kind: str) -> str:
    """A leaf as a link: party, index, kind."""
    return f"{party} leaf {fields['seq']} ({kind})"


def cosigners_needed(sites: int) -> int:
    """How many sites must have cosigned the coordinator's head: all of one or two, else ceil((sites + 1) / 2)."""
    return sites if sites <= 2 else (sites + 2) // 2


def open_log(bundle: Bundle, party: str) -> PartyLog:
    """Read and verify one log; cosignatures are left to `check_cosignatures`."""
    folder, keys = f"logs/{party}", bundle.keys[party]
    files, note = bundle.under(f"{folder}/"), bundle.get(f"{folder}/checkpoint")
    size = parse_checkpoint(split_note(note)[0]).size
    chain, statements = Chain(party, bundle.digest, keys["signing"]), []
    leaves = read_entries(files, size)
    for index, leaf in enumerate(leaves):
        try:
            statements.append(chain.read(leaf))
        except VerificationError as error:
            raise Broken(
                f"Leaf {index} of {party} does not hold: {error}", f"{party} leaf {index}"
            ) from error
    log = PartyLog(
        party,
        chain,
        open_checkpoint(note, chain.keys["log"], origin=origin_of(bundle.digest, party)),
        [leaf_hash(leaf) for leaf in leaves],
        statements,
    )
    if not log.has(size, log.head.root.hex()):
        raise Broken(f"The signed head of {party} is not over these {size} leaves.", f"{folder}/checkpoint")
    tiles = _tiles(log.hashes)
    wanted = {"checkpoint", *tiles, *(tile_path("entries", n, w) for n, w in enumerate(widths(size)))}
    for path in sorted(wanted ^ set(files)) + sorted(path for path in tiles if files[path] != tiles[path]):
        raise Broken(f"{folder}/{path} does not belong to these leaves.", f"{folder}/{path}")
    _check_keys(log, keys, bundle.protocol["name"])
    return log


def _check_keys(log: PartyLog, keys: Mapping[str, str], study: str) -> None:
    if next(log.of("enrol"))["keys"] != keys:
        raise Broken(
            f"{log.party} enrolled with other keys than keys.json names.", f"{log.party} leaf 0 (enrol)"
        )
    for item in log.statements:
        since = log.chain.revoked.get(("signing", item.signer), len(log.hashes))
        if item.predicate["seq"] >= since and item.kind != "key_revoke":
            raise Broken(
                "Signed with a key that was revoked from then on.", at(log.party, item.predicate, item.kind)
            )
        if item.predicate["study"] != study:
            raise Broken("A statement about another study.", at(log.party, item.predicate, item.kind))
    if ("log", parse_vkey(log.chain.keys["log"]).public.hex()) in log.chain.revoked:
        raise Broken(f"The head of {log.party} is signed with a revoked key.", f"logs/{log.party}/checkpoint")


def _tiles(hashes: Sequence[bytes]) -> dict[str, bytes]:
    """The hash tiles over leaf hashes: every full tile's root is one hash of the level above."""
    tiles: dict[str, bytes] = {}
    level, groups = 0, [list(hashes)]
    while groups != [[]]:
        flat = groups[0]
        groups = [flat[start : start + TILE_WIDTH] for start in range(0, len(flat), TILE_WIDTH)]
        tiles |= {tile_path(str(level), n, len(group)): b"".join(group) for n, group in enumerate(groups)}
        level, groups = level + 1, [[root_of(group) for group in groups if len(group) == TILE_WIDTH]]
    return tiles


def check_cosignatures(bundle: Bundle, logs: Logs) -> str:
    """Enough sites signed the coordinator's head, and the coordinator every site's: no second version is shown."""
    sites = len(bundle.protocol["sites"])
    needed = cosigners_needed(sites)
    for party, log in sorted(logs.items()):
        others = {
            name: other.chain
            for name, other in logs.items()
            if (party == COORDINATOR) != (name == COORDINATOR)
        }
        keys = {name: _cosign_keys(bundle, name, chain) for name, chain in others.items()}
        known = [key for found in keys.values() for key in found]
        path = f"logs/{party}/checkpoint"
        note = open_checkpoint(
            bundle.get(path), log.chain.keys["log"], origin=log.head.origin, witnesses=known
        )
        signed = sorted(name for name, found in keys.items() if found & set(note.cosigned))
        if len(signed) < (needed if party == COORDINATOR else 1):
            raise Broken(f"The head of {party} is cosigned by {signed or 'nobody'}, which is too few.", path)
    return f"The coordinator's head is cosigned by at least {needed} of {sites} sites, every site's by the coordinator."


def _cosign_keys(bundle: Bundle, party: str, chain: Chain) -> set[str]:
    """A party's first and last cosignature key, without those that were revoked."""
    found = {bundle.keys[party]["cosign"], chain.keys["cosign"]}
    return {key for key in found if ("cosign", parse_vkey(key).public.hex()) not in chain.revoked}


def check_heads(logs: Logs) -> str:
    """Every head that one party saw of another lies on the log that is here: nothing was forked or rolled back."""
    coordinator, count = logs[COORDINATOR], 0
    for site, log in logs.items():
        for fields in log.of("accepted"):
            count += 1
            if not coordinator.has(**fields["coordinator"]):
                raise Broken(
                    f"{site} was shown another log of the coordinator.", at(site, fields, "accepted")
                )
    for fields in coordinator.of("ingress"):
        count += 1
        if not logs[fields["site"]].has(fields["site_log"]["size"], fields["site_log"]["root"]):
            raise Broken(
                f"The coordinator saw another log of {fields['site']}.", at(COORDINATOR, fields, "ingress")
            )
    for fields in coordinator.of("report"):
        for site, head in fields["heads"].items():
            count += 1
            if not logs[site].has(**head):
                raise Broken(f"The report names another log of {site}.", at(COORDINATOR, fields, "report"))
    return f"{count} heads that parties saw of each other lie on these logs."


def check_enrolment(bundle: Bundle, logs: Logs) -> str:
    """The coordinator enrolled the sites of the protocol, with the keys that they enrolled with themselves."""
    first = next(logs[COORDINATOR].of("enrol"))
    if sorted(first["sites"]) != sorted(bundle.protocol["sites"]):
        raise Broken(
            "The coordinator enrolled other sites than the protocol names.", at(COORDINATOR, first, "enrol")
        )
    absent = sorted(set(first["sites"]) - set(logs))
    for site, key in first["sites"].items():
        if site in logs and key != bundle.keys[site]["signing"]:
            raise Broken(
                f"{site} has another key than the coordinator enrolled.", at(COORDINATOR, first, "enrol")
            )
    failed = {fields["site"] for fields in logs[COORDINATOR].of("fault")}
    if not set(absent) <= failed:
        raise Broken(
            f"The logs of {absent} are missing, and no fault is on record.", at(COORDINATOR, first, "enrol")
        )
    return f"{len(first['sites'])} sites enrolled" + (
        f"; never answered: {', '.join(absent)}." if absent else "."
    )
