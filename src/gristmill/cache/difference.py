"""What two packs choose differently."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from gristmill.cache.packs import KeptPlan, Pack
from gristmill.core.plan import Plan


@dataclass(frozen=True, slots=True)
class Difference:
    """A bucket for which two packs have plans of other candidates, or one of them has none.

    Attributes:
        first, second: the plans.
    """

    first: Plan | None
    second: Plan | None

    @property
    def plan(self) -> Plan:
        """The one that there is: of its bucket and target."""
        found = self.first or self.second
        assert found is not None
        return found

    def to_json(self) -> dict[str, Any]:
        """As `gristmill cache diff --json` prints it; times in microseconds."""
        plan = self.plan
        return {
            "op": plan.op,
            "bucket": plan.bucket,
            "target": plan.target,
            "objective": plan.objective,
            "first": _choice(self.first),
            "second": _choice(self.second),
        }


def time_us(plan: Plan | None) -> float | None:
    """The time that a plan was chosen for, where it was measured."""
    return plan.evidence.time_us(plan.objective) if plan and plan.evidence else None


def differences(first: Pack, second: Pack) -> list[Difference]:
    """The buckets for which two packs choose differently: another candidate, or the same one of
    other source. Of several plans for a bucket (under other versions of torch, Triton or the
    driver) the newest counts."""
    a, b = _newest(first), _newest(second)
    pairs = ((a.get(key), b.get(key)) for key in sorted(a.keys() | b.keys()))
    return [Difference(x, y) for x, y in pairs if _identity(x) != _identity(y)]


def _newest(pack: Pack) -> dict[tuple[str, ...], Plan]:
    found: dict[tuple[str, ...], KeptPlan] = {}
    for kept in sorted(pack.plans, key=lambda k: (k.created_at, k.plan.provenance)):
        plan = kept.plan
        found[plan.op, plan.target, plan.bucket, plan.objective] = kept
    return {key: kept.plan for key, kept in found.items()}


def _identity(plan: Plan | None) -> Any:
    return plan and (plan.candidate, plan.source_hash)


def _choice(plan: Plan | None) -> dict[str, Any] | None:
    if plan is None:
        return None
    return {
        "implementation": plan.candidate.implementation,
        "config": plan.candidate.config.knobs,
        "source_hash": plan.source_hash,
        "time_us": time_us(plan),
        "provenance": plan.provenance,
    }
