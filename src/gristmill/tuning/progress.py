"""What a tuning run tells while it runs: to nobody, or to a progress line with the best so far."""

from __future__ import annotations

import sys
from typing import Protocol

from gristmill import settings
from gristmill.core.plan import Candidate, Outcome
from gristmill.tuning.budget import TuningResult


def counted(count: int, noun: str) -> str:
    """A number with its noun."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


class Observer(Protocol):
    """Hears of a tuning run."""

    def started(self, problem: str, seconds: float, trials: int | None) -> None: ...

    def told(self, candidate: Candidate, outcome: Outcome, elapsed_s: float) -> None: ...

    def racing(self, count: int) -> None: ...

    def warned(self, text: str) -> None: ...

    def ended(self, summary: str) -> None: ...


class Silent:
    """Hears and says nothing."""

    def started(self, problem: str, seconds: float, trials: int | None) -> None:
        del problem, seconds, trials

    def told(self, candidate: Candidate, outcome: Outcome, elapsed_s: float) -> None:
        del candidate, outcome, elapsed_s

    def racing(self, count: int) -> None:
        del count

    def warned(self, text: str) -> None:
        del text

    def ended(self, summary: str) -> None:
        del summary


class ProgressLine:
    """One line on stderr: share of the budget used, candidates measured and failed, the best so
    far."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            TimeElapsedColumn(),
            TextColumn("{task.fields[note]}"),
            console=Console(stderr=True),
        )
        self._task = self._progress.add_task("", total=None, note="")
        self._trials: int | None = None
        self._seen = self._failed = 0
        self._best: tuple[float, str] | None = None

    def started(self, problem: str, seconds: float, trials: int | None) -> None:
        self._trials = trials
        self._progress.start()
        self._progress.console.print(f"tuning [bold]{problem}[/bold]", highlight=False)
        self._progress.update(
            self._task, total=trials or seconds, description="measuring", note="starting the worker"
        )

    def told(self, candidate: Candidate, outcome: Outcome, elapsed_s: float) -> None:
        self._seen += 1
        self._failed += outcome.status not in ("ok", "slow")
        if (
            outcome.ok
            and outcome.device_us is not None
            and (self._best is None or outcome.device_us < self._best[0])
        ):
            self._best = (outcome.device_us, candidate.implementation)
        best = f", best {self._best[0]:.2f} us ({self._best[1]})" if self._best else ""
        failed = f", {self._failed} failed" if self._failed else ""
        done = self._seen if self._trials else elapsed_s
        self._progress.update(
            self._task, completed=done, note=f"{counted(self._seen, 'candidate')}{failed}{best}"
        )

    def racing(self, count: int) -> None:
        self._progress.update(self._task, description=f"racing {count} finalists")

    def warned(self, text: str) -> None:
        self._progress.console.print(text, style="yellow", markup=False, highlight=False)

    def ended(self, summary: str) -> None:
        self._progress.stop()
        self._progress.console.print(summary, highlight=False)


def summary(result: TuningResult, measured: int, resumed: int) -> str:
    """A run in one line; `resumed` of its candidates had been measured before."""
    if result.skipped:
        return f"not tuned: {result.skipped}"
    failed = sum(o.status not in ("ok", "slow") for o in result.outcomes.values())
    text = f"{counted(measured, 'candidate')} in {result.seconds:.1f} s"
    if resumed:
        text += f" and {resumed} from before"
    if failed:
        text += f", {failed} failed"
    if result.stopped:
        text += f"; stopped: {result.stopped}"
    plan = result.plans.get("eager")
    if plan is not None:
        text += f"; chosen: {plan.candidate}, {plan.reason}"
    return text + ("; interrupted, what was measured is kept" if result.interrupted else "")


def observer() -> Observer:
    """A progress line where the settings or a terminal ask for one, else silence."""
    wanted = settings.current().progress
    return ProgressLine() if (sys.stderr.isatty() if wanted is None else wanted) else Silent()
