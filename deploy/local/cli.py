"""The program `cytosae`: one small parser per group; nothing heavy is imported before a command runs."""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Sequence

# group -> (module with `register(parser)`, help). Modules import torch and flwr only inside their commands.
GROUPS = {
    "demo": ("cytosae_local.demo_cli", "run a whole federation on this machine, on synthetic or given cells"),
    "study": ("cytosae_local.study_cli", "coordinator: run a study from its protocol"),
    "site": ("cytosae_client.cli", "hospital: check data, see what would leave, serve"),
    "sae": ("cytosae_local.sae_cli", "make and inspect dictionaries"),
    "concepts": (
        "cytosae_local.concepts_cli",
        "concepts of local cells at four scales, of data-set statistics, of a report",
    ),
    "audit": ("cytosae_local.audit_cli", "auditor: check signatures and numbers"),
    "encoder": ("cytosae_local.encoder_cli", "list, fetch, convert and check encoders; embed images"),
    "data": ("cytosae_local.data_cli", "public data sets in their published folders"),
    "doctor": ("cytosae_local.doctor", "what is wrong on this machine, in a home or in a study; what to do"),
}


def build_parser() -> argparse.ArgumentParser:
    """The whole command tree."""
    parser = argparse.ArgumentParser(prog="cytosae", description=__doc__.splitlines()[0] if __doc__ else None)
    groups = parser.add_subparsers(dest="group", required=True, metavar="COMMAND")
    for name, (module, text) in GROUPS.items():
        importlib.import_module(module).register(groups.add_parser(name, help=text, description=text))
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command. Exit codes: 0 good, 1 an error with its message, 2 usage, 130 stopped by Ctrl-C."""
    # Before torch starts its threads: spinning between products costs as much as the products themselves.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    options = build_parser().parse_args(arguments)
    from cytosae_core.errors import CytosaeError

    try:
        return int(options.run(options) or 0)
    except CytosaeError as error:
        print(f"cytosae: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("cytosae: stopped. Run the same command again to go on where it stopped.", file=sys.stderr)
        return 130
    except BrokenPipeError:
        return 1
    except MemoryError:
        print(
            "cytosae: Expected more memory. Hint: close other programs; see docs/operations.md.",
            file=sys.stderr,
        )
        return 1
    except OSError as error:  # a full disk, a folder without rights: nothing that a traceback would explain
        said = f"cytosae: the system refused: {error.strerror or type(error).__name__}."
        print(f"{said} Hint: cytosae doctor, then the same command again.", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
