"""`cytosae study new`: asks in plain words and writes a protocol that everything else accepts.

Answers come from a terminal, from flags, from a file (--answers), or are the defaults (--yes). Nothing is written
before everything is answered and checked, and a file that is there is never replaced.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cytosae_core.config import StudyConfig

    from .study_questions import Question
    from .study_readers import Answers

REPEATED = {"sites": "site", "classes": "class"}
# Flags for one word or number each; the keys of `study_questions.QUESTIONS` (a test compares).
FLAGS = (
    "name", "question", "hypothesis", "kind", "simulation", "policy", "start", "encoder", "primary", "threshold",
    "endpoints", "selection", "concepts", "support", "min_sites", "fdr", "stages", "poc_sites", "poc_criteria",
    "review_sites", "review_criteria", "external_sites", "external_criteria", "quorum", "profile", "layer", "steps",
    "epsilon", "delta", "patients", "patients_in_all", "sites_of_a_patient", "classes_of_a_patient", "atoms",
    "secure_aggregation", "rows", "active", "rounds", "min_units", "recurrence_steps", "seed", "weights",
    "max_images",
)  # fmt: skip
SHOWN = {
    "name",
    "question",
    "hypothesis",
    "kind",
    "start",
    "encoder",
    "primary",
    "threshold",
    "stages",
    "quorum",
}


def register(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command."""
    new = commands.add_parser(
        "new", help="plan a study: answer questions, get study.yaml",
        epilog="Further answers have flags too: --"
        + ", --".join(name.replace("_", "-") for name in FLAGS if name not in SHOWN),
    )  # fmt: skip
    new.add_argument(
        "out", type=Path, nargs="?", metavar="OUT", help="folder for study.yaml (default: the name)"
    )
    new.add_argument("--answers", type=Path, metavar="FILE.yaml", help="answers by name, such as kind: train")
    new.add_argument("--yes", action="store_true", help="take the defaults of whatever is not answered")
    new.add_argument("--json", action="store_true", help="print path and digest as JSON")
    for key, flag in REPEATED.items():
        text = "NAME or NAME=FOLDER, repeated" if key == "sites" else "a class of cells, repeated"
        new.add_argument(f"--{flag}", action="append", dest=key, metavar=flag.upper(), help=text)
    for key in FLAGS:
        shown = None if key in SHOWN else argparse.SUPPRESS
        new.add_argument(f"--{key.replace('_', '-')}", dest=key, metavar="ANSWER", help=shown)
    new.set_defaults(run=_new)


def _new(options: argparse.Namespace) -> int:
    from cytosae_core.errors import StudyError

    from .study_answers import keep_start, local_of, study_of
    from .study_yaml import write_new

    if options.out is not None and (options.out / "study.yaml").exists():
        raise StudyError(f"Expected no study.yaml in {options.out} yet.", hint="Choose another folder.")
    try:
        answers = collect(_given(options), _asker(options), _suggested(options.out))
    except KeyboardInterrupt:
        print("\ncytosae: stopped, nothing was written.", file=sys.stderr)
        return 130
    out = options.out or Path(answers["name"].replace(" ", "-"))
    study, local = study_of(answers), local_of(answers, out)
    if local is None:
        keep_start(answers, out)
    path = write_new(out, study, local)
    _print(path, study, answers, as_json=options.json)
    return 0


def _given(options: argparse.Namespace) -> dict[str, Any]:
    """Answers from the file, then from flags: a flag wins."""
    from cytosae_core.config import load_yaml
    from cytosae_core.errors import StudyError

    from .study_questions import BY_KEY

    found = load_yaml(options.answers) if options.answers else {}
    unknown = sorted(set(found) - set(BY_KEY))
    if unknown:
        raise StudyError(
            f"Expected known answers in {options.answers}, got {unknown}.", hint=f"{sorted(BY_KEY)}."
        )
    for key in (*REPEATED, *FLAGS):
        value = getattr(options, key)
        if value is not None:
            found[key] = ", ".join(value) if isinstance(value, list) else value
    return found


Ask = Callable[["Question", str | None], str]


def _asker(options: argparse.Namespace) -> Ask | None:
    """How a missing answer is asked for; None: its default is taken (--yes).

    Raises:
        StudyError: when it is called and nobody is there to answer.
    """
    from cytosae_core.errors import StudyError

    if options.yes:
        return None
    if sys.stdin.isatty():
        return _at_terminal

    def nobody(question: Question, default: str | None) -> str:
        flag = REPEATED.get(question.key, question.key).replace("_", "-")
        more = " or --yes to take the defaults" if default is not None else ""
        raise StudyError(
            f"Expected an answer to {question.key!r}: there is no terminal to ask at.",
            hint=f"Give --{flag}{more}, or --answers FILE.yaml. Needed are --name, --site and --class.",
        )

    return nobody


