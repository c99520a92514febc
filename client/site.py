"""One site's data, ready for a study: token store, labels, units and splits. Nothing here leaves the site."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from cytosae_core.cohort import Cohort, Ratings, split_units
from cytosae_core.concepts.tables import Labelled
from cytosae_core.config import COUNTS, StudyConfig
from cytosae_core.encoder import TokenStore
from cytosae_core.errors import DataError
from cytosae_core.keys import SigningKey
from cytosae_core.policy import SitePolicy
from cytosae_core.privacy.disclosure import protect_hello

Array = NDArray[Any]
TOKENS_PER_IMAGE = 257


@runtime_checkable
class Pictured(Protocol):
    """A token store that also knows facts of the pictures; one without them releases none."""

    def image_facts(self) -> NDArray[np.float32]: ...

    def colours(self) -> NDArray[np.float32]: ...


class Tokens(Protocol):
    """What a session needs from a token store (`cytosae_core.encoder.TokenStore`)."""

    d: int
    n_images: int
    encoder_digest: str
    canary: NDArray[np.float32]

    def tokens(self, start: int, stop: int) -> NDArray[np.float16]: ...

    def mask(self) -> NDArray[np.bool_]: ...

    def gather(self, image: NDArray[np.int64], token: NDArray[np.int64]) -> NDArray[np.float32]: ...


@dataclass(frozen=True)
class Site:
    """What the hospital set up once: name, data, policy, key and a folder for state.

    Attributes:
        labels, units, attributes: one entry per stored image (not per listed image).
        unit: what a unit is: patient, slide or source_file.
        relay_isolation: `none` when agent and relay share a user, else `user`.
        start: tensors of the study's public start file, when the site has it: the first dictionary that comes must
            then be the one that the site computes itself.
        acquisition: coded words about microscope and stain, for `hello`; empty when nobody said.
        label_map: version and digest of the map that gave the labels; empty when there is none.
        listed: images in the site's table, readable or not; None when nobody counted them.
        ratings: what this site's experts said of a dictionary's concepts.
        draws: secret that the drawing of tokens depends on, so that nobody who knows all other patients can draw the
            same again; empty in simulations, which must give the same numbers in any folder.
        ledger: folder of the ledger that all of the site's studies share; None: one in `state`.
        unread_units: units with at least one listed image that could not be read.
    """

    name: str
    store: Tokens
    labels: Sequence[str]
    units: Sequence[str]
    attributes: Sequence[Mapping[str, str]]
    unit: str
    policy: SitePolicy
    key: SigningKey
    state: Path
    simulation: bool = False
    relay_isolation: str = "none"
    start: Mapping[str, Array] = field(default_factory=dict)
    acquisition: Mapping[str, str] = field(default_factory=dict)
    label_map: str = ""
    listed: int | None = None
    unread_units: int = 0
    ratings: Ratings | None = None
    ledger: Path | None = None
    draws: bytes = b""

    @property
    def ledger_folder(self) -> Path:
        """Folder of the site's ledger."""
        return self.ledger or self.state / "ledger"

    @classmethod
    def of(cls, cohort: Cohort, store: TokenStore, policy: SitePolicy, home: Path, **facts: Any) -> Site:
        """A site from its cohort and token store; key and state live in `home`."""
        images = [cohort.images[index] for index in store.image_index]
        stored = set(store.image_index.tolist())
        key = SigningKey.load_or_create(home / "site.key")
        secret = b"" if facts.get("simulation") else hashlib.sha256(key.sign("token-draws", b"")).digest()
        unread = {image.unit for image in cohort.images if image.index not in stored}
        return cls(
            name=cohort.name,
            store=store,
            labels=[image.label for image in images],
            units=[image.unit for image in images],
            attributes=[image.attributes for image in images],
            unit=cohort.unit,
            policy=policy,
            key=key,
            state=home / "state",
            acquisition=cohort.acquisition,
            label_map=cohort.label_map,
            listed=len(cohort.images),
            unread_units=len(unread),
            ratings=cohort.ratings,
            draws=secret,
            **facts,
        )


