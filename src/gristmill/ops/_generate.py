"""The functions that every call goes through, generated from the op's schema.

Generated, so that a call packs no argument list, loops over nothing and calls no function of ours
before the launch (docs/performance/dispatch.md has what each of these costs).
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from gristmill.compile.bound import program_of
from gristmill.core.op import Op
from gristmill.errors import RegistrationError
from gristmill.native.calls import calls
from gristmill.ops._key import PLAIN, SCOPE, addresses, call_key, problem_key, values_key

# What the C module has bound runs before a key is made in Python; `MISS`: it has no such call.
FAST_VALUES = """
    done = {fast}({names})
    if done is not MISS:
        return done
"""
FAST = """
    if forward_ad._current_level < 0:
        done = {fast}({names})
        if done is not MISS:
            return done
"""
FAST_OUT = """
        if forward_ad._current_level < 0:
            done = {fast}({names}, out)
            if done is not MISS:
                return written(done)
"""
# Dynamo knows `compiling()`, and traces the registered op. Elsewhere it is one cheap call. The
# level of forward mode is known while Dynamo traces alone: what it compiles does not set it.
DIRECT = """
def {op}({signature}):
    if compiling():
        return overload({names}) if forward_ad._current_level < 0 else reference({names})
{fast_path}
    try:
        call = lookup({call_key}) if {plain} else None
    except NO_KEY:
        call = None
    return slow(({names},)) if call is None else call({names})
"""
VALUES = """
def {op}({signature}):
{fast_path}
    call = lookup({values_key})
    return slow(({names},)) if call is None else call({names})
"""
# In a compiled graph. With fixed sizes all of the key but the addresses is known.
FIXED = """
def {op}({signature}):
    if profiler._is_profiler_enabled:
        return slow(({names},))
{fast_path}
    call = None if ({addresses}) & 15 else site.call
    return slow(({names},)) if call is None else call({names})
"""
DYNAMIC = """
def {op}({signature}):
    if profiler._is_profiler_enabled:
        return slow(({names},))
{fast_path}
    call = lookup({values_key})
    return slow(({names},)) if call is None else call({names})
"""
BOUND = """
def __call__(self, {signature}, *, out=None):
    if compiling():
        made = overload({names}) if forward_ad._current_level < 0 else reference({names})
        return made if out is None else copied(made, out)
    if out is not None:
{fast_out}
        return self._into(out, ({names},))
{fast_path}
    try:
        fits = {fits} == self._call_key
    except NO_KEY:
        fits = False
    return self.{place}({names}) if fits else direct({names})
"""
# What the templates name, beside `SCOPE`: no argument can.
TAKEN = {
    "MISS", "_at", "call", "copied", "defaults", "direct", "done", "fast", "fits", "lookup", "made",
    "out", "overload", "reference", "self", "site", "slow", "written",
}  # fmt: skip
FACTS = """
def facts({signature}):
    return {facts}
