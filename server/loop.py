"""A study from hello to final statistics, over any transport. numpy only; survives kill -9 between messages.

    hello     software, encoder digest, golden cells        -> who takes part
    moments   sums of tokens                                -> federated mean and scale
    begin     first dictionary                              -> row sets fixed at the sites
    rounds    dictionary -> row changes, quality            -> next dictionary
    describe  final, first and a random dictionary          -> concept tables
    score     probes of the other sites                     -> leave-one-site-out, site-predictability

`validate` studies have a frozen dictionary: hello, describe, score. Under the profile `dp` there is no round and no
probe: hello, second and third (residual moments, where concepts are to be added), describe.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cytosae_core import egress
from cytosae_core.aggregate.rules import RowAverage
from cytosae_core.config import StudyConfig
from cytosae_core.egress import Reply
from cytosae_core.errors import CytosaeError, StudyError
from cytosae_core.report.inputs import RoundRecord, StudyResult, total_fvu
from cytosae_core.sae.first import first_dictionary, random_rows
from cytosae_core.sae.scale import TokenScale

from .coordinator import Coordinator
from .desk import Ask, Desk
from .exchange import Exchange
from .private import EMPTY, Total, added_up, as_received, as_sent, space_of, take_private, with_added
from .probes import ScoreRequests
from .record import Record
from .runfolder import ReplyTables, RunFolder
from .sums import STAGES, StudySum, message_of
from .tally import tally
from .transport import Transport

Array = NDArray[Any]
Watch = Callable[[str, Mapping[str, Any]], None]

# Largest difference of golden-cell features between a site and the median site, relative to their size:
# fp32 on different CPUs stays below 1e-4; a wrong resize or fp16 weights are above 5e-3.
CANARY_TOLERANCE = 2e-3


class StudyRun:
    """One study. Call `run()`; after a crash make a new one with the same folder and call it again.

    Args:
        coordinator: protocol and keys.
        transport: how to reach the sites.
        folder: where replies and dictionaries are kept.
        start: `centroids` [n, d] of public tokens, or the frozen model's tensors for `validate`.
        watch: told about events: (`step`, `site`, `round`) with details, for displays.
    """

    def __init__(
        self,
        coordinator: Coordinator,
        transport: Transport,
        folder: RunFolder,
        start: Mapping[str, Array],
        watch: Watch = lambda event, details: None,
    ) -> None:
        self.study: StudyConfig = coordinator.study
        self._coordinator, self._folder, self._start, self._watch = coordinator, folder, dict(start), watch
        self.record = Record(folder.folder, self.study, coordinator.key, coordinator.site_keys)
        self._exchange = Exchange(
            Desk(coordinator, self.record),
            transport,
            lambda site, state: watch("site", {"site": site, "state": state}),
        )
        self.result = StudyResult()
        self.scale = TokenScale(np.zeros(self.study.encoder.d, np.float32), 1.0)
        self._members: list[str] = list(self.study.sites)

    def run(self, *, train_only: bool = False) -> StudyResult:
        """All steps, or with `train_only` those up to the last round.

        Raises:
            StudyError: a quorum was missed; what was received stays for a resume.
        """
        self._hello()
        if self.study.profile == "dp":
            self.scale, model = self._private()
        elif self.study.kind == "train":
            self.scale = self._moments()
            model = {"dictionary": self._rounds(self.scale)}
        else:
            self.scale, model = self._frozen()
        self.result.final = model.get("dictionary", model.get("W_dec", np.zeros((0, 0), np.float32)))
        if not train_only:
            self._describe(model, self.scale)
            if self.study.profile == "dp":
                take_private(self.result, self.result.describe["final"])
            else:
                self._score(model, self.scale)
        tally(self.result, self.record.receipts, self._folder.folder / "payloads", self.record.log)
        return self.result

    def close(self, report_sha256: str, page_sha256: str = "") -> None:
        """Log the report and show it to the members, who cosign the head that holds it. No quorum: a site that
        is away has cosigned every head up to its last answer, and the auditor counts the cosignatures."""
        self.record.report(report_sha256, page_sha256)
        self._watch("step", {"step": "close", "round": 0, "of": 0})
        params = {"report_sha256": report_sha256}
        self._exchange.run(
            self._members, lambda site: Ask("close", 0, {}, params), lambda reply: None, quorum=0
        )

    # Steps

    def _hello(self) -> None:
        replies: dict[str, Reply] = {}
        self._step("hello", 0, lambda site: ({}, {}), lambda reply: replies.update({reply.site: reply}))
        self.result.take_counts({site: reply.tensors for site, reply in replies.items()})
        digests = sorted({reply.facts.get("encoder_digest", "") for reply in replies.values()})
        wanted = self.study.encoder.digest or _most_common(
            [r.facts.get("encoder_digest", "") for r in replies.values()]
        )
        middle = np.median([replies[site].tensors["canary"] for site in sorted(replies)], axis=0)
        size = float(np.sqrt((middle**2).mean()))
        for site, reply in sorted(replies.items()):
            difference = float(np.abs(reply.tensors["canary"] - middle).max()) / max(size, 1e-12)
            self.result.canary_difference = max(self.result.canary_difference, difference)
            self.result.facts[site] = reply.facts
            if reply.facts.get("encoder_digest") != wanted or difference > CANARY_TOLERANCE:
                self._drop(site, "hello", "encoder")
        if len(self._members) < self.study.rounds.quorum:
            raise StudyError(
                f"Expected the same encoder at quorum={self.study.rounds.quorum} sites, got {len(digests)} digests.",
                hint="Install the same release and weights everywhere.",
            )

    def _moments(self) -> TokenScale:
        sums: dict[str, Mapping[str, Array]] = {}
        self._step(
            "moments", 0, lambda site: ({}, {}), lambda reply: sums.update({reply.site: reply.tensors})
        )
        usable = [tables for _, tables in sorted(sums.items()) if not np.isnan(tables["token_count"][0])]
        return TokenScale.from_sums(
            np.sum([tables["token_sum"].astype(np.float64) for tables in usable], axis=0),
            float(sum(float(tables["token_square"][0]) for tables in usable)),
            float(sum(float(tables["token_count"][0]) for tables in usable)),
        )

    def _rounds(self, scale: TokenScale) -> Array:
        self.result.first = first_dictionary(self.study, self._start, scale)
        self._folder.save_round(0, self.result.first, {"round": 0})
        tensors = {"dictionary": self.result.first}
        self._step(
            "begin", 0, lambda site: (_with(tensors, scale), {}),
            lambda reply: self.result.begin.update({reply.site: reply.tensors["quality"]}),
        )  # fmt: skip
        dictionary = self._resume()
        self._log_rounds()
        for number in range(len(self.result.rounds) + 1, self.study.training.rounds + 1):
            dictionary = self._round(number, dictionary, scale)
        return dictionary

    def _resume(self) -> Array:
        """The dictionary after the last finished round, and the records of the finished ones."""
        records = self._folder.rounds()
        for record in records[1:]:
            quality = {site: _floats(values) for site, values in record["quality"].items()}
            self.result.rounds.append(
                RoundRecord(record["round"], quality, record["bytes"], record["faults"])
            )
            self.result.faults += [
                (site, f"round {record['round']}", code) for site, code in record["faults"].items()
            ]
        if len(records) > 1:
            self._watch("resumed", {"round": records[-1]["round"]})
        return self._folder.dictionary(records[-1]["round"], records[-1]["dictionary"])

    def _round(self, number: int, dictionary: Array, scale: TokenScale) -> Array:
        training = self.study.training
        average = RowAverage(dictionary, training.aggregation, training.server_learning_rate)
        tokens = float(training.local_steps * training.batch_tokens)
        quality: dict[str, Array] = {}
        received: dict[str, int] = {}
        digests: dict[str, str] = {}

        def accept(reply: Reply) -> None:
            average.fold(reply.tensors["delta"], reply.tensors["fired"], tokens)
            quality[reply.site] = reply.tensors["quality"]
            received[reply.site], digests[reply.site] = reply.size, reply.sha256

        tensors = {"dictionary": dictionary}
        self._watch("step", {"step": "round", "round": number, "of": training.rounds})
        outcome = self._exchange.run(
            self._members, lambda site: Ask("round", number, _with(tensors, scale), {}), accept,
            quorum=self.study.rounds.quorum,
        )  # fmt: skip
        updated = average.result()
        record = {
            "round": number,
            "quality": {site: _json_floats(values) for site, values in quality.items()},
            "bytes": sum(received.values()),
            "received": received,
            "replies": digests,
            "faults": outcome.faults,
        }  # fmt: skip
        self._folder.save_round(number, updated, record)
        self._log_rounds()
        self.result.rounds.append(RoundRecord(number, quality, sum(received.values()), outcome.faults))
        self.result.faults += [(site, f"round {number}", code) for site, code in outcome.faults.items()]
        self._watch("round", {"round": number, "fvu": total_fvu(quality), "faults": outcome.faults})
        return updated

    def _log_rounds(self) -> None:
        """Log how each finished round's dictionary was made; also those of which a crash kept the entry back."""
        training, records = self.study.training, self._folder.rounds()
        for before, record in pairwise(records):
            replies = record["replies"]
            self.record.aggregate(
                {
                    "round": record["round"],
                    "rule": training.aggregation,
                    "server_learning_rate": repr(training.server_learning_rate),
                    "base_sha256": before["dictionary"],
                    "result_sha256": record["dictionary"],
                    "inputs": [{"site": site, "payload_sha256": replies[site]} for site in sorted(replies)],
                }
            )

    def _frozen(self) -> tuple[TokenScale, dict[str, Array]]:
        self._folder.save_start(self._start)
        model = dict(self._start)
        scale = TokenScale(
            model.pop("mean", np.zeros(self.study.encoder.d, np.float32)),
            float(model.pop("scale", np.ones(1, np.float32))[0]),
        )
        return scale, model

    def _private(self) -> tuple[TokenScale, dict[str, Array]]:
        """The public dictionary, and where the protocol asks for it rows that residual moments add."""
        scale, model = self._frozen()
        if self.study.kind != "train":
            return scale, model
        rows = model["dictionary"]
        self.result.first = with_added(self.study, rows, EMPTY, None)
        second = self._total("second", _with({"dictionary": self.result.first}, scale))
        space = as_received(space_of(self.study, second))
        self._watch("rank", {"rank": space.rank})
        asked = {**_with({"dictionary": self.result.first}, scale), **as_sent(space)}
        third = self._total("third", asked) if space.rank else None
        added = with_added(self.study, rows, space, third)
        self._folder.save_added(self.result.first, added)
        return scale, {"dictionary": added}

    def _total(self, kind: str, tensors: Mapping[str, Array]) -> Total:
        """The noised sum of one kind of residual moments over all sites, in the open or under masks."""
        if (kept := self._folder.kept_sum(kind)) is not None:
            return Total(*kept)
        if self.study.privacy.secure_aggregation:
            total = self._secure(kind, tensors)
        else:
            found: dict[str, Mapping[str, Array]] = {}
            self._step(
                kind, 0, lambda site: (tensors, {}), lambda reply: found.update({reply.site: reply.tensors})
            )
            added = added_up(found, kind)
            if added is None:
                raise StudyError(f"Expected at least one answer in step={kind}.")
            total = added
        self._folder.keep_sum(kind, total.values, total.sites)
        return total

    def _secure(self, kind: str, tensors: Mapping[str, Array]) -> Total:
        made = StudySum(self.study, kind, self._coordinator.site_keys)
        for stage in STAGES:
            self._stage(made, kind, stage, tensors if stage == "masked" else {})
            if stage != STAGES[-1]:
                made.close(stage)
        return Total(made.total(), made.sites)

    def _stage(self, made: StudySum, kind: str, stage: str, more: Mapping[str, Array]) -> None:
        """One stage of a secure sum. What was closed before a crash stays closed: sites sign one set of survivors."""
        step, (name, number) = f"{kind}-{stage}", message_of(kind, stage)

        def accept(reply: Reply) -> None:
            made.accept(stage, reply.site, reply.tensors)

        if self._folder.is_closed(step):
            have = self._kept(step, name, number, accept)
            for site in [site for site in self._members if site not in have]:
                self._drop(site, step, "deadline")
            return
        self._step(name, number, lambda site: ({**made.asked(site), **more}, {}), accept, step=step)
        self._folder.close_step(step)

    def _describe(self, model: Mapping[str, Array], scale: TokenScale) -> None:
        wanted: dict[str, Mapping[str, Array]] = {"final": model}
        config = self.study.dictionary
        if config.model == "pursuit" and self.study.profile != "dp":
            wanted["random"] = {
                "dictionary": random_rows(config.n, self.study.encoder.d, self.study.seed + 1)
            }
        if self.study.kind == "train" and self.study.profile != "dp":
            wanted["init"] = {"dictionary": self.result.first}
        for index, (which, tensors) in enumerate(wanted.items()):
            self._describe_one(which, index, _with(tensors, scale))

    def _describe_one(self, which: str, index: int, tensors: Mapping[str, Array]) -> None:
        """Tables stay on disk, in the replies: memory does not grow with the number of sites."""
        params = {"full": which == "final"}
        answered: set[str] = set()
        self._step(
            "describe",
            index,
            lambda site: (tensors, params),
            lambda reply: answered.add(reply.site),
            step=f"describe-{which}",
        )
        self.result.describe[which] = ReplyTables(self._folder, f"describe-{which}", sorted(answered))

    def _score(self, model: Mapping[str, Array], scale: TokenScale) -> None:
        requests = ScoreRequests(self.study, self.result.describe["final"])
        answered: set[str] = set()
        self._step(
            "score",
            0,
            lambda site: (_with({**model, **requests.tensors(site)}, scale), {"peers": requests.peers(site)}),
            lambda reply: answered.add(reply.site),
        )
        self.result.scores = ReplyTables(self._folder, "score", sorted(answered))

    # Helpers

    def _step(
        self,
        kind: str,
        number: int,
        content: Callable[[str], tuple[Mapping[str, Array], Mapping[str, Any]]],
        accept: Callable[[Reply], None],
        *,
        step: str = "",
    ) -> None:
        """One non-round step: kept replies first, then ask the sites that are missing."""
        step = step or kind
        self._watch("step", {"step": step, "round": 0, "of": 0})
        have = self._kept(step, kind, number, accept)
        outcome = self._exchange.run(
            [site for site in self._members if site not in have],
            lambda site: Ask(kind, number, *content(site)),
            accept,
            quorum=max(0, self.study.rounds.quorum - len(have)),
            keep=lambda site, data: self._folder.keep_reply(step, site, data),
        )
        for site, code in outcome.faults.items():
            self._drop(site, step, code)

    def _kept(self, step: str, kind: str, number: int, accept: Callable[[Reply], None]) -> set[str]:
        have = set()
        for site, data in self._folder.kept_replies(step).items():
            if site not in self._members:
                continue
            expected = {"study": self.study.name, "protocol": self.study.digest, "site": site}
            expected_kind = {"kind": kind, "round": number}
            try:
                reply = egress.open(
                    data, self._coordinator.site_keys[site], {**expected, **expected_kind}, self.study.dims
                )
                accept(reply)
                have.add(site)
            except CytosaeError:
                continue  # a damaged file is asked for again
        return have

    def _drop(self, site: str, step: str, code: str) -> None:
        """A site that missed a step that all later ones build on takes no further part; the report names it."""
        self._members = [member for member in self._members if member != site]
        self.result.faults.append((site, step, code))
        self._watch("dropped", {"site": site, "step": step, "code": code})


def _with(tensors: Mapping[str, Array], scale: TokenScale) -> dict[str, Array]:
    return {**tensors, "mean": scale.mean, "scale": np.array([scale.scale], np.float32)}


def _most_common(values: list[str]) -> str:
    return max(sorted(set(values)), key=values.count)


def _json_floats(values: Array) -> list[float | None]:
    return [None if np.isnan(value) else float(value) for value in values]


def _floats(values: list[float | None]) -> Array:
    return np.array([np.nan if value is None else value for value in values], dtype=np.float32)
