"""An officer looks before something leaves: replies wait in the site's state until they are approved by signature."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from cytosae_core.canonical import canonical_json, parse_json, sha256_hex
from cytosae_core.egress import Outgoing
from cytosae_core.errors import CytosaeError, EgressError, SetupError
from cytosae_core.keys import SigningKey, verify_signature
from cytosae_core.policy import SitePolicy
from cytosae_core.tensors import write_atomic

PURPOSE = "urn:cytosae:approval:v1"
# What `first_round_and_report` shows to an officer: the first row changes, and the tables that the report prints.
FIRST_AND_REPORT = frozenset({("round", 1), ("describe", 0), ("score", 0)})


class Approvals:
    """Pending and approved replies of one study.

    Args:
        folder: this study's folder in the site's state.
        policy: names the approval mode and the officers' keys.
    """

    def __init__(self, folder: Path, policy: SitePolicy) -> None:
        self._pending, self._approved, self._policy = folder / "pending", folder / "approved", policy

    def require(self, outgoing: Outgoing, job: str) -> None:
        """Pass when no officer is needed, or one approved exactly this content.

        Raises:
            EgressError: code `approval`; what would leave is written for the officer to look at.
        """
        if not self._needed(str(outgoing.context["kind"]), int(outgoing.context["round"])):
            return
        content = sha256_hex(outgoing.body)
        if self._is_approved(job, content):
            return
        self._pending.mkdir(exist_ok=True)
        shown = {"job": job, "content_sha256": content, **describe_outgoing(outgoing)}
        write_atomic(self._pending / f"{job}.json", canonical_json(shown))
        raise EgressError(
            "Expected an officer's approval of this reply.", hint="cytosae site approve", code="approval",
            reason="APPROVAL",
        )  # fmt: skip

    def _needed(self, kind: str, number: int) -> bool:
        mode = self._policy.approval
        return mode == "always" or (mode == "first_round_and_report" and (kind, number) in FIRST_AND_REPORT)

    def _is_approved(self, job: str, content: str) -> bool:
        try:
            found = parse_json((self._approved / f"{job}.json").read_bytes())
            message = canonical_json({"job": job, "content_sha256": content})
            if found["officer"] not in self._policy.officers:
                return False
            verify_signature(found["officer"], PURPOSE, message, bytes.fromhex(found["signature"]))
        except (OSError, CytosaeError, KeyError, TypeError, ValueError):
            return False
        return True

    def waiting(self) -> list[dict[str, Any]]:
        """What waits, oldest first."""
        paths = sorted(self._pending.glob("*.json"), key=lambda path: path.stat().st_mtime)
        return [dict(parse_json(path.read_bytes())) for path in paths]

    def approve(self, job: str, officer: SigningKey) -> None:
        """Sign what waits under `job`.

        Raises:
            SetupError: nothing waits under that job, or the key is not one of the policy's officers.
        """
        if officer.public_hex not in self._policy.officers:
            raise SetupError(
                "Expected the key of an officer that the policy names.", hint="cytosae site policy"
            )
        path = self._pending / f"{job}.json"
        if not path.exists():
            raise SetupError("Expected a waiting reply of this job.", hint="cytosae site approve --list")
        content = parse_json(path.read_bytes())["content_sha256"]
        message = canonical_json({"job": job, "content_sha256": content})
        self._approved.mkdir(exist_ok=True)
        signed = {"officer": officer.public_hex, "signature": officer.sign(PURPOSE, message).hex()}
        write_atomic(self._approved / f"{job}.json", canonical_json(signed))
        path.unlink()


def describe_outgoing(outgoing: Outgoing) -> dict[str, Any]:
    """What would leave, for people: tensors with size and range, values of small ones, what was suppressed."""
    return {
        "kind": outgoing.context["kind"],
        "round": outgoing.context["round"],
        "bytes": len(outgoing.body),
        "facts": outgoing.facts,
        "gate": outgoing.gate,
        "tensors": [
            {
                "name": name,
                "dtype": values.dtype.name,
                "shape": list(values.shape),
                "bytes": values.nbytes,
                "suppressed": outgoing.suppressed.get(name, 0),
                "values": _values(values),
            }
            for name, values in outgoing.tensors.items()
        ],
    }


def _values(values: np.ndarray[Any, Any]) -> list[float | None]:
    """Up to 16 values; larger tensors show their first ones."""
    return [None if np.isnan(value) else round(float(value), 6) for value in values.ravel()[:16]]
