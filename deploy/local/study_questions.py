"""What `cytosae study new` asks, in order: every question with its help, its default and how its answer is read.

Answers come as text (typed, or from a flag) or as YAML values (from --answers); `read` takes both.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cytosae_core.config import COORDINATOR, KINDS, SITE_NAME, STUDY_NAME
from cytosae_core.errors import SetupError, StudyError
from cytosae_core.plan import (
    ENDPOINTS,
    HIGHER_IS_BETTER,
    RANGES,
    SELECTIONS,
    STAGES,
    Criterion,
    PlanConfig,
    Stage,
)

Answers = dict[str, Any]
NONE = ("none", "-")
DEFAULT_PLAN = PlanConfig()
THRESHOLDS = {
    **{item.name: item.threshold for item in DEFAULT_PLAN.endpoints},
    "transfer_gain": 0.0,
    "site_readable": 0.68,
}
MAX_SENTENCE = 500
_CRITERION = re.compile(
    r"(?P<name>[a-z_]+)\s*(?P<sign><=|>=)?\s*(?P<value>-?[0-9.]+)(\s+from\s+(?P<sites>[0-9]+)(\s+sites?)?)?"
)


@dataclass(frozen=True)
class Question:
    """One question.

    Attributes:
        key: name of the answer: its flag is --key, its line in an answers file key.
        text: the question. help: a sentence that helps to answer it.
        read: the answer's value from text or YAML, checked; raises StudyError.
        default: from the answers so far; None: there is none and it must be answered.
        applies: from the answers so far: whether it is asked at all.
        asked: False for settings that keep their default unless a flag or the answers file names them.
    """

    key: str
    text: str
    help: str
    read: Callable[[Any, Answers], Any]
    default: Callable[[Answers], Any]
    applies: Callable[[Answers], bool] = lambda answers: True
    asked: bool = True


def _sentence(value: Any, answers: Answers) -> str:
    if not isinstance(value, str) or len(value) > MAX_SENTENCE or not value.isprintable():
        raise StudyError(f"Expected one printable sentence of at most {MAX_SENTENCE} characters.")
    return value.strip()


def _name(value: Any, answers: Answers) -> str:
    if not isinstance(value, str) or not STUDY_NAME.fullmatch(value.strip()):
        raise StudyError("Expected a study name of 1 to 100 letters, digits, spaces, '.', '_' and '-'.")
    return value.strip()


def _choice(*allowed: str) -> Callable[[Any, Answers], str]:
    def read(value: Any, answers: Answers) -> str:
        if value not in allowed:
            raise StudyError(f"Expected one of {', '.join(allowed)}, got {value!r}.")
        return str(value)

    return read


def _words(value: Any, answers: Answers) -> tuple[str, ...]:
    """A list, or text with commas; `none` is empty."""
    if value is None or value in NONE:
        return ()
    items = [item.strip() for item in value.split(",")] if isinstance(value, str) else value
    if not isinstance(items, list | tuple) or not all(
        isinstance(i, str) and i and i.isprintable() for i in items
    ):
        raise StudyError("Expected names with commas between them.")
    if len(set(items)) != len(items):
        raise StudyError("Expected every name once.")
    return tuple(items)


def _sites(value: Any, answers: Answers) -> dict[str, str]:
    """Site -> its folder, empty where none was given. Text: `a, b` or `a=folder, b=folder`."""
    if isinstance(value, Mapping):
        found = {str(name): str(folder or "") for name, folder in value.items()}
    else:
        pairs = [item.partition("=") for item in _words(value, answers)]
        found = {name.strip(): folder.strip() for name, _, folder in pairs}
        if len(found) != len(pairs):
            raise StudyError("Expected every site once.")
    if not found or any(not SITE_NAME.fullmatch(name) or name == COORDINATOR for name in found):
        raise StudyError(
            "Expected site names of letters, digits, '.', '_' and '-', at most 64, not 'coordinator'.",
            hint="Coded names travel and stand in every log; full names belong in the study's paper files.",
        )
    if any(found.values()) and not all(found.values()):
        raise StudyError(
            "Expected a folder for every site, or for none.", hint="NAME=FOLDER, NAME=FOLDER, ..."
        )
    return found


def _whole(low: int, high: int) -> Callable[[Any, Answers], int]:
    def read(value: Any, answers: Answers) -> int:
        text = str(value).strip()
        if isinstance(value, bool | float) or not re.fullmatch(r"[0-9]{1,9}", text):
            raise StudyError(f"Expected a whole number, got {value!r}.")
        if not low <= int(text) <= high:
            raise StudyError(f"Expected a whole number from {low} to {high}, got {text}.")
        return int(text)

    return read


def _decimal(value: Any, low: float, high: float) -> float:
    try:
        found = float(str(value).strip()) if not isinstance(value, bool) else float("nan")
    except ValueError:
        found = float("nan")
    if not low <= found <= high:
        raise StudyError(f"Expected a number from {low:g} to {high:g}, got {value!r}.")
    return found


def _share(value: Any, answers: Answers) -> float:
    found = _decimal(value, 0.0, 0.5)
    if found == 0:
        raise StudyError("Expected a share above 0.")
    return found


def _threshold(value: Any, answers: Answers) -> float:
    return _decimal(value, *RANGES[answers["primary"]])


def _yes(value: Any, answers: Answers) -> bool:
    words = {"yes": True, "y": True, "no": False, "n": False}
    if isinstance(value, bool):
        return value
    if str(value).strip().lower() not in words:
        raise StudyError(f"Expected yes or no, got {value!r}.")
    return words[str(value).strip().lower()]


def _primary(value: Any, answers: Answers) -> str:
    name = _choice(*ENDPOINTS)(value, answers)
    if name != "fvu" and len(answers["classes"]) < 2:
        raise StudyError(
            f"Expected two or more classes for the primary endpoint {name}.",
            hint="Without classes only fvu can decide.",
        )
    return name


def _endpoints(value: Any, answers: Answers) -> dict[str, float]:
    """Other endpoint -> threshold. Text: `transfer 0.5, fvu 0.5`."""
    if isinstance(value, Mapping):
        pairs = [(str(name), number) for name, number in value.items()]
    else:
        split = [item.split() for item in _words(value, answers)]
        if any(len(parts) != 2 for parts in split):
            raise StudyError("Expected names and thresholds, such as: transfer 0.5, fvu 0.5")
        pairs = [(parts[0], parts[1]) for parts in split]
    found = {}
    for name, number in pairs:
        if name not in ENDPOINTS or name == answers["primary"] or name in found:
            others = ", ".join(other for other in ENDPOINTS if other != answers["primary"])
            raise StudyError(f"Expected each of {others} at most once, got {name!r}.")
        found[name] = _decimal(number, *RANGES[name])
    return found


def _stages(value: Any, answers: Answers) -> tuple[str, ...]:
    names = _words(value, answers)
    if list(names) != [name for name in STAGES if name in names]:
        raise StudyError(f"Expected stages in this order, each at most once: {', '.join(STAGES)}.")
    return names


def _stage_sites(value: Any, answers: Answers) -> tuple[str, ...]:
    names = () if value == "all" else _words(value, answers)
    unknown = [name for name in names if name not in answers["sites"]]
    if unknown:
        raise StudyError(
            f"Expected sites of the study ({', '.join(answers['sites'])}) or all, got {unknown}."
        )
    return names


def _criteria(value: Any, answers: Answers) -> tuple[dict[str, Any], ...]:
    """Conditions with semicolons between them: `fvu <= 0.5; transfer >= 0.6 from 3 sites`."""
    if value is None or value in NONE:
        return ()
    if isinstance(value, list | tuple):
        return tuple(_criterion_table(item) for item in value)
    return tuple(_criterion_text(item) for item in str(value).split(";"))


def _criterion_text(text: str) -> dict[str, Any]:
    found = _CRITERION.fullmatch(text.strip())
    if not found or found["name"] not in ENDPOINTS:
        raise StudyError(
            f"Expected a criterion such as `fvu <= 0.5 from 2 sites`, got {text.strip()!r}.",
            hint=f"Endpoints: {', '.join(ENDPOINTS)}.",
        )
    wanted = ">=" if HIGHER_IS_BETTER[found["name"]] else "<="
    if found["sign"] not in (None, wanted):
        raise StudyError(f"Expected {found['name']} {wanted} ...: that is its good side.")
    return _criterion_table(
        {"endpoint": found["name"], "threshold": found["value"], "sites": int(found["sites"] or 1)}
    )


def _criterion_table(item: Any) -> dict[str, Any]:
    needed = {"endpoint", "threshold"}
    if not isinstance(item, Mapping) or not needed <= set(item) <= {*needed, "sites"}:
        raise StudyError("Expected criteria with endpoint, threshold and sites.")
    name = _choice(*ENDPOINTS)(item["endpoint"], {})
    sites = _whole(1, 1_000_000)(item.get("sites", 1), {})
    return {"endpoint": name, "threshold": _decimal(item["threshold"], *RANGES[name]), "sites": sites}


def _start(value: Any, answers: Answers) -> str:
    path = _sentence(value, answers)
    if path in NONE and _trains(answers):
        return path
    file = (Path(path) / "dictionary" if Path(path).is_dir() else Path(path)).with_suffix(".safetensors")
    if not file.exists():
        raise StudyError(
            f"Expected a start file at {file}.", hint="`cytosae sae init` or `sae import` makes one."
        )
    return path


def _encoder(value: Any, answers: Answers) -> str:
    from cytosae_core.encoder.facts import facts_of

    name = _sentence(value, answers)
    try:
        facts_of(name)
    except SetupError as error:
        raise StudyError(str(error.args[0]), hint=error.hint) from error
    return name


def _quorum(value: Any, answers: Answers) -> int:
    return _whole(1, len(answers["sites"]))(value, answers)


def _concepts(value: Any, answers: Answers) -> tuple[str, ...]:
    names = _words(value, answers)
    if not names or len(names) > 10 or any(not re.fullmatch(r"c\d{4,7}", name) for name in names):
        raise StudyError(
            "Expected 1 to 10 concepts such as c0042.", hint="Rows of the dictionary, from 0 on."
        )
    return names


def _stage_questions(name: str, what: str) -> tuple[Question, Question]:
    def applies(answers: Answers) -> bool:
        return name in answers["stages"]

    def criteria(value: Any, answers: Answers) -> tuple[dict[str, Any], ...]:
        found = _criteria(value, answers)
        count = len(answers[f"{name}_sites"] or answers["sites"])
        Stage(name, criteria=tuple(Criterion(**item) for item in found)).check_size(count)
        return found

    return (
        Question(
            f"{name}_sites", f"Sites of stage {name} ({what})?", "Names with commas, or all.", _stage_sites,
            lambda a: next(iter(a["sites"])) if name == "poc" else "all", applies,
        ),
        Question(
            f"{name}_criteria", f"What must hold after stage {name} before the next one opens?",
            "Such as: fvu <= 0.5; transfer >= 0.6 from 3 sites. One site alone can be judged by fvu only. none: a "
            "finished report is enough.", criteria,
            _same("fvu <= 0.5" if name == "poc" else "none"), applies,
        ),
    )  # fmt: skip


def _same(value: Any) -> Callable[[Answers], Any]:
    return lambda answers: value


def _trains(answers: Answers) -> bool:
    return bool(answers["kind"] == "train")


QUESTIONS: tuple[Question, ...] = (
    Question("name", "What is the study called?", "Stands in every message and report.", _name, _same(None)),
    Question(
        "question", "Which question does it answer?", "One sentence, for people.", _sentence,
        _same("Do the concepts found in these blood cells hold in a hospital they have never seen?"),
    ),
    Question(
        "hypothesis", "What do you expect? (hypothesis)", "One sentence that the primary endpoint can show wrong.",
        _sentence, _same("Concepts keep their meaning at a site that had no part in choosing them."),
    ),
    Question(
        "kind", "train a dictionary together, or validate a finished one?",
        "train: sites release changes of dictionary rows and measurements. validate: measurements only.",
        _choice(*KINDS), _same("train"),
    ),
    Question(
        "sites", "Which sites take part?",
        "Coded names with commas. For a trial on this machine give folders: alder=sites/alder, birch=sites/birch. A "
        "verdict needs 5 sites; 3 or 4 give a provisional one.", _sites, _same(None),
    ),
    Question(
        "simulation", "Are all sites folders on this machine (simulation)?", "Reports are then watermarked.", _yes,
        lambda a: "yes" if any(a["sites"].values()) else "no",
    ),
    Question(
        "policy", "Under which built-in policy do these folders release?",
        "masked, evaluate_only, or public-data (published images only: no disclosure control).",
        _choice("masked", "evaluate_only", "public-data"),
        lambda a: "masked" if _trains(a) else "evaluate_only", lambda a: any(a["sites"].values()),
    ),
    Question(
        "classes", "Which classes of cells?", "The labels that all sites use, with commas; none: no class is tested.",
        _words, _same(None),
    ),
    Question(
        "start", "Which start file?",
        "train: public centroids from `cytosae sae init PUBLIC_FOLDER start`, or none for random rows (some 10 % "
        "more stays unexplained). validate: the finished dictionary.", _start,
        lambda a: "none" if _trains(a) else None,
    ),
    Question(
        "encoder", "Which encoder?", "`cytosae encoder list` names them; for studies DinoBloom.", _encoder,
        _same("dinov2-s-demo"),
    ),
    Question(
        "primary", "Which number makes the verdict? (primary endpoint)",
        "\n  ".join(f"{name}: {text}" for name, text in ENDPOINTS.items()), _primary,
        lambda a: "replication" if len(a["classes"]) > 1 else "fvu",
    ),
    Question(
        "threshold", "Its threshold?", "The worse end of the prediction interval for a new site must reach it.",
        _threshold, lambda a: THRESHOLDS[a["primary"]],
    ),
    Question(
        "endpoints", "Secondary endpoints with thresholds?", "Such as: transfer 0.5, fvu 0.5. none: no others.",
        _endpoints,
        lambda a: ", ".join(
            f"{e.name} {e.threshold:g}"
            for e in DEFAULT_PLAN.endpoints
            if e.name != a["primary"] and (len(a["classes"]) > 1 or e.name == "fvu")
        ) or "none",
    ),
    Question(
        "selection", "Which concepts count?",
        "loso: chosen anew at the other sites for every site left out. all: all. listed: at most 10, named now.",
        _choice(*SELECTIONS), _same("loso"),
    ),
    Question(
        "concepts", "Which concepts?", "Rows of the dictionary, such as c0042, c0107.", _concepts, _same(None),
        lambda a: bool(a["selection"] == "listed"),
    ),
    Question(
        "support", "Smallest number of patients per class and site?",
        "Below it a class does not count towards averages over classes at that site.", _whole(2, 1_000_000),
        _same(11),
    ),
    Question(
        "min_sites", "From how many sites may something be called generalising?", "At least 3; 5 is the usual floor.",
        _whole(3, 1_000_000), _same(5),
    ),
    Question(
        "fdr", "False discovery rate over concepts and classes?", "A share: .05 is usual.", _share, _same(0.05)
    ),
    Question(
        "stages", "Which stages?", "Of poc, review, external; none: all sites at once.", _stages, _same("none")
    ),
    *_stage_questions("poc", "proof of concept"),
    *_stage_questions("review", "review by experts"),
    *_stage_questions("external", "all sites"),
    Question(
        "quorum", "How many sites must answer for a step to count?", "Fewer stop the study; it can be resumed.",
        _quorum, lambda a: min(2, len(a["sites"])),
    ),
    # Kept at their defaults unless named.
    Question(
        "profile", "Egress profile?", "validate: evaluate_only. train: masked.", _sentence,
        lambda a: "masked" if _trains(a) else "evaluate_only", asked=False,
    ),
    Question(
        "layer", "Which block of the encoder?", "Counted from 1; default: the middle one for pursuit dictionaries.",
        _whole(0, 1000), _same(0), asked=False,
    ),
    Question(
        "steps", "Preprocessing steps?", "reinhard, cell-mask, or none.", _words, _same(None), asked=False
    ),
    Question("rows", "Dictionary rows?", "Only for random rows; a start file has its own.", _whole(2, 1 << 20),
             _same(1024), asked=False),
    Question("active", "Active rows per patch?", "k.", _whole(1, 1 << 20), _same(16), asked=False),
    Question("rounds", "Training rounds?", "For kind train.", _whole(0, 100_000), _same(15), asked=False),
    Question("min_units", "Smallest number of patients behind any number?", "11 or more outside simulations.",
             _whole(1, 1_000_000), _same(11), asked=False),
    Question("recurrence_steps", "Steps of each site's own dictionary?", "0: recurrence is not assessed.",
             _whole(0, 100_000), _same(200), asked=False),
    Question("seed", "Seed?", "A whole number.", _whole(0, 1 << 30), _same(0), asked=False),
    Question("weights", "Weights file of the encoder on this machine?", "For simulations.", _sentence, _same(""),
             asked=False),
    Question("max_images", "Images per site at most, on this machine?", "For quick trials; 0: all.",
             _whole(0, 1 << 30), _same(0), asked=False),
)  # fmt: skip
BY_KEY = {item.key: item for item in QUESTIONS}
