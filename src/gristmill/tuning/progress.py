"""What a tuning run tells while it runs: to nobody, or to a progress line with the best so far."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Protocol

from gristmill import settings
from gristmill.core.plan import Candidate, Outcome
from gristmill.tuning.budget import TuningResult

if TYPE_CHECKING:
    from rich.progress import Progress


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


class Tally:
    """What a run has measured so far, in words."""

    def __init__(self) -> None:
        self.seen = self.failed = 0
        self._best: tuple[float, str] | None = None

    def count(self, candidate: Candidate, outcome: Outcome) -> None:
        """One more outcome."""
        self.seen += 1
        self.failed += outcome.status not in ("ok", "slow")
        if (
            outcome.ok
            and outcome.device_us is not None
            and (self._best is None or outcome.device_us < self._best[0])
        ):
            self._best = (outcome.device_us, candidate.implementation)

    def __str__(self) -> str:
        best = f", best {self._best[0]:.2f} us ({self._best[1]})" if self._best else ""
        failed = f", {self.failed} failed" if self.failed else ""
        return f"{counted(self.seen, 'candidate')}{failed}{best}"


class ProgressLine:
    """One line on stderr: share of the budget used, candidates measured and failed, the best so
    far."""

    def __init__(self) -> None:
        self._progress = progress_display()
        self._task = self._progress.add_task("", total=None, note="")
        self._trials: int | None = None
        self._tally = Tally()

    def started(self, problem: str, seconds: float, trials: int | None) -> None:
        self._trials = trials
        self._progress.start()
        self._progress.console.print(f"tuning [bold]{problem}[/bold]", highlight=False)
        self._progress.update(
            self._task, total=trials or seconds, description="measuring", note="starting the worker"
        )

    def told(self, candidate: Candidate, outcome: Outcome, elapsed_s: float) -> None:
        self._tally.count(candidate, outcome)
        done = self._tally.seen if self._trials else elapsed_s
        self._progress.update(self._task, completed=done, note=str(self._tally))

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


def progress_display() -> Progress:
    """Lines on stderr: what it is, a bar, the time, a note (`note=`)."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    return Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        TimeElapsedColumn(),
        TextColumn("{task.fields[note]}"),
        console=Console(stderr=True),
    )


def wanted() -> bool:
    """Whether the settings, or else a terminal, ask for progress."""
    asked = settings.current().progress
    return sys.stderr.isatty() if asked is None else asked


def observer() -> Observer:
    """A progress line where the settings or a terminal ask for one, else silence."""
    return ProgressLine() if wanted() else Silent()
