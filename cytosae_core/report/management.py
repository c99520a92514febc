"""One A4 page for the people who run a hospital, in English or Japanese, from the same report.json as the report.

Both languages say the same in the same order; every sentence stands in `sections_words.py`. The study's question is
shown as the study wrote it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from .figures_data import headline_named, primary_of
from .figures_forest import mini
from .figures_study import drift_sites
from .page import bullets, tag, words
from .sections_linked import POLICY
from .sections_words import WORDS, Words
from .style import CSS
from .summary import icon, verdict_state
from .text import (
    REPORTED,
    Json,
    byte_size,
    chance,
    clean,
    ends,
    entries,
    escape,
    lines,
    mapping,
    number,
    precise,
    status,
    whole,
)

Language = Literal["en", "ja"]
FILES: Mapping[str, str] = {"en": "report-management-en.html", "ja": "report-management-ja.html"}
CSS_PAGE = """
:lang(ja){--sans:"Hiragino Sans","Hiragino Kaku Gothic ProN","Yu Gothic",YuGothic,Meiryo,"Noto Sans CJK JP",
"Noto Sans JP",IPAPGothic,sans-serif;--serif:"Hiragino Mincho ProN","Yu Mincho",YuMincho,"Noto Serif CJK JP",
"Noto Serif JP","Noto Sans CJK JP",IPAPGothic,serif;line-break:strict}
.sheet{max-width:820px}
h1{font-size:23px;margin:12px 0 10px}h2{font:700 14px/1.35 var(--sans);margin:0 0 5px}
.lead{font-size:16px;margin:0}
.verdict{margin-bottom:14px}
.key{align-items:start;margin-bottom:12px}
.key dl.facts{grid-template-columns:minmax(0,1fr) minmax(0,1fr);margin:0}
.blocks{display:grid;grid-template-columns:minmax(0,1fr) minmax(0,1fr);gap:14px 26px}
.blocks section{border-top:1px solid var(--ink);padding-top:7px;margin:0}
.blocks p,.blocks ul.plain{font:13.5px/1.5 var(--sans);margin:0 0 6px}
.blocks ul.plain li{margin-bottom:2px}
.blocks .wide{grid-column:1/-1}
.line{display:block;border-bottom:1px solid var(--muted);height:20px}
footer{margin-top:16px;padding-top:7px;font-size:12px}
@media (max-width:720px){.blocks{grid-template-columns:minmax(0,1fr)}}
@media print{h1{font-size:14.5pt;margin:2mm 0}h2{font-size:9.5pt}.lead{font-size:10pt}
.blocks{gap:3mm 7mm}.blocks p,.blocks ul.plain{font-size:8.6pt;line-height:1.42}
.masthead{padding-top:0}.use{margin-top:1.5mm}.verdict{margin-bottom:3mm}.key{margin-bottom:2mm}
footer{margin-top:3mm}section{margin-top:0;padding-top:1.5mm}}
"""


@dataclass(frozen=True)
class Facts:
    """What both languages need of a report."""

    report: Json
    state: str
    primary: Json
    sites: int
    reported: int
    simulated: bool

    @property
    def study(self) -> Json:
        """The study's part."""
        return mapping(self.report.get("study"))


def render_management(report: Mapping[str, Any], language: Language) -> str:
    """The page in one language: a pure function of report.json.

    Raises:
        KeyError: another language than `en` and `ja`.
    """
    data, said = dict(report), WORDS[language]
    facts = _facts(data)
    marks = [said.marks.get(text, text) for text in lines(data.get("watermarks"))]
    band = words("aside", " · ".join(marks), class_="band", aria_label=said.watermark) if marks else ""
    side = words("div", " · ".join([*marks, said.use]), class_="side", aria_hidden="true")
    top = tag(
        "header", words("b", data.get("title") or said.title) + words("span", said.title), class_="masthead"
    )
    main = tag("main", _top(facts, said, marks) + _blocks(facts, said), id="main")
    foot = tag("footer", words("b", said.use) + " " + escape(said.footer))
    body = tag(
        "body",
        band + side + tag("div", top + main + foot, class_="sheet"),
        class_="marked" if marks else None,
    )
    return f'<!DOCTYPE html>\n<html lang="{language}">{_head(data, said)}{body}</html>\n'


