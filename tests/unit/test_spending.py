"""The privacy ledger: charges before release, refuses, survives kill -9, and knows when it was tampered with."""

from __future__ import annotations

import math
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from cytosae_core.errors import EgressError, SetupError
from cytosae_core.policy import SitePolicy
from cytosae_core.privacy.accountant import exact_epsilon, pld_epsilon
from cytosae_core.privacy.plan import PrivacyPlan
from cytosae_core.privacy.spending import FILE, HEAD, PrivacyLedger

POLICY = SitePolicy("dp", "dp", epsilon_total="3", delta_max="0.00001")
KEY = b"k" * 32
PLAN = PrivacyPlan(1.0, 3.0, 1.0, 1, 1e-5)


def _members(first: int, last: int) -> list[bytes]:
    return [bytes([index] * 16) for index in range(first, last)]


def _ledger(folder: Path, policy: SitePolicy = POLICY, key: bytes = KEY) -> PrivacyLedger:
    return PrivacyLedger(folder / "ledger", folder, policy, key)


def _charge(
    ledger: PrivacyLedger, job: str, *, members: Any = None, plan: PrivacyPlan = PLAN, **more: str
) -> Any:
    given = {
        "study": "s",
        "protocol": "p",
        "kind": "describe",
        "job": job,
        "content_sha256": f"c-{job}",
        **more,
    }
    return ledger.charge(plan, _members(0, 20) if members is None else members, **given)


SPENDER = """
import sys
from pathlib import Path
from tests.unit.test_spending import _charge, _ledger
ledger = _ledger(Path(sys.argv[1]))
for number in range(1000):
    members = [bytes([number % 250] * 16), bytes([255 - number // 250] * 16)]
    _charge(ledger, str(number), members=members, protocol=str(number))
    print(number, flush=True)
"""


