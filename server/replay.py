"""Redo a study from its bundle: every round's averaging, the whole report.json, and the page. numpy, no network.

`cytosae audit verify` shows that nothing was changed after it was signed; this shows that the coordinator computed
what it says. Not derivable from a bundle, and taken over as stated: comparators that a simulation trained on pooled
tokens, the second seed's dictionary, and the codes of sites that did not answer.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cytosae_core.aggregate.rules import RowAverage
from cytosae_core.audit.merkle import root_of
from cytosae_core.audit.statement import COORDINATOR
from cytosae_core.audit.verify.bundle import Bundle
from cytosae_core.audit.verify.logs import PartyLog, at, open_log
from cytosae_core.audit.verify.verdict import Broken, Missing, Verdict
from cytosae_core.canonical import parse_json
from cytosae_core.config import StudyConfig, study_from_dict
from cytosae_core.envelope import REPLY, Envelope, unpack
from cytosae_core.errors import CytosaeError
from cytosae_core.lineage import MODEL_TENSORS, dictionary_digest
from cytosae_core.privacy.secagg_wire import SUMS
from cytosae_core.report.build import build
from cytosae_core.report.build_acquisition import stated_faults
from cytosae_core.report.columns import FILE, is_large_report
from cytosae_core.report.evidence import Evidence
from cytosae_core.report.inputs import Comparators, RoundRecord, StudyResult
from cytosae_core.tensors import unpack_tensors

from .private import Total, added_rows, added_up, take_private
from .study import draw_pages
from .sums import sum_again

Array = NDArray[Any]
Json = dict[str, Any]


def replay_bundle(files: Mapping[str, bytes]) -> Verdict:
    """Redo what `files` (path: bytes of a bundle) say was computed."""
    verdict, bundle = Verdict(), Bundle(files)
    held: list[Study] = []
    verdict.run("bundle", lambda: _opened(bundle, held))
    for name, work in (("rounds", _rounds), ("report", _report), ("page", _page)):
        verdict.run(name, lambda work=work: work(held[0]) if held else _not_opened())  # type: ignore[misc]
    return verdict


def _not_opened() -> str:
    raise Missing("Not reached: the bundle could not be opened.")


def _opened(bundle: Bundle, held: list[Study]) -> str:
    held.append(Study(bundle))
    return f"{len(held[0].replies)} replies of {len(held[0].config.sites)} sites are read."


class Study:
    """A bundle as the coordinator saw it.

    Attributes:
        config: the protocol. logs: every party's. report: report.json.
        replies: (kind, round, site) -> verified reply, of those that arrived before the first report.
    """

    def __init__(self, bundle: Bundle) -> None:
        self.bundle, self.config = bundle, _config(bundle)
        self.logs = {party: open_log(bundle, party) for party in bundle.keys}
        self.report: Json = parse_json(bundle.get("report.json"), max_bytes=1 << 28)
        self.received: dict[str, dict[str, list[int]]] = {}
        self.leaves: dict[str, dict[str, list[int]]] = {}
        self.replies: dict[tuple[str, int, str], Envelope] = {}
        self.payloads: dict[str, Envelope] = {}
        end = min((fields["seq"] for fields in self.coordinator.of("report")), default=0)
        for fields in self.coordinator.of("ingress"):
            if fields["seq"] < end:
                self._receive(fields)

    @property
    def coordinator(self) -> PartyLog:
        """The coordinator's log."""
        return self.logs[COORDINATOR]

    @property
    def roster(self) -> dict[str, str]:
        """Site -> the key that its log and replies are signed with."""
        return {site: self.logs[site].statements[0].signer for site in self.config.sites if site in self.logs}

    def _receive(self, fields: Json) -> None:
        site, kind, digest = fields["site"], fields["kind"], fields["payload"]["sha256"]
        entry = self.received.setdefault(site, {}).setdefault(kind, [0, 0])
        entry[0], entry[1] = entry[0] + 1, entry[1] + fields["wire"]["bytes"]
        path = f"payloads/{digest}.reply"
        if fields["status"] == "ok":
            self.leaves.setdefault(site, {}).setdefault(kind, []).append(fields["seq"])
        if path in self.bundle.files and fields["status"] == "ok":
            signer = self.logs[site].statements[fields["site_log"]["index"]].signer
            self.payloads[digest] = unpack(self.bundle.get(path), REPLY, signer)
            self.replies[kind, fields["round"], site] = self.payloads[digest]

    def tables(self, kind: str, number: int) -> dict[str, dict[str, Array]]:
        """Site -> tensors of one step."""
        found = {}
        for site in self.config.sites:
            if (kind, number, site) in self.replies:
                found[site] = unpack_tensors(self.replies[kind, number, site].body)
        return found

    def dictionary(self, kind: str) -> Array:
        """The dictionary (its rows) that was released in step 0 of a kind; empty when there was none."""
        released = [f for f in self.coordinator.of("release") if (f["kind"], f["round"]) == (kind, 0)]
        path = f"dictionaries/{released[0]['dictionary_sha256']}.safetensors" if released else ""
        if not path:
            return np.zeros((0, 0), np.float32)
        if path not in self.bundle.files:
            raise Missing("The dictionary of this study is not in the bundle.")
        tensors = unpack_tensors(self.bundle.get(path))
        return next(tensors[name] for name in MODEL_TENSORS if name in tensors)


