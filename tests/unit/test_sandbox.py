"""The decoder's process: what it has given up, what it survives, and that its pixels are the plain decoder's."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cytosae_core.cohort import open_rgb, read_cohort, sandbox
from cytosae_core.cohort.confine import PROTECTIONS
from cytosae_core.cohort.words import WORDS
from cytosae_core.errors import DataError, SetupError

NOISE = np.random.default_rng(5).integers(0, 255, (40, 60, 4), dtype=np.uint8)
MODES = {
    "rgb.png": Image.fromarray(NOISE[..., :3]),
    "rgba.png": Image.fromarray(NOISE),
    "grey.png": Image.fromarray(NOISE[..., 0]),
    "grey-alpha.png": Image.fromarray(NOISE[..., :2]),
    "palette.png": Image.fromarray(NOISE[..., :3]).quantize(16),
    "one-bit.png": Image.fromarray(NOISE[..., 0]).convert("1"),
    "rgb.jpg": Image.fromarray(NOISE[..., :3]),
    "grey.jpg": Image.fromarray(NOISE[..., 0]),
    "rgb.bmp": Image.fromarray(NOISE[..., :3]),
    "palette.bmp": Image.fromarray(NOISE[..., :3]).quantize(16),
    "rgb.tif": Image.fromarray(NOISE[..., :3]),
    "rgba.tif": Image.fromarray(NOISE),
}


@pytest.fixture
def worker() -> Iterator[sandbox.Worker]:
    made = sandbox.Worker("image")
    yield made
    made.close()


def png(size: int = 8) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (size, size), (1, 2, 3)).save(stream, "PNG")
    return stream.getvalue()


@pytest.mark.parametrize("name", MODES)
@pytest.mark.parametrize("options", [{}, {"exif": b"Exif\0\0MM\0*\0\0\0\x08\0\0\0\0\0\0"}])
def test_pixels_are_those_of_the_plain_decoder(name: str, options: dict[str, bytes], tmp_path: Path) -> None:
    path = tmp_path / "d" / "a" / name
    path.parent.mkdir(parents=True)
    more = {} if name.endswith(("bmp", "tif")) else options
    MODES[name].save(path, **more)
    (image,) = read_cohort(tmp_path / "d").images
    with Image.open(path) as plain:
        assert np.array_equal(np.asarray(open_rgb(image)), np.asarray(plain.convert("RGB")))


@pytest.mark.parametrize("compression", ["tiff_lzw", "tiff_deflate", "packbits", "jpeg"])
def test_compressed_tiff_is_that_of_the_plain_decoder(compression: str, tmp_path: Path) -> None:
    path = tmp_path / "d" / "a" / "x.tif"
    path.parent.mkdir(parents=True)
    MODES["rgb.tif"].save(path, compression=compression)
    (image,) = read_cohort(tmp_path / "d").images
    with Image.open(path) as plain:
        assert np.array_equal(np.asarray(open_rgb(image)), np.asarray(plain.convert("RGB")))


@pytest.mark.shared
def test_real_cells_decode_as_before(shared: Path) -> None:
    for site in ("barcelona-acevedo-pbc", "draaslan-romanowsky", "chula-rbc12"):
        for image in read_cohort(shared / "data" / "sites" / site, max_images=20).images:
            with Image.open(image.path) as plain:
                assert open_rgb(image).tobytes() == plain.convert("RGB").tobytes()


def test_what_linux_grants_is_in_force_and_reported(worker: sandbox.Worker) -> None:
    told = worker.protection
    assert set(told.in_force) | set(told.missing) == set(PROTECTIONS)
    if sys.platform == "linux":
        assert {
            "memory",
            "cpu",
            "no_files",
            "no_writes",
            "no_core",
            "no_processes",
            "no_new_privileges",
        } <= set(told.in_force)
    assert str(told).startswith("separate process: memory")


CONFINED = """
import ctypes, os, sys
sys.path.insert(0, {root!r})
from cytosae_core.cohort import confine
import errno
before = os.dup(1)
confine.confine()
libc = ctypes.CDLL(None, use_errno=True)
out = []
def tried(name, call):
    try:
        call()
    except (OSError, MemoryError) as error:
        out.append(name + ":refused")
    else:
        out.append(name + ":done")
