"""What a site does in each step before and during the rounds: values, and the units behind them.

Nothing here signs or sends: `Session` hands the result to the one door.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from cytosae_core.canonical import canonical_json, parse_json, sha256_hex
from cytosae_core.concepts.scores import ImageScores, quality, score_images
from cytosae_core.config import StudyConfig
from cytosae_core.egress import Release
from cytosae_core.errors import EgressError, MessageError, StudyError
from cytosae_core.privacy.masking import MAX_UNIT_SHARE, mask_update
from cytosae_core.sae.models import Model, PursuitModel, model_from_tensors
from cytosae_core.sae.scale import TokenScale
from cytosae_core.sae.train import train_local
from cytosae_core.tensors import write_atomic

from .site import Site, StudyData

Array = NDArray[Any]
Releases = dict[str, Release]
SURVEY_TOKENS = 16_384
# A base dictionary that explains nothing turns honest updates into copies of tokens (audit section 0).
MAX_BASE_FVU = 0.95


class Steps:
    """The steps of one study at one site. A step depends on the request and the site's tokens only.

    Args:
        site: the site's data and folder for state.
        study: the protocol.
        log: told, in words for local staff, what was withheld; stays at the site.
    """

    def __init__(self, site: Site, study: StudyConfig, log: Callable[[str], None]) -> None:
        self.site, self.study, self.log = site, study, log
        self.data = StudyData(site, study)
        self._scores: tuple[str, ImageScores] | None = None

    def hello(self, tensors: Mapping[str, Array], params: Mapping[str, Any]) -> Releases:
        """Digests and the golden cells' features: no patient behind either; counts are protected."""
        values, behind = self.data.counts()
        return {"canary": Release(self.site.store.canary, 0), "counts": Release(values, behind)}

    def moments(self, tensors: Mapping[str, Array], params: Mapping[str, Any]) -> Releases:
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
        units = self.data.n_train_units
        return {
            "token_sum": Release(total.astype(np.float32), units),
            "token_square": Release(np.array([square], np.float32), units),
            "token_count": Release(np.array([count], np.float32), units),
        }

    def begin(self, tensors: Mapping[str, Array], params: Mapping[str, Any]) -> Releases:
        """Fix the row set before round 1, from the first dictionary; its quality."""
        model, scale = self._pursuit(tensors)
        survey, position = self.data.random_tokens(self.data.train, SURVEY_TOKENS, "survey")
        units = torch.from_numpy(self.data.train_unit[position])
        mass = torch.zeros(self.data.n_train_units, self.study.dictionary.n)
        for start in range(0, len(survey), 4096):
            codes = model.codes(torch.from_numpy(scale.apply(survey[start : start + 4096])))
            mass.index_add_(0, units[start : start + 4096], codes)
        share = mass.max(dim=0).values / mass.sum(dim=0).clamp_min(1e-12)
        limited = self.site.policy.min_units > 1
        allowed = ((mass > 0).sum(dim=0) >= self.site.policy.min_units) & ~(
            (share > MAX_UNIT_SHARE) & limited
        )
        self._keep_rows(allowed.numpy())
        return {"quality": self.quality(model, scale)}

    def round(self, tensors: Mapping[str, Array], params: Mapping[str, Any]) -> Releases:
        """Evaluate the dictionary that came, train it on local tokens, release masked row changes."""
        model, scale = self._pursuit(tensors)
        measured = self.quality(model, scale)
        if measured.values[0] > MAX_BASE_FVU * measured.values[1]:
            raise EgressError("Expected a base dictionary that explains this site's tokens.", hint="A trap?")
        used: list[torch.Tensor] = []

        def batch(step: int) -> tuple[torch.Tensor, torch.Tensor]:
            tokens, position = self.data.random_tokens(
                self.data.train, self.study.training.batch_tokens, f"step {step}"
            )
            used.append(torch.from_numpy(scale.apply(tokens)))
            return used[-1], torch.from_numpy(self.data.train_unit[position])

        training = self.study.training
        result = train_local(
            model.dictionary,
            batch,
            k=model.k,
            first=(int(params["round"]) - 1) * training.local_steps,
            steps=training.local_steps,
            total=training.rounds * training.local_steps,
            peak=training.learning_rate,
            n_units=self.data.n_train_units,
        )
        update = mask_update(
            model.dictionary, result.dictionary, result.units, result.largest,
            torch.from_numpy(self._kept_rows()), torch.cat(used), training.row_clip,
            min_units=self.site.policy.min_units,
        )  # fmt: skip
        self.log(f"rows withheld: {update.withheld_dominated} dominated, {update.withheld_readable} readable")
        behind = update.units.numpy()
        return {
            "delta": Release(update.delta.numpy(), behind[:, None]),
            "fired": Release(result.fired.numpy().astype(np.float32), behind),
            "quality": measured,
        }

    def quality(self, model: Model, scale: TokenScale) -> Release:
        tokens, _ = self.data.random_tokens(self.data.test, self.study.statistics.eval_tokens, "quality")
        return Release(quality(scale.apply(tokens), model), self.data.n_test_units)

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
        if not isinstance(model, PursuitModel) or (model.dictionary.norm(dim=1) - 1).abs().max() > 1e-3:
            raise EgressError("Expected a pursuit dictionary with unit rows.", hint="A trap?")
        return model, scale

    def _keep_rows(self, allowed: Array) -> None:
        self.site.state.mkdir(parents=True, exist_ok=True)
        content = {"protocol": self.study.digest, "rows": [int(row) for row in np.flatnonzero(allowed)]}
        write_atomic(self.site.state / f"rows-{self.study.digest[:16]}.json", canonical_json(content))

    def _kept_rows(self) -> Array:
        try:
            content = parse_json((self.site.state / f"rows-{self.study.digest[:16]}.json").read_bytes())
        except OSError as error:
            raise StudyError("Expected the step begin before a round.", hint="Restart the study.") from error
        allowed = np.zeros(self.study.dictionary.n, dtype=bool)
        allowed[content["rows"]] = True
        return allowed
