"""Rows 74 to 90: tensors, statistics, dictionaries, crashes."""

from __future__ import annotations

import io
import json
import os
import signal
import struct
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cytosae_client.session import Session
from cytosae_core import egress
from cytosae_core.aggregate.rules import RowAverage
from cytosae_core.audit.statement import read_leaf
from cytosae_core.canonical import sha256_hex
from cytosae_core.concepts.auroc import unit_auroc
from cytosae_core.config import StudyConfig
from cytosae_core.egress import Release
from cytosae_core.envelope import REPLY, pack
from cytosae_core.errors import MessageError
from cytosae_core.keys import SigningKey
from cytosae_core.lineage import dictionary_digest, job_of
from cytosae_core.policy import POLICIES
from cytosae_core.privacy.bins import curve_bins, protect_histogram
from cytosae_core.privacy.disclosure import check_text
from cytosae_core.privacy.ledger import Asked, Ledger, question_digest
from cytosae_core.tensors import load_tensors, pack_tensors, unpack_tensors
from cytosae_server.desk import Ask
from tests.federation import MASKED, Federation, make_site, study_config

from .harness import HELLO, Case
from .rows import row
from .rows_text import close, federation

KEY = SigningKey.generate()
DIMS = {**StudyConfig("s", ("a", "b")).dims, "n": 4, "d": 3, "t": 2, "c": 2}
CONTEXT = {"study": "s", "protocol": "p", "site": "a", "kind": "round", "round": 1, "request_sha256": "r"}
ROOT = Path(__file__).resolve().parents[2]


def blob(table: Any, size: int, *, head: bytes | None = None, length: int | None = None) -> bytes:
    """A safetensors blob from its header, whatever is in it."""
    text = json.dumps(table, separators=(",", ":")).encode() if head is None else head
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text) if length is None else length) + text + bytes(size)


def entry(dtype: str = "F32", shape: Any = (3,), start: int = 0, end: int = 12) -> dict[str, Any]:
    """One tensor of a header."""
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [start, end]}


def door(values: np.ndarray, name: str = "delta", units: int = 50, kind: str = "round") -> bytes:
    """What the door makes of a tensor."""
    context = {**CONTEXT, "kind": kind}
    return egress.seal(context, {name: Release(values, units)}, {}, POLICIES["masked"], DIMS, KEY)


def reply(values: np.ndarray, name: str = "delta") -> egress.Reply:
    """What a coordinator makes of a reply that a dishonest site signed."""
    body = pack_tensors({name: values})
    header = {**CONTEXT, "status": "ok", "code": "", "facts": {}, "suppressed": {}}
    return egress.open(pack(header, body, REPLY, KEY), KEY.public_hex, CONTEXT, DIMS)


DELTA = np.full((4, 3), 0.25, np.float16)


@row(74)
def tensor_names(case: Case) -> None:
    for name in ("W_enc", "../x", "x" * 5000, case.canary, "delta "):
        case.refused("ALLOWLIST", lambda name=name: door(DELTA, name))
    case.refused("ALLOWLIST", lambda: reply(DELTA, "W_enc"))
    for name in ("../x", "x" * 5000, "a b", "", ".hidden", "/a", "a\0b"):
        case.refused("ALLOWLIST", lambda name=name: unpack_tensors(blob({name: entry()}, 12)))


@row(75)
def tensor_types(case: Case) -> None:
    for kind in (np.float64, np.float32, np.int8):
        case.refused("DTYPE", lambda kind=kind: door(DELTA.astype(kind)))
        case.refused("DTYPE|SHAPE", lambda kind=kind: reply(DELTA.astype(kind)))
    for name in ("BF16", "F8_E4M3", "f32", "O", ""):
        case.refused("DTYPE", lambda name=name: unpack_tensors(blob({"a": entry(name)}, 12)))


@row(76)
def tensor_shapes(case: Case) -> None:
    for shape in ((-3,), (2**40, 2**40), (2**63,), (3.0,), (4,), [1] * 9, (2**24, 2**24, 2**24)):
        case.refused(
            "SHAPE|ST_HEADER", lambda shape=shape: unpack_tensors(blob({"a": entry(shape=shape)}, 12))
        )
    case.refused("SHAPE", lambda: door(np.zeros((0, 3), np.float16)))
    case.refused("SHAPE", lambda: door(DELTA[:3]))
    assert unpack_tensors(blob({"a": entry(shape=(0, 5), end=0)}, 0))["a"].shape == (
        0,
        5,
    )  # of nothing: no harm


