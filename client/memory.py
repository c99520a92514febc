"""Which requests a site has seen: nonces and the highest sequence number, on disk, across restarts and kill -9."""

from __future__ import annotations

import contextlib
import os
import sqlite3
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from cytosae_core.errors import MessageError, SetupError

# A request is refused as expired after `expires`; its nonce is kept this much longer, seconds.
KEEP_S = 120


class RequestMemory:
    """Remembers requests of one study. Thread-safe; one file, synchronous writes.

    Guarantees (each locked by tests/unit/test_memory.py):
        1. A nonce is accepted once, also after a restart.
        2. A sequence number that is not above all accepted ones is refused (reordered or replayed requests).
        3. What `accept` returned for is on disk.
    """

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._lock = threading.Lock()
        try:
            os.close(os.open(path, os.O_CREAT | os.O_RDWR, 0o600))
            self._db = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
            self._db.execute("PRAGMA synchronous=FULL")
            self._db.execute(
                "CREATE TABLE IF NOT EXISTS seen (nonce TEXT PRIMARY KEY, expires INTEGER) WITHOUT ROWID"
            )
            self._db.execute(
                "CREATE TABLE IF NOT EXISTS high (one INTEGER PRIMARY KEY CHECK (one = 1), seq INTEGER)"
            )
        except (OSError, sqlite3.Error) as error:
            raise SetupError(
                "Expected a readable table of seen requests in the site's state.",
                hint="Look at the disk; see docs.",
            ) from error

    def accept(self, nonce: str, seq: int, expires: int) -> None:
        """Remember one request.

        Raises:
            MessageError: seen before (code `replay`) or out of order (code `order`). SetupError: the disk.
        """
        try:
            with self._lock, self._transaction():
                (high,) = self._db.execute("SELECT coalesce(max(seq), 0) FROM high").fetchone()
                if self._db.execute("SELECT 1 FROM seen WHERE nonce = ?", (nonce,)).fetchone():
                    raise MessageError(
                        "Expected a request that was not answered before.", code="replay", reason="REPLAY"
                    )
                if seq <= high:
                    raise MessageError(f"Expected seq > {high}, got seq={seq}.", code="order", reason="SEQ")
                self._db.execute("INSERT INTO seen VALUES (?, ?)", (nonce, expires + KEEP_S))
                self._db.execute("INSERT OR REPLACE INTO high VALUES (1, ?)", (seq,))
                self._db.execute("DELETE FROM seen WHERE expires < ?", (int(time.time()),))
        except sqlite3.Error as error:
            raise SetupError(
                "Expected to write the table of seen requests.", hint="Look at the disk."
            ) from error

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[None]:
        self._db.execute("BEGIN IMMEDIATE")
        try:
            yield
            self._db.execute("COMMIT")
        except BaseException:
            if self._db.in_transaction:  # a full disk may have ended it already
                self._db.execute("ROLLBACK")
            raise

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            self._db.close()
