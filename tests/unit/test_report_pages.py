"""The catalogue of concepts, linked pages of a large study, and the management summary."""

from __future__ import annotations

import json
import re
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cytosae_core.report import browse, management, sections_words
from cytosae_core.report.figures_data import LARGE, Concepts
from cytosae_core.report.html import render, render_pages
from cytosae_core.report.schema import problems
from tests.unit.test_report_html import HOSTILE, Page, accessible, check

Json = dict[str, Any]


@pytest.fixture()
def report() -> Json:
    return json.loads(Path(__file__).with_name("report_example.json").read_text())  # type: ignore[no-any-return]


def large(report: Json, count: int, sites: int = 0) -> Json:
    """The example with more concepts; with `sites`, per-site values lie in a file beside it, in another order."""
    part, size = report["concepts"], report["concepts"]["count"]

    def longer(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: longer(item) for key, item in value.items()}
        if isinstance(value, list) and len(value) == size:
            return [value[index % size] for index in range(count)]
        return value

    made = longer(part) | {"count": count}
    made["columns"]["row"] = [(index * 7 + 3) % count for index in range(count)]
    made["columns"]["id"] = [f"c{row:04d}" for row in made["columns"]["row"]]
    if sites:
        names = [f"site-{index:03d}" for index in range(sites)]
        made["tables"] = {
            "file": "report-sites.safetensors",
            "sha256": "0" * 64,
            "dtype": "float32",
            "sites": names,
        }
    return {**report, "concepts": made}


def data_of(page: str) -> Json:
    found = re.search(r'<script type="application/json" id="concept-data">(.*?)</script>', page, re.S)
    assert found is not None
    return dict(json.loads(found[1]))


def test_the_example_has_the_form_of_a_report(report: Json) -> None:
    assert problems(report) == []


def test_the_table_for_the_script_says_the_same_as_the_plain_rows(report: Json) -> None:
    page = render(report)
    data, concepts = data_of(page), Concepts(report)
    assert data["id"] == report["concepts"]["columns"]["id"] and data["per"] == 0
    body = page[page.index('id="catalogue"') :].split("</table>")[0]
    rows = re.findall(r"<tr><th scope=\"row\">(.*?)</th>(.*?)</tr>", body, re.S)
    assert [name for name, _ in rows] == data["id"]
    for place, (_, cells) in enumerate(rows):
        shown = re.findall(r"<td[^>]*>(.*?)</td>", cells)
        estimate = data["estimate"][place]
        assert shown[3] == ("none" if estimate < 0 else f"{estimate / 1000:.3f}")
        assert shown[0] == (
            data["names"]["target"][data["target"][place]] if data["target"][place] >= 0 else "none"
        )
        fails = [name for bit, name in enumerate(data["names"]["fails"]) if data["fails"][place] >> bit & 1]
        assert shown[7] == ", ".join(fails) and len(fails) == len(concepts.failed(place))
    assert any(data["fails"]) and max(data["estimate"]) <= 1000


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_names_cannot_end_the_data(report: Json, name: str) -> None:
    report["concepts"]["columns"]["id"][0] = name
    report["concepts"]["targets"][0] = name
    page = render(report)
    check(page)
    assert data_of(page)["id"][0] == Concepts(report).id(0)
    raw = re.search(r'id="concept-data">(.*?)</script>', page, re.S)
    assert raw is not None and "<" not in raw[1] and raw[1].isascii()


def test_without_a_script_every_concept_is_readable(report: Json) -> None:
    middle = large(report, LARGE)
    pages = render_pages(middle)
    assert list(pages) == ["report.html"]
    for name in middle["concepts"]["columns"]["id"]:
        assert f">{name}</th>" in pages["report.html"]
    assert '<form id="browse"' in pages["report.html"] and 'hidden="hidden"' in pages["report.html"]


def test_a_large_study_continues_on_linked_pages_with_every_site(report: Json) -> None:
    count, sites = 4500, 7
    big = large(report, count, sites)
    rng = np.random.default_rng(0)
    auroc = rng.uniform(0, 1, (sites, count)).astype(np.float32)
    auroc[rng.uniform(size=auroc.shape) < 0.1] = np.nan
    auroc[0, :3] = (0.0, 1.0, 0.5)
    pages = render_pages(big, {"auroc": auroc})
    assert list(pages) == ["report.html", "concepts-001.html", "concepts-002.html", "concepts-003.html"]
    assert pages["report.html"] == render(big)  # what the auditor draws again needs no column file
    seen = []
    for name, page in list(pages.items())[1:]:
        parsed = check(page)
        assert name not in [attrs.get("href") for _, attrs in parsed.elements]
        for row, rest in re.findall(r'<b id="c(\d+)">c\d+</b>([^<\n]*)', page):
            values = rest.split()[-sites:]
            wanted = auroc[:, int(row)]
            for text, value in zip(values, wanted, strict=True):
                assert (text == "-") == bool(np.isnan(value))
                assert text == "-" or abs(float(text) - value) <= 0.00501
            seen.append(int(row))
    assert seen == big["concepts"]["columns"]["row"]
    linked = {attrs["href"] for _, attrs in Page(pages["report.html"]).elements if "href" in attrs}
    assert {name for name in pages if name != "report.html"} <= {href.split("#")[0] for href in linked}


