"""report.html: well-formed, offline, escaped, complete when parts are missing, small and readable."""

from __future__ import annotations

import base64
import copy
import hashlib
import itertools
import json
import re
import time
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from cytosae_core.report import marks, style, summary, svg, text
from cytosae_core.report.figures_data import gate_word
from cytosae_core.report.figures_sites import predictability
from cytosae_core.report.html import render
from cytosae_core.report.management import render_management

Json = dict[str, Any]
VOID = {"meta", "br", "hr", "img", "input", "link"}
HOSTILE = (
    "<script>alert(1)</script>",
    "\"><img src=x onerror=alert(1)>'",
    "</style></svg><svg onload=alert(1)>",
    "血" * 300,
    "a\u202egnp.exe\x00\x07\ud800\ufffe",
    "&lt;b&gt; &amp; ]]>",
)


@pytest.fixture()
def report() -> Json:
    return json.loads(Path(__file__).with_name("report_example.json").read_text())  # type: ignore[no-any-return]


class Page(HTMLParser):
    """Checks nesting; collects elements, ids, references and visible text."""

    def __init__(self, page: str) -> None:
        super().__init__(convert_charrefs=True)
        self.stack: list[str] = []
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.words: list[str] = []
        self.feed(page)
        self.close()
        assert not self.stack, f"not closed: {self.stack}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {name: value or "" for name, value in attrs}))
        if tag not in VOID:
            self.stack.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {name: value or "" for name, value in attrs}))

    def handle_endtag(self, tag: str) -> None:
        assert self.stack and self.stack[-1] == tag, f"</{tag}> closes {self.stack[-3:]}"
        self.stack.pop()

    def handle_data(self, data: str) -> None:
        if not {"style", "script"} & set(self.stack):
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())

    def ids(self) -> list[str]:
        return [attrs["id"] for _, attrs in self.elements if "id" in attrs]


def pictures(page: str) -> list[ElementTree.Element]:
    return [ElementTree.fromstring(found) for found in re.findall(r"<svg.*?</svg>", page, re.S)]


def check(page: str) -> Page:
    """Everything that must be true of any report."""
    parsed = Page(page)
    page.encode("utf-8")
    names = {name for name, _ in parsed.elements}
    assert not names & {"link", "iframe", "object", "embed", "img", "base", "image", "use"}
    for _, attrs in parsed.elements:
        assert not [
            name
            for name in attrs
            if name.startswith("on") or name in ("src", "srcset", "xlink:href", "action")
        ]
        assert re.match(r"#|concepts-\d{3}\.html(#|$)|report\.html#", attrs.get("href", "#"))
        assert "url(h" not in attrs.get("style", "")
    assert "://" not in page and "@import" not in page and not re.search(r"url\((?!#)", page)
    known = parsed.ids()
    assert len(known) == len(set(known))
    referred = [x for _, attrs in parsed.elements for x in attrs.get("aria-labelledby", "").split()]
    hrefs = [attrs["href"] for _, attrs in parsed.elements if "href" in attrs]
    referred += [href[1:] for href in hrefs if href.startswith("#")]
    referred += re.findall(r"url\(#([^)]+)\)", page)
    assert set(referred) <= set(known)
    used = set(re.findall(r"var\(--([a-z0-9]+)", page))
    assert used <= {*style.LIGHT, *style.steps("light"), "sans", "serif", "mono"}
    for drawn in pictures(page):
        assert drawn.get("aria-hidden") or (
            [child.tag for child in drawn][:2] == ["title", "desc"] and drawn[0].text and drawn.get("viewBox")
        )
    assert not re.search(r"\b(None|nan|inf|NaN)\b", parsed.text)
    accessible(parsed)
    return parsed


