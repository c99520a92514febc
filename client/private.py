"""Steps of a study under the profile `dp` at a site: noised sums, each with the plan that the privacy ledger charges.

A release is drawn once: it is on disk at the site before it is charged, so that a repeated request, also after
kill -9, gets the same bytes. Other noise for the same sum would be a second release.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from cytosae_core.canonical import sha256_hex
from cytosae_core.config import COUNTS, QUALITY
from cytosae_core.egress import Release
from cytosae_core.errors import EgressError, MessageError
from cytosae_core.privacy import metrics
from cytosae_core.privacy.metrics import Noised, Patient
from cytosae_core.privacy.moments import MAX_RANK, Subspace, second_moment, third_moment, third_size
from cytosae_core.privacy.noise import exact_sum, grid_for, with_noise
from cytosae_core.privacy.plan import PrivacyPlan
from cytosae_core.privacy.secagg_wire import SUMS, shares_of, study_grid
from cytosae_core.sae.models import PursuitModel
from cytosae_core.sae.residual import ResidualModel
from cytosae_core.sae.scale import TokenScale
from cytosae_core.tensors import pack_tensors, unpack_tensors, write_atomic

from .steps import Answer, Steps, close

Array = NDArray[Any]
Floats = NDArray[np.float64]


def hello(steps: Steps, tensors: Mapping[str, Array], params: Mapping[str, Any]) -> Answer:
    """The golden cells' features only: counts of patients cost privacy, and come noised with the statistics."""
    return Answer({"canary": Release(steps.site.store.canary, 0)})


def second(steps: Steps, tensors: Mapping[str, Array], params: Mapping[str, Any]) -> Answer:
    """Release 1: the second moment of what the public rows leave, summed over patients."""
    _require(steps, secure=False)
    found, plan, checks = _second(steps, tensors)
    return Answer({"second_moment": Release(found, 1)}, checks=checks, private=plan)


def third(steps: Steps, tensors: Mapping[str, Array], params: Mapping[str, Any]) -> Answer:
    """Release 2: the third moment in the subspace that the coordinator found, summed over patients."""
    _require(steps, secure=False)
    found, plan, checks = _third(steps, tensors)
    return Answer({"third_moment": Release(found, 1)}, checks=checks, private=plan)


def masked(steps: Steps, tensors: Mapping[str, Array], params: Mapping[str, Any]) -> Answer:
    """Either release under masks. Its noise is a share, which protects in a sum only: it never leaves unmasked."""
    kind = _require(steps, secure=True, number=int(params["round"]))
    given = {name: values for name, values in tensors.items() if name != "boxes"}
    found, plan, checks = {"second": _second, "third": _third}[kind](steps, given)
    answer = steps.sums.masked(kind, tensors, found)
    return Answer({name: Release(words, 1) for name, words in answer.items()}, checks=checks, private=plan)


def _require(steps: Steps, *, secure: bool, number: int = 0) -> str:
    """The sum that is asked for, if the protocol has it in this form: under masks, or in the open."""
    if (
        steps.study.privacy.secure_aggregation != secure
        or not steps.study.privacy.atoms
        or number >= len(SUMS)
    ):
        raise MessageError("Expected a sum that the protocol asks for.", reason="MSG_TYPE")
    return SUMS[number]


Noisy = tuple[NDArray[np.int64], PrivacyPlan, tuple[dict[str, str], ...]]


def _second(steps: Steps, tensors: Mapping[str, Array]) -> Noisy:
    model, scale, checks = _residual_model(steps, tensors)
    plan = steps.study.privacy.plan("second", steps.study.layout)
    return (
        _kept(steps, "second", tensors, plan, lambda: _rows(steps, model, scale, second_moment)),
        plan,
        checks,
    )


def _third(steps: Steps, tensors: Mapping[str, Array]) -> Noisy:
    space = _space(steps, tensors)
    given = {name: values for name, values in tensors.items() if name not in ("basis", "values")}
    model, scale, checks = _residual_model(steps, given)
    plan = steps.study.privacy.plan("third", steps.study.layout, space.rank)
    rows = partial(_rows, steps, model, scale, lambda part: third_moment(part, space))
    found = np.zeros(third_size(MAX_RANK), np.int64)  # of one size, whatever the rank
    drawn = _kept(steps, "third", tensors, plan, rows)
    found[: len(drawn)] = drawn
    return found, plan, checks


def _stage(name: str) -> Callable[[Steps, Mapping[str, Array], Mapping[str, Any]], Answer]:
    """A stage of a secure sum that carries nothing of a patient: keys, shares of keys, signatures."""

    def stage(steps: Steps, tensors: Mapping[str, Array], params: Mapping[str, Any]) -> Answer:
        kind = _require(steps, secure=True, number=int(params["round"]))
        answer = getattr(steps.sums, name)(kind, tensors)
        return Answer({name: Release(values, 0) for name, values in answer.items()})

    return stage


