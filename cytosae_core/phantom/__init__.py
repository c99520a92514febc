"""Synthetic stained cells with known concepts and known site shifts: the demo's data, and ground truth for tests."""

from .cell import CLASSES, PLANTED
from .golden import golden_images, golden_parts
from .sites import DEMO_SITES, PUBLIC_SITE, PhantomSite, generate_site, phantom

__all__ = [
    "CLASSES",
    "DEMO_SITES",
    "PLANTED",
    "PUBLIC_SITE",
    "PhantomSite",
    "generate_site",
    "golden_images",
    "golden_parts",
    "phantom",
]
