"""Start an agent: read the cohort, make the token store, open the socket, answer until SIGTERM."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from cytosae_core.cohort import read_cohort
from cytosae_core.config import load_yaml, study_from_dict
from cytosae_core.encoder import build_store, load_encoder
from cytosae_core.errors import SetupError
from cytosae_core.keys import fingerprint
from cytosae_core.policy import named_policy

from .agent import AgentServer, forbid_memory_reads
from .progress import progress
from .session import Session
from .site import Site

MAX_REQUEST_BYTES = 1 << 30
REQUEST_DEADLINE_S = 120.0  # for a request to arrive, and for its reply to be taken; work may take longer


def say(text: str) -> None:
    """One line of the local log, on standard error."""
    print(f"site: {text}", file=sys.stderr, flush=True)


def serve_agent(options: argparse.Namespace, relay_uid: int) -> int:
    """Serve until stopped. Prints what local staff must know: key fingerprint, isolation, images."""
    forbid_memory_reads()
    site, session = make_session(options, relay_uid)
    say(f"key fingerprint {fingerprint(site.key.public_hex)} (read it to the coordinator by phone)")
    if site.relay_isolation == "none":
        say("WARNING relay isolation: none. Agent and relay share one user: for development only.")
    server = AgentServer(
        options.socket,
        session.handle,
        allowed_uids=frozenset({relay_uid}),
        max_request_bytes=MAX_REQUEST_BYTES,
        request_deadline_s=REQUEST_DEADLINE_S,
    )
    say(f"serving {site.store.n_images} images of {len(set(site.units))} {site.unit} units")
    server.serve_forever()
    return 0


def make_session(options: argparse.Namespace, relay_uid: int) -> tuple[Site, Session]:
    """Cohort, token store, key and session from the command's options."""
    values = load_yaml(options.study)
    values.pop("local", None)
    study = study_from_dict(values)
    if options.name not in study.sites:
        raise SetupError(f"Expected --name in {study.sites}, got {options.name}.")
    encoder = load_encoder(
        study.encoder.name, options.weights, layer=study.encoder.layer or None, steps=study.encoder.steps
    )
    if study.encoder.digest and encoder.digest != study.encoder.digest:
        raise SetupError(
            "Expected the encoder that the protocol names by digest.", hint="Check --weights with IT."
        )
    cohort = read_cohort(options.data, name=options.name, preset=options.preset)
    with progress("embedding cells") as tick:
        store = build_store(cohort, encoder, options.home / "store", progress=tick)
    isolation = "none" if relay_uid == os.getuid() else "user"
    policy = named_policy(options.policy)
    site = Site.of(
        cohort, store, policy, options.home, simulation=options.simulation, relay_isolation=isolation
    )
    return site, Session(site, study, _public_key(options.study_key), log=say)


def _public_key(text: str) -> str:
    value = Path(text).read_text().strip() if len(text) != 64 and Path(text).is_file() else text.strip()
    if len(value) != 64 or any(digit not in "0123456789abcdef" for digit in value):
        raise SetupError("Expected --study-key to be 64 hex digits or a file that holds them.")
    return value
