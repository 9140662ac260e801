"""What tuning a problem is expected to save: the order in which a fleet takes its problems.

    least = the time of moving the op's bytes, or of its operations if that is longer, + a launch
    now   = the stored plan's time; without one, `UNTUNED` times what comes
    best  = least x the smallest (time / least) that any plan of the op has on this target
    gain  = (now - best) x calls, at least `RETRY` of what it takes now

The rates are datasheet figures of large GPUs and cancel wherever a plan of the op is known: its
time over its `least` says what the op reaches here. Only the order of gains means anything.
"""

from __future__ import annotations

from dataclasses import dataclass

from gristmill.cache.store import PlanStore
from gristmill.core.op import Op
from gristmill.core.problem import Problem
from gristmill.core.target import Target
from gristmill.tuning.analytic import FLOPS_PER_BYTE, USUAL_FLOPS_PER_BYTE

UNTUNED = 2.0  # times the best: what an untuned choice may take
REACHED = 1.25  # of `least`, by the best plan of an op of which none is known
RETRY = 0.02  # of its time: what tuning a tuned problem again may save
BYTES_PER_US = {True: 3e6, False: 2e4}  # GPU, CPU
LAUNCH_US = 4.0  # a near-empty kernel


@dataclass(frozen=True)
class Job:
    """A problem to be tuned on devices of a target.

    Attributes:
        name: what messages call it (a workload's name).
        calls: how often it is called beside the others: its share of the time.
    """

    name: str
    op: Op
    problem: Problem
    target: Target
    calls: float = 1.0


class Expectations:
    """What runs are expected to gain, from what the store has; it is read anew at each question."""

    def __init__(self, store: PlanStore) -> None:
        self._store = store
        self._least: dict[tuple[Problem, str], float] = {}

    def gain(self, job: Job) -> float:
        """Microseconds that tuning this may save, over all its calls."""
        least = self._least_us(job.op, job.problem, job.target)
        reached = self._reached(job.op, job.target)
        now = self._plan_us(job.op, job.problem, job.target)
        best = least * min(reached, default=REACHED)
        if now is None:
            now = UNTUNED * best
        return max(now - best, RETRY * now) * job.calls

    def _reached(self, op: Op, target: Target) -> list[float]:
        """Of the op's named workloads that have a plan: its time over the least."""
        found = ((w.problem, self._plan_us(op, w.problem, target)) for w in op.workloads)
        return [us / self._least_us(op, p, target) for p, us in found if us is not None]

    def _plan_us(self, op: Op, problem: Problem, target: Target) -> float | None:
        plan = self._store.plan(op.name, op.bucket(problem).key, target.key, "graph")
        return None if plan is None or plan.evidence is None else plan.evidence.device_us

    def _least_us(self, op: Op, problem: Problem, target: Target) -> float:
        key = (problem, target.key)
        if key not in self._least:
            cost = op.cost(problem)
            itemsize = next((t.itemsize for t in problem.tensors.values()), 4)
            per_byte = FLOPS_PER_BYTE.get(target.arch, USUAL_FLOPS_PER_BYTE) * 2 / itemsize
            longest = max(cost.size_bytes, cost.flops / per_byte)
            self._least[key] = longest / BYTES_PER_US[target.is_gpu] + LAUNCH_US * target.is_gpu
        return max(self._least[key], 1e-3)
