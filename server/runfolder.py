"""The coordinator's run folder: replies and the dictionary after each round, written atomically, read on resume.

run/study.json           the protocol that this run belongs to
run/replies/STEP/SITE    sealed replies of every step but the rounds, as they came
run/sums/KIND            the sum of a kind of replies over all sites, once it is complete
run/rounds/NNNN.json     one record per finished round, with the digest of every reply
run/dictionary.*         the dictionary after the last finished round, and after 0 (`first.*`); under `dp`: `added.*`
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cytosae_core.canonical import canonical_json, parse_json
from cytosae_core.config import StudyConfig
from cytosae_core.envelope import body_of
from cytosae_core.errors import StudyError
from cytosae_core.sae.checkpoint import load_checkpoint, save_checkpoint
from cytosae_core.tensors import pack_tensors, unpack_tensors, write_atomic

Array = NDArray[Any]


class RunFolder:
    """State of one study on disk. A folder of another protocol is refused, never overwritten."""

    def __init__(self, folder: Path, study: StudyConfig) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / "study.json"
        if not path.exists():
            write_atomic(path, canonical_json(study.to_dict()))
        elif parse_json(path.read_bytes()) != parse_json(canonical_json(study.to_dict())):
            raise StudyError(
                "Expected a run folder of this study, found another protocol in it.",
                hint="Choose another --out, or move the old run away.",
            )

    def keep_reply(self, step: str, site: str, data: bytes) -> None:
        """Store one sealed reply."""
        path = self.folder / "replies" / step / f"{site}.reply"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, data)

    def kept_replies(self, step: str) -> dict[str, bytes]:
        """Sealed replies of a step, by site."""
        folder = self.folder / "replies" / step
        return (
            {path.stem: path.read_bytes() for path in sorted(folder.glob("*.reply"))}
            if folder.exists()
            else {}
        )

    def close_step(self, step: str) -> None:
        """No more replies to this step, whatever happens."""
        path = self.folder / "replies" / step / "closed"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, b"closed\n")

    def is_closed(self, step: str) -> bool:
        """Whether `close_step` was called."""
        return (self.folder / "replies" / step / "closed").exists()

    def keep_sum(self, kind: str, values: Array, sites: int) -> None:
        """A sum [m] int64 over `sites` sites."""
        path = self.folder / "sums" / f"{kind}.safetensors"
        path.parent.mkdir(exist_ok=True)
        write_atomic(path, pack_tensors({"values": values, "sites": np.array([sites], np.int64)}))

    def kept_sum(self, kind: str) -> tuple[Array, int] | None:
        """What `keep_sum` kept, or None."""
        path = self.folder / "sums" / f"{kind}.safetensors"
        if not path.exists():
            return None
        tensors = unpack_tensors(path.read_bytes())
        return tensors["values"], int(tensors["sites"][0])

    def save_start(self, tensors: Mapping[str, Array]) -> None:
        """The frozen dictionary of a validation, for the auditor's bundle."""
        if not (self.folder / "start.json").exists():
            save_checkpoint(self.folder / "start", tensors, {"kind": "start"})

    def save_added(self, first: Array, added: Array) -> None:
        """Under `dp`: the public rows with room behind them, and the same with what residual moments added."""
        for name, rows in (("first", first), ("added", added)):
            if not (self.folder / f"{name}.json").exists():
                save_checkpoint(self.folder / name, {"dictionary": rows}, {"kind": name})

    def save_round(self, number: int, dictionary: Array, record: dict[str, Any]) -> None:
        """The dictionary after round `number`, then its record: a round counts when its record exists."""
        facts = {"round": number, "model": "pursuit"}
        digest = save_checkpoint(self._dictionary(number), {"dictionary": dictionary}, facts)
        folder = self.folder / "rounds"
        folder.mkdir(exist_ok=True)
        write_atomic(folder / f"{number:04d}.json", canonical_json({**record, "dictionary": digest}))
        self._forget(number - 1)

    def _dictionary(self, number: int) -> Path:
        return self.folder / ("first" if number == 0 else f"dictionary-{number:04d}")

    def _forget(self, number: int) -> None:
        """Only the first and the last dictionary stay."""
        if number > 0:
            for suffix in (".safetensors", ".json"):
                self._dictionary(number).with_suffix(suffix).unlink(missing_ok=True)

    def rounds(self) -> list[dict[str, Any]]:
        """Records of the finished rounds, in order."""
        records = [parse_json(path.read_bytes()) for path in sorted((self.folder / "rounds").glob("*.json"))]
        return [record for record in records if isinstance(record, dict)]

    def dictionary(self, number: int, digest: str) -> Array:
        """The dictionary after round `number`, [n, d] float32, if its digest is the recorded one."""
        return np.asarray(load_checkpoint(self._dictionary(number), sha256=digest).tensors["dictionary"])


class ReplyTables(Mapping[str, Mapping[str, Array]]):
    """Tensors of one step by site, read from the kept replies on demand (they were verified when accepted)."""

    def __init__(self, folder: RunFolder, step: str, sites: list[str]) -> None:
        self._folder, self._step, self._sites = folder.folder / "replies" / step, step, sites

    def __getitem__(self, site: str) -> Mapping[str, Array]:
        if site not in self._sites:
            raise KeyError(site)
        return unpack_tensors(body_of((self._folder / f"{site}.reply").read_bytes()))

    def __iter__(self) -> Iterator[str]:
        return iter(self._sites)

    def __len__(self) -> int:
        return len(self._sites)
