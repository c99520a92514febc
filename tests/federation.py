"""An in-memory federation: N sites with made-up tokens, no images, no encoder, no Flower. Milliseconds a round.

Tokens are sparse mixtures of a few true directions plus noise; the class of an image decides which directions are
frequent, and every site adds its own shift, so that statistics across sites have something to find.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from cytosae_client.events import Event, Events
from cytosae_client.session import Session
from cytosae_client.site import Site
from cytosae_core.canonical import sha256_hex
from cytosae_core.config import (
    Attribute,
    DictionaryConfig,
    EncoderConfig,
    RoundsConfig,
    StatisticsConfig,
    StudyConfig,
    TrainingConfig,
)
from cytosae_core.envelope import REPLY, REQUEST, Envelope, pack, unpack
from cytosae_core.keys import SigningKey
from cytosae_core.policy import SitePolicy
from cytosae_core.sealed import REPLY_LABEL, ReplyKey, split_wire
from cytosae_server.coordinator import Coordinator
from cytosae_server.desk import Ask, Desk
from cytosae_server.loop import StudyRun
from cytosae_server.record import Record
from cytosae_server.runfolder import RunFolder
from cytosae_server.transport import LocalGrid, Transport

D, N, K, TRUE = 16, 24, 3, 12
# In 16 dimensions unrelated vectors have cosines that in 384 only a copied token has: the attack's limit is wider.
MASKED = SitePolicy("masked", "masked", self_attack_max_cos="0.95")
CLASSES = ("lymphocyte", "monocyte", "neutrophil")
ENCODER_DIGEST = "e" * 64


class FakeStore:
    """A token store in memory."""

    def __init__(self, tokens: np.ndarray, encoder_digest: str = ENCODER_DIGEST) -> None:
        self._tokens = tokens.astype(np.float16)
        self.d, self.n_images = tokens.shape[2], len(tokens)
        self.encoder_digest = encoder_digest
        self.image_index = np.arange(len(tokens))
        self.canary = np.linspace(-1, 1, 8 * self.d, dtype=np.float32).reshape(8, self.d)

    def tokens(self, start: int, stop: int) -> np.ndarray:
        return self._tokens[start:stop]

    def mask(self) -> np.ndarray:
        mask = np.zeros((self.n_images, 257), dtype=bool)
        mask[:, 1:65] = True
        return mask

    def gather(self, image: np.ndarray, token: np.ndarray) -> np.ndarray:
        return self._tokens[image, token].astype(np.float32)


def make_tokens(images: int, labels: list[int], shift: float, seed: int) -> np.ndarray:
    """[images, 257, D]: see the module's docstring."""
    truth = np.random.default_rng(99).standard_normal((TRUE, D))
    truth /= np.linalg.norm(truth, axis=1, keepdims=True)
    rng = np.random.default_rng(seed)
    out = np.empty((images, 257, D))
    for index, label in enumerate(labels):
        weight = np.full(TRUE, 0.5)
        weight[label * 4 : label * 4 + 4] = 3.0
        chosen = rng.choice(TRUE, size=(257, 2), p=weight / weight.sum())
        size = rng.gamma(4.0, 1.0, size=(257, 2, 1))
        out[index] = (truth[chosen] * size).sum(axis=1) + shift * truth[0]
    return out + 0.05 * rng.standard_normal(out.shape)


def study_config(sites: int = 3, **changes: Any) -> StudyConfig:
    """A small training study; keyword arguments replace top-level fields."""
    base = StudyConfig(
        name="unit",
        sites=tuple(f"site-{index}" for index in range(sites)),
        simulation=True,
        encoder=EncoderConfig(name="fake", d=D, digest=ENCODER_DIGEST),
        dictionary=DictionaryConfig(n=N, k=K, init="random"),
        training=TrainingConfig(rounds=3, local_steps=4, batch_tokens=64, learning_rate=0.02),
        rounds=RoundsConfig(quorum=2, deadline_s=60.0),
        statistics=StatisticsConfig(
            classes=CLASSES, attributes=(Attribute("granules", 0.5),), eval_tokens=512
        ),
    )
    return replace(base, **changes)


