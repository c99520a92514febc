"""What was asked, what left, what arrived: releases, policies and budgets, reconciliation, replies, aggregation."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any

from ...canonical import sha256_hex
from ..statement import COORDINATOR
from .bundle import Bundle
from .logs import Fields, Logs, PartyLog, at
from .tensors import Tensor, open_reply, read_tensors
from .verdict import Broken, Missing

OWN_BODY = {"score"}  # the only kind whose body may differ from site to site
SHARED = ("kind", "round", "request_sha256", "status", "wire", "payload")


def check_releases(logs: Logs) -> str:
    """Everybody was asked the same, and acted only on what the coordinator had logged before."""
    bodies: dict[tuple[Any, ...], str] = {}
    models: dict[tuple[Any, ...], str] = {}
    for fields in logs[COORDINATOR].of("release"):
        step, link = (fields["kind"], fields["round"]), at(COORDINATOR, fields, "release")
        if (fields["site"] != "*") != (fields["kind"] in OWN_BODY):
            raise Broken("A question to one site that all sites must be asked alike, or the reverse.", link)
        if bodies.setdefault((*step, fields["site"]), fields["body_sha256"]) != fields["body_sha256"]:
            raise Broken("Split models: two different bodies were released for one step.", link)
        if models.setdefault(step, fields["dictionary_sha256"]) != fields["dictionary_sha256"]:
            raise Broken("Split models: two different dictionaries were released for one step.", link)
    for site, log in logs.items():
        for fields in log.of("accepted", "egress") if site != COORDINATOR else ():
            asked = [bodies.get((fields["kind"], fields["round"], name)) for name in ("*", site)]
            if (
                fields.get("status") != "refused"
                and fields.get("body_sha256", next(filter(None, asked), 0)) not in asked
            ):
                raise Broken(
                    f"{site} acted on what the coordinator never released.", at(site, fields, "request")
                )
    return f"{len(bodies)} questions were released, the same to every site; sites acted on nothing else."


def check_policy(bundle: Bundle, logs: Logs, site: str) -> str:
    """Everything left under the policy in force and within its limits; budgets only grew."""
    log, path = logs[site], f"policies/{site}.json"
    policy, digest = bundle.table(path), sha256_hex(bundle.get(path))
    limits, names = policy["limits"], {*policy["release"]["tensors"], *policy["release"]["metrics"]}
    force, spent, older = "", {"rounds": 0, "messages": 0, "bytes": 0}, 0
    for fields in log.of("policy", "egress"):
        if "wire" not in fields:
            force = fields["policy_sha256"]
            continue
        link, older = at(log.party, fields, "egress"), older + (force != digest)
        if fields["policy_sha256"] != force:
            raise Broken("Left under another policy than the one in force.", link)
        if force != digest:
            continue
        said = (fields["profile"], fields["min_units"])
        if said != (policy["profile"], policy["disclosure"]["min_units"]):
            raise Broken("Left under another profile or smallest group than the policy's.", link)
        if not {item["name"] for item in fields["tensors"]} <= names:
            raise Broken("A tensor left that the policy does not name.", link)
        grown = fields["budget"] if fields["status"] == "ok" else spent
        caps = {"rounds": "rounds", "messages": "messages_total", "bytes": "bytes_total"}
        if any(not spent[name] <= grown[name] <= limits[cap] for name, cap in caps.items()):
            raise Broken("A budget that shrank, or is above the policy's.", link)
        if fields["payload"]["bytes"] > limits["bytes_per_message"]:
            raise Broken("A message larger than the policy allows.", link)
        spent = grown
    if force != digest:
        raise Broken(f"{path} is not the policy that {log.party} logged last.", path)
    if older:
        raise Missing(f"{older} messages left under an earlier policy that is not in the bundle.")
    return f"Every message kept to policy {policy['name']!r}: {spent['messages']} messages, {spent['bytes']} bytes spent."


def check_privacy(logs: Logs, report: Fields) -> str:
    """Epsilons add up; where none was spent, none is printed."""
    total = {site: Decimal(0) for site in logs}
    for site, log in logs.items():
        for fields in log.of("egress"):
            if fields["dp"]["mechanism"] != "none":
                total[site] += Decimal(fields["dp"]["epsilon"]) if fields["repeats"] < 0 else 0
                if Decimal(fields["dp"]["epsilon_total"]) != total[site]:
                    raise Broken(
                        "The epsilons spent do not add up to the stated total.", at(site, fields, "egress")
                    )
    printed = _named(report, "epsilon")
    if printed and not any(total.values()):
        raise Broken(f"The report prints {printed}, but no site used differential privacy.", "report.json")
    return (
        "Epsilons add up."
        if any(total.values())
        else "No site claims differential privacy; no epsilon is printed."
    )


def _named(value: Any, word: str) -> str:
    if isinstance(value, list):
        return next(filter(None, (_named(item, word) for item in value)), "")
    if not isinstance(value, dict):
        return ""
    here = (key for key, item in value.items() if word in key.lower() and item is not None)
    return next(here, "") or _named(list(value.values()), word)


def reconcile(logs: Logs, site: str) -> str:
    """What the site says left is what the coordinator says arrived, message by message."""
    left = {fields["wire"]["sha256"]: fields for fields in logs[site].of("egress")}
    coordinator = logs[COORDINATOR]
    arrived = [fields for fields in coordinator.of("ingress") if fields["site"] == site]
    if len(left) != sum(1 for _ in logs[site].of("egress")):
        raise Broken(f"{site} logged the same message twice.", f"{site} (egress)")
    lost = dict(left)
    for fields in arrived:
        link, found = at(COORDINATOR, fields, "ingress"), lost.pop(fields["wire"]["sha256"], None)
        if fields["wire"]["sha256"] not in left:
            raise Broken(f"Received from {site}, but {site} never logged that it left.", link)
        if found is None:
            raise Broken(f"One message of {site} was received twice: a replay.", link)
        if any(found[name] != fields[name] for name in SHARED) or fields["site_log"]["index"] != found["seq"]:
            raise Broken(f"The receipt says other things of this message than {site} does.", link)
    repeated = {fields["repeats"] for fields in left.values()}
    failed = {item for fields in coordinator.of("fault") for item in fields["requests"]}
    for fields in lost.values():
        closing = (
            fields["kind"] == "close" and not fields["tensors"]
        )  # may follow the head that is in the bundle
        if not (closing or fields["seq"] in repeated or fields["request_sha256"] in failed):
            raise Broken(f"Left {site}, but never arrived, and nobody says why.", at(site, fields, "egress"))
    for fields in left.values():
        earlier = next((item for item in left.values() if item["seq"] == fields["repeats"]), None)
        if fields["repeats"] >= 0 and (earlier or {}).get("job") != fields["job"]:
            raise Broken("Named a repeat of a message that asked something else.", at(site, fields, "egress"))
    return (
        f"{len(left)} messages left, {len(arrived)} arrived, {len(lost)} were lost on the way with a reason."
    )


@dataclass
class Replies:
    """Verified replies that arrived before the report, by (kind, round, site); those not in the bundle are None."""

    tensors: dict[tuple[str, int, str], dict[str, Tensor] | None] = field(default_factory=dict)
    received: dict[str, list[Fields]] = field(default_factory=lambda: defaultdict(list))

    def values(self, kind: str, number: int, site: str, name: str) -> list[float] | None:
        """Numbers of one tensor; None when the site never gave this reply."""
        found = self.tensors.get((kind, number, site), {})
        if found is None:
            raise Missing(
                f"Reply {kind} {number} of {site} is not in the bundle, so its numbers were not recomputed."
            )
        return found[name].values() if name in found else None


def check_replies(bundle: Bundle, logs: Logs, replies: Replies) -> str:
    """Every reply in the bundle is signed by its site and holds what the site's log says."""
    named: dict[str, tuple[PartyLog, Fields]] = {}
    for log in logs.values():
        named |= {fields["payload"]["sha256"]: (log, fields) for fields in log.of("egress")}
    opened = {}
    for path in sorted(bundle.under("payloads/")):
        if path.removesuffix(".reply") not in named:
            raise Broken("A reply that no site logged.", f"payloads/{path}")
        opened[path] = _open(bundle, path, *named[path.removesuffix(".reply")])
    closed = max((fields["seq"] for fields in logs[COORDINATOR].of("report")), default=0)
    for fields in logs[COORDINATOR].of("ingress"):
        if fields["seq"] < closed:
            replies.received[fields["site"]].append(fields)
        if fields["seq"] < closed and fields["status"] == "ok":
            step = (fields["kind"], fields["round"], fields["site"])
            replies.tensors[step] = opened.get(
                f"{fields['payload']['sha256']}.reply", replies.tensors.get(step)
            )
    absent = len(named) - len(opened)
    if absent:
        raise Missing(f"{len(opened)} replies hold; {absent} that left are not in the bundle.")
    return f"{len(opened)} replies are signed by their sites and hold what the logs say."


