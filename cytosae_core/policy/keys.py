"""Every key of `site-policy.yaml`: where it stands, what it may be, and what it is for. One table for all readers."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import date
from decimal import Decimal

from ..allowed import ALLOWED, Field
from ..errors import SetupError

URN = "urn:cytosae:site-policy:v1"
PROFILES = ("evaluate_only", "masked", "dp")
APPROVALS = ("first_round_and_report", "always", "never")
# Without disclosure control nothing may run outside simulations; with it, this is the floor (audit S2).
MIN_UNITS, ROUND_TO = 11, 5

NAME = re.compile(r"[A-Za-z][A-Za-z0-9_.-]{0,19}")
SITE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
DECIMAL = re.compile(r"(0|[1-9][0-9]{0,5})(\.[0-9]{1,12})?")
OFFICER = re.compile(r"[0-9a-f]{64}")
FINGERPRINT = re.compile(r"[0-9a-f]{4}(-[0-9a-f]{4}){4}")
DIGITS = re.compile(r"[0-9]{5}")


@dataclass(frozen=True)
class Key:
    """One key.

    Attributes:
        path: place in the file, `limits.rounds`.
        attribute: of `SitePolicy`.
        kind: name, site, date, choice, integer, decimal, tensors, metrics, officers or studies.
        low, high: smallest and largest value that a file may hold, decimal text.
        why: what it limits, for the file's comments and docs/policy.md.
        choices: of a choice.
    """

    path: str
    attribute: str
    kind: str
    low: str = ""
    high: str = ""
    why: str = ""
    choices: tuple[str, ...] = ()


KEYS = (
    Key("name", "name", "name", why="Short name of this policy. It travels in the first reply: no personal data."),
    Key("site", "site", "site", why="Coded name of this hospital in the study."),
    Key("valid.from", "valid_from", "date", why="First day (UTC). Budgets count from here."),
    Key("valid.until", "valid_until", "date", why="Last day, included (UTC). After it the door is closed."),
    Key("profile", "profile", "choice", why="evaluate_only | masked | dp", choices=PROFILES),
    Key("limits.rounds", "rounds", "integer", "0", "100000", "Dictionary updates that may leave, in all."),
    Key("limits.bytes_per_message", "max_message_bytes", "integer", "65536", "2147483647", "Largest message."),
    Key("limits.bytes_total", "bytes_total", "integer", "65536", str(1 << 50), "All messages together."),
    Key("limits.messages_total", "messages_total", "integer", "1", "10000000", "Replies in all, repeats too."),
    Key("limits.metrics_per_round", "metrics_per_round", "integer", "0", str(1 << 40),
        "Numbers (not dictionary updates) in one step of one study."),
    Key("privacy.epsilon_total", "epsilon_total", "decimal", "0.001", "100",
        "Privacy loss of one patient over all studies (profile dp)."),
    Key("privacy.delta_max", "delta_max", "decimal", "0.000000000001", "0.001",
        "Largest delta of that statement (profile dp)."),
    Key("disclosure.min_units", "min_units", "integer", str(MIN_UNITS), "1000000",
        "Fewest patients behind any number (S2)."),
    Key("disclosure.round_to", "round_to", "integer", str(ROUND_TO), "1000", "Counts are multiples of this (S3)."),
    Key("disclosure.max_unit_share", "max_unit_share", "decimal", "0.01", "0.50",
        "Largest share of one patient in a sum (S4)."),
    Key("disclosure.nk_n", "nk_n", "integer", "2", "10", "The n largest patients together ..."),
    Key("disclosure.nk_k", "nk_k", "decimal", "0.10", "0.90", "... hold at most this share (S4)."),
    Key("disclosure.p_ratio", "p_ratio", "decimal", "0.10", "1.00",
        "All but the two largest hold at least this share of the largest (S4)."),
    Key("gate.self_attack_max_cos", "self_attack_max_cos", "decimal", "0.05", "0.95",
        "An update that gives a cell back with a larger cosine is withheld."),
    Key("gate.dsnr_max", "dsnr_max", "decimal", "0.05", "1.00",
        "Largest share of one patient in a dictionary row's summed activation."),
    Key("gate.fvu_max", "fvu_max", "decimal", "0.05", "1.00",
        "A dictionary that explains less of this site's cells is refused."),
    Key("gate.fvu_max_ratio", "fvu_max_ratio", "decimal", "1.00", "10.00",
        "A dictionary this much worse than the last accepted one is refused."),
    Key("release.tensors", "tensors", "tensors", why="What training may send. Names not listed are refused."),
    Key("release.metrics", "metrics", "metrics", why="What evaluation may send. Names not listed are refused."),
    Key("approval.mode", "approval", "choice",
        why="first_round_and_report | always | never: what waits for an officer.", choices=APPROVALS),
    Key("approval.signatures_needed", "signatures_needed", "integer", "1", "10",
        "Officers who must sign this file and every change of it."),
    Key("approval.officers", "officers", "officers", why="Public keys (Ed25519, 64 hex digits)."),
    Key("studies", "studies", "studies", why="Fingerprints of study keys that may ask; empty: any study that the "
        "hospital joins."),
)  # fmt: skip
BY_ATTRIBUTE = {key.attribute: key for key in KEYS}


def is_training(field: Field) -> bool:
    """Names under `release.tensors`: updates, token sums and golden cells. All others are metrics."""
    if field.rule in ("noised", "sum"):
        return field.rule == "sum"
    return field.rule in ("open", "update") or "evaluate_only" not in field.profiles


def names_of(profile: str, kind: str) -> tuple[str, ...]:
    """All names of `ALLOWED` under a profile that belong to `tensors` or `metrics`, in the table's order."""
    training = kind == "tensors"
    found = [f.name for f in ALLOWED if profile in f.profiles and is_training(f) == training]
    return tuple(dict.fromkeys(found))


