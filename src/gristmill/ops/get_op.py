"""`get_op`: ask for an operator by name with your tensors."""

from __future__ import annotations

import functools
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal, cast, get_args

import torch

from gristmill import settings, tuning
from gristmill.cache.store import store
from gristmill.compile.bound import BoundCall
from gristmill.core.config import Config
from gristmill.core.implementation import PLAIN_TYPES
from gristmill.core.op import Op
from gristmill.core.plan import Objective, Plan
from gristmill.core.problem import Problem
from gristmill.core.target import Target, device_target
from gristmill.errors import InvalidInputError
from gristmill.ops._dispatch import Dispatcher, dispatcher
from gristmill.ops._generate import bound_function, key_function
from gristmill.ops.agree import Asked, agreed_plan
from gristmill.ops.idle import tune_when_idle
from gristmill.ops.tune import ask, explores, limits_of, tune_problem
from gristmill.selection.frozen import active
from gristmill.selection.select import select
from gristmill.settings import TunePolicy


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
        "_native_call",
        "op",
        "plan",
        "problem",
    )

    def __init__(
        self, dispatch: Dispatcher, problem: Problem, plan: Plan, values: tuple[Any, ...]
    ) -> None:
        self.op, self.problem, self.plan = dispatch.op.name, problem, plan
        self._dispatch, self._device = dispatch, dispatch.op.device(values)
        self._take(plan, values)

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
        self._take(self.plan, values, self._dispatch.call_of(self.plan, values))
        return self

    def _take(self, plan: Plan, values: tuple[Any, ...], call: BoundCall | None = None) -> None:
        """Run a plan for arguments of these values' key, from now on."""
        native = self._dispatch.is_native(plan)
        key = key_function(self._dispatch.op, native=native)
        # A plan may change under a call of another thread that has compared its key already. So a
        # call of torch's own, whose key asks for less, has a place of its own.
        place = "_native_call" if native else "_call"
        setattr(self, place, call or functools.partial(self._first_call, plan, place))
        with torch.no_grad():  # the key of a call that needs no gradient: others take another path
            self._call_key = key(*values)

    def _first_call(self, plan: Plan, place: str, *values: Any) -> Any:
        call = self._dispatch.call_of(plan, values)
        setattr(self, place, call)
        return call(*values)

    def reselect(self) -> None:
        """Use the plan that there is now: from the next call on, which binds it. From any thread.

        `tune="idle"` does this when the problem has been tuned.
        """
        op, target = self._dispatch.op, device_target(self._device)
        plan = select(op, self.problem, target, self._dispatch.objective)
        changed, self.plan = plan.candidate != self.plan.candidate, plan
        if changed:
            self.__class__ = cast(
                "Any", _Changing
            )  # the only thing that a call in another thread can see

    def __deepcopy__(self, memo: Any) -> BoundOp:
        return self  # there is nothing in it that a copy could change

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickled as a question: where it is restored, the store there answers."""
        problem, objective = self.problem.to_json(), self._dispatch.objective
        return (_restore, (problem, str(self._device), objective))

    def __repr__(self) -> str:
        return f"<gristmill {self.problem}: {self.plan.candidate} ({self.plan.origin})>"


class _Changing(BoundOp):
    """A bound operator whose plan has changed: its next call takes it, with arguments to bind."""

    __slots__ = ()

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        dispatch, plan = self._dispatch, self.plan
        if not torch.compiler.is_compiling():
            values = dispatch.op.bind(args, kwargs)
            plain = all(type(v) in PLAIN_TYPES for v in values if isinstance(v, torch.Tensor))
            if plain and dispatch.op.problem(values) == self.problem:
                self._take(plan, values)
                self.__class__ = cast("Any", _bound_class(dispatch, dispatch.is_native(plan)))
        return dispatch.direct(*args, **kwargs)


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
    bound = _bound_class(dispatch, dispatch.is_native(plan))(dispatch, problem, plan, values)
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
