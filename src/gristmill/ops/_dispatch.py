"""The path of a call: call key -> bound launch; else problem -> plan -> bound launch; else the
differentiable reference."""

from __future__ import annotations

import threading
from typing import Any

import torch

from gristmill.compile.bound import BoundCall, bind
from gristmill.core.op import Op
from gristmill.core.plan import Candidate, Objective, Plan
from gristmill.core.problem import Problem
from gristmill.core.registry import implementation, load
from gristmill.core.target import device_target
from gristmill.ops._key import PLAIN_TYPES, is_plain, key_function
from gristmill.selection.select import prior_plan, select

MAX_BOUND = 4096  # call keys remembered an op and objective; serving sees a key per batch shape


class Dispatcher:
    """Calls one op by name, under one objective. Never tunes, never blocks on a compiler for more
    than a Triton kernel.

    Eager calls on plain tensors take the bound launch of their call key. Whatever needs more than
    values (a gradient, autocast, `torch.compile`, a tensor subclass, a mode) goes to the op's
    reference, which is plain torch.
    """

    def __init__(self, op: Op, objective: Objective) -> None:
        self.op, self.objective = op, objective
        self.key = key_function(op)
        self._width = len(op.names)
        self.bound: dict[tuple[Any, ...], BoundCall] = {}
        self._built: dict[tuple[Candidate, Problem], BoundCall] = {}
        self._lock = threading.Lock()

    def __call__(self, *args: Any) -> Any:
        """The op on arguments in the schema's order (defaults may be left out)."""
        if torch.compiler.is_compiling():
            return self.op.reference(*args)
        if is_plain():
            try:
                call = self.bound.get(self.key(*args))
            except (
                AttributeError,
                TypeError,
            ):  # no tensor, an unhashable argument: `bind` below says what is wrong
                call = None
            if call is not None and len(args) == self._width:
                return call(*args)
        return self.slow(args)

    def slow(self, args: tuple[Any, ...], kwargs: dict[str, Any] | None = None) -> Any:
        """Check the arguments, find out how to run them, remember it, run."""
        values = self.op.bind(args, kwargs)
        tensors = [v for v in values if isinstance(v, torch.Tensor)]
        if not is_plain() or any(type(t) not in PLAIN_TYPES for t in tensors):
            return self.op.reference(*values)
        if torch.is_grad_enabled() and any(t.requires_grad for t in tensors):
            return self._remember(values, self.op.reference)(*values)
        problem = self.op.problem(values)
        call = self.call_of(
            select(self.op, problem, device_target(self.op.device(values)), self.objective), values
        )
        return self._remember(values, call)(*values)

    def call_of(self, plan: Plan, values: tuple[Any, ...], build: bool = False) -> BoundCall:
        """A plan's bound call. A `compiled` choice that is not built yet is built for `build`, else
        replaced by the plan's fallback: a direct call waits for no compiler."""
        candidate = plan.candidate
        impl = implementation(self.op.name, candidate.implementation)
        if impl.kind != "compiled":
            return bind(impl, candidate.config, values)
        problem = self.op.problem(values)
        key = (candidate, problem)
        if key not in self._built:
            if not build:
                fallback = plan.fallback
                if fallback is None:
                    target = device_target(self.op.device(values))
                    fallback = prior_plan(self.op, problem, target, self.objective).candidate
                return bind(
                    implementation(self.op.name, fallback.implementation), fallback.config, values
                )
            call = bind(impl, candidate.config, values)
            with torch.no_grad():
                call(*values)  # the first call compiles
            self._built[key] = call
        return self._built[key]

    def remember(self, values: tuple[Any, ...], call: BoundCall) -> None:
        """Use `call` for the call key of `values` from now on."""
        self._remember(values, call)

    def forget(self) -> None:
        """Drop every bound call: plans have changed."""
        with self._lock:
            self.bound.clear()

    def _remember(self, values: tuple[Any, ...], call: BoundCall) -> BoundCall:
        with self._lock:
            if len(self.bound) >= MAX_BOUND:
                self.bound.clear()
            self.bound[self.key(*values)] = call
        return call


_dispatchers: dict[tuple[str, Objective], Dispatcher] = {}
_lock = threading.Lock()


def dispatcher(name: str, objective: Objective = "eager") -> Dispatcher:
    """The dispatcher of an op and objective, made once."""
    found = _dispatchers.get((name, objective))
    if found is None:
        op = load(name)
        with _lock:
            found = _dispatchers.setdefault((name, objective), Dispatcher(op, objective))
    return found


def forget(name: str) -> None:
    """Drop the bound calls of an op, whatever the objective."""
    for (op, _), one in list(_dispatchers.items()):
        if op == name:
            one.forget()
