"""The table of what may leave a site. What is not here cannot leave; hospital IT reads this file and its policy.

`egress.py` enforces the table; `cytosae site preview` prints it with real values.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

ALL = ("evaluate_only", "masked")
MASKED = ("masked",)


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
        "hello", "canary", "float32", ("g", "d"), "open", ALL, "same golden cells, same features everywhere"
    ),
    Field(
        "hello", "counts", "float32", ("h",), "hello", ALL, "images and units, in all, per split, per class"
    ),
    Field("moments", "token_sum", "float32", ("d",), "metric", MASKED, "federated mean of tokens"),
    Field("moments", "token_square", "float32", ("1",), "metric", MASKED, "federated scale of tokens"),
    Field("moments", "token_count", "float32", ("1",), "count", MASKED, "weight of the two sums"),
    Field("round", "delta", "float16", ("n", "d"), "update", MASKED, "dictionary rows: change in this round"),
    Field("round", "fired", "float32", ("n",), "count", MASKED, "weights of the rows (training tokens)"),
    Field("*", "quality", "float32", ("q",), "metric", ALL, "FVU, L0, dead fraction on held-out units"),
    Field("describe", "firing_rate", "float32", ("n",), "metric", ALL, "how often a concept fires"),
    Field("describe", "auroc", "float32", ("n", "t"), "share", ALL, "class meaning of a concept"),
    Field("describe", "auroc_se", "float32", ("n", "t"), "metric", ALL, "its standard error over units"),
    Field("describe", "auroc_shuffled", "float32", ("n", "t"), "share", ALL, "control: shuffled labels"),
    Field(
        "describe", "reliability", "float32", ("1",), "metric", ALL, "agreement of two halves of the units"
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

# Closed set of JSON values in a reply's header beside the tensors: names of software and digests only.
HELLO_FACTS = {
    "software": re.compile(r"[0-9a-z.+]{1,20}|uninstalled"),
    "encoder_digest": re.compile(r"[0-9a-f]{64}"),
    "policy_digest": re.compile(r"[0-9a-f]{64}"),
    "policy": re.compile(r"[A-Za-z][A-Za-z0-9_.-]{0,39}"),
    "unit": re.compile(r"patient|slide|source_file|image"),
    "relay_isolation": re.compile(r"none|user"),
}
# Header, signature, padding and proof beside the tensors of a message, bytes.
MAX_OVERHEAD_BYTES = 64 * 1024
