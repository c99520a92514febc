"""The guarantees of the door (`egress.inspect`, `egress.Door`), one test or more per line of its docstring."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from cytosae_core import egress
from cytosae_core.config import StudyConfig
from cytosae_core.egress import Blocked, Door, Question, Release
from cytosae_core.envelope import REPLY, pack
from cytosae_core.errors import CytosaeError, EgressError, MessageError, VerificationError
from cytosae_core.keys import SigningKey
from cytosae_core.policy import POLICIES, SitePolicy
from cytosae_core.privacy.plan import PrivacyPlan
from cytosae_core.sealed import LOG_LABEL, REPLY_LABEL, ReplyKey, split_wire
from cytosae_core.tensors import pack_tensors

KEY = SigningKey.generate()
MASKED = POLICIES["masked"]
DIMS = {**StudyConfig("s", ("a", "b")).dims, "n": 4, "d": 3, "t": 2, "c": 2}
CONTEXT = {"study": "s", "protocol": "p", "site": "a", "kind": "round", "round": 1, "request_sha256": "r"}


def seal(
    releases: dict[str, Release],
    policy: SitePolicy = MASKED,
    kind: str = "round",
    facts: dict[str, str] | None = None,
) -> bytes:
    return egress.seal({**CONTEXT, "kind": kind}, releases, facts or {}, policy, DIMS, KEY)


def reopen(data: bytes, kind: str = "round") -> egress.Reply:
    return egress.open(data, KEY.public_hex, {**CONTEXT, "kind": kind}, DIMS)


def delta(rows: int = 4) -> np.ndarray:
    return np.full((rows, 3), 0.25, dtype=np.float16)


@pytest.mark.parametrize(
    ("kind", "name", "policy"),
    [
        ("round", "W_enc", "masked"),
        ("round", "b_enc", "masked"),
        ("round", "token_sum", "masked"),
        ("hello", "delta", "masked"),
        ("round", "delta", "evaluate_only"),
        ("moments", "token_sum", "evaluate_only"),
        ("describe", "codes", "masked"),
        ("nonsense", "delta", "masked"),
    ],
)
def test_1_what_is_not_in_the_table_is_refused(kind: str, name: str, policy: str) -> None:
    with pytest.raises(EgressError):
        seal({name: Release(delta(), 50)}, POLICIES[policy], kind)


@pytest.mark.parametrize(
    "values",
    [
        delta(5),
        delta().astype(np.float32),
        np.full((4, 3), np.nan, np.float16),
        np.full((4, 3), np.inf, np.float16),
    ],
)
def test_2_wrong_form_or_not_finite_is_refused(values: np.ndarray) -> None:
    with pytest.raises(EgressError):
        seal({"delta": Release(values, 50)})


DP = SitePolicy("dp", "dp", epsilon_total="8", delta_max="0.001")
PLAN = PrivacyPlan(1.0, 2.0, 1.0, 1, 1e-4)


@pytest.mark.parametrize(
    ("policy", "plan", "passes"),
    [(DP, PLAN, True), (DP, None, False), (MASKED, PLAN, False), (MASKED, None, True)],
)
def test_6_noise_and_profile_belong_together(
    policy: SitePolicy, plan: PrivacyPlan | None, passes: bool
) -> None:
    context = {**CONTEXT, "kind": "describe"}
    rate = {"firing_rate": Release(np.full(4, 0.25, np.float32), 50)}
    if passes:
        assert egress.inspect(context, rate, {}, policy, DIMS, private=plan).private == plan
        return
    with pytest.raises(Blocked) as caught:
        egress.inspect(context, rate, {}, policy, DIMS, private=plan)
    assert caught.value.reason == "NO_NOISE"


def test_6_what_has_no_patient_behind_it_needs_no_noise() -> None:
    canary = {"canary": Release(np.zeros((DIMS["g"], 3), np.float32), 0)}
    assert egress.inspect({**CONTEXT, "kind": "hello"}, canary, {}, DP, DIMS).private is None


def test_3_too_few_units_leave_as_zero_or_nan() -> None:
    units = np.array([10, 11, 50, 0])
    data = seal(
        {
            "delta": Release(delta(), units[:, None]),
            "fired": Release(np.array([30, 30, 30, 30], np.float32), units),
            "quality": Release(np.ones(6, np.float32), 10),
        }
    )
    reply = reopen(data)
    assert (reply.tensors["delta"] != 0).any(axis=1).tolist() == [False, True, True, False]
    assert np.isnan(reply.tensors["fired"]).tolist() == [True, False, False, True]
    assert np.isnan(reply.tensors["quality"]).all()
    assert reply.suppressed == {"delta": 2, "fired": 2, "quality": 6}


def test_4_counts_are_rounded_and_metrics_keep_four_digits() -> None:
    fired = np.array([31, 33, 1000.4, 12], np.float32)
    quality = np.array([0.123456, 12345.6, 1e-7 * 1.23456, 0, 1, -0.98766], np.float32)
    reply = reopen(seal({"fired": Release(fired, 50), "quality": Release(quality, 50)}))
    assert reply.tensors["fired"].tolist() == [30, 35, 1000, 10]
    expected = np.array([0.1235, 12350, 1.235e-7, 0, 1, -0.9877], np.float32)
    assert np.array_equal(reply.tensors["quality"], expected)


def test_2_a_message_over_the_limit_is_refused() -> None:
    with pytest.raises(Blocked) as found:
        seal({"delta": Release(delta(), 50)}, SitePolicy("tight", "masked", max_message_bytes=100))
    assert (found.value.step, found.value.code, found.value.reason) == (2, "budget", "MSG_LIMIT")


def test_1_a_name_that_the_policy_leaves_out_is_refused() -> None:
    policy = SitePolicy("narrow", "masked", tensors=("delta",))
    with pytest.raises(Blocked) as found:
        seal({"fired": Release(np.full(4, 30, np.float32), 50)}, policy)
    assert found.value.step == 1


@pytest.mark.parametrize(
    ("name", "values", "step", "reason"),
    [
        ("W_enc", delta(), 1, "ALLOWLIST"),
        ("delta", delta(5), 2, "SHAPE"),
        ("delta", delta().astype(np.float32), 2, "DTYPE"),
        ("delta", np.full((4, 3), np.nan, np.float16), 3, "FINITE"),
    ],
)
def test_a_stop_names_its_step(name: str, values: np.ndarray, step: int, reason: str) -> None:
    with pytest.raises(Blocked) as found:
        seal({name: Release(values, 50)})
    assert (found.value.step, found.value.reason) == (step, reason)


def test_5_leakage_checks_see_the_protected_tensors_and_can_stop_them() -> None:
    seen: list[np.ndarray] = []

    def attack(outgoing: Any) -> list[dict[str, str]]:
        seen.append(outgoing["delta"])
        raise EgressError("Expected nothing readable.", reason="SELF_ATTACK")

    releases = {"delta": Release(delta(), np.array([10, 11, 50, 0])[:, None])}
    with pytest.raises(Blocked) as found:
        egress.inspect(CONTEXT, releases, {}, MASKED, DIMS, attack)
    assert found.value.step == 5 and (seen[0] != 0).any(axis=1).tolist() == [False, True, True, False]


class Recorder:
    """A ledger and a log that remember in which order they were called."""

    def __init__(self, refuse: bool = False) -> None:
        self.calls: list[str] = []
        self.refuse = refuse

    def spend(self, outgoing: egress.Outgoing, question: egress.Question) -> dict[str, int]:
        self.calls.append("spend")
        if self.refuse:
            raise EgressError("Expected budget.", code="budget", reason="BUDGET")
        return {"rounds": 1, "messages": 1, "bytes": 1}

    def egress(self, outgoing: Any, job: str, payload: bytes, box: bytes, spent: Any) -> None:
        self.calls.append("log")
        self.payload, self.box = payload, box

    def section(self) -> bytes:
        self.calls.append("section")
        return b"{}"


def door(recorder: Recorder) -> tuple[Door, Question, ReplyKey]:
    key = ReplyKey()
    question = Question({**CONTEXT, "request_sha256": "0" * 64}, key.public_hex, "job", "body")
    return Door(MASKED, DIMS, KEY, recorder, recorder), question, key


def test_6_to_9_spent_then_logged_then_sent_and_only_the_asker_can_read() -> None:
    recorder = Recorder()
    gate, question, key = door(recorder)
    wire = gate.answer(question, {"delta": Release(delta(), 50)}, {})
    assert recorder.calls == ["spend", "log", "section"]
    box, log = split_wire(wire)
    assert box == recorder.box and key.open_box(log, LOG_LABEL, "0" * 64) == b"{}"
    payload = key.open_box(box, REPLY_LABEL, "0" * 64)
    assert payload == recorder.payload
    assert reopen_as(payload, question).tensors["delta"].shape == (4, 3)
    with pytest.raises(VerificationError):
        ReplyKey().open_box(box, REPLY_LABEL, "0" * 64)


def reopen_as(payload: bytes, question: Question) -> egress.Reply:
    return egress.open(payload, KEY.public_hex, question.context, DIMS)


def test_6_a_refused_budget_stops_before_anything_is_signed_or_logged() -> None:
    recorder = Recorder(refuse=True)
    gate, question, _ = door(recorder)
    with pytest.raises(Blocked) as found:
        gate.answer(question, {"delta": Release(delta(), 50)}, {})
    assert (found.value.step, found.value.code, recorder.calls) == (6, "budget", ["spend"])


def test_a_refusal_is_logged_and_sealed_too() -> None:
    recorder = Recorder()
    gate, question, key = door(recorder)
    payload = key.open_box(split_wire(gate.refuse(question, "replay"))[0], REPLY_LABEL, "0" * 64)
    reply = reopen_as(payload, question)
    assert (reply.status, reply.code, reply.tensors, recorder.calls) == (
        "refused",
        "replay",
        {},
        ["log", "section"],
    )


def test_one_rare_class_takes_a_second_one_with_it() -> None:
    counts = np.array([200, 100, 60, 40, 90, 80, 30], np.float32)
    units = np.array([100, 100, 60, 40, 50, 40, 5])
    dims = {**DIMS, "h": 7}
    sent = egress.inspect({**CONTEXT, "kind": "hello"}, {"counts": Release(counts, units)}, {}, MASKED, dims)
    assert np.isnan(sent.tensors["counts"]).tolist() == [False] * 4 + [False, True, True]


@pytest.mark.parametrize("value", [1.5, -0.2])
def test_3_a_share_outside_0_and_1_is_refused(value: float) -> None:
    table = Release(np.full((4, 2), value, np.float32), 50)
    with pytest.raises(Blocked) as found:
        egress.inspect({**CONTEXT, "kind": "describe"}, {"auroc": table}, {}, MASKED, DIMS)
    assert (found.value.step, found.value.reason) == (3, "CONSIST")


def test_auroc_has_three_decimals() -> None:
    table = Release(np.full((4, 2), 0.123456, np.float32), 50)
    sent = egress.inspect({**CONTEXT, "kind": "describe"}, {"auroc": table}, {}, MASKED, DIMS)
    assert np.array_equal(sent.tensors["auroc"], np.full((4, 2), 0.123, np.float32))


def test_7_the_reply_is_signed_and_names_its_request() -> None:
    data = seal({"delta": Release(delta(), 50)})
    with pytest.raises(VerificationError):
        egress.open(data, SigningKey.generate().public_hex, CONTEXT, DIMS)
    with pytest.raises(MessageError):
        egress.open(data, KEY.public_hex, {**CONTEXT, "request_sha256": "other"}, DIMS)


def test_facts_are_a_closed_set_and_only_in_hello() -> None:
    assert reopen(seal({}, kind="hello", facts={"software": "1"}), "hello").facts == {"software": "1"}
    bad = ({"path": "/x"}, {"software": "built by Dr X"}, {"unit": "patient-7"}, {"encoder_digest": "e"})
    for kind, facts in (("round", {"software": "1"}), *(("hello", item) for item in bad)):
        with pytest.raises(EgressError):
            seal({}, kind=kind, facts=facts)


@pytest.mark.parametrize(
    "tensors",
    [
        {"W_enc": delta()},
        {"delta": delta(5)},
        {"delta": np.full((4, 3), np.nan, np.float16)},
        {"fired": np.full(4, np.inf, np.float32)},
    ],
)
def test_the_receiver_checks_the_same_table(tensors: dict[str, np.ndarray]) -> None:
    header = {**CONTEXT, "status": "ok", "code": "", "facts": {}, "suppressed": {}}
    with pytest.raises(MessageError):
        reopen(pack(header, pack_tensors(tensors), REPLY, KEY))


def test_a_refusal_carries_a_code_and_nothing_else() -> None:
    reply = reopen(egress.refuse(CONTEXT, "data", KEY))
    assert (reply.status, reply.code, reply.tensors) == ("refused", "data", {})
    assert reopen(egress.refuse(CONTEXT, "/home/patient-7", KEY)).code == "internal"


def test_describe_lists_exactly_what_a_profile_allows() -> None:
    names = {row["name"] for row in egress.describe(POLICIES["evaluate_only"])}
    assert "delta" not in names and "token_sum" not in names and "auroc" in names
    assert {row["name"] for row in egress.describe(MASKED)} > names


def test_disclosure_control_off_only_in_simulation() -> None:
    POLICIES["public-data"].check_simulation(True)
    with pytest.raises(CytosaeError):
        POLICIES["public-data"].check_simulation(False)


def test_reply_header_without_its_tables_is_refused() -> None:
    header: dict[str, Any] = {**CONTEXT, "status": "ok", "code": "", "facts": [], "suppressed": {}}
    with pytest.raises(MessageError):
        reopen(pack(header, pack_tensors({}), REPLY, KEY))