def _open(bundle: Bundle, path: str, log: PartyLog, fields: Fields) -> dict[str, Tensor]:
    data, link = bundle.get(f"payloads/{path}"), f"payloads/{path}"
    if (sha256_hex(data), len(data)) != (fields["payload"]["sha256"], fields["payload"]["bytes"]):
        raise Broken(f"Not the reply of {at(log.party, fields, 'egress')}.", link)
    header, body = open_reply(data, log.statements[fields["seq"]].signer)
    wanted = {
        name: fields[name] for name in ("study", "protocol", "kind", "round", "request_sha256", "status")
    }
    if any(header.get(name) != value for name, value in ({**wanted, "site": log.party}).items()):
        raise Broken(f"The reply says other things of itself than {at(log.party, fields, 'egress')}.", link)
    tensors = read_tensors(body)
    held = [
        {
            "name": name,
            "dtype": item.dtype,
            "shape": item.shape,
            "suppressed": header["suppressed"].get(name, 0),
        }
        for name, item in tensors.items()
    ]
    if sorted(held, key=str) != sorted(fields["tensors"], key=str):
        raise Broken(f"The reply holds other tensors than {at(log.party, fields, 'egress')} lists.", link)
    return tensors


def check_aggregates(bundle: Bundle, logs: Logs) -> str:
    """Every round used exactly the replies that arrived, and started from the dictionary before it."""
    coordinator = logs[COORDINATOR]
    dictionary = {(f["kind"], f["round"]): f["dictionary_sha256"] for f in coordinator.of("release")}
    dropped = {(f["kind"], f["round"], f["site"]) for f in coordinator.of("fault")}
    arrived, last = defaultdict(set), {}
    for fields in coordinator.of("ingress", "aggregate"):
        if "rule" not in fields:
            if fields["kind"] == "round" and fields["status"] == "ok":
                arrived[fields["round"], fields["site"]].add(fields["payload"]["sha256"])
            continue
        link, number = at(COORDINATOR, fields, "aggregate"), fields["round"]
        used = {item["site"]: item["payload_sha256"] for item in fields["inputs"]}
        there = {site for at_round, site in arrived if at_round == number}
        unused = {site for site in there - set(used) if ("round", number, site) not in dropped}
        if (
            len(used) != len(fields["inputs"])
            or any(arrived[number, s] & {used[s]} == set() for s in used)
            or unused
        ):
            raise Broken(f"Round {number} was not made from exactly the replies that arrived.", link)
        before = dictionary.get(("begin", 0)) if number == 1 else last.get(number - 1)
        if not before == dictionary.get(("round", number)) == fields["base_sha256"]:
            raise Broken(f"Round {number} did not start from the dictionary before it.", link)
        if last.setdefault(number, fields["result_sha256"]) != fields["result_sha256"]:
            raise Broken(f"Round {number} has two results.", link)
    final = dictionary.get(("describe", 0), "")
    if last and final != last[max(last)]:
        raise Broken(
            "The dictionary that was described is not the last round's.", "coordinator (release describe 0)"
        )
    for name in sorted(bundle.under("dictionaries/")):
        digest = name.removesuffix(".safetensors")
        if sha256_hex(bundle.get(f"dictionaries/{name}")) != digest or digest not in dictionary.values():
            raise Broken("A dictionary that was never released.", f"dictionaries/{name}")
    rounds = f"{len(last)} rounds follow from each other" if last else "No rounds: the dictionary was frozen"
    return f"{rounds}; the arithmetic inside a round is redone by `cytosae audit replay`."