@row(77)
def tensor_layout(case: Case) -> None:
    tables = (
        {"a": entry(), "b": entry(start=4, end=16)},  # overlap
        {"a": entry(), "b": entry(start=16, end=28)},  # gap
        {"a": entry(start=4, end=16)},  # does not begin at the beginning
        {"a": entry(start=1 << 40, end=(1 << 40) + 12)},  # beyond the file
        {"a": entry(shape=(30,), end=120)},
        {"a": entry()} | {"b": entry()},  # the same bytes twice
        {"a": {**entry(), "data_offsets": [-12, 0]}},
        {"a": {**entry(), "data_offsets": [0]}},
    )
    for table in tables:
        case.refused("ST_LAYOUT", lambda table=table: unpack_tensors(blob(table, 16)))
        path = case.home / "x.safetensors"
        path.write_bytes(blob(table, 16))
        case.refused("ST_LAYOUT", lambda path=path: load_tensors(path))
    case.refused("ST_LAYOUT", lambda: unpack_tensors(pack_tensors({"a": np.zeros(3)}) + b"extra"))


@row(78)
def tensor_headers(case: Case) -> None:
    good = pack_tensors({"a": np.zeros(3, np.float32)})
    case.refused("ST_HEADER", lambda: unpack_tensors(blob({}, 0, head=b"{" + b" " * (100 << 20) + b"}")))
    case.refused("ST_HEADER", lambda: unpack_tensors(blob({"a": entry()}, 12, length=1 << 62)))
    case.refused(
        "ST_HEADER", lambda: unpack_tensors(blob({"__metadata__": {"x": case.canary}, "a": entry()}, 12))
    )
    for head in (
        b"[]",
        b"{",
        b'{"a":1}',
        b'{"a":{},"a":{}}',
        json.dumps({"a": {**entry(), "more": 1}}).encode(),
    ):
        case.refused("ST_HEADER", lambda head=head: unpack_tensors(blob({}, 12, head=head)))
    spaced = json.dumps({"a": entry()}).encode()  # the same value, written in another way
    case.refused("ST_HEADER", lambda: unpack_tensors(blob({}, 12, head=spaced)))
    for cut in (0, 3, 7):
        case.refused("ST_HEADER", lambda cut=cut: unpack_tensors(good[:cut]))


