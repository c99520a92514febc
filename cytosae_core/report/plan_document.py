"""The protocol in words: what a hospital signs before a study, as JSON values. `plan_page.py` draws them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from ..allowed import ALLOWED, MAX_OVERHEAD_BYTES, NEVER, Field
from ..config import StudyConfig
from ..plan import ENDPOINTS, HIGHER_IS_BETTER, sites_word
from ..policy.explain import PROFILES
from ..policy.tighten import QUIET, demand, steps_of

URN = "urn:cytosae:plan:v1"
Json = dict[str, Any]
AT_SITE = {
    "hello": "Embeds 8 generated cells (no patient's) and counts its images and patients, rounded.",
    "moments": "Sums its training tokens: sum, sum of squares, count.",
    "begin": "Fixes which dictionary rows may ever leave, and measures the first dictionary.",
    "round": "Measures the dictionary, trains it on its own images, withholds rows that too few patients share.",
    "sum_keys": "Makes keys for the masks of one sum, for this sum only.",
    "sum_shares": "Seals shares of these keys to the other sites, so that the sum survives a site that drops out.",
    "second": "Sums what the frozen dictionary leaves of every patient's cells, clipped, with noise.",
    "third": "The same once more, in the directions that stood above the noise.",
    "sum_masked": "Sums what the frozen dictionary leaves of every patient's cells, clipped, with its share of the "
    "noise, and masks the sum.",
    "sum_confirm": "Signs which sites are in the sum.",
    "sum_unmask": "Sends the shares that take the masks off the sum, never off one site's part.",
    "describe": "Tests every concept on its own images: how often it appears, and in which kinds of cells.",
    "score": "Applies class averages of the other sites to its own images, and measures how often they are right.",
    "close": "Signs the log that holds the report.",
}
RULES = {
    "open": "no patient behind it",
    "hello": "counts, rounded; small ones withheld",
    "count": "rounded to a multiple; small ones withheld",
    "metric": "4 digits; withheld below the minimum",
    "share": "3 decimals; withheld below the minimum",
    "raters": "votes of three raters or more, as they are",
    "noised": "made from noised sums",
    "sum": "a sum over patients, each clipped, with noise",
    "update": "rows that too few patients share are exact zeros",
}
SELECTIONS = {
    "loso": "Concepts are chosen anew for every site that is left out, from the other sites only.",
    "listed": "Only the concepts named here count; they were chosen before this study.",
}
MULTIPLICITY = {
    "benjamini-hochberg": "Over all concepts and classes the false discovery rate is held at {fdr:g} "
    "(Benjamini-Hochberg); the primary endpoint is one number and needs no correction.",
    "none": "No correction for the number of concepts and classes: single concepts are exploratory.",
}
STAGE_NAMES = {
    "poc": "proof of concept: few sites, looked at locally",
    "review": "review by experts",
    "external": "all sites, also those that nobody has looked at",
}
SIGNERS = ("For the hospital", "For data protection", "For the coordinator")


def plan_document(study: StudyConfig) -> Json:
    """The protocol in words and tables, as JSON values: title, sha256, sections of paragraphs, lists and tables."""
    parts = (
        _purpose, _sites, _computed, _leaves, *((_promise,) if study.profile == "dp" else ()), _never, _endpoints,
        _decided, _stages, _missing, _stopping, _technical,
    )  # fmt: skip
    return {
        "urn": URN,
        "title": f"Protocol: {study.name}",
        "study": study.name,
        "sha256": study.digest,
        "simulation": study.simulation,
        "sections": [part(study) for part in parts],
        "signers": list(SIGNERS),
    }


def _part(key: str, title: str, *items: Any) -> Json:
    """A section; items are texts, lists of texts, tables {header, rows} or facts {pairs}; None is left out."""
    return {"id": key, "title": title, "items": [item for item in items if item is not None]}


def _purpose(study: StudyConfig) -> Json:
    kind = {
        "train": "The sites train one dictionary of concepts together and then test it.",
        "validate": "A finished dictionary of concepts is tested at every site; nothing is trained.",
    }[study.kind]
    plan = study.plan
    hypothesis = f"Hypothesis: {plan.hypothesis}" if plan.hypothesis else "No hypothesis was written down."
    simulated = "SIMULATION: all sites are folders on one machine." if study.simulation else None
    return _part("purpose", "Purpose", study.question, hypothesis, kind, simulated)


def _sites(study: StudyConfig) -> Json:
    rounds = study.rounds
    quorum = (
        f"A step counts when {rounds.quorum} of {len(study.sites)} sites answer it within "
        f"{_duration(rounds.deadline_s)}; a site that does not is named in the report."
    )
    names = {stage.name: stage.sites or study.sites for stage in study.plan.stages}
    rows = [[site, *("yes" if site in names[stage] else "-" for stage in names)] for site in study.sites]
    few = None
    if len(study.sites) < study.plan.min_sites:
        few = (
            f"With {len(study.sites)} {sites_word(len(study.sites))} the best verdict is 'provisional': "
            f"'generalises' needs {study.plan.min_sites}."
        )
    return _part(
        "sites", "Who takes part", {"header": ["Site (coded name)", *names], "rows": rows}, quorum,
        f"No number leaves a site unless at least {study.min_units} patients are behind it (where data has no "
        "patients: slides, else source files; the report says which).", few,
    )  # fmt: skip


def _times(study: StudyConfig) -> dict[str, int]:
    times = steps_of(study)
    return {kind: times[kind] for kind in AT_SITE if kind in times}


def _computed(study: StudyConfig) -> Json:
    rows = [[kind, str(count), AT_SITE[kind]] for kind, count in _times(study).items()]
    return _part(
        "computed", "What is computed at the site",
        "Images, cells and the numbers of single cells stay at the site. The site's own program does this, on the "
        "site's machine, when the coordinator's signed request comes:",
        {"header": ["Step", "At most", "What the site does"], "rows": rows},
    )  # fmt: skip


def _leaves(study: StudyConfig) -> Json:
    asked = demand(study)
    rows = [row for kind in _times(study) for row in _rows_of(study, kind)]
    total = (
        f"In all at most {asked.messages} messages and {_bytes(asked.bytes)} from each site, of which up to "
        f"{_bytes(MAX_OVERHEAD_BYTES)} a message are signatures and log proofs. The site's own policy may allow "
        "less, never more."
    )
    header = ["Step", "Name", "Numbers", "Bytes", "Rule", "What for"]
    return _part(
        "leaves", "What leaves the site", {"header": header, "rows": rows}, total, PROFILES[study.profile]
    )


def _rows_of(study: StudyConfig, kind: str) -> list[list[str]]:
    """One row per purpose of a step: what serves the same purpose under the same rule stands together."""
    groups: dict[tuple[str, str], list[Field]] = {}
    for field in ALLOWED:
        if leaves(study, kind, field):
            groups.setdefault((field.why, field.rule), []).append(field)
    rows = []
    for (why, rule), found in groups.items():
        shapes = [_shape(field, study.dims) for field in found]
        shown = dict.fromkeys(" x ".join(f"{value:,}" for value in shape) for shape in shapes)
        size = sum(
            math.prod(shape) * np.dtype(field.dtype).itemsize
            for field, shape in zip(found, shapes, strict=True)
        )
        names = ", ".join(field.name for field in found)
        said = RULES["noised" if study.profile == "dp" and rule not in ("open", "sum") else rule]
        rows.append([kind, names, ", ".join(shown), _bytes(size), said, why])
    return rows


def leaves(study: StudyConfig, kind: str, field: Field) -> bool:
    """Whether a field of the table of what may leave is asked for in one step of this study."""
    if study.profile not in field.profiles or field.kind not in (kind, "*"):
        return False
    if field.kind == "*" and kind in QUIET:
        return False
    if field.name.startswith("recurrence") and not study.statistics.recurrence_steps:
        return False
    return math.prod(_shape(field, study.dims)) > 0


def _shape(field: Field, dims: Mapping[str, int]) -> list[int]:
    return [int(dim) if dim.isdigit() else dims[dim] for dim in field.shape]


def _promise(study: StudyConfig) -> Json:
    """Under `dp`: what every patient is promised, and what that rests on."""
    terms = study.privacy
    pairs = [
        ("Epsilon", f"{terms.epsilon:g} at delta {terms.delta:g}, for the whole study and every patient"),
        ("Neighbouring", "one patient more or less; a patient with all of their cells"),
        ("Patients", f"at least {terms.patients:,} at every site, at most {terms.patients_in_all:,} in all"),
        ("One patient is at", f"at most {terms.sites_of_a_patient} {sites_word(terms.sites_of_a_patient)}"),
        ("Shares of the promise", ", ".join(f"{name} {share:.0%}" for name, share in terms.shares.items())),
        (
            "Noise of each release",
            ", ".join(f"{name} {_noise(study, name):.3g} clip norms" for name in terms.shares),
        ),
    ]
    summed = (
        "Moments are summed under masks: the coordinator sees the sum over sites only, and sites add noise in "
        "shares."
        if terms.secure_aggregation
        else "Every site adds all of the noise itself."
    )
    text = "The site's own ledger charges every release before it leaves, and refuses what its policy does not allow."
    return _part("promise", "What every patient is promised", {"pairs": pairs}, summed, text)


def _noise(study: StudyConfig, release: str) -> float:
    return study.privacy.plan(release, study.layout).noise_multiplier


def _never(study: StudyConfig) -> Json:
    del study  # the same for every study
    return _part("never", "What never leaves", [f"{item[0].upper()}{item[1:]}." for item in NEVER])


def _endpoints(study: StudyConfig) -> Json:
    rows = [
        [
            item.name,
            f"{'at least' if HIGHER_IS_BETTER[item.name] else 'at most'} {item.threshold:g}",
            "primary: makes the verdict" if item.primary else "secondary",
            ENDPOINTS[item.name],
        ]
        for item in sorted(study.plan.endpoints, key=lambda item: not item.primary)
    ]
    listed = f"Concepts: {', '.join(study.plan.concepts)}." if study.plan.concepts else None
    return _part(
        "endpoints", "The numbers that decide",
        {"header": ["Endpoint", "Threshold", "Role", "What it is"], "rows": rows},
        SELECTIONS[study.plan.selection], listed,
    )  # fmt: skip


def _decided(study: StudyConfig) -> Json:
    plan = study.plan
    return _part(
        "decided", "How it is decided",
        [
            "Sites are pooled by random effects (REML, Hartung-Knapp). The interval for a site that took no part is "
            "the prediction interval.",
            f"'Generalises': {plan.min_sites} or more sites, and the worse end of the primary endpoint's prediction "
            "interval reaches its threshold.",
            f"'Provisional': 3 to {plan.min_sites - 1} sites. 'Not estimable': fewer than 3.",
            f"A class counts towards averages over classes at sites with {plan.support} or more of it.",
            MULTIPLICITY[plan.multiplicity].format(fdr=plan.fdr),
            "Every number is printed beside its negative control: shuffled labels, random dictionary, two halves of "
            "one site.",
            "Results are printed whatever they are; concepts that did not hold as prominently as those that did.",
        ],
    )  # fmt: skip


def _stages(study: StudyConfig) -> Json:
    stages = study.plan.stages
    if not stages:
        return _part("stages", "Stages", "One stage with all sites.")
    rows = []
    for number, stage in enumerate(stages):
        after = stages[number + 1].name if number + 1 < len(stages) else "nothing: it is the last"
        asked = "; ".join(_criterion(item.endpoint, item.threshold, item.sites) for item in stage.criteria)
        part = study if study.stage else study.for_stage(stage.name)
        rows.append(
            [stage.name, STAGE_NAMES[stage.name], ", ".join(part.sites), asked or "a finished report", after]
            + ([] if study.stage else [part.digest[:16]])
        )
    header = ["Stage", "What it is", "Sites", "Passes with", "Opens"]
    header += [] if study.stage else ["Its protocol's SHA-256 begins"]
    return _part(
        "stages", "Stages",
        "A stage opens only when the report of the one before meets these criteria; the program checks them.",
        {"header": header, "rows": rows},
    )  # fmt: skip


def _criterion(endpoint: str, threshold: float, sites: int) -> str:
    word = "at least" if HIGHER_IS_BETTER[endpoint] else "at most"
    return f"{endpoint} {word} {threshold:g} from {sites} {sites_word(sites)}"


def _missing(study: StudyConfig) -> Json:
    return _part(
        "missing", "Missing data",
        [
            "A number that a site withholds (too few patients) stays missing; nothing is filled in. The report says "
            "how many values are missing at which site, and why.",
            "A site that drops out is left out from then on and named; the study goes on while the quorum of "
            f"{study.rounds.quorum} is met, otherwise it stops.",
            "Cells without a class of this protocol train the dictionary where training happens, but count in no "
            "endpoint.",
        ],
    )  # fmt: skip


def _stopping(study: StudyConfig) -> Json:
    del study  # the same for every study
    return _part(
        "stopping", "Stopping and withdrawal",
        [
            "A site can stop or leave at any time without giving a reason: its program then answers nothing more.",
            "When a patient or a site withdraws, the site deletes what it kept for this study; later releases are "
            "made without them. What left before cannot be called back; the site's log says what that was.",
            "Anything that is done otherwise than this protocol says is recorded as a deviation with its reason and "
            "printed in the report. A changed protocol is another study.",
        ],
    )  # fmt: skip


def _technical(study: StudyConfig) -> Json:
    encoder, dictionary, training = study.encoder, study.dictionary, study.training
    pairs = [
        (
            "Encoder",
            f"{encoder.name}, block {encoder.layer or 'default'}, steps {', '.join(encoder.steps) or 'none'}",
        ),
        ("Encoder digest", encoder.digest or "that of the sites, which must agree"),
        ("Dictionary", f"{dictionary.model}, {dictionary.n:,} concepts, {dictionary.k} active per patch"),
        ("Start", f"{dictionary.init}{f', SHA-256 {dictionary.digest}' if dictionary.digest else ''}"),
    ]
    if study.kind == "train":
        steps = (
            f"{training.rounds} rounds of {training.local_steps} steps, {training.batch_tokens} tokens a step"
        )
        pairs.append(("Training", f"{steps}, {training.aggregation} averages"))
    statistics = study.statistics
    pairs += [
        ("Classes", ", ".join(statistics.classes) or "none"),
        ("Attributes", ", ".join(f"{a.name} from {a.above:g}" for a in statistics.attributes) or "none"),
        ("Subgroups", ", ".join(f"{a.name} from {a.above:g}" for a in statistics.subgroups) or "none"),
        ("Held out", f"{statistics.test_share:.0%} of the patients of every site"),
        ("Resamples", f"{statistics.bootstrap:,} of a site's patients, for standard errors"),
        ("Random seed", str(study.seed)),
        ("Protocol SHA-256", study.digest),
    ]
    if study.part_of:
        pairs.append(("Part of protocol", f"{study.part_of} (stage {study.stage})"))
    text = "The digest stands in every message: a site answers no request of another protocol."
    return _part("technical", "Technical settings", {"pairs": pairs}, text)


def _duration(seconds: float) -> str:
    for size, name in ((86400, "days"), (3600, "hours"), (60, "minutes")):
        if seconds >= 2 * size:
            return f"{seconds / size:g} {name}"
    return f"{seconds:g} seconds"


def _bytes(size: float) -> str:
    for limit, name in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if size >= limit:
            return f"{size / limit:.3g} {name}"
    return f"{size:.0f} B"
