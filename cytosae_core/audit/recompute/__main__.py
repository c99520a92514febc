"""`python verifier.pyz BUNDLE [--json] [--keys FILE]`, the same as `cytosae audit verify`."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from ...canonical import parse_json, sha256_hex
from ...errors import CytosaeError, VerificationError
from ..verify import Verdict
from . import audit_bundle

MAX_FILES, MAX_FILE_BYTES = 1_000_000, 1 << 31


def read_bundle(folder: Path) -> dict[str, bytes]:
    """Files below a folder by path. Raises VerificationError for anything but regular files of a sane size."""
    found: dict[str, bytes] = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_symlink() or not (path.is_dir() or path.is_file()):
            raise VerificationError(
                f"Expected regular files only, got {name}.", hint="Unpack the bundle again."
            )
        if path.is_file():
            if path.stat().st_size > MAX_FILE_BYTES or len(found) >= MAX_FILES:
                raise VerificationError(f"Expected files of at most {MAX_FILE_BYTES} bytes, got {name}.")
            found[name] = path.read_bytes()
    if not found:
        raise VerificationError(
            f"Expected a bundle folder, got {folder}.", hint="Name the folder of bundle.json."
        )
    return found


def run(folder: Path, keys: Path | None, as_json: bool) -> int:
    """Verify, print, and return the exit code."""
    try:
        pinned = None if keys is None else parse_json(keys.read_bytes())
    except OSError as error:
        raise VerificationError(
            f"Expected a file with keys, got {keys}.", hint="See docs/auditor.md."
        ) from error
    return show(audit_bundle(read_bundle(folder), pinned=pinned), str(folder), as_json)


def show(verdict: Verdict, name: str, as_json: bool) -> int:
    """Print a verdict, and return its exit code."""
    program = Path(sys.argv[0])
    own = sha256_hex(program.read_bytes()) if program.suffix == ".pyz" else ""
    if as_json:
        print(json.dumps({"bundle": name, "verifier_sha256": own, **verdict.to_dict()}))
        return verdict.exit_code
    for check in verdict.checks:
        where = f" [{check.link}]" if check.link else ""
        print(f"{check.number:3} {check.state:11} {check.name}: {check.text}{where}")
    if first := verdict.to_dict()["first_broken"]:
        print(f"\nFAILED. First broken link: {first}")
    else:
        print(
            "\nVERIFIED." if verdict.exit_code == 0 else "\nNothing failed, but not everything was checked."
        )
    if own:
        print(f"This verifier: SHA-256 {own}")
    return verdict.exit_code


def main(arguments: Sequence[str] | None = None) -> int:
    """The program."""
    parser = argparse.ArgumentParser(prog="verifier.pyz", description=__doc__)
    parser.add_argument("bundle", type=Path, metavar="BUNDLE")
    parser.add_argument("--keys", type=Path, help="keys.json as the parties gave it to you")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args(arguments)
    try:
        return run(options.bundle, options.keys, options.json)
    except CytosaeError as error:
        print(f"verifier: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
