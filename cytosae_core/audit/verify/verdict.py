"""What the auditor is told: numbered checks, each with a verdict, one sentence and the link that broke."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

from ...errors import CytosaeError

PASS, FAIL, NOT_CHECKED = "PASS", "FAIL", "NOT CHECKED"
# What a hostile file can make a check raise; anything else would be a defect of the verifier.
MALFORMED = (CytosaeError, KeyError, ValueError, TypeError, IndexError, AttributeError, ArithmeticError)


class Broken(Exception):
    """A claim does not hold. `link` names where: party and leaf, or file."""

    def __init__(self, text: str, link: str) -> None:
        super().__init__(text)
        self.link = link


class Missing(Exception):
    """A claim that this bundle, or this call, gives no means to check."""


@dataclass(frozen=True)
class Check:
    """One claim: `state` is PASS, FAIL or NOT CHECKED; `link` is the first broken link of a FAIL."""

    number: int
    name: str
    state: str
    text: str
    link: str = ""


@dataclass
class Verdict:
    """All checks, in order."""

    checks: list[Check] = field(default_factory=list)

    def run(self, name: str, work: Callable[[], str]) -> None:
        """Add a check: `work` gives its sentence, or raises `Broken` or `Missing`."""
        try:
            found = (PASS, work(), "")
        except Missing as error:
            found = (NOT_CHECKED, str(error), "")
        except Broken as error:
            found = (FAIL, str(error), error.link)
        except MALFORMED as error:
            found = (FAIL, f"Not of the expected form: {type(error).__name__}: {error}", name)
        self.checks.append(Check(len(self.checks) + 1, name, *found))

    @property
    def exit_code(self) -> int:
        """0: all passed. 1: something failed. 2: nothing failed, but something was not checked."""
        states = {check.state for check in self.checks}
        return 1 if FAIL in states else 2 if NOT_CHECKED in states else 0

    @property
    def first_broken(self) -> Check | None:
        """The first check that failed."""
        return next((check for check in self.checks if check.state == FAIL), None)

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        return {"exit": self.exit_code, "checks": [asdict(check) for check in self.checks]}