def accessible(parsed: Page) -> None:
    """What axe would ask of the markup: headings in order, landmarks, names of controls, headers of tables."""
    headings = [int(name[1]) for name, _ in parsed.elements if re.fullmatch(r"h[1-6]", name)]
    assert headings.count(1) == 1 and headings[0] == 1
    assert all(b - a <= 1 for a, b in itertools.pairwise(headings))
    names = [name for name, _ in parsed.elements]
    assert names.count("main") == 1 and names.count("header") == 1 and names.count("footer") == 1
    assert dict(parsed.elements)["html"]["lang"]
    for name, attrs in parsed.elements:
        assert name != "th" or attrs.get("scope") in ("row", "col")
        assert name != "table" or attrs.get("aria-label", "x")
        assert name != "svg" or attrs.get("role") == "img" or attrs.get("aria-hidden")
        assert int(attrs.get("tabindex", 0)) >= 0
    labels = names.count("label")
    assert labels == names.count("input") + names.count("select")


def test_page_is_well_formed_and_offline(report: Json) -> None:
    page = render(report)
    parsed = check(page)
    policy = [attrs["content"] for name, attrs in parsed.elements if attrs.get("http-equiv")]
    assert len(policy) == 1 and policy[0].startswith(
        "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
    )
    assert page.startswith("<!DOCTYPE html>") and "Research use; not a medical device." in parsed.text


def test_the_policy_allows_the_one_script_and_no_other(report: Json) -> None:
    page = render(report)
    scripts = re.findall(r"<script>(.*?)</script>", page, re.S)
    assert len(scripts) == 1 and page.count("<script") == 2  # the other one is data, which never runs
    digest = base64.b64encode(hashlib.sha256(scripts[0].encode()).digest()).decode()
    assert page.count(f"script-src &#x27;sha256-{digest}&#x27;") == 1


def test_the_same_bytes_from_any_order_of_keys(report: Json) -> None:
    backwards = {key: report[key] for key in reversed(report)}
    assert render(backwards) == render(report) == render(json.loads(json.dumps(report)))


def test_first_screen_has_verdict_headline_worst_site_bytes_integrity_and_caveats(report: Json) -> None:
    page = render(report)
    first = Page(page[page.index('<section class="first"') : page.index('<section id="contents">')]).text
    verdict, primary = report["verdict"], report["headlines"][0]
    for said in (report["question"], verdict["sentence"], *verdict["caveats"], *report["findings"]):
        assert said in first
    low, high = primary["prediction"]
    assert f"A new hospital: {low:.2f} to {high:.2f} (95 % prediction interval)" in first
    assert f"95 % interval {primary['interval'][0]:.2f} to {primary['interval'][1]:.2f}" in first
    worst = verdict["worst_site"]
    assert f"{worst['site']}: {worst['value']:.2f}" in first and "128 entries" in first
    assert "36.5 MB from 5 sites" in first and "8.44 MB" in first and "64 patients" in first
    assert "Expected to hold in a new hospital (simulated sites)" in first


@pytest.mark.parametrize(
    ("state", "said"),
    [
        ("generalises", "Expected to hold"),
        ("does_not_generalise", "Not shown to hold"),
        ("provisional", "Provisional"),
        ("not_estimable", "No answer"),
    ],
)
def test_every_verdict_has_words_a_colour_and_a_symbol(report: Json, state: str, said: str) -> None:
    report["verdict"]["state"] = state
    page = render(report)
    box = page[page.index(f'<div class="verdict {state}">') :][:900]
    assert said in box and "<path" in box
    assert f".verdict.{state}" in style.CSS or state == "not_estimable"  # grey, as all unknowns
    assert summary.ICONS[state] in box and len(set(summary.ICONS.values())) == 4


def test_all_sections_in_order_with_fixed_ids(report: Json) -> None:
    wanted = [f"R{index}" for index in range(22)]
    for made in (render(report), render({})):
        assert re.findall(r'<section(?: class="first")? id="(R\d+)"', made) == wanted
    for index in wanted:
        assert f'href="#{index}"' in render(report)


