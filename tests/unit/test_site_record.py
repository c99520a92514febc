"""A site's side of the logs, through its session: first entries, repeats, heads it signs, stops after a block."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cytosae_client.record import SiteRecord
from cytosae_core.audit.note import open_checkpoint, origin_of, parse_checkpoint, split_note
from cytosae_core.canonical import parse_json, sha256_hex
from cytosae_core.keys import SigningKey
from cytosae_core.policy import SitePolicy
from cytosae_local.cli import main
from cytosae_server.desk import Ask
from tests.deaths import (
    BEGIN,
    DESCRIBE,
    HELLO,
    ROUND,
    SITE,
    Clinic,
    Office,
    box_sha256,
    site_leaves,
    small_study,
)
from tests.federation import MASKED, FakeStore

STUDY = small_study()
MOMENTS = Ask("moments", 0, {}, {})


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[tuple[Clinic, Office]]:
    clinic, office = Clinic(tmp_path), Office(tmp_path)
    yield clinic, office
    clinic.session.close()
    office.close()


def predicates(home: Path, *kinds: str) -> list[dict[str, Any]]:
    return [s.predicate for s in site_leaves(home, STUDY, home / "copy")[0] if s.kind in kinds]


def kinds(home: Path) -> list[str]:
    return [s.kind for s in site_leaves(home, STUDY, home / "copy")[0]]


def test_a_log_begins_with_the_enrolment_and_the_policy_in_force(tmp_path: Path) -> None:
    def start(policy: SitePolicy) -> None:
        Clinic(tmp_path, policy).session.close()

    start(MASKED)
    start(MASKED)
    assert kinds(tmp_path) == ["enrol", "policy"]
    stricter = replace(MASKED, min_units=15)
    start(stricter)
    start(stricter)
    start(MASKED)  # back again: that is a change too
    assert kinds(tmp_path) == ["enrol", "policy", "policy", "policy"]
    digests = [item["policy_sha256"] for item in predicates(tmp_path, "policy")]
    assert digests == [MASKED.digest, stricter.digest, MASKED.digest]
    enrolled = predicates(tmp_path, "enrol")[0]["keys"]
    assert enrolled["signing"] == SigningKey.load_or_create(tmp_path / SITE / "site.key").public_hex
    assert len({enrolled["signing"], *(enrolled[role].split("+")[2] for role in ("log", "cosign"))}) == 3


def test_an_entry_says_what_left(pair: tuple[Clinic, Office]) -> None:
    clinic, office = pair
    for what in (HELLO, BEGIN):
        office.ask(what, clinic.session.handle)
    reply, payload, wire = office.ask(ROUND, clinic.session.handle)
    last = predicates(clinic.home, "egress")[-1]
    assert last["wire"]["sha256"] == box_sha256(wire)
    assert last["payload"] == {"bytes": len(payload), "sha256": sha256_hex(payload)}
    listed = {item["name"]: (item["dtype"], item["shape"], item["suppressed"]) for item in last["tensors"]}
    assert listed == {
        name: (values.dtype.name, list(values.shape), reply.suppressed[name])
        for name, values in reply.tensors.items()
    }
    assert (last["policy_sha256"], last["min_units"]) == (MASKED.digest, MASKED.min_units)
    assert last["dp"] == {"mechanism": "none"} and last["gate"] and last["budget"] == clinic.spent
    assert {check["value"] for check in last["gate"]} == {"pass"}  # never what was measured
    accepted = predicates(clinic.home, "accepted")[-1]
    assert accepted["request_sha256"] == last["request_sha256"] and accepted["coordinator"]["size"] > 2


def test_repeats_name_the_newest_good_answer_to_the_same_question(pair: tuple[Clinic, Office]) -> None:
    clinic, office = pair
    for what in (HELLO, MOMENTS, HELLO):
        office.ask(what, clinic.session.handle)
    (clinic.state / "stopped").touch()
    assert office.ask(HELLO, clinic.session.handle)[0].status == "refused"
    (clinic.state / "stopped").unlink()
    clinic.session.close()
    clinic.session = Clinic(clinic.home).session
    office.ask(HELLO, clinic.session.handle)
    entries = predicates(clinic.home, "egress")
    first, _, second, refused, third = (entry["seq"] for entry in entries)
    assert [entry["repeats"] for entry in entries] == [-1, -1, first, -1, second]
    assert entries[3]["seq"] == refused and entries[3]["tensors"] == [] and third == entries[4]["seq"]


def test_every_good_answer_carries_a_cosignature_of_the_head_that_was_shown(
    pair: tuple[Clinic, Office],
) -> None:
    clinic, office = pair
    for what in (HELLO, MOMENTS, DESCRIBE):
        office.ask(what, clinic.session.handle)
        note = office.record.log.cosigned_checkpoint()
        keys = parse_json((clinic.home / "desk" / "keys" / f"{SITE}.json").read_bytes())
        head = open_checkpoint(
            note, office.record.keys["log"], origin=office.record.origin, witnesses=[keys["cosign"]]
        )
        assert list(head.cosigned) == [keys["cosign"]] and head.size == clinic.witnessed[0]


def test_the_coordinator_s_cosignature_comes_back_with_the_next_request(pair: tuple[Clinic, Office]) -> None:
    clinic, office = pair
    office.ask(HELLO, clinic.session.handle)
    log = clinic.session._record.log
    size = log.size
    assert log.cosigned_checkpoint() == b""
    office.ask(MOMENTS, clinic.session.handle)
    note = log.cosigned_checkpoint()
    assert parse_checkpoint(split_note(note)[0]).size == size and len(split_note(note)[1]) == 2


def test_a_section_holds_what_the_coordinator_lacks(pair: tuple[Clinic, Office]) -> None:
    clinic, office = pair
    office.ask(HELLO, clinic.session.handle)
    office.ask(MOMENTS, clinic.session.handle)
    content = parse_json(clinic.session._record.section())
    assert set(content) == {"start", "leaves", "checkpoint", "cosignature", "policy"}
    assert (
        content["start"] == 3 and content["start"] + len(content["leaves"]) == clinic.session._record.log.size
    )
    assert content["policy"] == MASKED.to_dict()


def test_the_log_is_one_process_s(pair: tuple[Clinic, Office]) -> None:
    from cytosae_core.errors import SetupError

    clinic, _ = pair
    with pytest.raises(SetupError):
        SiteRecord(clinic.site, STUDY, clinic.session.coordinator)
    assert clinic.session._record.log.origin == origin_of(STUDY.digest, SITE)


# Stop after a violation


def spoiled(clinic: Clinic) -> FakeStore:
    """The site's tokens, of which some are no numbers."""
    tokens = clinic.site.store.tokens(0, clinic.site.store.n_images).astype(np.float32)
    tokens[:, 3] = np.nan
    return FakeStore(tokens)


