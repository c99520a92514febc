"""What was asked, what left, what arrived, and which report was made: from the logs alone."""

from __future__ import annotations

from typing import Any

from ...canonical import sha256_hex
from ..statement import COORDINATOR
from .bundle import Bundle
from .logs import Fields, Logs, at
from .verdict import Missing, need

OWN_BODY = {"score", "sum_masked"}  # kinds whose body differs from site to site
SHARED = ("kind", "round", "request_sha256", "status", "wire", "payload")
CAPS = {"rounds": "rounds", "messages": "messages_total", "bytes": "bytes_total"}


def check_releases(logs: Logs) -> str:
    """Everybody was asked the same, and acted only on what the coordinator had logged before."""
    asked: dict[tuple[Any, ...], Fields] = {}
    models: dict[tuple[Any, ...], str] = {}
    for fields in logs[COORDINATOR].of("release"):
        link, kind, number = at(COORDINATOR, fields), fields["kind"], fields["round"]
        own = kind in OWN_BODY
        need((fields["site"] != "*") == own, "A question to other sites than its kind is for.", link)
        first = asked.setdefault((kind, number, fields["site"]), fields)
        same = first["body_sha256"] == fields["body_sha256"]
        same &= models.setdefault((kind, number), fields["dictionary_sha256"]) == fields["dictionary_sha256"]
        need(same, "Split models: one step was released in two versions.", link)
    for site in sorted(set(logs) - {COORDINATOR}):
        for fields in logs[site].of("accepted", "egress"):
            target = site if fields["kind"] in OWN_BODY else "*"
            found, link = asked.get((fields["kind"], fields["round"], target)), at(site, fields)
            need(found or fields.get("status") == "refused", "An answer to what was never released.", link)
            if found and "body_sha256" in fields:
                same = fields["body_sha256"] == found["body_sha256"]
                need(same, f"{site} was given another body than the one released: split models.", link)
                need(found["seq"] < fields["coordinator"]["size"], "Released only afterwards.", link)
    return f"{len(asked)} questions were released, the same to every site; sites acted on nothing else."


def check_policy(bundle: Bundle, logs: Logs, site: str) -> str:
    """Everything left under the policy in force and within its limits; budgets only grew."""
    path = f"policies/{site}.json"
    policy, digest = bundle.table(path), sha256_hex(bundle.get(path))
    limits, names = policy["limits"], {*policy["release"]["tensors"], *policy["release"]["metrics"]}
    frame = (policy["profile"], policy["disclosure"]["min_units"])
    force, older, spent = "", 0, dict.fromkeys(CAPS, 0)
    for fields in logs[site].of("policy", "egress"):
        if fields["leaf"] == "policy":
            force = fields["policy_sha256"]
            continue
        link, older = at(site, fields), older + (force != digest)
        need(fields["policy_sha256"] == force, "Left under another policy than the one in force.", link)
        if force == digest:
            kept = (fields["profile"], fields["min_units"]) == frame
            need(kept, "Left under other rules than the policy's.", link)
            need({item["name"] for item in fields["tensors"]} <= names, "Not named in the policy.", link)
            now = fields["budget"] if fields["status"] == "ok" else spent
            fits = all(spent[name] <= now[name] <= limits[cap] for name, cap in CAPS.items())
            fits &= fields["payload"]["bytes"] <= limits["bytes_per_message"]
            need(fits, "A message or budget above the policy's, or a budget that shrank.", link)
            spent = now
    need(force == digest, f"{path} is not the policy that {site} logged last.", path)
    if older:
        raise Missing(f"{older} messages left under an earlier policy that is not in the bundle.")
    return f"All within policy {policy['name']!r}: {spent['messages']} messages, {spent['bytes']} bytes."


def reconcile(logs: Logs, site: str) -> str:
    """What the site says left is what the coordinator says arrived, message by message."""
    egress = list(logs[site].of("egress"))
    left = {fields["wire"]["sha256"]: fields for fields in egress}
    need(len(left) == len(egress), f"{site} logged one message twice: a replay.", f"{site} (egress)")
    arrived = [fields for fields in logs[COORDINATOR].of("ingress") if fields["site"] == site]
    lost = dict(left)
    for fields in arrived:
        link, digest = at(COORDINATOR, fields), fields["wire"]["sha256"]
        need(digest in left, f"Received from {site}, but {site} never logged that it left.", link)
        need(digest in lost, f"One message of {site} was received twice: a replay.", link)
        found = lost.pop(digest)
        same = [fields[name] for name in SHARED] == [found[name] for name in SHARED]
        same &= found["seq"] == fields["site_log"]["index"] < fields["site_log"]["size"]
        need(same, f"The receipt says other things of this message than {site} does.", link)
    failed = {item for fields in logs[COORDINATOR].of("fault") for item in fields["requests"]}
    known, repeated = {fields["seq"]: fields for fields in egress}, {fields["repeats"] for fields in egress}
    for fields in egress:
        earlier, link = known.get(fields["repeats"], fields), at(site, fields)
        need(earlier["job"] == fields["job"], "Named a repeat of a message that asked something else.", link)
        why = fields["seq"] in repeated or fields["request_sha256"] in failed
        why |= fields["kind"] == "close" and not fields["tensors"]  # follows the head that is in the bundle
        came = fields["wire"]["sha256"] not in lost
        need(came or why, f"Left {site}, but never arrived, and nobody says why.", link)
    return f"{len(egress)} messages left, {len(arrived)} arrived, {len(lost)} did not, each with a reason."


def check_report(bundle: Bundle, logs: Logs) -> str:
    """Report and page are those that the coordinator logged last, over every site's log."""
    reports = list(logs[COORDINATOR].of("report"))
    fields = reports[-1]
    digests = [("report", sha256_hex(bundle.get(f"report.{kind}"))) for kind in ("json", "html")]
    subjects = logs[COORDINATOR].statements[fields["seq"]].subjects
    same = fields["report_sha256"] == digests[0][1] and digests[0] in subjects
    need(same, "report.json is not the report that the coordinator logged.", "report.json")
    need(digests[1] in subjects, "report.html is not the page that the coordinator logged.", "report.html")
    named = fields["heads"].keys() == logs.keys() - {COORDINATOR}
    need(named, "Made without the log of every site.", at(COORDINATOR, fields))
    return f"report.json and report.html are in the coordinator's leaf {fields['seq']}, report {len(reports)} of it."