def test_linked_pages_say_when_values_of_sites_are_not_at_hand(report: Json) -> None:
    big = large(report, 2001, 3)
    page = render_pages(big, None)["concepts-001.html"]
    assert "Values of single sites: not assessed here" in check(page).text
    for wrong in ({"auroc": np.zeros((2, 5), np.float32)}, {"auroc": np.zeros(4, np.float32)}, {}):
        made = render_pages(big, wrong)["concepts-001.html"]
        assert "not assessed here" in Page(made).text


def test_inline_values_reach_the_linked_pages_too(report: Json) -> None:
    big = large(report, 2100)
    page = render_pages(big)["concepts-001.html"]
    first = page[page.index('<b id="') :].split("\n")[0]
    values = [table[0] for table in big["concepts"]["tables"]["auroc"]["sites"].values()]
    shown = [float(text) if text != "-" else None for text in first.split()[-5:]]
    assert shown == [None if value is None else pytest.approx(value, abs=0.0051) for value in values]


def test_49152_concepts_stay_small_and_grow_in_proportion(report: Json) -> None:
    small, big = large(report, 4096, 100), large(report, 49152, 100)
    times = []
    for made in (small, big):
        columns = {"auroc": np.full((100, made["concepts"]["count"]), 0.8125, np.float32)}
        start = time.perf_counter()
        pages = render_pages(made, columns)
        times.append(time.perf_counter() - start)
    assert len(pages["report.html"].encode()) < 5e6 and len(pages) == 26
    assert len(browse.data_text(Concepts(big))) < 2.5e6
    assert max(len(page) for name, page in pages.items() if name != "report.html") < 1.5e6
    assert times[1] / times[0] < 40  # 12 times the concepts


@pytest.mark.parametrize("language", ["en", "ja"])
def test_the_management_page_answers_in_both_languages(report: Json, language: management.Language) -> None:
    page = management.render_management(report, language)
    parsed, said = Page(page), sections_words.WORDS[language]
    accessible(parsed)
    assert f'<html lang="{language}">' in page and "<script" not in page and "://" not in page
    seen = parsed.text
    assert report["question"] in seen and said.states["generalises"] in seen and said.simulated in seen
    for text in (*said.heads.values(), said.means["generalises"], *said.not_means, said.simulated_next):
        assert text in seen
    for number in ("0.81", "0.72", "0.88", "240", "1,820", "36.5 MB", "128"):
        assert number in seen
    assert said.limits["simulated"] in seen and said.profiles["masked"] in seen and said.still_data in seen


def test_management_pages_of_every_state_and_of_nothing(report: Json) -> None:
    for state in ("generalises", "does_not_generalise", "provisional", "not_estimable"):
        report["verdict"]["state"], report["status"] = state, "real"
        for language, said in sections_words.WORDS.items():
            page = management.render_management(report, language)  # type: ignore[arg-type]
            assert said.next[state] in Page(page).text and said.simulated not in page
    for empty in ({}, {"sites": None}, {"egress": {"sites": {"a": 3}}}):
        pages = management.render_both(empty)
        assert list(pages) == ["report-management-en.html", "report-management-ja.html"]
        for page in pages.values():
            accessible(Page(page))
            assert not re.search(r"\b(None|nan)\b|\{", Page(page).text)


def test_both_languages_have_the_same_sentences() -> None:
    english, japanese = sections_words.ENGLISH, sections_words.JAPANESE
    for name, value in vars(english).items():
        other = getattr(japanese, name)
        if isinstance(value, dict) and name != "marks":
            assert value.keys() == other.keys(), name
            pairs = [(value[key], other[key]) for key in value]
        else:
            pairs = [(value, other)] if isinstance(value, str) else list(zip(value, other, strict=False))
        for one, two in pairs:
            if name not in ("marks", "css"):
                assert set(re.findall(r"\{(\w+)\}", one)) == set(re.findall(r"\{(\w+)\}", two)), name
                assert one and (two or name == "css")
