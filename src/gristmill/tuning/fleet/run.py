"""One run of a fleet: of one problem, at one site, in a thread of its own."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

import torch

from gristmill.cache.store import PlanStore
from gristmill.core.plan import Candidate, Outcome
from gristmill.core.problem import Problem
from gristmill.core.target import Target
from gristmill.tuning.begin import adopt, lease_key
from gristmill.tuning.budget import Budget, TuningResult
from gristmill.tuning.fleet.gain import Job
from gristmill.tuning.fleet.halt import DROPPED, KILLED, Halt
from gristmill.tuning.progress import Observer
from gristmill.tuning.runner import TuningRun
from gristmill.tuning.sites import Site
from gristmill.tuning.strategies import StrategyLike
from gristmill.tuning.subject import Compiles, Measures


class KillableMeasures(Measures, Protocol):
    """A measurer that another thread can end."""

    def kill(self, for_good: bool = True) -> None: ...


class InterruptibleCompiles(Compiles, Protocol):
    """A pool whose waiting another thread can end."""

    def interrupt(self) -> None: ...


class FleetSite(Site, Protocol):
    """A site that a fleet holds for its whole length."""

    def open(self) -> None:
        """Get ready to measure there; nobody else does until `close`.

        Raises:
            TuningError: it cannot be had; the message says why.
        """
        ...

    def close(self) -> None: ...

    def measurer(self, problem: Problem, seed: int) -> KillableMeasures: ...

    def pool(self, problem: Problem) -> InterruptibleCompiles: ...


@dataclass(frozen=True)
class Wishes:
    """How to tune: the same for every problem of a fleet."""

    budget: Budget
    strategy: StrategyLike = "auto"
    seed: int = 0
    afresh: bool = False


class FleetRun(TuningRun):
    """A run that ends when its fleet is told to."""

    def __init__(
        self,
        job: Job,
        site: FleetSite,
        store: PlanStore,
        wishes: Wishes,
        observer: Observer,
        halt: Halt,
    ) -> None:
        self._place, self._halt = site, halt
        self._trying = False
        self._made: list[KillableMeasures] = []
        self._pools: list[InterruptibleCompiles] = []
        super().__init__(
            job.op,
            job.problem,
            torch.device("meta"),  # of no device of this process
            store,
            wishes.budget,
            wishes.strategy,
            wishes.seed,
            observer,
            afresh=wishes.afresh,
            site=site,
        )

    def make_measurer(self, seed: int) -> Measures:
        """The site's; the fleet can kill it."""
        self._made.append(self._place.measurer(self.problem, seed))
        return self._made[-1]

    def make_pool(self) -> Compiles:
        """The site's; the fleet can wake whoever waits for it."""
        self._pools.append(self._place.pool(self.problem))
        if self._halt.asked:
            self._wake()
        return self._pools[-1]

    def run(self) -> TuningResult:
        """As any run; the end of its fleet is its Ctrl-C."""
        with self._halt.telling(self._end):
            return super().run()

    def _end(self, level: int) -> None:
        self._wake()
        for measurer in self._made:
            if level == KILLED or (level == DROPPED and self._trying):
                measurer.kill(for_good=level == KILLED)

    def _wake(self) -> None:
        for pool in self._pools:
            pool.interrupt()

    def _measure(self, candidate: Candidate, compiled: Outcome | None = None) -> None:
        self._halt.check()
        with self._trial():
            super()._measure(candidate, compiled)

    def _race(self) -> None:
        self._halt.check()
        with self._trial():
            super()._race()

    @contextmanager
    def _trial(self) -> Iterator[None]:
        """What may be dropped; checking what leads may not."""
        self._trying = True
        try:
            yield
        finally:
            self._trying = False


def lease_of(job: Job, target: Target) -> str:
    """What one run at a time has, in whatever process."""
    return lease_key(job.op, job.op.bucket(job.problem), target)


def tune_at(
    site: FleetSite, job: Job, store: PlanStore, wishes: Wishes, observer: Observer, halt: Halt
) -> TuningResult:
    """Tune a problem at a site, unless another process does; the plans are in the store then.

    Raises:
        WorkerLostError: the site's worker is gone and does not start again; what was measured is
            kept, and the next run goes on from there.
        TuningError: as for `TuningRun.run`.
    """
    with store.lease(lease_of(job, site.target)) as mine:
        if not mine:
            return TuningResult(skipped="another process is tuning this very problem")
        adopt(store, job.op.name, job.op.bucket(job.problem).key, site.target.key)
        return FleetRun(job, site, store, wishes, observer, halt).run()
