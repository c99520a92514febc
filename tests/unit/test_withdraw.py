"""A site or a patient leaves: what is deleted, what is logged, and what later releases are made of."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from cytosae_client.session import Session
from cytosae_client.site import Site
from cytosae_client.withdraw import PAYLOADS, Withdrawn
from cytosae_core.cohort import Cohort
from cytosae_core.cohort.cells import CellImage
from cytosae_core.errors import DataError, SetupError
from cytosae_core.tensors import unpack_tensors
from tests.deaths import (
    BEGIN,
    DESCRIBE,
    HELLO,
    ROUND,
    SITE,
    Clinic,
    Disk,
    Killed,
    Office,
    site_leaves,
    small_study,
)
from tests.federation import FakeStore

STUDY = small_study()


def cohort_of(site: Site) -> Cohort:
    """The folder of images, as it would be read again."""
    images = [
        CellImage(index, Path(f"{index}.png"), label, unit)
        for index, (label, unit) in enumerate(zip(site.labels, site.units, strict=True))
    ]
    return Cohort(site.name, "patient", tuple(images))


def restarted(clinic: Clinic) -> Session:
    """The site's session after its start-up left out who left."""
    site = clinic.site
    kept = Withdrawn(clinic.home / SITE).keep(cohort_of(site))
    index = np.array([image.index for image in kept.images])
    store = FakeStore(site.store.tokens(0, site.store.n_images)[index])
    labels, units = ([getattr(image, name) for image in kept.images] for name in ("label", "unit"))
    attributes = [site.attributes[i] for i in index]
    smaller = replace(site, store=store, labels=labels, units=units, attributes=attributes)
    return Session(smaller, STUDY, clinic.session.coordinator, clinic.session.events)


@pytest.fixture
def served(tmp_path: Path) -> Iterator[tuple[Clinic, Office]]:
    """A site that answered one of each, and was stopped by its IT."""
    clinic, office = Clinic(tmp_path), Office(tmp_path)
    for what in (HELLO, BEGIN, ROUND, DESCRIBE):
        assert office.ask(what, clinic.session.handle)[0].status == "ok"
    (tmp_path / SITE / "store").mkdir()
    (tmp_path / SITE / "store" / "tokens").write_bytes(b"tokens")
    clinic.session.close()
    yield clinic, office
    office.close()


def entries(clinic: Clinic) -> list[dict[str, object]]:
    statements, covered = site_leaves(clinic.home, STUDY, clinic.home / "copy")
    assert covered == len(statements)
    return [
        {name: s.predicate[name] for name in ("scope", "payloads_deleted")}
        for s in statements
        if s.kind == "withdraw"
    ]


def test_a_site_that_left_answers_nothing_more(served: tuple[Clinic, Office]) -> None:
    clinic, office = served
    payloads = [clinic.state / name for name in PAYLOADS if (clinic.state / name).exists()]
    assert len(payloads) >= 2
    assert Withdrawn(clinic.home / SITE).site(STUDY) == len(payloads)
    assert not any(path.exists() for path in payloads)
    assert entries(clinic) == [{"scope": "site", "payloads_deleted": len(payloads)}]
    clinic = Clinic(clinic.home)
    for what in (HELLO, ROUND):
        reply = office.ask(what, clinic.session.handle)[0]
        assert (reply.status, reply.code, reply.tensors) == ("refused", "withdrawn", {})
    clinic.session.close()


def test_a_study_that_the_site_never_joined(tmp_path: Path) -> None:
    with pytest.raises(SetupError):
        Withdrawn(tmp_path).site(STUDY)


def test_a_patient_who_left_is_in_no_later_release(served: tuple[Clinic, Office]) -> None:
    clinic, office = served
    home = clinic.home / SITE
    deleted = Withdrawn(home).patient("patient-7", cohort_of(clinic.site))
    assert deleted >= 3 and not (home / "store").exists()
    assert entries(clinic) == [
        {"scope": "patient", "payloads_deleted": deleted - 1}
    ]  # the store is no payload
    kept = Withdrawn(home).keep(cohort_of(clinic.site))
    assert len(kept.images) == 58 and "patient-7" not in kept.units and len(kept.units) == 29
    session = restarted(clinic)
    reply = office.ask(replace_seed(), session.handle)[0]
    assert reply.status == "ok"
    session.close()


def replace_seed() -> object:
    """A question that was not asked before: about another dictionary."""
    from tests.deaths import Ask, rows

    return Ask("describe", 1, rows(5), {"full": False})


