"""Providers by registration: a column of a benchmark that a plug-in or a script brings along."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from gristmill.core.problem import Problem
from gristmill.core.registry import implementations, load
from gristmill.errors import RegistrationError

RESERVED = ("gristmill", "copy", "torch")  # columns that every op has

Function = TypeVar("Function", bound=Callable[..., Any])


@dataclass(frozen=True, slots=True)
class Registered:
    """A registered provider.

    Attributes:
        function: the call itself, with the op's arguments; with `build`, what makes that call for a
            problem.
        supports: `(problem) -> None`, or why it cannot run the problem.
    """

    op: str
    name: str
    function: Callable[..., Any]
    build: bool
    supports: Callable[[Problem], str | None]

    def call(self, problem: Problem) -> Callable[..., Any]:
        """The call that takes the op's arguments."""
        return self.function(problem) if self.build else self.function


_providers: dict[str, dict[str, Registered]] = {}
_lock = threading.Lock()


def provider(
    op: str,
    name: str,
    *,
    build: bool = False,
    supports: Callable[[Problem], str | None] = lambda problem: None,
) -> Callable[[Function], Function]:
    """Register the decorated function as the column `name` in benchmarks of `op`.

        @gristmill.bench.provider("rms_norm", "naive")
        def naive(x, weight, eps):
            return x * (x.square().mean(-1, keepdim=True) + eps).rsqrt() * weight

    It takes the op's arguments in the schema's order and returns its outputs. Before it is timed
    it is checked like every other: against the float64 reference, on two sets of values, in memory
    that was poisoned. Outside the op's bounds, or where it changes an argument, it gets a reason
    and no time. It counts as what a user has without us: the verdicts compare the plan with it.

    A module of the entry point `gristmill.kernels` registers for everybody who installed it; a
    script registers before it calls `gristmill.bench.bench`, or goes with `--providers-from FILE`
    to `gristmill bench`.

    Args:
        op: the op's name. name: the column's, new among the op's implementations and providers.
        build: the function takes the problem and returns the call, so that what is made once (a
            plan, a workspace, a compiled kernel) is not timed.
        supports: takes the problem; `None`, or why the provider cannot run it.

    Raises:
        UnknownOpError: no such op.
        RegistrationError: the name is taken, or the function is none.
    """
    load(op)
    if name in RESERVED:
        raise RegistrationError(
            f"the provider {name!r} of `{op}` has the name of a column that every op has; "
            f"{', '.join(RESERVED)} are taken. Choose another name."
        )

    def register(function: Function) -> Function:
        if not callable(function):
            raise RegistrationError(
                f"the provider {name!r} of `{op}` is {type(function).__name__}; it has to be a "
                f"function. Decorate one that takes the arguments of {load(op).schema}."
            )
        with _lock:
            known = _providers.setdefault(op, {})
            if name in known:
                raise RegistrationError(
                    f"the provider {name!r} of `{op}` is registered twice (in "
                    f"{known[name].function.__module__} and {function.__module__}). Rename one."
                )
            known[name] = Registered(op, name, function, build, supports)
        return function

    return register


def unregister(op: str, name: str) -> None:
    """Forget a registered provider, so that its name is free again; one that is not there is no
    error."""
    with _lock:
        _providers.get(op, {}).pop(name, None)


def registered(op: str) -> dict[str, Registered]:
    """The registered providers of an op by name, those of plug-ins included.

    Raises:
        RegistrationError: one has the name of an implementation.
    """
    names = {i.name for i in implementations(op)}  # imports the plug-ins, which register here
    found = dict(sorted(_providers.get(op, {}).items()))
    for name in found.keys() & names:
        raise RegistrationError(
            f"the provider {name!r} of `{op}`, registered in {found[name].function.__module__}, "
            "has the name of an implementation. Rename the provider."
        )
    return found
