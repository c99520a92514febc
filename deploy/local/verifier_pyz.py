"""verifier.pyz: the verifier in one file, for any Python 3.11 with `cryptography`. Same source, same bytes."""

from __future__ import annotations

import io
import subprocess
import sys
import zipfile
from pathlib import Path

import cytosae_core
from cytosae_core.errors import SetupError

ENTRY = "cytosae_core.audit.recompute.__main__"
MAIN = f"import sys\nfrom {ENTRY} import main\nsys.exit(main())\n"
FIRST_DAY = (1980, 1, 1, 0, 0, 0)  # a zip file has no earlier one


def verifier_sources() -> dict[str, Path]:
    """Every module of the project that the verifier imports, by its path in the archive."""
    root = Path(str(cytosae_core.__file__)).parents[1]
    own = "(m.__file__ for n, m in sys.modules.items() if n.startswith('cytosae_core'))"
    code = f"import sys, {ENTRY}\nprint(*{own})"
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SetupError("Expected a verifier that imports.", hint="Install the release again.")
    files = [Path(name) for name in done.stdout.split()]
    return {path.relative_to(root).as_posix(): path for path in sorted(files)}


def build_pyz() -> bytes:
    """The archive's bytes; they depend on the sources only (stored, sorted, one date)."""
    stream = io.BytesIO()
    stream.write(b"#!/usr/bin/env python3\n")
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_STORED) as archive:
        content = {name: path.read_bytes() for name, path in verifier_sources().items()}
        for name, data in sorted({**content, "__main__.py": MAIN.encode()}.items()):
            entry = zipfile.ZipInfo(name, FIRST_DAY)
            entry.external_attr = 0o644 << 16
            archive.writestr(entry, data)
    return stream.getvalue()
