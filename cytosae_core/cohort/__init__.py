"""Images and their table -> a checked cohort."""

from .check import CohortCheck, check_cohort
from .cohort import CellImage, Cohort, image_digest, read_cohort
from .reading import open_rgb
from .splits import split_units

__all__ = [
    "CellImage",
    "Cohort",
    "CohortCheck",
    "check_cohort",
    "image_digest",
    "open_rgb",
    "read_cohort",
    "split_units",
]
