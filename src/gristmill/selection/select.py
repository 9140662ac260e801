"""Selection: problem, target and objective to plan. Never measures, never compiles, never fails for
the store's sake."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Protocol

from gristmill import cache
from gristmill.core.implementation import Implementation
from gristmill.core.op import Op
from gristmill.core.plan import Candidate, Measurement, Objective, Plan, latest_of_each
from gristmill.core.problem import Problem
from gristmill.core.provenance import provenance
from gristmill.core.registry import implementation, implementations, is_current
from gristmill.core.target import Target
from gristmill.errors import InvalidConfigError, UnknownOpError, UnsupportedProblemError
from gristmill.selection.frozen import active, missing, record, stale

if TYPE_CHECKING:  # most processes need no lock file
    from gristmill.cache.lockfile import Lock, LockedPlan

NEIGHBOUR_OCTAVES = (
    2.0  # farther off, the prior is the better guess: a decode plan has no say at 8,192
)
Vouches = Callable[[Plan, Candidate], bool]  # whether a plan's fallback may be used
Sibling = tuple[dict[str, int], Plan, Vouches]  # a bucket's sizes, its plan


class Layer(Protocol):
    """Where plans are looked for."""

    def plan(
        self, op: str, bucket_key: str, target_key: str, objective: Objective
    ) -> Plan | None: ...

    def family(
        self, op: str, family: str, target_key: str, objective: Objective
    ) -> list[tuple[dict[str, int], Plan]]: ...

    def measurements(self, op: str, bucket_key: str, target_key: str) -> list[Measurement]: ...


class _Question:
    """A problem on a target under an objective, with what plans are kept under. (Making a dataclass
    takes a new process a millisecond.)"""

    def __init__(
        self,
        op: Op,
        problem: Problem,
        target: Target,
        objective: Objective,
        layers: Sequence[Layer] | None = None,
    ) -> None:
        self.op, self.problem, self.target = op, problem, target
        self.objective: Objective = objective
        self.layers = layers
        self.bucket = op.bucket(problem)
        self.family = self.bucket.family(op.axes(problem))


def select(
    op: Op,
    problem: Problem,
    target: Target,
    objective: Objective,
    *,
    to_run: bool = True,
    layers: Sequence[Layer] | None = None,
) -> Plan:
    """The plan for a problem: measured for its bucket, else for the nearest bucket, else the prior,
    else a vendor call. The user's own plans go before those of a shipped pack; where plans are
    frozen, the lock's are all there are. `to_run`: it counts as used here (`gristmill.freeze`).
    `layers`: where to look, in place of all of these.

    Raises:
        UnsupportedProblemError: no implementation runs the problem here; the message lists each
            one's reason.
        FrozenError: the lock file cannot be used; a strict one has no plan for the problem.
    """
    question = _Question(op, problem, target, objective, layers)
    lock = active() if layers is None else None
    plan, octaves = _free(question) if lock is None else _locked(question, lock)
    if to_run:
        record(plan, question.family, dict(question.bucket.axes), octaves)
    return plan


def _free(q: _Question) -> tuple[Plan, float]:
    """The first layer's plan that can be used, and how far from the problem's bucket it was
    measured."""
    for layer in _layers(q):
        hit = layer.plan(q.op.name, q.bucket.key, q.target.key, q.objective)
        vouches = functools.partial(measured, layer)
        if hit is not None and (usable := _usable(q, hit, vouches)) is not None:
            return usable, 0.0
    near = _nearest(q, _siblings(q)) or _cold(q)
    return near or (prior_plan(q.op, q.problem, q.target, q.objective), 0.0)


def _cold(q: _Question) -> tuple[Plan, float] | None:
    """For a warm L2 that nothing was measured under, the plan of a cold one: better than the prior,
    and it says what it is. Never the other way around."""
    if q.target.l2 == "cold":
        return None
    cold = _Question(q.op, q.problem, replace(q.target, l2="cold"), q.objective)
    plan, octaves = _free(cold)
    if plan.origin not in ("tuned", "neighbour"):
        return None
    plan = plan.with_origin("neighbour", q.bucket.key, f"{plan.reason}; measured with a cold L2")
    return replace(plan, target=q.target.key), octaves


def _layers(q: _Question) -> Iterator[Layer]:
    """The user's store, then the pack of the device, which is not opened before it is asked for; or
    those that were named."""
    if q.layers is not None:
        yield from q.layers
        return
    yield cache.store()
    yield cache.shipped_plans(q.target.key)


def _locked(q: _Question, lock: Lock) -> tuple[Plan, float]:
    """The lock's plan. What it does not have takes the nearest of its plans, or the prior, and that
    is said, or refused where the lock is strict."""
    entries = lock.of(q.op.name, q.target.key, q.bucket.key, q.objective)
    for entry in entries:
        if not entry.kept.is_current:
            stale(lock, entry.plan)
        elif (plan := _of_entry(q, entry)) is not None:
            return plan, 0.0
    if all(entry.kept.is_current for entry in entries):
        missing(lock, q.op.name, str(q.problem), q.target.key)
    family = lock.family(q.op.name, q.target.key, q.family, q.objective)
    near = _nearest(q, ((dict(e.kept.axes), e.plan, e.vouches) for e in family))
    return near or (prior_plan(q.op, q.problem, q.target, q.objective), 0.0)


def _of_entry(q: _Question, entry: LockedPlan) -> Plan | None:
    """A lock's plan for a problem of its bucket. An untuned choice is a rule of the implementation,
    whose config is another for another problem."""
    if entry.plan.origin not in ("prior", "vendor"):
        return _usable(q, entry.plan, entry.vouches)
    impl = implementation(q.op.name, entry.plan.candidate.implementation)
    try:
        if impl.why_not(q.problem, q.target) is not None:
            return None
        candidate = Candidate(impl.name, impl.config(None, q.problem, q.target))
    except InvalidConfigError:
        return None
    return replace(entry.plan, candidate=candidate, fallback=candidate, revalidate=False)


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


def _usable(q: _Question, plan: Plan, vouches: Vouches) -> Plan | None:
    """The plan if this version of the library can run it on this very problem, its derived values
    computed; else None. The fallback stays if it is vouched for."""
    candidate = _valid(q, plan.candidate)
    if candidate is None or not is_current(q.op.name, candidate.implementation, plan.source_hash):
        return None
    fallback = _valid(q, plan.fallback) if plan.fallback else None
    if fallback is not None and fallback != candidate and not vouches(plan, fallback):
        fallback = None
    return replace(plan, candidate=candidate, fallback=fallback)


def measured(layer: Layer, plan: Plan, candidate: Candidate) -> bool:
    """Whether a candidate was measured for the plan's bucket with its source as it is, and was
    right: under these versions, if they were tried."""
    rows = layer.measurements(plan.op, plan.bucket, plan.target)
    return any(
        m.outcome.ok and is_current(plan.op, candidate.implementation, m.source_hash)
        for m in latest_of_each((m for m in rows if m.candidate == candidate), provenance())
    )


def _valid(q: _Question, candidate: Candidate) -> Candidate | None:
    try:
        impl = implementation(q.op.name, candidate.implementation)
        if impl.why_not(q.problem, q.target) is not None:
            return None
        return Candidate(impl.name, impl.config(candidate.config, q.problem, q.target))
    except (UnknownOpError, InvalidConfigError):
        return None  # of another version of the library


def _siblings(q: _Question) -> Iterator[Sibling]:
    """The plans of the problem's family in every layer, the user's own first."""
    if "=*" not in q.family:  # every size is exact: there is no other bucket
        return
    for layer in _layers(q):
        for sizes, plan in layer.family(q.op.name, q.family, q.target.key, q.objective):
            yield sizes, plan, functools.partial(measured, layer)


def _nearest(q: _Question, siblings: Iterable[Sibling]) -> tuple[Plan, float] | None:
    """The plan of the nearest measured bucket (by the ratio of the bucketed sizes) that can run
    this problem, and how far it is."""
    here = dict(q.bucket.axes)
    found = ((_distance(here, sizes), sizes, plan, vouches) for sizes, plan, vouches in siblings)
    near = [entry for entry in found if entry[0] <= NEIGHBOUR_OCTAVES]
    for octaves, sizes, plan, vouches in sorted(near, key=lambda entry: entry[0]):
        usable = _usable(q, plan, vouches)
        if usable is not None:
            where = ", ".join(
                f"{name}={size}" for name, size in sizes.items() if here.get(name) != size
            )
            reason = (
                f"measured for the nearest bucket, {where}" if where else "measured for this bucket"
            )
            return usable.with_origin("neighbour", q.bucket.key, reason), octaves
    return None


def _distance(a: Mapping[str, int], b: Mapping[str, int]) -> float:
    return sum(abs(math.log2(max(size, 1) / max(b.get(name, 1), 1))) for name, size in a.items())
