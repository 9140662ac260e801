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
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeVar

import torch.distributed as dist

from gristmill import tuning
from gristmill.cache import rows
from gristmill.cache.store import store
from gristmill.core.op import Op
from gristmill.core.plan import Candidate, Measurement, Objective, Plan
from gristmill.core.problem import Problem
from gristmill.core.provenance import provenance
from gristmill.core.registry import implementation
from gristmill.core.target import Target
from gristmill.errors import InvalidConfigError, InvalidInputError, TuningError
from gristmill.ops._dispatch import forget
from gristmill.selection.frozen import active, record
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

    A plan that was measured there is kept here too, with the measurements of its choice and its
    fallback: direct calls, and later processes of this machine, use it. A shipped pack's is not:
    it would go before the pack of this machine from then on.

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
    answers = _exchange(
        group, lambda: _answer(decide(mine[0])) if rank == first else None, "has no plan", [first]
    )
    plan, beneath = _read(answers[first] or {})
    return mine[0], plan if rank == first else _taken_over(plan, mine[0], first, beneath)


def _taken_over(plan: Plan, asked: Asked, first: int, beneath: Sequence[Measurement] = ()) -> Plan:
    """Another rank's plan as this one can run it, used here from now on; if it was measured there,
    kept in this one's store with the measurements `beneath` it."""
    op, _, problem, target = asked
    impl = implementation(op.name, plan.candidate.implementation)
    if impl.source_hash != plan.source_hash:
        raise TuningError(
            f"the ranks do not agree on a plan: the source of `{op.name}`'s {impl.name!r} is "
            f"another here than on rank {first}. Install one version of gristmill on all."
        )
    if active() is not None:  # a frozen rank has its lock file's plan, and keeps no other
        return select(op, problem, target, plan.objective)
    bucket = op.bucket(problem)
    family, axes = bucket.family(op.axes(problem)), dict(bucket.axes)
    if plan.origin == "tuned" and not plan.packed:
        _keep(plan, family, axes, beneath)
    candidate, fallback = (_here(c, asked) for c in (plan.candidate, plan.fallback))
    if candidate is None:  # a problem of the same bucket that it cannot run
        return select(op, problem, target, plan.objective)
    plan = replace(plan, candidate=candidate, fallback=fallback)
    record(plan, family, axes)
    return plan


def _keep(plan: Plan, family: str, axes: Mapping[str, int], beneath: Sequence[Measurement]) -> None:
    """Keep another rank's plan, and of the measurements beneath it those of what was not measured
    here: the one of its fallback is what says that it may be used."""
    place = store()
    place.forget()  # it may be the very store that the first rank wrote to
    have = place.measurements(plan.op, plan.bucket, plan.target)
    known = {(m.candidate, m.source_hash) for m in have}
    place.record([m for m in beneath if (m.candidate, m.source_hash) not in known])
    if place.plan(plan.op, plan.bucket, plan.target, plan.objective) != plan:
        place.save_plan(plan, family, axes)
        forget(plan.op)


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


def _answer(plan: Plan) -> dict[str, Any]:
    """A plan as it crosses, with the store's measurements of its choice and its fallback."""
    chosen = (plan.candidate, plan.fallback)
    have = store().measurements(plan.op, plan.bucket, plan.target)
    return {
        "plan": rows.plan_row(plan, "", {}, 0.0),
        "packed": plan.packed,
        "beneath": [rows.measurement_row(m) for m in have if m.candidate in chosen],
    }


def _read(answer: Mapping[str, Any]) -> tuple[Plan, list[Measurement]]:
    """What `_answer` says."""
    plan = rows.plan(dict(zip(rows.PLAN_COLUMNS, answer["plan"], strict=True)), provenance())
    columns = rows.MEASUREMENT_COLUMNS
    found = [rows.measurement(dict(zip(columns, m, strict=True))) for m in answer["beneath"]]
    return replace(plan, packed=answer["packed"]), found


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
