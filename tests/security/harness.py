"""What a row of the table runs against: a site's folder with a canary in every place, its commands and its session.

`Case.leaving` collects every byte that would leave: sealed replies, what they hold when opened, the site's log
entries, typed events, and the codes of errors. `Case.verdict` looks for the canary in all of them, as text, hex,
base64 and compressed, and in whatever was left in the folder for temporary files.
"""

from __future__ import annotations

import base64
import json
import uuid
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from cytosae_client.events import Event, Events
from cytosae_client.site import Site
from cytosae_core.canonical import sha256_hex
from cytosae_core.cohort import read_cohort
from cytosae_core.encoder import TokenStore, build_store
from cytosae_core.envelope import REPLY, unpack
from cytosae_core.errors import WIRE_CODES, CytosaeError
from cytosae_core.sealed import LOG_LABEL, REPLY_LABEL, split_wire
from cytosae_local.cli import main
from cytosae_server.desk import Ask
from tests.federation import ENCODER_DIGEST, MASKED, D, Federation, study_config

GOOD = 10
HELLO = Ask("hello", 0, {}, {})


class TinyEncoder:
    """Tokens from an image's own pixels, without a transformer: what is in the image is in the tokens."""

    d, digest = D, ENCODER_DIGEST

    def pixels(self, image: Image.Image) -> np.ndarray:
        return np.asarray(image.resize((224, 224)), dtype=np.uint8)

    def mask_of(self, pixels: np.ndarray) -> np.ndarray:
        return np.arange(257) > 0

    def encode(self, images: torch.Tensor) -> torch.Tensor:
        grid = torch.nn.functional.avg_pool2d(images, 14).flatten(2).transpose(1, 2)  # [b, 256, 3]
        tokens = torch.cat([grid.mean(1, keepdim=True), grid], 1)
        return tokens.repeat(1, 1, 6)[..., :D]

    def canary(self) -> np.ndarray:
        return np.linspace(-1, 1, 8 * D, dtype=np.float32).reshape(8, D)


def cell(canary: str, seed: int = 0, size: int = 40) -> Image.Image:
    """Noise whose lowest bits spell the canary."""
    values = np.random.default_rng(seed).integers(0, 255, (size, size, 3), dtype=np.uint8)
    bits = np.unpackbits(np.frombuffer(canary.encode(), np.uint8))
    flat = values.reshape(-1)
    flat[: len(bits)] = flat[: len(bits)] & 0xFE | bits
    return Image.fromarray(values)


