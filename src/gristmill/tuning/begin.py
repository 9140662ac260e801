"""What a run of a problem begins with: its lease, and what a shipped pack has of its bucket."""

from __future__ import annotations

from gristmill import cache
from gristmill.cache.store import PlanStore
from gristmill.core.problem import Bucket
from gristmill.core.registry import is_current
from gristmill.core.target import Target
from gristmill.tuning.subject import Subject


def lease_key(op: Subject, bucket: Bucket, target: Target) -> str:
    """What one process tunes at a time."""
    return f"{op.name}|{bucket.key}|{target.key}"


def adopt(store: PlanStore, op: str, bucket_key: str, target_key: str) -> None:
    """Give the store what it lacks of a bucket that a shipped pack has: a search that starts there
    measures it again, and it is what has to be beaten. By row: a search that was killed, or rows of
    a kernel as it was, say nothing of what the pack chose."""
    packed = cache.shipped_plans(target_key).rows_of(op, bucket_key, target_key)
    rows = store.measurements(op, bucket_key, target_key)
    have = {(m.candidate, m.source_hash) for m in rows}
    new = [m for m in packed.measurements if (m.candidate, m.source_hash) not in have]
    if new:
        store.record(new)
    for kept in packed.plans:
        own = store.plan(op, bucket_key, target_key, kept.plan.objective)
        if kept.is_current and (
            own is None or not is_current(op, own.candidate.implementation, own.source_hash)
        ):
            store.save_plan(kept.plan, kept.family, kept.axes)
