"""`get_op` and `tune`: ask for an operator by name with your tensors."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

import torch

from gristmill import settings, tuning
from gristmill.cache.store import store
from gristmill.compile.bound import BoundCall
from gristmill.core.config import Config
from gristmill.core.op import Op
from gristmill.core.plan import INTERRUPTED, OBJECTIVES, Objective, Plan
from gristmill.core.problem import Problem
from gristmill.core.registry import load
from gristmill.core.target import Target, device_target
from gristmill.errors import InvalidInputError, TuningError
from gristmill.ops._dispatch import Dispatcher, dispatcher, forget
from gristmill.ops._generate import bound_function, key_function
from gristmill.selection.select import select


class BoundOp:
    """An operator chosen for one problem: call it with tensors of that problem for the shortest way
    to the device.

    A call checks the call key, then launches. Arguments of another problem are right too: they take
    the op's direct path, which selects again and never tunes.

    Attributes:
        op: the op's name. problem: what it was chosen for. plan: the choice with its evidence.
    """

    __slots__ = (
        "__weakref__",
        "_call",
        "_call_key",
        "_device",
        "_dispatch",
        "op",
        "plan",
        "problem",
    )

    def __init__(
        self, dispatch: Dispatcher, problem: Problem, plan: Plan, values: tuple[Any, ...]
    ) -> None:
        self.op, self.problem, self.plan = dispatch.op.name, problem, plan
        self._dispatch, self._device = dispatch, dispatch.op.device(values)
        key = key_function(dispatch.op, dispatch.is_native(plan))
        with torch.no_grad():  # the key of a call that needs no gradient: others take another path
            self._call_key = key(*values)
        self._call: BoundCall = self._first_call

    @property
    def implementation(self) -> str:
        """The name of the chosen implementation."""
        return self.plan.candidate.implementation

    @property
    def config(self) -> Config:
        """The chosen config."""
        return self.plan.candidate.config

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """The op on these arguments, as its schema has them.

        Raises:
            InvalidInputError: the arguments break the op's contract.
        """
        raise NotImplementedError  # each op's bound operators have their own (`_bound_class`)

    def preload(self) -> BoundOp:
        """Load the kernel now, not at the first call (before a CUDA-graph capture, say)."""
        values = self.problem.empty(self._device)
        self._call = self._dispatch.call_of(self.plan, values)
        return self

    def _first_call(self, *values: Any) -> Any:
        self._call = self._dispatch.call_of(self.plan, values)
        return self._call(*values)

    def __deepcopy__(self, memo: Any) -> BoundOp:
        return self  # there is nothing in it that a copy could change

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickled as a question: where it is restored, the store there answers."""
        problem, objective = self.problem.to_json(), self._dispatch.objective
        return (_restore, (problem, str(self._device), objective))

    def __repr__(self) -> str:
        return f"<gristmill {self.problem}: {self.plan.candidate} ({self.plan.origin})>"


@functools.cache
def _bound_class(dispatch: Dispatcher, native: bool) -> type[BoundOp]:
    """Bound operators of one op: with a `__call__` generated from its schema."""
    call = bound_function(dispatch.op, dispatch.overload, dispatch.direct, native)
    return type("BoundOp", (BoundOp,), {"__slots__": (), "__call__": call})


def _restore(problem: Mapping[str, Any], device: str, objective: Objective) -> BoundOp:
    asked = Problem.from_json(problem)
    return get_op(asked.op, asked.empty(torch.device(device)), objective=objective, tune="never")


