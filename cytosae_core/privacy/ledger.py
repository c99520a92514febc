"""What this site has already released: budgets (S14) and cohorts (S6). Kept on disk at the site, never sent.

A release is spent before it leaves, in one transaction with the check, so that neither a crash nor a second agent of
the same site releases anything twice or unseen. It holds over runs and studies: a new run does not reset it.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import itertools
import os
import secrets
import sqlite3
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..canonical import digest_of
from ..errors import EgressError, SetupError
from ..policy import SitePolicy

FILE = "ledger.sqlite3"
MEMBER_BYTES = 16
# With at most 5 cohorts a question's linear combinations can be enumerated exactly: their smallest supports have
# coefficients that are determinants of 4 x 4 matrices of zeros and ones, so between -3 and 3.
MAX_COHORTS, COEFFICIENTS = 5, range(-3, 4)
_TABLES = """
CREATE TABLE IF NOT EXISTS salt (one INTEGER PRIMARY KEY CHECK (one = 1), salt BLOB NOT NULL);
CREATE TABLE IF NOT EXISTS spent (seq INTEGER PRIMARY KEY AUTOINCREMENT, at REAL NOT NULL, study TEXT NOT NULL,
  protocol TEXT NOT NULL, kind TEXT NOT NULL, round INTEGER NOT NULL, job TEXT NOT NULL, bytes INTEGER NOT NULL,
  numbers INTEGER NOT NULL, content TEXT NOT NULL, repeats INTEGER NOT NULL);
