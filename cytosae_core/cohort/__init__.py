"""Images and their table -> a checked cohort."""

from .cells import CellImage, Cohort, image_digest
from .check import CohortCheck, check_cohort
from .cohort import read_cohort
from .ratings import Ratings
from .reading import open_rgb
from .splits import split_units

__all__ = [
    "CellImage",
    "Cohort",
    "CohortCheck",
    "Ratings",
    "check_cohort",
    "image_digest",
    "open_rgb",
    "read_cohort",
    "split_units",
]
