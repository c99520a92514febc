"""Residual moments under secure aggregation: the coordinator sees sums only, whoever drops out and whenever."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from cytosae_core.audit.recompute import audit_bundle
from cytosae_core.envelope import body_of
from cytosae_core.errors import MessageError, StudyError
from cytosae_core.privacy.secagg_wire import shares_of
from cytosae_core.report.plan_document import plan_document
from cytosae_core.tensors import unpack_tensors
from cytosae_server.desk import Ask
from cytosae_server.replay import replay_bundle
from cytosae_server.study import rebuild_report
from cytosae_server.sums import STAGES, StudySum, message_of
from cytosae_server.transport import LocalGrid
from tests.federation import D, Federation, study_config
from tests.integration.test_bundle import bundled, finished, pinned
from tests.integration.test_private_study import POLICY, TRAIN, private_study, start

Handler = Callable[[bytes], bytes]
SECURE = replace(TRAIN, secure_aggregation=True)
SITES = tuple(f"site-{index}" for index in range(5))
LAST = "site-4"


def federation(folder: Path, **more: object) -> Federation:
    base = private_study(SECURE)
    study = replace(
        base,
        sites=SITES,
        rounds=replace(base.rounds, quorum=3, retries=0),
        plan=replace(base.plan, min_sites=5),
    )
    return Federation(folder, study=study, policy=POLICY, start=start(), **more)  # type: ignore[arg-type]


def away(kind: str) -> Callable[[Handler], Handler]:
    """A site whose machine fails at a stage of the first sum, and stays away from that sum."""

    def wrap(handle: Handler) -> Handler:
        gone: list[bool] = []

        def wrapped(request: bytes) -> bytes:
            if f'"kind":"{kind}"'.encode() in request:
                gone.append(True)
            if gone:
                raise RuntimeError
            return handle(request)

        return wrapped

    return wrap


class Killed(BaseException):
    """The coordinator's process ends."""


def until(made: Federation, step: str) -> list[tuple[str, dict[str, object]]]:
    """Run until a step begins, then die; the events until then."""
    seen: list[tuple[str, dict[str, object]]] = []

    def watch(event: str, details: dict[str, object]) -> None:
        seen.append((event, dict(details)))
        if event == "step" and details["step"] == step:
            raise Killed

    with closing(LocalGrid(made.handlers())) as grid, pytest.raises(Killed):
        made.study_run(grid, watch=watch).run()
    return seen


def summed(made: Federation) -> tuple[int, np.ndarray]:
    total = unpack_tensors((made.home / "run" / "sums" / "second.safetensors").read_bytes())
    return int(total["sites"][0]), total["values"]


def drawn(made: Federation, kind: str, sites: tuple[str, ...]) -> np.ndarray:
    """The sum of what the sites drew, which only they hold."""
    found = []
    for site in sites:
        (path,) = made.sessions[site].state.glob(f"release-{kind}-*.safetensors")
        found.append(unpack_tensors(path.read_bytes())["total"])
    return np.asarray(np.sum(found, axis=0))


