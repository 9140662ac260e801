"""Tuning by name: `tune`, and what `get_op` and the idle process share with it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from gristmill import settings, tuning
from gristmill.cache.store import store
from gristmill.core.op import Op
from gristmill.core.plan import INTERRUPTED, OBJECTIVES, Objective, Plan
from gristmill.core.problem import Problem
from gristmill.core.registry import load
from gristmill.core.target import Target, device_target
from gristmill.errors import InvalidInputError, TuningError
from gristmill.ops._dispatch import forget
from gristmill.ops.agree import Asked
from gristmill.selection.frozen import forget_bucket, refuse_tuning
from gristmill.selection.select import select


def explores(plan: Plan) -> bool:
    """Whether to search: after an upgrade only the best few are measured again."""
    return plan.origin != "tuned" or plan.provenance == INTERRUPTED


def tune_wanted(
    spec: Op,
    problem: Problem,
    device: torch.device,
    budget: tuning.Budget,
    run: type[tuning.TuningRun],
) -> dict[str, Any]:
    """Tune a problem if its plan wants it still; `tuned`: its plan is a measured one now, else
    `skipped` says why."""
    plan = select(spec, problem, device_target(device), "eager")
    if not plan.wants_tuning:  # another process has
        return {"tuned": True}
    result = tune_problem(spec, problem, device, budget, "auto", explore=explores(plan), run=run)
    return {"tuned": bool(result.plans), "skipped": result.skipped}


def tune(
    op: str,
    args: Sequence[Any],
    kwargs: Mapping[str, Any] | None = None,
    *,
    budget_s: float | None = None,
    trials: int | None = None,
    strategy: tuning.StrategyLike = "auto",
    seed: int = 0,
    roofline_stop: float | None = None,
    afresh: bool = False,
) -> tuning.TuningResult:
    """Tune this problem now, whether it has a plan or not, and keep the plans for both objectives.

    It goes on where a run of this problem ended, were it killed: what was measured with the same
    sources and versions is not measured again, except in the last race.

    Args as for `get_op`; `seed` makes inputs and random search repeatable. `roofline_stop` ends the
    search where the best candidate is within this share of the roofline (0.02: 2%), which is
    measured first; `result.stopped` says so. `afresh` measures what was measured before too: after
    a run on a busy device, say.

    Raises:
        TuningError: under CUDA-graph capture or `torch.compile`; no candidate gave right results;
            the reference raised.
        FrozenError: plans are frozen.
        TuningInterrupted: a `KeyboardInterrupt` with the result so far, after keeping what was
            measured.
    """
    spec, values, problem, _ = ask(op, args, kwargs, "eager")
    refuse_tuning(str(problem))
    refuse_now()
    limits = limits_of(budget_s, trials, strategy, roofline_stop)
    device = spec.device(values)
    result = tune_problem(spec, problem, device, limits, strategy, seed, afresh=afresh)
    if result.skipped:
        raise TuningError(f"{problem} is not tuned: {result.skipped}. Wait for it, then ask again.")
    return result


def refuse_now() -> None:
    """Raise where this is no time to tune.

    Raises:
        TuningError: it is not.
    """
    reason = tuning.refusal()
    if reason:
        raise TuningError(
            f"tuning is refused {reason}. Tune before, with `gristmill.tune` or `gristmill tune`."
        )


def ask(
    name: str, args: Sequence[Any], kwargs: Mapping[str, Any] | None, objective: Objective
) -> Asked:
    """What a question about an op and arguments is about, checked."""
    if objective not in OBJECTIVES:
        raise InvalidInputError(
            f"`objective` is {objective!r}; it can be {' or '.join(OBJECTIVES)}. Choose one."
        )
    if not isinstance(name, str):
        raise InvalidInputError(
            f"`op` is {type(name).__name__}; it needs an op's name, a string. `gristmill list` "
            "shows them."
        )
    spec = load(name)
    if not isinstance(args, (tuple, list)):
        raise InvalidInputError(
            f"`args` is {type(args).__name__}; it needs the op's arguments as a tuple. Write "
            "`(x,)` for one."
        )
    values = spec.bind(args, kwargs)
    return spec, values, spec.problem(values), device_target(spec.device(values))


def limits_of(
    seconds: float | None,
    trials: int | None,
    strategy: tuning.StrategyLike,
    roofline_stop: float | None = None,
) -> tuning.Budget:
    """The budget, with the strategy checked beside it."""
    if strategy != "auto":
        tuning.check_strategy(strategy)
    seconds = settings.current().budget_s if seconds is None else seconds
    return tuning.Budget(seconds, trials, roofline_stop)


def tune_problem(
    spec: Op,
    problem: Problem,
    device: torch.device,
    budget: tuning.Budget,
    strategy: tuning.StrategyLike,
    seed: int = 0,
    explore: bool = True,
    afresh: bool = False,
    run: type[tuning.TuningRun] | None = None,
) -> tuning.TuningResult:
    """Tune a problem under the lease of its key, with a `run` of this kind, and take the plans over
    in this process; `skipped` where another process has the lease."""
    bucket, target = spec.bucket(problem), device_target(device)
    with store().lease(tuning.lease_key(spec, bucket, target)) as mine:
        if not mine:  # another process is tuning this very problem: use what there is
            return tuning.TuningResult(skipped="another process is tuning this very problem")
        tuning.adopt(store(), spec.name, bucket.key, target.key)
        asked = (spec, problem, device, store(), budget, strategy, seed, tuning.observer())
        try:
            result = (run or tuning.TuningRun)(*asked, explore, afresh).run()
        finally:  # a strategy that fails leaves plans behind
            forget(spec.name)
    if result.plans:
        use_again(spec, problem, target)
    if result.interrupted:
        raise tuning.TuningInterrupted(result)
    return result


def use_again(spec: Op, problem: Problem, target: Target) -> None:
    """After tuning: of what was chosen before nothing is called any more, and its bucket is in
    use."""
    for objective in forget_bucket(spec.name, spec.bucket(problem).key, target.key):
        select(spec, problem, target, objective)
