"""The coordinator's side of the logs: one entry per question, one head for all, order over restarts, receipts."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cytosae_core.audit.note import parse_checkpoint, split_note
from cytosae_core.audit.statement import read_leaf
from cytosae_core.canonical import canonical_json, parse_json, sha256_hex
from cytosae_core.envelope import REQUEST, unpack
from cytosae_core.errors import MessageError, VerificationError
from cytosae_server.desk import Ask
from cytosae_server.record import MAX_SENT
from tests.deaths import BEGIN, HELLO, ROUND, SITE, Clinic, Office, box_sha256, rows, small_study
from tests.federation import Federation

TWO = small_study(2)


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[tuple[Clinic, Office]]:
    clinic, office = Clinic(tmp_path), Office(tmp_path)
    yield clinic, office
    clinic.session.close()
    office.close()


def predicates(office: Office, *kinds: str) -> list[dict[str, Any]]:
    log, key = office.record.log, office.key.public_hex
    items = [read_leaf(leaf, {key[:16]: key}) for leaf in log.leaves(0, log.size)]
    return [item.predicate for item in items if item.kind in kinds]


def header(office: Office, request: bytes) -> dict[str, Any]:
    return unpack(request, REQUEST, office.key.public_hex).header


def shown(office: Office, request: bytes) -> int:
    """Size of the head that a request shows."""
    return parse_checkpoint(split_note(header(office, request)["log"]["checkpoint"].encode())[0]).size


def test_one_question_is_one_entry_also_over_restarts_and_sites_see_the_same_head(tmp_path: Path) -> None:
    federation = Federation(tmp_path, study=TWO)
    office = Office(tmp_path, TWO)
    requests = [office.desk.request(site, HELLO)[0] for site in (*TWO.sites, *TWO.sites)]
    office.close()
    office = Office(tmp_path, TWO)
    requests += [office.desk.request(site, HELLO)[0] for site in TWO.sites]
    assert len(predicates(office, "release")) == 1
    assert {shown(office, request) for request in requests} == {2}
    assert len({header(office, request)["job"] for request in requests}) == 1
    for name in ("nonce", "reply_key"):
        assert len({header(office, request)[name] for request in requests}) == len(requests)
    assert federation.sessions
    office.close()


def test_numbers_grow_over_restarts(tmp_path: Path) -> None:
    Clinic(tmp_path).session.close()
    numbers = []
    for _ in range(3):
        office = Office(tmp_path)
        numbers += [header(office, office.desk.request(SITE, HELLO)[0])["seq"] for _ in range(2)]
        office.close()
    assert numbers == [1, 2, 3, 4, 5, 6]


def test_what_is_asked_is_under_a_head_on_disk_before_it_leaves(pair: tuple[Clinic, Office]) -> None:
    _, office = pair
    request, _ = office.desk.request(SITE, BEGIN)
    head = (office.record._folder / "log" / "checkpoint").read_bytes()
    release = predicates(office, "release")[-1]
    assert parse_checkpoint(split_note(head)[0]).size > release["seq"]
    assert release["body_sha256"] == header(office, request)["body_sha256"] and release["site"] == "*"


def test_only_score_is_a_question_to_one_site(pair: tuple[Clinic, Office]) -> None:
    _, office = pair
    for kind in ("hello", "describe", "score"):
        office.desk.request(SITE, Ask(kind, 0, rows(), {}))
    assert [item["site"] for item in predicates(office, "release")] == ["*", "*", SITE]


def test_a_receipt_says_what_came_and_where_it_is_in_the_site_s_log(pair: tuple[Clinic, Office]) -> None:
    clinic, office = pair
    reply, payload, wire = office.ask(HELLO, clinic.session.handle)
    (receipt,) = predicates(office, "ingress")
    log = clinic.session._record.log
    assert receipt["wire"]["sha256"] == box_sha256(wire) and receipt["status"] == reply.status == "ok"
    assert receipt["payload"] == {"bytes": len(payload), "sha256": sha256_hex(payload)}
    assert receipt["site_log"] == {"index": log.size - 1, "size": log.size, "root": log.root.hex()}
    kept = office.record._folder / "payloads" / f"{sha256_hex(payload)}.reply"
    assert kept.read_bytes() == payload


def test_the_report_is_shown_to_all_also_when_it_is_logged_after_their_question(
    pair: tuple[Clinic, Office],
) -> None:
    """The coordinator died in `close`, and its second report differs: sites must cosign a head that holds it."""
    clinic, office = pair
    office.ask(HELLO, clinic.session.handle)
    for digest in ("1" * 64, "2" * 64, "2" * 64):
        office.record.report(digest)
        ask = Ask("close", 0, {}, {"report_sha256": digest})
        request, sent = office.desk.request(SITE, ask)
        (*_, last) = predicates(office, "report")
        assert last["report_sha256"] == digest and shown(office, request) > last["seq"]
        office.opened(clinic.session.handle(request), sent)
    assert [item["report_sha256"] for item in predicates(office, "report")] == ["1" * 64, "2" * 64]


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"policy": {"name": "laxer"}}, "verification"),
        ({"policy": []}, "verification"),
        ({"cosignature": "nonsense"}, "verification"),
        ({"leaves": ["?"]}, "message"),
        ({"leaves": {}}, "message"),
        ({"start": "0"}, "message"),
        ({"start": 99}, "verification"),
        ({"start": -1}, "verification"),
        ({"checkpoint": ""}, "verification"),
        ({"more": 1}, "message"),
    ],
)
def test_a_log_part_that_is_not_right_is_refused_and_gives_no_receipt(
    pair: tuple[Clinic, Office], change: dict[str, Any], code: str
) -> None:
    clinic, office = pair
    office.ask(HELLO, clinic.session.handle)
    record = clinic.session._record
    section = record.section
    record.section = lambda: canonical_json({**parse_json(section()), **change})  # type: ignore[method-assign]
    with pytest.raises((VerificationError, MessageError)) as caught:
        office.ask(BEGIN, clinic.session.handle)
    assert caught.value.code == code and len(predicates(office, "ingress")) == 1
    record.section = section  # type: ignore[method-assign]
    assert office.ask(ROUND, clinic.session.handle)[0].status == "ok"


def away(clinic: Clinic, office: Office, questions: int) -> str:
    """A site answers, and its answer is lost; then it is away for some questions; then it is asked again."""
    office.ask(HELLO, clinic.session.handle)
    request, sent = office.desk.request(SITE, BEGIN)
    assert clinic.session.handle(request)
    office.desk.unanswered(sent, "deadline")
    for number in range(1, questions + 1):
        _, sent = office.desk.request(SITE, Ask("round", number, rows(), {}))
        office.desk.unanswered(sent, "unreachable")
    request, sent = office.desk.request(SITE, Ask("moments", 0, {}, {}))
    return office.opened(clinic.session.handle(request), sent)[0].code


def test_a_site_that_was_away_for_a_while_is_asked_again(pair: tuple[Clinic, Office]) -> None:
    assert away(*pair, MAX_SENT - 2) == ""


def test_a_site_that_was_away_for_longer_refuses(pair: tuple[Clinic, Office]) -> None:
    """Beyond MAX_SENT unanswered questions no proof comes from the head that the site saw, and a site can't tell a
    coordinator that has no proof from one that hides it. (Known limit: its part of the study must start again.)"""
    assert away(*pair, MAX_SENT + 2) == "fork"
