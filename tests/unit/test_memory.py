"""Which requests a site has seen: client/memory.py's guarantees, one by one, on disk."""

from __future__ import annotations

import sqlite3
import threading
import time
from pathlib import Path

import pytest

from cytosae_client.memory import KEEP_S, RequestMemory
from cytosae_core.errors import MessageError, SetupError
from tests.deaths import Disk, Killed

LATER = int(time.time()) + 86_400  # well after the last test of a slow run


def refused(memory: RequestMemory, nonce: str, seq: int) -> tuple[str, str]:
    with pytest.raises(MessageError) as caught:
        memory.accept(nonce, seq, LATER)
    return caught.value.code, caught.value.reason


def test_1_a_nonce_is_accepted_once_also_after_a_restart(tmp_path: Path) -> None:
    memory = RequestMemory(tmp_path / "state" / "seen")
    memory.accept("a", 1, LATER)
    assert refused(memory, "a", 2) == ("replay", "REPLAY")
    memory.close()
    memory = RequestMemory(tmp_path / "state" / "seen")
    assert refused(memory, "a", 2) == ("replay", "REPLAY")
    memory.accept("b", 2, LATER)
    memory.close()


@pytest.mark.parametrize("seq", [0, 4, 5, -1])
def test_2_a_number_not_above_all_accepted_ones_is_refused(tmp_path: Path, seq: int) -> None:
    memory = RequestMemory(tmp_path / "seen")
    memory.accept("a", 5, LATER)
    assert refused(memory, "b", seq) == ("order", "SEQ")
    memory.close()
    memory = RequestMemory(tmp_path / "seen")
    assert refused(memory, "b", seq) == ("order", "SEQ")
    memory.accept("b", 6, LATER)  # the refused one was not remembered, and gaps are allowed
    memory.accept("c", 600, LATER)
    memory.close()


def test_2_a_refused_request_changes_nothing(tmp_path: Path) -> None:
    memory = RequestMemory(tmp_path / "seen")
    memory.accept("a", 5, LATER)
    assert refused(memory, "a", 99)[0] == "replay" and refused(memory, "b", 3)[0] == "order"
    memory.accept("b", 6, LATER)
    memory.close()


@pytest.mark.parametrize("at", [1, 2])
def test_3_what_accept_returned_for_is_on_disk_and_no_more(tmp_path: Path, at: int) -> None:
    """Killed at the first commit, and right after it: before the second."""
    disk = Disk(at)
    with disk.mounted(), pytest.raises(Killed):
        memory = RequestMemory(tmp_path / "seen")
        memory.accept("a", 1, LATER)
        memory.accept("b", 2, LATER)
    memory = RequestMemory(tmp_path / "seen")
    if at == 2:
        assert refused(memory, "a", 9)[0] == "replay"
        memory.accept("b", 2, LATER)
    else:
        memory.accept("a", 1, LATER)
    memory.close()


def test_old_nonces_are_forgotten_when_their_request_is_refused_as_expired_anyway(tmp_path: Path) -> None:
    memory = RequestMemory(tmp_path / "seen")
    gone, kept = int(time.time()) - KEEP_S - 5, int(time.time()) - 5
    memory.accept("gone", 1, gone)
    memory.accept("kept", 2, kept)
    memory.accept("new", 3, LATER)
    with sqlite3.connect(tmp_path / "seen") as database:
        names = {name for (name,) in database.execute("SELECT nonce FROM seen")}
    database.close()
    assert names == {"kept", "new"}
    assert refused(memory, "gone", 3)[0] == "order"  # its number still tells
    memory.close()


def test_of_threads_with_one_nonce_one_is_accepted(tmp_path: Path) -> None:
    memory, outcomes = RequestMemory(tmp_path / "seen"), []

    def work(seq: int) -> None:
        try:
            memory.accept("a", seq, LATER)
            outcomes.append("ok")
        except MessageError as error:
            outcomes.append(error.code)

    threads = [threading.Thread(target=work, args=(seq,)) for seq in range(1, 9)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert outcomes.count("ok") == 1 and outcomes.count("replay") == 7
    memory.close()


def test_a_full_disk_is_a_typed_error_and_remembers_nothing(tmp_path: Path) -> None:
    disk = Disk(how="full")
    with disk.mounted():
        memory = RequestMemory(tmp_path / "seen")
        disk.at = 1
        with pytest.raises(SetupError):
            memory.accept("a", 1, LATER)
        disk.at = 0
        memory.accept("a", 1, LATER)  # there is room again
        assert refused(memory, "a", 2)[0] == "replay"


def test_only_the_owner_may_read_it_and_a_file_that_is_no_table_stops_the_site(tmp_path: Path) -> None:
    RequestMemory(tmp_path / "seen").close()
    assert (tmp_path / "seen").stat().st_mode & 0o077 == 0
    (tmp_path / "other").write_bytes(b"not a database" * 100)
    with pytest.raises(SetupError):
        RequestMemory(tmp_path / "other")
    with pytest.raises(SetupError):
        RequestMemory(tmp_path)
