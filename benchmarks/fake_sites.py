"""Sites without data for measuring the coordinator: they answer every step with well-formed sealed replies."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from cytosae_client.record import SiteRecord
from cytosae_core.config import (
    DictionaryConfig,
    EncoderConfig,
    RoundsConfig,
    StatisticsConfig,
    StudyConfig,
    TrainingConfig,
)
from cytosae_core.egress import ALLOWED, Door, Outgoing, Question, Release
from cytosae_core.envelope import REQUEST, unpack
from cytosae_core.keys import SigningKey
from cytosae_core.policy import named_policy

BASIC = ("firing_rate", "auroc", "auroc_se", "auroc_shuffled", "reliability", "quality")


def study_of(sites: int, n: int, d: int, rounds: int) -> StudyConfig:
    """A training study of `sites` sites; with 0 rounds a frozen dictionary's."""
    return StudyConfig(
        name="bench",
        kind="train" if rounds else "validate",
        sites=tuple(f"site-{index:04d}" for index in range(sites)),
        simulation=True,
        encoder=EncoderConfig(d=d),
        dictionary=DictionaryConfig(n=n, init="random") if rounds else DictionaryConfig(n=n, digest="0" * 64),
        training=TrainingConfig(rounds=rounds or 1),
        rounds=RoundsConfig(quorum=2),
        statistics=StatisticsConfig(classes=("a", "b", "c", "d")),
    )


class NoBudget:
    """A ledger without limits: what is measured is the coordinator."""

    def spend(self, outgoing: Outgoing, question: Question) -> dict[str, int]:
        """Spend nothing."""
        return {"rounds": 0, "messages": 1, "bytes": len(outgoing.body)}


class FakeSite:
    """Answers with random numbers, through a real door and a real log. `busy_s`: seconds in the site."""

    def __init__(self, name: str, study: StudyConfig, coordinator: str, folder: Path) -> None:
        self.name, self.study, self.coordinator = name, study, coordinator
        self.key, self.policy, self.busy_s = SigningKey.generate(), named_policy("masked"), 0.0
        self.state = folder / name
        self.canary = np.ones((8, study.encoder.d), np.float32)
        self.record = SiteRecord(self, study, coordinator)  # type: ignore[arg-type]  # a Site without data
        self.door = Door(self.policy, study.dims, self.key, NoBudget(), self.record)

    def handle(self, request: bytes) -> bytes:
        """One sealed reply."""
        started = time.perf_counter()
        envelope = unpack(request, REQUEST, self.coordinator)
        header = envelope.header
        context: dict[str, Any] = {
            name: header[name] for name in ("study", "protocol", "site", "kind", "round")
        }
        context["request_sha256"] = envelope.sha256
        self.record.witness(header)
        releases = self._releases(str(header["kind"]), bool(header["params"].get("full")))
        facts = (
            {"encoder_digest": "e" * 64, "policy": "masked", "unit": "patient"}
            if header["kind"] == "hello"
            else {}
        )
        question = Question(context, header["reply_key"], header["job"], header["body_sha256"])
        reply = self.door.answer(question, releases, facts)
        self.busy_s += time.perf_counter() - started
        return reply

    def _releases(self, kind: str, full: bool) -> dict[str, Release]:
        rng = np.random.default_rng(0)
        out = {}
        for field in ALLOWED:
            if field.kind not in (kind, "*") or (
                field.name == "quality" and kind in ("hello", "moments", "score", "close")
            ):
                continue
            if self.policy.profile not in field.profiles:  # noised tables, for one
                continue
            if kind == "describe" and not full and field.name not in BASIC:
                continue
            shape = tuple(int(dim) if dim.isdigit() else self.study.dims[dim] for dim in field.shape)
            values = self.canary if field.name == "canary" else rng.random(shape) * 0.1 + 0.1
            if field.rule == "count" or field.name == "token_square":
                values = np.full(shape, 1e6 if field.name == "token_square" else 1000.0)
            out[field.name] = Release(values.astype(field.dtype), 20)
        return out


def make(
    sites: int, n: int, d: int, rounds: int, folder: Path, key: SigningKey | None = None
) -> tuple[StudyConfig, SigningKey, dict[str, FakeSite]]:
    """A study, its key and its fake sites, with their logs in `folder`."""
    study, key = study_of(sites, n, d, rounds), key or SigningKey.generate()
    return study, key, {name: FakeSite(name, study, key.public_hex, folder) for name in study.sites}


Handler = Callable[[bytes], bytes]
