"""The coordinator's identity: protocol, study key, the sites' pinned keys."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from cytosae_core.config import StudyConfig
from cytosae_core.errors import StudyError
from cytosae_core.keys import SigningKey


@dataclass(frozen=True)
class Coordinator:
    """Study protocol, study key and the sites' pinned public keys (64 hex digits each)."""

    study: StudyConfig
    key: SigningKey
    site_keys: Mapping[str, str]

    def __post_init__(self) -> None:
        missing = [site for site in self.study.sites if site not in self.site_keys]
        if missing:
            raise StudyError(f"Expected a public key of every site, missing {missing}.")
