"""A store of its own with one tuned plan in it, for what is measured about calls that have one."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from gristmill import settings
from gristmill.cache.store import store
from gristmill.core.plan import Candidate, Plan
from gristmill.core.problem import Problem
from gristmill.core.registry import implementation
from gristmill.core.target import device_target
from gristmill.ops._dispatch import forget


@contextmanager
def kept_plan(problem: Problem, name: str, device: torch.device) -> Iterator[Plan]:
    """The problem's plan is this implementation with its prior, as if tuned; plans and operators
    of before are not seen meanwhile."""
    impl = implementation(problem.op, name)
    target = device_target(device)
    bucket = impl.op.bucket(problem)
    plan = Plan(
        op=problem.op,
        candidate=Candidate(name, impl.config(None, problem, target)),
        bucket=bucket.key,
        target=target.key,
        objective="eager",
        origin="tuned",
        source_hash=impl.source_hash,
    )
    with tempfile.TemporaryDirectory() as folder, settings.override(cache_dir=Path(folder)):
        forget(problem.op)
        store().save_plan(plan, bucket.family(impl.op.axes(problem)), dict(bucket.axes))
        try:
            yield plan
        finally:
            forget(problem.op)
