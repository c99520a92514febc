"""The privacy ledger of a site: what every patient has been charged, over rounds, releases and studies. It says no.

    mu of a patient    sqrt(sum of 1 / s^2 over all releases that the patient was in)      Gaussian, exact
    epsilon            the smallest one at the policy's delta_max                           accountant.exact_epsilon

A release is charged before it leaves, in a transaction that also refuses. Each row carries the seal of all rows
before it (HMAC-SHA256 under a key of the site), and the last seal stands in a second file outside the folder: a row
that was changed, removed or brought back from a backup is found, and nothing leaves until somebody looks.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import math
import os
import sqlite3
import threading
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..canonical import canonical_json, parse_json
from ..errors import CytosaeError, EgressError, SetupError
from ..policy import SitePolicy
from ..tensors import write_atomic
from .accountant import exact_epsilon
from .plan import PrivacyPlan

FILE, HEAD = "privacy.sqlite3", "privacy-head.json"
MEMBER_BYTES = 16
_TABLES = """
CREATE TABLE IF NOT EXISTS charged (seq INTEGER PRIMARY KEY, at REAL NOT NULL, study TEXT NOT NULL,
  protocol TEXT NOT NULL, kind TEXT NOT NULL, job TEXT NOT NULL, content TEXT NOT NULL, noise TEXT NOT NULL,
  delta TEXT NOT NULL, members BLOB NOT NULL, seal TEXT NOT NULL);
