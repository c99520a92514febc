"""What every fault code means and what to do about it, in words: for dashboards, `doctor` and docs/operations.md."""

from __future__ import annotations

# code -> (what happened, who does what)
FAULTS: dict[str, tuple[str, str]] = {
    "unreachable": ("the site was not online", "The site: cytosae site serve. It comes back by itself."),
    "relay": ("the site's relay ended without an answer", "Asked again by itself; else the site: logs/relay.log."),
    "deadline": ("no answer in time", "The site is slow or busy: compare `site check` with rounds.deadline_s."),
    "lost": ("the coordinator was restarted before the answer came", "Nothing: the site is asked again."),
    "expired": ("the request was too old when it arrived", "Compare clocks: cytosae doctor at both ends."),
    "busy": ("the site was still at work on another message", "Asked again by itself."),
    "order": ("requests arrived in another order than they were made", "Asked again by itself."),
    "replay": ("the site had seen this request before", "Tell both ends: somebody repeats messages."),
    "approval": ("an officer of the site has to approve it", "The site's officer: cytosae site approve."),
    "policy": ("the site's policy forbids it", "The site decides; the study goes on without it."),
    "budget": ("the site's budget is used up", "The site decides; the study goes on without it."),
    "base": ("the dictionary does not continue the one that the site knows", "An auditor should look at the logs."),
    "withdrawn": ("the site has withdrawn from the study", "Nothing; the report says so."),
    "rollback": ("a log is shorter than one that was shown before", "Stop, keep all files, tell the other parties."),
    "fork": ("a log contradicts one that was shown before", "Stop, keep all files, tell the other parties."),
    "encoder": ("its encoder gives other numbers than the others'", "The same release and weights everywhere."),
    "data": ("its images or their table cannot be used", "The site's lab: cytosae site check DATA."),
    "setup": ("its machine lacks something: disk, memory, weights, keys", "The site's IT: cytosae site check DATA."),
    "study": ("it holds another protocol of this study", "A new invite, and the site joins again."),
    "message": ("a message was not of the agreed form", "The same release everywhere; else tell the developers."),
    "egress": ("the reply held something that may not leave", "The same release everywhere; nothing left."),
    "verification": ("a signature, digest or log did not fit", "Stop, keep all files, tell the other parties."),
    "internal": ("an error that nobody foresaw", "The site: logs/agent.log has its number; tell the developers."),
}  # fmt: skip


def fault_words(code: str) -> tuple[str, str]:
    """What happened and what to do; an unknown code is said as it is."""
    return FAULTS.get(code, (code, "See docs/operations.md."))
