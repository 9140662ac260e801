"""`tune="idle"`: what was called without a measured plan is tuned when this process has nothing to
do."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from gristmill import tuning
from gristmill.cache.store import store
from gristmill.core.op import Op
from gristmill.core.plan import Plan
from gristmill.core.problem import Problem
from gristmill.core.target import Target
from gristmill.errors import FrozenError
from gristmill.selection.frozen import active, forget_bucket
from gristmill.selection.select import select


def tune_when_idle(
    op: Op,
    problem: Problem,
    device: torch.device,
    target: Target,
    plan: Plan,
    adopt: Callable[[], Any],
) -> None:
    """Have a problem tuned when there is time, if its plan is not a measured one; then `adopt` is
    called (or what it is a `WeakMethod` of), by another thread.

    A frozen process asks for nothing.
    """
    if not plan.wants_tuning or active() is not None:
        return
    bucket = op.bucket(problem)
    request = {
        "problem": problem.to_json(),
        "device": str(device),
        "threads": torch.get_num_threads(),
    }

    def refresh() -> None:
        store().forget()  # another process has written to it
        for objective in forget_bucket(op.name, bucket.key, target.key):
            select(op, problem, target, objective)

    key = (op.name, bucket.key, target.key)
    tuning.idle_tuner(_allowed).want(key, request, refresh, adopt)


def _allowed() -> bool:
    try:
        return active() is None
    except FrozenError:  # a lock file that cannot be read: its process is frozen all the same
        return False
