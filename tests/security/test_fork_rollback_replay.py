"""Forks, rollbacks and replays: each is caught by the site, by the coordinator and by the auditor, each alone.

What nobody can see alone: a site that was only ever shown one branch of a forked log takes it for the log. Two sites
that compare heads, or an auditor who has both, see it.
"""

from __future__ import annotations

import base64
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from cytosae_client.session import Session
from cytosae_core.audit.log import Log, tile_files
from cytosae_core.audit.log.signing import sign_checkpoint
from cytosae_core.audit.note import origin_of, vkey
from cytosae_core.audit.recompute import audit_bundle
from cytosae_core.audit.statement import COORDINATOR, read_leaf
from cytosae_core.canonical import canonical_json, sha256_hex
from cytosae_core.config import RoundsConfig
from cytosae_core.envelope import REPLY, REQUEST, pack, unpack
from cytosae_core.errors import CytosaeError, VerificationError
from cytosae_core.keys import SigningKey
from cytosae_core.lineage import dictionary_digest, job_of
from cytosae_core.report.build import build_report
from cytosae_core.sealed import REPLY_LABEL, split_wire
from cytosae_core.tensors import pack_tensors
from cytosae_server.bundle import bundle_files
from cytosae_server.desk import Ask, Sent
from cytosae_server.loop import CANARY_TOLERANCE, StudyRun
from cytosae_server.runfolder import RunFolder
from cytosae_server.study import write_report
from tests.bundles import Files, relisted
from tests.deaths import (
    BEGIN,
    DESCRIBE,
    HELLO,
    ROUND,
    SITE,
    Clinic,
    Direct,
    Disk,
    Office,
    rows,
    site_leaves,
    small_study,
)
from tests.federation import Federation

STUDY = small_study()
STATE = f"{SITE}/state/{STUDY.digest[:16]}"
MOMENTS = Ask("moments", 0, {}, {})


class Pair:
    """One site and its coordinator, either of which may be taken down and brought back with an older folder."""

    def __init__(self, home: Path) -> None:
        self.home, self.clinic, self.office = home, Clinic(home), Office(home)

    def ask(self, *questions: Ask) -> None:
        for what in questions:
            assert self.office.ask(what, self.clinic.session.handle)[0].status == "ok"

    def said(self, what: Ask) -> tuple[str, str]:
        """Status and code of a reply, read with its key only: the coordinator may not accept what is beside it."""
        request, sent = self.office.desk.request(SITE, what)
        return said(self.clinic.session, self.clinic.session.handle(request), sent)

    def restart_site(self) -> None:
        self.clinic.session.close()
        self.clinic = Clinic(self.home)

    def stop(self) -> None:
        self.clinic.session.close()
        self.office.close()

    def site_kinds(self) -> list[str]:
        return [item.kind for item in site_leaves(self.home, STUDY, self.home / "copy")[0]]

    def office_leaves(self) -> list[dict[str, Any]]:
        """The coordinator's entries, with their kind."""
        log, key = self.office.record.log, self.office.key.public_hex
        items = [read_leaf(leaf, {key[:16]: key}) for leaf in log.leaves(0, log.size)]
        return [{**item.predicate, "leaf": item.kind} for item in items]


def said(session: Session, wire: bytes, sent: Sent) -> tuple[str, str]:
    payload = sent.reply_key.open_box(split_wire(wire)[0], REPLY_LABEL, sent.request_sha256)
    header = unpack(payload, REPLY, session.site.key.public_hex).header
    return header["status"], header["code"]


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[Pair]:
    made = Pair(tmp_path)
    made.ask(HELLO)
    yield made
    made.stop()


def keep(pair: Pair, folder: str) -> None:
    """A copy of a folder of this home as it is now."""
    shutil.copytree(pair.home / folder, pair.home / "older" / folder)


def restore(pair: Pair, folder: str) -> None:
    shutil.rmtree(pair.home / folder)
    shutil.copytree(pair.home / "older" / folder, pair.home / folder)


# The site alone


