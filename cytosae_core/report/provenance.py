"""The report's sections for hospital IT and auditors: what left (R4), words (R20), how to check (R21), and the facts
of study, encoder and dictionary."""

from __future__ import annotations

from collections.abc import Sequence

from .figures_data import Concepts, said_reason
from .figures_sites import bytes_left
from .figures_study import bytes_by_round
from .page import Gap, TableCell, absent, bullets, details, facts, figure, known, section, table, words
from .svg import tick_text
from .text import (
    REPORTED,
    Json,
    clean,
    compact,
    entries,
    lines,
    mapping,
    number,
    status,
    suppressed,
    units_word,
    whole,
)

PROFILES = {
    "masked": "masked: heuristic protection of dictionary changes; not differential privacy, no epsilon applies",
    "evaluate_only": "evaluate_only: the dictionary was frozen; only metrics left, under disclosure control",
    "dp": "dp: differential privacy with the patient as the unit",
}
SHAPES = (
    "Letters in shapes: n concepts, d dimensions of the features, t kinds and attributes, c kinds of cells, s sites, "
    "h counts, g golden cells, q quality numbers, v views, p probes."
)
GLOSSARY = (
    (
        "Concept",
        "One row of the shared dictionary: a pattern that the vision transformer sees in patches of cells.",
    ),
    (
        "Code",
        "How strongly a concept is present in a patch. Standardised: each site rescales codes to its own spread.",
    ),
    (
        "FVU",
        "Fraction of variance unexplained: share of the information that the dictionary misses; 0 is best.",
    ),
    (
        "AUROC",
        "Chance that one patient's cells of a kind show more of it than other cells of another; .5 = unrelated.",
    ),
    (
        "Balanced accuracy",
        "Share of cells named correctly, averaged over kinds so that rare kinds count the same.",
    ),
    (
        "95 % interval",
        "Where the mean over hospitals like these is expected: how sure the average is.",
    ),
    (
        "Prediction interval",
        "Where the value of one more hospital is expected, 19 times in 20: how far hospitals differ. It decides.",
    ),
    (
        "tau², I²",
        "How much sites differ beyond chance: tau² as a variance, I² as a share of all variation (grows with data).",
    ),
    (
        "State",
        "How far a concept came: candidate, recurring, named, provisional, generalising, validated; see R7.",
    ),
    (
        "Site-predictability",
        "How well two hospitals can be told apart within one kind of cell; .5 = not at all.",
    ),
    (
        "Unit",
        "What is counted and split: the patient; where patients are unknown the slide, else the source file.",
    ),
    (
        "Suppressed",
        "Withheld by the hospital because too few patients stand behind the number; drawn hatched.",
    ),
    ("Shuffled labels", "The same computation with labels mixed at random: what chance alone would give."),
)


EPSILON = {
    "masked": "No epsilon: the profile “masked” protects heuristically and gives no formal guarantee.",
    "evaluate_only": "No epsilon: only metrics left, under disclosure control, which gives no formal guarantee.",
}


def egress(report: Json, marks: Sequence[str]) -> str:
    """R4: what left each hospital: bytes, rules, fields, and what never leaves."""
    part = mapping(report.get("egress"))
    rules, never = lines(part.get("rules")), lines(part.get("never"))
    return section(
        "R4",
        "Privacy: what left each hospital",
        "Everything that leaves passes one door at the hospital, against this list. What is not listed cannot leave.",
        figure(bytes_left(report, marks)),
        words("h3", "Never leaves"),
        bullets(never) if never else absent("the report does not list it"),
        words("h3", "Rules at the door"),
        bullets(rules) if rules else absent("the report does not list them"),
        words("h3", "Privacy budget (epsilon)"),
        _epsilon(report, part),
        figure(bytes_by_round(report, marks)),
        _withheld(report),
        _fields(report),
        words("h3", "Attacks that the sites ran on themselves"),
        absent(
            said_reason(report, "self-attack", "no result of an attack on its own messages is in the report")
        ),
    )


def _epsilon(report: Json, part: Json) -> str:
    profile = clean(part.get("profile") or mapping(report.get("study")).get("profile") or "")
    if profile in EPSILON:
        return words("p", EPSILON[profile])
    if promise := mapping(part.get("privacy")):
        return _promise(promise)
    return absent("the report does not state it" if profile else "the report names no profile")


