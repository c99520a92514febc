"""Gate step 6 at a site: an officer's approval, then the ledger. Both are on disk before anything is signed."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from cytosae_core.canonical import sha256_hex
from cytosae_core.config import StudyConfig
from cytosae_core.egress import Outgoing, Question
from cytosae_core.keys import SigningKey
from cytosae_core.policy import SitePolicy
from cytosae_core.privacy.ledger import Asked, Ledger, question_digest
from cytosae_core.privacy.spending import PrivacyLedger
from cytosae_core.tensors import pack_tensors

from .approval import Approvals
from .site import Site

# Tensors that depend on the cohort, the dictionary and the classes only: asking for them in another study is the
# same question. All others also depend on a split or a draw that the study's name and seed decide.
OF_THE_COHORT = (
    "firing_rate",
    "auroc",
    "auroc_se",
    "code_all_",
    "code_class_",
    "embedding_all_",
    "embedding_class_",
)


class SiteBudget:
    """Approvals and ledger of one study at one site.

    Args:
        site: whose ledger (one for all its studies) and whose units.
        study: the protocol.
        approvals: of this study.
    """

    def __init__(self, site: Site, study: StudyConfig, approvals: Approvals) -> None:
        self._study, self._approvals = study, approvals
        self._ledger = Ledger(site.ledger_folder, site.policy)
        self._privacy = (
            open_privacy_ledger(site.ledger_folder, site.policy) if site.policy.profile == "dp" else None
        )
        self._cohort = self._ledger.cohort(site.units)
        self._encoder = site.store.encoder_digest

    def verify(self, released: Iterable[tuple[str, str]]) -> None:
        """Raise EgressError (reason LEDGER) unless the privacy ledger is whole and knows these (job, noise)."""
        if self._privacy is not None:
            self._privacy.verify(released)

    def spend(self, outgoing: Outgoing, question: Question) -> Mapping[str, Any]:
        """Approve and spend one release: privacy first, then messages and bytes.

        Raises:
            EgressError: code `approval`, `budget` or `egress` (differencing); nothing was spent.
        """
        self._approvals.require(outgoing, question.job)
        charged = self._charge(outgoing, question)
        spent = self._ledger.spend(
            study=self._study.name,
            protocol=self._study.digest,
            kind=str(outgoing.context["kind"]),
            round=int(outgoing.context["round"]),
            job=question.job,
            message_bytes=len(outgoing.body),
            numbers=outgoing.numbers,
            content_sha256=sha256_hex(outgoing.body),
            # Noise answers a repeated question: two answers are two charges, and no differencing tells a patient.
            asked=[] if charged else [self._asked(outgoing, question, name) for name in outgoing.tensors],
        )
        return {**spent.to_dict(), **charged}

    def _charge(self, outgoing: Outgoing, question: Question) -> dict[str, Any]:
        """The privacy of a release, if it has noise: charged to all of this site's patients."""
        if outgoing.private is None or self._privacy is None:
            return {}
        charge = self._privacy.charge(
            outgoing.private, self._cohort.members, study=self._study.name, protocol=self._study.digest,
            kind=str(outgoing.context["kind"]), job=question.job, content_sha256=sha256_hex(outgoing.body),
        )  # fmt: skip
        return {"epsilon": charge.epsilon, "epsilon_total": charge.epsilon_study}

    def _asked(self, outgoing: Outgoing, asked: Question, name: str) -> Asked:
        """One tensor as a question: everything that its values depend on beside the units."""
        study = self._study
        whole = name.startswith(OF_THE_COHORT)
        question = question_digest(
            tensor=name,
            kind=outgoing.context["kind"],
            body=asked.body_sha256,
            encoder=self._encoder,
            statistics=asdict(study.statistics),
            split="" if whole else f"{study.name}|{study.seed}|{outgoing.context['round']}",
            training=asdict(study.training) if outgoing.context["kind"] in ("begin", "round") else {},
        )
        content = sha256_hex(pack_tensors({name: outgoing.tensors[name]}))
        return Asked(name, question, self._cohort, content)

    def close(self) -> None:
        """Close the ledgers' files."""
        self._ledger.close()
        if self._privacy is not None:
            self._privacy.close()


def open_privacy_ledger(folder: Path, policy: SitePolicy) -> PrivacyLedger:
    """The privacy ledger in `folder`; the last seal, and the key that seals are made with, lie beside the folder."""
    key = SigningKey.load_or_create(folder.parent / "ledger.key")
    return PrivacyLedger(
        folder, folder.parent, policy, hashlib.sha256(key.sign("privacy-ledger", b"seal")).digest()
    )
