"""The config for a call of a user's kernel: kept, measured now, or the first that there is."""

from __future__ import annotations

import math
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from gristmill import settings, tuning
from gristmill.cache.lockfile import Lock
from gristmill.cache.store import PlanStore, store
from gristmill.core.config import Config
from gristmill.core.plan import INTERRUPTED, Candidate, Outcome, Plan
from gristmill.core.target import Target, device_target
from gristmill.errors import UnsupportedProblemError
from gristmill.selection import frozen
from gristmill.tuners.choices import Choices
from gristmill.tuners.run import KernelRun
from gristmill.tuners.task import KernelTask

ALWAYS_S = math.inf
AGAIN_S = 30.0  # beside another process that tunes the same
OBJECTIVE = "graph"  # device time: every config of a kernel costs the host the same


class AutotuneWarning(UserWarning):
    """A kernel is tuned in a way that its user may not expect: in this process, or not now."""


@dataclass(frozen=True)
class Answer:
    """A config, for how many seconds it is to be used before the question is asked again, and what
    was measured for it now."""

    config: Config
    keep_s: float
    plan: Plan | None = None
    outcomes: Mapping[Candidate, Outcome] = field(default_factory=dict)


_said: set[tuple[str, str]] = set()


def say_once(name: str, text: str) -> None:
    """Warn about a kernel, once."""
    if (name, text) not in _said:
        _said.add((name, text))
        warnings.warn(f"{name}: {text}", AutotuneWarning, stacklevel=3)


def is_isolated(task: KernelTask, device: torch.device, wanted: bool | None) -> bool:
    """Whether candidates are tried in a worker: on a GPU, where everything can travel."""
    if wanted is False or (wanted is None and (device.type == "cpu" or task.interpreted)):
        return False
    reason = task.why_not_travel()
    if reason:
        say_once(
            task.name,
            f"candidates run in this process, on copies of the arguments, because {reason}; one "
            "that traps or hangs takes the process with it.",
        )
    return not reason


def answer(
    task: KernelTask,
    device: torch.device,
    *,
    isolate: bool | None = None,
    keep: bool = True,
    **limits: Any,
) -> Answer:
    """The config for a task: the plan kept for it, else what measuring gives, else the first.

    Raises:
        TuningError: no config runs, or none is right.
        TuningInterrupted: a `KeyboardInterrupt`, after keeping what was measured.
        FrozenError: plans are frozen to a strict lock file that has none for the task.
    """
    keep = keep and bool(task.source_hash)
    lock = frozen.active()
    if lock is not None:
        return _locked(task, device, lock)
    if keep:
        plan, complete = _kept(task, device, store())
        if plan is not None and complete:
            return _answer(task, device, plan, ALWAYS_S)
    refusal = tuning.refusal()
    if refusal or settings.current().tune != "now":
        if refusal:
            say_once(task.name, f"it is not tuned {refusal}. Call it once before, to tune it.")
        return _untuned(task, device, keep, 0.0 if refusal else ALWAYS_S)
    with _place(keep) as place:
        run = tune(task, device, place, isolate=isolate, **limits)
        plan = None if run is None else run.result.plans.get(OBJECTIVE)
        if run is not None and run.result.interrupted:
            raise tuning.TuningInterrupted(run.result)
    if run is None or plan is None:
        return _untuned(task, device, keep, AGAIN_S)
    return replace(_answer(task, device, plan, ALWAYS_S), outcomes=run.result.outcomes)


@contextmanager
def _place(keep: bool) -> Iterator[PlanStore]:
    """The user's store, or one that ends with the run."""
    if keep:
        yield store()
        return
    with tempfile.TemporaryDirectory(prefix="gristmill-") as folder:
        yield PlanStore(Path(folder))


