"""The guarantees of `egress.seal`, one test per line of its docstring."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from cytosae_core import egress
from cytosae_core.config import StudyConfig
from cytosae_core.egress import Release
from cytosae_core.envelope import REPLY, pack
from cytosae_core.errors import CytosaeError, EgressError, MessageError, VerificationError
from cytosae_core.keys import SigningKey
from cytosae_core.policy import POLICIES, SitePolicy
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


def test_5_a_message_over_the_budget_is_refused() -> None:
    with pytest.raises(EgressError):
        seal({"delta": Release(delta(), 50)}, SitePolicy("tight", "masked", max_message_bytes=100))


def test_6_the_reply_is_signed_and_names_its_request() -> None:
    data = seal({"delta": Release(delta(), 50)})
    with pytest.raises(VerificationError):
        egress.open(data, SigningKey.generate().public_hex, CONTEXT, DIMS)
    with pytest.raises(MessageError):
        egress.open(data, KEY.public_hex, {**CONTEXT, "request_sha256": "other"}, DIMS)


def test_facts_are_a_closed_set_and_only_in_hello() -> None:
    assert reopen(seal({}, kind="hello", facts={"software": "1"}), "hello").facts == {"software": "1"}
    for kind, facts in (("round", {"software": "1"}), ("hello", {"path": "/x"})):
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