def test_site_catches_a_coordinator_that_rolled_its_log_back(pair: Pair) -> None:
    keep(pair, "desk/log")
    pair.ask(BEGIN, ROUND, DESCRIBE)
    pair.office.close()
    restore(pair, "desk/log")
    (pair.home / "desk" / "sent" / f"{SITE}.json").write_bytes(canonical_json({"seq": 99, "heads": []}))
    pair.office = Office(pair.home)
    assert pair.said(MOMENTS) == ("refused", "rollback")
    assert pair.site_kinds()[-3:] == ["incident", "refused", "egress"]
    assert [event.code for event in pair.clinic.logs][-2:] == ["refused", "incident"]
    assert pair.said(MOMENTS) == ("refused", "rollback")  # as long as it lasts


def test_site_catches_a_coordinator_whose_whole_folder_is_older(pair: Pair) -> None:
    """A restored backup: first the order of its requests is wrong, then its log. It is never answered."""
    keep(pair, "desk")
    pair.ask(BEGIN, ROUND, DESCRIBE)
    pair.office.close()
    restore(pair, "desk")
    pair.office = Office(pair.home)
    codes = [pair.said(MOMENTS) for _ in range(6)]
    assert codes == [("refused", "order")] * 3 + [("refused", "rollback")] * 3


def test_site_catches_a_coordinator_that_forked_its_log(pair: Pair) -> None:
    keep(pair, "desk")
    pair.ask(BEGIN, ROUND)
    shown, pair.office = pair.office, Office(pair.home, folder="older/desk")
    pair.office.record._sent[SITE]["seq"] = 99
    for _ in range(9):  # longer than what the site saw, so that it is not the size that tells
        pair.office.record.log.append("incident", {"code": "order", "evidence_sha256": "0" * 64})
    assert pair.said(DESCRIBE) == ("refused", "fork")
    assert "incident" in pair.site_kinds()
    pair.office.close()
    pair.office = shown
    pair.restart_site()  # it remembers over a restart
    shown.record._sent[SITE]["seq"] = 199
    assert pair.said(DESCRIBE) == ("ok", "")


def test_site_catches_a_fork_of_the_same_size(pair: Pair) -> None:
    keep(pair, "desk")
    pair.ask(MOMENTS)
    shown, pair.office = pair.office, Office(pair.home, folder="older/desk")
    pair.office.record._sent[SITE]["seq"] = 99
    assert pair.said(BEGIN) == ("refused", "fork")
    pair.office.close()
    pair.office = shown


def ask_both(federation: Federation, office: Office, what: Ask) -> None:
    for site, session in federation.sessions.items():
        assert office.ask(what, session.handle, site)[0].status == "ok"


def test_of_two_sites_that_are_shown_forks_each_refuses_the_other_s(tmp_path: Path) -> None:
    federation = Federation(tmp_path, study=small_study(2))
    office = Office(tmp_path, federation.study)
    ask_both(federation, office, HELLO)
    office.close()
    shutil.copytree(tmp_path / "desk", tmp_path / "fork")
    one, two = Office(tmp_path, federation.study), Office(tmp_path, federation.study, "fork")
    assert one.ask(BEGIN, federation.sessions["site-0"].handle)[0].status == "ok"
    assert two.ask(DESCRIBE, federation.sessions["site-1"].handle, "site-1")[0].status == "ok"  # cannot know
    for office, site, what in ((two, "site-0", DESCRIBE), (one, "site-1", BEGIN)):
        office.record._sent[site]["seq"] = 99
        request, sent = office.desk.request(site, what)
        session = federation.sessions[site]
        assert said(session, session.handle(request), sent) == ("refused", "fork")
        office.close()


def test_site_catches_a_replayed_request_also_after_a_restart(pair: Pair) -> None:
    request, sent = pair.office.desk.request(SITE, HELLO)
    assert said(pair.clinic.session, pair.clinic.session.handle(request), sent) == ("ok", "")
    for _ in range(2):
        assert said(pair.clinic.session, pair.clinic.session.handle(request), sent) == ("refused", "replay")
        pair.restart_site()
    kinds = pair.site_kinds()
    assert kinds.count("refused") == 2 and kinds.count("egress") == 4  # refusals leave, and are logged


# The coordinator alone


