"""What experts of this site said a concept shows: `review.csv` beside labels.csv, optional.

    # dictionary: <SHA-256 of the dictionary's file, as `cytosae concepts extract` prints it>
    concept,rater,term
    c0042,r1,granules
    c0042,r2,vacuoles
    c0107,r1,                    (an empty term: not rated)

Raters are coded, terms come from a closed list (`config.REVIEW_TERMS`): nothing in it can name a person or a cell.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..config import REVIEW_TERMS
from ..errors import DataError
from .opening import read_input

FILE = "review.csv"
HEADER = ["concept", "rater", "term"]
MAX_BYTES, MAX_ROWS = 4 * 1024 * 1024, 200_000
_DIGEST = re.compile(r"# dictionary: ([0-9a-f]{64})")
_CONCEPT = re.compile(r"c([0-9]{4,7})")
_RATER = re.compile(r"r[1-9][0-9]?")


@dataclass(frozen=True)
class Ratings:
    """Votes of one site's raters.

    Attributes:
        dictionary: SHA-256 of the dictionary that they looked at.
        votes: (row of the dictionary, place in `REVIEW_TERMS`), one for each rater and concept.
    """

    dictionary: str
    votes: tuple[tuple[int, int], ...]

    def table(self, n: int) -> NDArray[np.int64]:
        """Raters per concept and term, [n, terms].

        Raises:
            DataError: a concept that the dictionary does not have.
        """
        out = np.zeros((n, len(REVIEW_TERMS)), dtype=np.int64)
        for row, term in self.votes:
            if row >= n:
                raise DataError(
                    f"Expected concepts below c{n:04d} in {FILE}, got c{row:04d}.", reason="SCHEMA"
                )
            out[row, term] += 1
        return out


def read_ratings(folder: Path) -> Ratings | None:
    """The review of a cohort's folder; none when it has none.

    Raises:
        DataError: not a plain file, not UTF-8, a line of another form, a concept that one rater named twice.
    """
    path = folder / FILE
    if not path.is_symlink() and not path.exists():
        return None
    try:
        text = read_input(path, folder, MAX_BYTES).decode("utf-8-sig")
    except OSError:
        raise DataError(f"Expected a readable {FILE}.", hint="May this user read it?", reason="IO") from None
    except UnicodeDecodeError:
        raise DataError(f"Expected {FILE} as UTF-8 text.", reason="SCHEMA") from None
    except DataError as error:
        text = f"Expected {FILE} to be a plain file of at most {MAX_BYTES} bytes, not a link."
        raise DataError(text, reason=error.reason) from None
    first, _, rest = text.partition("\n")
    found = _DIGEST.fullmatch(first.strip())
    if found is None:
        raise DataError(
            f"Expected {FILE}:1 as '# dictionary: ' and 64 hex digits.",
            hint="`cytosae concepts gallery --review-sheet` writes the file with that line.", reason="SCHEMA",
        )  # fmt: skip
    return Ratings(found[1], tuple(_votes(rest)))


def _votes(text: str) -> Iterator[tuple[int, int]]:
    seen: set[tuple[str, str]] = set()
    try:
        rows = list(csv.reader(io.StringIO(text, newline=""), strict=True))
    except csv.Error:
        raise DataError(f"Expected {FILE} as comma-separated lines.", reason="SCHEMA") from None
    if not rows or [cell.strip() for cell in rows[0]] != HEADER or len(rows) > MAX_ROWS:
        raise DataError(
            f"Expected {FILE}:2 as {','.join(HEADER)}, and at most {MAX_ROWS} lines.", reason="SCHEMA"
        )
    for line, row in enumerate(rows[1:], 3):
        cells = [cell.strip() for cell in row]
        if not any(cells):
            continue
        concept, rater, term = _checked(cells, line)
        if (concept, rater) in seen:
            raise DataError(
                f"Expected every concept once for each rater, {FILE}:{line} repeats one.", reason="DUP"
            )
        seen.add((concept, rater))
        if term:
            yield int(concept[1:]), REVIEW_TERMS.index(term)


def _checked(cells: list[str], line: int) -> tuple[str, str, str]:
    """Concept, rater and term of a line; none of its text is repeated in an error."""
    if len(cells) != len(HEADER) or not _CONCEPT.fullmatch(cells[0]) or not _RATER.fullmatch(cells[1]):
        raise DataError(
            f"Expected {FILE}:{line} as a concept (c0042), a rater (r1 to r99) and a term.", reason="SCHEMA"
        )
    if cells[2] and cells[2] not in REVIEW_TERMS:
        raise DataError(
            f"Expected a term of the closed list in {FILE}:{line}.",
            hint=f"One of {', '.join(REVIEW_TERMS)}; empty: not rated.", reason="SCHEMA",
        )  # fmt: skip
    return cells[0], cells[1], cells[2]