"""
_COLUMNS = "seq, at, study, protocol, kind, job, content, noise, delta, members"


@dataclass(frozen=True)
class Charge:
    """One release: what it cost alone, what all of this study's releases cost at its delta, and whether it is a
    repeat (same job, same content), which costs nothing."""

    epsilon: float
    epsilon_study: float
    repeated: bool


class PrivacyLedger:
    """The privacy ledger in `folder`. Thread-safe; several agents of one site may share it.

    Args:
        folder: of the site's ledger. head: folder of the file with the last seal, another one.
        policy: of the site, profile `dp`: epsilon_total and delta_max.
        key: secret of the site that seals are made with.

    Guarantees (tests/unit/test_spending.py):
        S1. What `charge` returned for is on disk, also after kill -9; what it refused is not.
        S2. No patient is ever charged more than the policy's epsilon_total at delta_max, over all studies.
        S3. A patient is charged for the releases it was in, and for no others.
        S4. The same content for the same job is charged once; other content is charged again.
        S5. A ledger that was edited, shortened or brought back from a backup is refused.
    """

    def __init__(self, folder: Path, head: Path, policy: SitePolicy, key: bytes) -> None:
        self._policy, self._key, self._lock = policy, key, threading.Lock()
        self._head = head / HEAD
        with _disk():
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            path = folder / FILE
            os.close(os.open(path, os.O_CREAT | os.O_RDWR | os.O_NOFOLLOW, 0o600))
            self._db = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=60)
            self._db.execute("PRAGMA synchronous=FULL")
            self._db.executescript(_TABLES)

    def close(self) -> None:
        """Close the file."""
        self._db.close()

    def charge(
        self,
        plan: PrivacyPlan,
        members: Iterable[bytes],
        *,
        study: str,
        protocol: str,
        kind: str,
        job: str,
        content_sha256: str,
    ) -> Charge:
        """Charge one release to these patients, before it leaves.

        Args:
            plan: of this release: full batch, one step. members: salted digests of the patients in it.

        Raises:
            EgressError: code `budget`, reason EPSILON (nothing is charged) or LEDGER (see S5).
        """
        if plan.sampling_rate != 1.0 or plan.steps != 1 or plan.delta > float(self._policy.delta_max or 0):
            raise _refused(f"one full release at delta <= {self._policy.delta_max or 0}", "EPSILON")
        noise = repr(plan.noise_multiplier / plan.sites_of_a_patient)
        patients = sorted(set(members))
        with self._lock, self._transaction():
            rows = self._rows()
            repeated = any((row[5], row[6]) == (job, content_sha256) for row in rows)
            if not repeated:
                self._check(rows, patients, float(noise))
                row = (len(rows) + 1, time.time(), study, protocol, kind, job, content_sha256, noise,
                       repr(plan.delta), b"".join(patients))  # fmt: skip
                seal = self._seal(rows[-1][10] if rows else "", row)
                self._db.execute("INSERT INTO charged VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", (*row, seal))
                rows.append((*row, seal))
        if not repeated:
            write_atomic(self._head, canonical_json({"rows": len(rows), "seal": rows[-1][10]}))
        own = [row for row in rows if row[3] == protocol]
        return Charge(plan.epsilon, exact_epsilon(_joint(own), plan.delta), repeated)

    def _check(self, rows: Sequence[Any], patients: Sequence[bytes], noise: float) -> None:
        charged = self._strengths(rows)
        worst = max((charged[patient] for patient in patients), default=0.0)
        limit = float(self._policy.epsilon_total or 0)
        total = exact_epsilon(math.sqrt(worst + 1 / noise**2), float(self._policy.delta_max))
        if total > limit * (1 + 1e-9):  # rounding of a promise that is met exactly
            raise _refused(
                f"privacy.epsilon_total={limit:g} to last, this release would make it {total:.3g}", "EPSILON"
            )

    @staticmethod
    def _strengths(rows: Sequence[Any]) -> Counter[bytes]:
        """mu^2 of every patient."""
        charged: Counter[bytes] = Counter()
        for row in rows:
            blob, strength = row[9], 1 / float(row[7]) ** 2
            for start in range(0, len(blob), MEMBER_BYTES):
                charged[blob[start : start + MEMBER_BYTES]] += strength  # type: ignore[assignment]
        return charged

    # S5

    def verify(self, released: Iterable[tuple[str, str]] = ()) -> None:
        """Raise EgressError (reason LEDGER) unless the ledger is whole, and knows these (job, noise) of a log."""
        with self._lock, self._transaction():
            rows = self._rows()
        known = {(row[5], row[7]) for row in rows}
        if any(item not in known for item in released):
            raise _refused("a ledger that knows every release in this site's log", "LEDGER")

    def _rows(self) -> list[Any]:
        rows = self._db.execute(f"SELECT {_COLUMNS}, seal FROM charged ORDER BY seq").fetchall()
        before = ""
        for number, row in enumerate(rows, start=1):
            if row[0] != number or not hmac.compare_digest(self._seal(before, row[:10]), row[10]):
                raise _refused(f"a ledger that nobody edited; row {number} does not hold", "LEDGER")
            before = row[10]
        head = self._read_head()
        if head["rows"] > len(rows) or (head["rows"] and rows[head["rows"] - 1][10] != head["seal"]):
            raise _refused(
                f"a ledger of at least {head['rows']} releases, got {len(rows)}: an old copy", "LEDGER"
            )
        return rows

    def _read_head(self) -> dict[str, Any]:
        if not self._head.exists():
            return {"rows": 0, "seal": ""}
        try:
            found = parse_json(self._head.read_bytes())
            return {"rows": int(found["rows"]), "seal": str(found["seal"])}
        except (OSError, CytosaeError, KeyError, TypeError, ValueError) as error:
            raise _refused("a readable last seal of the ledger", "LEDGER") from error

    def _seal(self, before: str, row: Sequence[Any]) -> str:
        values = [value.hex() if isinstance(value, bytes) else str(value) for value in row]
        return hmac.new(self._key, canonical_json([before, *values]), hashlib.sha256).hexdigest()

    # For people

    def summary(self) -> dict[str, Any]:
        """Limit, largest charge of any patient, what is left, and every release, for displays at the site."""
        with self._lock, self._transaction():
            rows = self._rows()
        policy = self._policy
        if not policy.epsilon_total:
            return {"limit": None, "delta": None, "spent": 0.0, "left": None, "patients": 0, "releases": []}
        limit, delta = float(policy.epsilon_total), float(policy.delta_max)
        releases, spent = [], 0.0
        for count, row in enumerate(rows, start=1):
            worst = max(self._strengths(rows[:count]).values(), default=0.0)
            spent = exact_epsilon(math.sqrt(worst), delta) if worst else 0.0
            alone = exact_epsilon(1 / float(row[7]), float(row[8]))
            releases.append(
                {"at": row[1], "study": row[2], "kind": row[4], "noise_multiplier": float(row[7]),
                 "patients": len(row[9]) // MEMBER_BYTES, "epsilon": alone, "spent": spent}
            )  # fmt: skip
        return {
            "limit": limit, "delta": delta, "spent": spent, "left": max(0.0, limit - spent),
            "patients": len(self._strengths(rows)), "releases": releases,
        }  # fmt: skip

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[None]:
        with _disk():
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield
                self._db.execute("COMMIT")
            except BaseException:
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")
                raise


def _joint(rows: Sequence[Any]) -> float:
    """mu of somebody who is in all of these releases."""
    return math.sqrt(sum(1 / float(row[7]) ** 2 for row in rows))


def _refused(expected: str, reason: str) -> EgressError:
    hint = (
        "The budget belongs to the patients: an officer may sign a policy with another one, nobody else."
        if reason == "EPSILON"
        else "Nothing leaves. Bring back the newest ledger, or ask who changed it; see docs/privacy.md."
    )
    return EgressError(f"Expected {expected}.", hint=hint, code="budget", reason=reason)


@contextlib.contextmanager
def _disk() -> Iterator[None]:
    try:
        yield
    except (OSError, sqlite3.Error) as error:
        raise SetupError(
            "Expected a readable privacy ledger in the site's state.",
            hint="Look at the disk; see docs/privacy.md.",
        ) from error
