"""Tunes many problems on many devices: a thread for each device, one queue for all.

A thread drives its device's worker process and waits for it most of the time. What is kept goes
through the one store of this process, so nothing on another machine writes plans.
"""

from __future__ import annotations

import contextlib
import queue
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from gristmill.cache.store import PlanStore
from gristmill.errors import GristmillError, TuningError, WorkerLostError
from gristmill.tuning.budget import TuningResult
from gristmill.tuning.fleet.gain import Expectations, Job
from gristmill.tuning.fleet.halt import ASKED, DROPPED, KILLED, Halt
from gristmill.tuning.fleet.lines import Lines, NoLines
from gristmill.tuning.fleet.run import FleetSite, Wishes, lease_of, tune_at
from gristmill.tuning.fleet.scheduler import LOSSES, Scheduler, Task

GRACE_S = 3.0  # for a trial in flight, after Ctrl-C


@dataclass(frozen=True)
class Ended:
    """What became of a problem.

    Attributes:
        site: where it was tuned; empty: nowhere.
        result: what its run gave; `None` where it gave nothing, and `error` says why.
    """

    job: Job
    site: str
    result: TuningResult | None = None
    error: GristmillError | None = None

    @property
    def why(self) -> str:
        """Why it was not tuned; empty where it was."""
        if self.result is not None and self.result.skipped:
            return f"{self.job.problem} was not tuned: {self.result.skipped}."
        return "" if self.error is None else str(self.error)


@dataclass
class FleetResult:
    """What became of all problems, in the order in which they ended; and whether Ctrl-C ended it
    (then some may not be there)."""

    ended: list[Ended] = field(default_factory=list)
    interrupted: bool = False


Tell = Callable[[Ended], None]