def fail(key: Key, value: object, expected: str, hint: str = "") -> None:
    """Raise the SetupError of a key with a bad value."""
    raise SetupError(f"Expected {key.path} {expected}, got {str(value)[:40]!r}.", hint=hint, reason="POLICY")


def check_key(key: Key, value: object, profile: str) -> None:
    """One value against the table. Raises SetupError, reason YAML_TYPE or POLICY."""
    if key.kind in ("tensors", "metrics", "officers", "studies"):
        _check_list(key, value, profile)
    elif key.kind == "integer":
        if isinstance(value, bool) or not isinstance(value, int):
            raise SetupError(f"Expected {key.path} to be a whole number.", reason="YAML_TYPE")
        if not int(key.low) <= value <= int(key.high):
            fail(key, value, f"between {key.low} and {key.high}")
    else:
        _check_text(key, value)


def _check_text(key: Key, value: object) -> None:
    if not isinstance(value, str):
        hint = "Decimals and dates are text in double quotes."
        raise SetupError(f"Expected {key.path} to be text.", hint=hint, reason="YAML_TYPE")
    if key.kind == "choice" and value not in key.choices:
        fail(key, value, f"in {key.choices}")
    if key.kind == "name" and (not NAME.fullmatch(value) or DIGITS.search(value)):
        fail(key, value, "of letters, digits, '.', '_' and '-', at most 20, no five digits in a row")
    if key.kind == "site" and not SITE.fullmatch(value):
        fail(key, value, "of letters, digits, '.', '_' and '-', at most 64")
    if key.kind == "date":
        day_of(value, key)
    if key.kind == "decimal" and (
        not DECIMAL.fullmatch(value) or not Decimal(key.low) <= Decimal(value) <= Decimal(key.high)
    ):
        fail(key, value, f"between {key.low} and {key.high}, as decimal text")


def _check_list(key: Key, value: object, profile: str) -> None:
    if not isinstance(value, list | tuple) or not all(isinstance(item, str) for item in value):
        raise SetupError(f"Expected {key.path} to be a list of text.", reason="YAML_TYPE")
    if len(set(value)) != len(value):
        fail(key, value, "without repeats")
    if key.kind in ("tensors", "metrics"):
        for name in value:
            if name not in names_of(profile, key.kind):
                hint = "No wildcards; docs/policy.md lists the names of each profile."
                fail(key, name, f"to hold names of profile={profile}", hint)
        return
    form = OFFICER if key.kind == "officers" else FINGERPRINT
    what = (
        "public keys of 64 hex digits"
        if key.kind == "officers"
        else "fingerprints like 0a1b-2c3d-4e5f-6071-8293"
    )
    for item in value:
        if not form.fullmatch(item):
            fail(key, item, f"to hold {what}")


def day_of(text: str, key: Key) -> date:
    """The date in `text` (YYYY-MM-DD)."""
    try:
        if not re.fullmatch(r"[0-9]{4}-[0-9]{2}-[0-9]{2}", text):
            raise ValueError(text)
        return date.fromisoformat(text)
    except ValueError as error:
        hint = 'For example "2027-05-01".'
        raise SetupError(
            f"Expected {key.path} to be a date YYYY-MM-DD.", hint=hint, reason="POLICY"
        ) from error
