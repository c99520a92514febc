"""`cytosae site import | export`: a study by files, for a hospital without any outgoing connection.

The bytes are the same as over the network: signed requests in, sealed replies out, through the same door, log, policy
and budget. HOME/outbox holds what waits to be carried away.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from cytosae_core.canonical import sha256_hex
from cytosae_core.errors import CytosaeError, SetupError
from cytosae_core.sae.checkpoint import load_checkpoint, save_checkpoint
from cytosae_core.tensors import unpack_tensors, write_atomic

from .events import Events
from .home import Home
from .join import enrolment
from .preflight import agent_options
from .serve import MAX_REQUEST_BYTES, make_site
from .session import Session

ENROLMENT, REPLY = "enrolment.json", ".reply"


def take(home: Home, paths: Sequence[Path]) -> Iterator[tuple[str, str]]:
    """Take files of the coordinator, each by what it is: (file's name, what became of it).

    Raises:
        SetupError: a request before `site check` has passed.
    """
    session: Session | None = None
    try:
        for path in sorted(paths, key=lambda path: (path.suffix == ".request", path.name)):
            if path.suffix == ".request":
                session = session or _session(home)
                yield path.name, _answer(home, session, path)
            else:
                yield path.name, _keep(home, path)
    finally:
        if session:
            session.close()


def _keep(home: Home, path: Path) -> str:
    """The confirmation, or the start file."""
    data = _read(path)
    try:
        if sha256_hex(data) == home.invite.start_sha256:
            save_checkpoint(home.folder / "start", unpack_tensors(data), {"study": home.invite.config.digest})
            return "start file taken"
        home.take_confirmation(data)
    except CytosaeError as error:
        return f"refused: {error}"
    return "confirmation taken"


def _answer(home: Home, session: Session, path: Path) -> str:
    """Answer one request; the reply waits in the outbox."""
    reply = session.handle(_read(path))
    if not reply:
        return "refused: not a request of this study to this site, or a log that takes no entry"
    write_atomic(home.folder / "outbox" / f"{path.stem}{REPLY}", reply)
    return f"answered with {len(reply)} sealed bytes"


def _read(path: Path) -> bytes:
    if not path.is_file() or path.stat().st_size > MAX_REQUEST_BYTES:
        raise SetupError("Expected files of at most 1 GB.", hint="As the coordinator gave them.")
    return path.read_bytes()


def _session(home: Home) -> Session:
    facts = home.facts
    if not facts.get("data"):
        raise SetupError("Expected a check of the images first.", hint="cytosae site check DATA")
    (home.folder / "outbox").mkdir(exist_ok=True, mode=0o700)
    weights = Path(facts["weights"]) if facts.get("weights") else None
    options = agent_options(home, Path(facts["data"]), weights, facts.get("preset"))
    site, study = make_site(options, os.getuid())
    if options.start:
        site = replace(site, start=load_checkpoint(options.start, sha256=study.dictionary.digest).tensors)
    return Session(site, study, home.invite.study_key, Events())


def give(home: Home, folder: Path) -> list[str]:
    """Write what waits into `folder`: the enrolment of a site that is not confirmed, and replies. Names of the files.

    Replies stay in the outbox until the coordinator's next request has come: a lost stick loses nothing.
    """
    folder.mkdir(parents=True, exist_ok=True)
    names = []
    if not home.confirmed:
        write_atomic(folder / ENROLMENT, enrolment(home))
        names.append(ENROLMENT)
    newest = max(
        (home.folder / "outbox").glob(f"*{REPLY}"), key=lambda path: path.stat().st_mtime_ns, default=None
    )
    if newest is not None:
        write_atomic(folder / newest.name, newest.read_bytes())
        names.append(newest.name)
    return names
