"""Fork, rollback and replay: each noticed by a site alone and by the coordinator alone. The auditor's part is in
`tests/unit/test_verify.py` (forked, rolled back and replayed logs in a bundle)."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from cytosae_core.audit.statement import read_leaf
from cytosae_core.envelope import REQUEST, Envelope, pack, unpack
from cytosae_core.errors import CytosaeError, VerificationError
from cytosae_core.sealed import split_wire
from cytosae_server.desk import Ask, Desk, Sent
from cytosae_server.record import Record
from tests.federation import Federation

HELLO, MOMENTS = Ask("hello", 0, {}, {}), Ask("moments", 0, {}, {})


def desk_at(federation: Federation, folder: Path, seq: int = 0) -> tuple[Desk, Record]:
    """A coordinator that works from `folder`; with `seq` it counts its requests from there, as a liar would."""
    if seq:
        sent = json.loads((folder / "sent.json").read_text())
        for entry in sent.values():
            entry["seq"] = seq
        (folder / "sent.json").write_text(json.dumps(sent, separators=(",", ":"), sort_keys=True))
    record = Record(folder, federation.study, federation.key, federation.coordinator.site_keys)
    return Desk(federation.coordinator, record), record


def ask(federation: Federation, desk: Desk, what: Ask) -> tuple[Envelope, bytes, Sent]:
    request, sent = desk.request("site-0", what)
    wire = federation.sessions["site-0"].handle(request)
    found = federation.opened("site-0", wire, sent.reply_key, sent.request_sha256)
    assert found is not None
    return found, wire, sent


def kinds(log: object, key: str) -> list[str]:
    leaves = log.leaves(0, log.size)  # type: ignore[attr-defined]
    return [read_leaf(leaf, {key[:16]: key}).kind for leaf in leaves]


def site_log(federation: Federation) -> list[str]:
    return kinds(federation.sessions["site-0"]._record.log, federation.sites["site-0"].key.public_hex)


def test_a_site_notices_that_the_coordinator_s_log_was_rolled_back(tmp_path: Path) -> None:
    federation, folder = Federation(tmp_path / "f"), tmp_path / "desk"
    desk, record = desk_at(federation, folder)
    ask(federation, desk, HELLO)
    record.close()
    shutil.copytree(folder, tmp_path / "old")
    desk, record = desk_at(federation, folder)
    for number in range(3):
        ask(federation, desk, Ask("moments", number, {}, {}))
    record.close()
    desk, record = desk_at(federation, tmp_path / "old", seq=1000)
    found, _, _ = ask(federation, desk, Ask("moments", 9, {}, {}))
    assert (found.header["status"], found.header["code"]) == ("refused", "fork") or found.header[
        "code"
    ] == "rollback"
    assert "incident" in site_log(federation)
    record.close()


def test_a_site_notices_that_it_is_shown_another_history(tmp_path: Path) -> None:
    federation, folder = Federation(tmp_path / "f"), tmp_path / "desk"
    desk, record = desk_at(federation, folder)
    ask(federation, desk, HELLO)
    record.close()
    shutil.copytree(folder, tmp_path / "fork")
    desk, record = desk_at(federation, folder)
    ask(federation, desk, Ask("moments", 1, {}, {}))
    size = record.log.size
    record.close()
    desk, record = desk_at(federation, tmp_path / "fork", seq=1000)
    for number in range(2, 6):  # a longer log than the one the site saw, with other entries
        record.ask("site-1", "moments", number, b"", "", same_for_all=True)
    assert record.log.size > size
    found, _, _ = ask(federation, desk, Ask("moments", 9, {}, {}))
    assert (found.header["status"], found.header["code"]) == ("refused", "fork")
    assert "incident" in site_log(federation)
    record.close()


def test_a_replayed_request_is_refused_also_by_a_restarted_site(tmp_path: Path) -> None:
    federation = Federation(tmp_path)
    request, sent = federation.desk.request("site-0", HELLO)
    federation.sessions["site-0"].handle(request)
    again = Federation(tmp_path)
    found = again.opened(
        "site-0", again.sessions["site-0"].handle(request), sent.reply_key, sent.request_sha256
    )
    assert found is not None and (found.header["status"], found.header["code"]) == ("refused", "replay")


def test_the_coordinator_notices_that_a_site_s_log_was_rolled_back(tmp_path: Path) -> None:
    federation, folder = Federation(tmp_path / "f"), tmp_path / "desk"
    desk, record = desk_at(federation, folder)
    _, wire, sent = ask(federation, desk, HELLO)
    desk.open_reply(wire, sent)
    federation.sessions["site-0"].close()
    state = federation.sites["site-0"].state
    shutil.copytree(state, tmp_path / "old")
    federation = Federation(tmp_path / "f")
    _, wire, sent = ask(federation, desk, MOMENTS)
    desk.open_reply(wire, sent)
    federation.sessions["site-0"].close()
    shutil.rmtree(state)
    shutil.copytree(tmp_path / "old", state)
    federation = Federation(tmp_path / "f")
    for name in ("heads",):  # the site also forgot what it witnessed
        assert (state / federation.study.digest[:16] / "witness" / name).exists()
    _, wire, sent = ask(federation, desk, Ask("moments", 2, {}, {}))
    with pytest.raises(VerificationError) as found:
        desk.open_reply(wire, sent)
    assert found.value.code in ("rollback", "fork")
    assert "incident" in kinds(record.log, federation.key.public_hex)
    assert len(record.receipts) == 2  # the reply was not used
    record.close()


def test_the_coordinator_refuses_an_old_reply_to_a_new_request(tmp_path: Path) -> None:
    federation, folder = Federation(tmp_path / "f"), tmp_path / "desk"
    desk, record = desk_at(federation, folder)
    _, wire, sent = ask(federation, desk, HELLO)
    desk.open_reply(wire, sent)
    _, _, later = ask(federation, desk, Ask("hello", 0, {}, {}))
    with pytest.raises(VerificationError):
        desk.open_reply(wire, later)
    record.close()


def test_the_coordinator_refuses_a_reply_without_its_log_entry(tmp_path: Path) -> None:
    """A site that sends good content with the log part of an earlier reply."""
    federation, folder = Federation(tmp_path / "f"), tmp_path / "desk"
    desk, record = desk_at(federation, folder)
    _, wire, sent = ask(federation, desk, HELLO)
    desk.open_reply(wire, sent)
    request, sent = desk.request("site-0", MOMENTS)
    session = federation.sessions["site-0"]
    honest = session._record.section
    old = honest()
    session._record.section = lambda: old  # type: ignore[method-assign]
    with pytest.raises(CytosaeError) as found:
        desk.open_reply(session.handle(request), sent)
    assert found.value.reason in ("UNLOGGED", "SEQ", "ROLLBACK") and len(record.receipts) == 1
    record.close()


def test_a_site_refuses_a_request_that_the_coordinator_did_not_log_as_it_is(tmp_path: Path) -> None:
    """Split models: another body, kind or dictionary than the one in the logged entry."""
    federation = Federation(tmp_path)
    request, _ = federation.desk.request("site-0", HELLO)
    header = unpack(request, REQUEST, federation.key.public_hex).header
    other = federation.desk.request("site-0", MOMENTS)[0]
    elsewhere = unpack(other, REQUEST, federation.key.public_hex).header["log"]
    forged = pack({**header, "log": elsewhere, "seq": 99}, b"", REQUEST, federation.key)
    assert split_wire  # the wire's form is that of every reply
    wire = federation.sessions["site-0"].handle(forged)
    assert wire == b"" or federation.logs[-1].values.get("reason") in ("LINEAGE", "BIND")
    assert not any(event.code == "answered" for event in federation.logs)


def test_other_log_keys_of_the_coordinator_are_refused(tmp_path: Path) -> None:
    federation, folder = Federation(tmp_path / "f"), tmp_path / "desk"
    desk, record = desk_at(federation, folder)
    ask(federation, desk, HELLO)
    record.close()
    desk, record = desk_at(federation, tmp_path / "elsewhere")
    record._sent["site-0"] = {"seq": 1000, "heads": []}
    found, _, _ = ask(federation, desk, MOMENTS)
    assert (found.header["status"], found.header["code"]) == ("refused", "verification")
    assert any(event.values.get("reason") == "KEYS" for event in federation.logs)
    record.close()
