"""Invite, enrolment, confirmation: who may join, and what every forged, stale or swapped document meets."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from cytosae_client.home import Home, find_home
from cytosae_client.join import enrolment, join
from cytosae_core.canonical import canonical_json
from cytosae_core.config import StudyConfig
from cytosae_core.errors import CytosaeError, MessageError, SetupError, StudyError, VerificationError
from cytosae_core.invite import URN, make_invite, read_confirmation, read_enrolment, read_invite
from cytosae_core.keys import SigningKey, fingerprint
from cytosae_core.policy import load_signed, tightened
from cytosae_server.enrolment import Enrolments
from cytosae_server.front import front
from cytosae_server.study import write_study_folder
from tests.integration.test_private_study import TERMS, TRAIN, private_study

STUDY = StudyConfig(name="enrolling", sites=("alder", "birch", "cedar"))
Json = dict[str, Any]


@pytest.fixture
def held(tmp_path: Path) -> Enrolments:
    folder = tmp_path / "out"
    key = SigningKey.load_or_create(folder / "study.key")
    write_study_folder(folder, STUDY, {}, {}, key.public_hex)
    return Enrolments(folder)


class Web:
    """The front without a network."""

    def __init__(self, held: Enrolments) -> None:
        self._app = front(held.folder)

    def get(self, path: str) -> httpx.Response:
        return asyncio.run(self._ask("GET", path))

    def post(self, path: str, content: bytes) -> httpx.Response:
        return asyncio.run(self._ask("POST", path, content))

    async def _ask(self, method: str, path: str, content: bytes = b"") -> httpx.Response:
        transport = httpx.ASGITransport(app=self._app)
        async with httpx.AsyncClient(transport=transport, base_url="http://front") as web:
            return await web.request(method, path, content=content)


def invited(held: Enrolments, site: str = "alder") -> bytes:
    return held.invite(site, "study.example.org:8443")


def test_a_site_is_in_after_both_compared_fingerprints(held: Enrolments, tmp_path: Path) -> None:
    home = join(invited(held), tmp_path / "home")
    web = Web(held)
    assert web.get("/enrol/alder").status_code == 404
    assert web.post("/enrol", content=enrolment(home)).json() == {"site": "alder", "status": "pending"}
    assert web.get("/enrol/alder").status_code == 404  # not before a person confirmed it
    held.confirm("alder", fingerprint(home.site_key.public_hex).upper().replace("-", " "))
    home.take_confirmation(web.get("/enrol/alder").content)
    assert home.confirmed
    assert json.loads((held.folder / "site-keys.json").read_text()) == {"alder": home.site_key.public_hex}
    assert held.states() == {"alder": "confirmed", "birch": "", "cedar": ""}
    events = [json.loads(line)["event"] for line in (held.net / "events.jsonl").read_text().splitlines()]
    assert events == ["invited", "enrolled", "confirmed"]


def test_no_private_key_is_in_what_travels(held: Enrolments, tmp_path: Path) -> None:
    invite = invited(held)
    home = join(invite, tmp_path / "home")
    secrets = [
        path.read_bytes().strip()
        for path in (home.keys / "tls.key", home.keys / "node", home.agent / "site.key")
    ] + [(held.folder / "study.key").read_bytes().strip(), (held.net / "ca.key").read_bytes().strip()]
    for travels in (invite, enrolment(home)):
        assert b"PRIVATE" not in travels
        assert all(secret not in travels for secret in secrets)


def test_private_files_are_the_owners_only(held: Enrolments, tmp_path: Path) -> None:
    home = join(invited(held), tmp_path / "home")
    private = [*(home.keys / name for name in ("tls.key", "node", "local.key", "supernode.secret"))]
    private += [
        home.agent / "site.key",
        home.folder / "officer.key",
        held.net / "ca.key",
        held.folder / "study.key",
    ]
    assert {path.name: path.stat().st_mode & 0o077 for path in private} == {path.name: 0 for path in private}


def test_joining_again_changes_no_key_and_another_study_is_refused(held: Enrolments, tmp_path: Path) -> None:
    data = invited(held)
    first = enrolment(join(data, tmp_path / "home"))
    again = join(data, tmp_path / "home")
    assert read_enrolment(first, STUDY).site_key == again.site_key.public_hex
    other, _ = make_invite(
        SigningKey.generate(),
        STUDY,
        "alder",
        endpoint="x.example:1",
        ca=held.authority.pem,
        start_sha256="",
        days=1,
    )
    with pytest.raises(SetupError, match="another study"):
        join(other, tmp_path / "home")


def test_the_default_policy_is_signed_and_lets_the_study_run(held: Enrolments, tmp_path: Path) -> None:
    home = join(invited(held), tmp_path / "home", approval="always")
    policy = load_signed(home.folder / "site-policy.yaml", home.agent)
    assert policy.approval == "always" and policy.site == "alder" and policy.min_units >= 11
    assert tightened(policy, STUDY).profile == STUDY.profile


@pytest.mark.parametrize("profile", ["validate", "train"])
def test_the_policy_of_a_private_study_holds_its_promise_and_no_more(tmp_path: Path, profile: str) -> None:
    terms = TRAIN if profile == "train" else TERMS
    study = private_study(replace(terms, delta=1e-5))
    key = SigningKey.load_or_create(tmp_path / "out" / "study.key")
    write_study_folder(tmp_path / "out", study, {}, {}, key.public_hex)
    home = join(Enrolments(tmp_path / "out").invite("site-0", "study.example.org:8443"), tmp_path / "home")
    policy = load_signed(home.folder / "site-policy.yaml", home.agent)
    assert (policy.profile, policy.epsilon_total, policy.delta_max) == ("dp", "8.0", "0.00001")
    assert tightened(policy, study).profile == "dp"
    with pytest.raises(StudyError, match="epsilon_total"):
        tightened(policy, private_study(replace(terms, delta=1e-5, epsilon=9.0)))


def changed(data: bytes, **values: Any) -> bytes:
    return canonical_json({**json.loads(data), **values})


@pytest.mark.parametrize(
    "values",
    [
        {"endpoint": "evil.example:443"}, {"ca": "-----BEGIN"}, {"site": "birch"}, {"token": "A" * 43},
        {"study_key": "0" * 64}, {"study_key": 5}, {"signature": "00"}, {"signature": None}, {"more": 1},
        {"urn": "urn:cytosae:enrol:v1"}, {"expires": "2099-01-01T00:00:00Z"},
    ],
)  # fmt: skip
def test_a_changed_invite_is_refused(held: Enrolments, values: Json) -> None:
    with pytest.raises(VerificationError):
        read_invite(changed(invited(held), **values))


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b"{}", b"\xff\xfe", b'{"urn":"urn:cytosae:invite:v1"}'])
def test_what_is_no_invite_is_refused(data: bytes) -> None:
    with pytest.raises(CytosaeError):
        read_invite(data)


def test_an_invite_ends(held: Enrolments) -> None:
    data = invited(held)
    assert read_invite(data).site == "alder"
    with pytest.raises(StudyError, match="still good"):
        read_invite(data, now=datetime.now(UTC) + timedelta(days=15))
    with pytest.raises(StudyError, match="site of the study"):
        held.invite("zelkova", "x.example:1")
    with pytest.raises(StudyError, match="endpoint"):
        held.invite("alder", "not an endpoint")


def test_the_wrong_fingerprint_lets_nobody_in(held: Enrolments, tmp_path: Path) -> None:
    home = join(invited(held), tmp_path / "home")
    held.receive(enrolment(home))
    for said in ("", "0000", fingerprint("0" * 64)):
        with pytest.raises(StudyError, match="read out"):
            held.confirm("alder", said)
    assert held.confirmed("alder") is None
    assert json.loads((held.folder / "site-keys.json").read_text()) == {}
    with pytest.raises(StudyError, match="got none"):
        held.confirm("birch", "x")


def test_the_token_is_needed_and_the_first_keys_stay(held: Enrolments, tmp_path: Path) -> None:
    """Somebody who copied the invite cannot replace the keys that came first; a new invite ends the old one."""
    data = invited(held)
    home, thief = join(data, tmp_path / "home"), join(data, tmp_path / "thief")
    held.receive(enrolment(home))
    held.receive(enrolment(home))  # twice is harmless
    with pytest.raises(MessageError, match="first"):
        held.receive(enrolment(thief))
    invited(held)
    with pytest.raises(MessageError, match="token"):
        held.receive(enrolment(home))
    with pytest.raises(MessageError, match="invited"):
        held.receive(enrolment(join(held_elsewhere(held, "birch"), tmp_path / "birch")))


def held_elsewhere(held: Enrolments, site: str) -> bytes:
    """An invite with the study's key that the enrolment desk does not know of."""
    return make_invite(
        held.key, STUDY, site, endpoint="x.example:1", ca=held.authority.pem, start_sha256="", days=1
    )[0]


