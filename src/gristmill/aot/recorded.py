"""From recorded launches to a specification that covers them."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from gristmill.aot.elements import ELEMENT_BYTES, element_type, is_dtype, plain
from gristmill.aot.expand import View
from gristmill.aot.kernel import Kernel
from gristmill.aot.signature import (
    Declared,
    check_names,
    declared,
    option_defaults,
    option_names,
)
from gristmill.aot.spec import Bool, Descriptor, Float, Int, Ptr, Spec, Type
from gristmill.core.problem import ALIGNMENT_BYTES
from gristmill.errors import InvalidInputError
from gristmill.record import record

NARROW = range(-(1 << 31), 1 << 31)
WARPS_AND_STAGES = ("num_warps", "num_stages")


@record
class Seen:
    """What a call passed for a parameter.

    Attributes:
        kind: `pointer`, `null`, `int`, `bool`, `float`, `descriptor` or `constexpr`; and of a
            constexpr the type of its value.
        type: the element type of a pointer or a descriptor.
        what: of a pointer or an integer, its class.
        bits: of an integer.
        value: of a constexpr; the block of a descriptor.
    """

    kind: str
    type: str = ""
    what: int | None = None
    bits: int = 0
    value: Any = None


@record
class Call:
    """What a launch was specialised for: its parameters in order, and its options."""

    seen: tuple[Seen, ...]
    options: tuple[tuple[str, Any], ...]


def call_of(kernel: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Call:
    """What a call of a kernel is specialised for.

    Raises:
        InvalidInputError: an argument of a kind that no artifact takes.
    """
    parameters = declared(kernel)
    names = {p.name for p in parameters}
    given = {name: value for name, value in kwargs.items() if name in names}
    bound = inspect.signature(kernel.fn).bind(*args, **given)
    bound.apply_defaults()
    seen = tuple(_seen(p, bound.arguments[p.name]) for p in parameters)
    options = {n: v for n, v in kwargs.items() if n in option_names() and v is not None}
    return Call(seen, tuple(sorted(options.items())))


def call_of_compile(kernel: Any, told: Mapping[str, Any]) -> Call:
    """As `call_of`, from what Triton says of a compile."""
    constants = {path[0]: v for path, v in told["constants"].items() if len(path) == 1}
    aligned = {
        path[0]
        for path, found in told["configs"][0].items()
        if any(list(one) == ["tt.divisibility", ALIGNMENT_BYTES] for one in found)
    }
    seen = []
    for index, (parameter, type_) in enumerate(
        zip(declared(kernel), told["signature"].values(), strict=True)
    ):
        if parameter.constexpr or type_ == "constexpr":
            one = _seen(parameter, constants.get(index))
        elif type_.startswith("*"):
            element = element_type(type_.lstrip("*").removeprefix("k"), "a pointer")
            one = Seen("pointer", element, 16 if index in aligned else 1)
        elif type_ == "u1":
            one = Seen("bool")
        elif type_ in ELEMENT_BYTES and type_[0] in "iu":
            one = Seen("int", what=16 if index in aligned else None, bits=int(type_[1:]))
        elif type_ in ELEMENT_BYTES:
            one = Seen("float", type_)
        else:
            raise InvalidInputError(f"`{parameter.name}` is a {type_}, which is not understood")
        seen.append(one)
    options = {n: told[n] for n in WARPS_AND_STAGES}
    return Call(tuple(seen), tuple(sorted(options.items())))


def _seen(parameter: Declared, value: Any) -> Seen:
    name = parameter.name
    value = getattr(value, "value", value) if type(value).__name__ == "constexpr" else value
    if parameter.constexpr:
        kept = plain(value) if is_dtype(value) else value
        return Seen("constexpr:type" if is_dtype(value) else _constexpr(name, value), value=kept)
    aligned = parameter.specialise and parameter.aligned
    if value is None:
        return Seen("null")
    if isinstance(value, bool):
        return Seen("bool")
    if isinstance(value, int):
        folds = parameter.specialise and not parameter.annotation
        what = 1 if value == 1 and folds else 16 if aligned and value % 16 == 0 else None
        bits = int(parameter.annotation[1:]) if parameter.annotation else 0
        return Seen("int", what=what, bits=bits or (32 if value in NARROW else 64))
    if isinstance(value, float):
        return Seen("float", parameter.annotation or "fp32")
    if hasattr(value, "block_shape"):
        type_ = element_type(value.base.dtype, f"`{name}`")
        return Seen("descriptor", type_, value=tuple(value.block_shape))
    if hasattr(value, "data_ptr"):
        type_ = element_type(value.dtype, f"`{name}`")
        on_16 = aligned and value.data_ptr() % ALIGNMENT_BYTES == 0
        return Seen("pointer", type_, 16 if on_16 else 1)
    raise InvalidInputError(f"`{name}` is a {type(value).__name__}, which no artifact takes")


def _constexpr(name: str, value: Any) -> str:
    if value is not None and type(value) not in (bool, int, float, str):
        raise InvalidInputError(f"`{name}` is a {type(value).__name__}, which no artifact takes")
    return f"constexpr:{type(value).__name__}"


def specifications(calls: Mapping[Any, Sequence[Call]]) -> tuple[Kernel, ...]:
    """Kernels that cover these calls, in the order in which they were met."""
    found: list[Kernel] = []
    for kernel, of in calls.items():
        groups: dict[tuple[str, ...], list[Call]] = {}
        for call in of:
            groups.setdefault(_kinds(call, of), []).append(call)
        for group in groups.values():
            base = kernel.fn.__name__.strip("_")
            taken = sum(k.name.rpartition("_")[0] == base or k.name == base for k in found)
            found.append(_specification(kernel, f"{base}_{taken}" if taken else base, group))
    return tuple(found)


def _kinds(call: Call, others: Sequence[Call]) -> tuple[str, ...]:
    """What one specification has one of; a pointer that is null is one where it ever is one."""
    return tuple(
        "pointer" if one.kind == "null" and any(c.seen[i].kind == "pointer" for c in others)
        else one.kind
        for i, one in enumerate(call.seen)
    )  # fmt: skip


def _specification(kernel: Any, name: str, calls: Sequence[Call]) -> Kernel:
    parameters = declared(kernel)
    columns = {p.name: [call.seen[i] for call in calls] for i, p in enumerate(parameters)}
    variables = _variables(columns)
    given: dict[str, Any] = {}
    for parameter in parameters:
        column = columns[parameter.name]
        if not parameter.constexpr:
            given[parameter.name] = _spec(parameter, column, variables)
        elif parameter.name not in option_names():
            values = list(dict.fromkeys(one.value for one in column))
            is_type = column[0].kind == "constexpr:type"
            given[parameter.name] = Type(*values) if is_type else values
    options = _options(calls)
    check_names(kernel, {**given, **options})
    made = Kernel(kernel, name).spec(**given, **options)
    types = {v: list(dict.fromkeys(types)) for types, v in variables.items()}
    made = made.types(**types) if types else made
    return made.where(_covers(parameters, calls, variables, options))


def _variables(columns: Mapping[str, Sequence[Seen]]) -> dict[tuple[str, ...], str]:
    """A type variable for every list of element types that arguments had in the calls."""
    found: dict[tuple[str, ...], str] = {}
    for column in columns.values():
        types = _types(column)
        if len(set(types)) > 1 and types not in found:
            found[types] = f"T{len(found)}" if found else "T"
    return found


def _types(column: Sequence[Seen]) -> tuple[str, ...]:
    """The element types of an argument, call by call; of a null pointer, that of another call."""
    known = next((one.type for one in column if one.type), "")
    return tuple(one.type or known for one in column)


def _spec(
    parameter: Declared, column: Sequence[Seen], variables: Mapping[tuple[str, ...], str]
) -> Spec:
    kinds = {one.kind for one in column}
    types = _types(column)
    type_ = variables.get(types, types[0])
    if kinds == {"null"}:
        return Ptr("i8", align=[1], optional=True)
    if "pointer" in kinds:
        aligns = {one.what for one in column if one.kind == "pointer"}
        return Ptr(type_, align=[a for a in (16, 1) if a in aligns], optional="null" in kinds)
    if kinds == {"int"}:
        widths = sorted({one.bits for one in column})
        plain_widths = {} if parameter.annotation or widths == [32] else {"widths": widths}
        return Int(dict.fromkeys(one.what for one in column), **plain_widths)
    if kinds == {"bool"}:
        return Bool()
    if kinds == {"float"}:
        return Float(type_)
    blocks = {one.value for one in column}
    if len(blocks) > 1:
        raise InvalidInputError(
            f"the descriptor `{parameter.name}` had the blocks {sorted(blocks)} in the trace; a "
            "specification gives it one, or the names of constexprs. Trace the calls apart."
        )
    return Descriptor(type_, blocks.pop())


def _options(calls: Sequence[Call]) -> dict[str, list[Any]]:
    """The options of the calls; where only some name one, the others had the default."""
    found: dict[str, list[Any]] = {}
    for name in dict.fromkeys(n for call in calls for n, _ in call.options):
        default = option_defaults("sm_90")[name]
        found[name] = list(dict.fromkeys(dict(call.options).get(name, default) for call in calls))
    return found


def _covers(
    parameters: Sequence[Declared],
    calls: Sequence[Call],
    variables: Mapping[tuple[str, ...], str],
    options: Mapping[str, Sequence[Any]],
) -> Callable[[View], bool]:
    """True of what the calls were, and of the unspecialised variants of their types, constexprs
    and options."""
    names = [p.name for p in parameters]
    classed = [i for i, one in enumerate(calls[0].seen) if one.kind in ("pointer", "null", "int")]
    constexprs = [
        i for i, p in enumerate(parameters) if p.constexpr and p.name not in option_names()
    ]
    fixed, exact = set(), set()
    for row, call in enumerate(calls):
        types = tuple(types[row] for types in variables)
        values = tuple((type(v), v) for v in (call.seen[i].value for i in constexprs))
        chosen = tuple(
            dict(call.options).get(name, option_defaults("sm_90")[name]) for name in options
        )
        nulls = tuple(call.seen[i].kind == "null" for i in classed)
        fixed.add((types, values, chosen, nulls))
        exact.add((types, values, chosen, nulls, tuple(call.seen[i].what for i in classed)))

    def covers(view: View) -> bool:
        types = tuple(view[v] for v in variables.values())
        values = tuple((type(v), v) for v in (view[names[i]] for i in constexprs))
        chosen = tuple(view[name] for name in options)
        whats = tuple(view[names[i]] for i in classed)
        pointers = tuple(calls[0].seen[i].kind != "int" for i in classed)
        nulls = tuple(w is None and p for w, p in zip(whats, pointers, strict=True))
        key = (types, values, chosen, nulls)
        return key in fixed and (view.unspecialised or (*key, whats) in exact)

    return covers
