"""The site's log takes codes and numbers only: no path, no name, no text of an exception, not even by mistake."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from cytosae_client.events import EVENTS, KINDS, Event, Events
from cytosae_client.session import STEPS
from cytosae_core.errors import DataError, MessageError

CLIENT = Path(__file__).resolve().parents[2] / "client"


def written(code: str, **values: object) -> str:
    found: list[Event] = []
    Events(found.append)(code, **values)  # type: ignore[arg-type]
    return found[0].to_json()


def test_texts_of_errors_do_not_pass() -> None:
    error = DataError("Expected /data/patient-7.png", hint="ask Dr X", reason="DECODE")
    line = written("refused", kind="round", error=error, round=3)
    assert json.loads(line) | {"at": 0} == {
        "at": 0, "event": "refused", "kind": "round", "code": "data", "reason": "DECODE", "round": 3
    }  # fmt: skip


@pytest.mark.parametrize("reason", ["", "patient-7", "/data", "lower", "A" * 25, "TWO WORDS"])
def test_reasons_of_another_form_are_written_as_other(reason: str) -> None:
    assert json.loads(written("refused", error=MessageError("x", reason=reason)))["reason"] == "OTHER"


def test_unknown_codes_and_kinds_are_not_written_as_they_came() -> None:
    assert "patient" not in written("patient-7") + written("refused", kind="patient-7")


@pytest.mark.parametrize("value", ["/data/patient-7.png", b"x", None])
def test_values_are_numbers(value: object) -> None:
    with pytest.raises((TypeError, ValueError)):
        written("answered", bytes=value)


def test_every_event_of_the_product_has_a_sentence_and_every_step_is_a_kind() -> None:
    used: set[str] = set()
    for path in CLIENT.glob("*.py"):
        used |= set(re.findall(r"\bevents\(\s*\"(\w+)\"", path.read_text()))
    assert len(used) >= 10 and used <= set(EVENTS)
    assert set(STEPS) <= KINDS


def test_the_default_sink_writes_one_line_to_standard_error(capsys: pytest.CaptureFixture[str]) -> None:
    Events()("serving", images=3)
    assert json.loads(capsys.readouterr().err)["images"] == 3
