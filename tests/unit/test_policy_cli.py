"""`cytosae site policy`, as hospital IT runs it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from cytosae_core.config import StudyConfig
from cytosae_core.keys import SigningKey
from cytosae_core.policy import POLICIES, demand, load_policy, load_signed
from cytosae_local.cli import main

STUDY = "urn: urn:cytosae:study:v1\nname: s\nsites: [site-03, site-04]\nlocal:\n  sites: {}\n"


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    code = main(["site", "policy", *map(str, arguments)])
    out = capsys.readouterr()
    return code, out.out, out.err


def as_json(capsys: pytest.CaptureFixture[str], *arguments: object) -> Any:
    return json.loads(run(capsys, *arguments, "--json")[1])


@pytest.fixture
def file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Path:
    path = tmp_path / "site-policy.yaml"
    assert run(capsys, "new", path, "--site", "site-03")[0] == 0
    return path


def test_new_explain_sign_check_serve(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "check", file)
    assert code == 1 and "makes the first officer's key" in out
    key = file.parent / "officer.key"
    code, out, _ = run(capsys, "sign", file, "--key", key)
    assert code == 0 and "Made a new officer's key" in out and key.stat().st_mode & 0o777 == 0o600
    code, out, _ = run(capsys, "check", file)
    assert code == 0 and "signed" in out
    policy = load_signed(file, file.parent / "home")
    assert policy.officers == (SigningKey.load_or_create(key).public_hex,)
    assert policy.approval == "first_round_and_report"
    code, out, _ = run(capsys, "explain", file)
    assert code == 0 and policy.digest in out and "at least 11 patients" in out
    assert max(map(len, out.splitlines())) <= 100


def test_json_everywhere(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = as_json(
        capsys, "new", file.with_name("b.yaml"), "--site", "x", "--officer", file.with_name("o.key")
    )
    assert (
        other["policy_sha256"] == load_policy(file.with_name("b.yaml")).digest and len(other["officers"]) == 1
    )
    assert as_json(capsys, "explain", file)["policy"]["site"] == "site-03"
    assert as_json(capsys, "explain", "public-data")["policy_sha256"] == POLICIES["public-data"].digest
    assert as_json(capsys, "check", file)["good"] is False
    assert as_json(capsys, "sign", file, "--key", file.with_name("o.key"))["key_made"] is False
    assert as_json(capsys, "check", file) == {
        "policy_sha256": load_policy(file).digest, "good": True, "problems": [],
    }  # fmt: skip


def test_budgets_of_a_study(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    study = tmp_path / "study.yaml"
    study.write_text(STUDY)
    path = tmp_path / "p.yaml"
    assert run(capsys, "new", path, "--site", "site-03", "--study", study)[0] == 0
    asked = demand(StudyConfig("s", ("site-03", "site-04")))
    assert load_policy(path).metrics_per_round == asked.numbers
    path.write_text(path.read_text().replace("rounds: 15", "rounds: 14"))
    code, out, _ = run(capsys, "check", path, "--study", study)
    assert code == 1 and "limits.rounds: 14 | study training.rounds: 15" in out and "(line " in out


def test_expired_policies_and_bad_files_are_named(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    old = file.with_name("old.yaml")
    assert run(capsys, "new", old, "--site", "a", "--from", "2020-01-01", "--until", "2020-06-01")[0] == 0
    code, out, _ = run(capsys, "check", old)
    assert code == 1 and "2020-01-01 to 2020-06-01" in out
    file.write_text(file.read_text().replace("min_units: 11", "min_units: 3"))
    code, out, err = run(capsys, "check", file)
    assert code == 1 and "disclosure.min_units" in err and f"{file.name}:" in err
    code, _, err = run(capsys, "sign", file, "--key", file.with_name("late.key"))
    assert code == 1 and not file.with_name("late.key").exists()


@pytest.mark.parametrize(
    "more",
    [("--from", "tomorrow"), ("--until", "2020-01-01"), ("--officer", "ab"), ("--name", "patient 12345")],
)
def test_bad_options_write_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], more: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "ab").write_text("no key")
    (tmp_path / "ab").chmod(0o600)
    code, _, err = run(capsys, "new", "p.yaml", "--site", "a", *more)
    assert code == 1 and err.startswith("cytosae: Expected") and not (tmp_path / "p.yaml").exists()


def test_an_existing_file_is_never_overwritten(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = file.read_bytes()
    assert run(capsys, "new", file, "--site", "b")[0] == 1 and file.read_bytes() == before


def test_the_commands_import_nothing_heavy() -> None:
    code = (
        "import sys, cytosae_local.cli as c; c.build_parser(); import cytosae_client.policy_cli\n"
        "heavy = {'torch', 'numpy', 'flwr'} & set(sys.modules)\n"
        "c.main(['site', 'policy', 'explain', 'masked'])\n"
        "sys.exit(f'{heavy}' if heavy or 'torch' in sys.modules else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
