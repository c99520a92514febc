"""What a site does in each step before and during the rounds: values, and the units behind them.

Nothing here signs or sends: `Session` hands the result to the one door.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from cytosae_core.canonical import canonical_json, parse_json, sha256_hex
from cytosae_core.concepts.scores import ImageScores, quality, quality_of_codes, score_images
from cytosae_core.config import StudyConfig
from cytosae_core.egress import Leakage, Release
from cytosae_core.errors import EgressError, MessageError, StudyError
from cytosae_core.lineage import MODEL_TENSORS, dictionary_digest
from cytosae_core.policy import SitePolicy
from cytosae_core.privacy.disclosure import dominance
from cytosae_core.privacy.gate import (
    GateCheck,
    GateLimits,
    check_frozen,
    check_same,
    check_static,
    check_tokens,
    require,
)
from cytosae_core.privacy.masking import mask_update
from cytosae_core.privacy.plan import PrivacyPlan
from cytosae_core.privacy.selfattack import Attacker, AttackLimits, require_unreadable
from cytosae_core.sae.first import first_dictionary
from cytosae_core.sae.models import Model, PursuitModel, model_from_tensors
from cytosae_core.sae.scale import TokenScale
from cytosae_core.sae.train import train_local
from cytosae_core.tensors import write_atomic

from .base import LastBase
from .events import Events
from .site import Site, StudyData
from .sums import SiteSums

Array = NDArray[Any]
Releases = dict[str, Release]
SURVEY_TOKENS = 16_384
# Held-out tokens against which the self-attack is compared.
BACKGROUND_TOKENS = 512


@dataclass(frozen=True)
class Answer:
    """What a step gives to the door.

    Attributes:
        releases: values, and the units behind them.
        leakage: the site's attack on its own tensors, run by the door on what would leave.
        checks: what the base-model gate measured, for the log; empty when no dictionary came.
        private: under `dp`, the plan of the noise in `releases`.
    """

    releases: Releases
    leakage: Leakage | None = None
    checks: tuple[dict[str, str], ...] = ()
    private: PrivacyPlan | None = None


def passed(checks: Sequence[GateCheck]) -> tuple[dict[str, str], ...]:
    """Checks for the log. Values describe this site's tokens without disclosure control: they stay here."""
    return tuple({**check.log(), "value": "pass" if check.ok else "fail"} for check in checks)


def _limits(policy: SitePolicy) -> GateLimits:
    """The calibrated limits (docs/decisions/007), or the policy's where those are stricter."""
    known, most = GateLimits(), float(policy.fvu_max)
    return replace(
        known,
        fvu_growth=min(known.fvu_growth, float(policy.fvu_max_ratio)),
        fvu_kmeans=min(known.fvu_kmeans, most),
        fvu_random=min(known.fvu_random, most),
    )


def _leakage(attacker: Attacker | None) -> Leakage | None:
    """What the door runs on exactly the row changes that would leave. Measured values stay at the site."""
    if attacker is None:
        return None

    def leakage(outgoing: Mapping[str, Array]) -> list[dict[str, str]]:
        found = attacker(torch.from_numpy(outgoing["delta"]))
        require_unreadable(found)
        return [{"id": check["id"], "value": "pass", "limit": ""} for check in found.log()]

    return leakage


def close(steps: Steps, tensors: Mapping[str, Array], params: Mapping[str, Any]) -> Answer:
    """Nothing leaves but the log part of the reply: the site cosigns the head that holds the report."""
    return Answer({})