def _config(bundle: Bundle) -> StudyConfig:
    return study_from_dict(bundle.protocol)


def _rounds(study: Study) -> str:
    """Every round's dictionary from the replies that it used; under `dp`, the rows that residual moments added."""
    if study.config.profile == "dp":
        return _added(study)
    training, done = study.config.training, 0
    dictionary = study.dictionary("begin")
    results: dict[str, Array] = {dictionary_digest({"dictionary": dictionary}): dictionary}
    tokens = float(training.local_steps * training.batch_tokens)
    for fields in study.coordinator.of("aggregate"):
        link = at(COORDINATOR, fields)
        if fields["base_sha256"] not in results:
            raise Broken(
                f"Round {fields['round']} did not start from a dictionary that was made before.", link
            )
        asked = (training.aggregation, repr(training.server_learning_rate))
        if (fields["rule"], fields["server_learning_rate"]) != asked:
            raise Broken(f"Round {fields['round']} used another rule than the protocol's.", link)
        average = RowAverage(results[fields["base_sha256"]], fields["rule"], training.server_learning_rate)
        for item in fields["inputs"]:
            if item["payload_sha256"] not in study.payloads:
                raise Missing(
                    f"The update of {item['site']} in round {fields['round']} is not in the bundle."
                )
            tensors = unpack_tensors(study.payloads[item["payload_sha256"]].body)
            average.fold(tensors["delta"], tensors["fired"], tokens)
        result = average.result()
        if dictionary_digest({"dictionary": result}) != fields["result_sha256"]:
            raise Broken(f"Averaging the replies of round {fields['round']} gives another dictionary.", link)
        results[fields["result_sha256"]], done = result, done + 1
    return f"{done} rounds averaged again: every dictionary has the logged digest."


def _added(study: Study) -> str:
    if study.config.kind != "train":
        return "No round and no added concept: the dictionary was frozen."
    rows = study.dictionary("sum_masked" if study.config.privacy.secure_aggregation else "second")[
        : study.config.dictionary.n - study.config.privacy.atoms
    ]
    _, made = added_rows(study.config, rows, {kind: _total(study, kind) for kind in SUMS})
    if dictionary_digest({"dictionary": made}) != dictionary_digest(
        {"dictionary": study.dictionary("describe")}
    ):
        raise Broken("The noised moments of the sites give another dictionary.", f"{COORDINATOR} (release)")
    return "The added concepts come out again from the sites' noised moments."


def _total(study: Study, kind: str) -> Total | None:
    """The sum of a kind of moments again: in the open from every site's, under masks from what was exchanged."""
    if not study.config.privacy.secure_aggregation:
        return added_up(study.tables(kind, 0), kind)
    try:
        made = sum_again(study.config, kind, study.roster, study.tables)
        return None if made is None else Total(made.total(), made.sites)
    except CytosaeError as error:
        raise Broken(f"The exchanged shares give no sum of {kind} moments: {error}", COORDINATOR) from error


def _report(study: Study) -> str:
    """report.json from the replies alone."""
    stated = study.report
    evidence = Evidence(
        study.config, _result(study), _comparators(stated),
        encoder_depth=stated["encoder"]["depth"], canary_tolerance=stated["encoder"]["canary_tolerance"],
    )  # fmt: skip
    made = build(evidence, stability=stated["stability"])
    count = _same(json.loads(json.dumps(made)), stated, "")
    return f"{count} values of report.json come out again from the replies."


