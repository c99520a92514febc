"""Results of studies that never ran, with known concepts, on disk as the coordinator would have them.

A tenth of the concepts speak of one class everywhere, a tenth at some sites only, the rest of nothing. Numbers are
drawn per site from a seed; what is measured with them is the report.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cytosae_core.config import (
    Attribute,
    DictionaryConfig,
    EncoderConfig,
    RoundsConfig,
    StatisticsConfig,
    StudyConfig,
    TrainingConfig,
)
from cytosae_core.egress import ALLOWED
from cytosae_core.envelope import REPLY, pack
from cytosae_core.keys import SigningKey
from cytosae_core.report.inputs import RoundRecord, StudyResult
from cytosae_core.tensors import pack_tensors
from cytosae_server.runfolder import ReplyTables, RunFolder

Array = NDArray[Any]
FULL_ONLY = (
    "code_",
    "embedding_",
    "same_site",
    "image_",
    "colour_",
    "confound",
    "recurrence",
    "auroc_adjusted",
)
UNITS = 40


def made_study(sites: int, n: int, *, d: int = 384, classes: int = 4, **changes: Any) -> StudyConfig:
    """A simulated training study with `sites` sites and n concepts."""
    values: dict[str, Any] = {
        "name": "made",
        "sites": tuple(f"site-{index:03d}" for index in range(sites)),
        "simulation": True,
        "encoder": EncoderConfig(d=d),
        "dictionary": DictionaryConfig(n=n, init="random"),
        "training": TrainingConfig(rounds=2),
        "rounds": RoundsConfig(quorum=1),
        "statistics": StatisticsConfig(
            classes=tuple(f"class {index}" for index in range(classes)),
            subgroups=(Attribute("age", 65.0),),
            recurrence_steps=20,
        ),
    }
    return StudyConfig(**{**values, **changes})


def made_result(study: StudyConfig, folder: Path, *, seed: int = 0) -> StudyResult:
    """A finished study's result; tables lie in `folder` as signed replies and are read on demand."""
    kept, key = RunFolder(folder, study), SigningKey.generate()
    rng = np.random.default_rng(seed)
    truth = true_effects(study, rng)
    for index, site in enumerate(study.sites):
        own = np.random.default_rng((seed, index))
        for which in ("final", "random", "init"):
            effects = truth if which == "final" else np.zeros_like(truth)
            _keep(kept, f"describe-{which}", site, describe(study, effects, own, which == "final"), key)
        _keep(kept, "score", site, score(study, own, index), key)
        _keep(kept, "hello", site, hello(study, own, index), key)
    rows = rng.standard_normal((study.dictionary.n, study.encoder.d), dtype=np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    kept.save_round(0, rows, {"round": 0})
    return load_result(study, folder)


def load_result(study: StudyConfig, folder: Path) -> StudyResult:
    """The result that `made_result` left in a folder, as a coordinator holds it after the last step."""
    kept, sites, result = RunFolder(folder, study), list(study.sites), StudyResult(scratch=folder)
    for which in ("final", "random", "init"):
        result.describe[which] = ReplyTables(kept, f"describe-{which}", sites)
    result.scores = ReplyTables(kept, "score", sites)
    hello = ReplyTables(kept, "hello", sites)
    result.take_counts(hello)
    for index, site in enumerate(sites):
        _facts(result, site, index)
    result.final = result.first = kept.dictionary(0, kept.rounds()[0]["dictionary"])
    quality = {site: result.describe["final"][site]["quality"] for site in sites[:3]}
    result.rounds = [RoundRecord(number, quality, 10**6, {}) for number in (1, 2)]
    result.log = (10 * len(sites), "ab" * 32)
    return result


def save_result(folder: Path, sites: int, n: int) -> None:
    """Make a study's result in a folder."""
    made_result(made_study(sites, n), folder)


def _keep(kept: RunFolder, step: str, site: str, tables: dict[str, Array], key: SigningKey) -> None:
    kept.keep_reply(step, site, pack({"site": site}, pack_tensors(tables), REPLY, key))


def hello(study: StudyConfig, rng: np.random.Generator, index: int) -> dict[str, Array]:
    each = rng.integers(40, 90, len(study.statistics.classes))
    listed = np.nan if index % 5 == 4 else each.sum() + 15 * (index % 3)
    return {
        "counts": np.array([each.sum(), UNITS, 24, 16, *each], np.float32),
        "class_units": np.full(len(each), UNITS / 2, np.float32),
        "listed": np.array([listed], np.float32),
    }


def _facts(result: StudyResult, site: str, index: int) -> None:
    result.facts[site] = {
        "unit": "patient",
        "policy": "masked",
        "relay_isolation": "user",
        "scanner": "made-1",
    }
    result.received[site] = {"hello": [1, 4000], "describe": [3, 10**7], "score": [1, 10**6]}
    place = 10 * index
    result.leaves[site] = {
        "hello": [place],
        "describe": [place + 1, place + 2, place + 3],
        "score": [place + 4],
    }


def true_effects(study: StudyConfig, rng: np.random.Generator) -> Array:
    """True logit effects [n, t]: the first tenth speaks of a class, the second tenth too, but not everywhere."""
    n, t = study.dictionary.n, len(study.targets)
    effects = np.zeros((n, t))
    loud = np.arange(n // 5)
    effects[loud, loud % t] = np.where(loud % 2, 1.6, -1.6)
    return effects + rng.normal(0, 0.05, (n, t))


def describe(study: StudyConfig, truth: Array, rng: np.random.Generator, full: bool) -> dict[str, Array]:
    """One site's answer to `describe`."""
    n, t = truth.shape
    own = truth + rng.normal(0, 0.15, (n, t))
    own[n // 10 : n // 5] *= rng.random((n // 5 - n // 10, 1)) < 0.5
    auroc = 1 / (1 + np.exp(-own - rng.normal(0, 0.2, (n, t))))
    error = 0.2 * auroc * (1 - auroc)
    few = rng.random((n, t)) < 0.03
    out = {
        "auroc": np.where(few, np.nan, np.round(auroc, 3)),
        "auroc_se": np.where(few, np.nan, error),
        "auroc_shuffled": np.where(few, np.nan, np.round(0.5 + rng.normal(0, 0.05, (n, t)), 3)),
        "firing_rate": rng.gamma(1.0, 0.01, n),
        "reliability": np.array([0.8]),
        "quality": np.array([20, 100, 90, 2048, 12, 0.01]) * rng.uniform(0.9, 1.1, 6),
    }
    if full:
        out |= _full(study, rng, out["auroc"])
    return {name: np.asarray(value).astype(np.float32) for name, value in out.items()}


def _full(study: StudyConfig, rng: np.random.Generator, auroc: Array) -> dict[str, Array]:
    """The tensors of a final dictionary only, in the shapes of the table of what may leave."""
    out: dict[str, Array] = {}
    for field in ALLOWED:
        if field.kind == "describe" and field.name.startswith(FULL_ONLY):
            shape = tuple(int(dim) if dim.isdigit() else study.dims[dim] for dim in field.shape)
            out[field.name] = rng.random(shape, dtype=np.float32) / 10 + np.float32(0.1)
    out["auroc_adjusted"] = auroc
    out["same_site_null"] = np.full(study.dims["v"], 0.52)
    out["image_histogram"] = np.full((study.dims["i"], study.dims["o"]), 20.0) + 5 * rng.integers(0, 3)
    out["recurrence"] = rng.uniform(0.4, 0.95, study.dictionary.n)
    out["recurrence_init"], out["recurrence_null"] = np.full(study.dictionary.n, 0.35), np.array([0.45])
    return out


def _coverage(rng: np.random.Generator) -> Array:
    """Accuracy and error on the most confident shares; of every third site the smallest part is withheld."""
    value = np.linspace(0.9, 0.74, 5) + rng.normal(0, 0.02)
    out = np.stack([value, np.linspace(0.05, 0.03, 5)], axis=1)
    out[0] = np.nan if rng.random() < 1 / 3 else out[0]
    return out


def score(study: StudyConfig, rng: np.random.Generator, index: int) -> dict[str, Array]:
    """One site's answer to `score`."""
    dims, near = study.dims, range(index - 4, index + 5)
    recall = np.full((dims["v"], dims["s"]), np.nan)
    for other in near:
        if other != index and 0 <= other < dims["s"]:
            recall[:, other] = rng.uniform(0.5, 0.7, dims["v"])
    accuracy = np.array([0.74, 0.70, 0.72, 1 / dims["c"], 0.45, 0.82]) + rng.normal(0, 0.03, dims["p"])
    ideal = np.array([1.0, 0.2, 0.05, 0.25, 0.26, 0.15, 0.05])
    out = {
        "balanced_accuracy": accuracy,
        "balanced_accuracy_se": np.full(dims["p"], 0.03),
        "calibration": np.tile(ideal, (dims["c"], 1)) + rng.normal(0, 0.01, (dims["c"], dims["k"])),
        "coverage": _coverage(rng),
        "subgroup": np.tile([0.02, 0.04], (dims["u"], 1)) + rng.normal(0, 0.005, (dims["u"], 2)),
        "ablation": rng.gamma(1.0, 0.01, (dims["n"], dims["c"])),
        "concept_site": rng.uniform(0.45, 0.6, dims["n"]),
        "concept_site_null": np.full(dims["n"], 0.5),
        "site_recall": recall,
    }
    return {name: value.astype(np.float32) for name, value in out.items()}
