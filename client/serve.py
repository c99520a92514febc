"""Start an agent: read the cohort, make the token store, open the socket, answer until SIGTERM."""

from __future__ import annotations

import argparse
import os
import sys
from dataclasses import replace
from pathlib import Path

from cytosae_core.cohort import read_cohort
from cytosae_core.config import StudyConfig, load_yaml, study_from_dict
from cytosae_core.encoder import build_store, load_encoder
from cytosae_core.errors import SetupError
from cytosae_core.keys import fingerprint
from cytosae_core.policy import POLICIES, SitePolicy, load_signed, named_policy
from cytosae_core.sae.checkpoint import load_checkpoint

from .agent import AgentServer, forbid_memory_reads
from .events import Events
from .progress import progress
from .session import Session
from .site import Site
from .withdraw import Withdrawn

MAX_REQUEST_BYTES = 1 << 30
REQUEST_DEADLINE_S = 120.0  # for a request to arrive, and for its reply to be taken; work may take longer


def say(text: str) -> None:
    """One line for the person at the terminal, on standard error. The log proper is `Events`."""
    print(f"site: {text}", file=sys.stderr, flush=True)


def serve_agent(options: argparse.Namespace, relay_uid: int) -> int:
    """Serve until stopped. Prints what local staff must know: key fingerprint, isolation, images."""
    forbid_memory_reads()
    events = Events()
    site, study = make_site(options, relay_uid)
    if options.start:
        start = load_checkpoint(options.start, sha256=study.dictionary.digest).tensors
        site = replace(site, start=start)
    session = Session(site, study, public_key(options.study_key), events)
    say(f"key fingerprint {fingerprint(site.key.public_hex)} (read it to the coordinator by phone)")
    if site.relay_isolation == "none":
        events("isolation_none")
        say("WARNING relay isolation: none. Agent and relay share one user: for development only.")
    server = AgentServer(
        options.socket,
        session.handle,
        allowed_uids=frozenset({relay_uid}),
        max_request_bytes=MAX_REQUEST_BYTES,
        request_deadline_s=REQUEST_DEADLINE_S,
    )
    events("serving", images=site.store.n_images, units=len(set(site.units)))
    say(f"serving {site.store.n_images} images of {len(set(site.units))} {site.unit} units")
    try:
        server.serve_forever()
    finally:
        session.close()
    return 0


def make_site(options: argparse.Namespace, relay_uid: int) -> tuple[Site, StudyConfig]:
    """Cohort (without who left), token store, policy and key from the command's options."""
    values = load_yaml(options.study)
    values.pop("local", None)
    study = study_from_dict(values)
    if options.name not in study.sites:
        raise SetupError(f"Expected --name in {study.sites}, got {options.name}.")
    policy = site_policy(options.policy, options.home, options.simulation)
    encoder = load_encoder(
        study.encoder.name, options.weights, layer=study.encoder.layer or None, steps=study.encoder.steps
    )
    if study.encoder.digest and encoder.digest != study.encoder.digest:
        raise SetupError(
            "Expected the encoder that the protocol names by digest.", hint="Check --weights with IT."
        )
    cohort = read_cohort(options.data, name=options.name, preset=options.preset)
    cohort = Withdrawn(options.home).keep(cohort)
    with progress("embedding cells") as tick:
        store = build_store(cohort, encoder, options.home / "store", progress=tick)
    isolation = "none" if relay_uid == os.getuid() else "user"
    site = Site.of(
        cohort, store, policy, options.home, simulation=options.simulation, relay_isolation=isolation,
        ledger=getattr(options, "ledger", None),
    )  # fmt: skip
    return site, study


def site_policy(text: str, home: Path, simulation: bool) -> SitePolicy:
    """A built-in policy by name (simulations only, nobody signed it), or a signed policy file.

    Raises:
        SetupError: an unsigned or changed file, a built-in policy outside a simulation.
    """
    if text in POLICIES:
        if not simulation:
            raise SetupError(
                f"Expected a signed policy file, got the built-in policy {text}.",
                hint="cytosae site policy new FILE --site NAME, then cytosae site policy sign FILE --key KEY.",
                code="policy", reason="POLICY",
            )  # fmt: skip
        return named_policy(text)
    return load_signed(Path(text), home)


def public_key(text: str) -> str:
    """64 hex digits, given or in a file."""
    value = Path(text).read_text().strip() if len(text) != 64 and Path(text).is_file() else text.strip()
    if len(value) != 64 or any(digit not in "0123456789abcdef" for digit in value):
        raise SetupError("Expected --study-key to be 64 hex digits or a file that holds them.")
    return value
