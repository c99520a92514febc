"""What a site counts for `hello`: never more than the counts of images beside it let anybody work out."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from cytosae_client.site import StudyData
from cytosae_core.config import COUNTS
from cytosae_core.privacy.disclosure import protect_counts, protect_hello
from tests.federation import CLASSES, MASKED, make_site, study_config


def data_of(home: Path, patients: list[int], images: int = 2) -> StudyData:
    """A site with these numbers of patients per class, each with one class."""
    labels = [
        name
        for name, count in zip(CLASSES, patients, strict=True)
        for _ in range(count)
        for _ in range(images)
    ]
    units = [f"patient-{index // images}" for index in range(len(labels))]
    site = make_site("site-0", home, MASKED, seed=1, patients=len(labels) // 2, labels=labels, units=units)
    site = replace(site, attributes=[{} for _ in labels])
    return StudyData(site, study_config())


def test_units_of_every_class_leave_rounded(tmp_path: Path) -> None:
    values, behind = data_of(tmp_path, [20, 33, 14]).class_units(MASKED)
    assert values.tolist() == [20, 33, 14] and behind.tolist() == [20, 33, 14]
    assert protect_counts(values, behind, MASKED).tolist() == [20, 35, 15]


@pytest.mark.parametrize("patients", [[20, 30, 4], [20, 4, 4], [40, 12, 1], [11, 11, 10]])
def test_a_withheld_class_does_not_follow_from_the_others(tmp_path: Path, patients: list[int]) -> None:
    """All units minus the shown classes' stand for no unit, or for 11 and two classes or more."""
    data = data_of(tmp_path, patients)
    shown = ~np.isnan(protect_counts(*data.class_units(MASKED), MASKED))
    counts = protect_hello(*data.counts(), MASKED)[len(COUNTS) :]
    assert (shown == ~np.isnan(counts)).all()
    left = sum(count for count, seen in zip(patients, shown, strict=True) if not seen)
    assert (~shown).sum() >= 2 and left >= 11


def test_many_images_of_few_patients_are_no_support(tmp_path: Path) -> None:
    values, behind = data_of(tmp_path, [20, 20, 3], images=40).class_units(MASKED)
    assert values[2] == 3 and behind[2] == 0


def test_tokens_are_drawn_by_a_secret_of_the_site_but_in_simulations(tmp_path: Path) -> None:
    plain = make_site("site-0", tmp_path, MASKED, seed=0)
    sites = [
        plain,
        replace(plain, draws=b"a" * 32),
        replace(plain, draws=b"b" * 32),
        replace(plain, draws=b"a" * 32),
    ]
    images = np.arange(plain.store.n_images)
    drawn = [StudyData(site, study_config(3)).random_tokens(images, 50, "step 1")[0] for site in sites]
    assert (drawn[1] == drawn[3]).all()
    assert not (drawn[0] == drawn[1]).all() and not (drawn[1] == drawn[2]).all()
