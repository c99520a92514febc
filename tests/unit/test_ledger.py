"""The guarantees of privacy/ledger.py, one test or more per line."""

from __future__ import annotations

import contextlib
import itertools
import os
import signal
import sqlite3
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cytosae_core.errors import EgressError, SetupError
from cytosae_core.policy import POLICIES, SitePolicy
from cytosae_core.privacy.ledger import FILE, Asked, Budget, Ledger, isolates_few, question_digest

POLICY = SitePolicy(
    "tight",
    "masked",
    max_message_bytes=1000,
    bytes_total=3000,
    messages_total=6,
    rounds=2,
    metrics_per_round=100,
)
WIDE = POLICIES["masked"]
SMALL = SitePolicy("small", "masked", min_units=3)


def spend(ledger: Ledger, job: str = "job", **changes: Any) -> Budget:
    values: dict[str, Any] = {
        "study": "s", "protocol": "p" * 64, "kind": "round", "round": 1, "job": job, "message_bytes": 100,
        "numbers": 10, "content_sha256": "c" * 64,
    }  # fmt: skip
    return ledger.spend(**{**values, **changes})


def units(*ranges: range) -> list[str]:
    return [f"patient-{index}" for part in ranges for index in part]


def asked(ledger: Ledger, people: list[str], content: str = "a", question: str = "q", **more: Any) -> Asked:
    return Asked("describe", question_digest(of=question), ledger.cohort(people), content, **more)


def blocked(ledger: Ledger, question: Asked) -> bool:
    try:
        ledger.record_release(question)
    except EgressError as error:
        assert error.reason == "DIFFERENCING"
        return True
    return False


# 1, 2, 3: budgets


@pytest.mark.parametrize(
    "changes",
    [
        {"message_bytes": 1001},
        {"numbers": 101},
        {"message_bytes": -1},
        {"numbers": -1},
        {"round": -1},
    ],
)
def test_2_one_release_beyond_a_budget_is_refused_and_not_spent(
    tmp_path: Path, changes: dict[str, int]
) -> None:
    ledger = Ledger(tmp_path, POLICY)
    with pytest.raises(EgressError) as error:
        spend(ledger, **changes)
    assert (error.value.code, error.value.reason) == ("budget", "BUDGET")
    assert ledger.summary()["spent"] == {"messages": 0, "bytes": 0, "rounds": 0}


def test_2_budgets_over_runs_and_studies(tmp_path: Path) -> None:
    """A new run and another study do not reset the rounds."""
    first = spend(Ledger(tmp_path, POLICY), "a")
    assert first == Budget(1, 1, 1, 100, 10, -1)
    again = Ledger(tmp_path, POLICY)
    assert spend(again, "b", protocol="q" * 64, round=1).rounds == 2
    with pytest.raises(EgressError, match=r"limits\.rounds"):
        spend(again, "c", protocol="r" * 64, round=1)
    assert spend(again, "d", kind="describe", round=0).rounds == 2  # other steps still have their budget


def test_2_bytes_messages_and_numbers(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "a", POLICY)
    for job in ("a", "b", "c"):
        spend(ledger, job, kind="describe", message_bytes=1000, numbers=30)
    with pytest.raises(EgressError, match=r"limits\.bytes_total"):
        spend(ledger, "d", kind="describe", message_bytes=1)
    ledger = Ledger(tmp_path / "b", POLICY)
    for index in range(6):
        spend(ledger, str(index), kind="score", round=index)
    with pytest.raises(EgressError, match=r"limits\.messages_total"):
        spend(ledger, "6", kind="score", round=6)
    ledger = Ledger(tmp_path / "c", POLICY)
    spend(ledger, "a", kind="describe", numbers=60)
    with pytest.raises(EgressError, match=r"limits\.metrics_per_round"):
        spend(ledger, "b", kind="describe", numbers=41)
    assert spend(ledger, "b", kind="describe", numbers=40).numbers == 100
    assert spend(ledger, "c", kind="describe", round=2, numbers=100).numbers == 100


