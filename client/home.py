"""A site's home folder for one study: made by `site join`, used by `check` and `serve`.

HOME/site.json     study, site, endpoint, folder of images, weights     HOME/invite.json    as it came
HOME/study.yaml study-key.pub start.safetensors start.json ca.crt       what the invite says
HOME/keys/         tls.key client.crt node node.pub  (0600)             HOME/site-policy.yaml, officer.key
HOME/agent/        key, state and token store of the agent              HOME/logs/, HOME/state.json
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cytosae_core.canonical import canonical_json, parse_json
from cytosae_core.errors import SetupError
from cytosae_core.invite import Invite, read_confirmation, read_invite
from cytosae_core.keys import SigningKey
from cytosae_core.tensors import write_atomic

URN = "urn:cytosae:site-home:v1"
VARIABLE = "CYTOSAE_HOME"
Json = dict[str, Any]


@dataclass(frozen=True)
class Home:
    """One site's folder."""

    folder: Path

    @property
    def facts(self) -> Json:
        """site.json."""
        return dict(parse_json((self.folder / "site.json").read_bytes()))

    def keep(self, **values: Any) -> None:
        """Change site.json."""
        path = self.folder / "site.json"
        before = self.facts if path.exists() else {"urn": URN}
        write_atomic(path, canonical_json({**before, **values}))

    @property
    def invite(self) -> Invite:
        """The invite as it came; its end does not matter any more."""
        from datetime import UTC, datetime

        return read_invite((self.folder / "invite.json").read_bytes(), now=datetime.min.replace(tzinfo=UTC))

    @property
    def agent(self) -> Path:
        """Home of the agent: its key, state and token store."""
        return self.folder / "agent"

    @property
    def ledger(self) -> Path:
        """Folder of the ledger: of this study, or the one that `join --ledger` named for all studies."""
        return Path(self.facts.get("ledger") or self.agent / "state" / "ledger")

    @property
    def keys(self) -> Path:
        """Folder of the keys of transport."""
        return self.folder / "keys"

    @property
    def site_key(self) -> SigningKey:
        """The key that signs replies."""
        return SigningKey.load_or_create(self.agent / "site.key")

    @property
    def confirmed(self) -> bool:
        """Whether the coordinator let this site in."""
        return (self.keys / "client.crt").exists()

    def take_confirmation(self, data: bytes) -> None:
        """Verify and keep the certificate."""
        found = read_confirmation(data, self.invite, self.site_key.public_hex)
        write_atomic(self.keys / "client.crt", found.certificate.encode())


def find_home(given: Path | None) -> Home | None:
    """The home that was named, that $CYTOSAE_HOME names, or the only one below the working folder; None: no home.

    Raises:
        SetupError: not a home, or several below the working folder.
    """
    named = given or (Path(os.environ[VARIABLE]) if VARIABLE in os.environ else None)
    if named is not None:
        if not (named / "site.json").exists():
            raise SetupError(
                f"Expected a site's home at {named}.", hint="cytosae site join INVITE makes one."
            )
        return Home(named.resolve())
    found = sorted(path.parent for path in (*Path().glob("site.json"), *Path().glob("*/site.json")))
    if len(found) > 1:
        raise SetupError(f"Expected --home, there are {len(found)} homes here.", hint="Name one of them.")
    return Home(found[0].resolve()) if found else None


def need_home(given: Path | None) -> Home:
    """As `find_home`; SetupError when there is none."""
    found = find_home(given)
    if found is None:
        raise SetupError(
            "Expected a site's home here, or --home.", hint="cytosae site join INVITE makes one."
        )
    return found