def describe(steps: Steps, tensors: Mapping[str, Array], params: Mapping[str, Any]) -> Answer:
    """One release of every statistic: counts, quality, firing rates and class meanings of the listed concepts."""
    model, scale, checks = _residual_model(steps, tensors)
    layout, study = steps.study.layout, steps.study
    plan = study.privacy.plan("describe", layout)

    def rows() -> Iterator[Floats]:
        return (metrics.vector(patient, layout) for patient in _patients(steps, model, scale))

    total = _kept(steps, "describe", tensors, plan, rows)
    grid = _grid(steps, "describe", plan)
    found = metrics.split(total.astype(np.float64) * grid, layout, plan.noise_multiplier * plan.clip_norm)
    return Answer(_tables(steps, found), checks=checks, private=plan)


def _residual_model(
    steps: Steps, tensors: Mapping[str, Array]
) -> tuple[ResidualModel, TokenScale, tuple[dict[str, str], ...]]:
    """The public rows and the added ones behind them; the gate of frozen models.

    Without the site's output bias: a mean over patients in it would enter every other patient's numbers, and one
    patient more or less would change all of them.
    """
    least = steps.study.privacy.patients
    if len(np.unique(steps.data.unit_index)) < least:
        raise EgressError(
            f"Expected at least privacy.patients={least} patients at this site.",
            hint="The promise was planned for more.", code="policy", reason="PATIENTS",
        )  # fmt: skip
    model, scale, checks = steps.frozen(tensors)
    if not isinstance(model, PursuitModel):
        raise EgressError("Expected a pursuit dictionary.", code="base", reason="MODEL_REJECT")
    terms, n = steps.study.privacy, steps.study.dictionary.n
    rows = model.dictionary
    return (
        ResidualModel(rows[: n - terms.atoms], rows[n - terms.atoms :], model.k, terms.extra_k),
        scale,
        checks,
    )


def _space(steps: Steps, tensors: Mapping[str, Array]) -> Subspace:
    basis, values = tensors.get("basis"), tensors.get("values")
    fits = (
        basis is not None and values is not None and basis.ndim == 2 and 1 <= basis.shape[1] <= MAX_RANK
        and basis.shape[0] == steps.study.encoder.d and values.shape == basis.shape[1:]
    )  # fmt: skip
    if not fits or basis is None or values is None or not (np.isfinite(basis).all() and (values > 0).all()):
        raise MessageError("Expected basis[d, r] and values[r] > 0 of a subspace.", reason="SHAPE")
    return Subspace(basis.astype(np.float64), values.astype(np.float64))


def _grid(steps: Steps, name: str, plan: PrivacyPlan) -> float:
    """Width of the integers' grid; statistics are never summed over sites."""
    if name in SUMS:
        return study_grid(steps.study, plan)
    return grid_for(plan.clip_norm, steps.study.privacy.patients_in_all, plan.noise_multiplier)


def _kept(
    steps: Steps,
    name: str,
    tensors: Mapping[str, Array],
    plan: PrivacyPlan,
    rows: Callable[[], Iterable[Floats]],
) -> NDArray[np.int64]:
    """The noised sum of this release: drawn once per content of the request, then read back."""
    asked = sha256_hex(pack_tensors(dict(tensors)))[:16]
    path = steps.site.state / steps.study.digest[:16] / f"release-{name}-{asked}.safetensors"
    if not path.exists():
        grid = _grid(steps, name, plan)
        exact = sum(
            exact_sum(row[None], plan.clip_norm, grid) for row in rows()
        )  # one patient in memory at a time
        shares = shares_of(steps.study) if name in SUMS else 1
        drawn = with_noise(np.asarray(exact), plan.clip_norm, plan.noise_multiplier, grid, shares)
        write_atomic(path, pack_tensors({"total": drawn}))
    return np.asarray(unpack_tensors(path.read_bytes())["total"], dtype=np.int64)


def _rows(
    steps: Steps, model: ResidualModel, scale: TokenScale, moment: Callable[[Floats], Floats]
) -> Iterator[Floats]:
    """One row per patient: `moment` of the residuals of its tokens. Only its own tokens are looked at."""
    for unit in np.unique(steps.data.unit_index):
        images = np.flatnonzero(steps.data.unit_index == unit)
        x = _drawn(steps, scale, images, "moments")
        rest = x - model.first.reconstruct(model.first.codes(x))
        yield moment(rest.numpy().astype(np.float64))


