"""Providers: the columns of a benchmark."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from gristmill.bench.plain import plain_call
from gristmill.bench.registration import RESERVED, Registered, registered
from gristmill.cache.store import store
from gristmill.compile.bound import bind
from gristmill.core.implementation import Implementation
from gristmill.core.op import Op
from gristmill.core.plan import Candidate, Objective, latest_of_each
from gristmill.core.problem import Problem
from gristmill.core.provenance import provenance
from gristmill.core.registry import implementation, implementations
from gristmill.core.target import Target, device_target
from gristmill.errors import InvalidInputError, UnsupportedProblemError, did_you_mean
from gristmill.measure.ceilings import copy_call
from gristmill.ops.get_op import get_op

GRISTMILL, COPY, TORCH = RESERVED
Role = Literal["selected", "own", "other", "ceiling"]


@dataclass(frozen=True, slots=True)
class Provider:
    """One way to run a problem, ready to be called.

    Attributes:
        role: `selected` (gristmill's plan), `own` (a Triton kernel of ours), `other` (what a user
            has without us: torch's plain call, vendor and compiled implementations), `ceiling`
            (moves the bytes, computes nothing).
        what: the candidate behind it, and where its config comes from.
        call, graph_call: run it; under graph capture the plan may be another one.
    """

    name: str
    role: Role
    what: str
    call: Callable[[], Any]
    graph_call: Callable[[], Any]


def default_names(op: Op) -> tuple[str, ...]:
    """The selected plan, the copy, and what a user has without us, registered providers
    included."""
    theirs = (i.name for i in implementations(op.name) if i.kind != "triton")
    return (*RESERVED, *theirs, *registered(op.name))


def known_names(op: Op) -> tuple[str, ...]:
    """Every provider of an op."""
    return (*RESERVED, *(i.name for i in implementations(op.name)), *registered(op.name))


def check_names(op: Op, names: Sequence[str]) -> None:
    """Raise `InvalidInputError` for a provider that the op does not have."""
    known = known_names(op)
    for name in names:
        if name not in known:
            raise InvalidInputError(
                f"`provider` is {name!r}; `{op.name}` has {', '.join(known)}. Choose some of them."
                f"{did_you_mean(name, known)}"
            )


def make_provider(name: str, op: Op, problem: Problem, values: tuple[Any, ...]) -> Provider:
    """The provider of this name, built (a compiled one compiles here).

    Raises:
        UnsupportedProblemError: it cannot run the problem here; the message says why.
    """
    device = op.device(values)
    if name == COPY:
        call = copy_call(op.cost(problem).size_bytes, device)
        return Provider(name, "ceiling", "copy_ of as many bytes", call, call)
    if name == GRISTMILL:
        return _selected(op, values)
    if name == TORCH:
        what, call = plain_call(op, values)
        return Provider(name, "other", what, call, call)
    if (custom := registered(op.name).get(name)) is not None:
        return _registered(custom, problem, values)
    return _by_name(implementation(op.name, name), problem, values, device_target(device))


def _selected(op: Op, values: tuple[Any, ...]) -> Provider:
    bound = get_op(op.name, values, tune="never")
    try:
        graph = get_op(op.name, values, tune="never", objective="graph")
    except UnsupportedProblemError:
        graph = bound
    plan = bound.plan
    what = f"{plan.candidate} [{plan.origin}]"
    if graph.plan.candidate != plan.candidate:
        what += f"; in graphs {graph.plan.candidate}"
    return Provider(GRISTMILL, "selected", what, lambda: bound(*values), lambda: graph(*values))


def _registered(custom: Registered, problem: Problem, values: tuple[Any, ...]) -> Provider:
    reason = custom.supports(problem)
    if reason is not None:
        raise UnsupportedProblemError(
            f"the provider {custom.name!r} cannot run {problem}: {reason}."
        )
    run = custom.call(problem)
    what = f"{custom.function.__module__}.{getattr(custom.function, '__qualname__', custom.name)}"
    return Provider(custom.name, "other", what, call := lambda: run(*values), call)


def _by_name(
    impl: Implementation, problem: Problem, values: tuple[Any, ...], target: Target
) -> Provider:
    reason = impl.why_not(problem, target)
    if reason is not None:
        raise UnsupportedProblemError(
            f"`{impl.id}` cannot run {problem} on {target.name}: {reason}."
        )
    candidate, origin = _best(impl, problem, target, "eager")
    best_graph, _ = _best(impl, problem, target, "graph")
    call = bind(impl, candidate.config, values)
    graph = call if best_graph == candidate else bind(impl, best_graph.config, values)
    call(*values)  # compiles what has to be, in the gradient mode that it is timed in
    what = f"{candidate} [{origin}]" if impl.kind == "triton" else impl.kind
    role: Role = "own" if impl.kind == "triton" else "other"
    return Provider(impl.name, role, what, lambda: call(*values), lambda: graph(*values))


def _best(
    impl: Implementation, problem: Problem, target: Target, objective: Objective
) -> tuple[Candidate, str]:
    """The implementation with the best config measured for this bucket, or with its prior."""
    measured = store().measurements(impl.op.name, impl.op.bucket(problem).key, target.key)
    good = [
        m
        for m in latest_of_each(measured, provenance())
        if m.candidate.implementation == impl.name
        and m.source_hash == impl.source_hash
        and m.outcome.ok
    ]
    if not good:
        return Candidate(impl.name, impl.config(None, problem, target)), "prior"
    best = min(good, key=lambda m: m.outcome.time_us(objective))
    return Candidate(impl.name, impl.config(best.candidate.config, problem, target)), "measured"
