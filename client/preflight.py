"""`cytosae site check DATA` in a site's home: everything that a round needs, tried before the study does.

Each row says what was looked at, what was found and, where it fails, what to do. It may be run as often as one likes:
keys, cells that are embedded already and everything else stay.
"""

from __future__ import annotations

import os
import platform
import resource
import shutil
import ssl
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from cryptography import x509

from cytosae_core.canonical import parse_json, sha256_file
from cytosae_core.cohort import Cohort, check_cohort, read_cohort
from cytosae_core.cohort.cells import SUFFIXES
from cytosae_core.cohort.check import MIN_UNITS
from cytosae_core.config import StudyConfig
from cytosae_core.encoder import Encoder, load_encoder
from cytosae_core.errors import CytosaeError, SetupError
from cytosae_core.policy import load_signed, tightened
from cytosae_core.sae.checkpoint import load_checkpoint

from .facts import software_version
from .home import Home
from .join import ask, fetch_start
from .preview import Preview
from .progress import progress
from .serve import make_site

OK, WARN, FAIL = "ok", "WARN", "FAIL"
CLOCK_S, CERTIFICATE_DAYS, RENEWED_DAYS = 60.0, 3.0, 60.0
FREE_BYTES, MEMORY_BYTES, TOKENS_PER_CELL = 2 << 30, 4 << 30, 257
CANARY_TOLERANCE = 2e-3  # what the coordinator drops a site for (server/loop.py)
Json = dict[str, Any]
Look = Callable[[], "Row"]


@dataclass(frozen=True)
class Row:
    """One line of the preflight. `fix`: what to do when it is not ok."""

    name: str
    state: str
    found: str
    fix: str = ""


