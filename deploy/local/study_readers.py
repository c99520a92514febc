"""How the answers to `cytosae study new` are read: text (typed, or from a flag) or YAML values (from --answers).

Every reader takes the answer and the answers before it, and raises StudyError with what it expected.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from cytosae_core.config import COORDINATOR, SITE_NAME, STUDY_NAME
from cytosae_core.errors import SetupError, StudyError
from cytosae_core.plan import ENDPOINTS, HIGHER_IS_BETTER, RANGES, STAGES
from cytosae_core.privacy.plan import CAP

Answers = dict[str, Any]
NONE = ("none", "-")
MAX_SENTENCE = 500
_CRITERION = re.compile(
    r"(?P<name>[a-z_]+)\s*(?P<sign><=|>=)?\s*(?P<value>-?[0-9.]+)(\s+from\s+(?P<sites>[0-9]+)(\s+sites?)?)?"
)


def sentence(value: Any, answers: Answers) -> str:
    """One printable sentence."""
    if not isinstance(value, str) or len(value) > MAX_SENTENCE or not value.isprintable():
        raise StudyError(f"Expected one printable sentence of at most {MAX_SENTENCE} characters.")
    return value.strip()


def name(value: Any, answers: Answers) -> str:
    """A study name."""
    if not isinstance(value, str) or not STUDY_NAME.fullmatch(value.strip()):
        raise StudyError("Expected a study name of 1 to 100 letters, digits, spaces, '.', '_' and '-'.")
    return value.strip()


def choice(*allowed: str) -> Callable[[Any, Answers], str]:
    """A reader of one of these words."""

    def read(value: Any, answers: Answers) -> str:
        if value not in allowed:
            raise StudyError(f"Expected one of {', '.join(allowed)}, got {value!r}.")
        return str(value)

    return read


def words(value: Any, answers: Answers) -> tuple[str, ...]:
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


def sites(value: Any, answers: Answers) -> dict[str, str]:
    """Site -> its folder, empty where none was given. Text: `a, b` or `a=folder, b=folder`."""
    if isinstance(value, Mapping):
        found = {str(name): str(folder or "") for name, folder in value.items()}
    else:
        pairs = [item.partition("=") for item in words(value, answers)]
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


def whole(low: int, high: int) -> Callable[[Any, Answers], int]:
    """A reader of a whole number from `low` to `high`."""

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


def share(value: Any, answers: Answers) -> float:
    """A number from 0 to .5."""
    found = _decimal(value, 0.0, 0.5)
    if found == 0:
        raise StudyError("Expected a share above 0.")
    return found


def threshold(value: Any, answers: Answers) -> float:
    """A threshold in the range of the primary endpoint."""
    return _decimal(value, *RANGES[answers["primary"]])


def yes(value: Any, answers: Answers) -> bool:
    """yes or no."""
    words = {"yes": True, "y": True, "no": False, "n": False}
    if isinstance(value, bool):
        return value
    if str(value).strip().lower() not in words:
        raise StudyError(f"Expected yes or no, got {value!r}.")
    return words[str(value).strip().lower()]


def primary(value: Any, answers: Answers) -> str:
    """The name of the primary endpoint."""
    name = choice(*ENDPOINTS)(value, answers)
    if name != "fvu" and len(answers["classes"]) < 2:
        raise StudyError(
            f"Expected two or more classes for the primary endpoint {name}.",
            hint="Without classes only fvu can decide.",
        )
    return name


def endpoints(value: Any, answers: Answers) -> dict[str, float]:
    """Other endpoint -> threshold. Text: `transfer 0.5, fvu 0.5`."""
    if isinstance(value, Mapping):
        pairs = [(str(name), number) for name, number in value.items()]
    else:
        split = [item.split() for item in words(value, answers)]
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


def stages(value: Any, answers: Answers) -> tuple[str, ...]:
    """Names of stages, in their order."""
    names = words(value, answers)
    if list(names) != [name for name in STAGES if name in names]:
        raise StudyError(f"Expected stages in this order, each at most once: {', '.join(STAGES)}.")
    return names


def stage_sites(value: Any, answers: Answers) -> tuple[str, ...]:
    """Sites of a stage; empty: all of the study's."""
    names = () if value == "all" else words(value, answers)
    unknown = [name for name in names if name not in answers["sites"]]
    if unknown:
        raise StudyError(
            f"Expected sites of the study ({', '.join(answers['sites'])}) or all, got {unknown}."
        )
    return names


def criteria(value: Any, answers: Answers) -> tuple[dict[str, Any], ...]:
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
    name = choice(*ENDPOINTS)(item["endpoint"], {})
    sites = whole(1, 1_000_000)(item.get("sites", 1), {})
    return {"endpoint": name, "threshold": _decimal(item["threshold"], *RANGES[name]), "sites": sites}


def trains(answers: Answers) -> bool:
    """Whether the study trains a dictionary."""
    return bool(answers["kind"] == "train")


def private(answers: Answers) -> bool:
    """Whether the study promises an epsilon."""
    return bool(answers["profile"] == "dp")


def epsilon(value: Any, answers: Answers) -> float:
    """An epsilon that means something."""
    found = _decimal(value, 0.0, CAP)
    if found == 0:
        raise StudyError("Expected an epsilon above 0.")
    return found


def delta(value: Any, answers: Answers) -> float:
    """A delta well below one patient in all."""
    most = 0.1 / int(answers["patients_in_all"])
    found = _decimal(value, 0.0, 0.1)
    if not 0 < found <= most:
        raise StudyError(f"Expected 0 < delta <= 1 / (10 patients) = {most:g}, got {value!r}.")
    return found


def start(value: Any, answers: Answers) -> str:
    """The start file, checked to be there."""
    path = sentence(value, answers)
    if path in NONE and trains(answers):
        return path
    file = (Path(path) / "dictionary" if Path(path).is_dir() else Path(path)).with_suffix(".safetensors")
    if not file.exists():
        raise StudyError(
            f"Expected a start file at {file}.",
            hint="`cytosae sae init`, `sae public` or `sae import` makes one.",
        )
    return path


def encoder(value: Any, answers: Answers) -> str:
    """The name of an encoder that this program knows."""
    from cytosae_core.encoder.facts import facts_of

    name = sentence(value, answers)
    try:
        facts_of(name)
    except SetupError as error:
        raise StudyError(str(error.args[0]), hint=error.hint) from error
    return name


def quorum(value: Any, answers: Answers) -> int:
    """Number of sites that must answer."""
    return whole(1, len(answers["sites"]))(value, answers)


def concepts(value: Any, answers: Answers) -> tuple[str, ...]:
    """Concepts that count, by their rows."""
    names = words(value, answers)
    if not names or len(names) > 10 or any(not re.fullmatch(r"c\d{4,7}", name) for name in names):
        raise StudyError(
            "Expected 1 to 10 concepts such as c0042.", hint="Rows of the dictionary, from 0 on."
        )
    return names