def socket(kind):
    if libc.socket(kind, 1, 0) < 0:
        raise OSError(ctypes.get_errno(), "socket")
tried("open", lambda: os.open("/etc/passwd", os.O_RDONLY))
tried("fork", os.fork)
tried("exec", lambda: os.execv("/bin/true", ["true"]))
tried("inet", lambda: socket(2))
tried("unix", lambda: socket(1))
tried("memory", lambda: bytearray(3 << 30))
tried("unlink", lambda: os.unlink({victim!r}))
tried("kill", lambda: os.kill(os.getppid(), 0))
os.write(before, " ".join(out).encode())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="system calls of Linux")
def test_a_hostile_decoder_gets_nowhere(tmp_path: Path) -> None:
    """The same calls that code injected through an image would make."""
    victim = tmp_path / "victim"
    victim.write_text("x")
    script = CONFINED.format(root=str(sandbox.ROOT), victim=str(victim))
    done = subprocess.run(
        [sys.executable, "-I", "-c", script], capture_output=True, text=True, timeout=60,
        env={"OPENBLAS_NUM_THREADS": "1"},
    )  # fmt: skip
    assert victim.exists() and ":done" not in done.stdout, done.stderr
    assert done.stdout.split()[0] == "open:refused" and len(done.stdout.split()) == 8


def test_a_worker_has_no_secrets_and_no_torch(
    worker: sandbox.Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert set(sandbox._environment()) <= {
        "LC_ALL", "LD_LIBRARY_PATH", "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "SYSTEMROOT",
        "MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_",
    }  # fmt: skip
    script = "import sys; import cytosae_core.cohort.decoder; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], cwd=sandbox.ROOT).returncode == 0


@pytest.mark.parametrize(
    ("signal_number", "reason"),
    [(signal.SIGKILL, "MEM_LIMIT"), (signal.SIGSEGV, "DECODE"), (signal.SIGXCPU, "CPU_LIMIT")],
)
def test_a_worker_that_dies_costs_one_image(signal_number: int, reason: str) -> None:
    pool = sandbox.Pool()
    try:
        assert pool.decode("PNG", png(), 100).size == (8, 8)
        (worker,) = pool._idle["image"]
        os.kill(worker._process.pid, signal.SIGSTOP)  # busy, then dead in the middle of an image
        threading.Timer(0.2, worker._process.send_signal, (signal_number,)).start()
        threading.Timer(0.3, worker._process.send_signal, (signal.SIGCONT,)).start()
        with pytest.raises(DataError) as caught:
            pool.decode("PNG", png(), 100)
        assert caught.value.reason == reason
        assert pool.decode("PNG", png(), 100).size == (8, 8) and pool._idle["image"] != [worker]
    finally:
        time.sleep(0.2)
        pool.close()


def test_a_silent_worker_is_ended_at_the_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sandbox, "DEADLINE_SECONDS", 0.3)
    pool = sandbox.Pool()
    try:
        worker = pool.take("image")
        pool.put(worker)
        os.kill(worker._process.pid, signal.SIGSTOP)
        start = time.monotonic()
        with pytest.raises(DataError) as caught:
            pool.decode("PNG", png(), 100)
        assert caught.value.reason == "CPU_LIMIT" and time.monotonic() - start < 5
        assert worker._process.poll() is not None
        monkeypatch.setattr(sandbox, "DEADLINE_SECONDS", 30.0)
        assert pool.decode("PNG", png(), 100).size == (8, 8)
    finally:
        pool.close()


