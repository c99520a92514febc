"""report.html as its reader opens it: Chromium on file://, with and without script, dark, narrow, on A4."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cytosae_core.report.html import render_pages
from cytosae_core.report.management import render_both
from tests.devtools import BROKEN, FAINT, Browser, axe_source, browser
from tests.unit.test_report_pages import large

Json = dict[str, Any]
EXAMPLE = Path(__file__).resolve().parents[1] / "unit" / "report_example.json"
COUNT = 49_152
ROWS = (
    'Array.from(document.querySelector("#catalogue tbody").rows)'
    ".filter(r=>!r.hidden).map(r=>r.cells[0].textContent)"
)
SAID = 'document.getElementById("b-said").textContent'


@pytest.fixture(scope="module")
def report() -> Json:
    return json.loads(EXAMPLE.read_text())  # type: ignore[no-any-return]


@pytest.fixture(scope="module")
def folder(report: Json, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pages of the example, and of a study of 100 sites and 49,152 concepts in `large/`."""
    out = tmp_path_factory.mktemp("pages")
    for name, page in {**render_pages(report), **render_both(report)}.items():
        (out / name).write_text(page)
    (out / "large").mkdir()
    columns = {"auroc": np.full((100, COUNT), 0.75, np.float32)}
    for name, page in render_pages(large(report, COUNT, 100), columns).items():
        if name in ("report.html", "concepts-001.html"):
            (out / "large" / name).write_text(page)
    return out


@pytest.fixture(scope="module")
def tab() -> Iterator[Browser]:
    with browser() as made:
        yield made


def enter(tab: Browser, field: str, value: str) -> None:
    """Type into a search field or choose an option by its text."""
    kind = "input" if field == "b-q" else "change"
    tab.run(
        f'(function(){{var e=document.getElementById("{field}");if(e.options)Array.from(e.options).forEach(o=>{{'
        f"if(o.text==={json.dumps(value)})o.selected=true}});else e.value={json.dumps(value)};"
        f'e.dispatchEvent(new Event("{kind}"))}})()'
    )


def click(tab: Browser, selector: str) -> None:
    tab.run(f"document.querySelector({json.dumps(selector)}).click()")


@pytest.mark.parametrize(
    "name", ["report.html", "report-management-en.html", "report-management-ja.html", "large/report.html"]
)
def test_opens_from_a_file_without_errors_and_requests(tab: Browser, folder: Path, name: str) -> None:
    tab.errors.clear()
    tab.open(folder / name)
    assert tab.errors == [] and tab.requests == [f"file://{folder / name}"]
    assert tab.run("document.querySelectorAll('h1').length") == 1


def test_the_policy_stops_every_other_script_and_request(tab: Browser, folder: Path) -> None:
    """The check above can fail: a script and a picture that somebody adds are refused, and that is an error."""
    page = (folder / "report.html").read_text()
    added = '<script>document.title="owned"</script><img src="http://127.0.0.1:9/x.png">'
    (folder / "changed.html").write_text(page.replace("</main>", f"{added}</main>", 1))
    tab.errors.clear()
    tab.open(folder / "changed.html")
    assert tab.run("document.title") != "owned" and len(tab.errors) >= 2
    assert not [url for url in tab.requests if url.startswith("http")] or any(
        "Refused" in e or "violates" in e for e in tab.errors
    )
    tab.errors.clear()


