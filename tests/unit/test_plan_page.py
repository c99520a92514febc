"""The protocol as a document: it says what the protocol says, nothing more, and draws hostile text harmlessly."""

from __future__ import annotations

import json
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cytosae_core.allowed import ALLOWED
from cytosae_core.config import DictionaryConfig, StatisticsConfig, StudyConfig
from cytosae_core.plan import ENDPOINTS
from cytosae_core.policy.tighten import demand
from cytosae_core.report.plan_document import leaves, plan_document
from cytosae_core.report.plan_page import plan_markdown, render_plan
from cytosae_local.cli import main
from cytosae_server.study import write_study_folder
from tests.federation import study_config
from tests.unit.test_plan import study

VALIDATE = replace(
    study_config(),
    kind="validate",
    profile="evaluate_only",
    dictionary=DictionaryConfig(n=24, k=3, init="file"),
)


def part(document: dict[str, Any], key: str) -> dict[str, Any]:
    return next(item for item in document["sections"] if item["id"] == key)


@pytest.mark.parametrize("made", [study(), VALIDATE, study().for_stage("poc")])
def test_what_leaves_is_what_the_policy_counts(made: StudyConfig) -> None:
    table = part(plan_document(made), "leaves")["items"][0]
    printed = {name for row in table["rows"] for name in row[1].split(", ")}
    asked = set(demand(made).names)
    unused = {"recurrence", "recurrence_init", "recurrence_null", "subgroup"}  # asked for by no step of these
    assert printed == asked - unused
    assert ("delta" in printed) is (made.kind == "train")


def test_recurrence_and_subgroups_stand_there_when_they_are_asked_for() -> None:
    made = replace(study(), statistics=replace(study().statistics, recurrence_steps=10))
    names = {field.name for field in ALLOWED if leaves(made, "describe", field)}
    assert {"recurrence", "recurrence_init", "recurrence_null"} <= names
    assert not any(field.name == "subgroup" and leaves(made, "score", field) for field in ALLOWED)


def test_bytes_are_those_of_the_arrays() -> None:
    rows = part(plan_document(study()), "leaves")["items"][0]["rows"]
    (delta,) = [row for row in rows if row[1] == "delta"]
    assert delta[3] == f"{np.zeros((24, 16), np.float16).nbytes} B" and delta[2] == "24 x 16"


def test_endpoints_stages_and_signatures_stand_in_it() -> None:
    document = plan_document(study())
    text = plan_markdown(document)
    assert "transfer | at least 0.5 | primary" in text and "fvu | at most 0.4 | secondary" in text
    assert "fvu at most 0.4 from 1 site" in text and ENDPOINTS["fvu"] in text
    assert study().digest in text and study().for_stage("poc").digest[:16] in text
    assert "For the hospital" in text and "SIMULATED SITES" in text


class Reader(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        if tag not in ("meta", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


@pytest.mark.parametrize(
    "hostile", ["<script>alert(1)</script>", "</style><b>", "a|b`c`*d*[e](f)", "&lt;i&gt;"]
)
def test_hostile_text_is_text(hostile: str) -> None:
    made = replace(
        study(hypothesis=hostile), question=hostile, statistics=StatisticsConfig(classes=(hostile, "b"))
    )
    page, text = render_plan(plan_document(made)), plan_markdown(plan_document(made))
    reader = Reader()
    reader.feed(page)
    assert reader.open == [] and not {"script", "b", "i", "img"} & set(reader.tags) - {"b"}
    assert reader.tags.count("script") == 0 and "<script" not in text and "[e](f)" not in text
    assert page.count("</style>") == 1


def test_the_page_is_a_pure_function_without_requests() -> None:
    document = plan_document(study())
    page = render_plan(document)
    assert page == render_plan(json.loads(json.dumps(document)))
    assert "http://" not in page and "https://" not in page and "src=" not in page and "url(" not in page


def test_the_command_writes_what_is_asked_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_study_folder(tmp_path, study(), {}, {}, "cd")
    path = tmp_path / "study.yaml"
    assert main(["study", "plan", str(path), "--out", str(tmp_path / "plan.html")]) == 0
    assert (tmp_path / "plan.html").read_text() == render_plan(plan_document(study()))
    assert main(["study", "plan", str(tmp_path), "--out", str(tmp_path / "plan.md")]) == 0
    capsys.readouterr()
    assert main(["study", "plan", str(path)]) == 0
    assert capsys.readouterr().out == (tmp_path / "plan.md").read_text()
    assert main(["study", "plan", str(path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["sha256"] == study().digest


@pytest.mark.parametrize("out", ["plan.pdf", "plan", "study.yaml"])
def test_other_outputs_are_refused(tmp_path: Path, out: str) -> None:
    write_study_folder(tmp_path, study(), {}, {}, "cd")
    before = (tmp_path / "study.yaml").read_bytes()
    assert main(["study", "plan", str(tmp_path / "study.yaml"), "--out", str(tmp_path / out)]) == 1
    assert (tmp_path / "study.yaml").read_bytes() == before
    assert main(["study", "plan", str(tmp_path / "none.yaml")]) == 1
