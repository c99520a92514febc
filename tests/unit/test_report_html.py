"""report.html: well-formed, offline, escaped, complete when parts are missing, small and readable."""

from __future__ import annotations

import copy
import json
import re
import time
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from cytosae_core.report import marks, svg, text
from cytosae_core.report.figures_sites import predictability
from cytosae_core.report.html import render

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
        if "style" not in self.stack:
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
    assert not names & {"script", "link", "iframe", "object", "embed", "img", "form", "base", "image", "use"}
    for _, attrs in parsed.elements:
        assert not [
            name for name in attrs if name.startswith("on") or name in ("src", "srcset", "xlink:href")
        ]
        assert attrs.get("href", "#").startswith("#") and "url(h" not in attrs.get("style", "")
    assert "://" not in page and "@import" not in page and not re.search(r"url\((?!#)", page)
    known = parsed.ids()
    assert len(known) == len(set(known))
    referred = [x for _, attrs in parsed.elements for x in attrs.get("aria-labelledby", "").split()]
    referred += [attrs["href"][1:] for _, attrs in parsed.elements if "href" in attrs]
    referred += re.findall(r"url\(#([^)]+)\)", page)
    assert set(referred) <= set(known)
    for drawn in pictures(page):
        assert (
            [child.tag for child in drawn][:2] == ["title", "desc"] and drawn[0].text and drawn.get("viewBox")
        )
    assert not re.search(r"\b(None|nan|inf|NaN)\b", parsed.text)
    return parsed


def test_page_is_well_formed_and_offline(report: Json) -> None:
    page = render(report)
    parsed = check(page)
    policy = [attrs["content"] for name, attrs in parsed.elements if attrs.get("http-equiv")]
    assert len(policy) == 1 and policy[0].startswith(
        "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
    )
    assert page.startswith("<!DOCTYPE html>") and "Research use; not a medical device." in parsed.text


def test_first_screen_has_question_answer_findings_sites_and_bytes(report: Json) -> None:
    page = render(report)
    first = Page(page[page.index('<section class="first">') : page.index('<section id="concepts">')]).text
    for said in (report["question"], report["answer"], *report["findings"], *report["sites"]):
        assert said in first
    assert "8.44 MB" in first and "64 patients" in first and "0.163" in first


def test_concepts_that_hold_and_that_do_not_are_equally_prominent(report: Json) -> None:
    page = render(report)
    cards = re.findall(r'<div class="card (\w+)">(.*?)</div>', page, re.S)
    assert [name for name, _ in cards] == ["holds", "differs"]
    assert len({card.count("<tr") for _, card in cards}) == 1 and cards[0][1].count("<svg") == 6
    counts = [sum(c["verdict"] == name for c in report["concepts"]) for name in ("holds", "differs")]
    assert f">{counts[0]}<small>" in cards[0][1] and f">{counts[1]}<small>" in cards[1][1]


def test_every_figure_has_caption_and_the_same_numbers_as_a_table(report: Json) -> None:
    page = render(report)
    figures = re.findall(r'<figure id="f-([^"]+)">(.*?)</figure>', page, re.S)
    assert [key for key, _ in figures] == [
        *("concept-map", "meaning", "firing", "loso", "planted", "predict"),
        *("fvu-rounds", "fvu-compare", "local-only", "bytes"),
    ]
    for key, body in figures:
        assert "<figcaption>" in body and "<table" in body, key
    table = dict(figures)["concept-map"].split("<table")[1]
    concept = report["concepts"][0]
    for entry in concept["auroc"].values():
        assert f"{entry['value']:.2f} ± {1.96 * entry['se']:.2f}" in table
    assert "c0381" in dict(figures)["planted"] and "0.061" not in dict(figures)["fvu-compare"]


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_names_are_only_text(report: Json, name: str) -> None:
    plain = check(render(report))
    raw = json.dumps(report).replace('"alder"', json.dumps(name)).replace('"granules"', json.dumps(name))
    hostile = json.loads(raw)
    for key in ("title", "question", "answer"):
        hostile[key] = name
    hostile["watermarks"] = hostile["findings"] = hostile["limits"] = [name]
    hostile["not_assessed"] = [{"item": name, "reason": name}]
    hostile["egress"]["fields"][0] = dict.fromkeys(("name", "kind", "dtype", "shape", "rule", "why"), name)
    hostile["egress"]["sites"][name]["by_kind"][name] = {"count": 1, "bytes": 9}
    hostile["sites"][name]["status"] = name
    hostile["site_predictability"]["pairs"], hostile["site_predictability"]["reason"] = [], name
    parsed = check(render(hostile))
    assert {tag for tag, _ in parsed.elements} <= {tag for tag, _ in plain.elements}
    assert text.clean(name) in parsed.text


