"""The checks, in order. Each is one sentence that the auditor may rely on, or the first link that is broken."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from ..statement import COORDINATOR
from . import bundle as files
from . import logs as books
from . import messages, replies
from .verdict import Missing, Verdict

Named = tuple[str, Callable[[], str]]
# Checks of a caller that need verified logs and replies: `audit/recompute` adds the report's numbers.
More = Callable[[files.Bundle, books.Logs, replies.Replies], Sequence[Named]]


def verify_bundle(
    data: Mapping[str, bytes], *, pinned: Mapping[str, Any] | None = None, more: More = lambda *_: ()
) -> Verdict:
    """Check who said what, in which order, and that nothing was changed or left out since.

    Args:
        data: path -> bytes of every file of the bundle.
        pinned: keys.json as the parties gave it to the auditor; without it, whose keys these are is not checked.
        more: further checks, run after these.
    """
    bundle, verdict, held = files.Bundle(data), Verdict(), replies.Replies()
    logs: dict[str, books.PartyLog] = {}
    parties = sorted({path.split("/")[0] for path in bundle.under("logs/")} | {COORDINATOR})
    sites = [party for party in parties if party != COORDINATOR]
    verdict.run("files", partial(files.check_manifest, bundle))
    verdict.run("protocol", partial(files.check_protocol, bundle))
    verdict.run("keys", partial(files.check_keys, bundle, pinned))
    for party in parties:
        verdict.run(f"log of {party}", partial(books.check_log, bundle, party, logs))
    across: list[Named] = [
        ("enrolment", partial(books.check_enrolment, bundle, logs)),
        ("cosignatures", partial(books.check_cosignatures, bundle, logs)),
        ("heads", partial(books.check_heads, logs)),
        ("releases", partial(messages.check_releases, logs)),
        *((f"policy of {site}", partial(messages.check_policy, bundle, logs, site)) for site in sites),
        *((f"messages of {site}", partial(messages.reconcile, logs, site)) for site in sites),
        ("replies", partial(replies.check_replies, bundle, logs, held)),
        ("report", partial(messages.check_report, bundle, logs)),
        *more(bundle, logs, held),
    ]
    for name, work in across:
        verdict.run(name, work if len(logs) == len(parties) else _not_reached)
    return verdict


def _not_reached() -> str:
    raise Missing("Not reached: a log above does not hold.")