class _Command:
    """Runs a command when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.system, (f"touch {self.marker}",)


@row(79)
def pickles(case: Case) -> None:
    import pickle

    marker = case.home / "executed"
    evil = _Command(marker)
    torch_file, array_file, archive = io.BytesIO(), io.BytesIO(), io.BytesIO()
    torch.save({"x": torch.zeros(2)}, torch_file)
    np.save(array_file, np.array([evil], dtype=object), allow_pickle=True)
    with zipfile.ZipFile(archive, "w") as opened:
        opened.writestr("archive/data.pkl", pickle.dumps(evil))
    for data in (pickle.dumps(evil), torch_file.getvalue(), array_file.getvalue(), archive.getvalue()):
        path = case.home / "weights.pt"
        path.write_bytes(data)
        case.refused("FORMAT", lambda path=path: load_tensors(path))
        case.refused("FORMAT", lambda data=data: unpack_tensors(data))
        case.image("x.png", data, "MAGIC")
    assert not marker.exists()


@row(80)
def free_rider(case: Case) -> None:
    rule = RowAverage(np.eye(4, 3, dtype=np.float32), "firing-weighted")
    case.refused(
        "FREE_RIDE", lambda: rule.fold(np.zeros((4, 3), np.float16), np.full(4, 20, np.float32), 100)
    )
    withheld = np.full(4, np.nan, np.float32)  # a site that is too small to send anything is no free rider
    rule.fold(np.zeros((4, 3), np.float16), withheld, 100)
    assert rule.sites == 1


@row(81)
def odd_numbers(case: Case) -> None:
    for value in (np.nan, np.inf, -np.inf):
        bad = DELTA.copy()
        bad[2, 1] = value
        case.refused("FINITE", lambda bad=bad: door(bad))
        with pytest.raises(MessageError, match="finite"):
            reply(bad)
    case.refused("FINITE", lambda: door(np.array([1e38, 1, 1, np.inf], np.float32), "fired"))
    odd = np.array([6e-8, -0.0, 65504, 1], np.float16)[:, None].repeat(
        3, axis=1
    )  # subnormal, -0, the largest
    assert np.isfinite(egress.open(door(odd), KEY.public_hex, CONTEXT, DIMS).tensors["delta"]).all()


@row(82)
def large_rows(case: Case) -> None:
    base = np.eye(4, 3, dtype=np.float32)
    rule = RowAverage(base, "firing-weighted")
    for changed in (DELTA * np.float16(1e4), np.where(np.arange(4)[:, None] == 1, np.float16(60000), DELTA)):
        with pytest.raises(MessageError, match="changes of at most"):
            rule.fold(changed, np.full(4, 20, np.float32), 100)
    one_row = np.where(np.arange(4)[:, None] == 1, DELTA, np.float16(0))
    rule.fold(one_row, np.full(4, 20, np.float32), 100)  # one row only: the others stay as they were
    moved = (rule.result() != base / np.maximum(np.linalg.norm(base, axis=1, keepdims=True), 1e-9)).any(
        axis=1
    )
    assert moved[[0, 2]].tolist() == [False, False]
    with np.errstate(over="ignore"), pytest.raises(MessageError, match="finite"):
        reply((DELTA.astype(np.float32) * 1e6).astype(np.float16))


def asked(case: Case, kind: str, tensors: Any = None, **facts: Any) -> tuple[str, str, dict[str, np.ndarray]]:
    """Status, code and tensors of one step at a site with these facts."""
    made = federation(case)
    site = make_site("site-0", case.home / "own", MASKED, seed=0, **facts)
    made.sessions["site-0"].close()
    made.sites["site-0"] = site
    made.sessions["site-0"] = Session(site, made.study, made.key.public_hex, made.sessions["site-0"].events)
    try:
        found = made.ask("site-0", Ask(kind, 0, tensors or {}, {}))
    finally:
        close(made)
    assert found is not None
    case.leaving += [json.dumps(found.header).encode(), found.body]
    return str(found.header["status"]), str(found.header["code"]), unpack_tensors(found.body)


@row(83)
def few_patients(case: Case) -> None:
    data = case.folder(good=10)
    case.leave(data)
    (counts,) = (unpack_tensors(body)["counts"] for body in case.leaving if body[8:].startswith(b'{"c'))
    assert np.isnan(counts).all()
    one = [f"{case.canary}"] * 60
    assert asked(case, "hello", units=one)[:2] == ("refused", "data")


@row(84)
def one_dominates(case: Case) -> None:
    names = [
        f"{case.canary}-{max(0, index - 199)}" for index in range(210)
    ]  # 11 patients, one with 95 % of the cells
    labels = ["lymphocyte", "monocyte", "neutrophil"] * 70
    status, _, tensors = asked(case, "moments", patients=105, units=names, labels=labels)
    assert status == "ok" and all(np.isnan(values).all() for values in tensors.values())
    even = [f"{case.canary}-{index % 30}" for index in range(210)]
    assert np.isfinite(asked(case, "moments", patients=105, units=even, labels=labels)[2]["token_sum"]).all()


@row(85)
def differencing(case: Case) -> None:
    ledger = Ledger(case.home / "ledger", POLICIES["masked"])
    people = [f"{case.canary}-{index}" for index in range(40)]

    def ask(members: list[str], content: str) -> None:
        question = question_digest(metric="auroc", dictionary="d")
        ledger.record_release(Asked("describe", question, ledger.cohort(members), content))

    ask(people, "first")
    case.refused("DIFFERENCING", lambda: ask(people[:-1], "one patient withdrawn"))
    case.refused("DIFFERENCING", lambda: ask([*people, "new"], "one more"))
    ask(people, "first")  # the same answer again is no new one
    ledger.close()
    assert not any(case.canary.encode() in path.read_bytes() for path in (case.home / "ledger").iterdir())


@row(86)
def inconsistent(case: Case) -> None:
    policy, items = POLICIES["masked"], np.ones((40, 4))
    for bad, edges in (
        (items, [0, 1, 2, 3]), (-items, range(5)), (items * np.nan, range(5)), (items, [0, 2, 1, 3, 4]),
        (items[0], range(5)),
    ):  # fmt: skip
        case.refused("CONSIST", lambda bad=bad, edges=edges: protect_histogram(bad, edges, policy))
        case.refused("CONSIST", lambda bad=bad, edges=edges: curve_bins(bad, items, edges, policy))
    assert not len(curve_bins(items, items * 0, range(5), policy).edges)  # one class only: nothing is shown
    scores = np.random.default_rng(0).random((10, 3), dtype=np.float32)
    assert np.isnan(unit_auroc(scores, np.zeros(10, bool), np.arange(10)).value).all()


@row(87)
def free_text(case: Case) -> None:
    codes = frozenset({"granules", "vacuoles"})
    bad = (
        "<script>alert(1)</script>",
        "{{7*7}}",
        "x" * 10_240,
        "line\nbreak",
        "",
        case.canary,
        "\u202ereversed",
    )
    for text in bad:
        case.refused("ENUM", lambda text=text: check_text(text, "code", codes))
        case.refused("ENUM", lambda text=text: check_text(text, "name"))
    assert check_text("granules", "code", codes) == "granules"


@row(88)
def traps(case: Case) -> None:
    """Dictionaries that would make a site's update readable (all traps: tests/integration/test_traps.py)."""
    rows = np.random.default_rng(0).standard_normal((24, 16)).astype(np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    more = {"mean": np.zeros(16, np.float32), "scale": np.full(1, 1.5, np.float32)}
    bad = {
        "zero": rows * 1e-4, "one direction": np.repeat(rows[:1], 24, axis=0), "probes": rows * 9,
        "duplicates": np.concatenate([rows[:12], rows[:12]]),
    }  # fmt: skip
    made = federation(case)
    for name, dictionary in bad.items():
        found = made.ask("site-0", Ask("begin", 0, {"dictionary": dictionary, **more}, {}))
        assert found is not None and (found.header["status"], found.header["code"]) == ("refused", "base"), (
            name
        )
        assert "MODEL_REJECT" in {event.values.get("reason") for event in case.events[-2:]}
    good = made.ask("site-0", Ask("begin", 0, {"dictionary": rows, **more}, {}))
    assert good is not None and good.header["status"] == "ok"
    close(made)


@row(89)
def lineage(case: Case) -> None:
    made = federation(case)
    rows = np.random.default_rng(0).standard_normal((24, 16)).astype(np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    start = {"dictionary": rows, "mean": np.zeros(16, np.float32), "scale": np.full(1, 1.5, np.float32)}
    other = {**start, "dictionary": np.ascontiguousarray(rows[::-1])}
    ask, body = Ask("begin", 0, start, {}), pack_tensors(other)
    unlogged = {
        "body": body,
        "base": dictionary_digest(other),
        "job": job_of("begin", 0, sha256_hex(body), {}),
    }
    for changes in ({"base": "0" * 64}, unlogged):
        found = made.ask("site-0", ask, **changes)
        assert found is not None and found.header["status"] == "refused"
        assert case.events[-1].values["reason"] == "LINEAGE"
    for tensors, status in (
        (start, "ok"),
        (other, "refused"),
    ):  # logged, but not the one that was accepted before
        found = made.ask("site-0", Ask("begin", 0, tensors, {}))
        assert found is not None and found.header["status"] == status
    assert {event.values.get("reason") for event in case.events[-2:]} & {"LINEAGE", "MODEL_REJECT"}
    close(made)


KILLED = """
import os, sys
from pathlib import Path
from cytosae_core import egress
from tests.federation import Federation, study_config
from cytosae_server.desk import Ask
made = Federation(Path(sys.argv[1]), study_config(2))
request, _ = made.desk.request("site-0", Ask("hello", 0, {}, {}))
if sys.argv[2] == "before":
    whole = egress.join_wire
    egress.join_wire = lambda *parts: os.kill(os.getpid(), 9)  # logged and spent, nothing handed over
made.sessions["site-0"].handle(request)
os.kill(os.getpid(), 9)  # sent, and nobody knows whether it came
"""


@row(90)
def killed(case: Case) -> None:
    for when in ("before", "after"):
        home = case.home / when
        done = subprocess.run(
            [sys.executable, "-c", KILLED, str(home), when], cwd=ROOT, capture_output=True, text=True, timeout=120,
            env={**os.environ, "PYTHONWARNINGS": "ignore"},
        )  # fmt: skip
        assert done.returncode == -signal.SIGKILL, done.stderr
        made = Federation(home, study_config(2))
        first, second = (made.ask("site-0", HELLO) for _ in range(2))
        assert (
            first is not None
            and second is not None
            and first.header["status"] == second.header["status"] == "ok"
        )
        assert first.body == second.body
        site, session = made.sites["site-0"], made.sessions["site-0"]
        keys = {site.key.public_hex[:16]: site.key.public_hex}
        log = session._record.log
        sent = [
            found
            for found in (read_leaf(leaf, keys) for leaf in log.leaves(0, log.size))
            if found.kind == "egress"
        ]
        assert [leaf.predicate["repeats"] < 0 for leaf in sent] == [
            True,
            False,
            False,
        ]  # one answer, twice repeated
        close(made)