CREATE INDEX IF NOT EXISTS by_job ON spent (job, content);
CREATE TABLE IF NOT EXISTS cohort (digest TEXT PRIMARY KEY, members BLOB NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS released (name TEXT NOT NULL, question TEXT NOT NULL, cohort TEXT NOT NULL,
  content TEXT NOT NULL, at REAL NOT NULL, PRIMARY KEY (name, question, cohort)) WITHOUT ROWID;
"""


@dataclass(frozen=True)
class Cohort:
    """A set of units by salted digests; `digest` names the set. Both mean nothing outside this site."""

    members: frozenset[bytes]

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the sorted members."""
        return hashlib.sha256(b"".join(sorted(self.members))).hexdigest()

    def __len__(self) -> int:
        return len(self.members)


@dataclass(frozen=True)
class Asked:
    """One question of a release, for S6.

    Attributes:
        name: what is released, `describe` or a tensor's name.
        question: SHA-256 of everything that the answer depends on beside the cohort (`question_digest`).
        cohort: units that the answer depends on.
        content: SHA-256 of the released values.
        subgroups: smaller cohorts that the same release tells totals of.
    """

    name: str
    question: str
    cohort: Cohort
    content: str
    subgroups: tuple[Cohort, ...] = ()


@dataclass(frozen=True)
class Budget:
    """Spent so far under the policy, this release included. `repeats`: seq of the first release of the same job and
    content, else -1; `seq`: this release's own number."""

    seq: int
    rounds: int
    messages: int
    bytes: int
    numbers: int
    repeats: int

    def to_dict(self) -> dict[str, int]:
        """As JSON values."""
        return asdict(self)


def question_digest(**parts: Any) -> str:
    """One digest of what a question is: metric, dictionary digest, classes, split ... (JSON values)."""
    return digest_of(parts)


class Ledger:
    """The site's ledger in `folder`. Thread-safe; several agents of one site may share the folder.

    Args:
        folder: of the site, not of a study.
        policy: the site's policy, or one tightened from it.

    Guarantees (each locked by tests/unit/test_ledger.py):
        1. What `spend` returned for is on disk, also after kill -9; what it refused is not.
        2. No budget is ever exceeded: rounds, bytes, messages, numbers per step; over runs and studies.
        3. A repeat of a job with the same content spends bytes and messages only.
        4. The same question over cohorts that differ by 1 to `min_units` - 1 units is refused (DIFFERENCING), and
           over the same cohort it is answered with the same content only.
        5. No linear combination of a question's releases stands for 1 to `min_units` - 1 units; a question has
           at most 5 cohorts.
        6. Subgroups of a release leave 0 or at least `min_units` units over.
        7. The file is readable by its owner only, and holds salted digests of units, never their names.
    """

    def __init__(self, folder: Path, policy: SitePolicy) -> None:
        self._policy, self._lock = policy, threading.Lock()
        try:
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            path = folder / FILE
            os.close(os.open(path, os.O_CREAT | os.O_RDWR | os.O_NOFOLLOW, 0o600))
            path.chmod(0o600)
            self._db = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=60)
            self._db.execute("PRAGMA synchronous=FULL")
            self._db.executescript(_TABLES)
            with self._transaction():
                self._db.execute("INSERT OR IGNORE INTO salt VALUES (1, ?)", (secrets.token_bytes(32),))
                (self._salt,) = self._db.execute("SELECT salt FROM salt").fetchone()
        except (OSError, sqlite3.Error) as error:
            raise _disk() from error

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            self._db.close()

    def cohort(self, units: Iterable[str]) -> Cohort:
        """The cohort of these units (repeats count once), under this site's salt."""
        return Cohort(frozenset(self._member(unit) for unit in set(units)))

    def _member(self, unit: str) -> bytes:
        return hmac.digest(self._salt, unit.encode("utf-8", "surrogatepass"), "sha256")[:MEMBER_BYTES]

    def spend(
        self,
        *,
        study: str,
        protocol: str,
        kind: str,
        round: int,
        job: str,
        message_bytes: int,
        numbers: int,
        content_sha256: str,
        asked: Sequence[Asked] = (),
        now: float | None = None,
    ) -> Budget:
        """Spend one release, before it leaves.

        Args:
            study, protocol: name and digest of the protocol.
            kind, round: the step.
            job: idempotent id of the request.
            message_bytes: size of what will leave.
            numbers: released numbers outside updates.
            content_sha256: of the released tensors.
            asked: questions that it answers; recorded in the same transaction.
            now: unix seconds, for tests.

        Raises:
            EgressError: code `budget`, reason BUDGET, or code `egress`, reason DIFFERENCING; nothing is spent.
            SetupError: the disk.
        """
        at = time.time() if now is None else now
        if message_bytes < 0 or numbers < 0 or round < 0:
            raise EgressError(
                "Expected message_bytes, numbers and round >= 0.", code="budget", reason="BUDGET"
            )
        with self._lock, self._transaction():
            for item in asked:
                self._release(item, at)
            first = self._db.execute(
                "SELECT min(seq) FROM spent WHERE job = ? AND content = ? AND repeats < 0",
                (job, content_sha256),
            ).fetchone()[0]
            repeats = -1 if first is None else int(first)
            self._check_budgets(protocol, kind, round, message_bytes, numbers if repeats < 0 else 0, repeats)
            row = (at, study, protocol, kind, round, job, message_bytes, numbers, content_sha256, repeats)
            seq = self._db.execute(
                "INSERT INTO spent (at, study, protocol, kind, round, job, bytes, numbers, content, repeats)"
                " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", row
            ).lastrowid  # fmt: skip
            totals = self._totals()
            in_step = self._numbers(protocol, kind, round)
        return Budget(int(seq or 0), totals["rounds"], totals["messages"], totals["bytes"], in_step, repeats)

    def _check_budgets(
        self, protocol: str, kind: str, round: int, message_bytes: int, numbers: int, repeats: int
    ) -> None:
        policy, spent = self._policy, self._totals()
        rounds = int(kind == "round" and repeats < 0)
        for key, value, limit in (
            ("limits.bytes_per_message", message_bytes, policy.max_message_bytes),
            ("limits.bytes_total", spent["bytes"] + message_bytes, policy.bytes_total),
            ("limits.messages_total", spent["messages"] + 1, policy.messages_total),
            ("limits.rounds", spent["rounds"] + rounds, policy.rounds if rounds else spent["rounds"]),
            ("limits.metrics_per_round", self._numbers(protocol, kind, round) + numbers if numbers else 0,
             policy.metrics_per_round),
        ):  # fmt: skip
            if value > limit:
                raise EgressError(
                    f"Expected {key}={limit} to last, this reply would make it {value}.",
                    hint="An officer may sign a policy with another limit: cytosae site policy.",
                    code="budget", reason="BUDGET",
                )  # fmt: skip

    def _totals(self) -> dict[str, int]:
        row = self._db.execute(
            "SELECT count(*), coalesce(sum(bytes), 0), coalesce(sum(kind = 'round' AND repeats < 0), 0)"
            " FROM spent WHERE at >= ?", (self._policy.starts_at,)
        ).fetchone()  # fmt: skip
        return {"messages": int(row[0]), "bytes": int(row[1]), "rounds": int(row[2])}

    def _numbers(self, protocol: str, kind: str, round: int) -> int:
        row = self._db.execute(
            "SELECT coalesce(sum(numbers), 0) FROM spent WHERE protocol = ? AND kind = ? AND round = ?"
            " AND repeats < 0 AND at >= ?", (protocol, kind, round, self._policy.starts_at)
        ).fetchone()  # fmt: skip
        return int(row[0])

    # S6

    def check_release(self, asked: Asked) -> bool:
        """Whether the release repeats an earlier one exactly. Writes nothing.

        Raises:
            EgressError: reason DIFFERENCING: with what left before, it would tell about fewer than `min_units` units.
        """
        with self._lock, self._transaction():
            return self._check(asked)

    def record_release(self, asked: Asked, now: float | None = None) -> bool:
        """Check and record in one transaction, for releases that spend no budget."""
        with self._lock, self._transaction():
            return self._release(asked, time.time() if now is None else now)

    def _release(self, asked: Asked, at: float) -> bool:
        repeated = self._check(asked)
        if not repeated and len(asked.cohort) >= self._policy.min_units:
            digest = asked.cohort.digest
            if not self._db.execute("SELECT 1 FROM cohort WHERE digest = ?", (digest,)).fetchone():
                members = b"".join(sorted(asked.cohort.members))
                self._db.execute("INSERT INTO cohort VALUES (?, ?)", (digest, members))
            self._db.execute(
                "INSERT INTO released VALUES (?, ?, ?, ?, ?)",
                (asked.name, asked.question, digest, asked.content, at),
            )
        return repeated

    def _check(self, asked: Asked) -> bool:
        # A cohort below the threshold releases nothing: the door withholds every number of it.
        if not self._policy.disclosure_control or len(asked.cohort) < self._policy.min_units:
            return self._is_repeat(asked)
        for group in asked.subgroups:
            if 0 < len(asked.cohort.members - group.members) < self._policy.min_units:
                raise _differencing("a subgroup that leaves no or enough units over")
        if self._is_repeat(asked):
            return True
        earlier = [
            frozenset(blob[i : i + MEMBER_BYTES] for i in range(0, len(blob), MEMBER_BYTES))
            for (blob,) in self._db.execute(
                "SELECT members FROM released JOIN cohort ON digest = cohort WHERE name = ? AND question = ?",
                (asked.name, asked.question),
            )
        ]
        if len(earlier) >= MAX_COHORTS:
            raise _differencing(f"at most {MAX_COHORTS} cohorts for one question")
        if isolates_few([*earlier, asked.cohort.members], self._policy.min_units):
            raise _differencing("the cohort of the earlier release, or one that differs by enough units")
        return False

    def _is_repeat(self, asked: Asked) -> bool:
        row = self._db.execute(
            "SELECT content FROM released WHERE name = ? AND question = ? AND cohort = ?",
            (asked.name, asked.question, asked.cohort.digest),
        ).fetchone()
        if row is not None and row[0] != asked.content and self._policy.disclosure_control:
            raise _differencing("the same answer to the same question about the same units")
        return row is not None

    # For people

    def summary(self) -> dict[str, Any]:
        """Spent and allowed, for displays at the site."""
        policy = self._policy
        with self._lock, self._transaction():
            spent = self._totals()
            (questions,) = self._db.execute(
                "SELECT count(*) FROM (SELECT DISTINCT name, question FROM released)"
            ).fetchone()
            (cohorts,) = self._db.execute("SELECT count(*) FROM cohort").fetchone()
            (studies,) = self._db.execute("SELECT count(DISTINCT protocol) FROM spent").fetchone()
        limits = {"rounds": policy.rounds, "messages": policy.messages_total, "bytes": policy.bytes_total}
        return {
            "policy": policy.name,
            "since": policy.valid_from,
            "spent": spent,
            "limits": limits,
            "left": {name: limit - spent[name] for name, limit in limits.items()},
            "studies": int(studies),
            "questions": int(questions),
            "cohorts": int(cohorts),
        }

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[None]:
        try:
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield
                self._db.execute("COMMIT")
            except BaseException:
                if self._db.in_transaction:  # a full disk may have ended it already
                    self._db.execute("ROLLBACK")
                raise
        except sqlite3.Error as error:
            raise _disk() from error