def rejected(pair: Pair, what: Ask, handle: Callable[[bytes], bytes]) -> CytosaeError:
    """Ask, and see the coordinator refuse the reply: a fault is logged, no receipt, no file of it is kept."""
    before, files = len(pair.office_leaves()), sorted((pair.home / "desk" / "payloads").iterdir())
    with pytest.raises(CytosaeError) as caught:
        pair.office.ask(what, handle)
    added = [leaf for leaf in pair.office_leaves()[before:] if leaf["leaf"] != "release"]
    assert added[-1]["leaf"] == "fault" and added[-1]["code"] == caught.value.code
    assert "ingress" not in [leaf["leaf"] for leaf in added]
    assert sorted((pair.home / "desk" / "payloads").iterdir()) == files
    if caught.value.code in ("rollback", "fork"):
        assert [leaf["code"] for leaf in added if leaf["leaf"] == "incident"] == [caught.value.code]
    return caught.value


@pytest.mark.parametrize("whole", [False, True])
def test_coordinator_catches_a_site_that_rolled_its_log_back(pair: Pair, whole: bool) -> None:
    """`whole`: all of the site's state is older, and not its log only."""
    part = STATE if whole else f"{STATE}/log"
    pair.clinic.session.close()
    keep(pair, part)
    pair.clinic = Clinic(pair.home)
    pair.ask(BEGIN, ROUND, DESCRIBE)
    pair.clinic.session.close()
    restore(pair, part)
    pair.clinic = Clinic(pair.home)
    # A site without its witness state cannot follow, and refuses: it sends all of its log, with entries that differ.
    for _ in range(2):
        assert rejected(pair, MOMENTS, pair.clinic.session.handle).code == ("fork" if whole else "rollback")


@pytest.mark.parametrize("more", [0, 1, 2, 3, 4, 5, 6, 12])
def test_coordinator_catches_a_site_that_forked_its_log(pair: Pair, more: int) -> None:
    """Another history of `more` entries on its older log: shorter than, as long as, longer than the one seen."""
    pair.clinic.session.close()
    keep(pair, f"{STATE}/log")
    pair.clinic = Clinic(pair.home)
    pair.ask(BEGIN, DESCRIBE)
    pair.clinic.session.close()
    restore(pair, f"{STATE}/log")
    pair.clinic = Clinic(pair.home)
    for _ in range(more):
        pair.clinic.session._record.withdrawn("patient", 0)
    error = rejected(pair, MOMENTS, pair.clinic.session.handle)
    assert error.code in ("rollback", "fork", "verification")
    assert "incident" in [leaf["leaf"] for leaf in pair.office_leaves()]


def test_coordinator_catches_an_old_reply_to_a_new_request(pair: Pair) -> None:
    _, _, old = pair.office.ask(HELLO, pair.clinic.session.handle)
    for handle in (lambda request: old, lambda request: (pair.clinic.session.handle(request), old)[1]):
        error = rejected(pair, HELLO, handle)
        assert (type(error), error.reason) == (VerificationError, "SEAL")


def test_coordinator_refuses_a_reply_that_the_site_did_not_log(pair: Pair) -> None:
    record = pair.clinic.session._record
    pair.ask(BEGIN)
    before = record.section()
    record.section = lambda: before  # type: ignore[method-assign]
    error = rejected(pair, ROUND, pair.clinic.session.handle)
    assert (type(error), error.reason) == (VerificationError, "UNLOGGED")


@pytest.mark.parametrize(("box_more", "payload_more"), [(b"x", b""), (b"", b"x")])
def test_coordinator_refuses_a_reply_that_is_logged_as_another(
    pair: Pair, box_more: bytes, payload_more: bytes
) -> None:
    """The entry is there, under a head, but names other bytes."""
    record = pair.clinic.session._record
    pair.ask(BEGIN)
    egress = record.egress
    record.egress = lambda outgoing, job, payload, box, spent: egress(  # type: ignore[method-assign]
        outgoing, job, payload + payload_more, box + box_more, spent
    )
    assert rejected(pair, ROUND, pair.clinic.session.handle).reason == "UNLOGGED"


# Split models, and requests whose log part is not what it should be


