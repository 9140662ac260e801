"""Shipped packs: what a plan is looked for in when the user's own store has none.

A folder (`Settings.pack_dir`) has a pack a device, named by the target, so that a process opens the
one of its device and no other, and that only when a plan is missing. Nothing is ever written there.
"""

from __future__ import annotations

import functools
import re
import warnings
from collections import defaultdict
from dataclasses import replace
from pathlib import Path

from gristmill import settings
from gristmill.cache import packs
from gristmill.cache.faults import CacheWarning
from gristmill.cache.packs import KeptPlan, Pack
from gristmill.core.plan import OBJECTIVES, Measurement, Objective, Plan
from gristmill.core.registry import first_current
from gristmill.errors import PackError


class PackedPlans:
    """The plans of one pack, found as in a store. Plans of kernels as they are here go before
    others, then plans of these versions of torch, Triton and the driver, then the latest."""

    def __init__(self, pack: Pack) -> None:
        self._plans: dict[tuple[str, ...], list[KeptPlan]] = defaultdict(list)  # the best first
        self._families: dict[tuple[str, ...], dict[tuple[str, ...], None]] = defaultdict(dict)
        self._measurements: dict[tuple[str, ...], list[Measurement]] = defaultdict(list)
        for kept in sorted(pack.plans, key=lambda k: (not k.plan.revalidate, k.created_at)):
            plan = kept.plan
            key = (plan.op, plan.bucket, plan.target, plan.objective)
            self._plans[key].insert(0, kept)
            self._families[plan.op, kept.family, plan.target, plan.objective][key] = None
        for m in pack.measurements:
            self._measurements[m.op, m.bucket, m.target].append(m)

    @property
    def kept(self) -> tuple[KeptPlan, ...]:
        """Every plan, one of a bucket."""
        return tuple(kept for key in self._plans if (kept := self._best(key)) is not None)

    def _best(self, key: tuple[str, ...]) -> KeptPlan | None:
        """The plan that counts for a bucket. Looked for when it is asked for: a pack has plans of
        ops whose kernels this process never imports."""
        found = self._plans.get(key)
        return first_current(found, lambda kept: kept.plan) if found else None

    def plan(self, op: str, bucket_key: str, target_key: str, objective: Objective) -> Plan | None:
        """The plan for a bucket."""
        kept = self._best((op, bucket_key, target_key, objective))
        if kept is None:
            return None
        return replace(kept.plan, packed=True, reason=f"{kept.plan.reason}; from a pack")

    def family(
        self, op: str, family: str, target_key: str, objective: Objective
    ) -> list[tuple[dict[str, int], Plan]]:
        """The plans of a family of buckets, each with its axes' sizes."""
        found = map(self._best, self._families.get((op, family, target_key, objective), ()))
        return [(dict(k.axes), k.plan) for k in found if k is not None and k.family == family]

    def measurements(self, op: str, bucket_key: str, target_key: str) -> list[Measurement]:
        """What was measured for a bucket."""
        return list(self._measurements.get((op, bucket_key, target_key), ()))

    def rows_of(self, op: str, bucket_key: str, target_key: str) -> Pack:
        """A bucket's rows, as a pack of their own."""
        keys = [(op, bucket_key, target_key, objective) for objective in OBJECTIVES]
        plans = [kept for key in keys if (kept := self._best(key)) is not None]
        return Pack(tuple(plans), tuple(self.measurements(op, bucket_key, target_key)))


def pack_name(target_key: str) -> str:
    """The file that holds a target's pack: `cuda-sm-90-132-nvidia-h200.jsonl`."""
    return re.sub(r"[^a-z0-9]+", "-", target_key.lower()).strip("-") + ".jsonl"


def shipped_plans(target_key: str) -> PackedPlans:
    """What the pack of a target has: read at the first question, then remembered. A pack that
    cannot be read is empty, and so is a bad line of it: one warning says so."""
    return _read(settings.current().pack_dir / pack_name(target_key))


@functools.lru_cache(maxsize=64)
def _read(path: Path) -> PackedPlans:
    faults: list[str] = []
    try:
        text = packs.file_text(path)
        pack = packs.parse(text, lambda number, fault: faults.append(f"line {number}: {fault}"))
    except PackError as error:
        if isinstance(error.__cause__, (FileNotFoundError, NotADirectoryError)):
            return PackedPlans(Pack())
        pack = Pack()
        faults.append(str(error))
    if faults:
        more = f" (and {len(faults) - 1} more)" if len(faults) > 1 else ""
        warnings.warn(
            f"pack {path}: {faults[0]}{more}. What cannot be read counts as missing.",
            CacheWarning,
            stacklevel=3,
        )
    return PackedPlans(pack)