def test_search_filters_paging_and_sorting(tab: Browser, folder: Path, report: Json) -> None:
    tab.open(folder / "report.html")
    columns, names = report["concepts"]["columns"], report["concepts"]["targets"]
    ids = columns["id"]
    assert tab.run('document.getElementById("browse").hidden') is False
    assert tab.run(ROWS) == ids[:50]
    click(tab, "#b-next")
    assert tab.run(ROWS) == ids[50:] and tab.run(SAID) == "Concepts 51 to 60 of 60 found (60 in all)."
    assert tab.run('document.getElementById("b-next").disabled') is True
    enter(tab, "b-q", "C03")
    assert tab.run(ROWS) == [name for name in ids if "c03" in name]
    enter(tab, "b-q", "")
    enter(tab, "b-target", names[0])
    wanted = [name for name, target in zip(ids, columns["target"], strict=True) if target == 0]
    assert tab.run(ROWS) == wanted != []
    enter(tab, "b-fails", "not the hospital")
    failed = report["concepts"]["gate_values"]["shortcut"]
    both = [name for name, gate in zip(ids, failed, strict=True) if gate == 0 and name in wanted]
    assert tab.run(ROWS) == both
    click(tab, "#b-clear")
    click(tab, "#catalogue thead th:nth-child(5) [role=button]")  # AUROC, highest first
    order = tab.run(
        'Array.from(document.querySelector("#catalogue tbody").rows).map(r=>r.cells[4].textContent)'
    )
    known = [float(value) for value in order if value != "none"]
    assert known == sorted(known, reverse=True) and len(known) > 40
    assert tab.run('document.querySelector("#catalogue thead th:nth-child(5)").ariaSort') == "descending"
    enter(tab, "b-q", "nothing like this")
    assert tab.run(ROWS) == [] and tab.run(SAID).startswith("No concept found")
    assert tab.run('document.getElementById("b-said").ariaLive') == "polite"


def test_an_address_with_a_search_opens_on_it(tab: Browser, folder: Path, report: Json) -> None:
    name = report["concepts"]["columns"]["id"][37]
    tab.open(folder / "report.html", f"#q={name}")
    assert tab.run(ROWS) == [name]
    tab.open(folder / "report.html", "#state=generalising&sort=id")
    state = report["concepts"]["states"].index("generalising")
    columns = report["concepts"]["columns"]
    found = [name for name, value in zip(columns["id"], columns["state"], strict=True) if value == state]
    assert tab.run(ROWS) == sorted(found)
    tab.open(folder / "report.html", "#q=%3Cimg%20src=x%20onerror=alert(1)%3E")
    assert tab.run(ROWS) == [] and tab.run("document.images.length") == 0


def test_without_scripts_the_page_is_whole(tab: Browser, folder: Path, report: Json) -> None:
    tab.scripts(False)
    try:
        tab.open(folder / "report.html")
        tree = tab.call("DOMSnapshot.captureSnapshot", computedStyles=[])
        texts = set(tree["strings"])
        assert set(report["concepts"]["columns"]["id"]) <= texts
    finally:
        tab.scripts(True)


def test_49152_concepts_are_searched_while_typing(tab: Browser, folder: Path) -> None:
    """Against the time that the same browser needs to look once at every name."""
    tab.errors.clear()
    tab.open(folder / "large" / "report.html")
    times = tab.run(
        """(function(){
var q=document.getElementById("b-q"),out=[];q.dispatchEvent(new Event("focus"));
["c","c4","c42","c421","baso","gen",""].forEach(function(x){
 q.value=x;var t=performance.now();q.dispatchEvent(new Event("input"));out.push(performance.now()-t)});
var ids=JSON.parse(document.getElementById("concept-data").textContent).id,t=performance.now(),n=0;
for(var k=0;k<20;k++)ids.forEach(function(x){if(x.toLowerCase().indexOf("c4"+k)>=0)n++});
return [Math.max.apply(null,out.slice(1)),(performance.now()-t)/20]})()"""
    )
    assert times[0] < 40 * max(times[1], 0.5), times
    assert tab.run(SAID).endswith("(49,152 in all).") and len(tab.run(ROWS)) == 50
    enter(tab, "b-q", "c4217")
    link = tab.run('document.querySelector("#catalogue tbody a").getAttribute("href")')
    assert re.fullmatch(r"concepts-\d{3}\.html#c4217\d?", link) and tab.errors == []


def test_a_large_page_opens_not_much_slower_than_a_small_one(tab: Browser, folder: Path) -> None:
    small, big = folder / "report.html", folder / "large" / "report.html"
    tab.open(small)
    floor = min(tab.open(small) for _ in range(3))
    assert min(tab.open(big) for _ in range(3)) < 20 * floor + 0.2  # 820 times the concepts


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("name", ["report.html", "report-management-ja.html", "large/concepts-001.html"])
def test_text_has_contrast_on_light_and_dark_screens(
    tab: Browser, folder: Path, name: str, dark: bool
) -> None:
    tab.dark(dark)
    tab.open(folder / name)
    background = tab.run("getComputedStyle(document.body).backgroundColor")
    assert background == ("rgb(20, 24, 27)" if dark else "rgb(255, 255, 255)")
    assert tab.run(FAINT) == []
    tab.dark(False)