def altered(
    pair: Pair, what: Ask, change: Callable[[dict[str, Any]], dict[str, Any]], body: bytes | None = None
) -> tuple[str, str, str]:
    """Ask with a header that was changed before signing: status, code, and the reason in the site's own log."""
    request, sent = pair.office.desk.request(SITE, what)
    envelope = unpack(request, REQUEST, pair.office.key.public_hex)
    header, body = {**envelope.header, **change(envelope.header)}, envelope.body if body is None else body
    changed = pack(header, body, REQUEST, pair.office.key)
    wire = pair.clinic.session.handle(changed)
    payload = sent.reply_key.open_box(split_wire(wire)[0], REPLY_LABEL, sha256_hex(changed))
    answer = unpack(payload, REPLY, pair.clinic.site.key.public_hex).header
    why = [event for event in pair.clinic.logs if event.code == "refused"]
    return answer["status"], answer["code"], str(why[-1].values["reason"]) if why else ""


def test_a_second_model_for_one_step_needs_a_second_entry(pair: Pair) -> None:
    pair.ask(BEGIN)
    assert pair.said(Ask("begin", 0, rows(1), {})) == ("refused", "base")  # the row set is fixed
    released = [
        leaf for leaf in pair.office_leaves() if leaf["leaf"] == "release" and leaf["kind"] == "begin"
    ]
    assert len(released) == 2 and {leaf["site"] for leaf in released} == {"*"}
    assert len({leaf["body_sha256"] for leaf in released}) == 2


def test_a_body_that_is_not_the_logged_one_is_refused(pair: Pair) -> None:
    pair.ask(BEGIN)
    other = rows(1)
    body = pack_tensors(other)

    def change(header: dict[str, Any]) -> dict[str, Any]:
        job = job_of("round", 1, sha256_hex(body), header["params"])
        return {"base": dictionary_digest(other), "job": job}

    assert altered(pair, ROUND, change, body) == ("refused", "verification", "LINEAGE")
    assert pair.said(ROUND) == ("ok", "")


@pytest.mark.parametrize("what", [HELLO, ROUND], ids=lambda what: what.kind)
def test_an_entry_of_another_step_or_round_is_refused(pair: Pair, what: Ask) -> None:
    pair.ask(BEGIN)
    request, _ = pair.office.desk.request(SITE, Ask("describe", 3, rows(), {"full": True}))
    log = unpack(request, REQUEST, pair.office.key.public_hex).header["log"]
    assert altered(pair, what, lambda header: {"log": log}) == ("refused", "verification", "LINEAGE")


def test_a_question_for_one_site_is_refused_by_the_others(tmp_path: Path) -> None:
    """`score` has a body of its own for every site: its entry names the site."""
    study = small_study(2)
    federation, office = Federation(tmp_path, study=study), Office(tmp_path, study)
    ask_both(federation, office, HELLO)
    request, _ = office.desk.request("site-0", Ask("score", 0, rows(), {"peers": ["site-1"]}))
    envelope = unpack(request, REQUEST, office.key.public_hex)
    assert federation.sessions["site-1"].handle(request)
    assert federation.logs[-1].values["reason"] == "BIND"
    renamed = pack({**envelope.header, "site": "site-1", "seq": 50}, envelope.body, REQUEST, office.key)
    assert federation.sessions["site-1"].handle(renamed)
    last = [event.values for event in federation.logs if event.code == "refused"][-1]
    assert (last["code"], last["reason"]) == ("verification", "LINEAGE")
    office.close()


def foreign(pair: Pair, header: dict[str, Any], key: SigningKey) -> dict[str, Any]:
    """The log part under a newest checkpoint that `key` signs."""
    log, origin = pair.office.record.log, pair.office.record.origin
    note = sign_checkpoint(origin, log.size, log.root, key).decode()
    proof = [item.hex() for item in log.inclusion(header["log"]["index"], log.size)]
    return {**header["log"], "checkpoint": note, "inclusion": proof}


def test_a_checkpoint_of_another_key_is_refused(pair: Pair) -> None:
    def change(header: dict[str, Any]) -> dict[str, Any]:
        return {"log": foreign(pair, header, SigningKey.generate())}

    assert altered(pair, MOMENTS, change)[:2] == ("refused", "verification")
    good = SigningKey.load_or_create(pair.home / "desk" / "keys" / "log.key")
    assert altered(pair, MOMENTS, lambda header: {"log": foreign(pair, header, good)})[:2] == ("ok", "")