def tune(
    task: KernelTask,
    device: torch.device,
    place: PlanStore,
    *,
    isolate: bool | None = None,
    budget_s: float | None = None,
    trials: int | None = None,
    strategy: tuning.StrategyLike = "auto",
    seed: int = 0,
    afresh: bool = False,
) -> KernelRun | None:
    """A finished run for a task, or `None` where another process is tuning the same one.

    A list of configs is measured to its end, unless a limit is given; a space for as long as an op
    would be. `afresh`: whatever was measured before.

    Raises:
        UnsupportedProblemError: a kernel that is not interpreted, and no GPU.
    """
    if task.needs_gpu and not torch.cuda.is_available():
        raise UnsupportedProblemError(
            f"the arguments of {task.name} are on {device}, and no GPU is there; a Triton kernel "
            "needs one. Call it on a GPU, or set TRITON_INTERPRET=1 before Triton is imported."
        )
    target, bucket = device_target(device), task.bucket(task.problem)
    listed = isinstance(task.space, Choices)
    seconds = math.inf if listed else settings.current().budget_s
    budget = tuning.Budget(
        seconds if budget_s is None else budget_s,
        task.space.size if listed and trials is None else trials,
    )
    with place.lease(f"{task.name}|{bucket.key}|{target.key}") as mine:
        if not mine:
            return None
        known = place.plan(task.name, bucket.key, target.key, OBJECTIVE)
        # After an upgrade only the best few are measured again: the search is not repeated.
        explore = known is None or not known.revalidate or known.provenance == INTERRUPTED
        held = known is not None and task.holds(known.candidate.config, target)
        run = KernelRun(
            task,
            device,
            place,
            is_isolated(task, device, isolate),
            budget,
            strategy,
            seed,
            tuning.observer(),
            explore or afresh,
            afresh,
            skip=held and not afresh,
        )
        run.run()
        return run


def _kept(task: KernelTask, device: torch.device, place: PlanStore) -> tuple[Plan | None, bool]:
    """The plan kept for a task, and whether it has nothing new to hear of: no other version, no
    config that was never measured."""
    target, bucket = device_target(device), task.bucket(task.problem)
    plan = place.plan(task.name, bucket.key, target.key, OBJECTIVE)
    if plan is None or not _holds(task, plan, target):
        return None, False
    if plan.revalidate or not isinstance(task.space, Choices):
        return plan, not plan.revalidate
    rows = place.measurements(task.name, bucket.key, target.key)
    measured = {m.candidate.config for m in rows if m.source_hash == task.source_hash}
    return plan, measured.issuperset(task.space.values)


def _holds(task: KernelTask, plan: Plan, target: Target) -> bool:
    """Whether a plan is of the kernel as it is, and of a config that it is given to choose from."""
    return plan.source_hash == task.source_hash and task.holds(plan.candidate.config, target)


def _locked(task: KernelTask, device: torch.device, lock: Lock) -> Answer:
    """The lock's plan for a task, else the first config: nothing is tuned while plans are frozen.

    Raises:
        FrozenError: the lock is strict, and has none, though it could have one.
    """
    target, bucket = device_target(device), task.bucket(task.problem)
    entries = lock.of(task.name, target.key, bucket.key, OBJECTIVE)
    for entry in entries:
        if _holds(task, entry.plan, target):
            return _answer(task, device, entry.plan, ALWAYS_S)
    if task.source_hash:
        for entry in entries:
            frozen.stale(lock, entry.plan)
        frozen.missing(lock, task.name, str(task.problem), target.key)
    else:  # no `freeze` could have put it there
        frozen.unlockable(lock, task.name)
    return Answer(task.config(None, task.problem, target), ALWAYS_S)


def _answer(task: KernelTask, device: torch.device, plan: Plan, keep_s: float) -> Answer:
    """A plan as an answer, with what its space derives."""
    config = task.config(plan.candidate.config, task.problem, device_target(device))
    if plan.source_hash:  # else no other process could tell that it is this kernel's
        frozen.record(plan, plan.bucket, {})
    return Answer(config, keep_s, plan)


def _untuned(task: KernelTask, device: torch.device, keep: bool, keep_s: float) -> Answer:
    plan = _kept(task, device, store())[0] if keep else None
    if plan is not None:
        return _answer(task, device, plan, keep_s)
    target = device_target(device)
    config = task.config(None, task.problem, target)
    plan = Plan(
        op=task.name,
        candidate=Candidate(task.name, config),
        bucket=task.bucket(task.problem).key,
        target=target.key,
        objective=OBJECTIVE,
        origin="prior",
        source_hash=task.source_hash,
        reason="it is the first config, and nothing is measured",
    )
    return _answer(task, device, plan, keep_s)
