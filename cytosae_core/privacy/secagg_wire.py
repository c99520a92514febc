"""A study's secure sums: their terms, from the protocol alone, and their messages as tensors of fixed shape.

Rows of tensors stand for the study's sites in the roster's order; a row of zeros is a site that sent nothing.

    sum_keys      roster [S, 32]                   -> keys [128]        mask key, box key, signature
    sum_shares    keys [S, 128]                    -> commitment [32], boxes [S, 86]
    sum_masked    boxes [S, 86], the dictionary    -> second_masked | third_masked [size] uint32
    sum_confirm   members [S] 1 survivor, 2 gone   -> confirmation [64]
    sum_unmask    members, signatures [S, 64]      -> seeds [S, 35], masks [S, 35]
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..canonical import digest_of
from ..config import StudyConfig
from ..errors import MessageError
from ..keys import SIGNATURE_BYTES
from .noise import grid_for
from .plan import PrivacyPlan
from .secagg_parts import (
    BOX_BYTES,
    KEY_BYTES,
    LARGEST,
    SHARE_BYTES,
    Message,
    SecureSum,
    default_threshold,
    tolerated,
)

Bytes = NDArray[np.uint8]
Tensors = Mapping[str, NDArray[Any]]
SUMS = ("second", "third")  # place in it: the `round` of a sum's other messages
KEYS_BYTES = 2 * KEY_BYTES + SIGNATURE_BYTES
SURVIVED, GONE = 1, 2


def terms_of(study: StudyConfig, kind: str, roster: Mapping[str, str]) -> SecureSum:
    """What all parties agreed on for the sum `second` or `third`: one sum of each kind in a study, never repeated.

    Args:
        roster: site -> its public signing key, of all of the study's sites.
    """
    size = study.dims["m2" if kind == "second" else "m3"]
    context = digest_of({"protocol": study.digest, "sum": kind})
    return SecureSum(context, dict(roster), size, LARGEST // len(roster))


def shares_of(study: StudyConfig) -> int:
    """In how many shares the noise of one release is added; 1: every site adds all of it.

    At least `threshold` sites are in a sum, of which the promise counts only those that need not collude with a
    coordinator that lies: each adds 1 / shares of the noise's variance, so that what they add is enough alone.
    """
    if not study.privacy.secure_aggregation:
        return 1
    sites = len(study.sites)
    threshold = default_threshold(sites)
    return threshold - tolerated(sites, threshold)[0]


def study_grid(study: StudyConfig, plan: PrivacyPlan) -> float:
    """Width of the grid of a release's integers: a site's sum, and under masks that of all sites, fits 32 bits."""
    sites = len(study.sites) if study.privacy.secure_aggregation else 1
    return grid_for(plan.clip_norm, study.privacy.patients_in_all, plan.noise_multiplier, sites)


# Messages as tensors


def roster_rows(terms: SecureSum) -> Bytes:
    """The roster's keys [S, 32]."""
    return _rows(terms, {site: bytes.fromhex(key) for site, key in terms.roster.items()}, KEY_BYTES)


def roster_from(sites: Iterable[str], rows: NDArray[Any]) -> dict[str, str]:
    """Site -> key of `roster_rows`. Raises MessageError (SHAPE)."""
    names = sorted(sites)
    return {
        site: row.tobytes().hex()
        for site, row in zip(names, _bytes(rows, len(names), KEY_BYTES), strict=True)
    }


def keys_out(message: Message) -> Bytes:
    """`Party.keys` as [128]."""
    return _one("".join(message[name] for name in ("mask_key", "box_key", "signature")))


def keys_in(terms: SecureSum, site: str, row: NDArray[Any]) -> Message:
    """`Party.keys` of [128]."""
    text = _bytes(row[None], 1, KEYS_BYTES)[0].tobytes().hex()
    keys = {"mask_key": text[: 2 * KEY_BYTES], "box_key": text[2 * KEY_BYTES : 4 * KEY_BYTES]}
    return {"site": site, "context": terms.digest, **keys, "signature": text[4 * KEY_BYTES :]}


def all_keys_out(terms: SecureSum, messages: Iterable[Message]) -> Bytes:
    """Everybody's keys [S, 128]."""
    return _rows(terms, {item["site"]: keys_out(item).tobytes() for item in messages}, KEYS_BYTES)