@pytest.mark.parametrize("role", ["log", "cosign"])
def test_changed_log_keys_of_the_coordinator_are_refused(pair: Pair, role: str) -> None:
    key = SigningKey.generate()

    def change(header: dict[str, Any]) -> dict[str, Any]:
        log = foreign(pair, header, key) if role == "log" else header["log"]
        name = "vkey" if role == "log" else "cosign"
        return {"log": {**log, name: vkey(pair.office.record.origin, role, key.public_hex)}}

    assert altered(pair, MOMENTS, change) == ("refused", "verification", "KEYS")
    pair.restart_site()
    assert altered(pair, MOMENTS, change) == ("refused", "verification", "KEYS")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("inclusion", ["00" * 32] * 64),
        ("inclusion", ["0g"]),
        ("inclusion", "00"),
        ("consistency", []),
        ("index", -1),
        ("index", True),
        ("leaf", "?"),
        ("site_size", -1),
        ("cosignature", "nonsense"),
        ("checkpoint", ""),
    ],
)
def test_a_malformed_log_part_is_refused(pair: Pair, name: str, value: Any) -> None:
    pair.ask(BEGIN)
    status, code, _ = altered(pair, MOMENTS, lambda header: {"log": {**header["log"], name: value}})
    assert status == "refused" and code in ("message", "verification", "fork")
    assert pair.said(MOMENTS) == ("ok", "")


# The auditor alone


THREE = small_study(3, rounds=RoundsConfig(quorum=2, deadline_s=60.0, retries=0))
Hook = Callable[[StudyRun, str, dict[str, Any]], None]


class Halted(Exception):
    """The coordinator stops here for a while."""


def study_run(home: Path, federation: Federation, sites: tuple[str, ...], hook: Hook) -> None:
    """The study to its report, or until the hook raises."""
    grid = Direct({site: federation.sessions[site].handle for site in sites}, Disk())
    running: list[StudyRun] = []
    run = StudyRun(
        federation.coordinator, grid, RunFolder(home / "run", THREE), {},
        lambda event, details: hook(running[0], event, dict(details)),
    )  # fmt: skip
    running.append(run)
    try:
        result = run.run()
        report = dict(build_report(THREE, result, None, canary_tolerance=CANARY_TOLERANCE))
        run.close(*write_report(home, report))
    finally:
        run.record.close()


def halt_at(step: str) -> Hook:
    def hook(run: StudyRun, event: str, details: dict[str, Any]) -> None:
        if event == "step" and details["step"] == step:
            raise Halted

    return hook


def on(run: StudyRun, event: str, details: dict[str, Any]) -> None:
    """Nothing happens."""


@pytest.fixture(scope="module")
def honest(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Files]:
    """A copy of a study's home as it was before the tables, and the study's bundle."""
    home = tmp_path_factory.mktemp("auditor") / "now"
    federation = Federation(home, study=THREE)
    with pytest.raises(Halted):
        study_run(home, federation, THREE.sites, halt_at("describe-final"))
    earlier = Path(shutil.copytree(home, home.parent / "earlier"))
    study_run(home, federation, THREE.sites, on)
    files = bundle_files(home)
    assert audited(files).exit_code == 0
    return earlier, files


def audited(files: Files) -> Any:
    return audit_bundle(files, pinned=json.loads(files["keys.json"]))


def failed(files: Files) -> dict[str, str]:
    """Checks that fail, with their link."""
    return {check.name: check.link for check in audited(files).checks if check.state == "FAIL"}


def other_log(files: Files, party: str, log: Log, note: bytes = b"") -> Files:
    """A bundle whose log of one party is another, with the manifest to it."""
    rest = {path: data for path, data in files.items() if not path.startswith(f"logs/{party}/")}
    tiles = tile_files(log, note or log.cosigned_checkpoint() or log.checkpoint())
    tiled = {f"logs/{party}/{path}": data for path, data in tiles.items()}
    return relisted({**rest, **tiled})


def open_copy(home: Path, to: Path, party: str) -> Log:
    """A copy of a party's log that the party may go on writing."""
    site = party != COORDINATOR
    folder = home / party / "state" / THREE.digest[:16] if site else home / "run"
    shutil.copytree(folder / "log", to)
    return Log.open(
        to, origin=origin_of(THREE.digest, party), party=party, study=THREE.name, protocol=THREE.digest,
        signing=SigningKey.load_or_create(home / party / "site.key" if site else home / "study.key"),
        log_key=SigningKey.load_or_create(
            home / party / "state" / "log.key" if site else home / "run" / "keys" / "log.key"
        ),
    )  # fmt: skip