class Steps:
    """The steps of one study at one site. A step depends on the request and the site's tokens only.

    Args:
        site: the site's data and folder for state.
        study: the protocol.
        policy: the site's policy, tightened by the study.
        events: told, in numbers, what was withheld; stays at the site.

    Attributes:
        last_checks: what the gate measured on the last dictionary that came.
        sums: the site's part in secure sums, where the protocol asks for them.
    """

    def __init__(self, site: Site, study: StudyConfig, policy: SitePolicy, events: Events) -> None:
        self.site, self.study, self.policy, self.events = site, study, policy, events
        self.last_checks: tuple[dict[str, str], ...] = ()
        self.data = StudyData(site, study)
        self.base = LastBase(site.state / study.digest[:16])
        self.sums = SiteSums(site, study)
        self._scores: tuple[str, ImageScores] | None = None

    def hello(self, tensors: Mapping[str, Array], params: Mapping[str, Any]) -> Answer:
        """Digests and the golden cells' features: no patient behind either; counts are protected."""
        values, behind = self.data.counts()
        found = {"canary": Release(self.site.store.canary, 0), "counts": Release(values, behind)}
        if len(self.study.statistics.classes):
            found["class_units"] = Release(*self.data.class_units(self.policy))
        listed = self.data.listed()
        if listed is not None and self.policy.allows("listed"):  # policies may be older than this count
            found["listed"] = Release(*listed)
        return Answer(found)

    def moments(self, tensors: Mapping[str, Array], params: Mapping[str, Any]) -> Answer:
        """Sums of the training tokens for the federated mean and scale."""
        total, square, count = np.zeros(self.study.encoder.d), 0.0, 0
        train = np.zeros(self.site.store.n_images, dtype=bool)
        train[self.data.train] = True
        for start in range(0, self.site.store.n_images, 16):
            chosen = train[start : start + 16]
            part = self.site.store.tokens(start, start + len(chosen))[chosen].astype(np.float64)
            total += part.sum(axis=(0, 1))
            square += float((part**2).sum())
            count += part.shape[0] * part.shape[1]
        shares = np.bincount(self.data.train_unit)[:, None]  # every image has the same number of tokens
        units = 0 if self.dominated(shares).any() else self.data.n_train_units
        return Answer(
            {
                "token_sum": Release(total.astype(np.float32), units),
                "token_square": Release(np.array([square], np.float32), units),
                "token_count": Release(np.array([count], np.float32), units),
            }
        )

    def dominated(self, contributions: Array) -> NDArray[np.bool_]:
        """Which sums a few units dominate, by the policy's shares (privacy/disclosure.py, S4)."""
        return dominance(contributions, self.policy)

    def begin(self, tensors: Mapping[str, Array], params: Mapping[str, Any]) -> Answer:
        """Fix the row set before round 1, from the first dictionary; its quality."""
        model, scale = self._pursuit(tensors)
        checks, measured = self._gate(model, scale, 0)
        checks += self._own_start(model, scale)
        self._same_start(tensors)
        survey, position = self.data.random_tokens(self.data.train, SURVEY_TOKENS, "survey")
        units = torch.from_numpy(self.data.train_unit[position])
        mass = torch.zeros(self.data.n_train_units, self.study.dictionary.n)
        for start in range(0, len(survey), 4096):
            codes = model.codes(torch.from_numpy(scale.apply(survey[start : start + 4096])))
            mass.index_add_(0, units[start : start + 4096], codes)
        share = mass.max(dim=0).values / mass.sum(dim=0).clamp_min(1e-12)
        limited = self.policy.min_units > 1
        allowed = ((mass > 0).sum(dim=0) >= self.policy.min_units) & ~(
            (share > float(self.policy.dsnr_max)) & limited
        )
        self._keep_rows(allowed.numpy(), dictionary_digest(tensors))
        self.base.keep(model.dictionary, scale, 0, checks)
        return Answer({"quality": measured}, checks=passed(checks))

    def round(self, tensors: Mapping[str, Array], params: Mapping[str, Any]) -> Answer:
        """Evaluate the dictionary that came, train it on local tokens, release masked row changes."""
        model, scale = self._pursuit(tensors)
        allowed = self._kept_rows()
        number = int(params["round"])
        checks, measured = self._gate(model, scale, number)
        used: list[torch.Tensor] = []
        owners: list[torch.Tensor] = []

        def batch(step: int) -> tuple[torch.Tensor, torch.Tensor]:
            tokens, position = self.data.random_tokens(
                self.data.train, self.study.training.batch_tokens, f"step {step}"
            )
            used.append(torch.from_numpy(scale.apply(tokens)))
            owners.append(torch.from_numpy(self.data.train_unit[position]))
            return used[-1], owners[-1]

        training = self.study.training
        result = train_local(
            model.dictionary,
            batch,
            k=model.k,
            first=(number - 1) * training.local_steps,
            steps=training.local_steps,
            total=training.rounds * training.local_steps,
            peak=training.learning_rate,
            n_units=self.data.n_train_units,
        )
        attacker = self._attacker(model.dictionary, scale, torch.cat(used), torch.cat(owners))
        update = mask_update(
            model.dictionary, result.dictionary, result.units, result.largest,
            torch.from_numpy(allowed), torch.cat(used), training.row_clip,
            min_units=self.policy.min_units, max_share=float(self.policy.dsnr_max), attacker=attacker,
        )  # fmt: skip
        self.events("rows_dominated", round=number, rows=update.withheld_dominated)
        self.events("rows_readable", round=number, rows=update.withheld_readable)
        self.base.keep(model.dictionary, scale, number, checks)
        behind = update.units.numpy()
        releases = {
            "delta": Release(update.delta.numpy(), behind[:, None]),
            "fired": Release(result.fired.numpy().astype(np.float32), behind),
            "quality": measured,
        }
        return Answer(releases, _leakage(attacker), passed(checks))

    def _gate(self, model: PursuitModel, scale: TokenScale, number: int) -> tuple[list[GateCheck], Release]:
        """The base-model gate (privacy/gate.py); EgressError(code base) when the dictionary does not pass. Held-out
        tokens are coded once, for the gate and for the quality that is released."""
        previous = self.base.last(model.dictionary.shape) if number else None
        training = self.study.training
        move = None
        if previous is not None:
            move = max(1, number - previous.round) * training.server_learning_rate * training.row_clip
        limits = _limits(self.policy)
        checks = check_static(
            model.dictionary,
            previous=previous.dictionary if previous else None,
            max_row_move=move,
            limits=limits,
        )
        self._require(checks)
        tokens, position = self.data.random_tokens(
            self.data.test, self.study.statistics.eval_tokens, "quality"
        )
        scaled = scale.apply(tokens)
        codes = model.sparse(torch.from_numpy(scaled))
        checks += check_tokens(
            model, scale, torch.from_numpy(tokens), torch.from_numpy(self.data.test_unit[position]),
            previous_fvu=previous.fvu if previous else None, previous_scale=previous.scale if previous else None,
            codes=codes, init=self.study.dictionary.init, limits=limits,
        )  # fmt: skip
        self._require(checks)
        return checks, self._release_quality(quality_of_codes(scaled, codes, model.dictionary))

    def _own_start(self, model: PursuitModel, scale: TokenScale) -> list[GateCheck]:
        """The strongest check, where the site can make it: the first dictionary is the one it computes itself."""
        if self.study.dictionary.init != "random" and not self.site.start:
            return []
        expected = first_dictionary(self.study, self.site.start, scale)
        checks = check_same(model.dictionary, torch.from_numpy(expected))
        self._require(checks)
        return checks

    def _require(self, checks: list[GateCheck]) -> None:
        self.last_checks = passed(checks)
        require(checks)

    def _attacker(
        self, base: torch.Tensor, scale: TokenScale, tokens: torch.Tensor, units: torch.Tensor
    ) -> Attacker | None:
        """The attack on this round's row changes (privacy/selfattack.py); none for published images: there is nothing
        to protect, and reports are watermarked."""
        if not self.policy.disclosure_control:
            return None
        other, position = self.data.random_tokens(self.data.test, BACKGROUND_TOKENS, "background")
        owners = torch.from_numpy(self.data.test_unit[position])
        limits = AttackLimits(cosine=float(self.policy.self_attack_max_cos))
        return Attacker(base, tokens, units, torch.from_numpy(scale.apply(other)), owners, limits)

    def quality(self, model: Model, scale: TokenScale) -> Release:
        tokens, _ = self.data.random_tokens(self.data.test, self.study.statistics.eval_tokens, "quality")
        return self._release_quality(quality(scale.apply(tokens), model))

    def _release_quality(self, values: Array) -> Release:
        dominated = self.dominated(np.bincount(self.data.test_unit)[:, None]).any()
        return Release(values, 0 if dominated else self.data.n_test_units)

    def score_all(self, model: Model, scale: TokenScale) -> ImageScores:
        key = sha256_hex(model.dictionary.numpy().tobytes() + scale.mean.tobytes())
        if self._scores is None or self._scores[0] != key:
            self._scores = (key, score_images(self.data.read, self.site.store.n_images, model, scale))
        return self._scores[1]

    def model(self, tensors: Mapping[str, Array]) -> tuple[Model, TokenScale]:
        given = dict(tensors)
        try:
            scale = TokenScale(given.pop("mean"), float(given.pop("scale")[0]))
        except KeyError as error:
            raise MessageError("Expected mean and scale beside the dictionary.") from error
        if not all(np.isfinite(values).all() for values in given.values()):
            raise MessageError("Expected finite numbers in the dictionary.")
        config = self.study.dictionary
        model = model_from_tensors(config.model, {k: torch.from_numpy(v) for k, v in given.items()}, config.k)
        if tuple(model.dictionary.shape) != (config.n, self.study.encoder.d):
            raise MessageError("Expected a dictionary of the protocol's shape.")
        return model, scale

    def _pursuit(self, tensors: Mapping[str, Array]) -> tuple[PursuitModel, TokenScale]:
        model, scale = self.model(tensors)
        if not isinstance(model, PursuitModel):
            raise EgressError("Expected a pursuit dictionary.", code="base", reason="MODEL_REJECT")
        return model, scale

    def frozen(self, tensors: Mapping[str, Array]) -> tuple[Model, TokenScale, tuple[dict[str, str], ...]]:
        """A model from which metrics only are made, its scale, and what the gate says of it."""
        model, scale = self.model(tensors)
        checks = check_frozen(
            {name: torch.from_numpy(v) for name, v in tensors.items() if name in MODEL_TENSORS}
        )
        self._require(checks)
        return model, scale, self.last_checks

    def _keep_rows(self, allowed: Array, dictionary: str) -> None:
        rows = [int(row) for row in np.flatnonzero(allowed)]
        write_atomic(self._rows_file, canonical_json({"dictionary": dictionary, "rows": rows}))

    @property
    def _rows_file(self) -> Path:
        return self.site.state / self.study.digest[:16] / "rows.json"

    def _same_start(self, tensors: Mapping[str, Array]) -> None:
        """`begin` is asked again after a crash, but the row set is fixed: another first dictionary is refused."""
        if self._rows_file.exists():
            fixed = parse_json(self._rows_file.read_bytes())["dictionary"]
            if fixed != dictionary_digest(tensors):
                raise EgressError(
                    "Expected the first dictionary that the row set was fixed with.",
                    code="base",
                    reason="LINEAGE",
                )

    def _kept_rows(self) -> Array:
        try:
            content = parse_json(self._rows_file.read_bytes())
        except OSError as error:
            raise StudyError("Expected the step begin before a round.", hint="Restart the study.") from error
        allowed = np.zeros(self.study.dictionary.n, dtype=bool)
        allowed[content["rows"]] = True
        return allowed
