"""kill -9 at every write step, on both sides: nothing leaves unlogged, logs stay consistent, numbers stay the same."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from cytosae_core.audit.recompute import audit_bundle
from cytosae_core.canonical import sha256_hex
from cytosae_core.envelope import body_of
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
    site_leaves,
    small_study,
    split_wire,
)
from tests.federation import Federation

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
        handlers = {
            name: self.wrap(session.handle) for name, session in self.federation.sessions.items()
        }
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
    """Equal but for what repeats cost: messages and bytes."""
    found = [json.loads(data) for data in (left, right)]
    for report in found:
        for site in report["sites"].values():
            for name in ("bytes_out", "messages_out"):
                site.pop(name)
        for part in report["rounds"]:
            part.pop("bytes", None)
        report.pop("egress")
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
    """The first life ends at its first write, the second at its second, and so on until one lives to the report."""
    consortium, deaths = Consortium(tmp_path), 0
    while True:
        disk = Disk(deaths + 1, "torn" if deaths % 2 else "before")
        try:
            final = consortium.run(disk)
            break
        except Killed:
            deaths += 1
    assert deaths > 40 and final == plain[1]
    assert same_report(consortium.verified()["report.json"], plain[2])
