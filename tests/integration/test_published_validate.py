"""A published checkpoint, imported, validated at three sites: from FILE.pt to the report, metrics only."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from cytosae_core.phantom import DEMO_SITES, generate_site
from cytosae_local.cli import main

D, N = 384, 192
STUDY = """\
urn: urn:cytosae:study:v1
name: published
kind: validate
profile: evaluate_only
simulation: true
seed: 0
min_units: 3
sites: [a, b, c]
encoder: {{name: dinov2-s-demo, layer: 2, steps: [reinhard, cell-mask], d: 384}}
dictionary: {{model: relu, n: 192, k: 1, init: file, digest: {digest}}}
rounds: {{quorum: 2}}
statistics: {{classes: [eosinophil, lymphocyte, monocyte, neutrophil]}}
local: {{sites: {{a: a, b: b, c: c}}, start: frozen/dictionary}}
"""


@pytest.fixture
def place(tmp_path: Path) -> Path:
    for name, site in zip("abc", DEMO_SITES, strict=False):
        generate_site(tmp_path / name, site, patients=12, cells_per_patient=2, seed=ord(name))
    rows = torch.nn.functional.normalize(torch.randn(N, D), dim=1)
    state = {
        "W_enc": rows.T.contiguous(),
        "b_enc": torch.full((N,), -1.0),
        "W_dec": rows,
        "b_dec": torch.zeros(D),
    }
    torch.save({"cfg": {"d_in": D, "d_sae": N}, "state_dict": state}, tmp_path / "published.pt")
    return tmp_path


def test_from_the_published_file_to_the_report(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sae", "import", str(place / "published.pt"), str(place / "frozen"), "--json"]) == 0
    digest = json.loads(capsys.readouterr().out)["sha256"]
    (place / "study.yaml").write_text(STUDY.format(digest=digest))
    assert main(["study", "run", str(place / "study.yaml"), "--out", str(place / "out")]) == 0
    report = json.loads((place / "out" / "report.json").read_text())
    assert report["study"]["kind"] == "validate" and report["concepts"]["count"] == N
    assert report["dictionary"]["model"] == "relu"
    assert all(site["status"] == "reported" for site in report["sites"].values())
    assert not any(kind.startswith("round") for site in report["egress"]["sites"].values() for kind in site)


def test_a_study_of_another_dictionary_is_refused(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sae", "import", str(place / "published.pt"), str(place / "frozen")]) == 0
    (place / "study.yaml").write_text(STUDY.format(digest="a" * 64))
    assert main(["study", "run", str(place / "study.yaml"), "--out", str(place / "out")]) == 1
    assert "sha256" in capsys.readouterr().err
