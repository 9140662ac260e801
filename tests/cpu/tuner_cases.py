"""A tuning run whose candidates are numbers: real in everything but the measuring, which writes
down what it measured and takes as long as it is told."""

from __future__ import annotations

import contextlib
import os
import time
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import torch

from gristmill import settings
from gristmill.cache.store import PlanStore
from gristmill.core.plan import Candidate, Outcome
from gristmill.core.problem import Bucket, Problem
from gristmill.core.space import Space, choice
from gristmill.core.target import device_target
from gristmill.measure.conditions import Conditions
from gristmill.tuners.compiler import NothingToCompile
from gristmill.tuning.budget import Budget
from gristmill.tuning.runner import TuningRun

CPU = torch.device("cpu")


class Numbers:
    """A subject whose one axis is `n`; buckets are exact."""

    name = "numbers"

    def bucket(self, problem):
        return Bucket("numbers", (("n", problem["n"]),), "")

    def axes(self, problem):
        return ()


class Number:
    """Something to choose from: a time for each of its numbers."""

    kind = "triton"

    def __init__(self, name="a", numbers=range(10), source="s1"):
        self.name, self.source_hash = name, source
        self.space = Space(choice("i", *numbers))
        self._first = min(numbers)

    def why_not(self, problem, target):
        return None

    def config(self, values: Mapping | None, problem, target):
        return self.space.config({"i": self._first} if values is None else values, problem, target)


def time_us(candidate):
    """The time of a candidate: the larger its number, the shorter."""
    return 1000.0 / (1 + candidate.config.knobs["i"])


class Notebook:
    """What was measured, by whichever process: a line each, written at once."""

    def __init__(self, path: Path):
        self.path = path

    def note(self, text):
        with self.path.open("a", buffering=1) as file:
            file.write(f"{text}\n")

    def lines(self):
        return self.path.read_text().splitlines() if self.path.exists() else []

    def counts(self):
        return Counter(self.lines())


class FakeMeasurer(contextlib.AbstractContextManager):
    """Measures by looking the time up; notes each candidate when its trial is done."""

    def __init__(self, notebook, trial_s):
        self._notebook, self._trial_s = notebook, trial_s

    def __exit__(self, *exc):
        return None

    def measure(self, candidate, best_us):
        time.sleep(self._trial_s)
        self._notebook.note(str(candidate))
        us = time_us(candidate)
        return Outcome("ok", device_us=us, host_us=us, graph_us=us, error=0.5, repeats=3)

    def race(self, candidates):
        time.sleep(self._trial_s)
        outcomes = [Outcome("ok", device_us=time_us(c), error=0.5, repeats=9) for c in candidates]
        return outcomes, [{"device": [time_us(c)] * 50} for c in candidates]

    def verify(self, candidates):
        return self.race(candidates)[0]

    def conditions(self):
        return Conditions()


class NumbersRun(TuningRun):
    """A run over numbers, which stands for a run of any op."""

    def __init__(self, folder, notebook, able=(), n=1, trial_s=0.0, **options):
        self._able, self._notebook, self._trial_s = able or (Number(),), notebook, trial_s
        problem = Problem("numbers", (("n", n),))
        options.setdefault("budget", Budget(60.0))
        options.setdefault("strategy", "exhaustive")
        super().__init__(Numbers(), problem, CPU, PlanStore(Path(folder)), **options)

    def tunables(self):
        return self._able

    def tunable(self, name):
        return next(one for one in self._able if one.name == name)

    def make_measurer(self, seed):
        return FakeMeasurer(self._notebook, self._trial_s)

    def make_pool(self):
        return NothingToCompile()

    @property
    def lease_key(self):
        return f"numbers|{self.bucket.key}|{self.target.key}"


def tune(folder, notebook, locks, **options):
    """What `get_op` does where there is no plan: tune under the lease, unless another does."""
    with settings.override(lock_dir=Path(locks) / str(os.getpid())):
        run = NumbersRun(folder, notebook, **options)
        with run.store.lease(run.lease_key) as mine:
            return run.run() if mine else None


def kept(folder, n=1):
    """The measurements of a problem that are in the store, as candidates' text."""
    bucket = Bucket("numbers", (("n", n),), "").key
    rows = PlanStore(Path(folder)).measurements("numbers", bucket, device_target(CPU).key)
    return [str(m.candidate) for m in rows]


def best(numbers):
    return Candidate("a", Space(choice("i", *numbers)).config({"i": max(numbers)}, None, None))
