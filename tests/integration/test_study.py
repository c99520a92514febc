"""Whole studies in memory: quorum, stragglers, hostile sites, kill and resume, what is on the wire."""

from __future__ import annotations

import base64
import re
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cytosae_core.config import RoundsConfig
from cytosae_core.envelope import Envelope, body_of
from cytosae_core.errors import CytosaeError, SetupError, StudyError
from cytosae_core.keys import SigningKey
from cytosae_core.policy import POLICIES, SitePolicy
from cytosae_core.report.build import build_report
from cytosae_core.report.inputs import total_fvu
from cytosae_core.tensors import unpack_tensors
from cytosae_server.desk import Ask
from cytosae_server.loop import StudyRun
from cytosae_server.transport import LocalGrid
from tests.federation import ENCODER_DIGEST, FakeStore, Federation, make_site, study_config

Handler = Callable[[bytes], bytes]


def final(run: StudyRun) -> np.ndarray:
    return np.asarray(run.result.final)


def test_a_study_runs_and_learns(tmp_path: Path) -> None:
    run = Federation(tmp_path).run()
    first = total_fvu(run.result.begin)
    last = total_fvu({site: t["quality"] for site, t in run.result.describe["final"].items()})
    assert first is not None and last is not None and last < 0.6 * first
    assert [record.round for record in run.result.rounds] == [1, 2, 3]
    assert set(run.result.scores) == {"site-0", "site-1", "site-2"} and run.result.faults == []


def test_same_seed_same_bytes_whatever_the_order_of_arrival(tmp_path: Path) -> None:
    plain = final(Federation(tmp_path / "a").run())

    def slow(handle: Handler) -> Handler:
        return lambda request: (time.sleep(0.05), handle(request))[1]

    shuffled = final(Federation(tmp_path / "b", wrap={"site-0": slow}, workers=3).run())
    assert plain.tobytes() == shuffled.tobytes()
    other = final(Federation(tmp_path / "c", study=study_config(seed=5)).run())
    assert plain.tobytes() != other.tobytes()


class Killed(BaseException):
    """Stands for kill -9 of the coordinator between two messages."""


def kill_at(federation: Federation, event: str, number: int) -> None:
    """Run until the number-th `event`, then die there."""
    seen = 0

    def watch(name: str, details: Any) -> None:
        nonlocal seen
        seen += name == event
        if seen == number:
            raise Killed

    grid = LocalGrid(federation.handlers())
    with pytest.raises(Killed):
        federation.study_run(grid, watch=watch).run()
    grid.close()


@pytest.mark.parametrize(
    ("event", "number"), [("site", 3), ("step", 3), ("round", 1), ("round", 2), ("step", 8)]
)
def test_killed_anywhere_and_resumed_gives_the_same_bytes(tmp_path: Path, event: str, number: int) -> None:
    expected = Federation(tmp_path / "plain").run()
    broken = Federation(tmp_path / "broken")
    kill_at(broken, event, number)
    resumed = Federation(tmp_path / "broken").run()  # new sessions too: the sites were killed as well
    assert final(resumed).tobytes() == final(expected).tobytes()
    left, right = build_report(broken.study, resumed.result), build_report(broken.study, expected.result)
    for name in ("overall", "rounds", "concepts", "loso", "agreement", "site_predictability"):
        if name == "rounds":
            assert [r["sites"] for r in left[name]] == [r["sites"] for r in right[name]]
        else:
            assert left[name] == right[name], name


def test_resume_after_the_last_round_asks_no_site_again(tmp_path: Path) -> None:
    federation = Federation(tmp_path)
    federation.run()
    asked = len(federation.logs)
    federation.run()
    assert len(federation.logs) == asked


def test_a_damaged_kept_reply_is_asked_for_again(tmp_path: Path) -> None:
    federation = Federation(tmp_path)
    first = final(federation.run())
    path = tmp_path / "run" / "replies" / "score" / "site-1.reply"
    path.write_bytes(path.read_bytes()[:-1] + b"\0")
    again = federation.run()
    assert set(again.result.scores) == set(federation.sites) and final(again).tobytes() == first.tobytes()


