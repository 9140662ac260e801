"""The kernels that an operator's launches need: one specification for all that share code."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from gristmill.aot.elements import is_dtype, plain
from gristmill.aot.functions import Passed
from gristmill.aot.kernel import Kernel
from gristmill.aot.op_trace import TracedLaunch
from gristmill.aot.signature import declared, jitted, option_defaults, option_names
from gristmill.aot.spec import Bool, Descriptor, Float, Int, Ptr, Spec, Type
from gristmill.aot.symbolic import NARROW
from gristmill.core.problem import ALIGNMENT_BYTES

WARPS, STAGES = "num_warps", "num_stages"


class Kernels:
    """Kernels by what they are compiled for, with names in the order in which they are met."""

    def __init__(self) -> None:
        self._names: dict[tuple[Any, ...], str] = {}
        self._kernels: dict[str, Kernel] = {}
        self._archs: dict[str, set[str]] = {}
        self._counts: dict[str, int] = {}

    def add(self, launch: TracedLaunch, arch: str) -> tuple[str, tuple[Passed, ...], int, int]:
        """The kernel of a launch: its name, what is passed for each of its parameters, its warps
        and stages."""
        options = dict(launch.options)
        for name in (WARPS, STAGES):
            options.setdefault(name, option_defaults(arch)[name])
        fn = jitted(launch.kernel)
        constexprs = _constexprs(fn, launch, options)
        specs = _specs(fn, launch)
        key = (fn, tuple(specs.items()), _hashable(constexprs), _hashable(options))
        if key not in self._names:
            self._names[key] = self._named(fn)
            name = self._names[key]
            self._kernels[name] = _kernel(fn, name, specs, constexprs, options)
            self._archs[name] = set()
        name = self._names[key]
        self._archs[name].add(arch)
        passed = iter(launch.passed)
        arguments = tuple(
            Passed("constant", value=_value(constexprs[p.name])) if p.constexpr else next(passed)
            for p in declared(fn)
            if not (p.constexpr and p.name in option_names())
        )
        return name, arguments, options[WARPS], options[STAGES]

    def specifications(self) -> tuple[Kernel, ...]:
        """The kernels, each for the architectures that launch it."""
        return tuple(
            kernel.where(_among(frozenset(self._archs[name])))
            for name, kernel in self._kernels.items()
        )

    def _named(self, fn: Any) -> str:
        base = fn.fn.__name__.strip("_")
        self._counts[base] = self._counts.get(base, -1) + 1
        return f"{base}_{self._counts[base]}"


def _among(archs: frozenset[str]) -> Any:
    return lambda view: view.arch in archs


def _constexprs(fn: Any, launch: TracedLaunch, options: Mapping[str, Any]) -> dict[str, Any]:
    """The values of a kernel's constexprs, defaults included."""
    given = dict(launch.constexprs)
    found = {}
    for parameter in declared(fn):
        if parameter.constexpr:
            default = parameter.default[0] if parameter.default else None
            found[parameter.name] = given.get(parameter.name, options.get(parameter.name, default))
    return found


def _specs(fn: Any, launch: TracedLaunch) -> dict[str, Spec]:
    """What the kernel's run-time parameters are."""
    names = [p.name for p in declared(fn) if not p.constexpr]
    rows = zip(names, launch.passed, launch.types, launch.blocks, strict=True)
    return {name: _spec(passed, type_, block) for name, passed, type_, block in rows}


def _spec(passed: Passed, type_: str, block: Sequence[int]) -> Spec:
    if passed.kind == "null":
        return Ptr("i8", align=[1], optional=True)
    if passed.kind == "tensor":
        return Ptr(type_)
    if passed.kind == "descriptor":
        return Descriptor(type_, block)
    if passed.kind == "scalar" or type_ == "fp32":
        return Float("fp32")
    if type_ == "bool":
        return Bool()
    if not passed.source.isdecimal():
        return Int(widths=[32] if type_ == "i32" else None)
    number = int(passed.source)
    one_class = 1 if number == 1 else ALIGNMENT_BYTES if number % ALIGNMENT_BYTES == 0 else None
    return Int([one_class], widths=[32 if number < NARROW else 64])


def _kernel(
    fn: Any,
    name: str,
    specs: Mapping[str, Spec],
    constexprs: Mapping[str, Any],
    options: Mapping[str, Any],
) -> Kernel:
    given = {
        n: Type(plain(v)) if is_dtype(v) else [v]
        for n, v in constexprs.items()
        if n not in option_names()
    }
    kernel = Kernel(fn, name).spec(**specs, **given, **{n: [v] for n, v in options.items()})
    pointers = [n for n, s in specs.items() if isinstance(s, Ptr) and not s.optional]
    absent = [n for n, s in specs.items() if isinstance(s, Ptr) and s.optional]
    if len(pointers) > 1:
        kernel = kernel.tie(*pointers)
    if absent:
        kernel = kernel.where(lambda view: all(view[n] is None for n in absent))
    return kernel


def _value(value: Any) -> Any:
    return plain(value) if is_dtype(value) else value


def _hashable(values: Mapping[str, Any]) -> tuple[tuple[str, str, Any], ...]:
    """Values that are equal only where they are of one type."""
    return tuple((n, type(v).__name__, _value(v)) for n, v in sorted(values.items()))
