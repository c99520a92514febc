"""The systemd units say what docs/relay.md promises, and systemd finds nothing to complain about."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.lacking import lacking

SITE = Path(__file__).resolve().parents[2] / "deploy" / "systemd"
UNITS = sorted(SITE.glob("*.service"))


def settings(path: Path) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for name, value in re.findall(r"^(\w+)=(.*)$", path.read_text(), re.M):
        found.setdefault(name, []).append(value)
    return found


def test_every_service_is_a_user_of_its_own() -> None:
    for sysusers, names in (
        ("cytosae.sysusers", ("agent", "relay", "supernode", "tunnel")),
        ("cytosae-coordinator.sysusers", ("coordinator",)),
    ):
        users = [settings(SITE / f"cytosae-{name}.service")["User"][0] for name in names]
        named = re.findall(r"^u (\S+)", (SITE / sysusers).read_text(), re.M)
        assert len(set(users)) == len(names) and set(users) == set(named)
    assert len(UNITS) == 5


def test_only_the_tunnel_may_leave_the_machine() -> None:
    local = ["cytosae-relay", "cytosae-supernode"]
    for name in local:
        unit = settings(SITE / f"{name}.service")
        assert unit["IPAddressDeny"] == ["any"] and unit["IPAddressAllow"] == ["localhost"]
    assert "IPAddressDeny" not in settings(SITE / "cytosae-tunnel.service")


def test_the_agent_has_no_network_and_runs_isolated() -> None:
    agent = settings(SITE / "cytosae-agent.service")
    assert agent["PrivateNetwork"] == ["yes"] and agent["RestrictAddressFamilies"] == ["AF_UNIX"]
    assert " -I -m " in agent["ExecStart"][0] and agent["CapabilityBoundingSet"] == [""]


@pytest.mark.parametrize("path", UNITS, ids=lambda path: path.stem)
def test_every_unit_ends_its_daemons_and_gains_nothing(path: Path) -> None:
    unit = settings(path)
    assert unit["KillMode"] == ["control-group"] and unit["NoNewPrivileges"] == ["yes"]
    assert unit["LimitCORE"] == ["0"] and unit["ProtectSystem"] == ["strict"]


def test_flower_is_started_without_telemetry_updates_and_installs() -> None:
    for name in ("cytosae-relay", "cytosae-supernode"):
        text = (SITE / f"{name}.service").read_text()
        for setting in ("FLWR_TELEMETRY_ENABLED=0", "FLWR_DISABLE_UPDATE_CHECK=1"):
            assert setting in text
        assert "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION=1" in text


def test_systemd_finds_nothing_to_complain_about(tmp_path: Path) -> None:
    """A typo only gives a warning with exit status 0: any output fails. Programs and users that this machine has not
    are replaced first, since systemd looks for them."""
    program = shutil.which("systemd-analyze")
    if program is None:
        lacking("systemd-analyze on the path")
    for path in UNITS:
        text = re.sub(r"/opt/cytosae/\.venv/bin/[\w-]+", "/bin/true", path.read_text())
        (tmp_path / path.name).write_text(re.sub(r"^Documentation=.*\n", "", text, flags=re.M))
    done = subprocess.run(
        [program, "verify", *(str(tmp_path / path.name) for path in UNITS)],
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == 0 and done.stdout + done.stderr == ""
