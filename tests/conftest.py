"""Fixtures for all tests."""

from __future__ import annotations

import os
from pathlib import Path

# Before torch: spinning threads make small tests 15 x slower, and workers side by side have one core each.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch

from tests.lacking import lacking

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session", autouse=True)
def _quiet_flower() -> None:
    """No telemetry, no update check, no installing of dependencies, wherever a test starts Flower."""
    for name, value in (
        ("FLWR_TELEMETRY_ENABLED", "0"),
        ("FLWR_DISABLE_UPDATE_CHECK", "1"),
        ("FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION", "1"),
    ):
        os.environ[name] = value


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(20261123)


@pytest.fixture(scope="session")
def shared() -> Path:
    """Real cells and test vectors beside the project. In CI they must be there."""
    folder = Path(os.environ.get("CYTOSAE_SHARED", ROOT.parent / "shared"))
    if not (folder / "vectors").is_dir():
        lacking("the shared folder (real cells, test vectors) beside the project, or CYTOSAE_SHARED")
    return folder
