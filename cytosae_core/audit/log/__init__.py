"""Transparency logs, writing side: a party's own log, copies of others', and witnessing (docs/audit-format.md)."""

from __future__ import annotations

from ..note import origin_of
from .journal import Log
from .mirror import Mirror
from .tiles import tile_files, write_tiles
from .witness import Witness

__all__ = ["Log", "Mirror", "Witness", "origin_of", "tile_files", "write_tiles"]