def isolates_few(cohorts: Sequence[frozenset[bytes]], min_units: int) -> bool:
    """Whether a linear combination of sums over these cohorts depends on 1 to `min_units` - 1 units only. Exact for
    up to `MAX_COHORTS` cohorts."""
    place: dict[bytes, int] = {}
    for index, cohort in enumerate(cohorts):
        for member in cohort:
            place[member] = place.get(member, 0) | 1 << index
    masks, sizes = np.unique(np.fromiter(place.values(), np.int64, len(place)), return_counts=True)
    inside = (masks[None, :] >> np.arange(len(cohorts))[:, None]) & 1
    combined: NDArray[np.int64] = (
        np.array(list(itertools.product(COEFFICIENTS, repeat=len(cohorts)))) @ inside
    )
    support = (combined != 0) @ sizes
    return bool(((support > 0) & (support < min_units)).any())


def _differencing(expected: str) -> EgressError:
    return EgressError(
        f"Expected {expected}.",
        hint="Two answers that differ by few patients tell about those patients. Ask another question, or wait until "
        "enough patients have joined.",
        reason="DIFFERENCING",
    )


def _disk() -> SetupError:
    return SetupError(
        "Expected a readable ledger in the site's state.", hint="Look at the disk; see docs/policy.md."
    )
