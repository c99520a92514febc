"""The dashboard as text: a pure function of `watch.snapshot`. Its script only puts newer text in place of old."""

from __future__ import annotations

import base64
import hashlib
import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from cytosae_core.report.figure import Figure
from cytosae_core.report.figures import by_round
from cytosae_core.report.figures_study import bytes_by_round
from cytosae_core.report.page import Gap, TableCell, facts, figure, section, table, tag, words
from cytosae_core.report.style import CSS
from cytosae_core.report.text import byte_size, escape

Json = Mapping[str, Any]
SCRIPT = """
const main=document.getElementById('live'),line=document.getElementById('line');
const source=new EventSource('events');
source.onmessage=e=>{main.innerHTML=JSON.parse(e.data).html;line.textContent='live'};
source.onerror=()=>{line.textContent='not connected: the numbers below are old; trying again'};
"""
_DIGEST = base64.b64encode(hashlib.sha256(SCRIPT.encode()).digest()).decode()
POLICY = (
    f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{_DIGEST}'; connect-src 'self'; "
    "img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
LIVE_CSS = """
.now{font:600 22px/1.35 var(--sans);margin:4px 0 14px}.ok{color:var(--good)}.bad{color:var(--differ)}
.bar{height:10px;background:var(--faint);border-radius:5px;overflow:hidden;margin:8px 0 18px}
.bar i{display:block;height:100%;background:var(--hold)}
td code{font-size:12px}
"""
STATUS = {
    "not started": "Not started yet",
    "waiting": "Waiting for sites",
    "running": "Running",
    "complete": "Complete: the report is made",
    "stopped": "Stopped; `cytosae study start` goes on",
    "killed": "Ended by force; `cytosae study start` goes on",
    "pending": "Starting",
    "starting": "Starting",
}
STEPS = {
    "hello": "asking every site who it is", "moments": "mean and scale of all tokens",
    "begin": "the start dictionary at every site", "round": "training round",
    "second": "noised moments of what is left", "third": "noised moments of what is left, once more",
    **{f"{kind}-{stage}": f"a sum under masks: {words}" for kind in ("second", "third") for stage, words in (
        ("keys", "keys"), ("shares", "shares of keys"), ("masked", "masked vectors"), ("confirm", "who is in it"),
        ("unmask", "masks taken off"))},
    "score": "sites judge each other's readouts", "close": "showing every site the report's digest",
}  # fmt: skip
DOING = {"sent": "at work", "done": "answered", "approval": "waits for its officer", "": "nothing asked"}
ENROLMENT = {
    "": "not invited", "invited": "invited, has not joined", "pending": "joined: confirm its fingerprint",
    "confirmed": "enrolled",
}  # fmt: skip
EVENTS = {
    "invited": "was invited", "enrolled": "sent its keys", "confirmed": "was confirmed", "started": "study started",
    "stopped": "study stopped", "failed": "run failed",
    "submitted": "run handed to Flower", "restarted": "program started again",
}  # fmt: skip


def page(state: Json) -> str:
    """The whole page, readable without the script."""
    head = tag(
        "head",
        '<meta charset="utf-8"><meta name="viewport" content="width=device-width,initial-scale=1">'
        '<link rel="icon" href="data:,">'
        + words("title", f"{state['study']}: live")
        + f"<style>{CSS}{LIVE_CSS}</style>",
    )
    mast = tag(
        "header", words("b", "CytoSAE Federation") + words("span", "loaded", id="line"), class_="masthead"
    )
    main = tag("main", fragment(state), id="live")
    foot = tag("footer", words("b", "Research use; not a medical device.") + escape(" Read-only."))
    mark = words("aside", "SIMULATED SITES", class_="band") if state["simulation"] else ""
    body = tag("body", mark + tag("div", mast + main + foot, class_="sheet") + f"<script>{SCRIPT}</script>")
    return f'<!DOCTYPE html>\n<html lang="en">{head}{body}</html>\n'


def fragment(state: Json) -> str:
    """What changes while the study runs."""
    parts = [_first(state), _sites(state), _training(state), _faults(state), _logs(state), _events(state)]
    return "".join(parts)


def headline(state: Json) -> str:
    """One sentence: where the study is."""
    said = STATUS.get(str(state["status"]), str(state["status"]).replace("finished:", "Ended: "))
    now = state["now"]
    if state["status"] in ("running", "starting") and now["step"]:
        step = STEPS.get(now["step"], str(now["step"]).replace("describe-", "concept tables: "))
        said = f"{said}: {step}" + (f" {now['round']} of {now['of']}" if now["step"] == "round" else "")
    left = state["seconds_left"]
    return said + (
        f", about {duration(left)} of rounds left" if left and state["status"] == "running" else ""
    )


def trouble(state: Json) -> str:
    """One sentence when the run failed before; empty otherwise."""
    failed = state["failures"]
    if not failed:
        return ""
    return (
        f"The run failed before ({failed['why']}): try {failed['try']} of {failed['of']} goes on from there."
    )


def duration(seconds: int) -> str:
    """Seconds in words."""
    for size, name in ((86400, "days"), (3600, "hours"), (60, "minutes")):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {name}"
    return f"{seconds} seconds"


def down_word(state: Json) -> str:
    """A program that does not run is news only while the study does."""
    return " DOWN" if state["status"] in ("running", "waiting") else " ended"


def _first(state: Json) -> str:
    down = [name for name, child in state["programs"].items() if not child["running"]]
    failed = trouble(state)
    bad = (bool(down) and state["status"] in ("running", "waiting")) or bool(failed)
    said = words("p", headline(state), class_=f"now {'bad' if bad else 'ok'}")
    said += words("p", failed, class_="now bad") if failed else ""
    total = state["rounds"] or 1
    share = 100 * min(state["rounds_done"], total) / total
    bar = tag("div", f'<i style="width:{share:.0f}%"></i>', class_="bar", role="img",
              aria_label=f"{state['rounds_done']} of {state['rounds']} rounds")  # fmt: skip
    online = sum(bool(site["online"]) for site in state["sites"].values())
    programs = ", ".join(
        f"{name}{'' if child['running'] else down_word(state)}"
        + (f" (started {child['starts']} times)" if child["starts"] > 1 else "")
        for name, child in state["programs"].items()
    )
    items: list[tuple[str, TableCell]] = [
        ("Rounds", f"{state['rounds_done']} of {state['rounds']}"),
        ("Sites online", f"{online} of {len(state['sites'])}"),
        ("Arrived from sites", byte_size(state["bytes"])),
        ("Privacy", str(state["privacy"])),
        ("Programs here", programs or "none yet"),
    ]
    return tag("section", words("h1", state["study"]) + said + bar + facts(items), class_="first")


def _sites(state: Json) -> str:
    header = ("Site", "Enrolment", "Now", "Rounds", "Unexplained (FVU)", "Sent", "Missed")
    rows: list[list[TableCell]] = [
        [
            name, ENROLMENT[site["enrolment"]], doing(site, state["at"]), str(site["rounds"]),
            Gap("none yet") if site["fvu"] is None else f"{site['fvu']:.3f}", byte_size(site["bytes"]),
            str(site["faults"]),
        ]
        for name, site in state["sites"].items()
    ]  # fmt: skip
    return section("sites", "Sites", "Who takes part, and what each is doing.", table(header, rows, right=3))


def doing(site: Json, at: int) -> str:
    """What a site is doing, in words. at: now, unix seconds."""
    if site["dropped"]:
        return f"takes no further part ({site['dropped']['code']} in {site['dropped']['step']})"
    online = {True: "online", False: "offline", None: ""}[site["online"]]
    what = DOING.get(site["doing"], f"did not answer ({site['doing']})")
    if site["doing"] == "sent" and site["since"]:
        what = f"{what} for {duration(max(0, at - int(site['since'])))}"
    return ", ".join(part for part in (online, what) if part)


def _training(state: Json) -> str:
    if not state["rounds"]:
        return ""
    rounds = [
        {**entry, "sites": {site: values["fvu"] for site, values in entry["sites"].items()}}
        for entry in state["training"]
    ]
    report = {"rounds": rounds}
    sizes = bytes_by_round(report, [])
    if isinstance(sizes, Figure):  # the report's own words point to a list that is not here
        sizes = replace(sizes, how="Messages of training, all sites together, round by round.")
    pictures = figure(by_round(report, [])) + figure(sizes)
    return section("training", "Training", "Lower is better.", tag("div", pictures, class_="pair"))


def _faults(state: Json) -> str:
    if not state["faults"]:
        return section("faults", "Faults", "", words("p", "None."))
    rows: list[list[TableCell]] = [
        [fault["site"], fault["step"], f"{fault['what']} ({fault['code']})", fault["do"]]
        for fault in state["faults"]
    ]
    intro = "What did not arrive, why, and who can do something about it. All of it will be in the report."
    return section("faults", "Faults", intro, table(("Site", "When", "What", "What to do"), rows))


def _logs(state: Json) -> str:
    rows: list[list[TableCell]] = [
        [name, str(head["size"]), head["root"]] if head else [name, "0", Gap("no entry yet")]
        for name, head in state["logs"].items()
    ]
    intro = "The newest signed head of every party's log. Sites see theirs: compare by phone when in doubt."
    return section("logs", "Logs", intro, table(("Party", "Entries", "Root"), rows))


def _events(state: Json) -> str:
    rows: list[list[TableCell]] = [
        [str(e.get("at", "")), str(e.get("site", "")) or "study", _event(e)] for e in state["events"]
    ]
    return section("events", "Events", "Newest first, UTC.", table(("When", "Who", "What"), rows))


def _event(event: Json) -> str:
    said = EVENTS.get(str(event.get("event")), str(event.get("event")))
    more = [str(event[name]) for name in ("child", "fingerprint", "why") if name in event]
    return f"{said} ({', '.join(more)})" if more else said


def metrics(state: Json) -> str:
    """The same in Prometheus' text format, version 0.0.4."""
    study = f'study="{state["study"]}"'  # letters, digits, spaces, ._-
    out = [
        "# TYPE cytosae_rounds_done gauge", f"cytosae_rounds_done{{{study}}} {state['rounds_done']}",
        "# TYPE cytosae_rounds gauge", f"cytosae_rounds{{{study}}} {state['rounds']}",
        "# TYPE cytosae_received_bytes counter", f"cytosae_received_bytes{{{study}}} {state['bytes']}",
        "# TYPE cytosae_complete gauge", f"cytosae_complete{{{study}}} {int(state['report'])}",
        "# TYPE cytosae_run_tries gauge", f"cytosae_run_tries{{{study}}} {state['failures'].get('try', 1)}",
        "# TYPE cytosae_program_up gauge",
        *(f'cytosae_program_up{{{study},program="{name}"}} {int(child["running"])}'
          for name, child in state["programs"].items()),
        "# TYPE cytosae_site_online gauge",
        *(f'cytosae_site_online{{{study},site="{name}"}} {int(bool(site["online"]))}'
          for name, site in state["sites"].items()),
        "# TYPE cytosae_site_faults counter",
        *(f'cytosae_site_faults{{{study},site="{name}"}} {site["faults"]}' for name, site in state["sites"].items()),
        "# TYPE cytosae_site_fvu gauge",
        *(f'cytosae_site_fvu{{{study},site="{name}"}} {site["fvu"]:.6f}'
          for name, site in state["sites"].items() if site["fvu"] is not None),
        "# TYPE cytosae_snapshot_seconds gauge", f"cytosae_snapshot_seconds{{{study}}} {int(time.time())}",
    ]  # fmt: skip
    return "\n".join(out) + "\n"