@dataclass
class Preflight:
    """The checks of one site's home on one folder of images.

    Args:
        home: made by `site join`. data: folder of images and table.
        options: `weights` and `preset` of the data and encoder, where needed.
        quick: leave out the encoder, embedding and the dry round.
    """

    home: Home
    data: Path
    weights: Path | None = None
    preset: str | None = None
    quick: bool = False
    dry: Json = field(default_factory=dict)
    _cohort: Cohort | None = None

    @property
    def study(self) -> StudyConfig:
        """The protocol."""
        return self.home.invite.config

    @property
    def _offline(self) -> bool:
        return bool(self.home.facts.get("offline"))

    def rows(self) -> Iterator[Row]:
        """All rows, each as soon as it is known; DATA is remembered when none failed."""
        looks: list[tuple[str, Look]] = [
            ("software", self._software), ("disk", self._disk), ("memory", self._memory),
            ("processor", self._processor), ("coordinator", self._coordinator), ("clock", self._clock),
            ("confirmation", self._confirmation), ("study", self._study), ("policy", self._policy),
            ("images", self._images),
        ]  # fmt: skip
        if not self.quick:
            looks += [("encoder", self._encoder), ("dry round", self._dry_round)]
        failed = False
        for name, look in looks:
            row = _looked(name, look, stop=failed and name in ("encoder", "dry round"))
            failed |= row.state == FAIL
            yield row
        if not failed:
            weights = str(self.weights.resolve()) if self.weights else None
            self.home.keep(data=str(self.data.resolve()), preset=self.preset, weights=weights)

    # The machine

    def _software(self) -> Row:
        import torch

        versions = f"Python {platform.python_version()}, torch {torch.__version__}"
        return Row("software", OK, f"cytosae-federation {software_version()}, {versions}")

    def _disk(self) -> Row:
        free = shutil.disk_usage(self.home.folder).free
        need = FREE_BYTES + self._store_bytes()
        found = f"{_size(free)} free, about {_size(need)} needed"
        return Row(
            "disk", OK if free >= need else FAIL, found, "Free space, or `site join --home` on another disk."
        )

    def _store_bytes(self) -> int:
        cells = sum(path.suffix.lower() in SUFFIXES for path in self.data.rglob("*"))
        return cells * TOKENS_PER_CELL * self.study.encoder.d * 2  # float16

    def _memory(self) -> Row:
        free = _available_memory()
        return Row(
            "memory", OK if free >= MEMORY_BYTES else WARN, f"{_size(free)} available, {_size(MEMORY_BYTES)} wanted",
            "Close other programs, or expect slow rounds.",
        )  # fmt: skip

    def _processor(self) -> Row:
        import torch

        gpu = torch.cuda.get_device_name(0) if torch.cuda.is_available() else "no GPU (not needed)"
        return Row("processor", OK, f"{os.cpu_count()} cores, {gpu}")

    # The other side

    def _coordinator(self) -> Row:
        if self._offline:
            return Row("coordinator", OK, "not asked: messages go by files")
        status, body, _ = ask(self.home, "GET", "/healthz")
        if status != 200 or parse_json(body).get("protocol") != self.study.digest:
            raise SetupError(
                "Expected this study at the coordinator's address.",
                hint="Ask the coordinator for a new invite.",
            )
        return Row(
            "coordinator", OK, f"{self.home.facts['endpoint']} answers with the study's own certificate"
        )

    def _clock(self) -> Row:
        if self._offline:
            now = datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
            return Row("clock", WARN, f"{now} here; not compared without a network", "Compare it by phone.")
        date = ask(self.home, "GET", "/healthz")[2]
        off = abs((parsedate_to_datetime(date) - datetime.now(UTC)).total_seconds())
        found = f"{off:.0f} s off the coordinator's, {CLOCK_S:.0f} s allowed"
        return Row("clock", OK if off <= CLOCK_S else FAIL, found, "Switch time synchronisation (NTP) on.")

    def _confirmation(self) -> Row:
        if not self.home.confirmed and not self._offline:
            take_confirmation(self.home)
        if not self.home.confirmed:
            return Row(
                "confirmation", WARN, "the coordinator has not confirmed this site yet",
                "Read your fingerprint to the coordinator by phone; `site serve` waits for it.",
            )  # fmt: skip
        left = days_left(self.home.keys / "client.crt")
        if left < RENEWED_DAYS and not self._offline:
            take_confirmation(self.home)  # the coordinator may have a newer one
            left = days_left(self.home.keys / "client.crt")
        found = f"confirmed, certificate good for {left:.0f} days"
        return Row("confirmation", OK if left > CERTIFICATE_DAYS else FAIL, found, "Ask for a new invite.")

    def _study(self) -> Row:
        if not self._offline:
            fetch_start(self.home)
        start, digest = self.home.folder / "start.safetensors", self.home.invite.start_sha256
        if digest and not start.exists():
            raise SetupError("Expected the study's start file.", hint="cytosae site import start.safetensors")
        if digest and sha256_file(start) != digest:
            raise SetupError(
                "Expected the start file that the protocol names.", hint="Delete it and check again."
            )
        facts = f"{self.study.name}: {self.study.kind}, {len(self.study.sites)} sites, profile {self.study.profile}"
        return Row("study", OK, f"{facts}; signed protocol {self.study.digest[:12]}")

    def _policy(self) -> Row:
        policy = load_signed(self.home.folder / "site-policy.yaml", self.home.agent)
        tightened(policy, self.study)
        policy.check_simulation(self.study.simulation)
        found = (
            f"{policy.name}, signed, good until {policy.valid_until}; an officer approves: {policy.approval}"
        )
        if (self.home.folder / "officer.key").exists():
            return Row(
                "policy", WARN, found, "Give officer.key to your egress officer and remove it from this machine.",
            )  # fmt: skip
        return Row("policy", OK, found)

    # The cells

    def _images(self) -> Row:
        self._cohort = read_cohort(self.data, name=self.home.facts["site"], preset=self.preset)
        with progress("checking images") as tick:
            result = check_cohort(self._cohort, progress=tick)
        found = (
            f"{result.images} images of {result.units} {result.unit} units, {result.unreadable} unreadable"
        )
        # below MIN_UNITS a class is among `problems` already
        low = [name for name, n in result.units_per_class.items() if MIN_UNITS <= n < self.study.min_units]
        if not result.usable:
            return Row(
                "images", FAIL, found, "; ".join(result.problems) or "Look at the files that were named."
            )
        if result.problems or low:
            said = [*result.problems, *([f"too few units to speak of: {', '.join(low)}"] if low else [])]
            return Row("images", WARN, found, "; ".join(said))
        return Row("images", OK, found)

    def _encoder(self) -> Row:
        from cytosae_core.encoder.golden import check_golden, golden_features

        encoder = self._load()
        asked = self.study.encoder.digest
        if asked and encoder.digest != asked:
            raise SetupError("Expected the encoder that the protocol names.", hint="Check --weights with IT.")
        result = check_golden(encoder, golden_features(encoder))
        name = f"{encoder.name}, block {self.study.encoder.layer}"
        if result.max_relative is None:
            return Row(
                "encoder", OK, f"{name}; no golden values stored for it, sites are compared in round 0"
            )
        good = result.max_relative <= CANARY_TOLERANCE
        found = f"{name}; golden cells differ by {result.max_relative:.1e}, {CANARY_TOLERANCE:g} allowed"
        return Row("encoder", OK if good else FAIL, found, "Install the versions of constraints.txt.")

    def _load(self) -> Encoder:
        asked = self.study.encoder
        return load_encoder(asked.name, self.weights, layer=asked.layer or None, steps=asked.steps)

    def _dry_round(self) -> Row:
        site, study = make_site(agent_options(self.home, self.data, self.weights, self.preset), os.getuid())
        digest = self.home.invite.start_sha256
        start = load_checkpoint(self.home.folder / "start", sha256=digest).tensors if digest else {}
        begun = time.monotonic()
        with progress("dry round") as tick:
            self.dry = Preview(site, study, start).run(tick)
        seconds = time.monotonic() - begun
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        self.dry |= {"seconds": round(seconds, 2), "peak_bytes": peak}
        stopped = self.dry["stopped"]
        if stopped:
            return Row(
                "dry round",
                FAIL,
                f"the door stopped {stopped['kind']}: {stopped['why']}",
                "See docs/policy.md.",
            )
        out = sum(message["bytes"] for message in self.dry["messages"])
        found = f"{len(self.dry['messages'])} messages of {_size(out)} would leave"
        return Row("dry round", OK, f"{found}; it took {seconds:.1f} s and {_size(peak)} of memory")


