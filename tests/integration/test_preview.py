"""The dry round shows what the study then sends, and changes nothing."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from cytosae_client.preview import Preview
from cytosae_core.allowed import ALLOWED
from cytosae_core.canonical import parse_json
from cytosae_core.envelope import REPLY, unpack
from tests.federation import MASKED, D, FakeStore, Federation, N, make_site, study_config


def rows() -> np.ndarray:
    found = np.random.default_rng(0).standard_normal((N, D)).astype(np.float32)
    return found / np.linalg.norm(found, axis=1, keepdims=True)


def files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def test_the_dry_round_names_every_tensor_that_a_study_sends(tmp_path: Path) -> None:
    federation = Federation(tmp_path)
    federation.run()
    sent: set[tuple[str, str, tuple[int, ...]]] = set()
    for path in (tmp_path / "run" / "payloads").glob("*.reply"):
        data = path.read_bytes()
        key = federation.sites["site-0"].key.public_hex
        if parse_json(data[12 : 12 + int.from_bytes(data[8:12], "big")])["site"] != "site-0":
            continue
        envelope = unpack(data, REPLY, key)
        for name, values in _tensors(envelope.body).items():
            sent.add((envelope.header["kind"], name, values))
    start = {"dictionary": rows()}
    shown = Preview(federation.sites["site-0"], federation.study, start).run()
    dry = {
        (message["kind"], tensor["name"], tuple(tensor["shape"]))
        for message in shown["messages"]
        for tensor in message["tensors"]
    }
    assert shown["stopped"] is None
    assert dry == {item for item in sent if item[0] != "score"}
    assert all(name in {field.name for field in ALLOWED} for _, name, _ in dry)


def _tensors(body: bytes) -> dict[str, tuple[int, ...]]:
    from cytosae_core.tensors import unpack_tensors

    return {name: values.shape for name, values in unpack_tensors(body).items()}


def test_the_dry_round_changes_nothing_at_the_site(tmp_path: Path) -> None:
    site = make_site("site-0", tmp_path, MASKED, seed=0)
    before = files(tmp_path)
    Preview(site, study_config(), {"dictionary": rows()}).run()
    assert files(tmp_path) == before


def test_a_small_site_sees_that_its_numbers_are_withheld(tmp_path: Path) -> None:
    site = make_site("site-0", tmp_path, MASKED, seed=0, patients=12)
    shown = Preview(site, study_config(), {"dictionary": rows()}).run()
    hello = shown["messages"][0]["tensors"]
    counts = next(tensor for tensor in hello if tensor["name"] == "counts")
    assert counts["suppressed"] >= 5 and counts["values"][-1] is None


STUDY = study_config()
FROM_FILE = replace(STUDY, dictionary=replace(STUDY.dictionary, init="file"))


@pytest.mark.parametrize(("start", "kind"), [("trap", "begin"), ("not finite", "moments")])
def test_the_dry_round_says_where_the_door_stops_it(tmp_path: Path, start: str, kind: str) -> None:
    site = make_site("site-0", tmp_path, MASKED, seed=0)
    dictionary = np.repeat(rows()[:1], N, axis=0) if start == "trap" else rows()
    if start == "not finite":
        tokens = site.store.tokens(0, 60).copy()
        tokens[:, 0, 0] = np.nan
        site = replace(site, store=FakeStore(tokens))
    shown = Preview(site, FROM_FILE, {"dictionary": dictionary}).run()
    assert shown["stopped"]["kind"] == kind
    assert shown["stopped"]["step"] == (3 if kind == "moments" else 0)


def test_without_a_start_file_only_what_needs_none_is_shown(tmp_path: Path) -> None:
    site = make_site("site-0", tmp_path, MASKED, seed=0)
    shown = Preview(site, FROM_FILE, {}).run()
    assert [message["kind"] for message in shown["messages"]] == ["hello", "moments"]
