"""The last accepted dictionary: what the next one is compared with, also after a crash, never silently nothing."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from cytosae_client.base import LastBase
from cytosae_core.errors import SetupError
from cytosae_core.privacy.gate import GateCheck
from cytosae_core.sae.scale import TokenScale
from tests.deaths import BEGIN, HELLO, ROUND, Clinic, Disk, Killed, Office

SHAPE = torch.Size((3, 2))
SCALE = TokenScale(np.array([0.5, -1.0], np.float32), 1.25)


def keep(folder: Path, number: int) -> None:
    checks = [GateCheck("fvu", 0.1 * number, 0.95, True)]
    LastBase(folder).keep(torch.full(SHAPE, float(number)), SCALE, number, checks)


def test_what_was_kept_comes_back(tmp_path: Path) -> None:
    assert LastBase(tmp_path).last(SHAPE) is None
    keep(tmp_path, 1)
    keep(tmp_path, 2)
    found = LastBase(tmp_path).last(SHAPE)
    assert found is not None and (found.round, found.fvu, found.scale.scale) == (2, 0.2, 1.25)
    assert found.dictionary.tolist() == [[2.0] * 2] * 3 and found.scale.mean.tolist() == [0.5, -1.0]
    assert LastBase(tmp_path).last(torch.Size((4, 2))) is None


def test_killed_at_any_write_it_is_the_old_one_or_the_new_one(tmp_path: Path) -> None:
    with Disk().mounted() as disk:
        keep(tmp_path, 1)
    rounds = []
    for at in range(1, len(disk.steps) + 1):
        keep(tmp_path, 1)
        with Disk(at).mounted(), pytest.raises(Killed):
            keep(tmp_path, 2)
        found = LastBase(tmp_path).last(SHAPE)
        assert found is not None and found.dictionary[0, 0] == found.round
        rounds.append(found.round)
    assert rounds[0] == 1 and rounds[-1] == 2


@pytest.mark.parametrize("cut", [0, 1, 9, 200])
def test_a_damaged_one_is_not_taken_for_none(tmp_path: Path, cut: int) -> None:
    keep(tmp_path, 1)
    path = tmp_path / "accepted.safetensors"
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(SetupError):
        LastBase(tmp_path).last(SHAPE)


def test_a_site_with_a_damaged_one_refuses_rounds(tmp_path: Path) -> None:
    clinic, office = Clinic(tmp_path), Office(tmp_path)
    for what in (HELLO, BEGIN, ROUND):
        assert office.ask(what, clinic.session.handle)[0].status == "ok"
    (clinic.state / "accepted.safetensors").write_bytes(b"\0" * 50)
    reply = office.ask(ROUND, clinic.session.handle)[0]
    assert (reply.status, reply.code, reply.tensors) == ("refused", "setup", {})
    clinic.session.close()
    office.close()
