"""A tuning run that gives way to the process that it tunes for.

A trial that ran beside work of that process is stopped at once (SIGSTOP), thrown away and made
again: neither side's times have anything of the other in them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from gristmill.core.plan import Candidate
from gristmill.core.problem import Problem
from gristmill.tuning.compiler import CompilePool
from gristmill.tuning.gate import Gate, GaveWayError
from gristmill.tuning.measurer import Measurer
from gristmill.tuning.runner import TuningRun
from gristmill.tuning.subject import Compiles, Measures

ATTEMPTS = 5  # at one trial, each disturbed
PATIENCE = 10.0  # times a compiler's time-out: it has the least priority


class YieldingMeasurer(Measurer):
    """Measures while the user's process is idle, and at no other time."""

    def __init__(self, gate: Gate, problem: Problem, device: torch.device, seed: int) -> None:
        super().__init__(problem, device, seed)
        self._gate = gate
        self._base["stopped_at_times"] = True

    def _exchange(self, message: Mapping[str, Any], timeout_s: float) -> dict[str, Any]:
        for _ in range(ATTEMPTS):
            self._gate.wait()
            turns = self._gate.turns
            self._gate.note("trial")
            answer = self._child.ask(message, timeout_s, self._give_way)
            undisturbed = turns == self._gate.turns
            self._gate.note("kept" if undisturbed else "disturbed")
            if undisturbed or answer.get("lost"):
                return answer
        raise GaveWayError(f"a trial was disturbed {ATTEMPTS} times")

    def _give_way(self) -> float:
        """Stop the worker while the user's process is at work; for how long it stood still."""
        if not self._gate.busy:
            return 0.0
        self._child.pause()
        self._gate.note("stop")
        waited_s = self._gate.wait()
        self._gate.note("cont")
        self._child.resume()
        return waited_s


class YieldingPool(CompilePool):
    """Compiles one candidate at a time, and begins none while the user's process is at work: a
    compiler has the least priority, and all the time that this takes."""

    def __init__(self, gate: Gate, run: IdleRun) -> None:
        super().__init__(run.problem, run.target, jobs=1)
        self._gate = gate
        self._timeout_s *= PATIENCE
        self._base["timeout_s"] = self._timeout_s

    def submit(self, candidate: Candidate) -> None:
        """Start compiling a candidate, once that disturbs nobody."""
        self._gate.wait()
        super().submit(candidate)


class IdleRun(TuningRun):
    """A tuning run that gives way. Its budget is of time at work."""

    gate: Gate

    @property
    def _elapsed_s(self) -> float:
        return super()._elapsed_s - self.gate.waited_s

    def make_measurer(self, seed: int) -> Measures:
        """A worker that stands still while the user's process is at work."""
        return YieldingMeasurer(self.gate, self.problem, self.device, seed)

    def make_pool(self) -> Compiles:
        """One compiler of the least priority."""
        return YieldingPool(self.gate, self)


def idle_run(gate: Gate) -> type[IdleRun]:
    """Runs behind this gate."""
    return type("IdleRun", (IdleRun,), {"gate": gate})
