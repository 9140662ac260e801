"""`get_op`: ask for an operator by name with your tensors."""

from __future__ import annotations

import weakref
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal, get_args

from gristmill import settings, tuning
from gristmill.cache.store import store
from gristmill.core.op import Op
from gristmill.core.plan import Objective, Plan
from gristmill.core.problem import Problem
from gristmill.core.target import Target
from gristmill.errors import InvalidInputError
from gristmill.ops._dispatch import dispatcher
from gristmill.ops.agree import Asked, agreed_plan
from gristmill.ops.bound_op import BoundOp, bound_op
from gristmill.ops.idle import tune_when_idle
from gristmill.ops.tune import ask, explores, limits_of, tune_problem
from gristmill.selection.frozen import active
from gristmill.selection.select import select
from gristmill.settings import TunePolicy


def get_op(
    op: str,
    args: Sequence[Any],
    kwargs: Mapping[str, Any] | None = None,
    *,
    objective: Objective = "eager",
    tune: Literal["now", "never", "idle"] | None = None,
    budget_s: float | None = None,
    trials: int | None = None,
    strategy: tuning.StrategyLike = "auto",
    group: Any = None,
) -> BoundOp:
    """The operator chosen for these arguments: from the plan store, or by tuning if it is new.

    Where another process is tuning this very problem, it is not waited for: the operator is what
    selection has meanwhile, and `plan.reason` says so. A Triton choice loads its kernel at the
    first call (0.3 s of Triton's own start-up for the first kernel of a process), or at
    `preload()`; a compiled one is compiled here.

    Args:
        op: the op's name (`gristmill list` shows them).
        args, kwargs: what it will be called with; values are not used, tuning makes its own.
        objective: `eager` ranks by the longer of host and device time of a call, `graph` by
            CUDA-graph replay time.
        tune: `now` tunes a problem that has no plan (under a progress line on a terminal), `never`
            (and a frozen process) takes what selection has; so does `idle`, and the problem is
            tuned when this process has nothing to do: the operator takes that plan then
            (docs/idle.md). Default: the setting `GRISTMILL_TUNE`.
        budget_s, trials: limits of the tuning: seconds (default: 60), Triton candidates.
        strategy: by name, or a strategy of yours: a class made with (space, problem, target, seed),
            or an object with `ask` and `tell` (`gristmill.tuning.Strategy`; docs/strategies.md).
            `auto` is exhaustive where that fits the trials, else the portfolio.
        group: a `torch.distributed` group whose ranks are to agree: then this is a collective call,
            which every rank of it makes. Of those whose arguments fall into one bucket, on one kind
            of device under the same versions, the first selects or tunes, and all get its plan; the
            others wait for it, so the group's time-out has to be longer than `budget_s`. Default:
            this process asks for itself, and waits for nobody.

    Raises:
        UnknownOpError, InvalidInputError, UnsupportedProblemError: what was asked cannot be run.
        TuningError: no candidate gave right results, or the reference itself raised. With `group`:
            one of these on another rank, or a rank that is gone.
        StrategyError: a strategy of yours raised, or proposed what cannot be measured; what was
            measured, and the best of it as the plan, are kept.
        FrozenError: a strict lock file has no plan for this problem.
        KeyboardInterrupt: Ctrl-C while tuning; what was measured is kept, the best as the plan.
    """

    def question() -> Asked:
        asked = ask(op, args, kwargs, objective)
        _wishes(tune, budget_s, trials, strategy)  # wrong ones are wrong with a plan too
        return asked

    def decide(asked: Asked) -> Plan:
        return _plan(*asked, objective, strategy, *_wishes(tune, budget_s, trials, strategy))

    asked, plan = agreed_plan(group, objective, question, decide)
    # of ranks that agree each would find a plan at a time of its own
    return _bound(asked, plan, objective, idle=_policy(tune) == "idle" and group is None)


def _bound(asked: Asked, plan: Plan, objective: Objective, idle: bool) -> BoundOp:
    """The operator bound to a plan; `idle`: it takes the one that idle tuning finds."""
    spec, values, problem, target = asked
    dispatch = dispatcher(spec.name, objective)
    dispatch.build(plan, values)
    bound = bound_op(dispatch, problem, plan, values)
    if idle:
        told = weakref.WeakMethod(bound.reselect)
        tune_when_idle(spec, problem, spec.device(values), target, plan, told)
    return bound


def _wishes(
    tune: str | None, budget_s: float | None, trials: int | None, strategy: tuning.StrategyLike
) -> tuple[bool, tuning.Budget | None]:
    """Whether to tune, and within what limits, where any are given; checked."""
    given = (budget_s, trials, strategy) != (None, None, "auto")
    return _policy(tune) == "now", limits_of(budget_s, trials, strategy) if given else None


def _policy(tune: str | None) -> str:
    policy = settings.current().tune if tune is None else tune
    if policy not in get_args(TunePolicy):
        allowed = " or ".join(map(repr, get_args(TunePolicy)))
        raise InvalidInputError(f"`tune` is {policy!r}; it can be {allowed}. Choose one.")
    return policy


def _plan(
    spec: Op,
    values: tuple[Any, ...],
    problem: Problem,
    target: Target,
    objective: Objective,
    strategy: tuning.StrategyLike,
    may_tune: bool,
    limits: tuning.Budget | None,
) -> Plan:
    """The plan that there is, or that tuning gives."""
    plan = select(spec, problem, target, objective)
    if may_tune and plan.wants_tuning and not (tuning.refusal() or active()):
        store().forget()  # another process may have tuned it meanwhile
        plan = select(spec, problem, target, objective)
        if plan.wants_tuning:
            limits = limits or limits_of(None, None, strategy)
            device = spec.device(values)
            result = tune_problem(spec, problem, device, limits, strategy, explore=explores(plan))
            plan = select(spec, problem, target, objective)
            if result.skipped:
                plan = replace(plan, reason=f"{plan.reason}; {result.skipped}: ask again later")
    return plan