@dataclass
class Case:
    """One row at work."""

    home: Path
    patch: pytest.MonkeyPatch
    output: pytest.CaptureFixture[str]
    logs: pytest.LogCaptureFixture
    canary: str = field(default_factory=lambda: f"CANARY-{uuid.uuid4()}")
    leaving: list[bytes] = field(default_factory=list)
    events: list[Event] = field(default_factory=list)
    federation: Federation | None = None
    runs: int = 0

    def folder(
        self, bad: Mapping[str, bytes] | None = None, *, good: int = GOOD, rows: str = "", header: str = ""
    ) -> Path:
        """A site's data: good cells of as many patients, and the bad files, all listed in labels.csv."""
        data = self.home / "data"
        (data / "images").mkdir(parents=True, exist_ok=True)
        lines = [header or "image,label,patient,note"]
        for index in range(good):
            name = f"{self.canary}-{index}.png"
            cell(self.canary, index).save(data / "images" / name)
            lines.append(
                f"{name},{('lymphocyte', 'monocyte')[index % 2]},{self.canary}-p{index},{self.canary}"
            )
        for index, (name, content) in enumerate((bad or {}).items()):
            (data / "images" / name).write_bytes(content)
            lines.append(f"{name},monocyte,{self.canary}-bad{index},{self.canary}")
        (data / "labels.csv").write_text("\n".join(lines) + "\n" + rows)
        return data

    def check(self, data: Path) -> tuple[int, dict[str, Any]]:
        """Exit code and result of `cytosae site check`."""
        self.output.readouterr()
        code = main(["site", "check", str(data), "--json"])
        told = self.output.readouterr()
        return code, json.loads(told.out) if told.out.startswith("{") else {"error": told.err}

    def leave(self, data: Path) -> TokenStore:
        """Everything up to bytes that leave: token store, session, a signed request, its sealed reply."""
        cohort = read_cohort(data, name="site-0")
        self.runs += 1
        home = self.home / f"run-{self.runs}"
        store = build_store(cohort, TinyEncoder(), home / "store")
        study = study_config(2)
        federation = Federation(home / "federation", study)
        self.federation = federation
        site = Site.of(cohort, store, MASKED, home / "site", simulation=True)
        federation.sites["site-0"] = site
        from cytosae_client.session import Session

        federation.sessions["site-0"].close()
        session = Session(site, study, federation.key.public_hex, Events(self.events.append))
        federation.sessions["site-0"] = session
        request, sent = federation.desk.request("site-0", HELLO)
        reply = session.handle(request)
        assert reply, self.events
        box, log = split_wire(reply)
        digest = sha256_hex(request)
        payload = sent.reply_key.open_box(box, REPLY_LABEL, digest)
        section = sent.reply_key.open_box(log, LOG_LABEL, digest)
        opened = unpack(payload, REPLY, site.key.public_hex)
        assert opened.header["status"] == "ok", self.events
        self.leaving += [reply, payload, section, opened.body, json.dumps(opened.header).encode()]
        session.close()
        federation.sessions["site-1"].close()
        return store

    def refused(self, reasons: str, call: Callable[[], object]) -> CytosaeError:
        """`call` raises an error of ours with one of `reasons`; what of it may leave is kept."""
        with pytest.raises(CytosaeError) as caught:
            call()
        error = caught.value
        assert error.reason in reasons.split("|"), f"{error.reason}: {error}"
        assert error.code in WIRE_CODES
        Events(self.events.append)("refused", kind="round", error=error)
        self.leaving.append(error.code.encode())
        return error

    def image(self, name: str, content: bytes, reason: str) -> None:
        """One bad image among good ones: counted with its reason, exit not 0, left out of the store, and silent."""
        data = self.folder({name: content})
        code, found = self.check(data)
        assert code == 1 and found.get("reasons") == {reason: 1}, found
        store = self.leave(data)
        assert (store.n_images, len(store.failed)) == (GOOD, 1)

    def table(self, data: Path, reason: str) -> None:
        """The whole folder is refused: by the check, and by whatever reads it to serve."""
        code, found = self.check(data)
        assert code == 1 and "error" in found, found
        self.refused(reason, lambda: read_cohort(data))

    def fine(self, name: str, content: bytes) -> Image.Image:
        """The file is read, by definition; its pixels for a comparison. What is beside pixels stays behind."""
        from cytosae_core.cohort import open_rgb

        data = self.folder({name: content})
        code, found = self.check(data)
        assert code == 0 and found["unreadable"] == 0, found
        assert self.leave(data).n_images == GOOD + 1
        return open_rgb(read_cohort(data).images[-1])

    def verdict(self, scratch: Path) -> None:
        """No canary in what leaves, in logs, or in temporary files."""
        self.leaving += [event.to_json().encode() for event in self.events]
        self.leaving.append("\n".join(record.getMessage() for record in self.logs.records).encode())
        for data in self.leaving:
            assert not carries(data, self.canary)
        left = [path for path in scratch.rglob("*") if path.is_file()]
        assert left == []


def carries(data: bytes, canary: str) -> bool:
    """Whether bytes hold the canary: as text in three encodings, hex, base64 at any offset, or inside zlib data."""
    raw = canary.encode()
    needles = [raw, raw.hex().encode(), canary.encode("utf-16-le"), *_base64(raw)]
    if any(needle in data for needle in needles):
        return True
    at = data.find(b"\x78")
    while at >= 0:
        try:
            if raw in zlib.decompressobj().decompress(data[at:], 1 << 20):
                return True
        except zlib.error:
            pass
        at = data.find(b"\x78", at + 1)
    return False


def _base64(raw: bytes) -> list[bytes]:
    """The middle of the canary's base64 at each of the three offsets."""
    return [base64.b64encode(b"\0" * shift + raw)[4:-4] for shift in range(3)]