def test_concepts_that_hold_and_that_do_not_are_equally_prominent(report: Json) -> None:
    page = render(report)
    cards = re.findall(r'<div class="card (\w+)">(.*?)</div>', page, re.S)
    assert [name for name, _ in cards] == ["holds", "differs"]
    assert len({card.count("<tr") for _, card in cards}) == 1 and cards[0][1].count("<svg") == 6
    verdict = report["concepts"]["columns"]["verdict"]
    assert f">{verdict.count(0)}<small>" in cards[0][1] and f">{verdict.count(1)}<small>" in cards[1][1]
    whole = re.findall(r'<article class="(concept[ a-z]*)">', page)
    assert whole.count("concept") == whole.count("concept failed") == 4


def test_a_card_names_every_check_also_those_not_made(report: Json) -> None:
    page = render(report)
    card = next(text for text in page.split("<article")[1:] if ">c0097<" in text).split("</article>")[0]
    seen = Page(f"<article{card}</article>").text
    assert "not the hospital: FAILS" in seen and "enough sites: passes" in seen
    assert "of its spread within a kind of cell" in seen and "limit 12 %" in seen  # what that check looks at
    assert "Many tests at once q " in " ".join(seen.split())
    assert "not assessed: named by experts" in seen and "no expert looked at it" in seen
    for name in report["concepts"]["gates"]:
        assert gate_word(name) in seen


def test_every_figure_has_caption_and_the_same_numbers_as_a_table(report: Json) -> None:
    page = render(report)
    figures = re.findall(r'<figure id="f-([^"]+)">(.*?)</figure>', page, re.S)
    assert [key for key, _ in figures] == [
        *("flow", "appearance", "bytes", "bytes-rounds", "timeline"),
        *("fvu-rounds", "fvu-compare", "states", "concept-map", "planted"),
        *(f"forest-{index}" for index in range(6)),
        *("loso", "heterogeneity", "matrix", "attenuation", "meaning", "firing"),
        *("calibration-slope", "calibration-oe", "abstention"),
        *("subgroup-0", "shortcut", "predict", "influence", "psi", "fvu-ratio", "local-only"),
    ]
    for key, body in figures:
        assert "<figcaption>" in body and "<table" in body, key
    table = dict(figures)["concept-map"].split("<table")[1]
    tables = report["concepts"]["tables"]
    for site in report["sites"]:
        value, error = tables["auroc"]["sites"][site][0], tables["auroc_se"]["sites"][site][0]
        assert f"{value:.2f} ± {1.96 * error:.2f}" in table
    assert "Pooled" in dict(figures)["forest-0"] and "0.061" not in dict(figures)["fvu-compare"]


def test_a_forest_plot_shows_interval_and_prediction_interval_to_scale(report: Json) -> None:
    page = render(report)
    drawn = next(p for p in pictures(page) if p[0].get("id") == "forest-0-t")
    primary = report["headlines"][0]
    named = {(group[0].text or ""): group for group in drawn.iter("g") if len(group) > 1}
    pooled = next(group for name, group in named.items() if name.startswith("pooled 0.81, 95 % interval"))
    bars = [float(node.get("width", 0)) for node in drawn.iter("rect") if node.get("fill-opacity") == "0.45"]
    points = [float(pair.split()[0]) for pair in re.findall(r"[ML]([\d. ]+)", pooled[1].get("d", ""))]
    widths = [b - a for a, b in (primary["prediction"], primary["interval"])]
    assert bars[0] / (max(points) - min(points)) == pytest.approx(widths[0] / widths[1], rel=0.06)


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_names_are_only_text(report: Json, name: str) -> None:
    plain = check(render(report))
    raw = json.dumps(report).replace('"alder"', json.dumps(name)).replace('"granules"', json.dumps(name))
    raw = raw.replace('"c0035"', json.dumps(name)).replace('"generalising"', json.dumps(name))
    hostile = json.loads(raw)
    for key in ("title", "question", "answer"):
        hostile[key] = name
    hostile["watermarks"] = hostile["findings"] = hostile["limits"] = [name]
    hostile["not_assessed"] = [{"item": name, "reason": name}]
    hostile["egress"]["fields"][0] = dict.fromkeys(("name", "kind", "dtype", "shape", "rule", "why"), name)
    hostile["egress"]["sites"][name]["by_kind"][name] = {"count": 1, "bytes": 9}
    hostile["sites"][name]["status"] = name
    hostile["site_predictability"]["pairs"], hostile["site_predictability"]["reason"] = [], name
    hostile["verdict"].update(sentence=name, reason=name, caveats=[name] * 3)
    hostile["headlines"][0].update(name=name, unit=name, reason=name)
    hostile["protocol"].update(hypothesis=name, stage=name)
    hostile["controls"] = [dict.fromkeys(("name", "beside", "sentence"), name)]
    hostile["checklist"] = [dict.fromkeys(("standard", "item", "section", "covered"), name)]
    parsed = check(render(hostile))
    assert {tag for tag, _ in parsed.elements} <= {tag for tag, _ in plain.elements}
    assert text.clean(name) in parsed.text
    for language in ("en", "ja"):
        accessible(Page(render_management(hostile, language)))