def test_memory_beyond_the_limit_is_refused_and_the_next_image_is_read(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A limit on the worker from outside, as a busy machine would: the answer is a reason, not a hang."""
    import resource

    pool = sandbox.Pool()
    try:
        worker = pool.take("image")
        pool.put(worker)
        used = int(Path(f"/proc/{worker._process.pid}/statm").read_text().split()[0]) * 4096
        resource.prlimit(worker._process.pid, resource.RLIMIT_AS, (used + (8 << 20), used + (8 << 20)))
        noise = np.random.default_rng(0).integers(0, 255, (3000, 3000, 3), dtype=np.uint8)
        stream = io.BytesIO()
        Image.fromarray(noise).save(stream, "BMP")
        with pytest.raises(DataError) as caught:
            pool.decode("BMP", stream.getvalue(), 10_000_000)
        assert caught.value.reason == "MEM_LIMIT"
        assert np.array_equal(np.asarray(pool.decode("BMP", stream.getvalue(), 10_000_000)), noise)
    finally:
        pool.close()


def test_threads_have_workers_of_their_own(tmp_path: Path) -> None:
    pool = sandbox.Pool()
    found: list[tuple[int, int]] = []
    barrier = threading.Barrier(3)

    def read() -> None:
        barrier.wait()
        for size in range(1, 30):
            found.append((size, pool.decode("PNG", png(size), 1000).width))

    threads = [threading.Thread(target=read) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    try:
        assert len(found) == 87 and all(size == width for size, width in found)
        assert 1 <= len(pool._idle["image"]) <= 3
    finally:
        pool.close()


def test_a_worker_ends_with_its_parent() -> None:
    script = (
        "from cytosae_core.cohort import sandbox\n"
        "w = sandbox.POOL.take('image'); print(w._process.pid, flush=True)\n"
        "import os; os.kill(os.getpid(), 9)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=sandbox.ROOT)
    pid, until = int(done.stdout), time.monotonic() + 10
    while Path(f"/proc/{pid}/fd").exists() and time.monotonic() < until:
        state = Path(f"/proc/{pid}/stat")
        if not state.exists() or ") Z " in state.read_text():
            break
        time.sleep(0.05)
    assert time.monotonic() < until


def test_a_worker_that_cannot_start_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sandbox, "START", "import sys; sys.exit(3)")
    with pytest.raises(SetupError, match="decoder's process"):
        sandbox.Worker("image")


def test_a_worker_near_its_cpu_limit_is_replaced(worker: sandbox.Worker) -> None:
    assert worker.usable
    worker.cpu_seconds = 1e6
    assert not worker.usable


def test_a_forked_child_starts_its_own_worker_and_leaves_ours() -> None:
    script = (
        "import io, os\nfrom PIL import Image\nfrom cytosae_core.cohort import sandbox\n"
        "stream = io.BytesIO(); Image.new('RGB', (8, 8)).save(stream, 'PNG'); data = stream.getvalue()\n"
        "read = lambda: sandbox.decode_confined('PNG', data, 100)\n"
        "read(); (ours,) = sandbox.POOL._idle['image']\n"
        "child = os.fork()\n"
        "if child == 0:\n"
        "    read(); sandbox.POOL.close(); os._exit(0)\n"
        "assert os.waitpid(child, 0)[1] == 0\n"
        "read(); assert sandbox.POOL._idle['image'] == [ours]\n"
    )
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", script], cwd=sandbox.ROOT, capture_output=True
    )
    assert done.returncode == 0 and not done.stderr, done.stderr


@pytest.mark.parametrize("form", ["PNG", "JPEG", "BMP", "TIFF"])
def test_damaged_files_give_pixels_or_a_reason_and_never_anything_else(form: str) -> None:
    rng, stream = np.random.default_rng(7), io.BytesIO()
    Image.fromarray(NOISE[..., :3]).save(stream, form)
    whole, reasons = stream.getvalue(), set()
    for _ in range(200):
        data = bytearray(whole)
        for place in rng.integers(2, min(len(data), 600), rng.integers(1, 6)):
            data[place] = rng.integers(256)
        try:
            sandbox.decode_confined(form, bytes(data[: len(data) - int(rng.integers(3)) * 7]), 1_000_000)
        except DataError as error:
            reasons.add(error.reason)
    assert reasons and reasons <= set(WORDS) - {"CPU_LIMIT", "MEM_LIMIT"}