def test_after_a_block_nothing_leaves_until_it_is_cleared(
    pair: tuple[Clinic, Office], capsys: pytest.CaptureFixture[str]
) -> None:
    clinic, office = pair
    office.ask(HELLO, clinic.session.handle)
    clinic.session.steps.site = replace(clinic.site, store=spoiled(clinic))
    reply = office.ask(MOMENTS, clinic.session.handle)[0]
    assert (reply.status, reply.code) == ("refused", "egress")
    event = next(event for event in clinic.logs if event.code == "blocked")
    assert (event.values["reason"], event.values["step"]) == ("FINITE", 3)
    assert kinds(clinic.home)[-3:] == ["blocked", "refused", "egress"]
    assert predicates(clinic.home, "blocked")[0]["step"] == 3 and (clinic.state / "stopped").exists()
    clinic.session.close()
    clinic = Clinic(clinic.home)  # good tokens again, and a new process: it stays stopped
    for what in (HELLO, MOMENTS):
        reply = office.ask(what, clinic.session.handle)[0]
        assert (reply.status, reply.code, reply.tensors) == ("refused", "egress", {})
    assert clinic.logs[-2].code == "stopped" or "stopped" in [event.code for event in clinic.logs]
    spent = clinic.spent
    assert main(["site", "approve", "--home", str(clinic.home / SITE), "--clear"]) == 0
    assert "1 cleared" in capsys.readouterr().out
    assert office.ask(MOMENTS, clinic.session.handle)[0].status == "ok"
    assert clinic.spent["messages"] == spent["messages"] + 1
    clinic.session.close()


def test_a_block_stops_the_site_also_when_the_log_takes_no_entry(
    pair: tuple[Clinic, Office], monkeypatch: pytest.MonkeyPatch
) -> None:
    from cytosae_core.errors import SetupError

    clinic, office = pair

    def full(*_: Any, **__: Any) -> int:
        raise SetupError("Expected a disk that takes the audit log.")

    clinic.session.steps.site = replace(clinic.site, store=spoiled(clinic))
    monkeypatch.setattr(clinic.session._record.log, "append", full)
    request, sent = office.desk.request(SITE, MOMENTS)
    assert clinic.session.handle(request) == b""
    assert (clinic.state / "stopped").exists() and clinic.logs[-1].code == "failed"
    office.desk.unanswered(sent, "relay")


def test_a_spent_budget_does_not_stop_the_site(tmp_path: Path) -> None:
    """It refuses what would exceed it; an officer may sign a policy with another limit."""
    clinic, office = Clinic(tmp_path, replace(MASKED, messages_total=9)), Office(tmp_path)
    codes = [office.ask(HELLO, clinic.session.handle)[0].code for _ in range(11)]
    assert codes == [""] * 9 + ["budget"] * 2 and not (clinic.state / "stopped").exists()
    assert kinds(clinic.home)[-6:] == ["blocked", "refused", "egress"] * 2
    clinic.session.close()
    clinic = Clinic(tmp_path, MASKED)
    assert office.ask(HELLO, clinic.session.handle)[0].status == "ok"
    clinic.session.close()
    office.close()