def get_op(
    op: str,
    args: Sequence[Any],
    kwargs: Mapping[str, Any] | None = None,
    *,
    objective: Objective = "eager",
    tune: Literal["now", "never"] | None = None,
    budget_s: float | None = None,
    trials: int | None = None,
    strategy: tuning.StrategyLike = "auto",
) -> BoundOp:
    """The operator chosen for these arguments: from the plan store, or by tuning if it is new.

    Where another process is tuning this very problem, it is not waited for: the operator is what
    selection has meanwhile, and `plan.reason` says so. A Triton choice loads its kernel at the
    first call (0.3 s of Triton's own start-up for the first kernel of a process), or at
    `preload()`; a compiled one is compiled here.

    Args:
        op: the op's name (`gristmill list` shows them).
        args, kwargs: the arguments that it will be called with. Their values are not used: tuning
            makes its own.
        objective: `eager` ranks by the longer of host and device time of a call, `graph` by
            CUDA-graph replay time.
        tune: `now` tunes a problem that has no plan (under a progress line on a terminal), `never`
            takes what selection has. Default: the setting `GRISTMILL_TUNE`, which is `now`.
        budget_s, trials: limits of the tuning, in seconds of wall clock and in Triton candidates.
            Default: 60 s.
        strategy: by name (`auto`: exhaustive where that fits the trials, else the portfolio), or
            one of yours: see `gristmill.tuning.Strategy` and docs/strategies.md.

    Raises:
        UnknownOpError, InvalidInputError, UnsupportedProblemError: what was asked cannot be run.
        TuningError: no candidate gave right results, or the reference itself raised.
        StrategyError, KeyboardInterrupt: a strategy raised or proposed what cannot be measured, or
            Ctrl-C; what was measured, and the best of it as the plan, are kept.
    """
    spec, values, problem, target = ask(op, args, kwargs, objective)
    plan = select(spec, problem, target, objective)
    policy = settings.current().tune if tune is None else tune
    if policy not in ("now", "never"):
        raise InvalidInputError(f"`tune` is {policy!r}; it can be 'now' or 'never'. Choose one.")
    if (budget_s, trials, strategy) != (None, None, "auto"):  # wrong ones are wrong with a plan too
        _limits(budget_s, trials, strategy)
    if policy == "now" and _wants_tuning(plan) and not tuning.refusal():
        store().forget()  # another process may have tuned it meanwhile
        plan = select(spec, problem, target, objective)
        if _wants_tuning(plan):
            # After an upgrade only the best few are measured again: the search is not repeated.
            explore = plan.origin != "tuned" or plan.provenance == INTERRUPTED
            limits = _limits(budget_s, trials, strategy)
            result = _tune(spec, values, problem, limits, strategy, explore=explore)
            plan = select(spec, problem, target, objective)
            if result.skipped:
                plan = replace(plan, reason=f"{plan.reason}; {result.skipped}: ask again later")
    dispatch = dispatcher(op, objective)
    dispatch.build(plan, values)
    make = _bound_class(dispatch, dispatch.is_native(plan))
    return make(dispatch, problem, plan, values)


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
) -> tuning.TuningResult:
    """Tune this problem now, whether it has a plan or not, and keep the plans for both objectives.

    Args as for `get_op`; `seed` makes inputs and random search repeatable. `roofline_stop` ends the
    search where the best candidate is within this share of the roofline (0.02: 2%), which is
    measured first; `result.stopped` says so.

    Raises:
        TuningError: under CUDA-graph capture or `torch.compile`; no candidate gave right results;
            the reference raised.
        TuningInterrupted: a `KeyboardInterrupt` with the result so far, after keeping what was
            measured.
    """
    spec, values, problem, _ = ask(op, args, kwargs, "eager")
    reason = tuning.refusal()
    if reason:
        raise TuningError(
            f"tuning is refused {reason}. Tune before, with `gristmill.tune` or `gristmill tune`."
        )
    limits = _limits(budget_s, trials, strategy, roofline_stop)
    result = _tune(spec, values, problem, limits, strategy, seed)
    if result.skipped:
        raise TuningError(f"{problem} is not tuned: {result.skipped}. Wait for it, then ask again.")
    return result


def ask(
    name: str, args: Sequence[Any], kwargs: Mapping[str, Any] | None, objective: Objective
) -> tuple[Op, tuple[Any, ...], Problem, Target]:
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


def _limits(
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


def _wants_tuning(plan: Plan) -> bool:
    """Whether a plan was not measured for its bucket, or under other versions."""
    return plan.origin != "tuned" or plan.revalidate


def _tune(
    spec: Op,
    values: tuple[Any, ...],
    problem: Problem,
    budget: tuning.Budget,
    strategy: tuning.StrategyLike,
    seed: int = 0,
    explore: bool = True,
) -> tuning.TuningResult:
    bucket, target = spec.bucket(problem), device_target(spec.device(values))
    with store().lease(f"{spec.name}|{bucket.key}|{target.key}") as mine:
        if not mine:  # another process is tuning this very problem: use what there is
            return tuning.TuningResult(skipped="another process is tuning this very problem")
        device, observer = spec.device(values), tuning.observer()
        run = tuning.TuningRun(
            spec, problem, device, store(), budget, strategy, seed, observer, explore
        )
        try:
            result = run.run()
        finally:  # a strategy that fails leaves plans behind
            forget(spec.name)
    if result.interrupted:
        raise tuning.TuningInterrupted(result)
    return result
