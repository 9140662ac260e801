"""Selection: problem, target and objective to plan. Never measures, never compiles, never fails for
the store's sake."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace

from gristmill.cache.store import store
from gristmill.core.implementation import Implementation
from gristmill.core.op import Op
from gristmill.core.plan import Candidate, Objective, Plan
from gristmill.core.problem import Problem
from gristmill.core.registry import implementation, implementations
from gristmill.core.target import Target
from gristmill.errors import InvalidConfigError, UnknownOpError, UnsupportedProblemError

NEIGHBOUR_OCTAVES = (
    2.0  # farther off, the prior is the better guess: a decode plan has no say at 8,192
)


def select(op: Op, problem: Problem, target: Target, objective: Objective) -> Plan:
    """The plan for a problem: measured for its bucket, else for the nearest bucket, else the prior,
    else a vendor call.

    Raises:
        UnsupportedProblemError: no implementation runs the problem here; the message lists each
            one's reason.
    """
    bucket = op.bucket(problem)
    hit = store().plan(op.name, bucket.key, target.key, objective)
    if hit is not None and (usable := _usable(op, hit, problem, target)) is not None:
        return usable
    near = _nearest(op, problem, target, objective)
    return near if near is not None else prior_plan(op, problem, target, objective)


def prior_plan(op: Op, problem: Problem, target: Target, objective: Objective) -> Plan:
    """The plan without any measurement: of what can run without a build, the highest preference,
    with its prior."""
    reasons: list[str] = []
    able: list[tuple[Implementation, Candidate]] = []
    for impl in implementations(op.name):
        reason = impl.why_not(problem, target)
        if reason is None:
            try:
                able.append((impl, Candidate(impl.name, impl.config(None, problem, target))))
                continue
            except InvalidConfigError as error:
                reason = str(error)
        reasons.append(f"{impl.name}: {reason}")
    ready = [pair for pair in able if pair[0].kind != "compiled"]
    if not ready:
        reasons += [f"{impl.name}: it has to be compiled first (get_op does)" for impl, _ in able]
        raise UnsupportedProblemError(
            f"no implementation of `{op.name}` runs {problem} on {target.name}: "
            f"{'; '.join(reasons)}. "
            "Change the problem as one of these asks, or call torch."
        )
    impl, candidate = max(ready, key=lambda pair: (pair[0].preference, pair[0].kind == "vendor"))
    return Plan(
        op=op.name,
        candidate=candidate,
        bucket=op.bucket(problem).key,
        target=target.key,
        objective=objective,
        origin="vendor" if impl.kind == "vendor" else "prior",
        source_hash=impl.source_hash,
        fallback=candidate,
        reason="nothing is measured for this problem or a near one",
    )


def _usable(op: Op, plan: Plan, problem: Problem, target: Target) -> Plan | None:
    """The plan if this version of the library can run it on this very problem, its derived values
    computed; else None."""
    candidate = _valid(op, plan.candidate, problem, target)
    if (
        candidate is None
        or implementation(op.name, candidate.implementation).source_hash != plan.source_hash
    ):
        return None
    fallback = _valid(op, plan.fallback, problem, target) if plan.fallback else None
    if fallback is not None and fallback != candidate and not _measured(op, plan, fallback):
        fallback = None
    return replace(plan, candidate=candidate, fallback=fallback)


def _measured(op: Op, plan: Plan, candidate: Candidate) -> bool:
    """Whether a candidate was measured for the plan's bucket with its source as it is."""
    current = implementation(op.name, candidate.implementation).source_hash
    return any(
        m.candidate == candidate and m.source_hash == current and m.outcome.ok
        for m in store().measurements(op.name, plan.bucket, plan.target)
    )


def _valid(op: Op, candidate: Candidate, problem: Problem, target: Target) -> Candidate | None:
    try:
        impl = implementation(op.name, candidate.implementation)
        if impl.why_not(problem, target) is not None:
            return None
        return Candidate(impl.name, impl.config(candidate.config, problem, target))
    except (UnknownOpError, InvalidConfigError):
        return None  # of another version of the library


def _nearest(op: Op, problem: Problem, target: Target, objective: Objective) -> Plan | None:
    """The plan of the nearest measured bucket (by the ratio of the bucketed sizes) that can run
    this problem."""
    axes = op.axes(problem)
    bucket = op.bucket(problem)
    here = dict(bucket.axes)
    if all(axis.exact for axis in axes):
        return None
    siblings = store().family(op.name, bucket.family(axes), target.key, objective)
    near = [entry for entry in siblings if _distance(here, entry[0]) <= NEIGHBOUR_OCTAVES]
    for sizes, plan in sorted(near, key=lambda entry: _distance(here, entry[0])):
        usable = _usable(op, plan, problem, target)
        if usable is not None:
            where = ", ".join(
                f"{name}={size}" for name, size in sizes.items() if here.get(name) != size
            )
            reason = (
                f"measured for the nearest bucket, {where}" if where else "measured for this bucket"
            )
            return usable.with_origin("neighbour", bucket.key, reason)
    return None


def _distance(a: Mapping[str, int], b: Mapping[str, int]) -> float:
    return sum(abs(math.log2(max(size, 1) / max(b.get(name, 1), 1))) for name, size in a.items())
