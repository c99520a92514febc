"""What the auditor is told: numbered checks, each with a verdict, one sentence and the link that broke."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

from ...errors import CytosaeError

PASS, FAIL, NOT_CHECKED = "PASS", "FAIL", "NOT CHECKED"
MALFORMED = (CytosaeError, LookupError, ValueError, TypeError, AttributeError, ArithmeticError, StopIteration)


class Broken(Exception):
    """A claim does not hold. The second argument names where: party and leaf, or file."""


class Missing(Exception):
    """A claim that this bundle, or this call, gives no means to check."""


def need(holds: object, text: str, link: str) -> None:
    """Raise `Broken` unless it holds."""
    if not holds:
        raise Broken(text, link)


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
            found = (FAIL, *error.args)
        except MALFORMED as error:
            found = (FAIL, f"Not of the expected form: {type(error).__name__}: {error}", name)
        self.checks.append(Check(len(self.checks) + 1, name, *found))

    @property
    def exit_code(self) -> int:
        """0: all passed. 1: something failed. 2: nothing failed, but something was not checked."""
        states = {check.state for check in self.checks}
        return 1 if FAIL in states else 2 if NOT_CHECKED in states else 0

    def to_dict(self) -> dict[str, Any]:
        """As JSON values; `first_broken` is where to look first."""
        broken = [f"{check.link}: {check.text}" for check in self.checks if check.state == FAIL]
        checks = [asdict(check) for check in self.checks]
        return {"exit": self.exit_code, "first_broken": broken[0] if broken else "", "checks": checks}