def test_auditor_finds_a_coordinator_that_rolled_back(honest: tuple[Path, Files], tmp_path: Path) -> None:
    """Its older log, and the report logged on it once more."""
    earlier, files = honest
    with open_copy(earlier, tmp_path / "log", COORDINATOR) as log:
        heads = {site: {"size": 1, "root": "0" * 64} for site in THREE.sites}
        digests = [("report", sha256_hex(files[f"report.{kind}"])) for kind in ("json", "html")]
        log.append("report", {"report_sha256": digests[0][1], "heads": heads}, digests)
        found = failed(other_log(files, COORDINATOR, log, log.checkpoint()))
    assert "cosignatures" in found and found["heads"].startswith("site-0 leaf")


def test_auditor_finds_a_site_that_rolled_back(honest: tuple[Path, Files], tmp_path: Path) -> None:
    earlier, files = honest
    with open_copy(earlier, tmp_path / "log", "site-1") as log:
        found = failed(other_log(files, "site-1", log))
    assert found["heads"].startswith("coordinator leaf") and "messages of site-1" in found
    assert "messages of site-0" not in found


def test_auditor_finds_a_site_that_forked(honest: tuple[Path, Files], tmp_path: Path) -> None:
    """Another history from the middle of the study on, longer than the true one."""
    earlier, files = honest
    with open_copy(earlier, tmp_path / "log", "site-1") as log:
        for _ in range(40):
            log.append("withdraw", {"scope": "patient", "payloads_deleted": 0})
        found = failed(other_log(files, "site-1", log))
    assert found["heads"].startswith("coordinator leaf")


def test_auditor_finds_a_coordinator_that_forked(tmp_path: Path) -> None:
    """Site 2 is shown another log than sites 0 and 1, which go on without it. The bundle alone holds; with site 2's
    own log it does not."""
    federation = Federation(tmp_path, study=THREE)
    with pytest.raises(Halted):
        study_run(tmp_path, federation, THREE.sites, halt_at("moments"))
    shutil.copytree(tmp_path / "run", tmp_path / "fork")
    study_run(tmp_path, federation, ("site-0", "site-1"), on)
    files = bundle_files(tmp_path)
    assert audited(files).exit_code == 0
    other, session = Office(tmp_path, THREE, "fork"), federation.sessions["site-2"]
    for what in (BEGIN, DESCRIBE, HELLO):
        assert other.ask(what, session.handle, "site-2")[0].status == "ok"
    found = failed(other_log(files, "site-2", session._record.log))
    assert found["heads"].startswith("site-2 leaf") and "messages of site-2" in found
    other.close()


def test_auditor_finds_a_message_that_was_counted_twice(tmp_path: Path) -> None:
    federation = Federation(tmp_path, study=THREE)

    def again(run: StudyRun, event: str, details: dict[str, Any]) -> None:
        if event == "step" and details["step"] == "score":
            seq = next(item["seq"] for item in run.record.receipts if item["kind"] == "round")
            first = json.loads(base64.b64decode(json.loads(run.record.log.leaf(seq))["payload"]))["predicate"]
            names = ("site", "kind", "round", "request_sha256", "status", "wire", "payload", "site_log")
            fields = {name: first[name] for name in names}
            run.record.log.append("ingress", fields, [("wire", fields["wire"]["sha256"])])

    study_run(tmp_path, federation, THREE.sites, again)
    assert failed(bundle_files(tmp_path))["messages of site-0"].startswith("coordinator leaf")


def test_auditor_finds_a_site_that_logs_one_message_twice(tmp_path: Path) -> None:
    federation = Federation(tmp_path, study=THREE)
    record = federation.sessions["site-1"]._record

    def again(run: StudyRun, event: str, details: dict[str, Any]) -> None:
        if event == "step" and details["step"] == "score":
            last = next(item for item in reversed(record._statements()) if item.kind == "egress")
            added = ("study", "protocol", "party", "seq", "prev", "at")
            fields = {name: value for name, value in last.predicate.items() if name not in added}
            record.log.append("egress", fields, last.subjects)

    study_run(tmp_path, federation, THREE.sites, again)
    assert failed(bundle_files(tmp_path))["messages of site-1"] == "site-1 (egress)"
