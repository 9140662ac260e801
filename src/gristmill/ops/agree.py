"""Ranks of one job agree: those that ask the same question get the plan of the first of them.

Without that, ranks that measure apart choose apart: the slowest choice sets the pace of all, and
what should be equal bit for bit (a batch split over ranks, a replica checked against another) is
not.

Two exchanges: what everybody asks, then what the first rank of each question answers, which
alone selects, and tunes. Nobody returns or raises between them, so nobody waits for one that is
gone on; an error is an answer like any other.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, TypeVar

import torch.distributed as dist

from gristmill import tuning
from gristmill.cache import rows
from gristmill.cache.store import store
from gristmill.core.op import Op
from gristmill.core.plan import Candidate, Objective, Plan
from gristmill.core.problem import Problem
from gristmill.core.provenance import provenance
from gristmill.core.registry import implementation
from gristmill.core.target import Target
from gristmill.errors import InvalidConfigError, InvalidInputError, TuningError
from gristmill.ops._dispatch import forget
from gristmill.selection.frozen import active
from gristmill.selection.select import select

Asked = tuple[Op, tuple[Any, ...], Problem, Target]
T = TypeVar("T")


def check_group(group: Any) -> None:
    """Refuse what is no group of this process.

    Raises:
        InvalidInputError: torch.distributed is not initialised, this is no group, or this process
            is not in it.
    """
    why = ""
    if not (dist.is_available() and dist.is_initialized()):
        why = "torch.distributed is not initialised"
    elif not isinstance(group, dist.ProcessGroup):
        why = f"it is {type(group).__name__}"
    elif dist.get_rank(group) < 0:
        why = "this process is not in it"
    if why:
        raise InvalidInputError(
            f"`group` cannot be used: {why}; it needs a torch.distributed group that this process "
            "is in. Call `init_process_group` and pass `torch.distributed.group.WORLD`, or None to "
            "ask for this process alone."
        )


def agreed_plan(
    group: dist.ProcessGroup | None,
    objective: Objective,
    ask: Callable[[], Asked],
    decide: Callable[[Asked], Plan],
) -> tuple[Asked, Plan]:
    """What is asked here, and the plan of the first rank that asks the same. Collective: every rank
    of the group calls it, in the same order among its other collectives.

    A measured plan is kept here too: direct calls, and later processes of this machine, use it.

    Args:
        group: who is to agree; `None` for this process alone, which then waits for nobody.
        objective: of the plan.
        ask: what is asked; may raise.
        decide: the plan for it; called on the first rank that asks it, and may raise.

    Raises:
        TuningError: asking or deciding raised on another rank, a rank is gone, or its sources are
            others.
        What `ask` or `decide` raised here.
    """
    if group is None:
        alone = ask()
        return alone, decide(alone)
    check_group(group)
    mine: list[Asked] = []

    def question() -> str:
        if reason := tuning.refusal():
            raise TuningError(f"ranks cannot agree {reason}. Call `get_op` with `group` before.")
        mine.append(ask())
        op, _, problem, target = mine[0]
        return f"{op.name}|{op.bucket(problem).key}|{target.key}|{objective}|{provenance()}"

    asked = _exchange(group, question, "asked what it cannot")
    rank = dist.get_rank(group)
    first = asked.index(asked[rank])
    rows_of = _exchange(
        group, lambda: _row(decide(mine[0])) if rank == first else None, "has no plan", [first]
    )
    values = rows_of[first] or ()
    plan = rows.plan(dict(zip(rows.PLAN_COLUMNS, values, strict=True)), provenance())
    return mine[0], plan if rank == first else _taken_over(plan, mine[0], first)


def _taken_over(plan: Plan, asked: Asked, first: int) -> Plan:
    """Another rank's plan as this one can run it, kept in this one's store."""
    op, _, problem, target = asked
    impl = implementation(op.name, plan.candidate.implementation)
    if impl.source_hash != plan.source_hash:
        raise TuningError(
            f"the ranks do not agree on a plan: the source of `{op.name}`'s {impl.name!r} is "
            f"another here than on rank {first}. Install one version of gristmill on all."
        )
    if active() is not None:  # a frozen rank has its lock file's plan, and keeps no other
        return select(op, problem, target, plan.objective)
    bucket, place = op.bucket(problem), store()
    place.forget()  # it may be the very store that the first rank wrote to
    known = place.plan(op.name, bucket.key, target.key, plan.objective)
    if plan.origin == "tuned" and known != plan:
        place.save_plan(plan, bucket.family(op.axes(problem)), dict(bucket.axes))
        forget(op.name)
    candidate, fallback = (_here(c, asked) for c in (plan.candidate, plan.fallback))
    if candidate is None:  # a problem of the same bucket that it cannot run
        return select(op, problem, target, plan.objective)
    return replace(plan, candidate=candidate, fallback=fallback)


def _here(candidate: Candidate | None, asked: Asked) -> Candidate | None:
    """A candidate with the values that its config derives from this rank's problem."""
    op, _, problem, target = asked
    if candidate is None:
        return None
    impl = implementation(op.name, candidate.implementation)
    if impl.why_not(problem, target) is not None:
        return None
    with contextlib.suppress(InvalidConfigError):
        return Candidate(impl.name, impl.config(candidate.config, problem, target))
    return None


def _row(plan: Plan) -> tuple[Any, ...]:
    return rows.plan_row(plan, "", {}, 0.0)


def _exchange(
    group: dist.ProcessGroup, make: Callable[[], T], what: str, needed: Sequence[int] | None = None
) -> list[T]:
    """What `make` gives on every rank, once it has been called on all of them; raises where it
    raised here, or on a rank that is `needed` (default: any)."""
    value, mistake = None, None
    try:
        value = make()
    except BaseException as error:  # noqa: BLE001 - raised below; the others wait for Ctrl-C too
        mistake = error
    said = None if mistake is None else f"{type(mistake).__name__}: {mistake}"
    found: list[Any] = [None] * dist.get_world_size(group)
    try:
        dist.all_gather_object(found, (value, said), group=group)
    except RuntimeError as error:
        raise mistake or TuningError(
            f"the ranks do not agree on a plan: one of them did not answer ({error}). Look at the "
            "ranks' logs for the one that ended, or raise the group's time-out above `budget_s`."
        ) from error
    if mistake is not None:
        raise mistake
    for rank, (_, other) in enumerate(found):
        if other is not None and (needed is None or rank in needed):
            raise TuningError(
                f"the ranks do not agree on a plan: rank {rank} {what} ({other}). Mend that one."
            )
    return [value for value, _ in found]
