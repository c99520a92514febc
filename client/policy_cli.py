"""`cytosae site policy`: write, explain, check and sign the hospital's policy. Nothing here sends anything."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cytosae_core.policy import SitePolicy

DAYS = 180


def register(commands: Any) -> None:
    """Add the commands under `cytosae site`."""
    policy = commands.add_parser("policy", help="what may leave this hospital: write, explain, check, sign")
    verbs = policy.add_subparsers(dest="verb", required=True, metavar="VERB")
    new = verbs.add_parser("new", help="write a commented policy to read, change and sign")
    new.add_argument("file", type=Path)
    new.add_argument("--site", required=True, help="this hospital's coded name in the study")
    new.add_argument("--name", help="short name of the policy (default: the profile)")
    new.add_argument("--profile", default="masked", choices=("evaluate_only", "masked"))
    new.add_argument("--study", type=Path, help="study.yaml: set the budgets to what this study needs")
    new.add_argument("--from", dest="start", help="first day, YYYY-MM-DD (default: today)")
    new.add_argument("--until", help=f"last day, YYYY-MM-DD (default: {DAYS} days later)")
    new.add_argument("--officer", action="append", default=[], help="an officer's public key, 64 hex digits, or a "
                     "key file that is made when missing; repeat for more")  # fmt: skip
    new.set_defaults(run=_new)
    explain = verbs.add_parser("explain", help="say in plain sentences what a policy allows")
    explain.add_argument("file", help="policy file, or a built-in name: masked, evaluate_only, public-data")
    explain.set_defaults(run=_explain)
    check = verbs.add_parser(
        "check", help="check a policy: readable, valid today, signed; and against a study"
    )
    check.add_argument("file", type=Path)
    check.add_argument("--study", type=Path, help="study.yaml")
    check.add_argument(
        "--home", type=Path, help="the agent's folder with officers.json (default: the file's folder)"
    )
    check.set_defaults(run=_check)
    sign = verbs.add_parser("sign", help="sign a policy as an officer")
    sign.add_argument("file", type=Path)
    sign.add_argument(
        "--key", type=Path, required=True, help="the officer's key; made when missing, mode 0600"
    )
    sign.add_argument(
        "--home", type=Path, help="the agent's folder with officers.json (default: the file's folder)"
    )
    sign.set_defaults(run=_sign)
    for parser in (new, explain, check, sign):
        parser.add_argument("--json", action="store_true")


def _say(options: argparse.Namespace, values: dict[str, Any], lines: list[str]) -> int:
    print(json.dumps(values) if options.json else "\n".join(lines))
    return 0


def _new(options: argparse.Namespace) -> int:
    from datetime import UTC, date, datetime, timedelta

    from cytosae_core.errors import SetupError
    from cytosae_core.policy import SitePolicy, write_policy

    if options.file.exists():
        raise SetupError(
            f"Expected no file at {options.file}.", hint="Choose another name, or edit that file."
        )
    try:
        start = date.fromisoformat(options.start) if options.start else datetime.now(UTC).date()
    except ValueError as error:
        raise SetupError(f"Expected --from YYYY-MM-DD, got {options.start!r}.") from error
    until = options.until or (start + timedelta(days=DAYS)).isoformat()
    officers = tuple(_officer(text) for text in options.officer)
    policy = SitePolicy(
        name=options.name or options.profile.replace("_", "-"), profile=options.profile, site=options.site,
        valid_from=start.isoformat(), valid_until=until, officers=officers,
        approval="first_round_and_report", **_budgets(options.study),
    )  # fmt: skip
    write_policy(options.file, policy)
    return _say(
        options,
        {"file": str(options.file), "policy_sha256": policy.digest, "officers": list(officers)},
        [
            f"Wrote {options.file}: profile {policy.profile}, {policy.valid_from} to {policy.valid_until}.",
            f"1. Read it in plain words:  cytosae site policy explain {options.file}",
            "2. Change what you want in an editor; every key has a comment.",
            f"3. Sign it as an officer:   cytosae site policy sign {options.file} --key officer.key",
        ],
    )


def _officer(text: str) -> str:
    from cytosae_core.keys import SigningKey

    if len(text) == 64 and all(digit in "0123456789abcdef" for digit in text):
        return text
    return SigningKey.load_or_create(Path(text)).public_hex


def _budgets(study: Path | None) -> dict[str, Any]:
    """Budgets that one study needs, with every message sent twice."""
    if study is None:
        return {}
    from cytosae_core.policy import demand

    asked = demand(_study(study))
    return {
        "rounds": asked.rounds,
        "messages_total": 2 * asked.messages,
        "bytes_total": 2 * asked.bytes,
        "max_message_bytes": asked.message_bytes,
        "metrics_per_round": asked.numbers,
    }


def _study(path: Path) -> Any:
    from cytosae_core.config import load_yaml, study_from_dict

    values = load_yaml(path)
    values.pop("local", None)
    return study_from_dict(values)


def _open(text: str) -> SitePolicy:
    from cytosae_core.policy import POLICIES, load_policy, named_policy

    return named_policy(text) if text in POLICIES and not Path(text).exists() else load_policy(Path(text))


def _explain(options: argparse.Namespace) -> int:
    import textwrap

    from cytosae_core.policy import explain

    policy = _open(options.file)
    sections = explain(policy)
    lines = []
    for heading, sentences in sections.items():
        lines += [heading, "-" * len(heading)]
        for sentence in sentences:
            lines += textwrap.wrap(sentence, 100, initial_indent="  - ", subsequent_indent="    ")
        lines.append("")
    values = {"policy": policy.to_dict(), "policy_sha256": policy.digest, "sections": sections}
    return _say(options, values, [*lines, f"SHA-256 of this policy: {policy.digest}"])


def _check(options: argparse.Namespace) -> int:
    import time

    from cytosae_core.errors import SetupError
    from cytosae_core.policy import check_signed, conflicts, load_officers, load_policy, read_signatures

    policy = load_policy(options.file)
    problems: list[str] = []
    home = options.home or options.file.parent
    try:
        policy.check_time(time.time())
    except SetupError as error:
        problems.append(str(error))
    try:
        check_signed(policy, read_signatures(options.file), *load_officers(home), file=options.file.name)
    except SetupError as error:
        problems.append(str(error))
    if options.study:
        problems += conflicts(policy, _study(options.study))
    values = {"policy_sha256": policy.digest, "good": not problems, "problems": problems}
    good = f"{options.file} is readable, valid today and signed" + (
        ", and the study fits." if options.study else "."
    )
    _say(options, values, [f"! {problem}" for problem in problems] or [good])
    return 1 if problems else 0


def _sign(options: argparse.Namespace) -> int:
    from cytosae_core.keys import SigningKey, fingerprint
    from cytosae_core.policy import load_policy, read_signatures, sign_policy

    load_policy(options.file)  # no key is made for a file that cannot be read
    made = not options.key.exists()
    key = SigningKey.load_or_create(options.key)
    policy = sign_policy(options.file, key, options.home)
    have, needed = len(read_signatures(options.file)), policy.signatures_needed
    lines = (
        [f"Made a new officer's key: {options.key} (mode 0600). Keep it off the agent's machine."]
        if made
        else []
    )
    lines += [
        f"Signed {options.file} as {fingerprint(key.public_hex)} ({have} of {needed} signatures).",
        f"SHA-256 of the policy: {policy.digest}",
    ]
    values = {"policy_sha256": policy.digest, "officer": key.public_hex, "key_made": made, "signatures": have}
    return _say(options, values, lines)