def agent_options(home: Home, data: Path, weights: Path | None, preset: str | None) -> Any:
    """The options of `cytosae site agent` for this home (client/cli.py)."""
    start = home.folder / "start.safetensors"
    return SimpleNamespace(
        study=home.folder / "study.yaml", name=home.facts["site"], policy=str(home.folder / "site-policy.yaml"),
        home=home.agent, simulation=home.invite.config.simulation, weights=weights, data=data, preset=preset,
        start=start if start.exists() else None, study_key=home.invite.study_key, ledger=home.ledger,
    )  # fmt: skip


def take_confirmation(home: Home) -> bool:
    """Ask for the coordinator's confirmation once; whether it is here now.

    Raises:
        SetupError: not reachable. VerificationError: what came is not this study's confirmation of this site.
    """
    status, body, _ = ask(home, "GET", f"/enrol/{home.facts['site']}")
    if status == 200:
        home.take_confirmation(body)
    return home.confirmed


def days_left(path: Path) -> float:
    """Days until a certificate ends."""
    found = x509.load_pem_x509_certificate(path.read_bytes())
    return (found.not_valid_after_utc - datetime.now(UTC)).total_seconds() / 86400


def _looked(name: str, look: Look, *, stop: bool) -> Row:
    """A row, or the error that came instead of it."""
    if stop:
        return Row(name, FAIL, "not looked at", "Mend the rows above first.")
    try:
        return look()
    except CytosaeError as error:
        return Row(name, FAIL, error.args[0], error.hint)
    except MemoryError:
        return Row(name, FAIL, "the memory did not suffice", "Close other programs; see docs/operations.md.")
    except (OSError, ssl.SSLError) as error:
        return Row(
            name, FAIL, f"the system refused: {error.strerror}", "Ask IT about this folder's disk and rights."
        )


def _available_memory() -> int:
    """Bytes that programs can still take; all of it where the system does not say."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable"))
    except (OSError, StopIteration, ValueError):
        return int(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))


def _size(count: float) -> str:
    for unit in ("B", "KB", "MB", "GB"):
        if count < 1000 or unit == "GB":
            break
        count /= 1000
    return f"{count:.0f} {unit}" if unit in ("B", "KB") else f"{count:.1f} {unit}"
