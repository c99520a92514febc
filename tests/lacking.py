"""What a test needs and this machine has not: in CI that is a failure, elsewhere the test says what it lacks."""

from __future__ import annotations

import os
from typing import NoReturn

import pytest


def lacking(what: str) -> NoReturn:
    """End the test: failed in CI, else skipped, with what it needs."""
    text = f"needs {what}"
    if os.environ.get("CI"):
        pytest.fail(text)
    pytest.skip(text)