def render_both(report: Mapping[str, Any]) -> dict[str, str]:
    """Both pages by file name."""
    return {FILES["en"]: render_management(report, "en"), FILES["ja"]: render_management(report, "ja")}


def _head(data: Json, said: Words) -> str:
    meta = (
        '<meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{escape(POLICY)}">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        '<meta name="referrer" content="no-referrer"><meta name="color-scheme" content="light dark">'
    )
    title = f"{said.title}: {clean(data.get('title') or '')}".rstrip(": ")
    return tag("head", meta + words("title", title) + f"<style>{CSS}{CSS_PAGE}{said.css}</style>")


def _facts(data: Json) -> Facts:
    sites = [mapping(site) for site in mapping(data.get("sites")).values()]
    return Facts(
        data, verdict_state(data), primary_of(data), len(sites), sum(status(site) == REPORTED for site in sites),
        data.get("status") == "simulation",
    )  # fmt: skip


def _top(facts: Facts, said: Words, marks: Sequence[str]) -> str:
    question = clean(facts.report.get("question") or "") or said.no_question
    state = facts.state or "not_estimable"
    shown = said.states[state] + (said.simulated if facts.simulated else "")
    head = tag("p", icon(state) + words("span", shown), class_="state")
    box = tag("div", head + words("p", _sentence(facts, said), class_="lead"), class_=f"verdict {state}")
    return words("p", said.use, class_="use") + words("h1", question) + box + _key(facts, said, marks)


def _sentence(facts: Facts, said: Words) -> str:
    """The verdict with its numbers."""
    part = facts.primary
    value, interval, prediction = (
        number(part.get("value")),
        ends(part.get("interval")),
        ends(part.get("prediction")),
    )
    if value is None or interval is None or prediction is None:
        return said.no_number
    text = said.sentence.format(
        name=_endpoint(part, said), sites=whole(number(mapping(part.get("n")).get("sites"))) or "?",
        value=precise(value), low=precise(interval[0]), high=precise(interval[1]), new_low=precise(prediction[0]),
        new_high=precise(prediction[1]),
    )  # fmt: skip
    threshold = number(part.get("threshold"))
    if threshold is None:
        return text
    return text + said.asked[str(part.get("direction")) == "at_least"].format(threshold=precise(threshold))


def _endpoint(part: Json, said: Words) -> str:
    return said.endpoints.get(str(part.get("id")), clean(part.get("name") or part.get("id") or "?"))


def _key(facts: Facts, said: Words, marks: Sequence[str]) -> str:
    """The picture of the primary number, and the study in figures."""
    value = number(facts.primary.get("value"))
    left = ""
    if value is not None:
        text = _sentence(facts, said)
        picture = tag(
            "div",
            mini({**facts.primary, "name": _endpoint(facts.primary, said)}, marks, said.threshold, text),
        )
        left = picture + words("p", said.picture, class_="small")
    pairs = "".join(words("dt", name) + words("dd", shown) for name, shown in _numbers(facts, said))
    return tag("div", tag("div", left) + tag("dl", pairs, class_="facts"), class_="key")


def _numbers(facts: Facts, said: Words) -> list[tuple[str, str]]:
    sites = [mapping(site) for site in mapping(facts.report.get("sites")).values()]
    units = [number(site.get("units")) for site in sites]
    images = [number(site.get("images")) for site in sites]
    kinds = {clean(site.get("unit")) for site in sites} - {""}
    unit = said.units.get(kinds.pop() if len(kinds) == 1 else "", said.units[""])
    worst = mapping(mapping(facts.report.get("verdict")).get("worst_site"))
    named = headline_named(facts.report, str(worst.get("endpoint")))
    shown = f"{clean(worst.get('site'))}: {precise(number(worst.get('value')))}" if named else said.unknown
    return [
        (said.labels["sites"], said.reported.format(reported=facts.reported, sites=facts.sites)),
        (unit, _total(units) or said.unknown),
        (said.labels["images"], _total(images) or said.unknown),
        (said.labels["chance"], _chance(facts, said)),
        (said.labels["worst"], shown),
        (said.labels["log"], _logged(facts, said)),
    ]