def test_clean_removes_what_breaks_xml_or_reorders_lines() -> None:
    assert text.clean("a\u202eb\x00\ud800\ufffe\n c") == "a\ufffdb\ufffd\ufffd\ufffd c"
    assert text.clean("Zürich – 東京 β") == "Zürich – 東京 β"
    assert text.escape("<a b=\"c\" d='e'>&") == "&lt;a b=&quot;c&quot; d=&#x27;e&#x27;&gt;&amp;"


@pytest.mark.parametrize("empty", [{}, {"sites": {}}, {"sites": {"a": {}}}, {"concepts": [{}]}])
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


def replaced(report: Json, path: tuple[Any, ...], value: Any) -> Json:
    changed = copy.deepcopy(report)
    place: Any = changed
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    return changed


def test_any_missing_part_leaves_a_page(report: Json) -> None:
    """Every part set to null in turn."""
    report["concepts"] = report["concepts"][:2] + report["concepts"][-2:]
    report["egress"]["fields"], report["rounds"] = report["egress"]["fields"][:2], report["rounds"][:3]
    paths = [path for path in parts(report) if path]
    assert len(paths) > 120
    for path in paths:
        check(render(replaced(report, path, None)))


@pytest.mark.parametrize("value", WRONG)
def test_parts_of_a_wrong_type_count_as_missing(report: Json, value: Any) -> None:
    for key in report:
        check(render({**report, key: value}))


@pytest.mark.parametrize(
    ("path", "said"),
    [
        (("overall", "ratio"), "Not assessed: only possible where one machine holds all images."),
        (("overall", "federated_fvu"), "Not assessed: no site reported it."),
        (("stability",), "Not assessed: no second federation with another seed was run."),
        (("planted",), "Not assessed: only synthetic cells have concepts that are known beforehand."),
        (("comparators", "local_only"), "Not assessed: dictionaries of single sites can only be compared"),
        (("loso", "views"), "Not assessed: fewer than two sites share labelled"),
        (("agreement", "replication"), "Not assessed: no meaning was clear at all the other sites"),
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
    assert after.count(said) == before + 1 or (before == 0 and said in after)


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
    for concept in report["concepts"]:
        concept["auroc"]["dogwood"] = None
    page = render(report)
    drawing = next(p for p in pictures(page) if p[0].get("id") == "concept-map-t")
    fills = [node.get("fill") for node in drawing.iter("rect")]
    assert fills.count("url(#concept-map-hatch)") == 24 + 1  # one per concept, one in the key
    assert drawing.find(".//pattern") is not None
    table = page[page.index('id="f-concept-map"') :].split("</table>")[0]
    assert table.count("fewer than 11 patients</td>") == 24
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
    assert f'role="note">{mark}<' in page and f'<div class="side" aria-hidden="true">{mark}' in page
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

    def more(value: Any) -> Any:
        if isinstance(value, dict) and set(base) <= set(value):
            return {name: more(value[base[index % 5]]) for index, name in enumerate(names)}
        return {key: more(item) for key, item in value.items()} if isinstance(value, dict) else value

    big: Json = {key: [more(x) for x in v] if isinstance(v, list) else more(v) for key, v in report.items()}
    pairs = [(a, b) for index, a in enumerate(names) for b in names[:index]]
    for part, key in (("agreement", "firing_rate"), ("agreement", "auroc"), ("site_predictability", "pairs")):
        few = big[part][key]
        big[part][key] = [{**few[n % 10], "a": a, "b": b} for n, (a, b) in enumerate(pairs)]
    big["concepts"] = [big["concepts"][index % len(report["concepts"])] for index in range(concepts)]
    return big


def seconds(report: Json) -> float:
    start = time.perf_counter()
    render(report)
    return time.perf_counter() - start


@pytest.mark.parametrize(("sites", "concepts", "limit"), [(2, 8, 1e6), (5, 1024, 1e6), (100, 200, 5e6)])
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
    high, low = sorted((svg.luminance(a), svg.luminance(b)), reverse=True)
    return (high + 0.05) / (low + 0.05)


def test_numbers_in_cells_and_coloured_names_are_readable() -> None:
    """Contrast of 4.5 : 1, WCAG 2.1 level AA, on both ramps; colours of names on white."""
    for ramp in (svg.diverging, svg.sequential):
        fills = [ramp(step / 50) for step in range(51)]
        assert min(contrast(svg.text_on(fill), fill) for fill in fills) >= 4.5
    assert min(contrast(colour, svg.PAPER) for colour in (*svg.PALETTE, svg.INK, svg.MUTED)) >= 4.5
    assert svg.diverging(0.0) == "#195a96" and svg.diverging(1.0) == "#aa4b05"


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
