"""`cytosae encoder embed`: one process, several shards, stopped and resumed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from argparse import ArgumentParser
from pathlib import Path

import pytest
from PIL import Image

from cytosae_core.encoder import build, open_store
from cytosae_core.errors import SetupError
from cytosae_local.encoder_cli import register


def cells(folder: Path, count: int) -> Path:
    for index in range(count):
        path = folder / ("a" if index % 2 else "b") / f"{index}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (30, 20), (index % 250, 90, 250 - index % 250)).save(path)
    return folder


def embed(data: Path, store: Path, *arguments: str) -> int:
    parser = ArgumentParser()
    register(parser)
    fixed = ["embed", str(data), str(store), "--layer", "1", "--device", "cpu", "--json"]
    options = parser.parse_args([*fixed, *arguments])
    return int(options.run(options))


def test_shards_make_the_store_of_one_process(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(build, "SHARD", 4)
    data = cells(tmp_path / "d", 10)
    assert embed(data, tmp_path / "one", "--batch", "3", "--workers", "1") == 0
    assert json.loads(capsys.readouterr().out)["images"] == 10
    complete = []
    for lane in ("2/3", "0/3", "1/3"):
        assert embed(data, tmp_path / "many", "--batch", "3", "--shard", lane) == 0
        complete.append(json.loads(capsys.readouterr().out)["complete"])
    assert complete == [False, False, True]
    one, many = (
        {path.name: path.read_bytes() for path in (tmp_path / name).iterdir()} for name in ("one", "many")
    )
    assert one == many


@pytest.mark.parametrize("text", ["3/3", "1", "a/b", "-1/2", "1/0", "1/2/3"])
def test_shards_that_do_not_exist_are_refused(text: str, tmp_path: Path) -> None:
    with pytest.raises(SetupError, match="i/N"):
        embed(cells(tmp_path / "d", 2), tmp_path / "s", f"--shard={text}")


def heed_ctrl_c() -> None:
    """A test run that was put in the background has SIGINT ignored, and its children inherit that."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def test_ctrl_c_leaves_a_store_that_goes_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data, store = cells(tmp_path / "d", 260), tmp_path / "s"
    command = [sys.executable, "-m", "cytosae_local.cli", "encoder", "embed", str(data), str(store)]
    process = subprocess.Popen(
        [*command, "--layer", "1", "--device", "cpu"], stderr=subprocess.PIPE, text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"}, preexec_fn=heed_ctrl_c,
    )  # fmt: skip
    end = time.monotonic() + 120
    while not (store / "shard-00000.json").exists() and process.poll() is None and time.monotonic() < end:
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    told = process.communicate(timeout=60)[1]
    assert process.returncode == 130 and "go on where it stopped" in told
    assert not (store / "index.json").exists()
    before = (store / "shard-00000.json").stat().st_mtime_ns
    assert embed(data, store) == 0
    assert json.loads(capsys.readouterr().out)["images"] == 260 and open_store(store).n_images == 260
    assert (store / "shard-00000.json").stat().st_mtime_ns == before
