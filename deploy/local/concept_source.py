"""Cells plus a dictionary, as command-line arguments of every command that looks at concepts locally."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cytosae_core.errors import StudyError

from .encoder_options import add_encoder_options, encoder_of

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from cytosae_core.cohort import CellImage, Cohort
    from cytosae_core.concepts.coder import Coder
    from cytosae_core.encoder import TokenStore


@dataclass(frozen=True)
class Source:
    """One site's cells with their tokens, and the dictionary that codes them. Stays on this machine.

    `images[i]` is the cohort's entry of stored image i.
    """

    cohort: Cohort
    store: TokenStore
    coder: Coder

    @property
    def images(self) -> list[CellImage]:
        """The stored images, in the store's order."""
        return [self.cohort.images[index] for index in self.store.image_index]

    def read(self, start: int, stop: int) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        """Tokens [b, 257, d] float32 and cell masks [b, 257] of stored images."""
        return self.store.tokens(start, stop).astype("float32"), self.store.mask()[start:stop]


def add_source_arguments(parser: argparse.ArgumentParser) -> None:
    """DATA DICTIONARY OUT, the store, and the encoder's options."""
    parser.add_argument("data", type=Path, help="folder of images (labels.csv or one folder per class)")
    parser.add_argument("dictionary", type=Path, help="dictionary, without or with .safetensors")
    parser.add_argument("out", type=Path, help="folder to write; stays on this machine")
    parser.add_argument("--store", type=Path, help="token store (default: OUT/tokens); made when missing")
    parser.add_argument("--preset", help="folder layout of a public data set: see `cytosae data presets`")
    parser.add_argument("--max-images", type=int, help="use at most this many, spread over classes")
    add_encoder_options(parser)


def open_source(options: argparse.Namespace, display: Any) -> Source:
    """Read the table, make or open the token store, load the dictionary.

    Raises:
        DataError, SetupError, StudyError: unreadable images, unusable encoder or store, unfitting dictionary.
    """
    from cytosae_core.cohort import read_cohort
    from cytosae_core.concepts.coder import load_coder
    from cytosae_core.encoder import build_store

    coder = load_coder(options.dictionary)
    encoder = encoder_of(options)
    if coder.d != encoder.d:
        raise StudyError(
            f"Expected a dictionary for tokens with d={encoder.d}, got d={coder.d}.",
            hint="Name the encoder it was trained on with --encoder.",
        )
    cohort = read_cohort(options.data, max_images=options.max_images, preset=options.preset)
    store = build_store(
        cohort, encoder, options.store or options.out / "tokens", progress=display.bar("encode cells")
    )
    return Source(cohort, store, coder)
