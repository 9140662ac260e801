"""Which device tunes which problem next.

One queue for all devices of a target, ordered by what a run is expected to gain; a device that is
done takes the first of it, so that none idles while there is something to take. Nothing here waits,
starts a thread or measures.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

LOSSES = 3  # of workers, in a row and on one device: it is given up
TRIES = 3  # of a problem: put back twice

J = TypeVar("J")


@dataclass(eq=False)
class Task(Generic[J]):
    """A problem to be tuned on a target.

    Attributes:
        job: what it is. target: key of the target that it is for.
        budget_s: how long a run of it takes at the most, about.
        alone: what one run at a time may have (two problems can share a bucket, and so a plan).
        losses: workers that were lost with it; `lost_on`: the sites that had them.
    """

    job: J
    target: str
    budget_s: float
    alone: str = ""
    losses: int = 0
    lost_on: set[str] = field(default_factory=set)


@dataclass
class _Station:
    """A site, as the queue sees it."""

    target: str
    task: Task | None = None
    since: float = 0.0
    losses: int = 0
    alive: bool = True


class Scheduler(Generic[J]):
    """Shares tasks out to sites. Not safe to use from several threads at once."""

    def __init__(
        self,
        tasks: Sequence[Task[J]],
        gain: Callable[[J], float],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`gain` is asked anew at every choice: what was tuned meanwhile tells of the others."""
        self.waiting = list(tasks)
        self._gain, self._clock = gain, clock
        self._sites: dict[str, _Station] = {}

    def join(self, site: str, target: str) -> None:
        """A site that takes tasks of a target from now on."""
        self._sites[site] = _Station(target)

    def take(self, site: str) -> Task[J] | None:
        """The task to run there now: of those that wait for its target the one of the largest gain.

        One that was lost there is left to other sites as long as there are some, and one that
        cannot run beside another has to wait for it.
        """
        station = self._sites[site]
        if not station.alive:
            return None
        taken = {s.task.alone for s in self._sites.values() if s.task and s.task.alone}
        open_to_it = [
            task
            for task in self.waiting
            if task.target == station.target
            and task.alone not in taken
            and not self._left_to_others(task, site)
        ]
        if not open_to_it:
            return None
        task = max(open_to_it, key=lambda t: self._gain(t.job))
        self.waiting.remove(task)
        station.task, station.since = task, self._clock()
        return task

    def _left_to_others(self, task: Task[J], site: str) -> bool:
        if site not in task.lost_on:
            return False
        return any(
            other.alive and other.target == task.target and name not in task.lost_on
            for name, other in self._sites.items()
        )

    def done(self, site: str) -> None:
        """The site has ended its task, well or with an error of the problem's own."""
        station = self._sites[site]
        station.task, station.losses = None, 0

    def lost(self, site: str) -> bool:
        """The site has lost its worker; whether its task is put back. A site that loses several in
        a row takes no more."""
        station = self._sites[site]
        task, station.task = station.task, None
        assert task is not None
        task.losses += 1
        task.lost_on.add(site)
        station.losses += 1
        if station.losses >= LOSSES:
            station.alive = False
        if task.losses >= TRIES:
            return False
        self.waiting.append(task)
        return True

    def retire(self, site: str) -> None:
        """The site takes no more; the task that it has, if any, waits again."""
        station = self._sites[site]
        station.alive = False
        if station.task is not None:
            self.waiting.append(station.task)
            station.task = None

    def alive(self, site: str) -> bool:
        """Whether the site may still be given something."""
        return self._sites[site].alive

    def may_come(self, site: str) -> bool:
        """Whether there may be something for the site later, if not now: what others run for its
        target can be put back."""
        station = self._sites[site]
        running = [s.task for s in self._sites.values() if s.task is not None]
        return station.alive and any(t.target == station.target for t in [*self.waiting, *running])

    def stranded(self) -> list[Task[J]]:
        """Takes out and returns what no site is left for."""
        left = {s.target for s in self._sites.values() if s.alive}
        found = [t for t in self.waiting if t.target not in left]
        self.waiting = [t for t in self.waiting if t.target in left]
        return found

    def remaining_s(self) -> float:
        """About how long all of it takes from now, if every run takes its budget: of the target
        that takes longest."""
        now, longest = self._clock(), 0.0
        for target in {s.target for s in self._sites.values()}:
            free = [
                max(0.0, s.task.budget_s - (now - s.since)) if s.task else 0.0
                for s in self._sites.values()
                if s.target == target and s.alive
            ]
            budgets = (t.budget_s for t in self.waiting if t.target == target)
            for budget_s in sorted(budgets, reverse=True):
                if free:
                    first = free.index(min(free))
                    free[first] += budget_s
            longest = max([longest, *free])
        return longest
