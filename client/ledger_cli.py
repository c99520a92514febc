"""`cytosae site ledger`: what left so far and what the policy leaves; under `dp` also every patient's epsilon.

As a table, as JSON (`--json`), and as a picture of epsilon over releases (`--plot FILE.png` or `.svg`).
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cytosae_core.errors import SetupError

if TYPE_CHECKING:
    from .home import Home

Json = dict[str, Any]
WIDTH = 40  # of the bar, characters


def ledger_command(options: argparse.Namespace) -> int:
    """Print, or draw, both ledgers of a home."""
    from .home import need_home

    found = both_ledgers(need_home(options.home))
    if options.plot:
        draw(found["privacy"], options.plot)
    if options.json:
        print(json.dumps(found, allow_nan=False))
    else:
        print("\n".join(lines(found)))
    return 0


def both_ledgers(home: Home) -> Json:
    """Messages, bytes and questions; and `privacy`, None where the site's policy promises no epsilon.

    Raises:
        EgressError: the privacy ledger was edited or is an old copy. SetupError: a file cannot be read.
    """
    from cytosae_core.policy import load_signed
    from cytosae_core.privacy.ledger import Ledger

    from .budget import open_privacy_ledger

    policy = load_signed(home.folder / "site-policy.yaml", home.agent)
    folder = home.ledger
    with closing(Ledger(folder, policy)) as ledger:
        found = ledger.summary()
    found["privacy"] = None
    if policy.profile == "dp":
        with closing(open_privacy_ledger(folder, policy)) as private:
            found["privacy"] = private.summary()
    return found


def lines(found: Mapping[str, Any]) -> list[str]:
    """Both ledgers as text."""
    since = found["since"] or "the beginning"
    out = [f"Policy {found['policy']}, counted since {since} over {found['studies']} studies"]
    for name, spent in found["spent"].items():
        left, limit = found["left"][name], found["limits"][name]
        out.append(f"  {name:10} {spent:>16,} of {limit:>16,}   left {left:,}")
    out.append(f"  {found['questions']} questions answered about {found['cohorts']} cohorts of patients")
    return out if found["privacy"] is None else [*out, "", *privacy_lines(found["privacy"])]


def privacy_lines(found: Mapping[str, Any]) -> list[str]:
    """What the most charged patient has been charged, release by release."""
    limit, spent = float(found["limit"]), float(found["spent"])
    used = min(WIDTH, round(WIDTH * spent / limit)) if limit else WIDTH
    out = [
        f"Privacy: epsilon {spent:.3f} of {limit:g} at delta {found['delta']:g}, {found['left']:.3f} left, for the "
        f"most charged of {found['patients']:,} patients",
        f"  [{'#' * used}{'.' * (WIDTH - used)}]",
    ]
    if not found["releases"]:
        return [*out, "  Nothing was charged yet."]
    out.append(
        f"  {'when (UTC)':16}  {'study':20} {'step':12} {'patients':>8} {'noise':>7} {'epsilon':>8} {'in all':>8}"
    )
    for item in found["releases"]:
        at = datetime.fromtimestamp(item["at"], UTC).strftime("%Y-%m-%d %H:%M")
        out.append(
            f"  {at:16}  {item['study'][:20]:20} {item['kind'][:12]:12} {item['patients']:>8,} "
            f"{item['noise_multiplier']:>7.2f} {item['epsilon']:>8.3f} {item['spent']:>8.3f}"
        )
    return out


def draw(found: Mapping[str, Any] | None, path: Path) -> None:
    """Epsilon of the most charged patient over releases, with the policy's limit; PNG or SVG by the name.

    Raises:
        SetupError: the policy promises no epsilon, or the file is neither .png nor .svg.
    """
    if found is None:
        raise SetupError(
            "Expected a policy with profile dp.", hint="Others promise no epsilon: nothing to draw."
        )
    if path.suffix.lower() not in (".png", ".svg"):
        raise SetupError("Expected --plot FILE.png or FILE.svg.")
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 3.2), layout="constrained")
    axes = figure.subplots()
    spent = [0.0, *(float(item["spent"]) for item in found["releases"])]
    axes.step(
        range(len(spent) + 1),
        [*spent, spent[-1]],
        where="post",
        color="#1f5fa8",
        linewidth=2,
        label="charged",
    )
    axes.axhline(float(found["limit"]), color="#b3261e", linestyle="--", label="the policy's limit")
    axes.set_ylim(0, float(found["limit"]) * 1.15)
    axes.set_xlim(0, len(spent) - 0.4)
    axes.set_xticks(range(len(spent)), ["", *(str(item["kind"]) for item in found["releases"])], rotation=30)
    axes.set_xlabel("releases, in their order")
    axes.set_ylabel("epsilon")
    axes.set_title(f"Most charged patient, at delta {found['delta']:g}", loc="left", fontsize=10)
    axes.legend(loc="lower right", frameon=False)
    figure.savefig(path, dpi=150)
