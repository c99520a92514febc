"""The guarantees of `RequestMemory`, one test per line of its docstring."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from cytosae_client.memory import RequestMemory
from cytosae_core.errors import MessageError, SetupError

SOON = 1 << 33


def refused(memory: RequestMemory, nonce: str, seq: int) -> str:
    with pytest.raises(MessageError) as found:
        memory.accept(nonce, seq, SOON)
    return found.value.code


def test_1_a_nonce_is_accepted_once_also_after_a_restart(tmp_path: Path) -> None:
    with closing(RequestMemory(tmp_path / "seen")) as memory:
        memory.accept("a", 1, SOON)
        assert refused(memory, "a", 2) == "replay"
    with closing(RequestMemory(tmp_path / "seen")) as memory:
        assert refused(memory, "a", 3) == "replay"
        memory.accept("b", 3, SOON)


@pytest.mark.parametrize("seq", [0, 4, 5])
def test_2_what_is_not_above_all_accepted_is_out_of_order(tmp_path: Path, seq: int) -> None:
    with closing(RequestMemory(tmp_path / "seen")) as memory:
        memory.accept("a", 5, SOON)
        assert refused(memory, "b", seq) == "order"
        memory.accept("b", 6, SOON)  # what was refused is not remembered


def test_3_what_was_accepted_is_on_disk(tmp_path: Path) -> None:
    with closing(RequestMemory(tmp_path / "seen")) as memory:
        memory.accept("a", 7, SOON)
        with closing(sqlite3.connect(tmp_path / "seen")) as other:
            assert other.execute("SELECT nonce FROM seen").fetchall() == [("a",)]
            assert other.execute("SELECT seq FROM high").fetchall() == [(7,)]


def test_expired_nonces_are_forgotten_and_their_numbers_are_not(tmp_path: Path) -> None:
    with closing(RequestMemory(tmp_path / "seen")) as memory:
        memory.accept("old", 1, 10)
        memory.accept("new", 2, SOON)
        with closing(sqlite3.connect(tmp_path / "seen")) as other:
            assert other.execute("SELECT nonce FROM seen").fetchall() == [("new",)]
        assert refused(memory, "old", 1) == "order"


def test_only_the_owner_reads_it_and_a_file_that_is_no_table_is_named(tmp_path: Path) -> None:
    with closing(RequestMemory(tmp_path / "seen")):
        assert (tmp_path / "seen").stat().st_mode & 0o077 == 0
    (tmp_path / "other").write_bytes(b"no database" * 100)
    with pytest.raises(SetupError):
        RequestMemory(tmp_path / "other")
