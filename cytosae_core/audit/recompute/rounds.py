"""What the coordinator made of the replies, as far as logs say it: rounds that follow, epsilons that add up."""

from __future__ import annotations

import math
from collections import defaultdict
from typing import Any

from ...canonical import sha256_hex
from ..statement import COORDINATOR
from ..verify.bundle import Bundle
from ..verify.logs import Logs, PartyLog, at
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
    """Every epsilon follows from its noise, all of a site's releases together from theirs, and none is above the
    protocol's; where none was spent, none is printed."""
    promised = _promised(bundle)
    spent = {site: _check_spent(site, log, promised) for site, log in logs.items()}
    printed = _named(bundle.table("report.json", canonical=False), "epsilon")
    need(any(spent.values()) or not printed, f"The report prints {printed}; nobody used it.", "report.json")
    if not any(spent.values()):
        return "No differential privacy is claimed, no epsilon printed."
    return f"Epsilons follow from the noise of every release: at most {max(spent.values()):.3g} at any site."


def _promised(bundle: Bundle) -> float:
    """The protocol's epsilon; infinite where it has none."""
    privacy = bundle.protocol.get("privacy")
    stated = privacy.get("epsilon") if isinstance(privacy, dict) else None
    return float(stated) if stated else math.inf


def _check_spent(site: str, log: PartyLog, promised: float) -> float:
    """What a site's releases cost together: Gaussian releases from all patients, composed exactly."""
    squares, total = 0.0, 0.0
    for fields in log.of("egress"):
        dp, link = fields["dp"], at(site, fields)
        if dp["mechanism"] == "none":
            continue
        noise, delta = float(dp["noise_multiplier"]), float(dp["delta"])
        squares += 1 / noise**2 if fields["repeats"] < 0 else 0.0
        alone, total = epsilon_of(1 / noise, delta), epsilon_of(math.sqrt(squares), delta)
        stated = float(dp["epsilon"])  # an accountant may round it up
        fits = alone * (1 - 1e-6) <= stated <= alone * 1.02 + 0.01
        need(fits, f"States epsilon {stated:g} of noise that gives {alone:.4g}.", link)
        same = math.isclose(float(dp["epsilon_total"]), total, rel_tol=1e-6)
        need(same, "The epsilons spent do not add up to the stated total.", link)
        need(total <= promised * (1 + 1e-6), f"Spent {total:.4g}, above the protocol's {promised:g}.", link)
    return total


def epsilon_of(mu: float, delta: float) -> float:
    """Epsilon at delta of Gaussian releases of joint strength mu: Balle and Wang 2018, Theorem 8, by bisection."""

    def above(epsilon: float) -> bool:
        cut = epsilon / mu
        tail = math.exp(min(epsilon, 700)) * math.erfc((mu / 2 + cut) / math.sqrt(2)) / 2
        return math.erfc((cut - mu / 2) / math.sqrt(2)) / 2 - tail > delta

    low, high = 0.0, 1.0
    while above(high) and high < 1e6:
        high *= 2
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if above(middle) else (low, middle)
    return high if above(0.0) else 0.0


def _named(value: Any, word: str) -> str:
    """The first key in a JSON value that contains a word and has a value."""
    if not isinstance(value, dict | list):
        return ""
    items = value.items() if isinstance(value, dict) else [("", item) for item in value]
    found = (key if word in key.lower() and item is not None else _named(item, word) for key, item in items)
    return next(filter(None, found), "")