class Fleet:
    """Sites, and the problems that they share. `run` once."""

    def __init__(
        self,
        sites: Sequence[FleetSite],
        jobs: Sequence[Job],
        store: PlanStore,
        wishes: Wishes,
        lines: Lines | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._sites, self._store, self._wishes = list(sites), store, wishes
        self._lines: Lines = lines or NoLines()
        self._halt = Halt()
        self._timer: threading.Timer | None = None
        self._count = len(jobs)
        tasks = [
            Task(job, job.target.key, wishes.budget.seconds, lease_of(job, job.target))
            for job in jobs
        ]
        self._scheduler = Scheduler(tasks, Expectations(store).gain, clock)
        for site in self._sites:
            self._scheduler.join(site.name, site.target.key)
        self._changed = threading.Condition()  # of the scheduler
        self._events: queue.SimpleQueue[Ended | BaseException | str] = queue.SimpleQueue()

    def run(self, tell: Tell = lambda ended: None) -> FleetResult:
        """Tune everything; `tell` hears of each problem when it has ended, in this thread.

        Ctrl-C ends each run after the trial that it has in flight, or without it after `GRACE_S`;
        then what leads is checked, and the best of what is right on every value variant is the
        plan. A second one ends that too. What was measured is kept.
        """
        result = FleetResult()
        threads = {
            site.name: threading.Thread(target=self._serve, args=(site,), daemon=True)
            for site in self._sites
        }
        try:
            with self._listening():
                for thread in threads.values():
                    thread.start()
                self._strand()
                self._report(result)
                self._hear(set(threads), result, tell)
        finally:
            if self._timer is not None:
                self._timer.cancel()
            self._lines.close()
        return result

    def _hear(self, serving: set[str], result: FleetResult, tell: Tell) -> None:
        """Take events until nothing runs any more; a fault is raised then."""
        failure: BaseException | None = None
        while serving:
            try:
                event = self._events.get()
                if isinstance(event, Ended):
                    result.ended.append(event)
                    self._report(result)
                    tell(event)
                elif isinstance(event, str):
                    serving.remove(event)
                else:
                    raise event
            except KeyboardInterrupt:
                self._interrupt(result)
            except BaseException as error:  # noqa: BLE001 - see above
                failure = failure or error
                self._end()
        if failure is not None:
            raise failure

    @contextlib.contextmanager
    def _listening(self) -> Iterator[None]:
        """Ctrl-C as an event among the others: as an exception it could come between taking one and
        acting on it. A handler of the user's own stays."""
        main = threading.current_thread() is threading.main_thread()
        if not main or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
            yield
            return
        signal.signal(signal.SIGINT, lambda number, frame: self._events.put(KeyboardInterrupt()))
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, signal.default_int_handler)

    def _interrupt(self, result: FleetResult) -> None:
        if result.interrupted:
            self._halt.ask(KILLED)
        else:
            result.interrupted = True
            self._end()
            self._timer = threading.Timer(GRACE_S, self._halt.ask, (DROPPED,))
            self._timer.daemon = True
            self._timer.start()
            self._lines.say(
                f"ending: trials in flight have {GRACE_S:g} s, then what leads is checked; Ctrl-C "
                "again ends all at once"
            )

    def _end(self) -> None:
        self._halt.ask(ASKED)
        with self._changed:  # for sites that wait for a task
            self._changed.notify_all()

    def _report(self, result: FleetResult) -> None:
        with self._changed:
            remaining_s = self._scheduler.remaining_s()
        self._lines.total(len(result.ended), self._count, remaining_s)

    def _strand(self) -> None:
        """Tell of problems that no site is left for."""
        with self._changed:
            stranded = self._scheduler.stranded()
        for task in stranded:
            error = TuningError(
                f"{task.job.problem} is not tuned: no device of {task.job.target.name} is left. "
                "Look at the messages above; the next run goes on with what was measured."
            )
            self._events.put(Ended(task.job, "", error=error))

    def _serve(self, site: FleetSite) -> None:
        """Run tasks at a site until there are none: the site's thread."""
        try:
            try:
                site.open()
                while (task := self._next(site)) is not None:
                    self._tune(site, task)
                self._lines.idle(site.name, "done")
            finally:
                site.close()
        except GristmillError as error:
            self._lines.idle(site.name, "left out")
            self._lines.say(f"{site.name} is left out: {error}")
        except BaseException as error:  # noqa: BLE001 - the main thread raises it
            self._events.put(error)
        finally:
            with self._changed:
                self._scheduler.retire(site.name)
                self._changed.notify_all()
            if not self._halt.asked:
                self._strand()
            self._events.put(site.name)

    def _next(self, site: FleetSite) -> Task[Job] | None:
        """The next task for a site; waits while what others run may come back."""
        with self._changed:
            while not self._halt.asked:
                task = self._scheduler.take(site.name)
                if task is not None or not self._scheduler.may_come(site.name):
                    return task
                self._lines.idle(site.name, "waiting")
                self._changed.wait()
        return None

    def _tune(self, site: FleetSite, task: Task[Job]) -> None:
        """Run one task at a site, and say what became of it."""
        job, observer = task.job, self._lines.observer(site.name)
        try:
            result = tune_at(site, job, self._store, self._wishes, observer, self._halt)
            ended = Ended(job, site.name, result)
        except WorkerLostError as error:
            self._lost(site, task, error)
            return
        except GristmillError as error:
            ended = Ended(job, site.name, error=error)
        with self._changed:
            self._scheduler.done(site.name)
            self._changed.notify_all()
        self._events.put(ended)

    def _lost(self, site: FleetSite, task: Task[Job], error: WorkerLostError) -> None:
        with self._changed:
            back = self._scheduler.lost(site.name)
            out = not self._scheduler.alive(site.name)
            self._changed.notify_all()
        then = "it is put back" if back else "it is given up"
        self._lines.say(f"{site.name} lost its worker with {task.job.name}, {then}: {error}")
        if out:
            self._lines.say(f"{site.name} is left out: it has lost its worker {LOSSES} times")
        if not back:
            self._events.put(Ended(task.job, site.name, error=error))
        if not out:  # a machine that is gone raises here, and takes no other problem
            site.close()
            site.open()
