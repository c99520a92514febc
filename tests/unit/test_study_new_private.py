"""`study new --profile dp`, and the public dictionary that such a study starts from."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from cytosae_core.errors import DataError
from cytosae_core.sae.checkpoint import save_checkpoint
from cytosae_core.sae.public import public_dictionary
from cytosae_local import cli
from cytosae_server.study import read_protocol

ROWS, D = 32, 384  # of the demo's encoder
SITES = ("alder", "birch", "cedar", "dogwood", "elm")


def start(folder: Path, **facts: object) -> Path:
    rows = np.random.default_rng(0).standard_normal((ROWS, D)).astype(np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    tensors = {"dictionary": rows, "mean": np.zeros(D, np.float32), "scale": np.ones(1, np.float32)}
    given = {
        "model": "pursuit",
        "k": 4,
        "second_clip": 2.5,
        "tokens_of_a_patient": 48,
        "encoder": "",
        **facts,
    }
    save_checkpoint(folder / "public", tensors, given)
    return folder / "public"


def new(folder: Path, *words: str, **facts: object) -> int:
    sites = [part for name in SITES for part in ("--site", name)]
    given = [
        *sites, "--class", "a", "--class", "b", "--name", "private", "--kind", "train", "--profile", "dp",
        "--start", str(start(folder, **facts)), "--patients", "200", "--patients-in-all", "4000",
        "--concepts", "c0001,c0002", "--yes",
    ]  # fmt: skip
    return cli.main(["study", "new", str(folder / "out"), *given, *words])


def test_a_private_protocol_is_written_and_read_back(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert new(tmp_path) == 0
    study = read_protocol(tmp_path / "out" / "study.yaml")
    terms = study.privacy
    assert (study.profile, study.dictionary.n, study.dictionary.init) == ("dp", ROWS + 48, "file")
    assert (terms.epsilon, terms.patients, terms.atoms, terms.second_clip) == (4.0, 200, 48, 2.5)
    assert terms.tokens_of_a_patient == 48 and terms.secure_aggregation and terms.delta == 1e-5
    assert study.plan.selection == "listed" and study.statistics.recurrence_steps == 0
    assert "is expected to pay: 1,000 patients" in capsys.readouterr().out


def test_it_says_before_the_study_that_adding_concepts_would_not_pay(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert new(tmp_path, "--epsilon", "1") == 0
    assert "NOT expected to pay" in capsys.readouterr().out


def test_validate_needs_no_clip_norm_and_adds_nothing(tmp_path: Path) -> None:
    assert new(tmp_path, "--kind", "validate", second_clip=0.0) == 0
    study = read_protocol(tmp_path / "out" / "study.yaml")
    assert study.privacy.atoms == 0 and study.dictionary.n == ROWS and study.privacy.promised


@pytest.mark.parametrize(
    ("words", "facts", "says"),
    [
        (("--epsilon", "20"), {}, "from 0 to 10"),
        (("--delta", "0.01"), {}, "1 / (10 patients)"),
        (("--sites-of-a-patient", "9"), {}, "sites_of_a_patient"),
        ((), {"second_clip": 0.0}, "clip norm of public patients"),
        (("--start", "none"), {}, "start file"),
        (("--profile", "secret"), {}, "evaluate_only"),
    ],
)
def test_promises_that_cannot_be_made_are_refused_and_nothing_is_written(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    words: tuple[str, ...],
    facts: dict[str, float],
    says: str,
) -> None:
    assert new(tmp_path, *words, **facts) == 1
    said = capsys.readouterr().err
    assert says in said and "Traceback" not in said
    assert not (tmp_path / "out" / "study.yaml").exists()


def test_other_protocols_have_no_part_privacy(tmp_path: Path) -> None:
    sites = [part for name in SITES for part in ("--site", name)]
    words = [*sites, "--class", "a", "--name", "plain", "--yes"]
    assert cli.main(["study", "new", str(tmp_path / "out"), *words]) == 0
    assert "privacy" not in (tmp_path / "out" / "study.yaml").read_text()


def test_a_public_dictionary_has_unit_rows_and_a_clip_norm() -> None:
    rng = np.random.default_rng(1)
    truth = rng.standard_normal((12, 16))
    tokens = (rng.gamma(1.0, size=(1500, 12)) @ truth).astype(np.float32)
    patients = [tokens[index * 50 : index * 50 + 50] for index in range(30)]
    made = public_dictionary(tokens, patients, rows=8, k=2, steps=10, seed=0)
    assert made.tensors["dictionary"].shape == (8, 16) and made.second_clip > 0
    assert np.allclose(np.linalg.norm(made.tensors["dictionary"], axis=1), 1, atol=1e-5)
    with pytest.raises(DataError, match="20 public patients"):
        public_dictionary(tokens, patients[:5], rows=8, k=2, steps=1, seed=0)