def _comparators(stated: Json) -> Comparators | None:
    given, known = stated["comparators"], stated["overall"]["pooled_fvu"]
    if not any(given[name] for name in ("pooled", "local_only", "pca")) and known is None:
        return None
    return Comparators(given["pooled"] or {}, known, given["local_only"] or {}, given["pca"] or {})


def _result(study: Study) -> StudyResult:
    result, hello = StudyResult(), study.tables("hello", 0)
    result.facts = {site: study.replies["hello", 0, site].header["facts"] for site in hello}
    result.take_counts(hello)
    result.canary_difference = _canary({site: tensors["canary"] for site, tensors in hello.items()})
    result.begin = {site: tensors["quality"] for site, tensors in study.tables("begin", 0).items()}
    names = ["final"]
    if study.config.profile != "dp":
        names += ["random"] if study.config.dictionary.model == "pursuit" else []
        names += ["init"] if study.config.kind == "train" else []
    result.describe = {name: study.tables("describe", index) for index, name in enumerate(names)}
    result.scores = study.tables("score", 0)
    result.first, result.final = study.dictionary("begin"), study.dictionary("describe")
    if study.config.profile == "dp":
        result.first = study.dictionary("sum_masked" if study.config.privacy.secure_aggregation else "second")
        take_private(result, result.describe["final"])
    result.received, result.leaves = study.received, study.leaves
    places = [index for kinds in study.leaves.values() for found in kinds.values() for index in found]
    if places:
        size = max(places) + 1
        result.log = (size, root_of(study.coordinator.hashes[:size]).hex())
    result.faults = stated_faults(study.report)
    result.deviations = list(study.report["protocol"]["deviations"])
    result.stage = study.report["protocol"]["stage"]
    for entry in study.report["rounds"]:
        quality = {site: t["quality"] for site, t in study.tables("round", entry["round"]).items()}
        sizes = [
            fields["wire"]["bytes"]
            for fields in study.coordinator.of("ingress")
            if (fields["kind"], fields["round"], fields["status"]) == ("round", entry["round"], "ok")
        ]
        result.rounds.append(RoundRecord(entry["round"], quality, sum(sizes), entry["faults"]))
    for (_, _, site), envelope in study.replies.items():
        totals = result.suppressed.setdefault(site, {})
        for name, count in envelope.header["suppressed"].items():
            totals[name] = totals.get(name, 0) + count
    return result


def _canary(features: Mapping[str, Array]) -> float:
    """Largest relative difference of golden-cell features from the median site (as in `StudyRun`)."""
    middle = np.median(list(features.values()), axis=0)
    size = max(float(np.sqrt((middle**2).mean())), 1e-12)
    return max(float(np.abs(values - middle).max()) / size for values in features.values())


def _page(study: Study) -> str:
    """report.html is nothing but report.json, drawn."""
    columns = unpack_tensors(study.bundle.get(FILE)) if is_large_report(study.report) else None
    page = draw_pages(dict(study.report), columns)["report.html"]
    if page.encode() != study.bundle.get("report.html"):
        raise Broken("Drawing report.json gives another page.", "report.html")
    return "report.html is report.json, drawn by this release, byte for byte."


def _same(made: Any, stated: Any, place: str) -> int:
    """Number of equal values; raises `Broken` at the first that differs."""
    if isinstance(made, dict) and isinstance(stated, dict) and made.keys() == stated.keys():
        return sum(_same(made[key], stated[key], f"{place}/{key}") for key in made)
    if isinstance(made, list) and isinstance(stated, list) and len(made) == len(stated):
        return sum(
            _same(a, b, f"{place}/{index}") for index, (a, b) in enumerate(zip(made, stated, strict=True))
        )
    close = (
        isinstance(made, float)
        and isinstance(stated, float)
        and abs(made - stated) <= 1e-9 * max(1, abs(made))
    )
    if not close and (made != stated or type(made) is not type(stated)):
        raise Broken(
            f"The report says {stated!r} where the replies give {made!r}.", f"report.json {place[1:]}"
        )
    return 1
