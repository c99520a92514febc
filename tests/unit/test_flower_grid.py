"""FlowerGrid against a grid that answers what Flower can answer, and the ServerApp's way to fail."""

from __future__ import annotations

import logging
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from cytosae_core.errors import StudyError

with warnings.catch_warnings():
    # click, imported by Flower, warns about its own next release.
    warnings.filterwarnings("ignore", "'click", DeprecationWarning)
    from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict
    from flwr.supercore.task_identity import TaskIdentity

    from cytosae_client import flower_blob
    from cytosae_server import app, flower_grid
    from cytosae_server.flower_grid import FlowerGrid

NODES = {"a": 11, "b": 22}


class FakeGrid:
    """Flower's grid with made-up nodes; `replies` are handed out once, to whoever asks for them."""

    def __init__(self) -> None:
        self.nodes = [SimpleNamespace(name=name, node_id=node_id) for name, node_id in NODES.items()]
        self.sent: dict[str, Any] = {}
        self.replies: list[Any] = []
        self.accepts = True

    def get_nodes(self) -> list[Any]:
        return self.nodes

    def push_messages(self, messages: list[Any]) -> list[str | None]:
        if not self.accepts:
            return [None]
        ids = [f"m{len(self.sent) + i}" for i, _ in enumerate(messages)]
        self.sent.update(zip(ids, messages, strict=True))
        return list(ids)

    def pull_messages(self, ids: list[str]) -> list[Any]:
        due = [reply for reply in self.replies if reply.metadata.reply_to_message_id in ids]
        self.replies = [reply for reply in self.replies if reply not in due]
        return due


def reply(to: str, content: Any = None, *, error: int | None = None, source: int = 11) -> Any:
    """A reply message; an error's source is 1, the SuperLink, as in Flower."""
    return SimpleNamespace(
        metadata=SimpleNamespace(reply_to_message_id=to, src_node_id=1 if error is not None else source),
        has_error=lambda: error is not None,
        error=SimpleNamespace(code=error, reason="patient-7"),
        content=content,
    )


@pytest.fixture
def grid(monkeypatch: pytest.MonkeyPatch) -> FakeGrid:
    # Flower builds messages only inside a run.
    for name in ("_task_id", "_run_id", "_node_id"):
        monkeypatch.setattr(TaskIdentity, name, 1)
    return FakeGrid()


def transport(grid: FakeGrid, **options: float) -> FlowerGrid:
    return FlowerGrid(grid, poll_s=0.01, **{"ttl_s": 3600.0, **options})


def test_both_sides_write_the_same_record(grid: FakeGrid) -> None:
    ticket = transport(grid).send("a", b"request", 60.0)
    assert ticket == "flower-1"
    message = grid.sent["m0"]
    assert message.metadata.dst_node_id == 11
    assert flower_blob.from_records(message.content) == b"request"
    assert (flower_grid.RECORD, flower_grid.ARRAY, flower_grid.STYPE) == ("cytosae", "blob", "cytosae.blob")


def test_a_reply_comes_back_under_its_ticket(grid: FakeGrid) -> None:
    port = transport(grid)
    assert port.sites() == ("a", "b")
    tickets = [port.send("a", b"1", 60.0), port.send("b", b"2", 60.0)]
    grid.replies = [
        reply("m1", flower_blob.to_records(b"two"), source=22),
        reply("m0", flower_blob.to_records(b"one")),
    ]
    answers = {answer.ticket: answer for answer in port.poll(1.0)}
    assert [(answers[t].site, answers[t].data, answers[t].fault) for t in tickets] == [
        ("a", b"one", ""),
        ("b", b"two", ""),
    ]
    assert port.poll(0.0) == []


@pytest.mark.parametrize(
    ("code", "fault"),
    [(code, "unreachable" if code in (3, 4, 5) else "relay") for code in (*range(9), 999)],
)
def test_every_error_code_is_one_of_the_faults_and_its_text_is_dropped(
    grid: FakeGrid, code: int, fault: str
) -> None:
    port = transport(grid)
    ticket = port.send("b", b"x", 60.0)
    grid.replies = [reply("m0", error=code)]
    (answer,) = port.poll(1.0)
    assert (answer.ticket, answer.site, answer.data, answer.fault) == (ticket, "b", None, fault)
    assert "patient" not in repr(answer)


@pytest.mark.parametrize(
    "content",
    [
        RecordDict(),
        RecordDict({"cytosae": ConfigRecord({"blob": b"x"})}),
        RecordDict({"cytosae": ArrayRecord({"other": Array("uint8", (1,), "cytosae.blob", b"x")})}),
        RecordDict({"cytosae": ArrayRecord({"blob": Array("uint8", (1,), "numpy.ndarray", b"x")})}),
        RecordDict({"cytosae": ArrayRecord({"blob": Array("uint8", (0,), "cytosae.blob", b"")})}),
    ],
)
def test_a_reply_that_is_not_our_record_is_a_relay_fault(grid: FakeGrid, content: Any) -> None:
    port = transport(grid)
    port.send("a", b"x", 60.0)
    grid.replies = [reply("m0", content)]
    assert [answer.fault for answer in port.poll(1.0)] == ["relay"]


