"""What a site says about itself: versions, digests and coded words of a closed form."""

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
    """The facts of a hello: names of software, digests, unit, isolation, and the acquisition card and label map where
    there are any (`allowed.HELLO_FACTS`)."""
    known = {**site.acquisition, "label_map": site.label_map}
    return {
        **{name: text for name, text in known.items() if text},
        "software": software_version(),
        "encoder_digest": site.store.encoder_digest,
        "policy": site.policy.name,
        "policy_digest": site.policy.digest,
        "unit": site.unit,
        "relay_isolation": site.relay_isolation,
    }
