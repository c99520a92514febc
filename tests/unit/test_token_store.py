"""The token store: written once, resumable after kill -9, flat in memory, refuses what is not its own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from cytosae_core.cohort import read_cohort
from cytosae_core.encoder import build, build_store, files, open_store, store_key
from cytosae_core.encoder.build import BuildPlan, Lane, build_shards
from cytosae_core.errors import DataError, SetupError


class Tiny:
    """A fake encoder: d = 4, tokens from the pixels, a count of encoded images."""

    d, digest = 4, "a" * 64

    def __init__(self, pause_s: float = 0.0, value: float = 1.0) -> None:
        self.pause_s, self.value, self.encoded = pause_s, value, 0

    def pixels(self, image: Any) -> np.ndarray:
        return np.asarray(image.resize((224, 224)))

    def mask_of(self, pixels: np.ndarray) -> np.ndarray:
        mask = np.ones(257, dtype=bool)
        mask[0] = False
        return mask

    def encode(self, images: torch.Tensor) -> torch.Tensor:
        time.sleep(self.pause_s * len(images))
        self.encoded += len(images)
        base = images.mean(dim=(1, 2, 3))[:, None, None] * self.value
        return base + torch.arange(257 * 4).reshape(257, 4) / 1000

    def canary(self) -> np.ndarray:
        return np.ones((8, 4), np.float32)


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(build, "SHARD", 4)
    folder = tmp_path / "data" / "a"
    folder.mkdir(parents=True)
    for index in range(10):
        Image.new("RGB", (20, 20), (20 * index, 5, 250 - 20 * index)).save(folder / f"{index}.png")
    return folder.parent


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def test_tokens_are_stored_once_and_read_back(data: Path, tmp_path: Path) -> None:
    encoder, cohort, seen = Tiny(), read_cohort(data), list[tuple[int, int]]()
    built = build_store(cohort, encoder, tmp_path / "s", batch=3, progress=lambda a, b: seen.append((a, b)))
    assert encoder.encoded == 10 and seen[-1] == (10, 10) and built.n_images == 10 and built.d == 4
    whole = built.tokens(0, 10)
    assert (
        whole.shape == (10, 257, 4)
        and whole.dtype == np.float16
        and np.array_equal(built.tokens(3, 9), whole[3:9])
    )
    image, token = np.array([9, 0, 5, 9]), np.array([256, 0, 17, 3])
    assert np.array_equal(built.gather(image, token), whole[image, token].astype(np.float32))
    assert built.mask().shape == (10, 257) and not built.mask()[:, 0].any() and built.canary.shape == (8, 4)
    again = build_store(cohort, encoder, tmp_path / "s")
    assert encoder.encoded == 10 and again.key == store_key(cohort, encoder) == built.key


def test_killed_while_building_goes_on_to_the_same_bytes(data: Path, tmp_path: Path) -> None:
    script = (
        "import sys; from pathlib import Path; from cytosae_core.cohort import read_cohort\n"
        "from cytosae_core.encoder import build, build_store; from tests.unit.test_token_store import Tiny\n"
        "build.SHARD = 4; build_store(read_cohort(Path(sys.argv[1])), Tiny(pause_s=0.15), Path(sys.argv[2]), batch=2)"
    )
    folder = tmp_path / "killed"
    root = Path(__file__).resolve().parents[2]
    process = subprocess.Popen([sys.executable, "-c", script, str(data), str(folder)], cwd=root)
    end = time.monotonic() + 60
    while not (folder / "shard-00000.json").exists() and time.monotonic() < end:
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert not (folder / "index.json").exists()
    (folder / ".tokens-00001.npy.1.tmp").write_bytes(b"half")  # as a kill inside a write leaves it
    encoder, plain = Tiny(), Tiny()
    build_store(read_cohort(data), encoder, folder, batch=2)
    build_store(read_cohort(data), plain, tmp_path / "plain", batch=2)
    assert encoder.encoded <= 6 and plain.encoded == 10 and contents(folder) == contents(tmp_path / "plain")


def test_a_half_written_shard_is_not_believed(data: Path, tmp_path: Path) -> None:
    (tmp_path / "s").mkdir()
    (tmp_path / "s" / "tokens-00000.npy").write_bytes(b"half")
    (tmp_path / "s" / "shard-00000.json").write_bytes(b'{"stored":[0,1,')
    built = build_store(read_cohort(data), Tiny(), tmp_path / "s")
    whole = build_store(read_cohort(data), Tiny(), tmp_path / "t")
    assert np.array_equal(built.tokens(0, 10), whole.tokens(0, 10)) and contents(built.folder) == contents(
        whole.folder
    )


def test_what_a_folder_without_its_key_holds_is_not_believed(data: Path, tmp_path: Path) -> None:
    """Emptying a folder for another key may be killed anywhere: nothing of the old key may survive under the new."""
    cohort, other = read_cohort(data), Tiny(value=2.0)
    old = build_store(cohort, Tiny(), tmp_path / "s").tokens(0, 10)
    (tmp_path / "s" / "key").unlink()
    (tmp_path / "s" / "index.json").unlink()
    built = build_store(cohort, other, tmp_path / "s")
    assert other.encoded == 10 and not np.array_equal(built.tokens(0, 10), old)


def test_a_finished_shard_of_another_size_is_encoded_again(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    build_store(read_cohort(data), Tiny(), tmp_path / "s")
    (tmp_path / "s" / "index.json").unlink()
    monkeypatch.setattr(build, "SHARD", 3)
    built = build_store(read_cohort(data), Tiny(), tmp_path / "s")
    assert built.image_index.tolist() == list(range(10))


def test_a_second_builder_waits_and_finds_the_store_complete(data: Path, tmp_path: Path) -> None:
    first, second = Tiny(pause_s=0.05), Tiny(pause_s=0.05)
    threads = [
        threading.Thread(target=build_store, args=(read_cohort(data), encoder, tmp_path / "s"))
        for encoder in (first, second)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert first.encoded + second.encoded == 10


def test_unreadable_images_are_counted_and_skipped(data: Path, tmp_path: Path) -> None:
    cohort = read_cohort(data)
    cohort.images[2].path.write_bytes(b"rubbish")
    built = build_store(cohort, Tiny(), tmp_path / "s")
    assert built.failed == (2,) and built.image_index.tolist() == [0, 1, 3, 4, 5, 6, 7, 8, 9]
    for index in (4, 5, 6, 7):
        cohort.images[index].path.unlink()  # a whole shard
    built = build_store(cohort, Tiny(), tmp_path / "u")
    assert built.failed == (2, 4, 5, 6, 7) and built.tokens(0, 99).shape == (5, 257, 4)
    assert np.array_equal(
        built.gather(np.array([3]), np.array([9]))[0], built.tokens(3, 4)[0, 9].astype(np.float32)
    )
    for image in cohort.images:
        image.path.write_bytes(b"rubbish")
    with pytest.raises(DataError):
        build_store(cohort, Tiny(), tmp_path / "t")


def test_another_key_is_refused_or_rebuilt_when_asked(data: Path, tmp_path: Path) -> None:
    cohort, other = read_cohort(data), Tiny()
    build_store(cohort, Tiny(), tmp_path / "s")
    other.digest = "b" * 64
    with pytest.raises(SetupError):
        build_store(cohort, other, tmp_path / "s")
    with pytest.raises(SetupError):
        open_store(tmp_path / "s", key="0" * 64)
    (tmp_path / "s" / "notes.txt").write_text("mine")
    rebuilt = build_store(cohort, other, tmp_path / "s", rebuild=True)
    assert rebuilt.encoder_digest == "b" * 64 and other.encoded == 10
    assert (tmp_path / "s" / "notes.txt").read_text() == "mine"


def test_key_covers_every_image_and_their_order(data: Path) -> None:
    cohort, encoder = read_cohort(data), Tiny()
    keys = {store_key(cohort, encoder), store_key(replace(cohort, images=cohort.images[::-1]), encoder)}
    cohort.images[3].path.write_bytes(cohort.images[4].path.read_bytes())
    keys.add(store_key(cohort, encoder))
    assert len(keys) == 3


def test_incomplete_or_damaged_stores_are_setup_errors(data: Path, tmp_path: Path) -> None:
    with pytest.raises(SetupError):
        open_store(tmp_path / "nothing")
    build_store(read_cohort(data), Tiny(), tmp_path / "s")
    whole = contents(tmp_path / "s")
    tokens = whole["tokens-00001.npy"]
    damages = {
        "tokens-00001.npy": (None, b"", tokens[:-1], tokens[:40]),
        "masks-00000.npy": (None, whole["masks-00001.npy"][:-3], whole["golden.npy"]),
        "golden.npy": (None, tokens),
        "index.json": (
            None,
            b"",
            b"[]",
            b"{}",
            whole["index.json"].replace(b'"shards":[4,', b'"shards":[3,'),
        ),
    }
    for name, versions in damages.items():
        for version in versions:
            path = tmp_path / "s" / name
            path.unlink() if version is None else path.write_bytes(version)
            with pytest.raises(SetupError):
                open_store(tmp_path / "s")
            path.write_bytes(whole[name])
    assert open_store(tmp_path / "s").n_images == 10


def test_places_outside_the_store_are_refused(data: Path, tmp_path: Path) -> None:
    built = build_store(read_cohort(data), Tiny(), tmp_path / "s")
    for image, token in ((10, 0), (-1, 0), (0, 257), (0, -1)):
        with pytest.raises(IndexError):
            built.gather(np.array([image]), np.array([token]))
    assert built.tokens(8, 99).shape == (2, 257, 4) and built.tokens(10, 12).shape == (0, 257, 4)


def test_tokens_stay_on_disk(data: Path, tmp_path: Path) -> None:
    built = build_store(read_cohort(data), Tiny(), tmp_path / "s")
    assert all(isinstance(shard.base, np.memmap) or isinstance(shard, np.memmap) for shard in built._shards)


@pytest.mark.parametrize("batch", [0, -1])
def test_batch_below_one_is_refused(data: Path, tmp_path: Path, batch: int) -> None:
    with pytest.raises(SetupError, match="batch"):
        build_store(read_cohort(data), Tiny(), tmp_path / "s", batch=batch)


def test_tokens_beyond_float16_are_refused(data: Path, tmp_path: Path) -> None:
    with pytest.raises(SetupError):
        build_store(read_cohort(data), Tiny(value=1e9), tmp_path / "s")


def test_full_disk_is_a_setup_error(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path, data: bytes) -> None:
        if path.name.startswith("tokens"):
            raise OSError(28, "No space left on device")
        path.write_bytes(data)

    monkeypatch.setattr(files, "write_atomic", full)
    with pytest.raises(SetupError, match="disk space"):
        build_store(read_cohort(data), Tiny(), tmp_path / "s")
    monkeypatch.undo()
    monkeypatch.setattr(build, "SHARD", 4)
    assert (
        build_store(read_cohort(data), Tiny(), tmp_path / "s").n_images == 10
    )  # space was freed: it goes on


def test_a_place_that_is_no_folder_is_a_setup_error(data: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    for place in (tmp_path / "file", tmp_path / "file" / "under"):
        with pytest.raises(SetupError, match="written"):
            build_store(read_cohort(data), Tiny(), place)


LANE = """
import sys; from pathlib import Path; from cytosae_core.cohort import read_cohort
from cytosae_core.encoder import build; from tests.unit.test_token_store import Tiny
build.SHARD = 2; data, folder, lane, lanes = sys.argv[1:]
encoder = Tiny(pause_s=0.1)
plan = build.BuildPlan(batch=2, workers=2, lane=build.Lane(int(lane), int(lanes)))
print(build.build_shards(read_cohort(Path(data)), encoder, Path(folder), plan), encoder.encoded)
"""


def lane_process(data: Path, folder: Path, lane: int, lanes: int) -> subprocess.Popen[str]:
    arguments = [sys.executable, "-c", LANE, str(data), str(folder), str(lane), str(lanes)]
    root = Path(__file__).resolve().parents[2]
    return subprocess.Popen(arguments, cwd=root, stdout=subprocess.PIPE, text=True)


@pytest.mark.parametrize("split", [True, False])
def test_builders_share_one_store_and_its_bytes_are_those_of_one(
    data: Path, tmp_path: Path, split: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three processes at once: as lanes of a job array, or all told to build everything."""
    (data / "a" / "3.png").write_bytes(b"rubbish")
    processes = [
        lane_process(data, tmp_path / "s", index if split else 0, 3 if split else 1) for index in range(3)
    ]
    answers = [process.communicate(timeout=120)[0].split() for process in processes]
    assert [process.returncode for process in processes] == [0, 0, 0]
    assert "True" in {answer[0] for answer in answers} and sum(int(answer[1]) for answer in answers) == 9
    monkeypatch.setattr(build, "SHARD", 2)
    build_store(read_cohort(data), Tiny(), tmp_path / "plain", batch=2)
    assert contents(tmp_path / "s") == contents(tmp_path / "plain")