def _drawn(steps: Steps, scale: TokenScale, images: Array, purpose: str) -> torch.Tensor:
    """One patient's tokens. The draw depends on its own name and images, never on who else is in the cohort."""
    name = steps.site.units[int(images[0])]
    tokens, _ = steps.data.random_tokens(
        images, steps.study.privacy.tokens_of_a_patient, f"{purpose} {sha256_hex(name.encode())}"
    )
    return torch.from_numpy(scale.apply(tokens))


def _patients(steps: Steps, model: ResidualModel, scale: TokenScale) -> list[Patient]:
    """What the release of statistics is made from, patient by patient."""
    scores = steps.score_all(model, scale)
    known, concepts = steps.data.labelled, [int(name[1:]) for name in steps.study.plan.concepts]
    root = float(np.sqrt(steps.study.encoder.d))
    largest, fired = scores.largest[:, concepts] / root, scores.fired[:, concepts]
    found = []
    for unit in np.unique(known.units):
        own = np.flatnonzero(known.units == unit)
        classes = np.array(
            [(known.labels[own] == index).any() for index in range(known.n_classes)], dtype=bool
        )
        means = np.full((known.n_classes, len(concepts)), np.nan)
        for index in np.flatnonzero(classes):
            means[index] = largest[own][known.labels[own] == index].mean(axis=0)
        squares = _squares(steps, model, scale, own)
        found.append(Patient(squares, fired[own].mean(axis=0).astype(np.float64), classes, means))
    return found


def _squares(steps: Steps, model: ResidualModel, scale: TokenScale, images: Array) -> Floats:
    """One patient's `metrics.SQUARES`."""
    x = _drawn(steps, scale, images, "squares")
    codes = model.codes(x)
    public = codes[:, : len(model.first.dictionary)]
    size = float(x.square().mean())
    error = float((x - model.reconstruct(codes)).square().mean())
    first = float((x - model.first.reconstruct(public)).square().mean())
    used = float((codes > 0).sum(dim=1).float().mean()) / (model.first.k + steps.study.privacy.extra_k)
    return np.array([error, size, first, used])


def _tables(steps: Steps, found: Noised) -> dict[str, Release]:
    """Everything that is told, from noised sums only: NaN (0 behind) where the noise drowns it."""
    n, classes = steps.study.dictionary.n, len(steps.study.statistics.classes)
    concepts = [int(name[1:]) for name in steps.study.plan.concepts]
    sure = found.patients > max(metrics.FEWEST, metrics.SURE * found.noise)
    rate, values, errors = np.full(n, np.nan), np.full((n, classes), np.nan), np.full((n, classes), np.nan)
    if sure:
        rate[concepts] = np.clip(found.fired / found.patients, 0.0, 1.0)
    for index in range(classes):
        told = metrics.of_class(found, index)
        values[concepts, index], errors[concepts, index] = told.value, told.se
    enough = found.classes > max(metrics.FEWEST, metrics.SURE * found.noise)
    units = np.where(enough, np.round(found.classes), np.nan)
    count = round(found.patients) if sure else np.nan
    counts = np.array([count if name == "units" else np.nan for name in COUNTS] + [np.nan] * classes)
    tables = {
        "firing_rate": rate, "auroc": values, "auroc_se": errors, "counts": counts, "class_units": units,
        "quality": _quality(steps, found, sure, 0), "quality_init": _quality(steps, found, sure, 2),
        "fvu_se": np.array([metrics.fvu_error(found) if sure and not metrics.vague(found) else np.nan]),
    }  # fmt: skip
    return {
        name: Release(np.nan_to_num(table).astype(np.float32), np.isfinite(table).astype(np.int64))
        for name, table in tables.items()
    }


def _quality(steps: Steps, found: Noised, sure: bool, place: int) -> Floats:
    """`config.QUALITY` from noised sums over patients: means per token times the tokens that were looked at."""
    out = dict.fromkeys(QUALITY, np.nan)
    if sure and not metrics.vague(found):
        tokens = steps.study.privacy.tokens_of_a_patient
        each = steps.study.encoder.d * tokens
        out |= {"sse": max(found.squares[place], 0.0) * each, "ss_global": found.squares[1] * each}
        out["tokens"] = found.patients * tokens
        if place == 0:
            most = steps.study.dictionary.k + steps.study.privacy.extra_k
            out["l0"] = max(found.squares[3], 0.0) / found.patients * most
    return np.array([out[name] for name in QUALITY], dtype=np.float64)


STEPS: dict[str, Callable[[Steps, Mapping[str, Array], Mapping[str, Any]], Answer]] = {
    "hello": hello,
    "sum_keys": _stage("keys"),
    "sum_shares": _stage("shares"),
    "sum_masked": masked,
    "sum_confirm": _stage("confirm"),
    "sum_unmask": _stage("unmask"),
    "second": second,
    "third": third,
    "describe": describe,
    "close": close,
}