def test_2_budgets_count_from_the_first_day_of_the_policy(tmp_path: Path) -> None:
    dated = replace(POLICY, valid_from="2026-11-01", valid_until="2027-05-01")
    ledger = Ledger(tmp_path, dated)
    day = 86_400
    for job in ("a", "b"):
        spend(ledger, job, now=dated.starts_at - day)
    assert spend(ledger, "c", now=dated.starts_at).rounds == 1
    renewed = replace(dated, valid_from="2027-05-02", valid_until="2027-11-01")
    assert spend(Ledger(tmp_path, renewed), "d", now=renewed.starts_at).rounds == 1


def test_3_a_repeat_spends_bytes_and_messages_only(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path, POLICY)
    spend(ledger, "a", numbers=100)
    for count in (2, 3):
        repeat = spend(ledger, "a", numbers=100)
        assert (repeat.rounds, repeat.numbers, repeat.repeats) == (1, 100, 1)
        assert (repeat.messages, repeat.bytes) == (count, 100 * count)


def test_3_other_content_of_the_same_job_is_a_new_release(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path, POLICY)
    spend(ledger, "a")
    assert spend(ledger, "a", content_sha256="d" * 64).rounds == 2
    with pytest.raises(EgressError):
        spend(ledger, "a", content_sha256="e" * 64)


KILLED = """
import sys
from pathlib import Path
from cytosae_core.policy import POLICIES
from cytosae_core.privacy.ledger import Ledger
ledger = Ledger(Path(sys.argv[1]), POLICIES["public-data"])
for index in range(100_000):
    ledger.spend(study="s", protocol="p", kind="round", round=index, job=str(index), message_bytes=1, numbers=0,
                 content_sha256="c")
    print(index, flush=True)
"""


def test_1_survives_kill_9(tmp_path: Path) -> None:
    """Whatever was told spent is still spent: a release may follow the moment `spend` returns."""
    process = subprocess.Popen(
        [sys.executable, "-c", KILLED, str(tmp_path)], stdout=subprocess.PIPE, text=True,
        cwd=Path(__file__).parents[2],
    )  # fmt: skip
    assert process.stdout is not None
    told = [int(process.stdout.readline()) for _ in range(20)][-1]
    process.send_signal(signal.SIGKILL)
    told = max([told, *map(int, process.stdout.read().split())])
    process.stdout.close()
    process.wait()
    spent = Ledger(tmp_path, POLICIES["public-data"]).summary()["spent"]
    assert spent["rounds"] in (told + 1, told + 2) and spent["messages"] == spent["rounds"]