def test_a_folder_of_another_study_is_refused_and_kept(tmp_path: Path) -> None:
    Federation(tmp_path / "a").run(tmp_path / "run")
    before = (tmp_path / "run" / "study.json").read_bytes()
    with pytest.raises(StudyError):
        Federation(tmp_path / "b", study=study_config(seed=3)).run(tmp_path / "run")
    assert (tmp_path / "run" / "study.json").read_bytes() == before


def dead(handle: Handler) -> Handler:
    def broken(request: bytes) -> bytes:
        raise RuntimeError("/data/patient-7 is on fire")

    return broken


def test_a_dead_site_is_named_and_the_others_go_on(tmp_path: Path) -> None:
    federation = Federation(tmp_path, wrap={"site-2": dead})
    run = federation.run()
    assert ("site-2", "hello", "relay") in run.result.faults and set(run.result.scores) == {
        "site-0",
        "site-1",
    }
    report = build_report(federation.study, run.result)
    assert report["sites"]["site-2"]["status"] == "failed: relay"
    assert report["answer"].startswith("Not estimable")


def test_too_few_sites_stop_the_study_with_their_codes(tmp_path: Path) -> None:
    with pytest.raises(StudyError, match=r"site-1.*relay"):
        Federation(tmp_path, wrap={"site-1": dead, "site-2": dead}).run()


def test_a_site_that_dies_during_rounds_costs_only_its_part(tmp_path: Path) -> None:
    def dies_in_round_two(handle: Handler) -> Handler:
        def wrapped(request: bytes) -> bytes:
            if b'"kind":"round"' in request and b'"round":2' in request:
                raise RuntimeError
            return handle(request)

        return wrapped

    run = Federation(tmp_path, wrap={"site-1": dies_in_round_two}).run()
    assert [sorted(record.faults) for record in run.result.rounds] == [[], ["site-1"], []]
    assert set(run.result.scores) == {"site-0", "site-1", "site-2"}


def test_a_straggler_misses_the_deadline_and_its_late_reply_is_ignored(tmp_path: Path) -> None:
    release = threading.Event()

    def stuck(handle: Handler) -> Handler:
        def wrapped(request: bytes) -> bytes:
            if b'"kind":"round"' in request:
                release.wait(30)
            return handle(request)

        return wrapped

    study = study_config(rounds=RoundsConfig(quorum=2, deadline_s=1.5, retries=0))
    study = replace(study, training=replace(study.training, rounds=1))
    federation = Federation(tmp_path, study=study, wrap={"site-0": stuck}, workers=4)
    started = time.monotonic()
    grid = LocalGrid(federation.handlers(), workers=4)
    run = federation.study_run(grid)
    timer = threading.Timer(2.5, release.set)
    timer.start()
    run.run()
    timer.join()
    assert run.result.rounds[0].faults == {"site-0": "deadline"} and time.monotonic() - started < 20


def test_a_reply_of_another_site_or_changed_on_the_way_is_refused(tmp_path: Path) -> None:
    federation = Federation(tmp_path)
    plain = federation.handlers()

    def flipped(request: bytes) -> bytes:
        reply = bytearray(plain["site-1"](request))
        reply[len(reply) // 2] ^= 1
        return bytes(reply)

    grid = LocalGrid({**plain, "site-0": plain["site-2"], "site-1": flipped})
    with pytest.raises(StudyError, match="quorum"):
        federation.run(transport=grid)


def test_a_site_with_another_encoder_takes_no_part(tmp_path: Path) -> None:
    federation = Federation(tmp_path)
    store = federation.sites["site-1"].store
    federation.sessions["site-1"].site = replace(
        federation.sites["site-1"], store=FakeStore(store.tokens(0, 60), encoder_digest="f" * 64)
    )
    run = federation.run()
    assert ("site-1", "hello", "encoder") in run.result.faults and "site-1" not in run.result.scores


def test_golden_cells_find_a_site_whose_features_drift(tmp_path: Path) -> None:
    federation = Federation(tmp_path)
    store = FakeStore(federation.sites["site-1"].store.tokens(0, 60))
    store.canary = store.canary * 1.02
    federation.sessions["site-1"].site = replace(federation.sites["site-1"], store=store)
    run = federation.run()
    assert ("site-1", "hello", "encoder") in run.result.faults and run.result.canary_difference > 0.01


# One site alone, spoken to by hand


def speak(federation: Federation, **changes: Any) -> tuple[str, str]:
    """Send hello with changed header fields to site-0; the reply's status and code."""
    return said(federation.ask("site-0", Ask("hello", 0, {}, {}), **changes))


def said(reply: Envelope | None) -> tuple[str, str]:
    return (reply.header["status"], reply.header["code"]) if reply else ("nobody was answered", "")


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"study": "other"}, "message"),
        ({"protocol": "0" * 64}, "message"),
        ({"site": "site-1"}, "message"),
        ({"simulation": False}, "message"),
        ({"kind": "shell"}, "message"),
        ({"kind": "_facts"}, "message"),
        ({"round": "1"}, "message"),
        ({"params": []}, "message"),
        ({"expires": 5}, "expired"),
        ({"issued": int(time.time()) + 9999, "expires": int(time.time()) + 99999}, "expired"),
        ({"body": b"rubbish"}, "message"),
        ({"kind": "round", "round": 1}, "message"),
        ({"seq": 0}, "order"),
        ({"seq": "9"}, "message"),
        ({"job": "0" * 64}, "message"),
        ({"base": "0" * 64}, "verification"),
        ({"params": {"path": "/etc/passwd"}}, "message"),
        ({"log": {}}, "message"),
    ],
)
def test_requests_that_a_site_refuses(tmp_path: Path, changes: dict[str, Any], code: str) -> None:
    assert speak(Federation(tmp_path), **changes) == ("refused", code)


