"""A study with hospitals that have no network at all: files are carried, the report is the same kind of report."""

from __future__ import annotations

import json
import subprocess
import threading
import time
from pathlib import Path

from cytosae_client.home import Home
from cytosae_client.offline import give, take
from cytosae_core.phantom import DEMO_SITES, generate_site
from cytosae_server.enrolment import Enrolments
from cytosae_server.mail import Both, Mail, list_sites, with_mail
from cytosae_server.study import run_study_folder
from cytosae_server.transport import LocalGrid
from tests.hospitals import CYTOSAE, PATIENTS, cytosae, make_study

SITES = DEMO_SITES[:2]


def enrol(desk: Path, place: Path, index: int) -> Home:
    """Join, carry the enrolment, carry the confirmation back, check."""
    site = SITES[index]
    generate_site(place / "cells", site, patients=PATIENTS, cells_per_patient=1, seed=index)
    joined = cytosae(place, "site", "join", str(desk / f"{site.name}.invite.json"), "--yes", "--offline")
    assert not joined["enrolled"]
    assert cytosae(place, "site", "export", "--to", "stick")["files"] == ["enrolment.json"]
    enrolment = str(place / "stick" / "enrolment.json")
    confirm = ["study", "confirm", site.name, "out", "--enrolment", enrolment, "--fingerprint"]
    cytosae(desk, *confirm, joined["site_fingerprint"])
    carried = sorted((desk / "out" / "net" / "mail" / site.name / "out").iterdir())
    told = cytosae(place, "site", "import", *map(str, carried))
    assert set(told.values()) == {"confirmation taken", "start file taken"}
    checked = cytosae(place, "site", "check", "cells")
    assert not checked["failed"], checked
    serve = subprocess.run([CYTOSAE, "site", "serve"], cwd=place, capture_output=True, text=True, timeout=60)
    assert serve.returncode == 1 and "goes by files" in serve.stderr
    return Home(Path(joined["home"]))


def carry(homes: dict[str, Home], mail: Path, stop: threading.Event) -> None:
    """What somebody with a stick does, without the way."""
    done: set[str] = set()
    while not stop.is_set():
        for site, home in homes.items():
            for path in sorted((mail / site / "out").glob("*.request")):
                if path.name in done:
                    continue
                done.add(path.name)
                for _, what in take(home, [path]):
                    assert what.startswith("answered"), what
                give(home, mail / site / "in")
        time.sleep(0.05)


def test_a_study_by_files(tmp_path: Path) -> None:
    desk = tmp_path / "desk"
    (desk / "out").mkdir(parents=True)
    names = [site.name for site in SITES]
    make_study(desk / "out", tmp_path / "data", names, rounds=1, deadline_s=120.0)
    for name in names:
        cytosae(desk, "study", "invite", name, "out", "--endpoint", "127.0.0.1:9")
        (tmp_path / name).mkdir()
    homes = {name: enrol(desk, tmp_path / name, index) for index, name in enumerate(names)}
    net, stop = desk / "out" / "net", threading.Event()
    list_sites(net, names)
    carrier = threading.Thread(target=carry, args=(homes, net / "mail", stop), daemon=True)
    carrier.start()
    try:
        assert run_study_folder(desk / "out", with_mail(LocalGrid({}), net)) == 0
    finally:
        stop.set()
        carrier.join()
    report = json.loads((desk / "out" / "report.json").read_text())
    assert all(report["sites"][name]["status"] == "reported" for name in names)
    for words in (
        ("study", "bundle", "out", "--to", "bundle"),
        ("audit", "verify", "bundle", "--keys", "bundle/keys.json"),
    ):
        done = subprocess.run([CYTOSAE, *words], cwd=desk, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stdout + done.stderr


def test_a_file_that_is_not_for_this_site_is_refused_and_named(tmp_path: Path) -> None:
    desk = tmp_path / "desk"
    (desk / "out").mkdir(parents=True)
    names = [site.name for site in SITES]
    make_study(desk / "out", tmp_path / "data", names, rounds=1, deadline_s=60.0)
    cytosae(desk, "study", "invite", names[0], "out", "--endpoint", "127.0.0.1:9")
    place = tmp_path / names[0]
    place.mkdir()
    home = Path(
        cytosae(place, "site", "join", str(desk / f"{names[0]}.invite.json"), "--yes", "--offline")["home"]
    )
    (place / "wrong.json").write_text("{}")
    (place / "start.safetensors").write_bytes(b"\0" * 64)
    told = cytosae(place, "site", "import", "wrong.json", "start.safetensors", code=1)
    assert all(what.startswith("refused: Expected") for what in told.values()), told
    assert not Home(home).confirmed and not (home / "start.safetensors").exists()
    (place / "abc.request").write_bytes(b"nonsense")
    early = cytosae(place, "site", "import", "abc.request", code=1)
    assert "site check" in json.dumps(early)


def test_one_request_is_out_and_late_or_foreign_files_are_no_answers(tmp_path: Path) -> None:
    mail = Mail(tmp_path, ["alder"])
    first = mail.send("alder", b"one", 60.0)
    second = mail.send("alder", b"two", 0.3)
    out = tmp_path / "alder" / "out"
    assert [path.stem for path in out.iterdir()] == [second]
    (tmp_path / "alder" / "in" / f"{first}x.reply").write_bytes(b"foreign")
    (tmp_path / "alder" / "in" / f"{second}.reply").write_bytes(b"")  # still being copied
    assert mail.poll(0.05) == []
    (tmp_path / "alder" / "in" / f"{first}.reply").write_bytes(b"answer")
    assert [(a.ticket, a.data) for a in mail.poll(0.0)] == [(first, b"answer")]
    time.sleep(0.3)
    assert [(a.ticket, a.fault) for a in mail.poll(0.0)] == [(second, "deadline")]
    assert list(out.iterdir()) == [] and mail.poll(0.0) == []


def test_both_ways_reach_their_own_sites(tmp_path: Path) -> None:
    both = Both(Mail(tmp_path, ["alder"]), LocalGrid({"birch": lambda data: data * 2}))
    assert both.sites() == ("alder", "birch") and both.in_flight == 3
    both.send("birch", b"x", 5.0)
    assert [answer.data for answer in both.poll(5.0)] == [b"xx"]
    ticket = both.send("alder", b"y", 5.0)
    (tmp_path / "alder" / "in" / f"{ticket}.reply").write_bytes(b"z")
    assert [answer.data for answer in both.poll(1.0)] == [b"z"]
    both.close()


def test_only_sites_of_the_study_go_by_files(tmp_path: Path) -> None:
    desk = tmp_path / "desk"
    (desk / "out").mkdir(parents=True)
    make_study(desk / "out", tmp_path / "data", [site.name for site in SITES], rounds=1, deadline_s=60.0)
    Enrolments(desk / "out").invite(SITES[0].name, "127.0.0.1:9")
    (desk / "out" / "net" / "endpoint").write_text("127.0.0.1:9")
    done = subprocess.run(
        [CYTOSAE, "study", "start", "out", "--by-files", "nobody"], cwd=desk, capture_output=True, text=True
    )
    assert done.returncode == 1 and "Expected sites of the study, got nobody." in done.stderr