def test_the_sum_is_that_of_all_sites_and_no_site_is_seen_alone(tmp_path: Path) -> None:
    made = federation(tmp_path)
    run = made.run()
    sites, values = summed(made)
    assert sites == 5 and (values == drawn(made, "second", SITES)).all()
    assert run.result.faults == [] and (run.result.final[-12:] != 0).any()
    seen = [
        path.read_bytes() for path in sorted((tmp_path / "run" / "replies" / "second-masked").glob("*.reply"))
    ]
    words = np.stack([unpack_tensors(body_of(data))["second_masked"] for data in seen])
    assert words.shape == (5, D * (D + 1) // 2)
    signed = words.view(np.int32).astype(np.float64)
    assert np.abs(signed).mean() == pytest.approx(
        2**30, rel=0.2
    )  # uniform words, far above any site's own numbers
    charged = made.sessions[LAST]._budget._privacy.summary()  # type: ignore[union-attr]
    assert [item["kind"] for item in charged["releases"]] == ["sum_masked", "sum_masked", "describe"]


@pytest.mark.parametrize("stage", STAGES)
def test_a_site_that_drops_out_at_any_stage_is_left_out_and_the_sum_is_exact(
    tmp_path: Path, stage: str
) -> None:
    kind, _ = message_of("second", stage)
    made = federation(tmp_path, wrap={LAST: away(kind)})
    seen = until(made, "third-keys")
    assert ("dropped", {"site": LAST, "step": f"second-{stage}", "code": "relay"}) in seen
    within = SITES if stage in ("confirm", "unmask") else SITES[:-1]
    sites, values = summed(made)
    assert sites == len(within) and (values == drawn(made, "second", within)).all()


def test_fewer_than_the_threshold_give_no_sum(tmp_path: Path) -> None:
    made = federation(tmp_path, wrap={site: away("sum_confirm") for site in SITES[3:]})
    with pytest.raises(StudyError, match="threshold=4"):
        made.run()
    assert not (tmp_path / "run" / "sums").exists()


def test_a_coordinator_killed_between_stages_goes_on_with_the_same_survivors(tmp_path: Path) -> None:
    made = federation(tmp_path, wrap={LAST: away("sum_masked")})
    until(made, "second-confirm")
    made.wrap = {}  # the drop-out is back: too late for this sum
    until(made, "third-keys")
    sites, values = summed(made)
    assert sites == 4 and (values == drawn(made, "second", SITES[:-1])).all()


def asked(
    made: Federation, site: str, kind: str, number: int, tensors: dict[str, np.ndarray]
) -> tuple[str, str]:
    envelope = made.ask(site, Ask(kind, number, tensors, {}))
    if envelope is None:
        return "none", ""
    return str(envelope.header["status"]), str(envelope.header.get("code", ""))


def roster(made: Federation) -> dict[str, str]:
    return {name: site.key.public_hex for name, site in made.sites.items()}


def test_a_restarted_site_never_masks_a_second_time(tmp_path: Path) -> None:
    made = federation(tmp_path)
    until(made, "second-confirm")
    again = federation(tmp_path)  # agents that were started again
    keys = StudySum(again.study, "second", roster(again)).asked(LAST)
    with pytest.raises(MessageError, match="one sum of each kind"):
        again.sessions[LAST].steps.sums.keys("second", keys)
    with pytest.raises(MessageError, match="since it started"):
        again.sessions[LAST].steps.sums.confirm("second", {"members": np.ones(5, np.uint8)})


def test_a_second_roster_another_sum_and_early_stages_are_refused(tmp_path: Path) -> None:
    made = federation(tmp_path)
    keys = StudySum(made.study, "second", roster(made)).asked(LAST)
    assert asked(made, LAST, "sum_shares", 0, {"keys": np.zeros((5, 128), np.uint8)}) == (
        "refused",
        "message",
    )
    assert asked(made, LAST, "sum_keys", 2, keys) == ("refused", "message")
    assert asked(made, LAST, "sum_keys", 0, {}) == ("refused", "message")
    assert asked(made, LAST, "sum_keys", 0, {"roster": keys["roster"][:3]}) == ("refused", "message")
    assert asked(made, LAST, "sum_keys", 0, keys) == ("ok", "")
    assert asked(made, LAST, "sum_keys", 0, keys) == ("ok", "")  # a repeat: the same keys
    other = keys["roster"].copy()
    other[0] ^= 1
    assert asked(made, LAST, "sum_keys", 1, {"roster": other}) == ("refused", "message")


def test_a_roster_without_this_sites_key_is_refused(tmp_path: Path) -> None:
    made = federation(tmp_path)
    rows = StudySum(made.study, "second", roster(made)).asked(LAST)["roster"].copy()
    rows[-1] ^= 1
    assert asked(made, LAST, "sum_keys", 0, {"roster": rows}) == ("refused", "study")


def test_no_moment_leaves_in_the_open_where_the_protocol_says_masks(tmp_path: Path) -> None:
    made = federation(tmp_path)
    first = np.zeros((made.study.dictionary.n, D), np.float32)
    first[: len(start()["dictionary"])] = start()["dictionary"]
    body = {"dictionary": first, "mean": np.zeros(D, np.float32), "scale": np.array([1.5], np.float32)}
    assert asked(made, LAST, "second", 0, body) == ("refused", "message")
    plain = Federation(tmp_path / "plain", study=private_study(TRAIN), policy=POLICY, start=start())
    rows = StudySum(replace(made.study), "second", roster(made)).asked(LAST)
    assert asked(plain, "site-1", "sum_keys", 0, rows) == ("refused", "message")


def test_an_auditor_sums_up_again_from_the_bundle(tmp_path: Path) -> None:
    files = bundled(federation(tmp_path, wrap={LAST: away("sum_shares")}))
    verdict = replay_bundle(files)
    assert verdict.exit_code == 0, verdict.to_dict()["first_broken"]
    assert "come out again" in next(check.text for check in verdict.checks if check.name == "rounds")
    verified = audit_bundle(files, pinned=pinned(files))
    assert verified.exit_code == 0, verified.to_dict()["first_broken"]


def test_the_report_is_made_again_from_the_folder(tmp_path: Path) -> None:
    home = finished(federation(tmp_path))
    before = (home / "report.json").read_bytes()
    (home / "report.html").unlink()
    rebuild_report(home)
    assert (home / "report.json").read_bytes() == before and (home / "report.html").exists()


def test_noise_shares_count_on_no_more_sites_than_must_be_honest() -> None:
    for sites, shares in ((3, 2), (5, 2), (10, 4)):
        study = replace(private_study(SECURE), sites=tuple(f"site-{index}" for index in range(sites)))
        assert shares_of(study) == shares
    assert shares_of(private_study(TRAIN)) == 1


def test_two_sites_or_another_profile_cannot_have_secure_sums() -> None:
    with pytest.raises(StudyError, match="at least 3 sites"):
        replace(private_study(SECURE), sites=("site-0", "site-1"))
    with pytest.raises(StudyError, match="no part privacy"):
        study_config(3, privacy=SECURE)


def test_the_plan_says_what_is_promised_and_that_sums_are_masked() -> None:
    document = plan_document(private_study(SECURE))
    promise = next(part for part in document["sections"] if part["id"] == "promise")
    assert "8 at delta 0.0001" in str(promise) and "under masks" in str(promise)
    computed = next(part for part in document["sections"] if part["id"] == "computed")
    assert "sum_unmask" in str(computed)
    leaves = str(next(part for part in document["sections"] if part["id"] == "leaves"))
    assert "second_masked" in leaves and "second_moment" not in leaves
