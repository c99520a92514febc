"""What a site says about itself: versions and digests of a closed form."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .site import Site


def software_version() -> str:
    """This program's version, or `uninstalled`."""
    try:
        return version("cytosae-federation")
    except PackageNotFoundError:
        return "uninstalled"


def site_facts(site: Site) -> dict[str, str]:
    """The facts of a hello: names of software, digests, unit, isolation (`allowed.HELLO_FACTS`)."""
    return {
        "software": software_version(),
        "encoder_digest": site.store.encoder_digest,
        "policy": site.policy.name,
        "policy_digest": site.policy.digest,
        "unit": site.unit,
        "relay_isolation": site.relay_isolation,
    }
