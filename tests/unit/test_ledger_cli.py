"""`cytosae site ledger` under dp: table, JSON, picture; a damaged ledger is named, nothing is drawn."""

from __future__ import annotations

import json
from contextlib import closing
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from cytosae_client.budget import open_privacy_ledger
from cytosae_client.home import Home
from cytosae_client.ledger_cli import both_ledgers, lines
from cytosae_core.errors import EgressError
from cytosae_core.keys import SigningKey
from cytosae_core.policy import SitePolicy, sign_policy, write_policy
from cytosae_core.privacy.plan import PrivacyPlan
from cytosae_local import cli

PLAN = PrivacyPlan(1.0, 2.0, 1.0, 1, 1e-5)


def home(folder: Path, policy: SitePolicy | None = None) -> Home:
    """A home with a signed policy and a ledger of two charged releases over two studies."""
    made, officer = Home(folder), SigningKey.load_or_create(folder / "officer.key")
    (folder / "agent" / "state").mkdir(parents=True)
    made.keep(site="alder", ledger=str(folder / "hospital" / "ledger"))
    today = datetime.now(UTC).date()
    base = policy or SitePolicy("dp", "dp", epsilon_total="8", delta_max="0.00001")
    signed = replace(
        base, site="alder", officers=(officer.public_hex,), valid_from=today.isoformat(),
        valid_until=(today + timedelta(days=9)).isoformat(),
    )  # fmt: skip
    write_policy(folder / "site-policy.yaml", signed)
    sign_policy(folder / "site-policy.yaml", officer, made.agent)
    if signed.profile == "dp":
        with closing(open_privacy_ledger(made.ledger, signed)) as ledger:
            for index, study in enumerate(("first", "second")):
                ledger.charge(
                    PLAN, [bytes([n]) * 16 for n in range(30)], study=study, protocol=study * 8, kind="describe",
                    job=f"job{index}", content_sha256=f"{index}" * 64,
                )  # fmt: skip
    return made


def run(*words: str) -> int:
    return cli.main(["site", "ledger", *words])


def test_the_table_shows_every_release_and_what_is_left(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    home(tmp_path)
    assert run("--home", str(tmp_path)) == 0
    text = capsys.readouterr().out
    assert "of 8 at delta 1e-05" in text and "30 patients" in text and "[#" in text
    assert sum(" describe " in line for line in text.splitlines()) == 2


def test_json_adds_up_over_studies(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    home(tmp_path)
    assert run("--home", str(tmp_path), "--json") == 0
    privacy = json.loads(capsys.readouterr().out)["privacy"]
    assert [item["study"] for item in privacy["releases"]] == ["first", "second"]
    assert privacy["releases"][0]["spent"] < privacy["spent"] == privacy["releases"][1]["spent"]
    assert privacy["left"] == pytest.approx(8 - privacy["spent"])


@pytest.mark.parametrize("name", ["spent.png", "spent.svg"])
def test_the_picture_is_a_file_of_its_kind(tmp_path: Path, name: str) -> None:
    home(tmp_path)
    assert run("--home", str(tmp_path), "--plot", str(tmp_path / name)) == 0
    head = (tmp_path / name).read_bytes()[:200]
    assert head.startswith(b"\x89PNG") if name.endswith("png") else b"<svg" in head or b"<?xml" in head


def test_no_epsilon_is_drawn_or_printed_under_other_policies(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = home(tmp_path, SitePolicy("masked", "masked"))
    assert both_ledgers(made)["privacy"] is None and "psilon" not in "\n".join(lines(both_ledgers(made)))
    assert run("--home", str(tmp_path), "--plot", str(tmp_path / "a.png")) == 1
    assert "profile dp" in capsys.readouterr().err and not (tmp_path / "a.png").exists()


def test_a_picture_of_another_kind_and_an_edited_ledger_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = home(tmp_path)
    assert run("--home", str(tmp_path), "--plot", str(tmp_path / "a.exe")) == 1
    assert "FILE.png" in capsys.readouterr().err
    (made.ledger / "privacy.sqlite3").unlink()
    with pytest.raises(EgressError, match="old copy"):
        both_ledgers(made)
    assert run("--home", str(tmp_path)) == 1
    assert "Traceback" not in capsys.readouterr().err
