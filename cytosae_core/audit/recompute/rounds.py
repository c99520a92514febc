"""What the coordinator made of the replies, as far as logs say it: rounds that follow, epsilons that add up."""

from __future__ import annotations

from collections import defaultdict
from decimal import Decimal
from typing import Any

from ...canonical import sha256_hex
from ..statement import COORDINATOR
from ..verify.bundle import Bundle
from ..verify.logs import Logs, at
from ..verify.verdict import need


def check_aggregates(bundle: Bundle, logs: Logs) -> str:
    """Every round used exactly the replies that arrived, and started from the dictionary before it."""
    own, last = logs[COORDINATOR], dict[int, str]()
    dictionary = {(f["kind"], f["round"]): f["dictionary_sha256"] for f in own.of("release")}
    dropped = {(f["round"], f["site"]) for f in own.of("fault") if f["kind"] == "round"}
    arrived: dict[int, dict[str, set[str]]] = defaultdict(lambda: defaultdict(set))
    for fields in own.of("ingress", "aggregate"):
        number, link = fields["round"], at(COORDINATOR, fields)
        if fields["leaf"] == "ingress":
            if fields["kind"] == "round" and fields["status"] == "ok":
                arrived[number][fields["site"]].add(fields["payload"]["sha256"])
            continue
        used = {item["site"]: item["payload_sha256"] for item in fields["inputs"]}
        exact = len(used) == len(fields["inputs"]) and all(used[s] in arrived[number][s] for s in used)
        exact &= all(site in used or (number, site) in dropped for site in arrived[number])
        need(exact, f"Round {number} was not made from exactly the replies that arrived.", link)
        before = dictionary.get(("begin", 0)) if number == 1 else last.get(number - 1)
        chained = before == dictionary.get(("round", number)) == fields["base_sha256"]
        need(chained, f"Round {number} did not start from the dictionary before it.", link)
        once = last.setdefault(number, fields["result_sha256"]) == fields["result_sha256"]
        need(once, f"Round {number} has two results.", link)
    final = not last or dictionary.get(("describe", 0)) == last[max(last)]
    need(final, "The dictionary that was described is not the last round's.", f"{COORDINATOR} (release)")
    for name in sorted(bundle.under("dictionaries/")):
        digest, path = name.removesuffix(".safetensors"), f"dictionaries/{name}"
        known = digest in dictionary.values() and sha256_hex(bundle.get(path)) == digest
        need(known, "A dictionary that was never released.", path)
    return f"{len(last)} rounds follow from each other; `cytosae audit replay` redoes their arithmetic."


def check_privacy(bundle: Bundle, logs: Logs) -> str:
    """Epsilons add up; where none was spent, none is printed."""
    total = dict.fromkeys(logs, Decimal(0))
    for site, log in logs.items():
        for fields in log.of("egress"):
            if fields["dp"]["mechanism"] != "none":
                total[site] += Decimal(fields["dp"]["epsilon"]) if fields["repeats"] < 0 else 0
                same = Decimal(fields["dp"]["epsilon_total"]) == total[site]
                need(same, "The epsilons spent do not add up to the stated total.", at(site, fields))
    printed = _named(bundle.table("report.json", canonical=False), "epsilon")
    need(any(total.values()) or not printed, f"The report prints {printed}; nobody used it.", "report.json")
    return (
        "Epsilons add up."
        if any(total.values())
        else "No differential privacy is claimed, no epsilon printed."
    )


def _named(value: Any, word: str) -> str:
    """The first key in a JSON value that contains a word and has a value."""
    if not isinstance(value, dict | list):
        return ""
    items = value.items() if isinstance(value, dict) else [("", item) for item in value]
    found = (key if word in key.lower() and item is not None else _named(item, word) for key, item in items)
    return next(filter(None, found), "")