@pytest.fixture(scope="module")
def axe() -> str:
    return axe_source()


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize(
    "name",
    ["report.html", "report-management-en.html", "report-management-ja.html", "large/concepts-001.html"],
)
def test_no_rule_of_axe_is_broken(tab: Browser, folder: Path, axe: str, name: str, dark: bool) -> None:
    tab.dark(dark)
    tab.open(folder / name)
    tab.run(f"{axe};0")
    assert tab.run(BROKEN) == []
    tab.run('document.querySelector("html").removeAttribute("lang")')
    assert tab.run(BROKEN) == ["html-has-lang"]  # the check can fail
    tab.dark(False)


def test_the_finder_of_faint_text_finds_it(tab: Browser, folder: Path) -> None:
    tab.open(folder / "report.html")
    tab.run('document.querySelector("h1").style.color="#aaaaaa"')
    assert [found[0] for found in tab.run(FAINT)] == ["H1"]


@pytest.mark.parametrize("width", [360, 768, 1280])
def test_nothing_sticks_out_at_any_width(tab: Browser, folder: Path, width: int) -> None:
    tab.size(width, 800)
    for name in ("report.html", "report-management-en.html", "large/report.html"):
        tab.open(folder / name)
        assert tab.run("document.documentElement.scrollWidth") <= width, name
    tab.size(1100, 900)


def test_controls_can_be_reached_and_used_by_keyboard(tab: Browser, folder: Path) -> None:
    tab.open(folder / "report.html")
    order = tab.run(
        'Array.from(document.querySelectorAll("a[href],button,input,select,summary,[tabindex]"))'
        ".filter(e=>e.getClientRects().length&&!e.disabled).map(e=>e.id||e.textContent)"
    )
    places = [order.index(name) for name in ("b-q", "b-target", "b-state", "b-clear", "b-next")]
    assert places == sorted(places) and order[0] == "To the report"
    tab.run('document.getElementById("b-next").focus()')
    for kind in ("rawKeyDown", "char", "keyUp"):
        tab.call(
            "Input.dispatchKeyEvent",
            type=kind,
            key="Enter",
            code="Enter",
            text="\r",
            windowsVirtualKeyCode=13,
        )
    assert tab.run(SAID).startswith("Concepts 51 to 60")
    outline = tab.run('getComputedStyle(document.getElementById("b-back")).outlineStyle')
    assert outline in ("none", "solid")
    tab.run('document.querySelector("#catalogue thead th:nth-child(8) [role=button]").focus()')
    tab.call("Input.dispatchKeyEvent", type="rawKeyDown", key=" ", code="Space", windowsVirtualKeyCode=32)
    assert tab.run('document.querySelector("#catalogue thead th:nth-child(8)").ariaSort') == "descending"
    tab.run('document.getElementById("b-q").focus()')
    assert tab.run('document.activeElement.matches(":focus-visible")') is True
    assert tab.run("getComputedStyle(document.activeElement).outlineStyle") == "solid"


def pages_of(pdf: bytes) -> list[tuple[float, float]]:
    """Width and height of every page, in points."""
    found = re.findall(rb"/MediaBox\s*\[\s*0 0 ([\d.]+) ([\d.]+)\s*\]", pdf)
    return [(float(width), float(height)) for width, height in found]


def test_prints_on_a4_and_the_summary_on_one_page(tab: Browser, folder: Path) -> None:
    for name, limit in (
        ("report.html", 60),
        ("report-management-en.html", 1),
        ("report-management-ja.html", 1),
    ):
        tab.open(folder / name)
        sizes = pages_of(tab.pdf())
        assert 1 <= len(sizes) <= limit, name
        assert all(abs(w - 595) < 1.5 and abs(h - 842) < 1.5 for w, h in sizes)