def _promise(promise: Json) -> str:
    """The promise of the profile `dp`, in a sentence and its terms."""
    epsilon, delta = number(promise.get("epsilon")), number(promise.get("delta"))
    said = (
        f"Epsilon {compact(epsilon)} at delta {delta:g} for every patient and the whole study: one patient more or "
        f"less changes how likely any outcome is by at most e^{compact(epsilon)} times, but for a chance of delta."
        if epsilon is not None and delta is not None
        else "The report does not state epsilon."
    )
    noises = mapping(promise.get("noise_multiplier"))
    summed = "under masks, in shares" if promise.get("secure_aggregation") else "by every site"
    rows = [
        (
            "One patient is at",
            f"at most {whole(number(promise.get('sites_of_a_patient')) or 1)} of the sites",
        ),
        ("Patients at a site", f"at least {whole(number(promise.get('patients_per_site')) or 0)}"),
        (
            "Noise over clip norm",
            ", ".join(f"{clean(name)} {compact(number(s))}" for name, s in noises.items()),
        ),
        ("Noise of moments is added", summed),
        ("Concepts that moments added", whole(number(promise.get("added_concepts")) or 0)),
    ]
    return words("p", said) + facts(rows)


def _protection(report: Json) -> dict[str, str]:
    """The door's rules in a few words, with this study's smallest group."""
    least = number(mapping(report.get("study")).get("min_units")) or 0.0
    group = f"{whole(least)} {units_word(report)}"
    few = f"at least {group}" if least > 1 else "no smallest group"
    zero = f"rows of fewer than {group} are zero" if least > 1 else few
    return {
        "open": "no patient behind it",
        "metric": f"{few}; 4 digits",
        "share": f"{few}; 3 decimals",
        "count": f"{few}; rounded",
        "hello": f"{few}; rounded",
        "update": zero,
    }


def _fields(report: Json) -> str:
    part, rules = mapping(report.get("egress")), _protection(report)
    rows = [
        [
            clean(item.get("name", "")),
            clean(item.get("kind", "")),
            f"{clean(item.get('dtype', ''))} {clean(item.get('shape', '')).replace('x', ' × ')}",
            rules.get(str(item.get("rule")), clean(item.get("rule") or "")),
            clean(item.get("why") or "no reason given"),
        ]
        for item in entries(part.get("fields"))
    ]
    if not rows:
        return words("h3", "Everything that may leave") + absent("the report does not list it")
    header = ["Field", "Message", "Type and shape", "Protection", "Why it is needed"]
    made = table(header, rows) + words("p", SHAPES, class_="small")
    return details(f"Everything that may leave: {len(rows)} fields, and why each is needed", made)


def _withheld(report: Json) -> str:
    """Dictionary rows that each site kept back."""
    sites = {clean(name): mapping(site) for name, site in mapping(report.get("sites")).items()}
    rows: list[list[TableCell]] = []
    for name, site in sites.items():
        reason = "not recorded" if status(site) == REPORTED else status(site)
        rows.append(
            [
                name,
                known(whole(number(site.get("suppressed_rows"))), reason),
                known(clean(site.get("policy") or ""), reason),
                known(clean(site.get("relay_isolation") or ""), reason),
            ]
        )
    header = ["Site", "Row changes withheld over all rounds", "Site's policy", "Relay isolation"]
    made = table(header, rows, "What the hospitals held back") if rows else ""
    return details("What each hospital held back", made) if len(rows) > 30 else made


def glossary(report: Json, marks: Sequence[str]) -> str:
    """R20: the words that this report uses."""
    return section("R20", "Words in this report", "", facts(GLOSSARY))


def appendix(report: Json, marks: Sequence[str]) -> str:
    """R21: how to check the numbers, and what report.json holds."""
    steps = lines(report.get("how_to_check"))
    return section(
        "R21",
        "How to check this report",
        "How can somebody who trusts nobody check the numbers? This page is report.json, drawn, and nothing else.",
        bullets(steps, "ol") if steps else absent("the report does not say how"),
        words("h3", "Files beside this page"),
        bullets(_files(report)),
        details("What report.json holds", table(("Part", "What it holds"), _index(report))),
    )


def _files(report: Json) -> list[str]:
    concepts = Concepts(report)
    found = [
        "report.json: every number of this page, for programs.",
        "report.csv: one line per concept, with all sites.",
    ]
    if concepts.file:
        digest = clean(mapping(mapping(mapping(report.get("concepts")).get("tables"))).get("sha256") or "")
        found.append(f"{concepts.file}: values of single sites. SHA-256 {digest or 'not recorded'}.")
    return found


