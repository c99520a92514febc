"""The checks, in order. Each is one sentence that the auditor may rely on, or the first link that is broken."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from ..statement import COORDINATOR
from . import bundle as files
from . import logs as books
from . import messages, numbers
from .verdict import Missing, Verdict

Work = Callable[[], str]


def verify_bundle(data: Mapping[str, bytes], *, pinned: Mapping[str, Any] | None = None) -> Verdict:
    """Check a bundle.

    Args:
        data: path -> bytes of every file.
        pinned: the content of keys.json as the parties gave it to the auditor; without it, whose keys these are is
            not checked.
    """
    verdict, bundle = Verdict(), files.Bundle(data)
    logs: dict[str, books.PartyLog] = {}
    verdict.run("files", partial(files.check_manifest, bundle))
    verdict.run("protocol", partial(files.check_protocol, bundle))
    verdict.run("keys", partial(files.check_keys, bundle, pinned))
    parties = sorted({path.split("/")[0] for path in bundle.under("logs/")} | {COORDINATOR})
    for party in parties:
        verdict.run(f"log of {party}", partial(_open, bundle, party, logs))
    for name, work in _across(bundle, logs, sorted(set(parties) - {COORDINATOR})):
        verdict.run(name, work if len(logs) == len(parties) else _not_reached)
    return verdict


def _open(bundle: files.Bundle, party: str, logs: dict[str, books.PartyLog]) -> str:
    logs[party] = books.open_log(bundle, party)
    count = len(logs[party].statements)
    return f"{count} signed entries in order, under the head that {party} signed."


def _across(bundle: files.Bundle, logs: books.Logs, sites: list[str]) -> list[tuple[str, Work]]:
    """Checks that need every log."""
    replies, found = messages.Replies(), list[numbers.Numbers]()

    def counted(check: Callable[..., str], *more: str) -> str:
        found.extend([] if found else [numbers.Numbers(bundle, replies)])
        return check(found[0], *more)

    return [
        ("enrolment", partial(books.check_enrolment, bundle, logs)),
        ("cosignatures", partial(books.check_cosignatures, bundle, logs)),
        ("heads", partial(books.check_heads, logs)),
        ("releases", partial(messages.check_releases, logs)),
        *((f"policy of {site}", partial(messages.check_policy, bundle, logs, site)) for site in sites),
        *((f"messages of {site}", partial(messages.reconcile, logs, site)) for site in sites),
        ("privacy", lambda: messages.check_privacy(logs, bundle.table("report.json", canonical=False))),
        ("replies", partial(messages.check_replies, bundle, logs, replies)),
        ("aggregation", partial(messages.check_aggregates, bundle, logs)),
        ("report", partial(numbers.check_report, bundle, logs)),
        ("page", partial(numbers.check_page, bundle, logs)),
        *((f"numbers of {site}", partial(counted, numbers.check_site, site)) for site in sites),
        ("numbers of the study", partial(counted, numbers.check_overall)),
        ("numbers of the concepts", partial(counted, numbers.check_concepts)),
    ]


def _not_reached() -> str:
    raise Missing("Not reached: a log above does not hold.")