def test_a_reply_from_another_node_than_asked_is_a_relay_fault(grid: FakeGrid) -> None:
    port = transport(grid)
    port.send("a", b"x", 60.0)
    grid.replies = [reply("m0", flower_blob.to_records(b"mine"), source=22)]
    assert [(answer.site, answer.data, answer.fault) for answer in port.poll(1.0)] == [("a", None, "relay")]


def test_unknown_sites_and_refused_messages_are_unreachable(grid: FakeGrid) -> None:
    port = transport(grid)
    port.send("nobody", b"x", 60.0)
    grid.accepts = False
    port.send("a", b"x", 60.0)
    assert [(answer.site, answer.fault) for answer in port.poll(1.0)] == [
        ("nobody", "unreachable"),
        ("a", "unreachable"),
    ]


def test_a_deadline_is_a_fault_and_the_late_reply_is_dropped(grid: FakeGrid) -> None:
    port = transport(grid)
    port.send("a", b"x", 0.02)
    port.send("b", b"y", 60.0)
    assert [(answer.site, answer.fault) for answer in port.poll(5.0)] == [("a", "deadline")]
    late, good = flower_blob.to_records(b"late"), flower_blob.to_records(b"good")
    grid.replies = [reply("m0", late), reply("m1", good, source=22)]
    assert [answer.data for answer in port.poll(1.0)] == [b"good"]
    assert port.poll(0.02) == []


def test_a_reply_that_waits_at_the_superlink_counts_even_past_its_deadline(grid: FakeGrid) -> None:
    port = transport(grid)
    port.send("a", b"x", 0.0)
    grid.replies = [reply("m0", flower_blob.to_records(b"in time at the SuperLink"))]
    assert [answer.fault for answer in port.poll(0.0)] == [""]


@pytest.mark.parametrize(("deadline_s", "fault"), [(0.0, "deadline"), (60.0, "unreachable")])
def test_a_request_that_flower_drops_at_its_end_of_life_is_late_not_unreachable(
    grid: FakeGrid, deadline_s: float, fault: str
) -> None:
    port = transport(grid)
    port.send("a", b"x", deadline_s)
    grid.replies = [reply("m0", error=4)]
    assert [answer.fault for answer in port.poll(0.0)] == [fault]


@pytest.mark.parametrize(("deadline_s", "ttl_s", "expected"), [(60.0, 3600.0, 60.0), (60.0, 5.0, 5.0)])
def test_a_message_lives_no_longer_than_deadline_and_ttl(
    grid: FakeGrid, deadline_s: float, ttl_s: float, expected: float
) -> None:
    transport(grid, ttl_s=ttl_s).send("a", b"x", deadline_s)
    assert grid.sent["m0"].metadata.ttl == pytest.approx(expected)


def test_two_nodes_under_one_name_are_refused(grid: FakeGrid) -> None:
    grid.nodes.append(SimpleNamespace(name="a", node_id=33))
    with pytest.raises(StudyError, match="one SuperNode per site name"):
        transport(grid).sites()


def test_close_forgets_what_was_asked(grid: FakeGrid) -> None:
    port = transport(grid)
    port.send("a", b"x", 60.0)
    port.send("nobody", b"x", 60.0)
    port.close()
    grid.replies = [reply("m0", flower_blob.to_records(b"x"))]
    assert port.poll(0.0) == []


def context(study: str) -> Any:
    return SimpleNamespace(run_config={"study": study, "poll-s": 0.2, "ttl-s": 60.0})


@pytest.mark.parametrize("study", ["", "relative/folder", "/no/such/folder"])
def test_a_wrong_study_path_fails_the_run_with_a_hint(study: str, grid: FakeGrid) -> None:
    with pytest.raises(app.RunFailed, match="absolute path"):
        app.main(grid, context(study))


def test_a_failed_study_fails_the_run_and_logs_words_not_tracebacks(
    tmp_path: Path, grid: FakeGrid, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def missed(transport: Any, study: Path) -> int:
        raise StudyError("Expected quorum=2 sites to answer, got 1.", hint="Look at site-b.")

    monkeypatch.setattr(app, "run_over_flower", missed)
    flower_log = logging.getLogger("flwr")
    monkeypatch.setattr(flower_log, "propagate", True)
    with pytest.raises(app.RunFailed) as caught:
        app.main(grid, context(str(tmp_path)))
    flower_log.error("ServerApp raised an exception", exc_info=caught.value)  # what Flower does with it
    assert "StudyError: Expected quorum=2" in caplog.text and "Look at site-b." in caplog.text
    assert "Traceback" not in caplog.text


def test_a_status_other_than_zero_fails_the_run(
    tmp_path: Path, grid: FakeGrid, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(app, "run_over_flower", lambda transport, study: 3)
    with pytest.raises(app.RunFailed, match="status=3"):
        app.main(grid, context(str(tmp_path)))
    monkeypatch.setattr(app, "run_over_flower", lambda transport, study: 0)
    app.main(grid, context(str(tmp_path)))
