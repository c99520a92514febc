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
from .verdict import Broken, need

Fields = dict[str, Any]


@dataclass
class PartyLog:
    """One party's log, after all of it was verified. `hashes`: of its leaves."""

    party: str
    chain: Chain
    head: Checkpoint
    hashes: list[bytes]
    statements: list[Statement]
    _roots: dict[int, str] = field(default_factory=dict)

    def of(self, *kinds: str) -> Iterator[Fields]:
        """Predicates of these kinds, in order: `seq` is the leaf's index, `leaf` its kind."""
        return ({**item.predicate, "leaf": item.kind} for item in self.statements if item.kind in kinds)

    def has(self, size: int, root: str) -> bool:
        """Whether this log went through that head."""
        if size not in self._roots:
            self._roots[size] = root_of(self.hashes[:size]).hex()
        return size <= len(self.hashes) and self._roots[size] == root


Logs = Mapping[str, PartyLog]


def at(party: str, fields: Fields) -> str:
    """A leaf as a link: party, index, kind."""
    return f"{party} leaf {fields['seq']} ({fields['leaf']})"


def cosigners_needed(sites: int) -> int:
    """How many sites must have cosigned the coordinator's head: all of one or two, else ceil((sites + 1) / 2)."""
    return sites if sites <= 2 else (sites + 2) // 2


def open_log(bundle: Bundle, party: str) -> PartyLog:
    """Read and verify one log; cosignatures are left to `check_cosignatures`."""
    folder, keys = f"logs/{party}", bundle.keys[party]
    files, note = bundle.under(f"{folder}/"), bundle.get(f"{folder}/checkpoint")
    size = parse_checkpoint(split_note(note)[0]).size
    chain, statements, leaves = Chain(party, bundle.digest, keys["signing"]), [], read_entries(files, size)
    for index, leaf in enumerate(leaves):
        try:
            statements.append(chain.read(leaf))
            bundle.fill(statements[-1].predicate)
        except VerificationError as error:
            raise Broken(f"An entry that does not hold: {error}", f"{party} leaf {index}") from error
    head = open_checkpoint(note, chain.keys["log"], origin=origin_of(bundle.digest, party))
    log = PartyLog(party, chain, head, [leaf_hash(leaf) for leaf in leaves], statements)
    right = log.has(size, head.root.hex())
    need(right, f"The signed head of {party} is not over these {size} leaves.", f"{folder}/checkpoint")
    tiles = _tiles(log.hashes)
    wanted = {"checkpoint", *tiles, *(tile_path("entries", n, w) for n, w in enumerate(widths(size)))}
    for path in sorted(wanted | set(files)):
        right = path in wanted and path in files and files[path] == tiles.get(path, files[path])
        need(right, f"{folder}/{path} does not belong to these leaves.", f"{folder}/{path}")
    _check_keys(log, keys, bundle.protocol["name"])
    return log


def check_log(bundle: Bundle, party: str, logs: dict[str, PartyLog]) -> str:
    """Open a log and keep it with the others."""
    logs[party] = open_log(bundle, party)
    return f"{len(logs[party].statements)} signed entries in order, under the head that {party} signed."


def _check_keys(log: PartyLog, keys: Mapping[str, str], study: str) -> None:
    enrolled, revoked = next(log.of("enrol")), log.chain.revoked
    need(enrolled["keys"] == keys, "Other keys than keys.json names.", at(log.party, enrolled))
    for item in log.statements:
        link = at(log.party, {**item.predicate, "leaf": item.kind})
        trusted = item.predicate["seq"] < revoked.get(("signing", item.signer), len(log.hashes))
        need(trusted or item.kind == "key_revoke", "Signed with a key that was revoked from then on.", link)
        need(item.predicate["study"] == study, "A statement about another study.", link)
    revoked_head = ("log", parse_vkey(log.chain.keys["log"]).public.hex()) in revoked
    need(not revoked_head, f"{log.party} signed its head with a revoked key.", f"logs/{log.party}/checkpoint")


def _tiles(hashes: Sequence[bytes]) -> dict[str, bytes]:
    """The hash tiles over leaf hashes: every full tile's root is one hash of the level above."""
    tiles, level, flat = dict[str, bytes](), 0, list(hashes)
    while flat:
        groups = [flat[start : start + TILE_WIDTH] for start in range(0, len(flat), TILE_WIDTH)]
        tiles |= {tile_path(str(level), n, len(group)): b"".join(group) for n, group in enumerate(groups)}
        level, flat = level + 1, [root_of(group) for group in groups if len(group) == TILE_WIDTH]
    return tiles


def check_cosignatures(bundle: Bundle, logs: Logs) -> str:
    """Enough sites signed the coordinator's head, and the coordinator every site's: all were shown this one."""
    sites = len(bundle.protocol["sites"])
    for party, log in sorted(logs.items()):
        path, good = f"logs/{party}/checkpoint", dict[str, str]()
        for name in (name for name in logs if (party == COORDINATOR) != (name == COORDINATOR)):
            first_and_last = {bundle.keys[name]["cosign"], logs[name].chain.keys["cosign"]}
            for key in first_and_last:
                if ("cosign", parse_vkey(key).public.hex()) not in logs[name].chain.revoked:
                    good[key] = name
        note, own = bundle.get(path), log.chain.keys["log"]
        signed = open_checkpoint(note, own, origin=log.head.origin, witnesses=list(good)).cosigned
        known = len(split_note(note)[1]) == 1 + len(signed)
        need(known, "Signed with a key that nobody has, or that was revoked.", path)
        needed = cosigners_needed(sites) if party == COORDINATOR else 1
        count = len({good[key] for key in signed})
        need(count >= needed, f"{count} parties cosigned the head of {party}, expected {needed}.", path)
    return f"{cosigners_needed(sites)} or more of {sites} sites cosigned the coordinator's head, it theirs."


def check_heads(logs: Logs) -> str:
    """Every head that one party saw of another lies on the log that is here: nothing was forked or rolled back."""
    own = logs[COORDINATOR]
    seen = [(s, f, COORDINATOR, f["coordinator"]) for s in logs for f in logs[s].of("accepted")]
    seen += [(COORDINATOR, f, f["site"], f["site_log"]) for f in own.of("ingress")]
    seen += [(COORDINATOR, f, site, head) for f in own.of("report") for site, head in f["heads"].items()]
    for viewer, fields, party, head in seen:
        right = party in logs and logs[party].has(head["size"], head["root"])
        need(right, f"{viewer} saw another log of {party} than this one.", at(viewer, fields))
    return f"{len(seen)} heads that parties saw of each other lie on these logs."


def check_enrolment(bundle: Bundle, logs: Logs) -> str:
    """The coordinator enrolled the sites of the protocol, with the keys that they enrolled with themselves."""
    first = next(logs[COORDINATOR].of("enrol"))
    sites, link = first["sites"], at(COORDINATOR, first)
    need(sorted(sites) == sorted(bundle.protocol["sites"]), "Other sites than the protocol's.", link)
    for site in sorted(set(sites) & set(logs)):
        need(sites[site] == bundle.keys[site]["signing"], f"{site} has another key than was enrolled.", link)
    absent = sorted(set(sites) - set(logs))
    failed = {fields["site"] for fields in logs[COORDINATOR].of("fault")}
    need(set(absent) <= failed, f"The logs of {absent} are missing, and no fault is on record.", link)
    return f"{len(sites)} sites enrolled" + (f"; never answered: {', '.join(absent)}." if absent else ".")
