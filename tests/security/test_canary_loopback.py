"""No raw image leaves: a whole study over loopback with secrets in pixels, metadata, names, ids and embeddings.

Everything is captured: the TCP traffic between coordinator and sites, what the coordinator decrypts and keeps, logs,
events, the report and the auditor's bundle. None of it may hold a secret in any form of `tests/needles.py`. Then the
same search must catch builds that leak on purpose, for every class of secret.
"""

from __future__ import annotations

import base64
import gzip
import io
import socket
import struct
import threading
import uuid
import zlib
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from cytosae_client import steps
from cytosae_client.events import Events
from cytosae_client.session import Session
from cytosae_client.site import Site
from cytosae_core.canonical import sha256_hex
from cytosae_core.cohort import read_cohort
from cytosae_core.config import (
    DictionaryConfig,
    EncoderConfig,
    RoundsConfig,
    StatisticsConfig,
    StudyConfig,
    TrainingConfig,
)
from cytosae_core.encoder import Encoder, build_store, load_encoder
from cytosae_core.keys import SigningKey
from cytosae_core.phantom import DEMO_SITES, PUBLIC_SITE, generate_site
from cytosae_core.policy import named_policy
from cytosae_core.report.build import build_report
from cytosae_core.sae.init import public_centroids
from cytosae_core.tensors import pack_tensors
from cytosae_server.bundle import bundle_files
from cytosae_server.coordinator import Coordinator
from cytosae_server.loop import CANARY_TOLERANCE, StudyRun
from cytosae_server.runfolder import RunFolder
from cytosae_server.study import write_report, write_study_folder
from cytosae_server.transport import LocalGrid
from tests.needles import Needles, add_text, add_values, add_windows, search

SECRET = uuid.UUID("4f6b0cde-5a6e-4d53-9d2f-0c7f7a3b9e11").hex
SITES, PATIENTS, ROWS = 2, 36, 64
FRAME = struct.Struct(">Q")


class Wire:
    """A site behind a TCP port on loopback that records every byte in both directions."""

    def __init__(self, handle: Callable[[bytes], bytes]) -> None:
        self.traffic: list[bytes] = []
        self._handle = handle
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def call(self, request: bytes) -> bytes:
        """What a transport does: one connection, one frame each way."""
        with socket.create_connection(self._listener.getsockname()) as link:
            link.sendall(FRAME.pack(len(request)) + request)
            return _read(link)

    def _serve(self) -> None:
        while True:
            link, _ = self._listener.accept()
            with link:
                request = _read(link)
                if request == b"end":
                    return
                reply = self._handle(request)
                self.traffic += [request, reply]
                link.sendall(FRAME.pack(len(reply)) + reply)

    def close(self) -> None:
        with socket.create_connection(self._listener.getsockname()) as link:
            link.sendall(FRAME.pack(3) + b"end")
        self._thread.join()
        self._listener.close()


def _read(link: socket.socket) -> bytes:
    def exactly(size: int) -> bytes:
        data = b""
        while len(data) < size:
            data += link.recv(min(1 << 20, size - len(data)))
        return data

    return exactly(FRAME.unpack(exactly(FRAME.size))[0])


def plant(folder: Path, index: int) -> None:
    """Secrets in names, ids, PNG text, EXIF and the lowest bits of every image."""
    lines = (folder / "labels.csv").read_text().splitlines()
    header = lines[0].split(",")
    image, patient = header.index("image"), header.index("patient")
    out = [lines[0]]
    secret = np.unpackbits(np.frombuffer(bytes.fromhex(SECRET), np.uint8))
    for number, line in enumerate(lines[1:]):
        cells = line.split(",")
        old = next(folder.rglob(cells[image]))
        cells[image] = f"{SECRET}-smear-{index}-{number}.png"
        cells[patient] = f"{SECRET}-{cells[patient]}"
        pixels = np.array(Image.open(old).convert("RGB"))
        flat = pixels.reshape(-1)
        flat[: len(secret)] = (flat[: len(secret)] & 0xFE) | secret
        text = PngInfo()
        text.add_text("PatientName", f"{SECRET} Doe")
        exif = Image.Exif()
        exif[0x010E] = f"{SECRET} described"
        Image.fromarray(pixels).save(old.parent / cells[image], pnginfo=text, exif=exif)
        old.unlink()
        out.append(",".join(cells))
    (folder / "labels.csv").write_text("\n".join(out) + "\n")


@dataclass
class Secrets:
    """Planted sites, ready for any number of studies."""

    sites: dict[str, Site]
    study: StudyConfig
    start: dict[str, np.ndarray]
    needles: Needles
    samples: dict[str, bytes] = field(default_factory=dict)


