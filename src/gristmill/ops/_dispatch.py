"""The path of a call: call key -> bound launch; else problem -> plan -> bound launch; else the
differentiable reference."""

from __future__ import annotations

import threading
from typing import Any

import torch

from gristmill.compile.bound import BoundCall, bind
from gristmill.core.implementation import PLAIN_TYPES, Implementation
from gristmill.core.op import Op
from gristmill.core.plan import Candidate, Objective, Plan
from gristmill.core.registry import implementation, load
from gristmill.core.target import device_target
from gristmill.ops._key import is_plain, key_function, pack_function, problem_key_function
from gristmill.selection.select import prior_plan, select

NO_KEY = (AttributeError, TypeError, RuntimeError)  # no tensor, unhashable, or without memory
MAX_BOUND = 4096  # call keys remembered an op and objective; serving sees a key per batch shape


class Dispatcher:
    """Calls one op by name, under one objective. Never tunes, and waits for no compiler longer than
    a Triton kernel takes.

    Eager calls on plain tensors take the bound launch of their call key. Whatever needs more than
    values (a gradient, autocast, `torch.compile`, a tensor subclass, a mode) goes to the op's
    reference, which is plain torch.
    """

    def __init__(self, op: Op, objective: Objective) -> None:
        self.op: Op = op
        self.objective: Objective = objective
        self.key = key_function(op)
        self.problem_key = problem_key_function(op)
        self.pack = pack_function(op)
        self.bound: dict[tuple[Any, ...] | None, BoundCall] = {}
        self._built: dict[Any, BoundCall] = {}
        self._lock = threading.Lock()

    def __call__(self, *args: Any) -> Any:
        """The op on its arguments, all of them, in the schema's order."""
        if torch.compiler.is_compiling():
            return self.op.reference(*args)
        try:
            call = self.bound.get(self.key(*args))
        except NO_KEY:  # `slow` says what is wrong
            call = None
        return self.slow(args) if call is None else call(*args)

    def slow(self, args: tuple[Any, ...]) -> Any:
        """Check the arguments, find out how to run them, remember it, run."""
        values = self.op.bind(args)
        tensors = [v for v in values if isinstance(v, torch.Tensor)]
        if not is_plain() or any(type(t) not in PLAIN_TYPES for t in tensors):
            return self.op.reference(*values)
        if torch.is_grad_enabled() and any(t.requires_grad for t in tensors):
            call = self.op.reference
        else:
            target = device_target(self.op.device(values))
            plan = select(self.op, self.op.problem(values), target, self.objective)
            call = self.call_of(plan, values)
        self.remember(self.key(*values), call)
        return call(*values)

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

    def remember(self, key: tuple[Any, ...] | None, call: BoundCall) -> None:
        """Use `call` for this call key from now on."""
        with self._lock:
            if len(self.bound) >= MAX_BOUND:
                self.bound.clear()
            if key is not None:
                self.bound[key] = call

    def forget(self) -> None:
        """Drop every bound call: plans have changed."""
        with self._lock:
            self.bound.clear()

    def is_native(self, plan: Plan) -> bool:
        """Whether the plan's choice is a plain call of torch's."""
        return self._implementation(plan.candidate).native

    def _implementation(self, candidate: Candidate) -> Implementation:
        return implementation(self.op.name, candidate.implementation)


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
