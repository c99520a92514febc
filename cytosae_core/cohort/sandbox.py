"""Images are decoded in a process of their own, which has no network, no files and little memory (`confine.py`).

One worker per reading thread and kind, kept between images: starting one takes half a second, using it a tenth of
a millisecond. The file is opened and read here; the worker gets its bytes and gives back pixels or a word. Bytes and
pixels lie in memory that both share, which neither can resize; the pipes carry only sizes.
A worker that dies, or is silent for `DEADLINE_SECONDS`, costs that one image and is replaced.
"""

from __future__ import annotations

import atexit
import mmap
import os
import select
import struct
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from PIL import Image

from ..errors import DataError, SetupError
from ..limits import CPU_SECONDS_IN_ALL, DEADLINE_SECONDS, SHARED_BYTES
from .confine import PROTECTIONS
from .decoder import ANSWER, FORMATS, REQUEST
from .words import WORDS, refusal

ROOT = Path(__file__).resolve().parents[2]
# -I ignores PYTHONPATH and the current folder: the same package is imported from the same place, and what else this
# process can import comes after the worker's own path.
START = (
    "import sys; sys.path.insert(0, sys.argv[1]); import cytosae_core; sys.path.pop(0); "
    "sys.path += [p for p in sys.argv[4].split(chr(10)) if p and p not in sys.path]; "
    "from cytosae_core.cohort.decoder import main; main(sys.argv[2], int(sys.argv[3]))"
)
START_SECONDS = 60.0  # a cold disk may take long
KEEP_BYTES = 4 << 20  # shared memory that was used beyond this goes back to the system after an image
SIGXCPU = 24


@dataclass(frozen=True)
class Protection:
    """What keeps a hostile image from doing harm on this machine.

    Attributes:
        in_force: what the decoder's process could do without and has given up.
        missing: what this kernel or container did not grant.
    """

    in_force: tuple[str, ...]
    missing: tuple[str, ...]

    def __str__(self) -> str:
        text = "separate process: " + ", ".join(self.in_force)
        return f"{text}; not granted here: {', '.join(self.missing)}" if self.missing else text


class Worker:
    """One decoding process, two pipes to it and the memory that both see. Used by one thread at a time."""

    def __init__(self, kind: str) -> None:
        self.kind, self.cpu_seconds = kind, 0.0
        shared = _shared_file()
        self._memory = mmap.mmap(shared, SHARED_BYTES)
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-c", START, str(ROOT), kind, str(shared), "\n".join(sys.path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            bufsize=0,
            cwd="/",
            env=_environment(),
            pass_fds=(shared,),
        )
        os.close(shared)
        self._in, self._out = _descriptor(self._process.stdin), _descriptor(self._process.stdout)
        try:
            (bits,) = struct.unpack("<I", self._receive(4, time.monotonic() + START_SECONDS))
        except DataError:
            self.close()
            raise SetupError(
                "Expected the image decoder's process to start.",
                hint="Is there memory? Try: python -c 'import PIL, numpy'.",
            ) from None
        granted = [bool(bits >> bit & 1) for bit in range(len(PROTECTIONS))]
        self.protection = Protection(
            tuple(name for name, yes in zip(PROTECTIONS, granted, strict=True) if yes),
            tuple(name for name, yes in zip(PROTECTIONS, granted, strict=True) if not yes),
        )

    def decode(self, form: str, data: bytes, max_pixels: int) -> Image.Image:
        """The image in RGB; DataError with a reason."""
        if len(data) > SHARED_BYTES or max_pixels * 3 > SHARED_BYTES:
            raise refusal("FILE_LIMIT", max_bytes=SHARED_BYTES)
        until = time.monotonic() + DEADLINE_SECONDS
        self._memory[: len(data)] = data
        try:
            os.write(self._in, REQUEST.pack(FORMATS.index(form), max_pixels, len(data)))
        except OSError:
            raise self._dead() from None
        status, width, height, self.cpu_seconds = ANSWER.unpack(self._receive(ANSWER.size, until))
        if status:
            word = WORDS[status - 1] if status <= len(WORDS) else "DECODE"
            raise refusal(word, max_pixels=max_pixels, seconds=DEADLINE_SECONDS)
        if not 0 < width * height <= max_pixels:
            self.close()
            raise refusal("PIX_LIMIT", max_pixels=max_pixels)
        with memoryview(self._memory) as whole, whole[: width * height * 3] as pixels:
            image = Image.frombytes("RGB", (width, height), pixels)
        if max(len(data), width * height * 3) > KEEP_BYTES and hasattr(mmap, "MADV_REMOVE"):
            self._memory.madvise(mmap.MADV_REMOVE, KEEP_BYTES)
        return image

    @property
    def usable(self) -> bool:
        """Alive, and with CPU time left."""
        return self._process.poll() is None and self.cpu_seconds < CPU_SECONDS_IN_ALL / 2

    def close(self) -> None:
        """End the process; a second call does nothing."""
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                stream.close()
        self._memory.close()

    def disown(self) -> None:
        """Leave the process alone, in a child that was forked from its owner."""
        self._process.returncode = 0
        self.close()

    def _receive(self, length: int, until: float) -> bytes:
        poller, found = select.poll(), b""
        poller.register(self._out, select.POLLIN)
        while len(found) < length:
            if not poller.poll(max(0.0, until - time.monotonic()) * 1000):
                self.close()
                raise refusal("CPU_LIMIT", seconds=DEADLINE_SECONDS)
            part = os.read(self._out, length - len(found))
            if not part:
                raise self._dead()
            found += part
        return found

    def _dead(self) -> DataError:
        """What a death means: the kernel's CPU limit, or memory and everything else."""
        try:
            code = self._process.wait(5)
        except subprocess.TimeoutExpired:
            code = 0
        self.close()
        if code == -SIGXCPU:
            return refusal("CPU_LIMIT", seconds=DEADLINE_SECONDS)
        return refusal("MEM_LIMIT" if code == -9 else "DECODE")