"""


def direct_function(
    op: Op, overload: Any, lookup: Callable[..., Any], slow: Callable[..., Any], table: Any
) -> Callable[..., Any]:
    """The op's public call: a plain call whose key is bound runs that, any other goes to `slow`.
    `table`: of the C module, what is bound; `None` without one."""
    known = {"overload": overload, "lookup": lookup, "slow": slow}
    return _make(DIRECT, op, **_fast(op, FAST, "fast", table), **known)


def values_function(
    op: Op, lookup: Callable[..., Any], slow: Callable[..., Any], table: Any
) -> Callable[..., Any]:
    """What the registered op runs on a device, where gradients and modes are dealt with."""
    return _make(VALUES, op, **_fast(op, FAST_VALUES, "fast", table), lookup=lookup, slow=slow)


class Site:
    """A place in a compiled graph that calls an op with tensors of fixed sizes.

    Attributes:
        call: what runs it where every tensor lies on 16 bytes; `None` where that is to be found.
        table: the same for the C module, if there is one.
    """

    __slots__ = ("__weakref__", "call", "table")

    def __init__(self) -> None:
        module = calls()
        self.call: Callable[..., Any] | None = None
        self.table: Any = None if module is None else module.Table(checked=False)

    def remember(self, values: tuple[Any, ...], call: Callable[..., Any]) -> None:
        self.call = call
        if self.table is not None:
            self.table.add(values, program_of(call))

    def forget(self) -> None:
        self.call = None
        if self.table is not None:
            self.table.clear()


def site_function(op: Op, site: Site, slow: Callable[..., Any]) -> Callable[..., Any]:
    """What such a place calls."""
    return _make(FIXED, op, **_fast(op, FAST_VALUES, "fast", site.table), site=site, slow=slow)


def dynamic_function(
    op: Op, lookup: Callable[..., Any], slow: Callable[..., Any], table: Any
) -> Callable[..., Any]:
    """What a compiled graph calls with sizes that vary."""
    return _make(DYNAMIC, op, **_fast(op, FAST_VALUES, "fast", table), lookup=lookup, slow=slow)


def bound_function(
    op: Op,
    overload: Any,
    direct: Callable[..., Any],
    native: bool,
    copied: Callable[[Any, Any], Any],
    written: Callable[[Any], Any],
) -> Callable[..., Any]:
    """`__call__` of a bound operator: what it is bound to, where the key is its `_call_key`, else
    the direct call. `native`: it is bound to a call of torch's own, which takes whatever has the
    problem's shape, in any mode."""
    fits = problem_key(op) if native else f"({PLAIN}) and {call_key(op)}"
    place = "_native_call" if native else "_call"
    known = {"fits": fits, "place": place, "overload": overload, "direct": direct}
    fast = _fast(op, FAST, "self._table", calls())
    into = _fast(op, FAST_OUT, "self._outs", calls())["fast_path"]
    return _make(BOUND, op, **fast, fast_out=into, copied=copied, written=written, **known)


def _fast(op: Op, template: str, name: str, table: Any) -> dict[str, Any]:
    """The way through a table of the C module: its text, and what that names."""
    if table is None:
        return {"fast_path": ""}
    text = template.format(fast=name, names=", ".join(op.names)).strip("\n")
    return {"fast_path": text, "fast": table, "MISS": calls().MISS}


@functools.cache
def key_function(op: Op, *, native: bool) -> Callable[..., tuple[Any, ...]]:
    """The key that a call of a bound operator of this kind makes, as a function of the op's
    arguments."""
    return _make(FACTS, op, facts=problem_key(op) if native else call_key(op))


@functools.cache
def values_key_function(op: Op) -> Callable[..., tuple[Any, ...]]:
    """The key of arguments of which only values are asked for, as a function of them."""
    return _make(FACTS, op, facts=values_key(op))


def refuse_schema(op: Op) -> None:
    """Refuse a schema that the templates cannot be filled with.

    Raises:
        RegistrationError: an argument has a name that they use, or is by keyword alone.
    """
    taken = sorted(set(op.names) & (TAKEN | set(SCOPE)))
    if taken:
        raise RegistrationError(
            f"the schema {op.schema!r} names an argument `{taken[0]}`; the calls generated from it "
            f"use {', '.join(sorted(TAKEN | set(SCOPE)))} themselves. Rename it."
        )
    if any(a.kwarg_only for a in op.parsed.arguments):
        raise RegistrationError(
            f"the schema {op.schema!r} has arguments by keyword alone; an op takes all of them in "
            "order. Remove the `*`."
        )


def _make(template: str, op: Op, **known: Any) -> Callable[..., Any]:
    """The function of a template: texts among `known` fill it in, the rest is its globals."""
    refuse_schema(op)
    parameters = op.signature.parameters.values()
    scope = {**SCOPE, "defaults": {p.name: p.default for p in parameters}}
    scope["reference"] = op.reference
    scope.update({name: value for name, value in known.items() if not isinstance(value, str)})
    before = set(scope)
    exec(
        template.format(
            op=op.name,
            names=", ".join(op.names),
            signature=", ".join(
                p.name if p.default is p.empty else f"{p.name}=defaults[{p.name!r}]"
                for p in parameters
            ),
            plain=PLAIN,
            call_key=call_key(op),
            values_key=values_key(op),
            addresses=addresses(op),
            **{name: value for name, value in known.items() if isinstance(value, str)},
        ),
        scope,
    )
    return next(scope[name] for name in scope if name not in before and name != "__builtins__")
