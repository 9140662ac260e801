"""What a kernel declares, held against what its specification says of each parameter."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Mapping
from typing import Any

from triton.compiler import make_backend
from triton.runtime.jit import JITFunction

from gristmill.aot.elements import FLOATS, element_type
from gristmill.aot.manifest import Kind, Parameter
from gristmill.aot.spec import Bool, Descriptor, Float, Int, Ptr, Type, constexpr_values
from gristmill.compile.executor import STATED_OPTIONS, triton_target
from gristmill.core.target import Target, compile_target
from gristmill.errors import InvalidInputError, did_you_mean
from gristmill.record import record
from gristmill.tuners.travel import SETTINGS, base_kernel, is_jitted

KINDS: dict[type, Kind] = {
    Ptr: "pointer",
    Descriptor: "descriptor",
    Int: "integer",
    Bool: "integer",
    Float: "float",
}
# Options that name another target, hold paths, or change what a binary is.
NOT_OPTIONS = {
    *("arch", "backend_name", "warp_size", "target"),
    *("extern_libs", "ir_override"),
    *("debug", "instrumentation_mode", "fpsan_homomorphic_casts"),
}


@record
class Declared:
    """A parameter as the kernel declares it. `annotation` is Triton's type where there is one;
    `specialise` and `aligned` are false where `do_not_specialize` says so."""

    name: str
    constexpr: bool
    const: bool = False
    annotation: str = ""
    specialise: bool = True
    aligned: bool = True
    default: tuple[Any, ...] = ()


def jitted(fn: Any) -> Any:
    """The `@triton.jit` function under its decorators.

    Raises:
        InvalidInputError: there is none, or it is one that no C function can be made of.
    """
    kernel = base_kernel(fn)
    if not is_jitted(kernel) or type(kernel).__name__ == "GluonJITFunction":
        raise InvalidInputError(
            f"the kernel is {fn!r}; `aot.Kernel` needs a `@triton.jit` function (not Gluon's), "
            "decorated or not. Decorate it."
        )
    kinds = inspect.Parameter
    for parameter in inspect.signature(kernel.fn).parameters.values():
        if parameter.kind in (kinds.VAR_POSITIONAL, kinds.VAR_KEYWORD):
            raise InvalidInputError(
                f"the kernel {kernel.fn.__name__} has the parameter `*{parameter.name}`; a C "
                "function needs a fixed number of them. Name each."
            )
    return kernel


@functools.lru_cache(maxsize=64)
def declared(kernel: Any) -> tuple[Declared, ...]:
    """The parameters of a `@triton.jit` function."""
    if not hasattr(kernel, "params"):  # under TRITON_INTERPRET=1 it knows their names alone
        known = {name: value for name, value in kernel.kwargs.items() if name in SETTINGS}
        kernel = JITFunction(kernel.fn, **known)
    return tuple(
        Declared(
            p.name,
            p.is_constexpr,
            p.is_const,
            p.annotation_type,
            not p.do_not_specialize,
            not p.do_not_specialize_on_alignment,
            (p.default,) if p.has_default else (),
        )
        for p in kernel.params
    )


@functools.lru_cache(maxsize=64)
def option_defaults(arch: str) -> Mapping[str, Any]:
    """The compile options of an architecture and what they are when nobody says."""
    backend = make_backend(triton_target(compile_target(arch)))
    options = backend.parse_options(dict(STATED_OPTIONS))
    return {name: value for name, value in vars(options).items() if name not in NOT_OPTIONS}


def option_names() -> list[str]:
    """The compile options of either vendor."""
    return sorted({*option_defaults("sm_90"), *option_defaults("gfx942")})


def check_names(kernel: Any, given: Mapping[str, Any]) -> None:
    """Every name of a specification is a parameter or a compile option, and of the right kind.

    Raises:
        InvalidInputError: one is not; it suggests near names.
    """
    parameters = {p.name: p for p in declared(kernel)}
    who = kernel.fn.__name__
    for name, value in given.items():
        if name not in parameters and name not in option_names():
            raise InvalidInputError(
                f"`{name}` is no parameter of {who} and no compile option; its parameters are "
                f"{', '.join(parameters)}. Name one of them."
                f"{did_you_mean(name, [*parameters, *option_names()])}"
            )
        parameter = parameters.get(name)
        if parameter is not None and not parameter.constexpr and type(value) not in KINDS:
            raise InvalidInputError(
                f"`{name}` is {value!r}; it is no constexpr of {who}, so it needs `aot.Ptr`, "
                "`aot.Int`, `aot.Bool`, `aot.Float` or `aot.Descriptor`. Pass one of them."
            )
        if parameter is None or parameter.constexpr:
            if type(value) in KINDS or (parameter is None and isinstance(value, Type)):
                what = "a constexpr of" if parameter else "a compile option, no parameter, of"
                raise InvalidInputError(
                    f"`{name}` is {value!r}; it is {what} {who}, so it needs a list of values. "
                    "Pass what it is compiled for."
                )
            if not isinstance(value, Type):
                constexpr_values(name, value)


def parameters_of(
    kernel: Any, given: Mapping[str, Any], variables: Mapping[str, tuple[str, ...]]
) -> tuple[Parameter, ...]:
    """What a caller passes, in the kernel's order.

    Raises:
        InvalidInputError: the specification leaves a parameter out, or says what the kernel's
            annotation denies.
    """
    found = []
    for parameter in declared(kernel):
        name = parameter.name
        if parameter.constexpr and name in option_names():
            continue  # a caller passes num_warps once: with the options
        if name not in given and not (parameter.constexpr and parameter.default):
            what = "the constexpr" if parameter.constexpr else "the argument"
            need = "a list of values" if parameter.constexpr else "`aot.Ptr`, `aot.Int`, ..."
            raise InvalidInputError(
                f"{what} `{name}` of {kernel.fn.__name__} is not in the specification; every "
                f"parameter needs its {need}. Add `{name}=` to `.spec(...)`."
            )
        found.append(_parameter(parameter, given.get(name), variables))
    for one in found:
        if not one.name.isascii():
            raise InvalidInputError(
                f"the parameter `{one.name}` of {kernel.fn.__name__} has a name that C does not "
                "take; it needs ASCII letters, digits and underscores. Rename it."
            )
    return tuple(found)


def _parameter(
    declared_as: Declared, spec: Any, variables: Mapping[str, tuple[str, ...]]
) -> Parameter:
    name = declared_as.name
    if declared_as.constexpr:
        if isinstance(spec, Type):
            for one in spec.names:
                if one not in variables:
                    element_type(one, f"`{name}`", variables)
            return Parameter(name, "constexpr", "type")
        values = spec if spec is not None or not declared_as.default else declared_as.default[0]
        return Parameter(name, "constexpr", constexpr_values(name, values)[0])
    if isinstance(spec, Int):
        return Parameter(name, "integer", "int")
    if isinstance(spec, Bool):
        return Parameter(name, "integer", "bool")
    type_ = spec.type
    if type_ not in variables:
        type_ = element_type(type_, f"the type of `{name}`", variables)
    for one in variables.get(type_, (type_,)):
        _check_annotation(declared_as, one)
        if isinstance(spec, Float) and one not in FLOATS:
            raise InvalidInputError(
                f"`{name}` is an `aot.Float` of type {one!r}; a scalar can be "
                f"{', '.join(FLOATS)}. Use one of them."
            )
    rank = len(tuple(spec.block)) if isinstance(spec, Descriptor) else 0
    optional = isinstance(spec, Ptr) and spec.optional
    return Parameter(name, KINDS[type(spec)], type_, optional, rank)


def _check_annotation(parameter: Declared, type_: str) -> None:
    wanted = parameter.annotation.removeprefix("*k").removeprefix("*")
    if wanted and wanted != type_:
        raise InvalidInputError(
            f"`{parameter.name}` is of type {type_!r}; the kernel annotates it as {wanted!r}. Use "
            "that, or change the annotation."
        )


def target_options(target: Target, given: Mapping[str, Any]) -> dict[str, Any]:
    """Those of the options that a target's compiler has."""
    known = option_defaults(target.arch)
    return {name: value for name, value in given.items() if name in known}