def test_the_same_question_about_the_smaller_cohort_is_blocked(served: tuple[Clinic, Office]) -> None:
    """Both answers together would tell about the one patient who left."""
    clinic, office = served
    Withdrawn(clinic.home / SITE).patient("patient-7", cohort_of(clinic.site))
    session = restarted(clinic)
    reply = office.ask(DESCRIBE, session.handle)[0]
    assert (reply.status, reply.code, reply.tensors) == ("refused", "egress", {})
    blocked = [event for event in clinic.logs if event.code == "blocked"]
    assert [(event.values["reason"], event.values["step"]) for event in blocked] == [("DIFFERENCING", 6)]
    session.close()


def test_counts_follow_the_smaller_cohort(served: tuple[Clinic, Office]) -> None:
    """20 of 30 patients leave: enough to be told from before without telling about few."""
    clinic, office = served
    before = unpack_tensors(office_body(office, Clinic(clinic.home)))["counts"]
    for number in range(15):
        Withdrawn(clinic.home / SITE).patient(f"patient-{number}", cohort_of(clinic.site))
    session = restarted(clinic)
    reply = office.ask(HELLO, session.handle)[0]
    assert reply.status == "ok" and reply.tensors["counts"][1] < before[1]
    session.close()


def office_body(office: Office, clinic: Clinic) -> bytes:
    from cytosae_core.envelope import body_of

    payload = office.ask(HELLO, clinic.session.handle)[1]
    clinic.session.close()
    return body_of(payload)


def test_who_is_not_there_cannot_leave_and_the_last_one_ends_it(tmp_path: Path) -> None:
    clinic = Clinic(tmp_path)
    cohort = cohort_of(clinic.site)
    clinic.session.close()
    withdrawn = Withdrawn(tmp_path / SITE)
    assert withdrawn.keep(cohort) is cohort
    with pytest.raises(DataError):
        withdrawn.patient("patient-99", cohort)
    assert not withdrawn.contains("patient-1")
    for unit in cohort.units:
        withdrawn.patient(unit, cohort)
    with pytest.raises(DataError):
        withdrawn.keep(cohort)


def test_names_of_those_who_left_are_not_on_disk(served: tuple[Clinic, Office]) -> None:
    clinic, _ = served
    home = clinic.home / SITE
    Withdrawn(home).patient("patient-7", cohort_of(clinic.site))
    assert (home / "state" / "withdrawn.salt").stat().st_mode & 0o777 == 0o600
    assert not any(b"patient-7" in path.read_bytes() for path in home.rglob("*") if path.is_file())


@pytest.mark.parametrize("salt", [None, b"", b"short"])
def test_a_list_without_its_salt_stops_the_site(served: tuple[Clinic, Office], salt: bytes | None) -> None:
    """It would recognise nobody, and those who left would be back."""
    clinic, _ = served
    home = clinic.home / SITE
    Withdrawn(home).patient("patient-7", cohort_of(clinic.site))
    path = home / "state" / "withdrawn.salt"
    path.unlink() if salt is None else path.write_bytes(salt)
    with pytest.raises(SetupError):
        Withdrawn(home).keep(cohort_of(clinic.site))


def test_while_the_agent_runs_nothing_is_deleted_unlogged(served: tuple[Clinic, Office]) -> None:
    clinic, _ = served
    home, agent = clinic.home / SITE, Clinic(clinic.home)
    payloads = sorted(path.name for path in clinic.state.iterdir())
    withdrawn = Withdrawn(home)
    for leave in (
        lambda: withdrawn.patient("patient-7", cohort_of(clinic.site)),
        lambda: withdrawn.site(STUDY),
    ):
        with pytest.raises(SetupError, match="one process"):
            leave()
    assert set(payloads) <= {path.name for path in clinic.state.iterdir()} and (home / "store").exists()
    assert (
        withdrawn.contains("patient-7") and (clinic.state / "withdrawn").exists()
    )  # it holds from the next start
    agent.session.close()
    assert withdrawn.site(STUDY) >= 2 and withdrawn.patient("patient-7", cohort_of(clinic.site)) == 1
    assert [item["scope"] for item in entries(clinic)] == ["site", "patient"]


def test_killed_while_a_patient_leaves_the_command_finishes_when_it_is_given_again(tmp_path: Path) -> None:
    clinic, office = Clinic(tmp_path), Office(tmp_path)
    assert office.ask(HELLO, clinic.session.handle)[0].status == "ok"
    clinic.session.close()
    office.close()
    home, cohort, deaths = tmp_path / SITE, cohort_of(clinic.site), 0
    while True:
        disk = Disk(deaths + 1)
        try:
            with disk.mounted():
                Withdrawn(home).patient("patient-7", cohort)
            break
        except Killed:
            deaths += 1
            assert "patient-7" not in Withdrawn(home).keep(cohort).units or deaths <= 4
    assert deaths >= 6 and len(entries(clinic)) >= 1
    assert "patient-7" not in Withdrawn(home).keep(cohort).units
