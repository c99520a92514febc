"""An officer looks before something leaves: modes, whose signature counts, for which content, through a session."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cytosae_client.approval import PURPOSE, Approvals, describe_outgoing
from cytosae_core.canonical import canonical_json, sha256_hex
from cytosae_core.egress import Outgoing
from cytosae_core.envelope import body_of
from cytosae_core.errors import EgressError, SetupError
from cytosae_core.keys import SigningKey
from cytosae_core.policy import SitePolicy
from cytosae_core.tensors import pack_tensors
from cytosae_local.cli import main
from tests.deaths import BEGIN, HELLO, ROUND, Clinic, Office, site_leaves, small_study
from tests.federation import MASKED

OFFICER, OTHER = SigningKey.generate(), SigningKey.generate()
JOB = "a" * 64


def policy(mode: str = "always", *officers: SigningKey) -> SitePolicy:
    return replace(MASKED, approval=mode, officers=tuple(key.public_hex for key in officers or (OFFICER,)))


def outgoing(kind: str = "round", number: int = 1, value: float = 1.0) -> Outgoing:
    tensors = {"delta": np.full((3, 2), value, np.float32)}
    context = {"kind": kind, "round": number}
    return Outgoing(context, tensors, {"delta": 1}, {}, [], pack_tensors(tensors))


def waits(approvals: Approvals, what: Outgoing, job: str = JOB) -> bool:
    try:
        approvals.require(what, job)
    except EgressError as error:
        assert (error.code, error.reason) == ("approval", "APPROVAL")
        return True
    return False


@pytest.mark.parametrize(
    ("mode", "held"),
    [
        ("never", set()),
        ("first_round_and_report", {("round", 1), ("describe", 0), ("score", 0)}),
        (
            "always",
            {("hello", 0), ("round", 1), ("round", 2), ("describe", 0), ("describe", 1), ("score", 0)},
        ),
    ],
)
def test_modes(tmp_path: Path, mode: str, held: set[tuple[str, int]]) -> None:
    approvals = Approvals(tmp_path, policy(mode))
    steps = [("hello", 0), ("round", 1), ("round", 2), ("describe", 0), ("describe", 1), ("score", 0)]
    found = {step for step in steps if waits(approvals, outgoing(*step), f"{step[0]}{step[1]}")}
    assert found == held and len(approvals.waiting() if held else []) == len(held)


def test_approved_content_passes_and_other_content_waits_again(tmp_path: Path) -> None:
    approvals = Approvals(tmp_path, policy())
    assert waits(approvals, outgoing())
    approvals.approve(JOB, OFFICER)
    assert approvals.waiting() == []
    assert not waits(approvals, outgoing()) and not waits(approvals, outgoing())
    assert waits(approvals, outgoing(), "b" * 64)  # the same content for another question
    assert waits(approvals, outgoing(value=2.0))  # other content for the same question
    approvals.approve(JOB, OFFICER)
    assert not waits(approvals, outgoing(value=2.0)) and waits(approvals, outgoing())


def test_what_is_shown_is_what_was_looked_at(tmp_path: Path) -> None:
    approvals = Approvals(tmp_path, policy())
    assert waits(approvals, outgoing())
    (shown,) = approvals.waiting()
    assert shown["job"] == JOB and shown["content_sha256"] == sha256_hex(outgoing().body)
    assert shown["tensors"] == [
        {
            "name": "delta",
            "dtype": "float32",
            "shape": [3, 2],
            "bytes": 24,
            "suppressed": 1,
            "values": [1.0] * 6,
        }
    ]
    assert describe_outgoing(outgoing())["tensors"] == shown["tensors"]


def test_who_is_no_officer_cannot_approve(tmp_path: Path) -> None:
    approvals = Approvals(tmp_path, policy())
    assert waits(approvals, outgoing())
    with pytest.raises(SetupError):
        approvals.approve(JOB, OTHER)
    with pytest.raises(SetupError):
        approvals.approve("c" * 64, OFFICER)
    assert waits(approvals, outgoing())


def test_an_officer_who_left_the_policy_does_not_count_any_more(tmp_path: Path) -> None:
    assert waits(Approvals(tmp_path, policy()), outgoing())
    Approvals(tmp_path, policy()).approve(JOB, OFFICER)
    assert not waits(Approvals(tmp_path, policy("always", OTHER, OFFICER)), outgoing())
    assert waits(Approvals(tmp_path, policy("always", OTHER)), outgoing())


def signed(key: SigningKey, job: str = JOB, content: str = "", purpose: str = PURPOSE) -> dict[str, str]:
    message = canonical_json({"job": job, "content_sha256": content or sha256_hex(outgoing().body)})
    return {"officer": key.public_hex, "signature": key.sign(purpose, message).hex()}


@pytest.mark.parametrize(
    "content",
    [
        signed(OTHER),
        {**signed(OTHER), "officer": OFFICER.public_hex},
        signed(OFFICER, job="b" * 64),
        signed(OFFICER, content="0" * 64),
        signed(OFFICER, purpose="urn:cytosae:reply:v1"),
        {"officer": OFFICER.public_hex},
        {"officer": OFFICER.public_hex, "signature": "zz"},
        {"officer": OFFICER.public_hex, "signature": 5},
        [],
        "yes",
    ],
)
def test_files_that_are_no_approval(tmp_path: Path, content: Any) -> None:
    approvals, path = Approvals(tmp_path, policy()), tmp_path / "approved" / f"{JOB}.json"
    path.parent.mkdir()
    path.write_bytes(canonical_json(signed(OFFICER)))
    assert not waits(approvals, outgoing())
    path.write_text(json.dumps(content))
    assert waits(approvals, outgoing())
    path.write_bytes(b"\xff")
    assert waits(approvals, outgoing())


# Through a session


@contextmanager
def running(home: Path, rules: SitePolicy) -> Iterator[tuple[Clinic, Office]]:
    clinic, office = Clinic(home, rules), Office(home)
    yield clinic, office
    clinic.session.close()
    office.close()


def test_nothing_leaves_until_an_officer_approved_exactly_this(tmp_path: Path) -> None:
    with running(tmp_path, MASKED) as (clinic, office):
        assert all(office.ask(what, clinic.session.handle)[0].status == "ok" for what in (HELLO, BEGIN))
        expected = body_of(office.ask(ROUND, clinic.session.handle)[1])
    home = tmp_path / "held"
    rules = policy("first_round_and_report")
    with running(home, rules) as (clinic, office):
        assert all(office.ask(what, clinic.session.handle)[0].status == "ok" for what in (HELLO, BEGIN))
        for _ in range(2):
            reply, payload, _ = office.ask(ROUND, clinic.session.handle)
            assert (reply.status, reply.code, reply.tensors) == ("refused", "approval", {})
        assert clinic.spent["rounds"] == 0 and clinic.logs[-1].code == "waiting"
        assert not (clinic.state / "stopped").exists()
        approvals = Approvals(clinic.state, rules)
        (waiting,) = approvals.waiting()
        assert (waiting["kind"], waiting["round"]) == ("round", 1)
    approvals.approve(waiting["job"], OFFICER)  # while the agent is down; it looks when it is asked again
    with running(home, rules) as (clinic, office):
        reply, payload, _ = office.ask(ROUND, clinic.session.handle)
        assert reply.status == "ok" and clinic.spent["rounds"] == 1
        assert sha256_hex(body_of(payload)) == waiting["content_sha256"] and len(expected) > 0
        statements = site_leaves(home, small_study(), home / "copy")[0]
    codes = [s.predicate["status"] for s in statements if s.kind == "egress"]
    assert codes == ["ok", "ok", "refused", "refused", "ok"]


def test_the_officer_s_command_lists_and_clears(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with running(tmp_path, policy()) as (clinic, office):
        assert office.ask(HELLO, clinic.session.handle)[0].code == "approval"
        (clinic.state / "stopped").touch()
    state = tmp_path / "site-0"
    assert main(["site", "approve", "--home", str(state), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["cleared"] == 0 and [item["kind"] for item in found["waiting"]] == ["hello"]
    assert main(["site", "approve", "--home", str(state), "--clear"]) == 0
    assert "1 waiting, 1 cleared" in capsys.readouterr().out
    assert not list(state.rglob("stopped"))
