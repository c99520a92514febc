"""Where a run is right now, as one small file that any number of watchers may read: run/progress.json."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cytosae_core.canonical import canonical_json
from cytosae_core.tensors import write_atomic


class Progress:
    """Takes the events of a `StudyRun` and keeps the newest state of everything.

    Args:
        path: of the file; rewritten atomically at every event.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._state: dict[str, Any] = {"step": "", "round": 0, "of": 0, "sites": {}, "dropped": {}}

    def __call__(self, event: str, details: Mapping[str, Any]) -> None:
        """One event: step, site, dropped; others change nothing but the time."""
        if event == "step":
            self._state |= {name: details[name] for name in ("step", "round", "of")} | {"sites": {}}
        elif event == "site":
            entry = {"state": details["state"], "since": int(time.time())}
            self._state["sites"][details["site"]] = entry
        elif event == "dropped":
            self._state["dropped"][details["site"]] = {"step": details["step"], "code": details["code"]}
        self._path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(self._path, canonical_json({**self._state, "at": int(time.time())}))
