"""Gate step 6 at a site: an officer's approval, then the ledger. Both are on disk before anything is signed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict

from cytosae_core.canonical import sha256_hex
from cytosae_core.config import StudyConfig
from cytosae_core.egress import Outgoing, Question
from cytosae_core.privacy.ledger import Asked, Ledger, question_digest
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
        self._ledger = Ledger(site.state / "ledger", site.policy)
        self._cohort = self._ledger.cohort(site.units)
        self._encoder = site.store.encoder_digest

    def spend(self, outgoing: Outgoing, question: Question) -> Mapping[str, int]:
        """Approve and spend one release.

        Raises:
            EgressError: code `approval`, `budget` or `egress` (differencing); nothing was spent.
        """
        self._approvals.require(outgoing, question.job)
        spent = self._ledger.spend(
            study=self._study.name,
            protocol=self._study.digest,
            kind=str(outgoing.context["kind"]),
            round=int(outgoing.context["round"]),
            job=question.job,
            message_bytes=len(outgoing.body),
            numbers=outgoing.numbers,
            content_sha256=sha256_hex(outgoing.body),
            asked=[self._asked(outgoing, question, name) for name in outgoing.tensors],
        )
        return spent.to_dict()

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
        """Close the ledger's file."""
        self._ledger.close()