def test_a_lane_makes_its_own_shards_and_the_last_one_the_index(data: Path, tmp_path: Path) -> None:
    cohort, seen = read_cohort(data), list[tuple[int, int]]()
    encoder = Tiny()
    plan = BuildPlan(lane=Lane(1, 2), progress=lambda done, total: seen.append((done, total)))
    assert build_shards(cohort, encoder, tmp_path / "s", plan) is False
    assert encoder.encoded == 4 and seen[-1] == (4, 4)  # shard 1 of 4 + 4 + 2 images
    assert not (tmp_path / "s" / "index.json").exists()
    with pytest.raises(SetupError, match="complete"):
        open_store(tmp_path / "s")
    assert build_shards(cohort, encoder, tmp_path / "s", BuildPlan(lane=Lane(0, 2))) is True
    assert encoder.encoded == 10 and open_store(tmp_path / "s").n_images == 10


def test_a_starting_builder_leaves_the_files_of_a_running_one_alone(data: Path, tmp_path: Path) -> None:
    cohort = read_cohort(data)
    build_shards(cohort, Tiny(), tmp_path / "s", BuildPlan(lane=Lane(0, 3)))
    running = tmp_path / "s" / ".tokens-00001.npy.77.tmp"
    running.write_bytes(b"being written on another machine")
    build_shards(cohort, Tiny(), tmp_path / "s", BuildPlan(lane=Lane(2, 3)))
    assert running.exists()
    build_shards(cohort, Tiny(), tmp_path / "s", BuildPlan(lane=Lane(1, 3)))
    assert not running.exists()


