"""`study run`: which protocol runs in which folder, before any image is read."""

from __future__ import annotations

from pathlib import Path

import pytest

from cytosae_core.canonical import canonical_json
from cytosae_core.errors import StudyError
from cytosae_core.keys import SigningKey
from cytosae_local.yaml_study import _to_run, result_folder
from cytosae_server.deviations import Deviations
from cytosae_server.study import read_protocol, write_study_folder
from tests.federation import study_config
from tests.unit.test_plan import study


def test_without_stages_everything_stays_in_the_folder(tmp_path: Path) -> None:
    assert _to_run(tmp_path / "study.yaml", study_config(), tmp_path) == (study_config(), tmp_path)
    assert result_folder(tmp_path) == tmp_path


def test_a_changed_protocol_does_not_replace_a_run(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "study.json").write_bytes(canonical_json(study_config().to_dict()))
    (tmp_path / "run" / "finished").touch()
    _to_run(tmp_path / "study.yaml", study_config(), tmp_path)
    with pytest.raises(StudyError, match="another study"):
        _to_run(tmp_path / "study.yaml", study_config(seed=4), tmp_path)
    assert (tmp_path / "run" / "finished").exists()


def test_the_open_stage_is_what_runs(tmp_path: Path) -> None:
    write_study_folder(tmp_path, study(), {}, {}, "cd")
    path = tmp_path / "study.yaml"
    made, folder = _to_run(path, read_protocol(path), tmp_path)
    assert (made, folder) == (study().for_stage("poc"), tmp_path / "poc") and folder == result_folder(
        tmp_path
    )
    assert read_protocol(folder / "study.yaml") == made
    for wrong in (lambda: _to_run(path, read_protocol(path), tmp_path / "elsewhere"),
                  lambda: _to_run(folder / "study.yaml", made, folder)):  # fmt: skip
        with pytest.raises(StudyError):
            wrong()


def test_a_second_look_at_a_stage_is_recorded(tmp_path: Path) -> None:
    write_study_folder(tmp_path, study(), {}, {}, "cd")
    path = tmp_path / "study.yaml"
    made, folder = _to_run(path, study(), tmp_path)
    key = SigningKey.load_or_create(tmp_path / "study.key")
    assert Deviations(folder, key, made).printed() == []
    (folder / "run").mkdir()
    (folder / "run" / "finished").touch()
    _to_run(path, study(), tmp_path)
    (entry,) = Deviations(folder, key, made).printed()
    assert "run again" in entry["what"]
