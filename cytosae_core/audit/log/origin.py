"""Names of logs."""

from __future__ import annotations

from ..note import origin_of

__all__ = ["origin_of"]