def test_a_replayed_request_is_refused(tmp_path: Path) -> None:
    federation = Federation(tmp_path)
    assert speak(federation, nonce="n") == ("ok", "")
    assert speak(federation, nonce="n") == ("refused", "replay")


def test_a_replay_is_refused_after_a_restart_of_the_site(tmp_path: Path) -> None:
    federation = Federation(tmp_path)
    request, sent = federation.desk.request("site-0", Ask("hello", 0, {}, {}))
    first = federation.opened(
        "site-0", federation.sessions["site-0"].handle(request), sent.reply_key, sent.request_sha256
    )
    assert said(first) == ("ok", "")
    again = Federation(tmp_path)
    second = again.opened(
        "site-0", again.sessions["site-0"].handle(request), sent.reply_key, sent.request_sha256
    )
    assert said(second) == ("refused", "replay")


def test_a_request_that_comes_late_is_refused_as_out_of_order(tmp_path: Path) -> None:
    federation = Federation(tmp_path)
    early, sent = federation.desk.request("site-0", Ask("hello", 0, {}, {}))
    assert said(federation.ask("site-0", Ask("hello", 0, {}, {}))) == ("ok", "")
    reply = federation.sessions["site-0"].handle(early)
    assert said(federation.opened("site-0", reply, sent.reply_key, sent.request_sha256)) == (
        "refused",
        "order",
    )


def test_who_does_not_hold_the_study_key_is_told_nothing(tmp_path: Path) -> None:
    """Garbage, unsigned and foreign requests get no bytes at all, and one typed event each."""
    federation = Federation(tmp_path)
    assert federation.ask("site-0", Ask("hello", 0, {}, {}), key=SigningKey.generate()) is None
    assert federation.ask("site-0", Ask("hello", 0, {}, {}), reply_key="short") is None
    for garbage in (b"", b"\0" * 100, b"CYTOSAE1" + b"\xff" * 200):
        assert federation.sessions["site-0"].handle(garbage) == b""
    assert [event.code for event in federation.logs].count("unverified") == 5


def ask(federation: Federation, kind: str, number: int, tensors: dict[str, np.ndarray]) -> tuple[str, str]:
    return said(federation.ask("site-0", Ask(kind, number, tensors, {})))


