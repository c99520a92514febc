"""Opaque bytes inside a Flower message, through Flower's public records only.

The bytes travel as one uint8 `Array` with our own stype: raw bytes without a .npy header, cut into 5 MiB
chunks by Flower, unlike a ConfigRecord, which is one body however large it is. `server/flower_grid.py`
reads and writes the same record: record "cytosae", array "blob".
"""

from __future__ import annotations

from flwr.app import Array, ArrayRecord, RecordDict

from cytosae_core.errors import MessageError

RECORD, ARRAY, STYPE = "cytosae", "blob", "cytosae.blob"


def to_records(data: bytes) -> RecordDict:
    """Records that carry `data`, which is not empty."""
    blob = Array("uint8", (len(data),), STYPE, data)
    return RecordDict({RECORD: ArrayRecord({ARRAY: blob})})


def from_records(content: RecordDict) -> bytes:
    """The bytes that `to_records` packed.

    Raises:
        MessageError: the content is not such a record.
    """
    record = content.array_records.get(RECORD, {})
    blob = record.get(ARRAY)
    if blob is None or blob.stype != STYPE or not blob.data:
        raise MessageError(f"Expected one array {RECORD}/{ARRAY} with stype={STYPE}, got other records.")
    return bytes(blob.data)
