"""Flower ServerApp of a study: hands Flower's grid to the round loop.

flwr run deploy/study --run-config 'study="/absolute/path"' -> main -> run_study_folder(folder, transport)
"""

from __future__ import annotations

import logging
from pathlib import Path

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from cytosae_core.errors import CytosaeError, StudyError

from .flower_grid import FlowerGrid
from .transport import Transport

LOG = logging.getLogger("flwr")
app = ServerApp()


class RunFailed(Exception):
    """Ends a Flower run as failed. Its message is all that a user needs: no traceback is logged for it."""


class _NoTraceback(logging.Filter):
    """Flower logs the traceback of whatever a ServerApp raises; for `RunFailed` it would say nothing."""

    def filter(self, record: logging.LogRecord) -> bool:
        if record.exc_info and isinstance(record.exc_info[1], RunFailed):
            record.exc_info = None
        return True


def main(grid: Grid, context: Context) -> None:
    """Run the study in the folder that the run-config key `study` names.

    Raises:
        RunFailed: the study ended with an error or a status other than 0; Flower marks the run as failed.
    """
    LOG.addFilter(_NoTraceback())
    config = context.run_config
    transport = FlowerGrid(grid, poll_s=float(config["poll-s"]), ttl_s=float(config["ttl-s"]))
    try:
        status = run_over_flower(transport, _study_folder(str(config["study"])))
    except CytosaeError as error:
        LOG.error("%s: %s", type(error).__name__, error)
        raise RunFailed(str(error)) from None
    finally:
        transport.close()
    if status != 0:
        raise RunFailed(f"Expected status=0 of the study, got status={status}.")


def run_over_flower(transport: Transport, study: Path) -> int:
    """The round loop over `transport`; returns its exit status, 0 when the study ended well."""
    # Here and not above: `flwr build` and the Flower CLI load this module only to check that `app` exists.
    from .mail import with_mail
    from .progress import Progress
    from .study import run_study_folder

    return int(
        run_study_folder(
            study, with_mail(transport, study / "net"), Progress(study / "run" / "progress.json")
        )
    )


def _study_folder(text: str) -> Path:
    folder = Path(text)
    if not folder.is_absolute() or not folder.is_dir():
        raise StudyError(
            f"Expected study=<absolute path of a study folder>, got study={text!r}.",
            hint="Pass --run-config 'study=\"/path\"' with a path on the machine of flower-superexec.",
        )
    return folder


# A call and not a decorator: Flower's is untyped and would take the types off `main`.
app.main()(main)
