"""Progress on the terminal: embedding bars with time left, rounds, one state per site. On standard error."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

STEP_WORDS = {
    "hello": "hello: same software, same encoder?",
    "moments": "federated mean and scale of tokens",
    "begin": "row sets fixed at the sites",
    "second": "noised moments of what is left",
    "third": "noised moments, once more",
    **{
        f"{kind}-{stage}": f"secure sum of {kind} moments: {stage}"
        for kind in ("second", "third")
        for stage in ("keys", "shares", "masked", "confirm", "unmask")
    },
    "describe-final": "concept tables of the final dictionary",
    "describe-random": "control: a random dictionary",
    "describe-init": "control: the dictionary before training",
    "score": "leave-one-site-out scores",
    "comparators": "comparators: pooled, local-only, PCA",
}


class Display:
    """A rich display that also works in a log file (then it prints plain lines)."""

    def __init__(self) -> None:
        self.console = Console(stderr=True)
        self._bars = Progress(
            TextColumn("{task.description:<34}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"), console=self.console, disable=not self.console.is_terminal,
        )  # fmt: skip
        self._tasks: dict[str, TaskID] = {}
        self._states: dict[str, str] = {}

    def __enter__(self) -> Display:
        self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bars.stop()

    def say(self, text: str) -> None:
        """One line above the bars."""
        self.console.print(text, highlight=False, markup=False)

    def bar(self, name: str) -> Callable[[int, int], None]:
        """A callback (done, total) that drives a bar of its own."""

        def update(done: int, total: int) -> None:
            task = self._task(name, total)
            self._bars.update(task, completed=done, total=total)
            if done >= total and not self.console.is_terminal:
                self.say(f"{name}: {total} images")

        return update

    def _task(self, name: str, total: int) -> TaskID:
        if name not in self._tasks:
            self._tasks[name] = self._bars.add_task(name, total=total, note="")
        return self._tasks[name]

    def watch(self, event: str, details: Mapping[str, Any]) -> None:
        """Events of `StudyRun` and the simulator."""
        if event == "step" and details["step"] == "round":
            self._bars.update(self._task("rounds", details["of"]), total=details["of"])
        elif event == "step":
            self.say(f"- {STEP_WORDS.get(details['step'], details['step'])}")
        elif event == "round":
            self._round(details)
        elif event == "site":
            self._states[details["site"]] = details["state"]
            note = " ".join(f"{site}:{state}" for site, state in sorted(self._states.items()))
            if "rounds" in self._tasks:
                self._bars.update(self._tasks["rounds"], note=note)
        elif event == "dropped":
            self.say(
                f"! site {details['site']} takes no further part: {details['code']} in {details['step']}"
            )
        elif event == "resumed":
            self.say(f"- going on after round {details['round']}")
        elif event == "comparator":
            self.say(f"- {details['name']} done")

    def _round(self, details: Mapping[str, Any]) -> None:
        fvu = details["fvu"]
        text = (
            f"  round {details['round']}: FVU before it {fvu:.4f}"
            if fvu is not None
            else "  round without FVU"
        )
        self.say(text + (f", faults {details['faults']}" if details["faults"] else ""))
        self._bars.update(self._task("rounds", 0), completed=details["round"])
