"""The study protocol: strict YAML in, one frozen object out. Its digest is in every message.

`study.yaml` holds the protocol (what everybody agrees on) and, for simulations only, `local` (folders on this
machine), which is never part of the digest.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, TypeVar

from .canonical import digest_of
from .errors import StudyError
from .plan import Criterion, Endpoint, PlanConfig, Stage
from .privacy.metrics import Layout
from .privacy.moments import MAX_RANK, second_size, third_size
from .privacy.secagg_parts import BOX_BYTES, KEY_BYTES, SHARE_BYTES
from .privacy.terms import PrivacyTerms
from .signatures import SIGNATURE_BYTES
from .strict_yaml import load_yaml as load_yaml

URN = "urn:cytosae:study:v1"
KINDS = ("train", "validate")
MODELS = ("pursuit", "topk", "relu")
INITS = ("public-kmeans", "random", "file")
RULES = ("firing-weighted", "size-weighted")
GOLDEN_CELLS = 8
VIEWS = ("raw", "standardised", "embedding")
PROBES = (
    "standardised codes", "raw codes", "raw embeddings", "shuffled labels", "colour histogram", "same site",
)  # fmt: skip
IMAGE_FACTS = ("brightness", "saturation", "focus", "cell size")
CALIBRATION = ("slope", "slope_se", "citl", "observed", "expected", "brier", "ece")
# Shares of a site's cells on which the probe's accuracy is told, the most confident first.
# What experts may say that a concept shows: features of cells, then artefacts, then neither.
MORPHOLOGY = (
    "granules", "azurophilic-granules", "vacuoles", "auer-rod", "nucleoli", "chromatin", "nucleus-shape",
    "nucleus-lobes", "cytoplasm-colour", "cell-border", "cell-size", "red-cells", "platelets",
)  # fmt: skip
ARTEFACTS = ("stain-artefact", "other-artefact")
REVIEW_TERMS = (*MORPHOLOGY, *ARTEFACTS, "mixed", "cannot-name")
COVERAGE = (0.2, 0.4, 0.6, 0.8, 1.0)
COLOUR_BINS = 64
HISTOGRAM_BINS = 10
QUALITY = ("sse", "ss_global", "ss_own", "tokens", "l0", "dead_fraction")
COORDINATOR = "coordinator"
STUDY_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9 ._-]{0,99}")
SITE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_DIGEST = re.compile(r"[0-9a-f]{64}")
COUNTS = ("images", "units", "train_units", "test_units")

MAX_SITES = 2000  # more are never tried: docs/scaling.md has what one coordinator was measured to carry


@dataclass(frozen=True)
class EncoderConfig:
    """Which tokens: encoder name, block counted from 1 (0: the kind's default), preprocessing steps, digest
    of weights, block and steps as `cytosae encoder check` prints it (empty: whatever the sites agree on, compared
    in hello)."""

    name: str = "dinov2-s-demo"
    layer: int = 6
    steps: tuple[str, ...] = ("reinhard", "cell-mask")
    d: int = 384
    digest: str = ""


@dataclass(frozen=True)
class DictionaryConfig:
    """n rows, k active rows per token, where row 0..n-1 come from, and the digest of that file."""

    model: str = "pursuit"
    n: int = 1024
    k: int = 16
    init: str = "public-kmeans"
    digest: str = ""


@dataclass(frozen=True)
class TrainingConfig:
    """Rounds of local training. `batch_tokens` is per site and step; `row_clip` bounds the L2 norm of a
    released row's change (rows have norm 1)."""

    rounds: int = 15
    local_steps: int = 20
    batch_tokens: int = 128
    learning_rate: float = 6e-3
    aggregation: str = "firing-weighted"
    server_learning_rate: float = 1.0
    row_clip: float = 1.0


@dataclass(frozen=True)
class RoundsConfig:
    """When a step is complete: `quorum` sites must answer within `deadline_s` seconds, `retries` times."""

    quorum: int = 2
    deadline_s: float = 3600.0
    retries: int = 1


@dataclass(frozen=True)
class Attribute:
    """A yes/no property of a cell from a numeric column: column value >= `above`."""

    name: str
    above: float


@dataclass(frozen=True)
class StatisticsConfig:
    """Classes and attributes that concepts are tested for; `test_share` of the units is held out;
    `eval_tokens`: held-out tokens per site for FVU; `bootstrap`: resamples of a site's units; `recurrence_steps`:
    local training steps of the dictionary that a site compares concepts with (0: recurrence is not assessed);
    `subgroups`: yes/no columns between which transfer is compared."""

    classes: tuple[str, ...] = ()
    attributes: tuple[Attribute, ...] = ()
    subgroups: tuple[Attribute, ...] = ()
    test_share: float = 0.4
    eval_tokens: int = 2048
    bootstrap: int = 2000
    recurrence_steps: int = 0


@dataclass(frozen=True)
class StudyConfig:
    """The whole protocol. Raises StudyError when values do not fit together.

    `stage` and `part_of` are empty in the protocol that is signed. Each stage of the plan runs under a protocol of
    its own, derived from the signed one: its name, the signed one's digest, and the stage's sites (`for_stage`).
    """

    name: str
    sites: tuple[str, ...]
    kind: str = "train"
    profile: str = "masked"
    question: str = "Do the concepts found in these blood cells hold in a hospital they have never seen?"
    simulation: bool = False
    seed: int = 0
    min_units: int = 11
    encoder: EncoderConfig = field(default_factory=EncoderConfig)
    dictionary: DictionaryConfig = field(default_factory=DictionaryConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    rounds: RoundsConfig = field(default_factory=RoundsConfig)
    statistics: StatisticsConfig = field(default_factory=StatisticsConfig)
    plan: PlanConfig = field(default_factory=PlanConfig)
    privacy: PrivacyTerms = field(default_factory=PrivacyTerms)
    stage: str = ""
    part_of: str = ""

    def __post_init__(self) -> None:
        _one_of("kind", self.kind, KINDS)
        _one_of("dictionary.model", self.dictionary.model, MODELS)
        _one_of("dictionary.init", self.dictionary.init, INITS)
        _one_of("training.aggregation", self.training.aggregation, RULES)
        _one_of("profile", self.profile, ("evaluate_only", "masked", "dp"))
        self._check_combination()
        self._check_privacy()
        self._check_plan()
        self._check_numbers()

    def _check_combination(self) -> None:
        if not STUDY_NAME.fullmatch(self.name):
            raise StudyError("Expected a study name of 1 to 100 letters, digits, spaces, '.', '_' and '-'.")
        if len(set(self.sites)) != len(self.sites) or not self.sites:
            raise StudyError("Expected one or more sites with different names.")
        if len(self.sites) > MAX_SITES:
            raise StudyError(
                f"Expected at most {MAX_SITES} sites, got {len(self.sites)}.",
                hint="Divide it into regions: docs/scaling.md.",
            )
        if any(not SITE_NAME.fullmatch(site) or site == COORDINATOR for site in self.sites):
            raise StudyError(
                "Expected site names of letters, digits, '.', '_' and '-', at most 64, not 'coordinator'.",
                hint="Coded names travel and stand in every log; full names belong in the study's paper files.",
            )
        if self.kind == "train" and self.profile == "evaluate_only":
            raise StudyError(
                "Expected profile=masked or dp for kind=train.", hint="evaluate_only cannot train."
            )
        if self.kind == "train" and self.dictionary.model != "pursuit":
            raise StudyError(
                f"Expected dictionary.model=pursuit for kind=train, got {self.dictionary.model}.",
                hint="Encoder updates give single cells back; topk and relu train locally only.",
            )
        if not 1 <= self.rounds.quorum <= len(self.sites):
            raise StudyError(f"Expected 1 <= rounds.quorum <= {len(self.sites)}, got {self.rounds.quorum}.")

    def _check_privacy(self) -> None:
        if self.profile != "dp":
            if self.privacy != PrivacyTerms():
                raise StudyError(
                    "Expected no part privacy outside profile=dp.", hint="Others promise no epsilon."
                )
            return
        self.privacy.check(len(self.sites))
        if self.dictionary.model != "pursuit" or self.dictionary.init == "random":
            raise StudyError("Expected model=pursuit and a public start file for profile=dp.")
        if self.statistics.attributes or self.statistics.subgroups or self.statistics.recurrence_steps:
            raise StudyError(
                "Expected statistics of classes only in profile=dp.",
                hint="Every number costs privacy: classes are told.",
            )
        if self.plan.selection != "listed":
            raise StudyError(
                "Expected plan.selection=listed and plan.concepts in profile=dp.",
                hint="Choosing concepts after a look at the data would cost privacy as well.",
            )
        if (self.kind == "train") != (self.privacy.atoms > 0) or self.privacy.atoms >= self.dictionary.n:
            raise StudyError(
                "Expected 0 < privacy.atoms < dictionary.n for kind=train, and 0 for kind=validate."
            )

    def _check_plan(self) -> None:
        if bool(self.stage) != bool(self.part_of) or (self.part_of and not _DIGEST.fullmatch(self.part_of)):
            raise StudyError("Expected stage and part_of (64 hex digits) together, or neither.")
        for item in self.plan.stages if not self.stage else ():
            unknown = sorted(set(item.sites) - set(self.sites))
            if unknown:
                raise StudyError(f"Expected sites of stage={item.name} among the study's, got {unknown}.")
            item.check_size(len(item.sites or self.sites))
        if self.stage:
            self.plan.stage(self.stage)
        high = [name for name in self.plan.concepts if int(name[1:]) >= self.dictionary.n]
        if high:
            raise StudyError(f"Expected plan.concepts below dictionary.n={self.dictionary.n}, got {high}.")

    def _check_numbers(self) -> None:
        checks = {
            "dictionary.n": 2 <= self.dictionary.n <= 1 << 20,
            "dictionary.k": 1 <= self.dictionary.k <= self.dictionary.n,
            "encoder.d": 1 <= self.encoder.d <= 1 << 14,
            "training.rounds": 0 <= self.training.rounds <= 100_000,
            "training.local_steps": 1 <= self.training.local_steps <= 100_000,
            "training.batch_tokens": 1 <= self.training.batch_tokens <= 1 << 20,
            "training.learning_rate": 0 < self.training.learning_rate <= 1,
            "training.server_learning_rate": 0 < self.training.server_learning_rate <= 2,
            "training.row_clip": 0 < self.training.row_clip <= 2,
            "statistics.test_share": 0.05 <= self.statistics.test_share <= 0.5,
            "statistics.eval_tokens": 1 <= self.statistics.eval_tokens <= 1 << 24,
            "statistics.bootstrap": 100 <= self.statistics.bootstrap <= 100_000,
            "statistics.recurrence_steps": 0 <= self.statistics.recurrence_steps <= 100_000,
            "rounds.deadline_s": 0 < self.rounds.deadline_s <= 30 * 86400,
            "min_units": self.min_units >= 1 and (self.simulation or self.min_units >= 11),
        }
        for name, fits in checks.items():
            if not fits:
                raise StudyError(f"Expected {name} in its range.", hint="See docs/study.md for the ranges.")

    @property
    def targets(self) -> tuple[str, ...]:
        """Classes, then attributes: the columns of the AUROC tables."""
        return self.statistics.classes + tuple(item.name for item in self.statistics.attributes)

    @property
    def layout(self) -> Layout:
        """Of a patient's vector in the private release of statistics."""
        concepts, classes = len(self.plan.concepts), len(self.statistics.classes)
        return Layout(concepts, classes, self.privacy.classes_of_a_patient)

    @property
    def dims(self) -> dict[str, int]:
        """Sizes of the symbolic dimensions of `egress.ALLOWED`."""
        classes = len(self.statistics.classes)
        return {
            "n": self.dictionary.n,
            "d": self.encoder.d,
            "s": len(self.sites),
            "c": classes,
            "t": len(self.targets),
            "h": len(COUNTS) + classes,
            "g": GOLDEN_CELLS,
            "q": len(QUALITY),
            "v": len(VIEWS),
            "p": len(PROBES),
            "i": len(IMAGE_FACTS),
            "k": len(CALIBRATION),
            "b": COLOUR_BINS,
            "o": HISTOGRAM_BINS,
            "u": len(self.statistics.subgroups),
            "a": len(COVERAGE),
            "r": len(REVIEW_TERMS),
            "m2": second_size(self.encoder.d),
            "m3": third_size(MAX_RANK),
            "S": len(self.sites),
            "kb": 2 * KEY_BYTES + SIGNATURE_BYTES,
            "bb": BOX_BYTES,
            "sb": SHARE_BYTES,
        }

    def to_dict(self) -> dict[str, Any]:
        """The protocol as JSON values."""
        return {"urn": URN, **asdict(self)}

    @property
    def digest(self) -> str:
        """SHA-256 of the protocol: every request and reply carries it."""
        return digest_of(self.to_dict())

    def for_stage(self, name: str) -> StudyConfig:
        """The protocol of one stage of the plan: its sites, and a quorum that they can meet.

        Anybody who holds the signed protocol makes the same one; its digest covers the signed one's.

        Raises:
            StudyError: no such stage, or this is a stage's protocol already.
        """
        if self.stage:
            raise StudyError(f"Expected the signed protocol, got that of its stage={self.stage}.")
        sites = self.plan.stage(name).sites or self.sites
        ordered = tuple(site for site in self.sites if site in sites)
        rules = replace(self.rounds, quorum=min(self.rounds.quorum, len(ordered)))
        return replace(self, sites=ordered, rounds=rules, stage=name, part_of=self.digest)


T = TypeVar("T")


def _one_of(name: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise StudyError(f"Expected {name} in {allowed}, got {name}={value!r}.")


def study_from_dict(values: Mapping[str, Any]) -> StudyConfig:
    """A protocol from JSON or YAML values; unknown keys, wrong types and missing keys are errors."""
    if values.get("urn") != URN:
        raise StudyError(f"Expected urn: {URN} at the top of the study.")
    return _build(StudyConfig, {key: value for key, value in values.items() if key != "urn"}, "study")


_NESTED: dict[tuple[type, str], type] = {
    (StudyConfig, "encoder"): EncoderConfig,
    (StudyConfig, "dictionary"): DictionaryConfig,
    (StudyConfig, "training"): TrainingConfig,
    (StudyConfig, "rounds"): RoundsConfig,
    (StudyConfig, "statistics"): StatisticsConfig,
    (StudyConfig, "plan"): PlanConfig,
    (StudyConfig, "privacy"): PrivacyTerms,
}
_ITEMS: dict[str, type] = {f"tuple[{item.__name__}": item for item in (Attribute, Endpoint, Criterion, Stage)}


def _build(cls: type[T], values: Any, where: str) -> T:
    if not isinstance(values, Mapping):
        raise StudyError(f"Expected a table in {where}.")
    known = {item.name: item for item in fields(cls)}  # type: ignore[arg-type]
    for key in values:
        if key not in known:
            raise StudyError(
                f"Expected a known key in {where}, got {key!r}.", hint=f"Known: {sorted(known)}."
            )
    ready = {key: _value(cls, key, str(known[key].type), value, where) for key, value in values.items()}
    try:
        return cls(**ready)
    except TypeError as error:
        raise StudyError(f"Expected all required keys in {where}.") from error


def _value(cls: type, key: str, kind: str, value: Any, where: str) -> Any:
    place = f"{where}.{key}"
    if (cls, key) in _NESTED:
        return _build(_NESTED[(cls, key)], value, place)
    for start, item in _ITEMS.items():
        if kind.startswith(start):
            return tuple(_build(item, entry, place) for entry in _sequence(value, place))
    if kind.startswith("tuple[str"):
        return tuple(_scalar("str", item, place) for item in _sequence(value, place))
    return _scalar(kind, value, place)


def _sequence(value: Any, place: str) -> list[Any]:
    if not isinstance(value, list | tuple):
        raise StudyError(f"Expected a list in {place}.")
    return list(value)


def _scalar(kind: str, value: Any, place: str) -> Any:
    types: dict[str, tuple[type, ...]] = {
        "str": (str,),
        "int": (int,),
        "float": (int, float),
        "bool": (bool,),
    }
    if not isinstance(value, types[kind]) or (isinstance(value, bool) and kind != "bool"):
        raise StudyError(f"Expected {place} to be {kind}, got {type(value).__name__}.")
    return float(str(value)) if kind == "float" else value
