"""kill -9 at every write, on both sides: nothing leaves unlogged, logs stay consistent, numbers stay the same."""

from __future__ import annotations

import json
import os
import random
import resource
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cytosae_core.audit.recompute import audit_bundle
from cytosae_core.canonical import sha256_hex
from cytosae_core.envelope import body_of
from cytosae_core.errors import CytosaeError, StudyError, VerificationError
from cytosae_core.processes import alive
from cytosae_core.report.build import build_report
from cytosae_server.bundle import bundle_files
from cytosae_server.loop import CANARY_TOLERANCE, StudyRun
from cytosae_server.runfolder import RunFolder
from cytosae_server.study import write_report
from tests.deaths import (
    BEGIN,
    DESCRIBE,
    HELLO,
    ROUND,
    Ask,
    Clinic,
    Direct,
    Disk,
    Killed,
    Office,
    box_sha256,
    receive_frame,
    send_frame,
    site_leaves,
    small_study,
    split_wire,
)
from tests.federation import Federation

ROOT = Path(__file__).resolve().parents[2]
STUDY = small_study()


@pytest.fixture(scope="module")
def begun(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which site and coordinator are ready for round 1."""
    home = tmp_path_factory.mktemp("begun")
    clinic, office = Clinic(home), Office(home)
    for what in (HELLO, BEGIN):
        assert office.ask(what, clinic.session.handle)[0].status == "ok"
    clinic.session.close()
    office.close()
    return home


def copied(source: Path, to: Path) -> Path:
    shutil.rmtree(to, ignore_errors=True)
    return Path(shutil.copytree(source, to))


def steps_of(home: Path, what: Ask) -> tuple[list[str], bytes]:
    """Writes of starting a site and answering once, and what the reply says."""
    office = Office(home)
    with Disk().mounted() as disk:
        clinic = Clinic(home)

        def handle(request: bytes) -> bytes:
            reply = clinic.session.handle(request)
            disk.steps.append("out")
            return reply

        with disk.elsewhere():
            request, sent = office.desk.request("site-0", what)
        wire = handle(request)
        steps = list(disk.steps)
        with disk.elsewhere():
            payload = office.opened(wire, sent)[1]
    office.close()
    return steps, body_of(payload)


def leaves(home: Path) -> tuple[list[dict[str, object]], int]:
    """The site's good egress entries, and how many of its leaves a head on disk covers."""
    statements, covered = site_leaves(home, STUDY, home / "copy")
    good = [s.predicate for s in statements if s.kind == "egress" and s.predicate["status"] == "ok"]
    return good, covered


def killed_at(home: Path, what: Ask, disk: Disk) -> tuple[int, bytes]:
    """Start a site, ask it, and let it die at a write. What the site had witnessed by then."""
    office = Office(home)
    seen = (0, b"")
    with disk.mounted(), pytest.raises(Killed):
        clinic = Clinic(home)
        seen = clinic.witnessed
        with disk.elsewhere():
            request, sent = office.desk.request("site-0", what)
        try:
            clinic.session.handle(request)
        finally:
            with disk.elsewhere():
                office.desk.unanswered(sent, "relay")
    office.close()
    return seen


def recovers(home: Path, what: Ask, seen: tuple[int, bytes], expected: bytes) -> None:
    """Start the site again, ask again: everything holds, and the numbers are those of a site that never died."""
    before = leaves(home)[0]
    clinic, office = Clinic(home), Office(home)
    assert clinic.witnessed[0] >= seen[0]
    again = clinic.witnessed
    reply, payload, wire = office.ask(what, clinic.session.handle)
    assert (reply.status, body_of(payload)) == ("ok", expected)
    assert clinic.witnessed[0] >= again[0]
    entries, covered = leaves(home)
    last = entries[-1]
    assert last["wire"] == {"bytes": len(split_box(wire)), "sha256": box_sha256(wire)}
    assert last["payload"]["sha256"] == sha256_hex(payload) and last["seq"] < covered
    assert len(entries) == len(before) + 1
    earlier = [entry["seq"] for entry in before if entry["job"] == last["job"]]
    assert last["repeats"] == (earlier[-1] if earlier else -1)
    spent = clinic.spent
    assert spent["rounds"] == (what.kind == "round") and spent["messages"] >= len(entries)
    assert last["budget"] == spent
    mirror = office.record._mirrors["site-0"]
    assert (mirror.size, mirror.root) == (clinic.session._record.log.size, clinic.session._record.log.root)
    clinic.session.close()
    office.close()


def split_box(wire: bytes) -> bytes:
    return split_wire(wire)[0]


def ways(steps: list[str]) -> list[tuple[int, str]]:
    """Every place where one write can be cut: before it, and in the middle of what is appended."""
    found = [(index, "before") for index in range(1, len(steps) + 1)]
    return found + [(index + 1, "torn") for index, name in enumerate(steps) if name == "pwrite"]


@pytest.mark.parametrize("what", [HELLO, ROUND, DESCRIBE], ids=lambda what: what.kind)
def test_a_site_that_dies_at_any_write_answers_as_if_it_had_not(
    begun: Path, tmp_path: Path, what: Ask
) -> None:
    steps, expected = steps_of(copied(begun, tmp_path / "plain"), what)
    assert len(steps) > 15 and steps[-5:] == ["fsync", "fsync", "replace checkpoint", "fsync", "out"]
    writes = steps[:-1]
    for at, how in ways(writes):
        home = copied(begun, tmp_path / "home")
        seen = killed_at(home, what, Disk(at, how))
        recovers(home, what, seen, expected)


def test_a_site_that_dies_at_any_write_of_its_first_start(tmp_path: Path) -> None:
    with Disk().mounted() as disk:
        Clinic(tmp_path / "plain")
    assert {"replace study.json", "replace checkpoint", "pwrite", "commit"} <= set(disk.steps)
    for at, how in ways(disk.steps):
        home = tmp_path / f"{at}{how}"
        with Disk(at, how).mounted(), pytest.raises(Killed):
            Clinic(home)
        clinic, office = Clinic(home), Office(home)
        reply, _, wire = office.ask(HELLO, clinic.session.handle)
        assert reply.status == "ok" and [e["wire"]["sha256"] for e in leaves(home)[0]] == [box_sha256(wire)]
        kinds = [s.kind for s in site_leaves(home, STUDY, home / "copy")[0]]
        assert kinds == ["enrol", "policy", "egress"]
        clinic.session.close()
        office.close()


def test_a_site_that_dies_again_and_again_still_spends_one_round(begun: Path, tmp_path: Path) -> None:
    """Death after death in the same request, each at a later write."""
    steps, expected = steps_of(copied(begun, tmp_path / "plain"), ROUND)
    home, seen = copied(begun, tmp_path / "home"), (0, b"")
    for at in range(1, len(steps) - 3):  # the head of the coordinator's log is new to the site only once
        seen = killed_at(home, ROUND, Disk(at))
    recovers(home, ROUND, seen, expected)
    assert len(leaves(home)[0]) > 4


# The coordinator

TWO = small_study(2)


class Consortium:
    """Two sites that live on, and a coordinator that dies. What the sites gave out is kept."""

    def __init__(self, home: Path) -> None:
        self.home, self.federation = home, Federation(home, study=TWO)
        self.given_out: list[bytes] = []
        self.wrap: Callable[[Callable[[bytes], bytes]], Callable[[bytes], bytes]] = lambda handle: handle

    def run(self, disk: Disk) -> bytes:
        """The study to its report, or to the write where the coordinator dies; the last dictionary."""
        handlers = {name: self.wrap(session.handle) for name, session in self.federation.sessions.items()}
        grid = Direct(handlers, disk, given_out=self.given_out)
        with disk.mounted():
            run = StudyRun(self.federation.coordinator, grid, RunFolder(self.home / "run", TWO), {})
            result = run.run()
            report = dict(build_report(TWO, result, None, canary_tolerance=CANARY_TOLERANCE))
            run.close(*write_report(self.home, report))
        return bytes(result.final.tobytes())

    def die(self, at: int, how: str = "before") -> None:
        with pytest.raises(Killed):
            self.run(Disk(at, how))

    def verified(self) -> dict[str, bytes]:
        """The bundle, which an auditor accepts, and which holds every reply that a site gave out."""
        files = bundle_files(self.home)
        verdict = audit_bundle(files, pinned=json.loads(files["keys.json"]))
        assert verdict.exit_code == 0, verdict.to_dict()["first_broken"]
        left: list[str] = []
        for name, session in self.federation.sessions.items():
            left += [
                s.predicate["wire"]["sha256"]
                for s in session._record._statements()
                if s.kind == "egress" and name == s.predicate["party"]
            ]
        assert sorted(left) == sorted(map(box_sha256, self.given_out))
        return files


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> tuple[int, bytes, bytes]:
    """Writes of a coordinator in a study that nothing interrupts, its dictionary and its report."""
    consortium, disk = Consortium(tmp_path_factory.mktemp("plain")), Disk()
    final = consortium.run(disk)
    return len(disk.steps), final, consortium.verified()["report.json"]


def same_report(left: bytes, right: bytes) -> bool:
    """Equal but for what repeats cost: messages, bytes and the sentence about them, and places in the log."""
    found = [json.loads(data) for data in (left, right)]
    for report in found:
        report["findings"] = [text for text in report["findings"] if "MB on average" not in text]
        for site in report["sites"].values():
            for name in ("bytes_out", "messages_out"):
                site.pop(name)
        for part in report["rounds"]:
            part.pop("bytes", None)
        report.pop("egress")
        report.pop("integrity")
        for part in report["headlines"]:
            part.pop("leaves")
    return bool(found[0] == found[1])


@pytest.mark.parametrize("share", [0.05, 0.2, 0.45, 0.6, 0.8, 0.97])
def test_a_coordinator_that_dies_once_resumes_to_the_same_bytes(
    tmp_path: Path, plain: tuple[int, bytes, bytes], share: float
) -> None:
    consortium = Consortium(tmp_path)
    consortium.die(int(plain[0] * share))
    assert consortium.run(Disk()) == plain[1]
    assert same_report(consortium.verified()["report.json"], plain[2])


def test_a_coordinator_that_dies_at_every_write_in_turn_resumes_to_the_same_bytes(
    tmp_path: Path, plain: tuple[int, bytes, bytes]
) -> None:
    """The first life ends at its first write, the second at its third, and so on until one lives to the report."""
    consortium, deaths = Consortium(tmp_path), 0
    while True:
        disk = Disk(2 * deaths + 1, "torn" if deaths % 2 else "before")
        try:
            final = consortium.run(disk)
            break
        except Killed:
            deaths += 1
    assert deaths > 25 and final == plain[1]
    assert same_report(consortium.verified()["report.json"], plain[2])


def last_words(consortium: Consortium, site: str, kind: bytes) -> None:
    """The coordinator dies when this site has just answered this step, before anything of the answer is on disk."""

    def wrap(handle: Callable[[bytes], bytes]) -> Callable[[bytes], bytes]:
        def wrapped(request: bytes) -> bytes:
            reply = handle(request)
            if b'"kind":"%s"' % kind in request and b'"site":"%s"' % site.encode() in request:
                consortium.given_out.append(reply)
                raise Killed
            return reply

        return wrapped

    consortium.wrap = wrap
    with pytest.raises(Killed):
        consortium.run(Disk())
    consortium.wrap = lambda handle: handle


def test_a_refusal_that_a_dead_coordinator_missed_is_explained(tmp_path: Path) -> None:
    consortium = Consortium(tmp_path)
    stopped = consortium.federation.sessions["site-1"].state / "stopped"
    stopped.touch()
    last_words(consortium, "site-1", b"hello")
    stopped.unlink()
    consortium.run(Disk())
    consortium.verified()


def test_an_answer_that_a_dead_coordinator_missed_of_a_site_that_then_fails_is_explained(
    tmp_path: Path,
) -> None:
    consortium = Consortium(tmp_path)
    last_words(consortium, "site-1", b"score")
    (consortium.federation.sessions["site-1"].state / "stopped").touch()
    with pytest.raises(StudyError, match="site-1"):
        consortium.run(Disk())  # the quorum is both sites: the officer clears, and the study goes on
    (consortium.federation.sessions["site-1"].state / "stopped").unlink()
    consortium.run(Disk())
    consortium.verified()


# Disks that are full, torn or rolled back


def test_a_full_disk_at_any_write_lets_nothing_out_and_nothing_is_lost(begun: Path, tmp_path: Path) -> None:
    steps, expected = steps_of(copied(begun, tmp_path / "plain"), ROUND)
    start = steps.index("commit") + 1  # the ledger's; after it the request begins
    assert steps[start] == "commit"
    for at in range(1, len(steps) - start):
        home = copied(begun, tmp_path / "home")
        office, disk = Office(home), Disk(how="full")
        with disk.mounted():
            clinic = Clinic(home)
            before = len(disk.steps)
            assert before == start
            with disk.elsewhere():
                request, sent = office.desk.request("site-0", ROUND)
            disk.at = before + at
            assert clinic.session.handle(request) == b"", steps[start + at - 1]
            assert {event.code for event in clinic.logs} & {"failed", "refused"}
            disk.at = 0
            with disk.elsewhere():
                office.desk.unanswered(sent, "relay")
                count = len(leaves(home)[0])
                request, sent = office.desk.request("site-0", ROUND)
            wire = clinic.session.handle(request)
            with disk.elsewhere():
                reply, payload = office.opened(wire, sent)
                assert (reply.status, body_of(payload)) == ("ok", expected), steps[start + at - 1]
                assert len(leaves(home)[0]) == count + 1 and clinic.spent["rounds"] == 1
        office.close()


def test_a_full_disk_stops_a_start_and_breaks_nothing(begun: Path, tmp_path: Path) -> None:
    home = copied(begun, tmp_path / "home")
    for at in range(1, 10):
        with Disk(at, "full").mounted() as disk:
            with pytest.raises((CytosaeError, OSError)):
                Clinic(home)
            assert len(disk.steps) >= at
    Clinic(home).session.close()


def journal(home: Path) -> Path:
    return home / "site-0" / "state" / STUDY.digest[:16] / "log" / "journal"


def test_a_torn_tail_is_cut_and_the_study_goes_on(begun: Path, tmp_path: Path) -> None:
    whole = journal(begun).read_bytes()
    for torn in (b"\0", b"\0\0\2\0{", whole[:300], whole[:-1][: len(whole) // 3]):
        home = copied(begun, tmp_path / "home")
        with journal(home).open("ab") as stream:
            stream.write(torn[: len(torn) if len(torn) < 9 else 100])
        clinic, office = Clinic(home), Office(home)
        assert journal(home).read_bytes() == whole
        assert office.ask(ROUND, clinic.session.handle)[0].status == "ok"
        clinic.session.close()
        office.close()


@pytest.mark.parametrize("keep", [0.0, 0.3, 0.9])
def test_a_journal_below_its_checkpoint_is_a_rollback(begun: Path, tmp_path: Path, keep: float) -> None:
    home = copied(begun, tmp_path / "home")
    data = journal(home).read_bytes()
    journal(home).write_bytes(data[: int(len(data) * keep)])
    for _ in range(2):  # and stays one: nothing repairs it
        with pytest.raises(VerificationError) as caught:
            Clinic(home)
        assert (caught.value.code, caught.value.reason) == ("rollback", "ROLLBACK")


# The real thing


@pytest.fixture
def agents(begun: Path, tmp_path: Path) -> Iterator[Path]:
    """A process that forks a site agent for every connection."""
    home = copied(begun, tmp_path / "home")
    command = [sys.executable, "-m", "tests.deaths", str(home)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        assert process.stdout is not None and process.stdout.readline() == b"ready\n"
        yield home
        process.kill()


class Agent:
    """One life of the site's agent."""

    def __init__(self, home: Path) -> None:
        self.connection = socket.socket(socket.AF_UNIX)
        self.connection.connect(str(home / "socket"))
        self.pid = int(receive_frame(self.connection) or b"0")

    def handle(self, request: bytes) -> bytes:
        send_frame(self.connection, request)
        return receive_frame(self.connection) or b""

    def end(self) -> None:
        """Hang up, and wait until the process and its locks are gone."""
        self.connection.close()
        limit = time.monotonic() + 60
        while alive(self.pid):
            assert time.monotonic() < limit, "Expected the agent to end when its connection does."
            time.sleep(0.01)

    def killed_after(self, seconds: float, request: bytes) -> bytes:
        """Give it a request and kill it later; the reply, if all of it had left by then."""
        send_frame(self.connection, request)
        time.sleep(seconds)
        os.kill(self.pid, signal.SIGKILL)
        with self.connection:
            return receive_frame(self.connection) or b""


def test_kill_9_at_random_moments(agents: Path) -> None:
    office, draw = Office(agents), random.Random(20261123)
    first = Agent(agents)
    office.ask(ROUND, first.handle)
    started = time.monotonic()
    _, payload, wire = office.ask(ROUND, first.handle)
    usual, expected, given_out = time.monotonic() - started, body_of(payload), [wire]
    first.connection.close()
    answered = 0
    for _ in range(20):
        request, sent = office.desk.request("site-0", ROUND)
        wire = Agent(agents).killed_after(draw.uniform(0, 1.3 * usual), request)
        if not wire:
            office.desk.unanswered(sent, "relay")
            continue
        answered += 1
        given_out.append(wire)
        reply, payload = office.opened(wire, sent)
        assert (reply.status, body_of(payload)) == ("ok", expected)
    assert answered < 20
    last = Agent(agents)
    reply, payload, wire = office.ask(ROUND, last.handle)
    assert body_of(payload) == expected
    given_out.append(wire)
    last.end()
    consistent(agents, office, given_out)


def consistent(home: Path, office: Office, given_out: list[bytes]) -> None:
    """Whatever left is in the log, under a head, and paid for once; the coordinator's copy is the site's log."""
    entries, covered = leaves(home)
    logged = [entry["wire"]["sha256"] for entry in entries if entry["seq"] < covered]
    assert {box_sha256(wire) for wire in given_out} <= set(logged) and len(set(logged)) == len(entries)
    rounds = [entry for entry in entries if entry["kind"] == "round"]
    assert [entry["repeats"] for entry in rounds] == [-1, *(entry["seq"] for entry in rounds[:-1])]
    assert {entry["budget"]["rounds"] for entry in rounds} == {1}
    clinic = Clinic(home)
    assert clinic.spent["rounds"] == 1 and clinic.spent["messages"] >= len(entries)
    assert office.record._mirrors["site-0"].root == clinic.session._record.log.root
    assert clinic.witnessed[0] <= office.record.log.size
    clinic.session.close()
    office.close()


def test_a_file_limit_of_the_kernel_lets_nothing_out(agents: Path) -> None:
    office, agent = Office(agents), Agent(agents)
    office.ask(ROUND, agent.handle)
    count, size = len(leaves(agents)[0]), journal(agents).stat().st_size
    resource.prlimit(agent.pid, resource.RLIMIT_FSIZE, (size + 100, resource.RLIM_INFINITY))
    for what in (ROUND, HELLO):
        request, sent = office.desk.request("site-0", what)
        assert agent.handle(request) == b""
        office.desk.unanswered(sent, "relay")
        assert len(leaves(agents)[0]) == count and journal(agents).stat().st_size == size
    resource.prlimit(agent.pid, resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    reply, _, wire = office.ask(ROUND, agent.handle)
    assert reply.status == "ok" and leaves(agents)[0][-1]["wire"]["sha256"] == box_sha256(wire)
    agent.connection.close()
    office.close()
