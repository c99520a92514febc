"""Errors, a small tree by who must act. Every message says what was expected and carries a hint.

    CytosaeError
    |- DataError          lab staff: the images or the label table
    |- SetupError         hospital IT: environment, weights, disk, keys, policy
    |- StudyError         coordinator: the study protocol or its state
    |- MessageError       the peer: a message that cannot be accepted
    |- EgressError        egress officer: something was refused at the one door
    `- VerificationError  auditor: a signature, digest or proof that does not hold

`code` is the only part of an error that may cross a site's boundary: messages and hints may name local
things and stay at the site (DESIGN section 2).
"""

from __future__ import annotations

# Closed set of codes that may leave a site inside a refused reply.
WIRE_CODES = frozenset(
    {
        *("data", "setup", "study", "message", "egress", "verification", "internal", "expired", "busy"),
        *("replay", "order", "approval", "policy", "budget", "base", "withdrawn", "rollback", "fork"),
    }
)


class CytosaeError(Exception):
    """Base of all errors that a user may see.

    Args:
        message: what was expected and what was found, as `Expected name=value ...`.
        hint: what to do about it, one sentence.
        code: wire code, one of `WIRE_CODES`; the class default when empty.
        reason: what exactly was wrong, one upper-case word such as `PIX_LIMIT` (table of bad inputs in
            docs/security.md). It never names data, so it may stand in local logs; it does not cross the boundary.
    """

    default_code = "internal"

    def __init__(self, message: str, *, hint: str = "", code: str = "", reason: str = "") -> None:
        super().__init__(message)
        self.hint = hint
        self.code = code or self.default_code
        self.reason = reason

    def __str__(self) -> str:
        text = super().__str__()
        return f"{text} Hint: {self.hint}" if self.hint else text


class DataError(CytosaeError):
    """The images or their table are not usable: lab staff must act."""

    default_code = "data"


class SetupError(CytosaeError):
    """Environment, weights, disk, keys or policy are not usable: hospital IT must act."""

    default_code = "setup"


class StudyError(CytosaeError):
    """The study protocol or its state is not usable: the coordinator must act."""

    default_code = "study"


class MessageError(CytosaeError):
    """A peer's message cannot be accepted."""

    default_code = "message"


class EgressError(CytosaeError):
    """Something was refused at the door: the site's egress officer must look."""

    default_code = "egress"


class VerificationError(CytosaeError):
    """A signature, digest or proof does not hold."""

    default_code = "verification"
