"""What `cytosae study new` asks, in order: every question with its help, its default and how its answer is read."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from cytosae_core.config import KINDS
from cytosae_core.plan import (
    ENDPOINTS,
    SELECTIONS,
    Criterion,
    PlanConfig,
    Stage,
)

from . import study_readers as read
from .study_readers import Answers

DEFAULT_PLAN = PlanConfig()
THRESHOLDS = {
    **{item.name: item.threshold for item in DEFAULT_PLAN.endpoints},
    "transfer_gain": 0.0,
    "site_readable": 0.68,
}


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


def _stage_questions(name: str, what: str) -> tuple[Question, Question]:
    def applies(answers: Answers) -> bool:
        return name in answers["stages"]

    def criteria(value: Any, answers: Answers) -> tuple[dict[str, Any], ...]:
        found = read.criteria(value, answers)
        count = len(answers[f"{name}_sites"] or answers["sites"])
        Stage(name, criteria=tuple(Criterion(**item) for item in found)).check_size(count)
        return found

    return (
        Question(
            f"{name}_sites", f"Sites of stage {name} ({what})?", "Names with commas, or all.", read.stage_sites,
            lambda a: next(iter(a["sites"])) if name == "poc" else "all", applies,
        ),
        Question(
            f"{name}_criteria", f"What must hold after stage {name} before the next one opens?",
            "Such as: fvu <= 0.5; transfer >= 0.6 from 3 sites. One site alone can be judged by fvu only. none: a "
            "finished report is enough.", criteria,
            _same("fvu <= 0.5" if name == "poc" else "none"), applies,
        ),
    )  # fmt: skip


def _privacy_questions() -> tuple[Question, ...]:
    """Profile dp: what every patient is promised. `cytosae study plan-privacy` says what it costs."""
    adds = lambda a: read.private(a) and read.trains(a)  # noqa: E731
    return (
        Question(
            "epsilon", "Epsilon for every patient, over the whole study?", "1 is strong, 4 usual, above 10 refused.",
            read.epsilon, _same(4), read.private,
        ),
        Question(
            "patients", "Fewest patients of a site that takes part?", "Public; a site with fewer is refused.",
            read.whole(1, 10**8), _same(None), read.private,
        ),
        Question(
            "patients_in_all", "Patients of all sites together, at most?", "A public number.",
            read.whole(1, 10**8), _same(None), read.private,
        ),
        Question(
            "delta", "Delta?", "At most 1 / (10 patients).", read.delta,
            lambda a: min(1e-5, 0.1 / a["patients_in_all"]), read.private,
        ),
        Question(
            "sites_of_a_patient", "At how many sites may one patient be?", "M sites need M times the noise.",
            read.whole(1, 1000), _same(1), read.private,
        ),
        Question(
            "classes_of_a_patient", "Of how many classes has a patient cells?", "Patients with more count less.",
            read.whole(1, 1000), lambda a: max(1, len(a["classes"])), read.private,
        ),
        Question(
            "atoms", "How many concepts may be added?", "Rows kept free behind the public ones.",
            read.whole(1, 1 << 16), _same(48), adds,
        ),
        Question(
            "secure_aggregation", "Sum moments under masks (secure aggregation)?",
            "From 3 sites on; less noise, and the coordinator sees sums only.", read.yes,
            lambda a: "yes" if len(a["sites"]) > 2 else "no", adds,
        ),
    )  # fmt: skip


def _same(value: Any) -> Callable[[Answers], Any]:
    return lambda answers: value


QUESTIONS: tuple[Question, ...] = (
    Question("name", "What is the study called?", "Stands in every message and report.", read.name, _same(None)),
    Question(
        "question", "Which question does it answer?", "One sentence, for people.", read.sentence,
        _same("Do the concepts found in these blood cells hold in a hospital they have never seen?"),
    ),
    Question(
        "hypothesis", "What do you expect? (hypothesis)", "One sentence that the primary endpoint can show wrong.",
        read.sentence, _same("Concepts keep their meaning at a site that had no part in choosing them."),
    ),
    Question(
        "kind", "train a dictionary together, or validate a finished one?",
        "train: sites release changes of dictionary rows and measurements. validate: measurements only.",
        read.choice(*KINDS), _same("train"),
    ),
    Question(
        "profile", "Egress profile?", "validate: evaluate_only. train: masked. Either: dp (an epsilon per patient).",
        read.choice("evaluate_only", "masked", "dp"),
        lambda a: "masked" if read.trains(a) else "evaluate_only", asked=False,
    ),
    Question(
        "sites", "Which sites take part?",
        "Coded names with commas. For a trial on this machine give folders: alder=sites/alder, birch=sites/birch. A "
        "verdict needs 5 sites; 3 or 4 give a provisional one.", read.sites, _same(None),
    ),
    Question(
        "simulation", "Are all sites folders on this machine (simulation)?", "Reports are then watermarked.",
        read.yes, lambda a: "yes" if any(a["sites"].values()) else "no",
    ),
    Question(
        "policy", "Under which built-in policy do these folders release?",
        "masked, evaluate_only, dp, or public-data (published images only: no disclosure control).",
        read.choice("masked", "evaluate_only", "dp", "public-data"), lambda a: a["profile"],
        lambda a: any(a["sites"].values()),
    ),
    Question(
        "classes", "Which classes of cells?", "The labels that all sites use, with commas; none: no class is tested.",
        read.words, _same(None),
    ),
    Question(
        "start", "Which start file?",
        "train: public centroids from `cytosae sae init PUBLIC_FOLDER start`, or none for random rows (some 10 % "
        "more stays unexplained). validate: the finished dictionary. Profile dp: that of `cytosae sae public`.",
        read.start, lambda a: "none" if read.trains(a) and not read.private(a) else None,
    ),
    Question(
        "encoder", "Which encoder?", "`cytosae encoder list` names them; for studies DinoBloom.", read.encoder,
        _same("dinov2-s-demo"),
    ),
    Question(
        "primary", "Which number makes the verdict? (primary endpoint)",
        "\n  ".join(f"{name}: {text}" for name, text in ENDPOINTS.items()), read.primary,
        lambda a: "replication" if len(a["classes"]) > 1 else "fvu",
    ),
    Question(
        "threshold", "Its threshold?", "The worse end of the prediction interval for a new site must reach it.",
        read.threshold, lambda a: THRESHOLDS[a["primary"]],
    ),
    Question(
        "endpoints", "Secondary endpoints with thresholds?", "Such as: transfer 0.5, fvu 0.5. none: no others.",
        read.endpoints,
        lambda a: ", ".join(
            f"{e.name} {e.threshold:g}"
            for e in DEFAULT_PLAN.endpoints
            if e.name != a["primary"] and (len(a["classes"]) > 1 or e.name == "fvu")
        ) or "none",
    ),
    Question(
        "selection", "Which concepts count?",
        "loso: chosen anew at the other sites for every site left out. listed: at most 10, named now.",
        read.choice(*SELECTIONS), lambda a: "listed" if read.private(a) else "loso",
    ),
    Question(
        "concepts", "Which concepts?", "Rows of the dictionary, such as c0042, c0107.", read.concepts, _same(None),
        lambda a: bool(a["selection"] == "listed"),
    ),
    Question(
        "support", "Smallest number of patients per class and site?",
        "Below it a class does not count towards averages over classes at that site.", read.whole(2, 1_000_000),
        _same(11),
    ),
    Question(
        "min_sites", "From how many sites may something be called generalising?", "5 at least.",
        read.whole(5, 1_000_000), _same(5),
    ),
    Question(
        "fdr", "False discovery rate over concepts and classes?", "A share: .05 is usual.", read.share, _same(0.05)
    ),
    Question(
        "stages", "Which stages?", "Of poc, review, external; none: all sites at once.", read.stages, _same("none")
    ),
    *_stage_questions("poc", "proof of concept"),
    *_stage_questions("review", "review by experts"),
    *_stage_questions("external", "all sites"),
    Question(
        "quorum", "How many sites must answer for a step to count?", "Fewer stop the study; it can be resumed.",
        read.quorum, lambda a: min(2, len(a["sites"])),
    ),
    *_privacy_questions(),
    # Kept at their defaults unless named.
    Question(
        "layer", "Which block of the encoder?", "Counted from 1; default: the middle one for pursuit dictionaries.",
        read.whole(0, 1000), _same(0), asked=False,
    ),
    Question(
        "steps", "Preprocessing steps?", "reinhard, cell-mask, or none.", read.words, _same(None), asked=False
    ),
    Question("rows", "Dictionary rows?", "Only for random rows; a start file has its own.", read.whole(2, 1 << 20),
             _same(1024), asked=False),
    Question("active", "Active rows per patch?", "k.", read.whole(1, 1 << 20), _same(16), asked=False),
    Question("rounds", "Training rounds?", "For kind train.", read.whole(0, 100_000), _same(15), asked=False),
    Question("min_units", "Smallest number of patients behind any number?", "11 or more outside simulations.",
             read.whole(1, 1_000_000), _same(11), asked=False),
    Question("recurrence_steps", "Steps of each site's own dictionary?", "0: recurrence is not assessed.",
             read.whole(0, 100_000), lambda a: 0 if read.private(a) else 200, asked=False),
    Question("seed", "Seed?", "A whole number.", read.whole(0, 1 << 30), _same(0), asked=False),
    Question("weights", "Weights file of the encoder on this machine?", "For simulations.", read.sentence, _same(""),
             asked=False),
    Question("max_images", "Images per site at most, on this machine?", "For quick trials; 0: all.",
             read.whole(0, 1 << 30), _same(0), asked=False),
)  # fmt: skip
BY_KEY = {item.key: item for item in QUESTIONS}