def test_a_confirmation_is_for_one_key_of_one_site(held: Enrolments, tmp_path: Path) -> None:
    home = join(invited(held), tmp_path / "home")
    held.receive(enrolment(home))
    held.confirm("alder", fingerprint(home.site_key.public_hex))
    data = held.confirmed("alder")
    assert data is not None
    assert read_confirmation(data, home.invite, home.site_key.public_hex).site == "alder"
    for wrong in (changed(data, certificate="x"), changed(data, site="birch"), b"{}"):
        with pytest.raises(VerificationError):
            home.take_confirmation(wrong)
    with pytest.raises(VerificationError):
        read_confirmation(data, home.invite, "0" * 64)


def test_the_front_tells_strangers_nothing(held: Enrolments) -> None:
    web = Web(held)
    assert web.get("/healthz").json() == {"study": STUDY.name, "protocol": STUDY.digest}
    for data in (b"", b"{}", b"x" * 1000, invited(held)):
        answer = web.post("/enrol", content=data)
        assert answer.status_code == 403 and set(answer.json()) == {"error"}
    assert web.post("/enrol", content=b"x" * (2 << 20)).status_code == 413
    for path in (
        "/enrol/zelkova",
        "/files/" + "0" * 64,
        "/files/..%2Fstudy.key",
        "/study.key",
        "/",
        "/docs",
    ):
        assert web.get(path).status_code == 404


def test_a_home_is_found_or_named(held: Enrolments, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("CYTOSAE_HOME", raising=False)
    assert find_home(None) is None
    home = join(invited(held), tmp_path / "one")
    assert find_home(None) == Home(home.folder)
    join(invited(held, "birch"), tmp_path / "two")
    with pytest.raises(SetupError, match="2 homes"):
        find_home(None)
    monkeypatch.setenv("CYTOSAE_HOME", str(home.folder))
    assert find_home(None) == home
    with pytest.raises(SetupError, match="home"):
        find_home(tmp_path)
    assert yaml.safe_load((home.folder / "study.yaml").read_text())["name"] == STUDY.name
    assert URN.endswith("v1")
