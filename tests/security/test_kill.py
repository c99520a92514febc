"""kill -9 at every write step, on both sides: nothing leaves unlogged, logs stay consistent, numbers stay the same."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from cytosae_core.canonical import sha256_hex
from cytosae_core.envelope import body_of
from tests.killing import (
    BEGIN,
    DESCRIBE,
    HELLO,
    ROUND,
    Ask,
    Clinic,
    Disk,
    Killed,
    Office,
    box_sha256,
    site_leaves,
    small_study,
)

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
