"""One site's side of a study: signed request bytes in, sealed reply bytes out. No network, no Flower.

    open request -> check study, site, time -> do the step -> the one door (egress.seal) -> reply

A step is a function of the request and the site's tokens only, so a site that was killed answers a repeated
request with the same numbers. The only state on disk is the row set that `begin` fixes before round 1.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from cytosae_core import egress
from cytosae_core.canonical import canonical_json, parse_json, sha256_hex
from cytosae_core.concepts.probe import Probe, balanced_accuracy, site_recall, standardise
from cytosae_core.concepts.scores import ImageScores, quality, score_images
from cytosae_core.concepts.tables import concept_tables, own_views, probe_tables, same_site_null
from cytosae_core.config import VIEWS, StudyConfig
from cytosae_core.egress import Release
from cytosae_core.envelope import REQUEST, Envelope, unpack
from cytosae_core.errors import CytosaeError, EgressError, MessageError, StudyError
from cytosae_core.privacy.masking import MAX_UNIT_SHARE, mask_update
from cytosae_core.sae.models import Model, PursuitModel, model_from_tensors
from cytosae_core.sae.scale import TokenScale
from cytosae_core.sae.train import train_local
from cytosae_core.tensors import unpack_tensors, write_atomic

from .site import Site, StudyData

Array = NDArray[Any]
Releases = dict[str, Release]
SURVEY_TOKENS = 65_536
# A base dictionary that explains nothing turns honest updates into copies of tokens (audit section 0).
MAX_BASE_FVU = 0.95
SHUFFLES = 20


@dataclass
class Session:
    """Answers requests of one study for one site.

    Args:
        site: the site's data, policy and key.
        study: the protocol that the site agreed to.
        coordinator: the study key's public part, pinned when joining, 64 hex digits.
        log: told about every answer and refusal, in words for local staff; stays at the site.
    """

    site: Site
    study: StudyConfig
    coordinator: str
    log: Callable[[str], None] = lambda text: None
    _data: StudyData | None = None
    _scores: tuple[str, ImageScores] | None = None
    _seen: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.site.policy.check_simulation(self.site.simulation and self.study.simulation)
        if self.study.kind == "train" and self.site.policy.profile != "masked":
            raise StudyError("Expected a site policy that allows updates for kind=train.")
        if self.site.policy.disclosure_control and self.site.policy.min_units < self.study.min_units:
            raise StudyError(
                "Expected a site policy at least as strict as the study.", hint="Raise min_units."
            )

    @property
    def data(self) -> StudyData:
        """The site's data through this study, made on first use."""
        if self._data is None:
            self._data = StudyData(self.site, self.study)
        return self._data

    def handle(self, request: bytes) -> bytes:
        """Answer one request. Every fault becomes a signed refusal with a code; texts stay in the local log."""
        context: dict[str, Any] = {
            "study": self.study.name,
            "protocol": self.study.digest,
            "site": self.site.name,
        }
        context |= {"kind": "unknown", "round": 0, "request_sha256": sha256_hex(request)}
        try:
            envelope = unpack(request, REQUEST, self.coordinator)
            self._check(envelope)
            context |= {"kind": envelope.header["kind"], "round": envelope.header["round"]}
            releases, facts = self._step(envelope)
            reply = egress.seal(context, releases, facts, self.site.policy, self.study.dims, self.site.key)
            self.log(f"answered {context['kind']} round {context['round']}: {len(reply)} bytes left")
            return reply
        except CytosaeError as error:
            self.log(f"refused {context['kind']} round {context['round']} ({error.code}): {error}")
            return egress.refuse(context, error.code, self.site.key)
        except Exception as error:  # nothing of an unforeseen fault may leave; local staff sees its type
            self.log(f"failed {context['kind']} round {context['round']}: {type(error).__name__}: {error}")
            return egress.refuse(context, "internal", self.site.key)

    def _check(self, envelope: Envelope) -> None:
        header = envelope.header
        expected = {
            "study": self.study.name,
            "protocol": self.study.digest,
            "site": self.site.name,
            "simulation": self.study.simulation,
        }
        for name, value in expected.items():
            if header.get(name) != value:
                raise MessageError(f"Expected a request with {name}={value!r}, got {header.get(name)!r}.")
        now = time.time()
        if not float(header.get("issued", 0)) - 300 <= now <= float(header.get("expires", 0)):
            raise MessageError(
                "Expected a request that is valid now.", hint="Compare clocks.", code="expired"
            )
        if str(header.get("nonce")) in self._seen:
            raise MessageError("Expected a request that was not answered before.", code="replay")
        if header.get("kind") not in STEPS or not isinstance(header.get("round"), int):
            raise MessageError("Expected a known kind of request.")
        self._seen.add(str(header.get("nonce")))

    def _step(self, envelope: Envelope) -> tuple[Releases, dict[str, str]]:
        tensors = unpack_tensors(envelope.body)
        params = envelope.header.get("params", {})
        if not isinstance(params, dict):
            raise MessageError("Expected params to be a table.")
        kind = str(envelope.header["kind"])
        facts = self._facts() if kind == "hello" else {}
        return STEPS[kind](self, tensors, {**params, "round": envelope.header["round"]}), facts

    def _facts(self) -> dict[str, str]:
        try:
            software = version("cytosae-federation")
        except PackageNotFoundError:
            software = "uninstalled"
        return {
            "software": software,
            "encoder_digest": self.site.store.encoder_digest,
            "policy": self.site.policy.name,
            "policy_digest": self.site.policy.digest,
            "unit": self.site.unit,
            "relay_isolation": self.site.relay_isolation,
        }

    # Steps: each takes the request's tensors and params and gives values with the units behind them.

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
        return {"quality": self._quality(model, scale)}

    def round(self, tensors: Mapping[str, Array], params: Mapping[str, Any]) -> Releases:
        """Evaluate the dictionary that came, train it on local tokens, release masked row changes."""
        model, scale = self._pursuit(tensors)
        measured = self._quality(model, scale)
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

    def describe(self, tensors: Mapping[str, Array], params: Mapping[str, Any]) -> Releases:
        """Concept tables of a dictionary; with `full`, also what probes and site-predictability need."""
        model, scale = self._model(tensors)
        scores = self._score(model, scale)
        table = concept_tables(scores, self.data.labelled, seed=self.study.seed)
        if params.get("full"):
            table |= probe_tables(scores, self.data.labelled)
            null = same_site_null(scores, self.data.labelled, VIEWS, seed=self.study.seed)
            table["same_site_null"] = (null, np.full(len(VIEWS), self._half_units()))
        releases = {name: Release(values, units) for name, (values, units) in table.items()}
        return {**releases, "quality": self._quality(model, scale)}

    def score(self, tensors: Mapping[str, Array], params: Mapping[str, Any]) -> Releases:
        """Score probes of the other sites on this site's images, and how readable the site is."""
        model, scale = self._model(
            {name: tensors[name] for name in tensors if not name.startswith(("probe_", "peer_"))}
        )
        scores = self._score(model, scale)
        known = self.data.labelled
        inside = known.labels >= 0
        views = own_views(scores, known, inside)
        accuracies = [
            self._accuracy(tensors, view, views[view], shuffle)
            for view, shuffle in (
                ("standardised", False),
                ("raw", False),
                ("embedding", False),
                ("standardised", True),
            )
        ]
        recalls = self._recalls(tensors, params, scores)
        units = len(np.unique(known.units[inside]))
        return {
            "balanced_accuracy": Release(
                np.array(accuracies, np.float32), np.where(np.isnan(accuracies), 0, units)
            ),
            "site_recall": Release(recalls, np.where(np.isnan(recalls), 0, self._half_units(1))),
        }

    # Helpers

    def _accuracy(self, tensors: Mapping[str, Array], view: str, features: Array, shuffle: bool) -> float:
        probe = Probe(
            tensors[f"probe_{view}_mean"].astype(np.float64), tensors[f"probe_{view}_var"].astype(np.float64)
        )
        labels, units = self.data.labelled.labels, self.data.labelled.units
        fit_classes = np.flatnonzero(~np.isnan(probe.mean).any(axis=1))
        chosen = np.isin(labels, fit_classes)
        if len(np.unique(labels[chosen])) < 2:
            return float("nan")
        predicted = probe.predict(features[chosen])
        if not shuffle:
            return balanced_accuracy(predicted, labels[chosen], units[chosen])
        rng = np.random.default_rng(self.study.seed)
        draws = [
            balanced_accuracy(predicted, rng.permutation(labels[chosen]), units[chosen])
            for _ in range(SHUFFLES)
        ]
        return float(np.mean(draws))

    def _recalls(self, tensors: Mapping[str, Array], params: Mapping[str, Any], scores: ImageScores) -> Array:
        """[v, s]: recall of this site against each peer; NaN elsewhere and where nothing is shared.

        Peer tensors hold this site's own half moments first, then those of `params["peers"]` (site indices).
        """
        known = self.data.labelled
        fit = (known.labels >= 0) & (known.halves == 0)
        test = (known.labels >= 0) & (known.halves == 1)
        views = own_views(scores, known, fit)
        out = np.full((len(VIEWS), len(self.study.sites)), np.nan, dtype=np.float32)
        peers = [int(index) for index in params.get("peers", []) if 0 <= int(index) < len(self.study.sites)]
        for row, view in enumerate(VIEWS):
            name = "embedding" if view == "embedding" else "code"
            own = _peer(tensors, name, 0, view)
            for position, column in enumerate(peers if test.any() else [], 1):
                other = _peer(tensors, name, position, view)
                out[row, column] = site_recall(
                    views[view][test], known.labels[test], known.units[test], own, other
                )
        return out

    def _half_units(self, half: int = 0) -> int:
        known = self.data.labelled
        return len(np.unique(known.units[(known.labels >= 0) & (known.halves == half)]))

    def _quality(self, model: Model, scale: TokenScale) -> Release:
        tokens, _ = self.data.random_tokens(self.data.test, self.study.statistics.eval_tokens, "quality")
        return Release(quality(scale.apply(tokens), model), self.data.n_test_units)

    def _score(self, model: Model, scale: TokenScale) -> ImageScores:
        key = sha256_hex(model.dictionary.numpy().tobytes() + scale.mean.tobytes())
        if self._scores is None or self._scores[0] != key:
            self._scores = (key, score_images(self.data.read, self.site.store.n_images, model, scale))
        return self._scores[1]

    def _model(self, tensors: Mapping[str, Array]) -> tuple[Model, TokenScale]:
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
        model, scale = self._model(tensors)
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


def _peer(tensors: Mapping[str, Array], name: str, index: int, view: str) -> tuple[Array, Array]:
    """Half-class mean and variance [c, w] of entry `index`, standardised with its own first half if asked."""
    mean = tensors[f"peer_{name}_half_class_mean"][index].astype(np.float64)
    variance = tensors[f"peer_{name}_half_class_var"][index].astype(np.float64)
    if view != "standardised":
        return mean, variance
    centre, spread = tensors["peer_code_half_mean"][index], tensors["peer_code_half_var"][index]
    scaled = np.where(np.isnan(mean), np.nan, standardise(mean, centre, spread))
    return scaled, np.where(spread > 1e-12, variance / np.maximum(spread, 1e-12), 0)


STEPS: dict[str, Callable[[Session, Mapping[str, Array], Mapping[str, Any]], Releases]] = {
    "hello": Session.hello,
    "moments": Session.moments,
    "begin": Session.begin,
    "round": Session.round,
    "describe": Session.describe,
    "score": Session.score,
}
