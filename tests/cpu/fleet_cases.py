"""Sites of a fleet that measure nothing: real runs, real threads, times that are looked up."""

from __future__ import annotations

import contextlib
import threading
from collections import defaultdict

import torch

from gristmill.core.plan import Outcome
from gristmill.core.registry import load
from gristmill.core.target import named_target
from gristmill.errors import TuningError
from gristmill.measure.conditions import Conditions
from gristmill.tuners.compiler import NothingToCompile
from gristmill.tuning.fleet.gain import Job

HOPPER, AMPERE = named_target("sm_90"), named_target("sm_80")
WAIT_S = 60.0  # for another thread of the test: longer than it can take


def problem(rows, width=1024):
    return load("rms_norm").problem((torch.ones(rows, width), torch.ones(width), 1e-6))


def job(rows, target=HOPPER, width=1024, name=None):
    op = load("rms_norm")
    return Job(name or f"rows-{rows}", op, problem(rows, width), target)


def time_us(candidate):
    """A time of its own for each candidate, the same everywhere."""
    return 10.0 + sum(map(ord, str(candidate))) % 97


class Log:
    """What was measured: (site, problem, candidate), from any thread."""

    def __init__(self):
        self._lock = threading.Lock()
        self.entries = []

    def add(self, *entry):
        with self._lock:
            self.entries.append(entry)

    def by_problem(self):
        """The sites that measured each problem."""
        found = defaultdict(set)
        for site, one, _ in self.entries:
            found[one].add(site)
        return found


class FakeMeasurer(contextlib.AbstractContextManager):
    """Measures by looking the time up, after `before(site, problem, candidate)`."""

    def __init__(self, site, of):
        self._site, self._problem = site, of

    def __exit__(self, *exc):
        return None

    def kill(self, for_good=True):
        (self._site.killed if for_good else self._site.dropped).set()

    def measure(self, candidate, best_us):
        self._site.before(self._site, self._problem, candidate)
        self._site.log.add(self._site.name, self._problem, candidate)
        return self._outcome(candidate)

    def race(self, candidates):
        return [self._outcome(c) for c in candidates], [
            {"device": [time_us(c)] * 50} for c in candidates
        ]

    def verify(self, candidates):
        return [self._outcome(c) for c in candidates]

    def conditions(self):
        return self._site.conditions

    def _outcome(self, candidate):
        us = time_us(candidate)
        return Outcome("ok", device_us=us, host_us=us, graph_us=us, error=0.5, repeats=9)


class FakePool(NothingToCompile):
    """A pool that can be interrupted."""

    interrupted = False

    def interrupt(self):
        self.interrupted = True

    def collect(self):
        if self.interrupted:
            raise KeyboardInterrupt
        return super().collect()


class FakeSite:
    """A device."""

    versions, jobs = "", 1

    def __init__(self, name, log, target=HOPPER, before=lambda site, problem, candidate: None):
        self.name, self.log, self.target, self.before = name, log, target, before
        self.killed, self.dropped = threading.Event(), threading.Event()
        self.refusal = ""
        self.conditions = Conditions()
        self.state = "new"

    def open(self):
        self.state = "open"
        if self.refusal:
            raise TuningError(self.refusal)

    def close(self):
        self.state = "closed"

    def measurer(self, problem, seed):
        return FakeMeasurer(self, problem)

    def pool(self, problem):
        return FakePool()

    def lease(self, wait_s):
        return contextlib.nullcontext(True)
