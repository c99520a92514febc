"""The report's numbers from the signed replies, in plain Python: what `verify` leaves to arithmetic.

`audit_bundle` is what `cytosae audit verify` and `verifier.pyz` run: everything that `verify_bundle` checks, then
this.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from ..verify import Verdict, verify_bundle
from ..verify.bundle import Bundle
from ..verify.checks import Named
from ..verify.logs import Logs
from ..verify.replies import Replies
from .concepts import CHECKS
from .conclusion import check_verdict
from .deviations import check_deviations
from .headlines import check_headlines, check_integrity
from .numbers import Numbers, check_overall, check_site
from .rounds import check_aggregates, check_privacy

__all__ = ["audit_bundle"]


def audit_bundle(files: Mapping[str, bytes], *, pinned: Mapping[str, Any] | None = None) -> Verdict:
    """All checks of a bundle (path -> bytes); `pinned`: keys.json as the parties gave it to the auditor."""
    return verify_bundle(files, pinned=pinned, more=_checks)


def _checks(bundle: Bundle, logs: Logs, replies: Replies) -> list[Named]:
    held: list[Numbers] = []
    tables: list[Any] = []

    def counted(check: Callable[..., str], *more: Any) -> str:
        held.extend([] if held else [Numbers(bundle, replies)])
        return check(held[0], *more)

    sites = [party for party in sorted(logs) if party != "coordinator"]
    return [
        ("aggregation", partial(check_aggregates, bundle, logs)),
        ("privacy", partial(check_privacy, bundle, logs)),
        *((f"numbers of {site}", partial(counted, check_site, site)) for site in sites),
        ("numbers of the study", partial(counted, check_overall)),
        *((name, partial(counted, check, tables)) for name, check in CHECKS.items()),
        ("headlines", partial(counted, check_headlines)),
        ("verdict", partial(counted, check_verdict)),
        ("integrity", partial(counted, check_integrity, logs)),
        ("deviations", partial(check_deviations, bundle)),
    ]