@pytest.fixture(scope="module")
def secrets(tmp_path_factory: pytest.TempPathFactory) -> Secrets:
    home = tmp_path_factory.mktemp(f"{SECRET}-hospital")
    encoder = load_encoder("dinov2-s-demo", layer=2, steps=("reinhard", "cell-mask"))
    sites, needles, samples = {}, Needles(), dict[str, bytes]()
    for index, phantom in enumerate(DEMO_SITES[:SITES]):
        folder = home / phantom.name
        generate_site(folder, phantom, patients=PATIENTS, cells_per_patient=1, seed=index)
        plant(folder, index)
        cohort = read_cohort(folder, name=phantom.name)
        store = build_store(cohort, encoder, home / "stores" / phantom.name)
        site = Site.of(cohort, store, named_policy("masked"), home / "homes" / phantom.name, simulation=True)
        sites[phantom.name] = site
        gather(needles, samples, folder, site)
    add_text(needles, "text", SECRET)
    add_text(needles, "path", str(home))
    needles.freeze()
    start = start_of(home / "open", encoder)
    return Secrets(sites, study_of(sites, start), start, needles, samples)


def gather(needles: Needles, samples: dict[str, bytes], folder: Path, site: Site) -> None:
    """Needles of every image and token of a site; a sample of each class for the positive controls."""
    for path in sorted(folder.rglob("*.png")):
        add_windows(needles, "file", path.read_bytes()[200:], 48, 509)
        picture = Image.open(path).convert("RGB")
        for pixels in (np.array(picture), np.array(picture.resize((224, 224), Image.Resampling.BILINEAR))):
            add_windows(needles, "pixels", pixels.tobytes(), 48, 1501)
            ratio = (pixels.reshape(-1)[: 1 << 16] / np.float32(255)).astype(np.float32)
            add_windows(needles, "pixels as float", ratio.tobytes(), 64, 4096)
        samples.setdefault("file", path.read_bytes()[200:2000])
        samples.setdefault("pixels", np.array(picture).tobytes()[:9000])
    tokens = site.store.tokens(0, site.store.n_images).astype(np.float32)
    mean, scale = tokens.mean(axis=(0, 1)), tokens.std()
    chosen = tokens[:, ::8].reshape(-1, site.store.d)
    add_values(needles, "token", chosen)
    add_values(needles, "centred token", ((chosen - mean) / scale)[::4])
    samples.setdefault("token float16", tokens[0, 0].astype(np.float16).tobytes())
    samples.setdefault("token float32", tokens[0, 0].tobytes())
    samples.setdefault("token float64", tokens[0, 0].astype(np.float64).tobytes())
    samples.setdefault("text", f"id {SECRET} end".encode())


def start_of(folder: Path, encoder: Encoder) -> dict[str, np.ndarray]:
    """Centroids of a public corpus, which is no secret."""
    generate_site(folder, PUBLIC_SITE, patients=24, cells_per_patient=1, seed=9)
    store = build_store(read_cohort(folder, name="public"), encoder, folder / "store")
    rng = np.random.default_rng(0)
    tokens = store.gather(rng.integers(store.n_images, size=4000), rng.integers(257, size=4000))
    return {"centroids": public_centroids(tokens, ROWS, seed=0)}


def study_of(sites: dict[str, Site], start: dict[str, np.ndarray]) -> StudyConfig:
    store = next(iter(sites.values())).store
    return StudyConfig(
        name="canary",
        sites=tuple(sorted(sites)),
        simulation=True,
        encoder=EncoderConfig(layer=2, digest=store.encoder_digest),
        dictionary=DictionaryConfig(n=ROWS, k=8, digest=sha256_hex(pack_tensors(start))),
        training=TrainingConfig(rounds=2, local_steps=4, batch_tokens=256),
        rounds=RoundsConfig(quorum=1, deadline_s=120.0, retries=0),
        statistics=StatisticsConfig(classes=("lymphocyte", "neutrophil"), eval_tokens=1024),
    )


def run(
    secrets: Secrets, home: Path, leak: Callable[[bytes], bytes] = lambda reply: reply
) -> Iterator[tuple[str, bytes]]:
    """A study to its bundle; everything that left, by name. `leak` is a build that does something to its replies."""
    events: list[str] = []
    sites = {name: replace(site, state=home / "states" / name) for name, site in secrets.sites.items()}
    key = SigningKey.load_or_create(home / "study.key")
    sessions = {
        name: Session(
            site, secrets.study, key.public_hex, Events(lambda event: events.append(event.to_json()))
        )
        for name, site in sites.items()
    }
    wires = {name: Wire(lambda request, one=one: leak(one.handle(request))) for name, one in sessions.items()}
    keys = {name: site.key.public_hex for name, site in sites.items()}
    write_study_folder(home, secrets.study, secrets.start, keys, key.public_hex)
    try:
        with closing(LocalGrid({name: wire.call for name, wire in wires.items()})) as grid:
            one = StudyRun(
                Coordinator(secrets.study, key, keys),
                grid,
                RunFolder(home / "run", secrets.study),
                secrets.start,
            )
            try:
                report = build_report(secrets.study, one.run(), None, canary_tolerance=CANARY_TOLERANCE)
                one.close(*write_report(home, dict(report)))
            finally:
                one.record.close()
    except Exception as error:  # a leaking build may be refused: what left has left
        yield "error", str(error).encode()
    finally:
        for wire in wires.values():
            wire.close()
        for session in sessions.values():
            session.close()
    for name, wire in wires.items():
        for number, data in enumerate(wire.traffic):
            yield f"traffic {name} {number}", data
    yield "events", "\n".join(events).encode()
    for path in sorted([*(home / "run").rglob("*"), *home.glob("report.*"), *home.glob("study*")]):
        if path.is_file() and path.suffix != ".key":
            yield str(path.relative_to(home)), path.read_bytes()
    if (home / "report.json").exists():
        yield from ((f"bundle {name}", data) for name, data in bundle_files(home).items())


