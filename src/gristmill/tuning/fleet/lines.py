"""What a fleet tells while it runs: a line for each device, and one for all of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

from rich.markup import escape

from gristmill.core.plan import Candidate, Outcome
from gristmill.tuning.progress import Observer, Silent, Tally, counted, progress_display, wanted

SHOWN_CHARS = 44  # of a problem, on a device's line


class Lines(Protocol):
    """Hears of all the runs of a fleet, from their threads."""

    def observer(self, site: str) -> Observer:
        """What hears of the next run of a site."""
        ...

    def total(self, ended: int, of: int, remaining_s: float) -> None:
        """How far all of it is."""
        ...

    def say(self, text: str) -> None:
        """Something that the user should read."""
        ...

    def idle(self, site: str, why: str) -> None:
        """A site has nothing to do any more."""
        ...

    def close(self) -> None: ...


class NoLines:
    """Says nothing but what the user should read."""

    def __init__(self, say: Callable[[str], None] = lambda text: None) -> None:
        self._say = say

    def say(self, text: str) -> None:
        self._say(text)

    def observer(self, site: str) -> Observer:
        del site
        return Silent()

    def total(self, ended: int, of: int, remaining_s: float) -> None:
        del ended, of, remaining_s

    def idle(self, site: str, why: str) -> None:
        del site, why

    def close(self) -> None:
        pass


class DeviceLine:
    """The line of a device, for one run."""

    def __init__(self, progress: Any, site: str, task: Any) -> None:
        self._progress, self._site, self._task = progress, site, task
        self._trials: int | None = None
        self._problem = ""
        self._tally = Tally()

    def started(self, problem: str, seconds: float, trials: int | None) -> None:
        self._trials = trials
        long = len(problem) > SHOWN_CHARS
        self._problem = escape(problem[: SHOWN_CHARS - 3] + "..." if long else problem)
        self._progress.reset(self._task, total=trials or seconds)
        self._show("starting the worker")

    def told(self, candidate: Candidate, outcome: Outcome, elapsed_s: float) -> None:
        self._tally.count(candidate, outcome)
        done = self._tally.seen if self._trials else elapsed_s
        self._progress.update(self._task, completed=done)
        self._show(str(self._tally))

    def racing(self, count: int) -> None:
        self._show(f"racing {count} finalists")

    def warned(self, text: str) -> None:
        text = f"{self._site}: {text}"
        self._progress.console.print(text, style="yellow", markup=False, highlight=False)

    def ended(self, summary: str) -> None:
        self._show(summary.partition(";")[0])

    def _show(self, note: str) -> None:
        self._progress.update(self._task, note=f"{self._problem}  {escape(note)}")


class DeviceLines:
    """Lines on stderr that change in place."""

    def __init__(self, sites: Sequence[str]) -> None:
        self._progress = progress_display()
        self._all = self._progress.add_task("all", total=None, note="")
        self._tasks = {
            site: self._progress.add_task(escape(site), total=None, note="starting")
            for site in sites
        }
        self._progress.start()

    def observer(self, site: str) -> Observer:
        """The site's line."""
        return DeviceLine(self._progress, site, self._tasks[site])

    def total(self, ended: int, of: int, remaining_s: float) -> None:
        """The line of all."""
        left = f", {_minutes(remaining_s)} left at the most" if remaining_s > 0 else ""
        note = f"{ended} of {counted(of, 'problem')}{left}"
        self._progress.update(self._all, total=of, completed=ended, note=note)

    def say(self, text: str) -> None:
        """A line of its own, above."""
        self._progress.console.print(escape(text), highlight=False)

    def idle(self, site: str, why: str) -> None:
        """What a line says from now on."""
        self._progress.update(self._tasks[site], note=escape(why))

    def close(self) -> None:
        """Leave the lines as they are."""
        self._progress.stop()


def _minutes(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"


def lines(sites: Sequence[str], say: Callable[[str], None]) -> Lines:
    """Lines where the settings or a terminal ask for them; what the user should read goes there, or
    else to `say`."""
    return DeviceLines(sites) if wanted() else NoLines(say)
