"""The path of a call: call key -> bound launch; else problem -> plan -> bound launch; what needs
more than values goes through torch's dispatcher."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable
from functools import cached_property
from itertools import islice
from typing import Any, ParamSpec, TypeVar
from weakref import WeakSet

import torch

from gristmill import settings
from gristmill.compile.bound import BoundCall, bind, program_of
from gristmill.core.implementation import PLAIN_TYPES, Implementation
from gristmill.core.op import Op
from gristmill.core.plan import Candidate, Objective, Plan
from gristmill.core.registry import implementation, load, op_names
from gristmill.core.target import device_target
from gristmill.errors import InvalidInputError
from gristmill.native.calls import calls
from gristmill.ops._generate import (
    Site,
    direct_function,
    dynamic_function,
    key_function,
    site_function,
    values_function,
    values_key_function,
)
from gristmill.ops._key import NO_KEY, is_plain, is_profiled
from gristmill.ops._library import NAMESPACE, register_op
from gristmill.ops.idle import tune_when_idle
from gristmill.selection.select import prior_plan, select

MAX_BOUND = 4096  # call keys remembered an op and objective; serving sees a key per batch shape
P = ParamSpec("P")
R = TypeVar("R")


class Dispatcher:
    """Calls one op by name, under one objective. Never tunes, and waits for no compiler longer than
    a Triton kernel takes.

    Eager calls on plain tensors take the bound launch of their call key. Whatever needs more than
    values (a gradient, autocast, `torch.compile`, a tensor subclass, a mode) goes to the op as it
    is registered with torch, and comes back here for its values.

    Attributes:
        direct: the op on its arguments, as its schema has them.
        overload: the op in torch's dispatcher.
    """

    def __init__(self, op: Op, objective: Objective) -> None:
        self.op: Op = op
        self.objective: Objective = objective
        self.bound: dict[tuple[Any, ...] | None, BoundCall] = {}
        self._built: dict[Any, BoundCall] = {}
        self._sites: WeakSet[Site] = WeakSet()
        self._turn = 0  # how often plans have changed
        self._lock = threading.RLock()  # what is let go under it may call an op
        self.overload = registered(op)
        self._tables = _tables()
        self.direct = direct_function(
            op, self.overload, self.bound.get, self.slow, self._tables.get("direct")
        )

    # Generated when they are needed: a bound operator whose calls are all plain needs neither.
    @cached_property
    def key(self) -> Callable[..., tuple[Any, ...]]:
        """The call key of arguments."""
        return key_function(self.op, native=False)

    @cached_property
    def values_key(self) -> Callable[..., tuple[Any, ...]]:
        """The key of arguments of which only values are asked for."""
        return values_key_function(self.op)

    @cached_property
    def values(self) -> Callable[..., Any]:
        """What the registered op runs on a device."""
        return values_function(
            self.op, self.bound.get, self.slow_values, self._tables.get("values")
        )

    def __call__(self, *args: Any) -> Any:
        """As `direct`."""
        return self.direct(*args)

    def slow(self, args: tuple[Any, ...]) -> Any:
        """Check the arguments, find out how to run them, remember it, run."""
        tensors = [v for v in args if isinstance(v, torch.Tensor)]
        if not is_plain() or any(type(t) not in PLAIN_TYPES or t.is_meta for t in tensors):
            self.op.check_types(args)  # torch's own message does not say what to do
            return self.overload(*args)
        values = self.op.bind(args)
        try:
            key = self.key(*values)
        except NO_KEY:  # no memory: a batch of gradients (`is_grads_batched`), which torch unpacks
            return self.overload(*values)
        if torch.is_grad_enabled() and any(t.requires_grad for t in tensors):
            # Without formulas the dispatcher would come to the reference, and check again.
            call = self.overload if self.op.gradients else self.op.reference
            self.remember(key, call)
            return call(*values)
        return self._run(values, key)

    def slow_values(self, args: tuple[Any, ...]) -> Any:
        """The same where only values are asked for."""
        values = self.op.bind(args)
        return self._run(values, self.values_key(*values))

    def _run(self, values: tuple[Any, ...], key: tuple[Any, ...]) -> Any:
        """Checked arguments by their plan, which is bound to their key from now on."""
        return self._found(values, key)(*values)

    def _found(self, values: tuple[Any, ...], key: tuple[Any, ...]) -> BoundCall:
        """The plan's call for checked arguments, bound to their key from now on."""
        self._refuse_no_memory(values)
        turn = self._turn  # before the plan is asked for: it may change from here on
        target = device_target(self.op.device(values))
        problem, device = self.op.problem(values), self.op.device(values)
        plan = select(self.op, problem, target, self.objective)
        if settings.current().tune == "idle":
            tune_when_idle(self.op, problem, device, target, plan, self.forget)
        call = self.call_of(plan, values)
        self.remember(key, call, turn, values)
        return call

    def _refuse_no_memory(self, values: tuple[Any, ...]) -> None:
        for name, value in zip(self.op.names, values, strict=True):
            if isinstance(value, torch.Tensor) and value.numel() and value.data_ptr() == 0:
                raise InvalidInputError(
                    f"`{name}` has {value.numel()} elements and no memory: its storage was let go "
                    f"of, or torch keeps none for it; `{self.op.name}` reads memory. Pass a tensor "
                    "that has some."
                )

    def in_graph(self, fixed: bool) -> Callable[..., Any]:
        """The op for one place in a graph that Inductor compiled: values alone, and no dispatcher
        of torch's in the way, unless a profile is taken, which is to show the op.

        With `fixed` every size, stride and scalar there is a number, and the graph has outputs laid
        out as declared (which the first call checks).
        """
        values_of = getattr(getattr(torch.ops, NAMESPACE), f"_{self.op.name}").default

        def dynamic(args: tuple[Any, ...]) -> Any:
            return (values_of if is_profiled() else self.values)(*args)

        if not fixed:
            table = self._tables.get("values")
            return dynamic_function(self.op, self.bound.get, dynamic, table)
        site = Site()

        def slow(args: tuple[Any, ...]) -> Any:
            tensors = [v for v in args if isinstance(v, torch.Tensor)]
            if is_profiled() or any(t.data_ptr() & 15 for t in tensors):
                return dynamic(args)
            turn = self._turn
            values = self.op.bind(args)
            key = self.values_key(*values)
            call = self.bound.get(key) or self._found(values, key)
            result = call(*values)
            self.op.check_outputs(values, result)
            with self._lock:
                if turn == self._turn:
                    site.remember(values, call)
            return result

        with self._lock:
            self._sites.add(site)
        return site_function(self.op, site, slow)

    def call_of(self, plan: Plan, values: tuple[Any, ...]) -> BoundCall:
        """A plan's bound call; the plan's fallback in place of a `compiled` choice that `build` has
        not built: a direct call waits for no compiler."""
        if self._implementation(plan.candidate).kind != "compiled":
            return self._bind(plan.candidate, values)
        built = self._built.get(self._build_key(plan, values))
        fallback = self._bind(self._fallback(plan, values), values)
        if built is None:
            return fallback

        tensors = [i for i, v in enumerate(values) if isinstance(v, torch.Tensor)]

        def call(*values: Any) -> Any:
            for index in tensors:
                # Dynamo would compile again for inference tensors: they have other dispatch keys.
                if values[index].is_inference():
                    return fallback(*values)
            return built(*values)

        return call

    def build(self, plan: Plan, values: tuple[Any, ...]) -> None:
        """Compile a plan whose choice is `compiled` (seconds), so that calls can use it."""
        key = self._build_key(plan, values)
        if self._implementation(plan.candidate).kind == "compiled" and key not in self._built:
            problem, device = self.op.problem(values), self.op.device(values)
            call = self._bind(plan.candidate, values)
            with torch.inference_mode(False):  # the first call compiles, for tensors of no mode
                call(*problem.empty(device))
            self._built[key] = call

    def _build_key(self, plan: Plan, values: tuple[Any, ...]) -> Any:
        return (plan.candidate, self.op.problem(values), self.op.device(values))

    def _fallback(self, plan: Plan, values: tuple[Any, ...]) -> Candidate:
        if plan.fallback is not None:
            return plan.fallback
        problem, target = self.op.problem(values), device_target(self.op.device(values))
        return prior_plan(self.op, problem, target, self.objective).candidate

    def _bind(self, candidate: Candidate, values: tuple[Any, ...]) -> BoundCall:
        return bind(self._implementation(candidate), candidate.config, values)

    def remember(
        self,
        key: tuple[Any, ...],
        call: BoundCall,
        turn: int | None = None,
        values: tuple[Any, ...] | None = None,
    ) -> None:
        """Use `call` for this call key from now on; unless plans have changed since the `turn` that
        it is of (default: it is of no plan). `values`: arguments that have the key, where nothing
        but values is asked for."""
        with self._lock:
            if turn not in (None, self._turn):
                return
            if len(self.bound) >= MAX_BOUND:  # the oldest eighth: never all calls at once
                for old in list(islice(self.bound, MAX_BOUND // 8)):
                    del self.bound[old]
                for table in self._tables.values():
                    table.drop(MAX_BOUND // 8)
            self.bound[key] = call
            if values is not None:
                for table in self._tables.values():
                    table.add(values, program_of(call))

    def forget(self) -> None:
        """Drop every bound call: plans have changed."""
        with self._lock:
            self._turn += 1
            self.bound.clear()
            for table in self._tables.values():
                table.clear()
            for site in list(self._sites):
                site.forget()

    def is_native(self, plan: Plan) -> bool:
        """Whether the plan's choice is a plain call of torch's."""
        return self._implementation(plan.candidate).native

    def _implementation(self, candidate: Candidate) -> Implementation:
        return implementation(self.op.name, candidate.implementation)


def _tables() -> dict[str, Any]:
    """What is bound, for the C module: of plain calls, and of calls that ask for values whatever
    the mode around them. Empty without the module."""
    module = calls()
    if module is None:
        return {}
    return {"direct": module.Table(), "values": module.Table(checked=False)}


_dispatchers: dict[tuple[str, Objective], Dispatcher] = {}
_lock = threading.RLock()


def dispatcher(name: str, objective: Objective = "eager") -> Dispatcher:
    """The dispatcher of an op and objective, made once."""
    found = _dispatchers.get((name, objective))
    if found is None:
        op = load(name)
        registered(op)
        with _lock:
            found = _dispatchers.get((name, objective))
            if found is None:
                found = _dispatchers[name, objective] = Dispatcher(op, objective)
    return found


_registered: dict[str, Any] = {}


def registered(op: Op) -> Any:
    """The op's overload in torch's dispatcher, registered once. It runs the `eager` plans.

    The ops of its gradients are registered with it: a compiled graph that Inductor finds in its
    cache calls them without a trace in this process.
    """
    if op.name not in _registered:
        family = {op.name: op}
        pending = [op]
        while pending:  # imports specs: under no lock of ours
            wanted = {gradient.op for gradient in pending.pop().gradients} - family.keys()
            family |= (found := {name: load(name) for name in sorted(wanted)})
            pending += found.values()
        with _lock:
            for name, one in family.items():
                if name not in _registered:
                    _registered[name] = register_op(one, _running(name), dispatcher)
    return _registered[op.name]


def _running(name: str) -> Callable[..., Any]:
    """What the registered op runs on a device."""
    return lambda *args: dispatcher(name).values(*args)


def in_graph(name: str, fixed: bool) -> Callable[..., Any]:
    """What code that Inductor generated calls in an op's place (`ops/_inductor.py`).

    Inductor's caches keep that code, and so this name and these arguments have to stay what they
    are.
    """
    return dispatcher(name).in_graph(fixed)


def register_ops() -> tuple[str, ...]:
    """Register every op with torch now, third parties' too; returns their names.

    An op is registered at its first use: only a program that was saved (`torch.export.save`) and is
    loaded before any use has to ask for it.
    """
    names = op_names()
    for name in names:
        registered(load(name))
    return names


def public(function: Callable[P, R]) -> Callable[P, R]:
    """The direct call of the op that has this function's name: its signature and docs are the
    function's, its body is generated."""
    return functools.wraps(function)(dispatcher(function.__name__).direct)


def forget(name: str | None = None) -> None:
    """Drop the bound calls of an op, or of all, whatever the objective."""
    for (op, _), one in list(_dispatchers.items()):
        if name in (None, op):
            one.forget()
