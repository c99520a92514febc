"""Cosignatures that a log collected: for every witness the newest, beside the checkpoint that it is on."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from ...canonical import canonical_json, parse_json
from ...errors import VerificationError
from ...tensors import write_atomic
from ..note import checkpoint_text, open_note, parse_checkpoint, split_note
from .tree import Tree

MAX_BACK = 4096


class Cosignatures:
    """Kept in one file, `{size: {"note": checkpoint, "lines": {vkey: line}}}`, replaced atomically.

    Args:
        path: the file. origin: the log's. tree: its hashes. note_at: the log's own signed checkpoint at a size.
        since: the smallest size for which `note_at` has the right key.
    """

    def __init__(
        self,
        path: Path,
        origin: str,
        tree: Tree,
        note_at: Callable[[int], bytes],
        since: Callable[[], int] = lambda: 0,
    ) -> None:
        self._path, self._origin, self._tree, self._note_at, self._since = path, origin, tree, note_at, since
        self._kept = self._load()

    def _load(self) -> dict[int, tuple[bytes, dict[str, str]]]:
        if not self._path.exists():
            return {}
        found = {}
        for size, entry in parse_json(self._path.read_bytes()).items():
            found[int(size)] = (entry["note"].encode(), dict(entry["lines"]))
            self._check(*found[int(size)])
        return found

    def _check(self, note: bytes, lines: dict[str, str]) -> None:
        text = split_note(note)[0]
        head = parse_checkpoint(text)
        if head.size > self._tree.size or text != self._text(head.size):
            raise VerificationError("Expected cosignatures of this log.", reason="FORK", code="fork")
        for vkey, line in lines.items():
            _signed(text, line, vkey)

    def add(self, line: str, vkey: str) -> int:
        """Keep a cosignature if it is this witness's newest; the size that it is for.

        Raises:
            VerificationError: reason NOTE or SIG: not `vkey`'s on one of the last 4,096 heads under this log key.
        """
        newest = self._tree.size
        for size in range(newest, max(newest - MAX_BACK, self._since(), 0) - 1, -1):
            try:
                _signed(self._text(size), line, vkey)
            except VerificationError as error:
                if error.reason != "SIG":
                    raise
                continue
            if size >= max((kept for kept, (_, lines) in self._kept.items() if vkey in lines), default=0):
                self._keep(size, line, vkey)
            return size
        raise VerificationError("Expected a cosignature of one of this log's heads.", reason="SIG")

    def _keep(self, size: int, line: str, vkey: str) -> None:
        for _, lines in self._kept.values():
            lines.pop(vkey, None)
        note, lines = self._kept.get(size) or (self._note_at(size), {})
        self._kept[size] = (note, {**lines, vkey: line})
        self._kept = {key: entry for key, entry in self._kept.items() if entry[1]}
        content = {
            str(key): {"note": text.decode(), "lines": kept} for key, (text, kept) in self._kept.items()
        }
        write_atomic(self._path, canonical_json(content))

    def newest(self, at_least: int = 1) -> bytes:
        """The newest checkpoint with `at_least` cosignatures, and these; empty when there is none."""
        sizes = [size for size, (_, lines) in self._kept.items() if len(lines) >= at_least]
        return self.at(max(sizes)) if sizes else b""

    def at(self, size: int) -> bytes:
        """The checkpoint at `size` with the cosignatures that are kept for it, which may be none."""
        note, lines = self._kept.get(size) or (self._note_at(size), {})
        return note + "".join(f"{lines[vkey]}\n" for vkey in sorted(lines)).encode()

    def _text(self, size: int) -> str:
        return checkpoint_text(self._origin, size, self._tree.root(size))


def _signed(text: str, line: str, vkey: str) -> None:
    if vkey not in open_note(f"{text}\n{line}\n".encode(), [vkey])[1]:
        raise VerificationError("Expected a cosignature of this key.", reason="SIG")