def base_of(federation: Federation) -> dict[str, np.ndarray]:
    rows = np.random.default_rng(0).standard_normal((24, 16)).astype(np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    return {"dictionary": rows, "mean": np.zeros(16, np.float32), "scale": np.full(1, 1.5, np.float32)}


def test_trap_dictionaries_are_refused(tmp_path: Path) -> None:
    federation = Federation(tmp_path)
    good = base_of(federation)
    assert ask(federation, "round", 1, good) == ("refused", "study")  # begin has not fixed the rows
    assert ask(federation, "begin", 0, good) == ("ok", "")
    traps = {
        "near zero": good["dictionary"] * 1e-3,
        "one direction": np.repeat(good["dictionary"][:1], 24, axis=0),
        "not finite": np.full((24, 16), np.nan, np.float32),
        "another shape": good["dictionary"][:20],
    }
    for name, rows in traps.items():
        status, code = ask(federation, "round", 1, {**good, "dictionary": rows})
        assert status == "refused" and code in ("base", "message"), name
    assert ask(federation, "round", 1, good) == ("ok", "")


def test_faults_of_a_site_say_nothing_outside(tmp_path: Path) -> None:
    """An unforeseen fault inside a step leaves as one code; its text stays in the local log."""
    federation = Federation(tmp_path)

    class Burning(FakeStore):
        def tokens(self, start: int, stop: int) -> np.ndarray:
            raise OSError("/data/patient-7/slide-3.png: input/output error")

    store = Burning(federation.sites["site-0"].store.tokens(0, 60))
    federation.sessions["site-0"].site = replace(federation.sites["site-0"], store=store)
    assert ask(federation, "moments", 0, {}) == ("refused", "internal")
    lines = [event.to_json() for event in federation.logs]
    assert any('"failed"' in line for line in lines) and not any("patient-7" in line for line in lines)


def test_no_name_of_a_patient_or_file_is_on_the_wire(tmp_path: Path) -> None:
    federation = Federation(tmp_path)
    federation.run()
    run = tmp_path / "run"
    opened = [path.read_bytes() for path in (run / "payloads").glob("*.reply")]
    leaves = [path.read_bytes() for path in run.glob("mirrors/*/journal")] + [
        (run / "log" / "journal").read_bytes()
    ]
    assert len(opened) > 10 and len(leaves) == 4
    for data in opened + leaves + [base64.b64decode(part) for leaf in leaves for part in payloads(leaf)]:
        assert b"patient-" not in data and str(tmp_path).encode() not in data
    names = {name for data in opened for name in unpack_tensors(body_of(data))}
    assert "delta" in names and not names & {"W_enc", "b_enc", "codes", "tokens", "indices"}


def payloads(journal: bytes) -> list[bytes]:
    return re.findall(rb'"payload":"([A-Za-z0-9+/=]+)"', journal)


def test_small_sites_are_suppressed_everywhere(tmp_path: Path) -> None:
    """With 10 patients nothing but digests and golden cells may leave."""
    federation = Federation(tmp_path)
    small = make_site("site-0", tmp_path, POLICIES["masked"], seed=0, patients=10)
    federation.sessions["site-0"].site = small
    reply = federation.ask("site-0", Ask("hello", 0, {}, {}))
    assert reply is not None and np.isnan(unpack_tensors(reply.body)["counts"]).all()


def test_public_data_policy_only_in_simulations(tmp_path: Path) -> None:
    with pytest.raises(SetupError):
        Federation(tmp_path, study=study_config(simulation=False), policy=POLICIES["public-data"])


def test_a_site_stricter_than_the_study_is_fine_and_a_laxer_one_is_not(tmp_path: Path) -> None:
    Federation(tmp_path / "a", policy=SitePolicy("strict", "masked", min_units=15))
    with pytest.raises(StudyError):
        Federation(tmp_path / "b", policy=SitePolicy("lax", "masked", min_units=5))
    with pytest.raises(CytosaeError):
        Federation(tmp_path / "c", policy=POLICIES["evaluate_only"])


def test_validate_with_a_frozen_dictionary_and_metrics_only(tmp_path: Path) -> None:
    trained = Federation(tmp_path / "train").run()
    study = study_config(kind="validate", profile="evaluate_only")
    start = {
        "dictionary": final(trained),
        "mean": trained.scale.mean,
        "scale": np.array([trained.scale.scale], np.float32),
    }
    federation = Federation(tmp_path / "validate", study=study, policy=POLICIES["evaluate_only"], start=start)
    run = federation.run()
    kinds = {kind for received in run.result.received.values() for kind in received}
    assert kinds == {"hello", "describe", "score"} and run.result.final.tobytes() == final(trained).tobytes()
    report = build_report(study, run.result)
    assert report["overall"]["federated_fvu"] is not None and report["overall"]["fvu_init"] is None
    assert report["encoder"]["digest"] == ENCODER_DIGEST