class Pool:
    """Idle workers by kind. A thread takes one, or starts one, and puts it back if it is still good."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._idle: dict[str, list[Worker]] = {}

    def decode(self, form: str, data: bytes, max_pixels: int) -> Image.Image:
        """Decode in some worker: see `Worker.decode`."""
        worker = self.take("dicom" if form == "DICOM" else "image")
        try:
            return worker.decode(form, data, max_pixels)
        except DataError as error:
            if error.reason == "MEM_LIMIT":
                worker.close()
            raise
        except BaseException:  # interrupted half way through an answer
            worker.close()
            raise
        finally:
            self.put(worker)

    def take(self, kind: str) -> Worker:
        """A usable worker."""
        with self._lock:
            idle = self._idle.get(kind, [])
            worker = idle.pop() if idle else None
        if worker is not None and worker.usable:
            return worker
        if worker is not None:
            worker.close()
        return Worker(kind)

    def put(self, worker: Worker) -> None:
        """Keep a worker for the next image, unless it is used up."""
        if not worker.usable:
            worker.close()
            return
        with self._lock:
            self._idle.setdefault(worker.kind, []).append(worker)

    def close(self) -> None:
        """End all idle workers."""
        with self._lock:
            idle, self._idle = self._idle, {}
        for worker in (worker for workers in idle.values() for worker in workers):
            worker.close()

    def forget(self) -> None:
        """After a fork: the workers are the parent's. Our copies of their pipes would keep them alive."""
        for worker in (worker for workers in self._idle.values() for worker in workers):
            worker.disown()
        self.__init__()  # type: ignore[misc]


POOL = Pool()
atexit.register(POOL.close)
os.register_at_fork(after_in_child=POOL.forget)


def decode_confined(form: str, data: bytes, max_pixels: int) -> Image.Image:
    """An image file's bytes to RGB, in the decoder's process.

    Raises:
        DataError: with one of `words.WORDS` as its reason. SetupError: the process does not start.
    """
    if form == "DICOM" and find_spec("pydicom") is None:
        raise refusal("NO_DICOM")
    return POOL.decode(form, data, max_pixels)


def protection() -> Protection:
    """What is in force for the decoder on this machine."""
    worker = POOL.take("image")
    POOL.put(worker)
    return worker.protection


def _environment() -> dict[str, str]:
    """No secrets, no settings: where libraries are, and one thread."""
    kept = {name: os.environ[name] for name in ("LD_LIBRARY_PATH", "SYSTEMROOT") if name in os.environ}
    keep = {"MALLOC_TRIM_THRESHOLD_": "268435456", "MALLOC_MMAP_THRESHOLD_": "268435456"}  # a third less time
    return {**kept, **keep, "LC_ALL": "C.UTF-8", "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}


def _shared_file() -> int:
    """A nameless file in memory that nobody can resize: a worker that shrinks it would end this process."""
    if sys.platform == "linux":
        import fcntl

        descriptor = os.memfd_create("cytosae", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        os.ftruncate(descriptor, SHARED_BYTES)
        fcntl.fcntl(
            descriptor, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL
        )
        return descriptor
    with tempfile.TemporaryFile() as stream:
        stream.truncate(SHARED_BYTES)
        return os.dup(stream.fileno())


def _descriptor(stream: object) -> int:
    if stream is None:
        raise SetupError("Expected pipes to the image decoder's process.")
    return int(stream.fileno())  # type: ignore[attr-defined]
