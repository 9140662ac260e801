"""`get_op` and `tune`: ask for an operator by name with your tensors."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

import torch

from gristmill import settings, tuning
from gristmill.cache.store import store
from gristmill.compile.bound import BoundCall, native
from gristmill.core.config import Config
from gristmill.core.op import Op
from gristmill.core.plan import INTERRUPTED, OBJECTIVES, Objective, Plan
from gristmill.core.problem import Problem
from gristmill.core.registry import load
from gristmill.core.target import Target, device_target
from gristmill.errors import InvalidInputError, TuningError
from gristmill.native.calls import calls
from gristmill.ops._dispatch import Dispatcher, dispatcher, forget
from gristmill.ops._generate import bound_function, key_function
from gristmill.ops.agree import Asked, agreed_plan
from gristmill.selection.frozen import active, forget_bucket, refuse_tuning
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
        "_table",
        "op",
        "plan",
        "problem",
    )

    def __init__(
        self, dispatch: Dispatcher, problem: Problem, plan: Plan, values: tuple[Any, ...]
    ) -> None:
        self.op, self.problem, self.plan = dispatch.op.name, problem, plan
        self._dispatch, self._device = dispatch, dispatch.op.device(values)
        key = key_function(dispatch.op, native=dispatch.is_native(plan))
        with torch.no_grad():  # the key of a call that needs no gradient: others take another path
            self._call_key = key(*values)
        self._call: BoundCall = self._first_call
        module = calls()
        self._table = None if module is None else module.Table()

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
        self._bind(self.problem.empty(self._device))
        return self

    def _first_call(self, *values: Any) -> Any:
        return self._bind(values)(*values)

    def _bind(self, values: tuple[Any, ...]) -> BoundCall:
        self._call = call = self._dispatch.call_of(self.plan, values)
        if self._table is not None:
            self._table.add(values, native(call))
        return call

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
            (and a frozen process) takes what selection has. Default: the setting `GRISTMILL_TUNE`.
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

    (_, values, problem, _), plan = agreed_plan(group, objective, question, decide)
    dispatch = dispatcher(op, objective)
    dispatch.build(plan, values)
    return _bound_class(dispatch, dispatch.is_native(plan))(dispatch, problem, plan, values)


def _wishes(
    tune: str | None, budget_s: float | None, trials: int | None, strategy: tuning.StrategyLike
) -> tuple[bool, tuning.Budget | None]:
    """Whether to tune, and within what limits, where any are given; checked."""
    policy = settings.current().tune if tune is None else tune
    if policy not in ("now", "never"):
        raise InvalidInputError(f"`tune` is {policy!r}; it can be 'now' or 'never'. Choose one.")
    given = (budget_s, trials, strategy) != (None, None, "auto")
    return policy == "now", limits(budget_s, trials, strategy) if given else None


def _plan(
    spec: Op,
    values: tuple[Any, ...],
    problem: Problem,
    target: Target,
    objective: Objective,
    strategy: tuning.StrategyLike,
    may_tune: bool,
    budget: tuning.Budget | None,
) -> Plan:
    """The plan that there is, or that tuning gives."""
    plan = select(spec, problem, target, objective)
    if may_tune and _wants_tuning(plan) and not (tuning.refusal() or active()):
        store().forget()  # another process may have tuned it meanwhile
        plan = select(spec, problem, target, objective)
        if _wants_tuning(plan):
            # After an upgrade only the best few are measured again: the search is not repeated.
            explore = plan.origin != "tuned" or plan.provenance == INTERRUPTED
            budget = budget or limits(None, None, strategy)
            result = _tune(spec, values, problem, budget, strategy, explore=explore)
            plan = select(spec, problem, target, objective)
            if result.skipped:
                plan = replace(plan, reason=f"{plan.reason}; {result.skipped}: ask again later")
    return plan


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
    budget = limits(budget_s, trials, strategy, roofline_stop)
    result = _tune(spec, values, problem, budget, strategy, seed, afresh=afresh)
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


def limits(
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
    afresh: bool = False,
) -> tuning.TuningResult:
    bucket, target = spec.bucket(problem), device_target(spec.device(values))
    with store().lease(tuning.lease_key(spec, bucket, target)) as mine:
        if not mine:  # another process is tuning this very problem: use what there is
            return tuning.TuningResult(skipped="another process is tuning this very problem")
        device, observer = spec.device(values), tuning.observer()
        tuning.adopt(store(), spec.name, bucket.key, target.key)
        run = tuning.TuningRun(
            spec, problem, device, store(), budget, strategy, seed, observer, explore, afresh
        )
        try:
            result = run.run()
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