def all_keys_in(terms: SecureSum, rows: NDArray[Any]) -> list[Message]:
    """Everybody's keys of [S, 128]."""
    found = _bytes(rows, len(terms.roster), KEYS_BYTES)
    return [keys_in(terms, site, row) for site, row in zip(terms.roster, found, strict=True) if row.any()]


def shares_out(terms: SecureSum, message: Message) -> dict[str, Bytes]:
    """`Party.shares` as tensors."""
    return {"commitment": _one(message["commitment"]), "boxes": _hex_rows(terms, message["boxes"], BOX_BYTES)}


def shares_in(terms: SecureSum, site: str, tensors: Tensors) -> Message:
    """`Party.shares` of tensors."""
    boxes = hex_rows_in(terms, tensors["boxes"], BOX_BYTES)
    return {"site": site, "commitment": tensors["commitment"].tobytes().hex(), "boxes": boxes}


def members_out(terms: SecureSum, announcement: Message) -> Bytes:
    """Who survived and who dropped out, [S]."""
    marks = dict.fromkeys(announcement["survivors"], SURVIVED) | dict.fromkeys(announcement["dropouts"], GONE)
    return np.array([marks.get(site, 0) for site in terms.roster], dtype=np.uint8)


def members_in(terms: SecureSum, marks: NDArray[Any]) -> Message:
    """Who survived and who dropped out, of [S]."""
    if marks.shape != (len(terms.roster),) or marks.dtype != np.uint8:
        raise _shape(f"members[{len(terms.roster)}]")
    named = {
        mark: [s for s, m in zip(terms.roster, marks, strict=True) if m == mark] for mark in (SURVIVED, GONE)
    }
    return {"survivors": named[SURVIVED], "dropouts": named[GONE]}


def request_out(terms: SecureSum, request: Message) -> dict[str, Bytes]:
    """`Collector.close_confirm` as tensors."""
    signatures = _hex_rows(terms, request["signatures"], SIGNATURE_BYTES)
    return {"members": members_out(terms, request), "signatures": signatures}


def request_in(terms: SecureSum, tensors: Tensors) -> Message:
    """The argument of `Party.unmask` of tensors."""
    signatures = hex_rows_in(terms, tensors["signatures"], SIGNATURE_BYTES)
    return {**members_in(terms, tensors["members"]), "signatures": signatures}


def unmasked_out(terms: SecureSum, message: Message) -> dict[str, Bytes]:
    """`Party.unmask` as tensors."""
    return {name: _hex_rows(terms, message[name], SHARE_BYTES) for name in ("seeds", "masks")}


def unmasked_in(terms: SecureSum, site: str, tensors: Tensors) -> Message:
    """`Party.unmask` of tensors."""
    return {
        "site": site,
        **{name: hex_rows_in(terms, tensors[name], SHARE_BYTES) for name in ("seeds", "masks")},
    }


def hex_rows_in(terms: SecureSum, rows: NDArray[Any], size: int) -> dict[str, str]:
    """Site -> hex digits of its row of [S, size], of the sites with a row."""
    found = _bytes(rows, len(terms.roster), size)
    return {site: row.tobytes().hex() for site, row in zip(terms.roster, found, strict=True) if row.any()}


def _hex_rows(terms: SecureSum, values: Mapping[str, str], size: int) -> Bytes:
    return _rows(terms, {site: bytes.fromhex(text) for site, text in values.items()}, size)


def boxes_out(terms: SecureSum, boxes: Mapping[str, str]) -> Bytes:
    """One reader's boxes by sender, [S, 86]."""
    return _hex_rows(terms, boxes, BOX_BYTES)


def boxes_in(terms: SecureSum, rows: NDArray[Any]) -> dict[str, str]:
    """One reader's boxes by sender, of [S, 86]."""
    return hex_rows_in(terms, rows, BOX_BYTES)


def _rows(terms: SecureSum, values: Mapping[str, bytes], size: int) -> Bytes:
    out = np.zeros((len(terms.roster), size), np.uint8)
    for site, data in values.items():
        out[terms.index[site] - 1] = np.frombuffer(data, np.uint8)
    return out


def _one(text: str) -> Bytes:
    return np.frombuffer(bytes.fromhex(text), np.uint8).copy()


def _bytes(rows: NDArray[Any], count: int, size: int) -> Bytes:
    if rows.shape != (count, size) or rows.dtype != np.uint8:
        raise _shape(f"uint8[{count}, {size}]")
    return rows


def _shape(what: str) -> MessageError:
    return MessageError(f"Expected {what} in a message of a secure sum.", reason="SHAPE")