def _total(values: Sequence[float | None]) -> str:
    known = [value for value in values if value is not None]
    return whole(sum(known)) if known else ""


def _chance(facts: Facts, said: Words) -> str:
    value = number(facts.primary.get("probability_new_site"))
    if value is None:
        return said.unknown
    return said.chance.get("over" if value > 0.99 else "under" if value < 0.01 else "", chance(value))


def _logged(facts: Facts, said: Words) -> str:
    part = mapping(facts.report.get("integrity"))
    if part.get("status") != "logged":
        return said.not_logged
    return said.logged.format(size=whole(number(part.get("log_size"))) or "?")


def _blocks(facts: Facts, said: Words) -> str:
    state = facts.state or "not_estimable"
    step = said.simulated_next if facts.simulated else said.next[state]
    parts = [
        _block(said.heads["left"], "".join(words("p", text) for text in _left(facts, said))),
        _block(said.heads["means"], words("p", said.means[state]) + words("p", said.about)),
        _block(said.heads["not"], bullets([*said.not_means, *_limits(facts, said)]), "wide"),
        _block(said.heads["next"], words("p", step)),
        _block(said.heads["ask"], _ask(facts, said)),
    ]
    return tag("div", "".join(parts), class_="blocks")


def _block(title: str, content: str, kind: str | None = None) -> str:
    return tag("section", words("h2", title) + content, class_=kind)


def _left(facts: Facts, said: Words) -> list[str]:
    part = mapping(facts.report.get("egress"))
    sizes = [number(mapping(entry).get("bytes")) for entry in mapping(part.get("sites")).values()]
    known = [size for size in sizes if size is not None]
    if not known:
        return [said.no_egress]
    profile = clean(part.get("profile") or facts.study.get("profile") or "")
    what = said.sent.get(profile, said.sent["masked"])
    found = [what.format(bytes=byte_size(sum(known)), sites=len(known))]
    if "DISCLOSURE CONTROL OFF" in lines(facts.report.get("watermarks")):
        found.append(said.open_data)
    else:
        least = number(facts.study.get("min_units"))
        found += [said.smallest.format(least=whole(least))] if least is not None and least > 1 else []
        found += [said.profiles[profile]] if profile in said.profiles else []
    return [*found, said.still_data]


def _limits(facts: Facts, said: Words) -> list[str]:
    """Limits that this study has, most important first; at most four."""
    plan, study = mapping(facts.report.get("protocol")), mapping(facts.primary.get("n"))
    sites, least = number(study.get("sites")), number(plan.get("min_sites"))
    units = {clean(mapping(site).get("unit")) for site in mapping(facts.report.get("sites")).values()} - {""}
    alarms = [site for site, entry in drift_sites(facts.report).items() if lines(entry.get("alarms"))]
    changes = len(entries(plan.get("deviations")))
    experts = mapping(facts.report.get("experts")).get("status") != "estimated"
    found = [
        (said.limits["simulated"], facts.simulated),
        (
            said.limits["few"].format(sites=whole(sites), least=whole(least)),
            bool(sites and least and sites < least),
        ),
        (said.limits["units"], bool(units) and units != {"patient"}),
        (said.limits["deviations"].format(count=changes), changes > 0),
        (said.limits["drift"].format(sites=said.comma.join(alarms[:6])), bool(alarms)),
        (said.limits["experts"], experts),
    ]
    return [text for text, applies in found if applies][:4]


def _ask(facts: Facts, said: Words) -> str:
    digest = clean(mapping(facts.report.get("protocol")).get("sha256") or "") or clean(
        facts.study.get("protocol_sha256") or ""
    )
    study = clean(facts.study.get("name") or "") or said.unknown
    named = words("p", said.ask.format(study=study, digest=digest[:16] or said.unknown))
    return named + tag("p", escape(said.contact) + tag("span", "", class_="line"))