def test_a_whole_study_gives_no_secret_away(
    secrets: Secrets, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    captured = dict(run(secrets, tmp_path / "plain"))
    said = capsys.readouterr()
    captured["stdout and stderr"] = (said.out + said.err).encode()
    assert "error" not in captured, captured["error"]
    assert any(name.startswith("bundle payloads/") for name in captured)  # it went to its end
    assert sum(map(len, captured.values())) > 1_000_000 and len(secrets.needles.by_bytes) > 50_000
    assert search(secrets.needles, captured.items()) == {}


WRAPS: dict[str, Callable[[bytes], bytes]] = {
    "raw": lambda data: data,
    "base64": base64.b64encode,
    "base64 shifted": lambda data: base64.urlsafe_b64encode(b"x" + data),
    "hex": lambda data: data.hex().encode(),
    "zlib": zlib.compress,
    "gzip of base64": lambda data: gzip.compress(base64.b64encode(data)),
    "base64 of zlib of hex": lambda data: base64.b64encode(zlib.compress(data.hex().encode())),
}
CLASSES = ("text", "file", "pixels", "token float16", "token float32", "token float64")


@pytest.mark.parametrize("wrap", WRAPS)
@pytest.mark.parametrize("kind", CLASSES)
def test_positive_control_the_search_finds_every_class_in_every_form(
    secrets: Secrets, kind: str, wrap: str
) -> None:
    noise = np.random.default_rng(3).bytes(5001)
    hidden = noise + b"\n" + WRAPS[wrap](secrets.samples[kind]) + b"\n" + noise
    assert kind in secrets.needles.find(hidden)
    assert secrets.needles.find(noise + WRAPS[wrap](noise) + noise) == set()


@pytest.mark.parametrize("kind", ["text", "pixels", "token float32"])
def test_positive_control_a_build_that_appends_to_its_replies_is_caught(
    secrets: Secrets, tmp_path: Path, kind: str
) -> None:
    captured = run(secrets, tmp_path, lambda reply: reply + zlib.compress(secrets.samples[kind]))
    found = search(secrets.needles, (item for item in captured if item[0].startswith("traffic")))
    assert any(kind in classes for classes in found.values())


def test_positive_control_a_build_that_hides_tokens_in_its_update_is_caught(
    secrets: Secrets, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Through the product's own path: rows of `delta` are tokens, and the attack that would stop them is off."""
    honest = steps.mask_update
    token = np.frombuffer(secrets.samples["token float16"], np.float16)

    def leaking(*arguments: object, **named: object) -> object:
        update = honest(*arguments, **named)  # type: ignore[arg-type]
        rows = update.delta.clone()
        rows[update.units > 0] = steps.torch.from_numpy(token.copy())
        return replace(update, delta=rows)

    monkeypatch.setattr(steps, "mask_update", leaking)
    monkeypatch.setattr(steps, "_leakage", lambda attacker: None)
    found = search(secrets.needles, run(secrets, tmp_path))
    assert any("token float16" in classes for name, classes in found.items() if "payloads" in name)


def test_the_door_itself_stops_a_build_that_sends_its_training_tokens(
    secrets: Secrets, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the self-attack on, an update of this round's own tokens is blocked; no token is in anything captured."""
    honest = steps.mask_update

    def leaking(*arguments: object, **named: object) -> object:
        update = honest(*arguments, **named)  # type: ignore[arg-type]
        released = update.units > 0
        rows = update.delta.clone()
        rows[released] = arguments[5][: int(released.sum())].to(rows.dtype)  # type: ignore[index]
        return replace(update, delta=rows)

    monkeypatch.setattr(steps, "mask_update", leaking)
    captured = dict(run(secrets, tmp_path))
    assert b"quorum" in captured["error"] and b'"reason": "SELF_ATTACK"' in captured["events"]
    assert search(secrets.needles, captured.items()) == {}


def test_images_and_tables_really_hold_the_secrets(secrets: Secrets) -> None:
    """The planted secrets are where a site reads: a study without them would prove nothing."""
    assert all(SECRET in unit for site in secrets.sites.values() for unit in site.units)
    data = secrets.samples["file"]
    assert secrets.needles.find(data) >= {"file"} and io.BytesIO(data).read(4)
