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
from cytosae_core.privacy.terms import PrivacyTerms
from cytosae_core.sae.checkpoint import load_checkpoint
from cytosae_core.tensors import write_atomic

from .study_readers import NONE, Answers

# Tensors of a start file whose first axis is the dictionary's rows, by what the file is for.
ROWS = {"train": ("centroids",), "validate": ("dictionary", "W_dec"), "dp": ("dictionary",)}
STEPS = ("reinhard", "cell-mask")


@dataclass(frozen=True)
class Start:
    """The start file: digest, model, rows, active rows, numbers per token, the encoder it was made with; of public
    dictionaries the clip norm of second moments and the tokens of a patient that it was taken of."""

    digest: str
    model: str
    n: int
    k: int
    d: int
    encoder: str
    second_clip: float
    tokens: int


def study_of(answers: Answers) -> StudyConfig:
    """The protocol.

    Raises:
        StudyError: the answers do not fit together, or the start file is missing or made for something else.
    """
    start = _start(answers)
    encoder = _encoder(answers, start)
    dictionary = DictionaryConfig(
        start.model if start else "pursuit",
        (start.n if start else answers["rows"]) + answers.get("atoms", 0),
        start.k if start and _init(answers) == "file" else answers["active"],
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
        privacy=_privacy(answers, start),
    )


def _privacy(answers: Answers, start: Start | None) -> PrivacyTerms:
    """Part `privacy`; all zero outside the profile dp."""
    if answers["profile"] != "dp":
        return PrivacyTerms()
    atoms = answers.get("atoms", 0)
    if atoms and (start is None or start.second_clip <= 0):
        raise StudyError(
            "Expected a start file with a clip norm of public patients.",
            hint="`cytosae sae public` makes one.",
        )
    moments: dict[str, Any] = {}
    if atoms and start is not None:
        moments = {"second_clip": start.second_clip, "tokens_of_a_patient": start.tokens}
    names = ("epsilon", "delta", "patients", "patients_in_all", "sites_of_a_patient", "classes_of_a_patient")
    return PrivacyTerms(
        **{name: answers[name] for name in names}, **moments, atoms=atoms,
        secure_aggregation=answers.get("secure_aggregation", False),
    )  # fmt: skip


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
    if answers["kind"] == "validate" or answers["profile"] == "dp":
        return "file"
    return "random" if answers["start"] in NONE else "public-kmeans"


def _start(answers: Answers) -> Start | None:
    kind = "dp" if answers["profile"] == "dp" else answers["kind"]
    if answers["start"] in NONE:
        if kind != "train":
            raise StudyError(
                f"Expected a start file for {kind}: the finished dictionary.", hint="Give --start."
            )
        return None
    loaded = load_checkpoint(Path(answers["start"]))
    table = next((loaded.tensors[name] for name in ROWS[kind] if name in loaded.tensors), None)
    if table is None or table.ndim != 2:
        raise StudyError(
            f"Expected a start file for kind={kind} with {' or '.join(ROWS[kind])}, got {sorted(loaded.tensors)}.",
            hint="train starts from `cytosae sae init`; validate from a trained or imported dictionary; profile dp "
            "from `cytosae sae public`.",
        )
    model, k = loaded.facts.get("model", "pursuit"), loaded.facts.get("k") or answers["active"]
    return Start(
        loaded.sha256,
        str(model),
        table.shape[0],
        int(k),
        table.shape[1],
        str(loaded.facts.get("encoder", "")),
        float(loaded.facts.get("second_clip", 0.0)),
        int(loaded.facts.get("tokens_of_a_patient", 64)),
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


def keep_start(answers: Answers, out: Path) -> None:
    """Copy the start file into `out`: invites name its digest, sites elsewhere fetch it from there.

    Raises:
        StudyError: another start file is there, or the folder can't be written.
    """
    if answers["start"] in NONE:
        return
    given = Path(answers["start"])
    source = given / "dictionary" if given.is_dir() else given
    parts = {out / f"start{end}": source.with_suffix(end).read_bytes() for end in (".safetensors", ".json")}
    for path, data in parts.items():
        if path.exists() and path.read_bytes() != data:
            raise StudyError(f"Expected no other start file at {path} yet.", hint="Choose another folder.")
    try:
        out.mkdir(parents=True, exist_ok=True)
        for path, data in parts.items():
            write_atomic(path, data)
    except OSError as error:
        raise StudyError(
            f"Expected a folder that can be written at {out}.", hint="Choose another."
        ) from error


def _relative(path: str, out: Path) -> str:
    return os.path.relpath(Path(path).resolve(), out.resolve())