def test_clean_removes_what_breaks_xml_or_reorders_lines() -> None:
    assert text.clean("a\u202eb\x00\ud800\ufffe\n c") == "a\ufffdb\ufffd\ufffd\ufffd c"
    assert text.clean("Zürich – 東京 β") == "Zürich – 東京 β"
    assert text.escape("<a b=\"c\" d='e'>&") == "&lt;a b=&quot;c&quot; d=&#x27;e&#x27;&gt;&amp;"


@pytest.mark.parametrize("empty", [{}, {"sites": {}}, {"sites": {"a": {}}}, {"concepts": {"columns": {}}}])
def test_empty_report_says_what_was_not_assessed(empty: Json) -> None:
    parsed = check(render(empty))
    assert parsed.text.count("Not assessed: ") >= 12 and not re.search(r"Not assessed: ?\.", parsed.text)


WRONG: tuple[Any, ...] = ([["x"]], "text", 7)


def parts(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Every path in a report, with one site for all sites and the first item for all items of a list."""
    yield path
    if isinstance(value, dict):
        for key in ["alder"] if "alder" in value else value:
            yield from parts(value[key], (*path, key))
    elif isinstance(value, list) and value:
        yield from parts(value[0], (*path, 0))


def few(report: Json, count: int) -> Json:
    """The example with its first concepts only."""
    size = report["concepts"]["count"]

    def cut(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: cut(item) for key, item in value.items()}
        return value[:count] if isinstance(value, list) and len(value) == size else value

    return {**report, "concepts": cut(report["concepts"]) | {"count": count}}


def replaced(report: Json, path: tuple[Any, ...], value: Any) -> Json:
    changed = copy.deepcopy(report)
    place: Any = changed
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    return changed


def sound(page: str) -> None:
    """A fast check of pages by the hundred: no hole of the program shows, and elements end as they began."""
    assert not re.search(r">[^<]*\b(None|nan|inf|NaN)\b", page.split("<script")[0])
    assert page.count("<section") == page.count("</section>") and page.endswith("</html>\n")


def test_any_missing_part_leaves_a_page(report: Json) -> None:
    """Every part set to null in turn."""
    report["egress"]["fields"], report["rounds"] = report["egress"]["fields"][:2], report["rounds"][:3]
    report = few(report, 4)
    paths = [path for path in parts(report) if path]
    assert len(paths) > 400
    for path in paths:
        page = render(replaced(report, path, None))
        (check if len(path) == 1 else sound)(page)


@pytest.mark.parametrize("value", WRONG)
def test_parts_of_a_wrong_type_count_as_missing(report: Json, value: Any) -> None:
    report = few(report, 3)
    for key in report:
        check(render({**report, key: value}))
    for path in [path for path in parts(report) if len(path) == 2 and value == "text"]:
        sound(render(replaced(report, path, value)))


@pytest.mark.parametrize("value", [-5, 10**12, 10**400, 1e308, -1e308, 0.5, True])
def test_columns_of_any_numbers_leave_a_page(report: Json, value: Any) -> None:
    for name, column in report["concepts"]["columns"].items():
        changed = copy.deepcopy(report)
        changed["concepts"]["columns"][name] = [value, *column[1:]]
        sound(render(changed))


@pytest.mark.parametrize(
    ("path", "said"),
    [
        (("verdict",), "Not assessed: the report has no verdict."),
        (("headlines",), "Not assessed: no headline was recorded."),
        (("protocol",), "Not assessed: no protocol is in the report."),
        (("integrity",), "Not assessed: the report does not say whether messages were logged."),
        (("concepts",), "Not assessed: the report has no concepts."),
        (("matrix",), "Not assessed: no site was tested with what other sites trained."),
        (("calibration",), "Not assessed: no site released calibration."),
        (("subgroups",), "Not assessed: the protocol names no subgroup."),
        (("acquisition",), "Not assessed: no site told how pictures were taken."),
        (("heterogeneity",), "Not assessed: the report has no such analysis."),
        (("drift",), "Not assessed: no site released what this needs, or withheld some of it."),
        (("experts",), "Not assessed: the report does not mention a review."),
        (("failures",), "Not assessed: the report does not list them."),
        (("controls",), "Not assessed: the report has no controls."),
        (("checklist",), "Not assessed: the report has no checklist."),
        (("overall", "ratio"), "Not assessed: only possible where one machine holds all images."),
        (("overall", "federated_fvu"), "Not assessed: no site reported it."),
        (("stability",), "Not assessed: no second federation with another seed was run."),
        (("planted",), "Not assessed: only synthetic cells have concepts that are known beforehand."),
        (("comparators", "local_only"), "Not assessed: dictionaries of single sites can only be compared"),
        (("loso", "views"), "Not assessed: fewer than two sites share labelled"),
        (("rounds",), "Not assessed: no round of training was recorded."),
        (("egress", "sites"), "Not assessed: the report does not record what left."),
        (("encoder", "canary_tolerance"), "not assessed: no tolerance or no difference was recorded"),
        (("encoder", "digest"), "not assessed: sites did not agree on one encoder"),
        (("dictionary", "sha256"), "not assessed: not recorded"),
        (("sites", "elm", "units"), "fewer than 11 patients"),
        (("sites", "elm", "l0"), "fewer than 11 patients"),
        (("sites", "elm", "bytes_out"), "not recorded"),
    ],
)
def test_every_null_shows_its_reason(report: Json, path: tuple[str, ...], said: str) -> None:
    before = Page(render(report)).text.count(said)
    after = check(render(replaced(report, path, None))).text
    assert after.count(said) > before


def test_the_reports_own_reason_comes_first(report: Json) -> None:
    report["stability"] = None
    report["not_assessed"] = [
        {"item": "stability between seeds", "reason": "the second federation broke off"}
    ]
    assert "Not assessed: the second federation broke off." in check(render(report)).text
    pairs = report["site_predictability"]
    pairs["pairs"], pairs["reason"] = [], "fewer than 11 units per class and half"
    assert "Not assessed: fewer than 11 units per class and half." in check(render(report)).text


def test_suppressed_cells_are_hatched_and_say_why(report: Json) -> None:
    table = report["concepts"]["tables"]["auroc"]["sites"]
    table["dogwood"] = [None] * 60
    page = render(report)
    drawing = next(p for p in pictures(page) if p[0].get("id") == "concept-map-t")
    fills = [node.get("fill") for node in drawing.iter("rect")]
    shown = re.findall(r'scope="row">(c\d+)<', page[page.index('id="f-concept-map"') :].split("</table>")[0])
    ids = report["concepts"]["columns"]["id"]
    withheld = sum(values[ids.index(name)] is None for name in shown for values in table.values())
    assert len(shown) == 24 and fills.count("url(#concept-map-hatch)") == withheld + 1  # one in the key
    assert drawing.find(".//pattern") is not None
    numbers = page[page.index('id="f-concept-map"') :].split("</table>")[0]
    assert numbers.count("fewer than 11 patients</td>") == withheld
    assert '<td class="gap"><span>fewer than 11 patients</span></td>' in page  # basophils at dogwood


def test_a_site_that_failed_says_so_instead_of_numbers(report: Json) -> None:
    report["sites"]["elm"] = {"status": "failed: setup"}
    parsed = check(render(report))
    assert "elm (failed: setup)" in parsed.text
    assert render(report).count("<span>failed: setup</span>") >= 4


def test_watermarks_stand_on_the_page_on_print_and_on_every_figure(report: Json) -> None:
    report["watermarks"] = ["SIMULATED SITES", "DISCLOSURE CONTROL OFF"]
    page = render(report)
    mark = "SIMULATED SITES · DISCLOSURE CONTROL OFF"
    assert (
        f'aria-label="Watermark">{mark}<' in page and f'<div class="side" aria-hidden="true">{mark}' in page
    )
    for body in re.findall(r'<div class="plot.*?</svg>', page, re.S):
        assert mark in body
    report["watermarks"] = []
    assert mark not in render(report) and 'class="band"' not in render(report)


def test_small_cells_and_canary_are_judged(report: Json) -> None:
    assert "within the tolerance 0.002" in Page(render(report)).text
    report["encoder"]["canary_max_difference"] = 0.01
    report["study"]["min_units"] = 1
    said = Page(render(report)).text
    assert "NOT within the tolerance" in said and "fewer than 1 " not in said and "no limit" in said


def many(report: Json, sites: int, concepts: int) -> Json:
    """The example with more sites (each a copy of one of its five) and more concepts."""
    names, base = [f"hospital-{index:03d}" for index in range(sites)], list(report["sites"])
    size = report["concepts"]["count"]

    def more(value: Any) -> Any:
        if isinstance(value, dict) and set(base) <= set(value):
            return {name: more(value[base[index % 5]]) for index, name in enumerate(names)}
        return {key: more(item) for key, item in value.items()} if isinstance(value, dict) else value

    big: Json = {key: [more(x) for x in v] if isinstance(v, list) else more(v) for key, v in report.items()}
    pairs = [(a, b) for index, a in enumerate(names) for b in names[:index]]
    for part, key in (("agreement", "firing_rate"), ("agreement", "auroc"), ("site_predictability", "pairs")):
        few = big[part][key]
        big[part][key] = [{**few[n % 10], "a": a, "b": b} for n, (a, b) in enumerate(pairs)]
    big["matrix"] = {
        **report["matrix"],
        "tested": names,
        "cells": [[row[n % 5] for n in range(sites)] for row in report["matrix"]["cells"]],
    }

    def longer(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: longer(item) for key, item in value.items()}
        if isinstance(value, list) and len(value) == size:
            return [value[index % size] for index in range(concepts)]
        return value

    big["concepts"] = longer(big["concepts"]) | {"count": concepts}
    big["concepts"]["columns"]["id"] = [f"c{index:04d}" for index in range(concepts)]
    big["concepts"]["columns"]["row"] = list(range(concepts))
    return big


def seconds(report: Json) -> float:
    start = time.perf_counter()
    render(report)
    return time.perf_counter() - start


@pytest.mark.parametrize(("sites", "concepts", "limit"), [(2, 8, 1e6), (5, 2000, 2e6), (100, 200, 5e6)])
def test_size_and_shape_from_two_to_a_hundred_sites(
    report: Json, sites: int, concepts: int, limit: float
) -> None:
    big = many(report, sites, concepts)
    page = render(big)
    check(page)
    assert len(page.encode()) < limit and page.count("hospital-001") > 5


def test_time_grows_no_faster_than_the_pairs_of_sites(report: Json) -> None:
    small, large = many(report, 5, 200), many(report, 100, 200)
    floor = min(seconds(small) for _ in range(3))
    assert seconds(large) / floor < 495  # 4,950 pairs of sites against 10


def test_pairs_are_summarised_when_they_are_too_many_to_list(report: Json) -> None:
    drawn = predictability(many(report, 40, 10), ())
    assert not hasattr(drawn, "reason") and len(drawn.rows) == 80


def test_scale_and_ticks() -> None:
    scale = svg.Scale(0, 0.6, 100, 400)
    assert scale(0.3) == 250 and scale(-1) == 100 and scale(9) == 400
    assert scale.ticks() == [0, 0.2, 0.4, 0.6] and svg.Scale(0.37, 1, 0, 1).ticks() == [0.4, 0.6, 0.8, 1.0]
    assert svg.Scale(2, 2, 0, 10)(2) == 5 and svg.nice_ceiling(0.577) == pytest.approx(0.6)


def test_labels_spread_without_overlap_and_inside() -> None:
    placed = svg.spread([50, 51, 49, 200, 199], 13, 0, 200)
    gaps = [b - a for a, b in zip(sorted(placed), sorted(placed)[1:], strict=False)]
    assert min(gaps) >= 13 and min(placed) >= 0 and max(placed) <= 200
    assert placed[2] < placed[0] < placed[1] < placed[4] < placed[3]


def contrast(a: str, b: str) -> float:
    high, low = sorted((style.luminance(a), style.luminance(b)), reverse=True)
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize(("mode", "colours"), [("light", style.LIGHT), ("dark", style.DARK)])
def test_text_is_readable_in_light_and_dark(mode: str, colours: dict[str, str]) -> None:
    """Contrast of 4.5 : 1, WCAG 2.1 level AA: numbers in cells on both ramps, all colours of text."""
    steps = style.steps(mode)
    assert min(contrast(steps[f"t{name}"], fill) for name, fill in steps.items() if name[0] != "t") >= 4.5
    inks = ("ink", "muted", "hold", "differ", "good", "unsure", *(f"s{index}" for index in range(8)))
    for paper in ("paper", "tint"):
        assert min(contrast(colours[ink], colours[paper]) for ink in inks) >= 4.5
    assert contrast(colours["warnink"], colours["warn"]) >= 4.5
    assert set(style.LIGHT) == set(style.DARK)


def test_ramps_name_their_steps() -> None:
    assert (
        svg.diverging(0.0) == "var(--d0)"
        and svg.diverging(1.0) == "var(--d20)"
        and svg.diverging(9) == "var(--d20)"
    )
    assert svg.text_on(svg.sequential(0.5)) == "var(--tq5)" and "--tq5:" in style.CSS
    light = style.steps("light")
    assert light["d0"] == "#195a96" and light["d20"] == "#aa4b05" and len(light) == 2 * (21 + 11)


def test_marks_of_series_differ_without_colour() -> None:
    shapes = ("circle", "square", "triangle", "diamond", "cross", "bar")
    drawn = [
        marks.Series("s", shape, "#000000", filled).draw(5, 5) for shape in shapes for filled in (True, False)
    ]
    assert len(set(drawn)) == 10  # crosses and bars have no inside


@pytest.mark.parametrize(
    ("made", "said"),
    [
        (text.byte_size(742), "742 B"),
        (text.byte_size(999.9), "1 kB"),
        (text.byte_size(13246), "13.2 kB"),
        (text.byte_size(12401198), "12.4 MB"),
        (text.percent(0.0009), "0.1 %"),
        (text.percent(0.81), "81 %"),
        (text.compact(-0.038), "−.04"),
        (text.decimal(-0.0001), "0.000"),
        (text.compact(1.0), "1.00"),
        (text.whole(12401), "12,401"),
        (text.short("Universitätsklinikum", 8), "Univers…"),
        (text.decimal(text.number(True)), ""),
        (text.decimal(text.number(float("inf"))), ""),
    ],
)
def test_numbers_as_text(made: str, said: str) -> None:
    assert made == said