class StudyData:
    """A site's data seen through one study: integer labels and units, train and test split, random tokens."""

    def __init__(self, site: Site, study: StudyConfig) -> None:
        if site.store.d != study.encoder.d:
            raise DataError(f"Expected tokens with d={study.encoder.d}, got d={site.store.d}.")
        self.site, self.study = site, study
        share = study.statistics.test_share
        names = list(site.labels)
        parts = split_units(site.units, names, (1 - share, share), salt=f"split|{study.name}")
        self.train = np.flatnonzero(parts == 0)
        self.test = np.flatnonzero(parts == 1)
        if not len(self.train) or not len(self.test):
            raise DataError(
                "Expected at least one unit to train on and one to test on.", hint="Add patients."
            )
        self.unit_index = np.unique(np.asarray(site.units), return_inverse=True)[1].astype(np.int64)
        self.train_unit = np.unique(self.unit_index[self.train], return_inverse=True)[1].astype(np.int64)
        self.n_train_units = int(self.train_unit.max()) + 1
        self.test_unit = np.unique(self.unit_index[self.test], return_inverse=True)[1].astype(np.int64)
        self.n_test_units = int(self.test_unit.max()) + 1
        self.labelled = self._labelled(names)

    def _labelled(self, names: list[str]) -> Labelled:
        statistics = self.study.statistics
        place = {name: index for index, name in enumerate(statistics.classes)}
        attributes = np.full((len(names), len(statistics.attributes)), -1, dtype=np.int64)
        for column, attribute in enumerate(statistics.attributes):
            for row, values in enumerate(self.site.attributes):
                attributes[row, column] = level(values.get(attribute.name, ""), attribute.above)
        return Labelled(
            labels=np.array([place.get(name, -1) for name in names], dtype=np.int64),
            units=self.unit_index,
            attributes=attributes,
            halves=split_units(self.site.units, names, (0.5, 0.5), salt=f"half|{self.study.name}"),
            n_classes=len(statistics.classes),
        )

    def counts(self) -> tuple[Array, Array]:
        """Values in the order of `config.COUNTS` then classes, and the units behind each."""
        units = len(np.unique(self.unit_index))
        labels = self.labelled.labels
        classes = [np.flatnonzero(labels == index) for index in range(self.labelled.n_classes)]
        values = [len(labels), units, self.n_train_units, self.n_test_units, *(len(c) for c in classes)]
        behind = [units, units, self.n_train_units, self.n_test_units]
        behind += [len(np.unique(self.unit_index[c])) for c in classes]
        return np.array(values, dtype=np.float32), np.array(behind)

    def class_units(self, policy: SitePolicy) -> tuple[Array, Array]:
        """Units of each class [c], and the units behind each [c]; none where the class's images are withheld.

        All units minus those of the shown classes are those of the withheld ones, where nobody has two classes. So
        the withheld classes are the same as in `counts`: two or more, or none, with enough units between them.
        """
        values, behind = self.counts()
        first = len(COUNTS)
        hidden = np.isnan(protect_hello(values, behind, policy))[first:]
        units = behind[first:]
        return units.astype(np.float32), np.where(hidden, 0, units)

    def listed(self) -> tuple[Array, Array] | None:
        """Images in the site's table [1], and the units behind that count [1]; None when nobody counted them.

        Beside the stored images the count tells how many could not be read. So the units behind it are those with an
        unread image: fewer than the policy's smallest group, and the door withholds it. Where every image was read
        there is no such difference, and all units stand behind it.
        """
        count = self.site.listed
        if count is None:
            return None
        everybody = len(np.unique(self.unit_index))
        units = everybody if count == len(self.site.labels) else self.site.unread_units
        return np.array([count], dtype=np.float32), np.array([units])

    def random_tokens(self, images: Array, count: int, purpose: str) -> tuple[Array, Array]:
        """`count` tokens [count, d] drawn with replacement from `images`, and each one's position in `images`.

        The draw depends on study seed, site, its secret and purpose only: a repeated round gives the same bytes.
        """
        text = self.site.draws + f"{self.study.seed}|{self.site.name}|{purpose}".encode()
        rng = np.random.default_rng(int.from_bytes(hashlib.sha256(text).digest()[:8], "big"))
        position = rng.integers(len(images), size=count)
        token = rng.integers(TOKENS_PER_IMAGE, size=count)
        return self.site.store.gather(images[position], token), position

    def pictures(self) -> tuple[NDArray[np.float32], NDArray[np.float32]] | None:
        """Facts [n, 4] and colour shares [n, 64] of the stored images; None when the store has none."""
        store: object = self.site.store
        return (store.image_facts(), store.colours()) if isinstance(store, Pictured) else None

    def read(self, start: int, stop: int) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        """Tokens [b, 257, d] float32 and cell masks [b, 257] of stored images."""
        return self.site.store.tokens(start, stop).astype(np.float32), self.site.store.mask()[start:stop]


def level(text: str, above: float) -> int:
    """1 when the number in `text` is at least `above`, 0 when it is below, -1 when it is no number."""
    try:
        return int(float(text) >= above)
    except ValueError:
        return -1