def test_2_two_agents_of_one_site_share_the_budget(tmp_path: Path) -> None:
    """Threads with own connections, as processes would have: never one more than the policy allows."""
    policy = replace(POLICY, messages_total=20, bytes_total=10**6, rounds=100)
    done: list[int] = []
    start = threading.Barrier(4)

    def work(name: int) -> None:
        ledger = Ledger(tmp_path, policy)
        start.wait()
        for index in range(10):
            with contextlib.suppress(EgressError):
                done.append(spend(ledger, f"{name}-{index}", round=index, protocol=str(name)).seq)
        ledger.close()

    threads = [threading.Thread(target=work, args=(name,)) for name in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(done) == list(range(1, 21))


def test_1_a_refused_question_leaves_nothing_behind(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path, WIDE)
    spend(ledger, "a", asked=[asked(ledger, units(range(40)))])
    near = asked(ledger, units(range(39)))
    with pytest.raises(EgressError, match="cohort"):
        spend(ledger, "b", asked=[asked(ledger, units(range(40)), question="other"), near])
    assert ledger.summary() | {"spent": None, "left": None, "limits": None} == {
        "policy": "masked", "since": "", "studies": 1, "questions": 1, "cohorts": 1, "spent": None, "left": None,
        "limits": None,
    }  # fmt: skip
    assert ledger.summary()["spent"]["messages"] == 1


# 4, 5, 6: differencing


def test_4_second_run_after_one_patient_left_is_blocked_new_questions_pass(tmp_path: Path) -> None:
    """Withdrawal of one patient: in any study of this site, also after a restart."""
    ledger = Ledger(tmp_path, WIDE)
    ledger.record_release(asked(ledger, units(range(60))))
    ledger.close()
    ledger = Ledger(tmp_path, WIDE)
    rest = units(range(59))
    assert blocked(ledger, asked(ledger, rest))
    assert not blocked(ledger, asked(ledger, rest, question="another dictionary"))
    assert blocked(ledger, asked(ledger, units(range(60)), question="another dictionary"))


@pytest.mark.parametrize(("gone", "come", "stops"), [(0, 1, True), (10, 0, True), (5, 5, True), (11, 0, False),
                                                     (0, 11, False), (6, 5, False)])  # fmt: skip
def test_4_symmetric_difference(tmp_path: Path, gone: int, come: int, stops: bool) -> None:
    ledger = Ledger(tmp_path, WIDE)
    ledger.record_release(asked(ledger, units(range(60))))
    assert blocked(ledger, asked(ledger, units(range(gone, 60 + come)))) is stops


def test_4_same_cohort_gets_the_same_answer_only(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path, WIDE)
    people = units(range(60))
    assert not ledger.record_release(asked(ledger, people, "a"))
    assert ledger.record_release(asked(ledger, people + people, "a"))
    assert blocked(ledger, asked(ledger, people, "b"))
    assert ledger.check_release(asked(ledger, people, "a"))
    assert not ledger.check_release(asked(ledger, people, "b", question="new"))
    assert ledger.summary()["questions"] == 1


def test_4_a_site_below_the_threshold_may_answer_with_nothing(tmp_path: Path) -> None:
    """The door withholds all its numbers; such an answer is not kept as a release."""
    ledger = Ledger(tmp_path, WIDE)
    for people in (range(10), range(9)):
        assert not blocked(ledger, asked(ledger, units(people)))
    assert ledger.summary()["questions"] == 0


def test_5_three_cohorts_that_are_safe_in_pairs(tmp_path: Path) -> None:
    """A + B, A, and B + x: every two differ by enough, and yet the first minus the others is minus x."""
    ledger = Ledger(tmp_path, WIDE)
    a, b, x = range(20), range(20, 40), range(40, 41)
    for people in (units(a, b), units(a)):
        assert not blocked(ledger, asked(ledger, people))
    assert blocked(ledger, asked(ledger, units(b, x)))
    assert not isolates_few(
        [frozenset(map(str.encode, units(a))), frozenset(map(str.encode, units(b, x)))], 11
    )


@pytest.mark.parametrize("blocks", [3, 4])
def test_5_combinations_with_larger_coefficients(tmp_path: Path, blocks: int) -> None:
    """All blocks but one, for each one, then all and x: the last counts `blocks` - 1 times against the others."""
    ledger = Ledger(tmp_path, WIDE)
    parts = [range(20 * index, 20 * index + 20) for index in range(blocks)]
    for left_out in parts:
        assert not blocked(ledger, asked(ledger, units(*(part for part in parts if part != left_out))))
    assert blocked(ledger, asked(ledger, units(*parts, range(200, 201))))
    assert not blocked(ledger, asked(ledger, units(*parts, range(200, 211))))


def test_5_at_most_five_cohorts_for_one_question(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path, WIDE)
    parts = [units(range(20 * index, 20 * index + 20)) for index in range(6)]
    assert [blocked(ledger, asked(ledger, people)) for people in parts] == [False] * 5 + [True]
    assert not blocked(ledger, asked(ledger, parts[5], question="other"))


def smallest_support(cohorts: list[list[int]], n: int) -> int:
    """Brute force: fewest units that a non-zero combination of the cohorts' indicator vectors depends on."""
    matrix = np.zeros((len(cohorts), n))
    for row, people in enumerate(cohorts):
        matrix[row, people] = 1
    rank = np.linalg.matrix_rank(matrix)
    for size in range(1, n + 1):
        for chosen in itertools.combinations(range(n), size):
            if np.linalg.matrix_rank(np.delete(matrix, chosen, axis=1)) < rank:
                return size
    return n + 1


@pytest.mark.parametrize("seed", range(25))
def test_5_no_recorded_releases_solve_a_small_group(tmp_path: Path, seed: int) -> None:
    """Random cohorts of 8 units; whatever the ledger let pass, no linear combination isolates fewer than 3."""
    rng = np.random.default_rng(seed)
    ledger, passed, refused = Ledger(tmp_path, SMALL), [], 0
    for _ in range(12):
        people = sorted(rng.choice(8, size=rng.integers(3, 9), replace=False).tolist())
        if blocked(ledger, asked(ledger, [f"u{index}" for index in people], content=str(people))):
            refused += 1
            cohorts = [*passed, people]
            assert len(passed) == 5 or smallest_support(cohorts, 8) < 3  # nothing harmless is refused
        elif people not in passed:
            passed.append(people)
    assert smallest_support(passed, 8) >= 3 and passed and refused


def test_6_a_subgroup_leaves_none_or_enough_over(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path, WIDE)
    everybody = units(range(60))
    for left, stops in ((0, False), (1, True), (10, True), (11, False), (59, False)):
        group = ledger.cohort(units(range(60 - left)))
        question = asked(ledger, everybody, question=str(left), subgroups=(group,))
        assert blocked(ledger, question) is stops


def test_public_data_is_not_limited_by_cohort(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path, POLICIES["public-data"])
    for people, content in ((range(60), "a"), (range(59), "b"), (range(60), "c")):
        assert not blocked(ledger, asked(ledger, units(people), content))


# 7: what is on disk


def test_7_owner_only_and_no_names(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "ledger", WIDE)
    spend(ledger, asked=[asked(ledger, units(range(60)))])
    path = tmp_path / "ledger" / FILE
    assert path.stat().st_mode & 0o777 == 0o600 and path.parent.stat().st_mode & 0o777 == 0o700
    assert b"patient-" not in path.read_bytes()
    other = Ledger(tmp_path / "other", WIDE)
    assert other.cohort(units(range(60))).digest != ledger.cohort(units(range(60))).digest
    assert Ledger(path.parent, WIDE).cohort(units(range(60))) == ledger.cohort(units(range(60)))
    assert len(ledger.cohort(["a", "a", "b"])) == 2


def test_a_file_that_is_no_ledger_stops_the_site(tmp_path: Path) -> None:
    (tmp_path / FILE).write_bytes(os.urandom(4096))
    with pytest.raises(SetupError, match="ledger"):
        Ledger(tmp_path, WIDE)


def test_a_ledger_behind_a_link_is_refused(tmp_path: Path) -> None:
    (tmp_path / "real").write_bytes(b"")
    (tmp_path / FILE).symlink_to(tmp_path / "real")
    with pytest.raises(SetupError):
        Ledger(tmp_path, WIDE)


def test_a_disk_that_fails_stops_the_release(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path, WIDE)
    with sqlite3.connect(tmp_path / FILE) as other:
        other.execute("DROP TABLE spent")
    with pytest.raises(SetupError):
        spend(ledger)


def test_summary(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path, POLICY)
    spend(ledger)
    assert ledger.summary() == {
        "policy": "tight",
        "since": "",
        "spent": {"messages": 1, "bytes": 100, "rounds": 1},
        "limits": {"rounds": 2, "messages": 6, "bytes": 3000},
        "left": {"rounds": 1, "messages": 5, "bytes": 2900},
        "studies": 1,
        "questions": 0,
        "cohorts": 0,
    }
