"""Answers of `cytosae study new` -> the protocol, and the section `local` beside it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from cytosae_core.config import (
    DictionaryConfig,
    EncoderConfig,
    RoundsConfig,
    StatisticsConfig,
    StudyConfig,
    TrainingConfig,
)
from cytosae_core.errors import StudyError
from cytosae_core.plan import Criterion, Endpoint, PlanConfig, Stage
from cytosae_core.sae.checkpoint import load_checkpoint

from .study_readers import NONE, Answers

# Tensors of a start file whose first axis is the dictionary's rows, by what the file is for.
ROWS = {"train": ("centroids",), "validate": ("dictionary", "W_dec")}
STEPS = ("reinhard", "cell-mask")


@dataclass(frozen=True)
class Start:
    """The start file: digest, model, rows, active rows, numbers per token, and the encoder it was made with."""

    digest: str
    model: str
    n: int
    k: int
    d: int
    encoder: str


def study_of(answers: Answers) -> StudyConfig:
    """The protocol.

    Raises:
        StudyError: the answers do not fit together, or the start file is missing or made for something else.
    """
    start = _start(answers)
    encoder = _encoder(answers, start)
    dictionary = DictionaryConfig(
        start.model if start else "pursuit",
        start.n if start else answers["rows"],
        start.k if start and answers["kind"] == "validate" else answers["active"],
        _init(answers),
        start.digest if start else "",
    )
    return StudyConfig(
        name=answers["name"],
        sites=tuple(answers["sites"]),
        kind=answers["kind"],
        profile=answers["profile"],
        question=answers["question"],
        simulation=answers["simulation"],
        seed=answers["seed"],
        min_units=answers["min_units"],
        encoder=encoder,
        dictionary=dictionary,
        training=replace(TrainingConfig(), rounds=answers["rounds"]),
        rounds=RoundsConfig(quorum=answers["quorum"]),
        statistics=StatisticsConfig(
            classes=answers["classes"],
            recurrence_steps=answers["recurrence_steps"] if dictionary.model == "pursuit" else 0,
        ),
        plan=_plan(answers),
    )


def _plan(answers: Answers) -> PlanConfig:
    first = Endpoint(answers["primary"], answers["threshold"], True)
    others = [Endpoint(name, value) for name, value in answers["endpoints"].items()]
    stages = [
        Stage(
            name,
            tuple(answers[f"{name}_sites"]),
            tuple(Criterion(**item) for item in answers[f"{name}_criteria"]),
        )
        for name in answers["stages"]
    ]
    return PlanConfig(
        hypothesis=answers["hypothesis"],
        endpoints=(first, *others),
        selection=answers["selection"],
        concepts=answers.get("concepts", ()),
        support=answers["support"],
        min_sites=answers["min_sites"],
        fdr=answers["fdr"],
        stages=tuple(stages),
    )


def _init(answers: Answers) -> str:
    if answers["kind"] == "validate":
        return "file"
    return "random" if answers["start"] in NONE else "public-kmeans"


def _start(answers: Answers) -> Start | None:
    kind = answers["kind"]
    if answers["start"] in NONE:
        if kind == "validate":
            raise StudyError(
                "Expected a start file for kind=validate: the finished dictionary.", hint="Give --start."
            )
        return None
    loaded = load_checkpoint(Path(answers["start"]))
    table = next((loaded.tensors[name] for name in ROWS[kind] if name in loaded.tensors), None)
    if table is None or table.ndim != 2:
        raise StudyError(
            f"Expected a start file for kind={kind} with {' or '.join(ROWS[kind])}, got {sorted(loaded.tensors)}.",
            hint="train starts from `cytosae sae init`; validate from a trained or imported dictionary.",
        )
    model, k = loaded.facts.get("model", "pursuit"), loaded.facts.get("k") or answers["active"]
    return Start(
        loaded.sha256,
        str(model),
        table.shape[0],
        int(k),
        table.shape[1],
        str(loaded.facts.get("encoder", "")),
    )


def _encoder(answers: Answers, start: Start | None) -> EncoderConfig:
    from cytosae_core.encoder import default_layer
    from cytosae_core.encoder.facts import facts_of

    facts = facts_of(answers["encoder"])
    if start and start.d != facts.d:
        raise StudyError(
            f"Expected a start file for encoder={answers['encoder']} with d={facts.d}, got d={start.d}.",
            hint="It was made with another encoder.",
        )
    published = start is not None and start.model != "pursuit"
    steps = answers["steps"] if answers["steps"] is not None else (() if published else STEPS)
    layer = answers["layer"] or default_layer(facts.depth, "validate" if published else "train")
    return EncoderConfig(answers["encoder"], layer, steps, facts.d, start.encoder if start else "")


def local_of(answers: Answers, out: Path) -> dict[str, Any] | None:
    """The section `local`, with paths relative to `out`; None when no folders were given."""
    sites: Mapping[str, str] = answers["sites"]
    if not any(sites.values()):
        return None
    for name, folder in sites.items():
        if not Path(folder).is_dir():
            raise StudyError(f"Expected a folder for site={name} at {folder}.", hint="Check the path.")
    local: dict[str, Any] = {
        "sites": {name: _relative(folder, out) for name, folder in sites.items()},
        "policy": answers["policy"],
    }
    if answers["start"] not in NONE:
        local["start"] = _relative(answers["start"], out)
    if answers["weights"]:
        local["weights"] = _relative(answers["weights"], out)
    if answers["max_images"]:
        local["max_images"] = answers["max_images"]
    return local


def _relative(path: str, out: Path) -> str:
    return os.path.relpath(Path(path).resolve(), out.resolve())