def make_site(
    name: str, home: Path, policy: SitePolicy, *, seed: int, patients: int = 30, **facts: Any
) -> Site:
    """A site of `patients` patients with two images each."""
    labels = [index % len(CLASSES) for index in range(patients * 2)]
    tokens = make_tokens(len(labels), labels, shift=0.3 * seed, seed=seed)
    values: dict[str, Any] = {
        "name": name,
        "store": FakeStore(tokens),
        "labels": [CLASSES[label] for label in labels],
        "units": [f"patient-{index // 2}" for index in range(len(labels))],
        "attributes": [{"granules": str((index // 3) % 2)} for index in range(len(labels))],
        "unit": "patient",
        "policy": policy,
        "key": SigningKey.load_or_create(home / name / "site.key"),
        "state": home / name / "state",
        "simulation": True,
    }
    return Site(**{**values, **facts})


@dataclass
class Federation:
    """Sites, sessions and a coordinator over LocalGrid.

    `wrap` may replace a site's handler: a test's way to delay, break or attack.
    """

    home: Path
    study: StudyConfig = field(default_factory=study_config)
    policy: SitePolicy = MASKED
    wrap: Mapping[str, Callable[[Callable[[bytes], bytes]], Callable[[bytes], bytes]]] = field(
        default_factory=dict
    )
    start: Mapping[str, np.ndarray] = field(default_factory=dict)
    workers: int = 1
    _desk: Desk | None = None

    def __post_init__(self) -> None:
        _end_process(self.home)
        self.key = SigningKey.load_or_create(self.home / "study.key")
        self.logs: list[Event] = []
        self.sites = {
            name: make_site(name, self.home, self.policy, seed=index)
            for index, name in enumerate(self.study.sites)
        }
        self.sessions = {
            name: Session(site, self.study, self.key.public_hex, Events(self.logs.append))
            for name, site in self.sites.items()
        }
        self.events: list[tuple[str, dict[str, Any]]] = []
        _RUNNING.setdefault(self.home, []).extend(session.close for session in self.sessions.values())

    @property
    def coordinator(self) -> Coordinator:
        return Coordinator(
            self.study, self.key, {name: site.key.public_hex for name, site in self.sites.items()}
        )

    @property
    def desk(self) -> Desk:
        """A coordinator's desk with a log of its own, to speak to single sites by hand."""
        if self._desk is None:
            coordinator = self.coordinator
            record = Record(self.home / "desk", self.study, self.key, coordinator.site_keys)
            _RUNNING.setdefault(self.home, []).append(record.close)
            self._desk = Desk(coordinator, record)
        return self._desk

    def ask(self, to: str, what: Ask, /, **changes: Any) -> Envelope | None:
        """Ask one site and open its reply; None when it answered nobody. `changes` replace header fields, `key` the
        signing key, `body` the body, after the coordinator made the request."""
        request, sent = self.desk.request(to, what)
        if changes:
            envelope = unpack(request, REQUEST, self.key.public_hex)
            key, body = changes.pop("key", self.key), changes.pop("body", envelope.body)
            request = pack({**envelope.header, **changes}, body, REQUEST, key)
        return self.opened(to, self.sessions[to].handle(request), sent.reply_key, sha256_hex(request))

    def opened(self, site: str, reply: bytes, key: ReplyKey, request_sha256: str) -> Envelope | None:
        """A sealed reply's signed content."""
        if not reply:
            return None
        payload = key.open_box(split_wire(reply)[0], REPLY_LABEL, request_sha256)
        return unpack(payload, REPLY, self.sites[site].key.public_hex)

    def handlers(self) -> dict[str, Callable[[bytes], bytes]]:
        plain = {name: session.handle for name, session in self.sessions.items()}
        return {
            name: self.wrap[name](handle) if name in self.wrap else handle for name, handle in plain.items()
        }

    def run(self, folder: Path | None = None, transport: Transport | None = None) -> StudyRun:
        """A finished run; `run.result` holds the numbers."""
        grid = transport or LocalGrid(self.handlers(), workers=self.workers)
        try:
            run = self.study_run(grid, folder)
            run.run()
            return run
        finally:
            grid.close()

    def study_run(
        self,
        grid: Transport,
        folder: Path | None = None,
        watch: Callable[[str, Any], None] | None = None,
    ) -> StudyRun:
        """A run that has not started. A second one on the same folder is a coordinator that was restarted."""
        for close in _RUNNING.pop(folder or self.home / "run", []):
            close()
        run = StudyRun(
            self.coordinator, grid, RunFolder(folder or self.home / "run", self.study), self.start,
            watch or (lambda event, details: self.events.append((event, dict(details)))),
        )  # fmt: skip
        _RUNNING[folder or self.home / "run"] = [run.record.close]
        return run


# What would end with a process that is killed: locks on logs, by the folder that they protect.
_RUNNING: dict[Path, list[Callable[[], None]]] = {}


def _end_process(home: Path) -> None:
    for folder in [known for known in _RUNNING if known == home or home in known.parents]:
        for close in _RUNNING.pop(folder):
            close()