def _at_terminal(question: Question, default: str | None) -> str:
    shown = f" [{default}]" if default is not None else ""
    print(f"\n{question.text}\n  {question.help}", file=sys.stderr)
    print(f"  {question.key}{shown}: ", end="", file=sys.stderr, flush=True)
    line = sys.stdin.readline()
    if not line:
        raise KeyboardInterrupt  # Ctrl-D is a way to leave, too
    return line.strip()


def _suggested(out: Path | None) -> dict[str, str]:
    """Defaults that the command line gives: the folder's name is the study's."""
    return {"name": out.resolve().name} if out is not None else {}


def collect(given: dict[str, Any], ask: Ask | None, suggested: dict[str, str]) -> Answers:
    """Every answer: as given, else asked for (again until it can be read), else its default.

    Raises:
        StudyError: an answer that was given cannot be read or does not apply, or one that is needed is missing.
    """
    from cytosae_core.errors import StudyError

    from .study_questions import QUESTIONS

    answers: Answers = {}
    for question in QUESTIONS:
        key = question.key
        if not question.applies(answers):
            if given.get(key) is not None:
                raise StudyError(f"Expected no answer to {key!r}: with the other answers it is not asked.")
            continue
        default = suggested.get(key, question.default(answers))
        if key in given:
            answers[key] = _read(question, given[key], answers)
        elif ask is not None and question.asked:
            answers[key] = _ask_until_read(question, default, answers, ask)
        elif default is not None or not question.asked:
            answers[key] = None if default is None else _read(question, default, answers)
        else:
            flag = REPEATED.get(key, key).replace("_", "-")
            raise StudyError(f"Expected an answer to {key!r}: it has no default.", hint=f"Give --{flag}.")
    return answers


def _read(question: Question, value: Any, answers: Answers) -> Any:
    from cytosae_core.errors import StudyError

    try:
        return question.read(value, answers)
    except StudyError as error:
        raise StudyError(f"{error.args[0]} (answer {question.key!r})", hint=error.hint) from error


def _ask_until_read(question: Question, default: Any, answers: Answers, ask: Ask) -> Any:
    from cytosae_core.errors import StudyError

    shown = None if default is None else str(default)
    while True:
        text = ask(question, shown)
        if not text and shown is None:
            print("  An answer is needed here.", file=sys.stderr)
            continue
        try:
            return question.read(text or default, answers)
        except StudyError as error:
            print(f"  {error}", file=sys.stderr)


def _print(path: Path, study: StudyConfig, answers: Answers, *, as_json: bool) -> None:
    steps = [f"cytosae study plan {path} --out {path.with_name('plan.html')}"]
    if any(answers["sites"].values()):
        steps.append(f"cytosae study run {path}")
    else:
        steps.append(f"cytosae study invite {study.sites[0]} {path.parent} --endpoint HOST:PORT")
        steps.append(f"cytosae study start {path.parent}   (docs/operations.md)")
    if as_json:
        print(json.dumps({"path": str(path), "sha256": study.digest, "next": steps}))
        return
    print(f"\nProtocol: {path}\nsha256    {study.digest}\n\nIt is in every message from now on. Next:")
    for step in steps:
        print(f"  {step}")
    if study.privacy.atoms:
        print(f"\n{_worth(study)}")
    if len(study.sites) < study.plan.min_sites:
        print(
            f"\nWith {len(study.sites)} sites the best verdict is provisional: {study.plan.min_sites} are needed."
        )


def _worth(study: StudyConfig) -> str:
    """Whether adding concepts under `dp` is expected to pay, before anybody computes anything."""
    from cytosae_core.privacy.advice import advise

    terms = study.privacy
    found = advise(
        terms.epsilon, terms.delta, width=study.encoder.d, sites=len(study.sites),
        sites_of_a_patient=terms.sites_of_a_patient, patients=terms.patients * len(study.sites),
    )  # fmt: skip
    needed = found.central if terms.secure_aggregation else found.local
    have = terms.patients * len(study.sites)
    if have >= needed:
        return f"Adding concepts is expected to pay: {have:,} patients at least, from {needed:,} on."
    return (
        f"Adding concepts is NOT expected to pay: {have:,} patients at least, and it does from {needed:,} on. A "
        "frozen dictionary (kind: validate) gives the same statistics with less noise."
    )
