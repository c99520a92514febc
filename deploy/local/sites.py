"""Site folders on this machine -> sites ready for a study: cohort, token store, key, policy."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cytosae_client.site import Site
from cytosae_core.cohort import Cohort, read_cohort
from cytosae_core.encoder import Encoder, TokenStore, build_store
from cytosae_core.errors import DataError
from cytosae_core.policy import named_policy

Progress = Callable[[int, int], None]
QUICK_IMAGES = 80


@dataclass(frozen=True)
class Embedded:
    """A cohort with its tokens on disk."""

    cohort: Cohort
    store: TokenStore

    @property
    def labels(self) -> list[str]:
        """Class of each stored image."""
        return [self.cohort.images[index].label for index in self.store.image_index]


def site_folders(folder: Path) -> dict[str, Path]:
    """Sub-folders that hold a site, by name; DataError when there is none."""
    if not folder.is_dir():
        raise DataError(f"Expected a folder of site folders at {folder}.", hint="Check --sites.")
    found = {
        path.name: path
        for path in sorted(folder.iterdir())
        if path.is_dir() and not path.name.startswith(".")
    }
    if not found:
        raise DataError(f"Expected at least one site folder in {folder}.", hint="Check --sites.")
    return found


def embed(
    folder: Path,
    name: str,
    encoder: Encoder,
    stores: Path,
    *,
    max_images: int | None,
    progress: Progress | None = None,
) -> Embedded:
    """Read the cohort and make (or reuse) its token store under `stores`."""
    cohort = read_cohort(folder, name=name, max_images=max_images)
    marker = f"{encoder.name}-{encoder.layer}-{'all' if max_images is None else max_images}"
    return Embedded(cohort, build_store(cohort, encoder, stores / f"{name}-{marker}", progress=progress))


def patients_of(embedded: Embedded, tokens: int) -> list[NDArray[np.float32]]:
    """`tokens` tokens [tokens, d] of every patient of a public corpus, drawn with replacement."""
    cohort, store = embedded.cohort, embedded.store
    units = np.asarray([cohort.images[index].unit for index in store.image_index])
    rng, found = np.random.default_rng(0), []
    for unit in np.unique(units):
        images = np.flatnonzero(units == unit)
        chosen = images[rng.integers(len(images), size=tokens)]
        found.append(store.gather(chosen, rng.integers(257, size=tokens)))
    return found


def make_site(embedded: Embedded, policy: str, home: Path, *, simulation: bool) -> Site:
    """A site whose key and state live in `home`; agent and coordinator share a process: no relay isolation."""
    return Site.of(embedded.cohort, embedded.store, named_policy(policy), home, simulation=simulation)