def test_s1_charges_survive_kill_9(tmp_path: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", SPENDER, str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    seen = -1
    for line in process.stdout or ():
        seen = int(line)
        if seen == 7:
            os.kill(process.pid, signal.SIGKILL)
            break
    process.wait()
    if process.stdout:
        process.stdout.close()
    found = _ledger(tmp_path)
    found.verify()
    assert len(found.summary()["releases"]) >= seen + 1
    found.close()


def test_s2_the_budget_holds_over_studies_and_equals_the_accountant(tmp_path: Path) -> None:
    ledger = _ledger(tmp_path)
    count = 0
    with pytest.raises(EgressError) as refused:
        for count in range(100):
            _charge(ledger, str(count), protocol=f"study {count}")
    assert refused.value.code == "budget" and refused.value.reason == "EPSILON"
    assert exact_epsilon(math.sqrt(count) / 3, 1e-5) <= 3 < exact_epsilon(math.sqrt(count + 1) / 3, 1e-5)
    found = ledger.summary()
    assert math.isclose(found["spent"], pld_epsilon(3.0, 1.0, count, 1e-5), rel_tol=1e-2)
    assert found["spent"] <= 3 and len(found["releases"]) == count
    assert _charge(_ledger(tmp_path), "other patients", members=_members(50, 60)).epsilon > 0


def test_s3_patients_are_charged_for_their_own_releases(tmp_path: Path) -> None:
    ledger = _ledger(tmp_path, SitePolicy("dp", "dp", epsilon_total="5", delta_max="0.00001"))
    for number in range(4):
        _charge(ledger, f"a{number}", members=_members(0, 20))
        _charge(ledger, f"b{number}", members=_members(20, 40))
    alone = exact_epsilon(2 / 3, 1e-5)
    assert math.isclose(ledger.summary()["spent"], alone)
    assert ledger.summary()["patients"] == 40
    together = _charge(ledger, "both", members=_members(19, 21))
    assert not together.repeated and math.isclose(
        ledger.summary()["spent"], exact_epsilon(math.sqrt(5) / 3, 1e-5)
    )


def test_s4_a_repeat_is_charged_once_and_other_content_again(tmp_path: Path) -> None:
    ledger = _ledger(tmp_path)
    first, again = _charge(ledger, "a"), _charge(ledger, "a")
    assert not first.repeated and again.repeated and again.epsilon_study == first.epsilon_study
    other = _charge(ledger, "a", content_sha256="other")
    assert not other.repeated and other.epsilon_study > first.epsilon_study
    assert len(ledger.summary()["releases"]) == 2


def _edit(text: str) -> Any:
    def change(folder: Path) -> None:
        with sqlite3.connect(folder / "ledger" / FILE) as db:
            db.execute(text)
        db.close()

    return change


TAMPERED = {
    "noise": _edit("UPDATE charged SET noise = '300.0' WHERE seq = 1"),
    "patients": _edit("UPDATE charged SET members = x'' WHERE seq = 2"),
    "first row": _edit("DELETE FROM charged WHERE seq = 1"),
    "last row": _edit("DELETE FROM charged WHERE seq = 3"),
    "all rows": _edit("DELETE FROM charged"),
    "head": lambda folder: (folder / HEAD).write_text('{"rows": "x"}'),
    "file": lambda folder: (folder / "ledger" / FILE).unlink(),
}


@pytest.mark.parametrize("how", TAMPERED)
def test_s5_an_edited_ledger_is_refused(tmp_path: Path, how: str) -> None:
    ledger = _ledger(tmp_path)
    for number in range(3):
        _charge(ledger, str(number))
    ledger.close()
    TAMPERED[how](tmp_path)
    for act in (lambda: _charge(_ledger(tmp_path), "x"), lambda: _ledger(tmp_path).verify()):
        with pytest.raises(EgressError) as refused:
            act()
        assert (refused.value.code, refused.value.reason) == ("budget", "LEDGER")


def test_s5_an_old_copy_and_another_key_are_refused(tmp_path: Path) -> None:
    ledger = _ledger(tmp_path)
    _charge(ledger, "a")
    ledger.close()
    shutil.copy(tmp_path / "ledger" / FILE, tmp_path / "old")
    again = _ledger(tmp_path)
    _charge(again, "b")
    again.close()
    with pytest.raises(EgressError, match="nobody edited"):
        _ledger(tmp_path, key=b"z" * 32).verify()
    shutil.copy(tmp_path / "old", tmp_path / "ledger" / FILE)
    with pytest.raises(EgressError, match="an old copy"):
        _ledger(tmp_path).verify()


def test_s5_a_release_that_only_the_log_knows_is_missed(tmp_path: Path) -> None:
    ledger = _ledger(tmp_path)
    _charge(ledger, "a")
    ledger.verify([("a", "3.0")])
    with pytest.raises(EgressError, match="this site's log"):
        ledger.verify([("a", "3.0"), ("b", "3.0")])


def test_a_patient_at_several_sites_costs_more(tmp_path: Path) -> None:
    ledger = _ledger(tmp_path)
    shared = PrivacyPlan(1.0, 3.0, 1.0, 1, 1e-5, sites_of_a_patient=2)
    assert _charge(ledger, "a", plan=shared).epsilon > 2 * PLAN.epsilon * 0.95


@pytest.mark.parametrize(
    "plan",
    [
        PrivacyPlan(1.0, 3.0, 0.5, 1, 1e-5),
        PrivacyPlan(1.0, 3.0, 1.0, 2, 1e-5),
        PrivacyPlan(1.0, 3.0, 1.0, 1, 1e-4),
    ],
)
def test_plans_that_the_ledger_cannot_charge_are_refused(tmp_path: Path, plan: PrivacyPlan) -> None:
    with pytest.raises(EgressError, match="one full release"):
        _charge(_ledger(tmp_path), "a", plan=plan)


def test_a_crash_after_the_charge_and_before_the_seal_is_no_tampering(tmp_path: Path) -> None:
    ledger = _ledger(tmp_path)
    _charge(ledger, "a")
    before = (tmp_path / HEAD).read_bytes()
    _charge(ledger, "b")
    (tmp_path / HEAD).write_bytes(before)
    assert _charge(ledger, "b").repeated


def test_no_disk_is_a_setup_error(tmp_path: Path) -> None:
    (tmp_path / "ledger").write_text("a file, no folder")
    with pytest.raises(SetupError):
        _ledger(tmp_path)
