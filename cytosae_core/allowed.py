"""The table of what may leave a site. What is not here cannot leave; hospital IT reads this file and its policy.

`egress.py` enforces the table; `cytosae site preview` prints it with real values.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

ALL = ("evaluate_only", "masked")
MASKED, DP = ("masked",), ("dp",)
EVERY = ALL + DP


@dataclass(frozen=True)
class Field:
    """One thing that may leave.

    Attributes:
        kind: message kind it may travel in.
        name: tensor name.
        dtype: numpy dtype name on the wire.
        shape: symbolic dimensions, resolved from the signed protocol by `StudyConfig.dims` (n rows,
            d dimensions, s sites, t targets, c classes, v views, g golden cells ...) or literal integers.
        rule: what the door does with it. `open`: no patient behind it. All others suppress below the policy's
            min_units; then `metric`: 4 significant digits; `share` (AUROC and the like): 3 decimals; `count`: rounded
            to the policy's multiple; `hello`: counts, with complementary suppression; `update`: zero instead of NaN.
            `raters`: no patient behind it, but people: votes of three raters or more leave as they are.
            Under `dp` all but `open` passes only with the plan that the site's privacy ledger charged: `noised` is
            made from noised sums, `sum` is a noised sum in integers.
        profiles: egress profiles that allow it.
        why: what the coordinator needs it for.
    """

    kind: str
    name: str
    dtype: str
    shape: tuple[str, ...]
    rule: str
    profiles: tuple[str, ...]
    why: str


ALLOWED: tuple[Field, ...] = (
    Field(
        "hello", "canary", "float32", ("g", "d"), "open", EVERY, "same golden cells, same features everywhere"
    ),
    Field(
        "hello", "counts", "float32", ("h",), "hello", ALL, "images and units, in all, per split, per class"
    ),
    Field("hello", "class_units", "float32", ("c",), "count", ALL, "units of each class: is there support?"),
    Field("hello", "listed", "float32", ("1",), "count", ALL, "images listed, readable or not"),
    Field("moments", "token_sum", "float32", ("d",), "metric", MASKED, "federated mean of tokens"),
    Field("moments", "token_square", "float32", ("1",), "metric", MASKED, "federated scale of tokens"),
    Field("moments", "token_count", "float32", ("1",), "count", MASKED, "weight of the two sums"),
    Field("round", "delta", "float16", ("n", "d"), "update", MASKED, "dictionary rows: change in this round"),
    Field("round", "fired", "float32", ("n",), "count", MASKED, "weights of the rows (training tokens)"),
    Field("*", "quality", "float32", ("q",), "metric", EVERY, "FVU, L0, dead fraction on held-out units"),
    Field("describe", "firing_rate", "float32", ("n",), "metric", EVERY, "how often a concept fires"),
    Field("describe", "auroc", "float32", ("n", "t"), "share", EVERY, "class meaning of a concept"),
    Field("describe", "auroc_se", "float32", ("n", "t"), "metric", EVERY, "its standard error over units"),
    Field("describe", "auroc_shuffled", "float32", ("n", "t"), "share", ALL, "control: shuffled labels"),
    Field("describe", "quality_init", "float32", ("q",), "noised", DP, "the same without added concepts"),
    Field(
        "describe", "fvu_se", "float32", ("1",), "noised", DP, "what the noise alone may have done to the FVU"
    ),
    Field("describe", "counts", "float32", ("h",), "noised", DP, "patients in all and per class, noised"),
    Field("describe", "class_units", "float32", ("c",), "noised", DP, "patients of each class, noised"),
    Field("second", "second_moment", "int64", ("m2",), "sum", DP, "where the public dictionary falls short"),
    Field("third", "third_moment", "int64", ("m3",), "sum", DP, "concepts in what it leaves"),
    Field(
        "sum_masked", "second_masked", "uint32", ("m2",), "sum", DP, "the same under masks: only a sum opens"
    ),
    Field(
        "sum_masked", "third_masked", "uint32", ("m3",), "sum", DP, "the same under masks: only a sum opens"
    ),
    Field("sum_keys", "sum_keys", "uint8", ("kb",), "open", DP, "public keys for the masks of one sum"),
    Field("sum_shares", "commitment", "uint8", ("32",), "open", DP, "that a seed is the one that was shared"),
    Field("sum_shares", "boxes", "uint8", ("S", "bb"), "open", DP, "shares of keys, sealed to other sites"),
    Field("sum_confirm", "confirmation", "uint8", ("64",), "open", DP, "a signature under who is in the sum"),
    Field("sum_unmask", "seeds", "uint8", ("S", "sb"), "open", DP, "shares that take masks off a sum"),
    Field("sum_unmask", "masks", "uint8", ("S", "sb"), "open", DP, "the same for sites that dropped out"),
    Field(
        "describe", "reliability", "float32", ("1",), "metric", ALL, "agreement of two halves of the units"
    ),
    Field(
        "describe", "auroc_adjusted", "float32", ("n", "t"), "share", ALL, "the same with cell size taken out"
    ),
    Field(
        "describe",
        "confound",
        "float32",
        ("n", "i"),
        "metric",
        ALL,
        "does a concept follow light, focus or size?",
    ),
    Field(
        "describe", "recurrence", "float32", ("n",), "metric", ALL, "nearest row of the site's own dictionary"
    ),
    Field(
        "describe", "recurrence_init", "float32", ("n",), "metric", ALL, "the same before that was trained"
    ),
    Field("describe", "recurrence_null", "float32", ("1",), "metric", ALL, "the same for permuted rows"),
    Field(
        "describe",
        "image_facts",
        "float32",
        ("i", "2"),
        "metric",
        ALL,
        "light, focus, size: mean and SD over units",
    ),
    Field(
        "describe", "ratings", "float32", ("n", "r"), "raters", ALL, "what experts say that a concept shows"
    ),
    Field("describe", "image_histogram", "float32", ("i", "o"), "count", ALL, "drift: units per bin"),
    *(
        Field(
            "describe",
            f"colour_class_{moment}",
            "float32",
            ("c", "b"),
            "metric",
            ALL,
            "control: colours alone",
        )
        for moment in ("mean", "var")
    ),
    *(
        Field("describe", f"{view}_{part}_{moment}", "float32", shape, "metric", ALL, why)
        for view, width in (("code", "n"), ("embedding", "d"))
        for part, shape, why in (
            ("all", (width,), "standardise this site"),
            ("class", ("c", width), "probe that is tested on another site"),
            ("half", (width,), "standardise this site, half of the units"),
            ("half_class", ("c", width), "can the site be read from the codes?"),
        )
        for moment in ("mean", "var")
    ),
    Field("describe", "same_site_null", "float32", ("v",), "metric", ALL, "control: two halves of one site"),
    Field("score", "balanced_accuracy", "float32", ("p",), "share", ALL, "leave-one-site-out result"),
    Field("score", "balanced_accuracy_se", "float32", ("p",), "metric", ALL, "its error, by units resampled"),
    Field(
        "score",
        "calibration",
        "float32",
        ("c", "k"),
        "metric",
        ALL,
        "do the probe's probabilities hold here?",
    ),
    Field("score", "coverage", "float32", ("a", "2"), "metric", ALL, "accuracy where the probe is most sure"),
    Field("score", "subgroup", "float32", ("u", "2"), "metric", ALL, "gap between subgroups and its error"),
    Field(
        "score", "ablation", "float32", ("n", "c"), "metric", ALL, "what a concept adds to a class's evidence"
    ),
    Field(
        "score", "concept_site", "float32", ("n",), "share", ALL, "does a concept tell this site from others?"
    ),
    Field("score", "concept_site_null", "float32", ("n",), "share", ALL, "control: two halves of this site"),
    Field(
        "score", "site_recall", "float32", ("v", "s"), "share", ALL, "can the site be read from the codes?"
    ),
)

NEVER = (
    "images, thumbnails, crops or heat maps",
    "file names, paths, patient, slide or file identifiers",
    "embeddings or codes of single images, cells or patients",
    "encoder weights, biases, optimiser state, sums of tokens per row",
    "indices or values of the strongest images of a concept",
    "free text of any kind",
)

# Closed set of JSON values in a reply's header beside the tensors: names of software, digests, and coded words about
# microscope and stain that the site chose to tell. A fact that is unknown is left out.
HELLO_FACTS = {
    "software": re.compile(r"[0-9a-z.+]{1,20}|uninstalled"),
    "encoder_digest": re.compile(r"[0-9a-f]{64}"),
    "policy_digest": re.compile(r"[0-9a-f]{64}"),
    "policy": re.compile(r"[A-Za-z][A-Za-z0-9_.-]{0,39}"),
    "unit": re.compile(r"patient|slide|source_file|image"),
    "relay_isolation": re.compile(r"none|user"),
    # The acquisition card: coded words with a letter, no sentence, no serial number (five digits in a row), no date.
    **{
        name: re.compile(r"(?=[^a-z]*[a-z])(?!.*[0-9]{5})[a-z0-9][a-z0-9.+-]{0,23}")
        for name in ("scanner", "objective", "stain", "camera")
    },
    "um_per_px": re.compile(r"(?!0*(\.0*)?\Z)[0-9]{1,2}(\.[0-9]{1,4})?"),
    "label_map": re.compile(r"v[1-9][0-9]{0,3}-[0-9a-f]{16}"),
}
# Header, signature, padding and proof beside the tensors of a message, bytes.
MAX_OVERHEAD_BYTES = 64 * 1024
