"""`cytosae study admit`: a new site, scored against a finished study on this machine."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cytosae_client.site import Site
    from cytosae_core.config import StudyConfig
    from cytosae_server.admission import Finished


def register(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command."""
    admit = commands.add_parser("admit", help="score a new site against a finished study")
    admit.add_argument("folder", type=Path, metavar="OUT", help="folder of the finished study")
    admit.add_argument("--site", required=True, metavar="NAME=FOLDER", help="the new site and its images")
    admit.add_argument(
        "--policy", help="built-in policy of the new site (default: the study's section local)"
    )
    admit.add_argument(
        "--weights", type=Path, help="weights of the encoder (default: the study's section local)"
    )
    admit.add_argument("--max-images", type=int, help="images at most (default: the study's section local)")
    admit.add_argument("--json", action="store_true")
    admit.set_defaults(run=_admit)


def _admit(options: argparse.Namespace) -> int:
    from cytosae_core.errors import StudyError
    from cytosae_server.admission import admission_protocol, read_finished

    from .yaml_study import result_folder

    name, _, images = options.site.partition("=")
    if not name or not images or not Path(images).is_dir():
        raise StudyError(
            f"Expected --site NAME=FOLDER with a folder of images, got {options.site!r}.",
            hint="new-site=path/to/it",
        )
    finished = read_finished(result_folder(options.folder))
    study = admission_protocol(finished, name)
    out = options.folder / f"admit-{name}"
    if (out / "report.json").exists():
        raise StudyError(
            f"Expected no admission of site={name} yet, there is one in {out}.",
            hint="One look at one site: move the folder away only if you record why.",
        )
    report = _run(options, finished, study, Path(images), out)
    if options.json:
        print(json.dumps({"report": str(out / "report.html"), **report}, allow_nan=False))
    else:
        _print(report, out)
    return 0


def _run(
    options: argparse.Namespace, finished: Finished, study: StudyConfig, images: Path, out: Path
) -> dict[str, Any]:
    """Embed the new site, ask it, write OUT/admit-NAME/report.json and report.html."""
    from cytosae_client.session import Session
    from cytosae_core.canonical import sha256_hex
    from cytosae_core.report.admission import admission_report, render_admission
    from cytosae_core.report.text_json import report_bytes
    from cytosae_core.tensors import write_atomic
    from cytosae_server.admission import AdmissionRun
    from cytosae_server.runfolder import RunFolder
    from cytosae_server.transport import LocalGrid

    from .progress import Display

    with Display() as display:
        site = _site(options, study, images, out, display)
        session = Session(site, study, finished.key.public_hex)
        grid = LocalGrid({site.name: session.handle})
        run = AdmissionRun(
            finished, study, site.key.public_hex, grid, RunFolder(out / "run", study), display.watch
        )
        try:
            report = admission_report(study, run.run(), finished.report, finished.report_sha256)
            data, page = report_bytes(report), render_admission(report).encode()
            write_atomic(out / "report.html", page)
            run.close(sha256_hex(data), sha256_hex(page))
            write_atomic(out / "report.json", data)  # last: it says that the admission is finished
        finally:
            grid.close()
            run.record.close()
            session.close()
    return report


def _site(options: argparse.Namespace, study: StudyConfig, images: Path, out: Path, display: Any) -> Site:
    from cytosae_core.config import load_yaml

    from .sites import embed, make_site
    from .yaml_study import encoder_for

    path = options.folder / "study.yaml"
    section = load_yaml(path).get("local") if path.exists() else None
    local: dict[str, Any] = dict(section) if isinstance(section, dict) else {}
    base = options.folder
    if options.weights:
        local["weights"], base = options.weights.resolve(), Path()
    limit = options.max_images if options.max_images is not None else local.get("max_images")
    encoder = encoder_for(study, local, base)
    item = embed(
        images, study.sites[-1], encoder, options.folder / "stores",
        max_images=limit or None, progress=display.bar(study.sites[-1]),
    )  # fmt: skip
    policy = options.policy or str(local.get("policy", "evaluate_only"))
    return make_site(item, policy, out / "home", simulation=study.simulation)


def _print(report: dict[str, Any], out: Path) -> None:
    print(f"\n{report['verdict']['sentence']}\n")
    for part in report["endpoints"]:
        value = "none" if part["value"] is None else f"{part['value']:.3f}"
        error = "" if part["se"] is None else f" (SE {part['se']:.3f})"
        expected = (
            "none" if part["prediction"] is None else " to ".join(f"{end:.3f}" for end in part["prediction"])
        )
        reason = f": {part['reason']}" if part["reason"] else ""
        print(f"  {part['id']:14} {value}{error}   expected {expected}   {part['status']}{reason}")
    print(f"\nReport: {out / 'report.html'}  (data: {out / 'report.json'})")