def test_the_number_of_decoders_changes_no_byte(data: Path, tmp_path: Path) -> None:
    (data / "a" / "3.png").write_bytes(b"rubbish")
    for workers in (1, 4):
        build_store(read_cohort(data), Tiny(), tmp_path / str(workers), batch=3, workers=workers)
    assert contents(tmp_path / "1") == contents(tmp_path / "4")


def test_stopped_by_ctrl_c_goes_on_where_it_stopped(data: Path, tmp_path: Path) -> None:
    def stop(done: int, total: int) -> None:
        if done >= 6:
            raise KeyboardInterrupt

    first, second = Tiny(), Tiny()
    with pytest.raises(KeyboardInterrupt):
        build_store(read_cohort(data), first, tmp_path / "s", batch=2, progress=stop)
    assert (first.encoded, not (tmp_path / "s" / "index.json").exists()) == (6, True)
    build_store(read_cohort(data), second, tmp_path / "s", batch=2)
    build_store(read_cohort(data), Tiny(), tmp_path / "plain", batch=2)
    assert second.encoded == 6 and contents(tmp_path / "s") == contents(tmp_path / "plain")


def test_without_locks_every_builder_works_on(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_locks(*_: object) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(files.fcntl, "flock", no_locks)
    encoder = Tiny()
    build_store(read_cohort(data), encoder, tmp_path / "s")
    assert encoder.encoded == 10


def test_the_same_bytes_from_another_builder_are_no_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def raced(path: Path, data: bytes) -> None:
        raise FileNotFoundError(path)  # another machine's builder moved the temporary file of this name

    monkeypatch.setattr(files, "write_atomic", raced)
    (tmp_path / "x").write_bytes(b"same")
    files.write_bytes(tmp_path / "x", b"same")
    for path, content in ((tmp_path / "x", b"other"), (tmp_path / "missing", b"same")):
        with pytest.raises(FileNotFoundError):
            files.write_bytes(path, content)


@pytest.mark.parametrize(("index", "count"), [(3, 3), (-1, 3), (0, 0)])
def test_a_lane_that_does_not_exist_is_refused(index: int, count: int) -> None:
    with pytest.raises(SetupError, match="0 <= i < N"):
        Lane(index, count)