PARTS = {
    "verdict": "state, sentence, worst site, caveats", "headlines": "the numbers that decide, with intervals",
    "integrity": "log of messages", "protocol": "the plan as signed, and deviations", "study": "kind, seed, rounds",
    "encoder": "vision transformer and its check", "dictionary": "size, start, digest", "sites": "one entry per site",
    "concepts": "columns of all concepts, checks, values of sites", "matrix": "trained where, tested where",
    "calibration": "slope, observed and expected per class and site", "subgroups": "differences by property",
    "abstention": "accuracy where the classifier is most sure",
    "acquisition": "how pictures were taken", "heterogeneity": "what differences between sites go with",
    "drift": "each site against the others", "missing": "what is not there, per site", "experts": "expert review",
    "failures": "concepts that did not hold", "controls": "negative controls", "checklist": "reporting standards",
    "agreement": "agreement between sites", "site_predictability": "can a site be told", "loso": "sites left out",
    "comparators": "other dictionaries", "stability": "a second seed", "planted": "known concepts of synthetic cells",
    "egress": "what left, rules, fields", "rounds": "training, round by round", "overall": "means over sites",
    "limits": "what this does not show", "not_assessed": "gaps with reasons", "how_to_check": "steps for an auditor",
}  # fmt: skip


def _index(report: Json) -> list[list[str]]:
    return [
        [name, text if name in report else f"{text} (not in this report)"] for name, text in PARTS.items()
    ]


def check_statistics(report: Json) -> str:
    """How to check a comparison of statistics: no protocol, encoder or egress belongs to it."""
    steps = lines(report.get("how_to_check"))
    size = whole(number(mapping(report.get("dictionary")).get("n")))
    said = bullets(steps, "ol") if steps else absent("the report does not say how")
    return section(
        "check",
        "How this was made, and how to check it",
        "",
        said,
        facts([("Concepts in the dictionary", known(size, "not recorded"))]),
    )


def study_facts(report: Json) -> list[tuple[str, TableCell]]:
    """Name, profile, training, seed."""
    study = mapping(report.get("study"))
    absent_here = "not recorded"
    profile = str(study.get("profile") or "")
    return [
        ("Study", known(clean(study.get("name") or ""), absent_here)),
        ("Egress profile", known(PROFILES.get(profile, clean(profile)), absent_here)),
        ("Smallest group shown", _smallest(report)),
        ("Training", _training(study)),
        ("Aggregation", known(clean(study.get("aggregation") or ""), absent_here)),
        ("Seed", known(whole(number(study.get("seed"))), absent_here)),
        ("Protocol, SHA-256", known(clean(study.get("protocol_sha256") or ""), absent_here)),
    ]


def _training(study: Json) -> TableCell:
    rounds, steps = number(study.get("rounds")), number(study.get("local_steps"))
    if rounds is None:
        return Gap("not recorded")
    if rounds == 0:
        if study.get("kind") == "train":
            return "none: the public rows stayed as they were; what was added came from noised sums"
        return "none: the dictionary was frozen"
    return f"{whole(rounds)} rounds of {whole(steps) or 'an unknown number of'} local steps"


def _smallest(report: Json) -> TableCell:
    least = number(mapping(report.get("study")).get("min_units"))
    if least is None:
        return Gap("not recorded")
    if mapping(report.get("study")).get("profile") == "dp":
        return "numbers that the noise drowns are withheld"
    return "no limit" if least <= 1 else f"numbers with {suppressed(report)} behind them are withheld"


def encoder_facts(report: Json) -> list[tuple[str, TableCell]]:
    """Encoder, and whether all sites ran the same one."""
    encoder = mapping(report.get("encoder"))
    difference, tolerance = (
        number(encoder.get("canary_max_difference")),
        number(encoder.get("canary_tolerance")),
    )
    disagreed = "sites did not agree on one encoder" if "digest" in encoder else "not recorded"
    layer, depth = whole(number(encoder.get("layer"))), whole(number(encoder.get("depth")))
    check: TableCell = Gap("no tolerance or no difference was recorded")
    if difference is not None and tolerance:
        said = "within" if difference <= tolerance else "NOT within"
        check = f"largest difference {difference:.2g}, {said} the tolerance {tick_text(tolerance)}"
    return [
        ("Vision transformer", known(clean(encoder.get("name") or ""), "not recorded")),
        ("Read after block", known(f"{layer} of {depth}" if layer and depth else layer, "not recorded")),
        ("Preparation of images", known(", ".join(lines(encoder.get("steps"))), "none was recorded")),
        ("Encoder digest", known(clean(encoder.get("digest")), disagreed)),
        ("Same golden cells at every site", check),
    ]


def dictionary_facts(report: Json) -> list[tuple[str, TableCell]]:
    """Size, start and digest of the dictionary."""
    dictionary = mapping(report.get("dictionary"))
    size = [whole(number(dictionary.get(name))) for name in ("n", "d", "k")]
    shape = f"{size[0]} concepts in {size[1]} dimensions, {size[2]} per patch" if all(size) else ""
    return [
        ("Dictionary", known(clean(dictionary.get("model") or ""), "not recorded")),
        ("Size", known(shape, "not recorded")),
        ("Started from", known(clean(dictionary.get("init") or ""), "not recorded")),
        ("Dictionary, SHA-256", known(clean(dictionary.get("sha256") or ""), "not recorded")),
    ]
