"""What a caller may pass: the words of a specification, one class for each kind of argument."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from gristmill.aot.elements import element_type, is_dtype, plain
from gristmill.aot.manifest import Value
from gristmill.errors import InvalidInputError

ALIGNMENTS = (16, 1)
CLASSES = (16, 1, None)
WIDTHS = (32, 64)


@dataclass(frozen=True)
class Ptr:
    """A pointer to device memory.

    Args:
        type: an element type (`fp16`, `torch.float16`, `tl.float16`), or a type variable.
        align: what callers' addresses are multiples of: a variant for each of 16 (bytes) and 1.
        optional: it may be null: `None` in the kernel, which is compiled apart.
        small: a promise that the tensor has at most 2 GiB, which lets AMD's compiler use 32-bit
            offsets. Nothing checks it at a call.
    """

    type: Any
    align: tuple[int, ...] | Iterable[int] = ALIGNMENTS
    optional: bool = False
    small: bool = False

    def __post_init__(self) -> None:
        _set(self, "type", _type_name(self.type, "Ptr"))
        _set(self, "align", _subset(self.align, ALIGNMENTS, "align", "Ptr"))


@dataclass(frozen=True)
class Int:
    """An integer.

    Args:
        classes: a variant for each of: 16, the value is a multiple of 16; 1, it is one, and is
            compiled in; `None`, any.
        widths: bits, 32 or 64, that each class is compiled for. Without it the classes are
            compiled for 32, and values that do not fit go to an unspecialised variant whose
            integers have 64.
    """

    classes: tuple[int | None, ...] | Iterable[int | None] = (16, None)
    widths: tuple[int, ...] | Iterable[int] | None = None

    def __post_init__(self) -> None:
        _set(self, "classes", _subset(self.classes, CLASSES, "classes", "Int"))
        if self.widths is not None:
            _set(self, "widths", _subset(self.widths, WIDTHS, "widths", "Int"))


@dataclass(frozen=True)
class Bool:
    """A bool that is known at run time (one that is compiled in is a list: `[True, False]`)."""


@dataclass(frozen=True)
class Float:
    """A floating-point scalar, passed in exactly this type: `fp16`, `bf16`, `fp32`, `fp64`, or a
    type variable. Triton's JIT passes Python's floats as `fp32`."""

    type: Any = "fp32"

    def __post_init__(self) -> None:
        _set(self, "type", _type_name(self.type, "Float"))


@dataclass(frozen=True)
class Descriptor:
    """A tensor descriptor that the host makes: encoded for TMA on sm_90 and later; elsewhere an
    address with shape and strides.

    Args:
        type: an element type or a type variable.
        block: the block that a load or a store moves, outermost dimension first: sizes, or names
            of constexprs.
    """

    type: Any
    block: tuple[int | str, ...] | Iterable[int | str]

    def __post_init__(self) -> None:
        _set(self, "type", _type_name(self.type, "Descriptor"))
        if isinstance(self.block, str):
            raise InvalidInputError(
                f"`block` of a Descriptor is {self.block!r}; it needs a size, or a constexpr's "
                "name, for each dimension. Pass a list."
            )
        block = tuple(self.block)
        _set(self, "block", block)
        sizes = [n for n in block if not isinstance(n, str)]
        if not 1 <= len(block) <= 5 or any(type(n) is not int or n < 1 for n in sizes):
            raise InvalidInputError(
                f"`block` of a Descriptor is {list(block)}; it can have one to five positive sizes "
                "or names of constexprs. Give one a dimension."
            )


@dataclass(frozen=True)
class Type:
    """A constexpr that is an element type: that of a type variable (`Type("T")`), or one of
    several (`Type("fp16", "bf16")`)."""

    names: tuple[str, ...]

    def __init__(self, *names: Any) -> None:
        if not names:
            raise InvalidInputError(
                "`Type` has no names; it needs one or more. Name an element type."
            )
        _set(self, "names", tuple(_type_name(name, "Type") for name in names))


Spec = Ptr | Int | Bool | Float | Descriptor | Type


def constexpr_values(name: str, given: Any) -> tuple[str, tuple[Value, ...]]:
    """The type and the values of a constexpr or a compile option, from a list of values or one.

    Raises:
        InvalidInputError: they are none, twice the same, of several types, or of one that no
            artifact can hold.
    """
    several = isinstance(given, (list, tuple))
    values = list(given) if several else [given]
    if not values:
        raise InvalidInputError(
            f"`{name}` has no values; it needs one or more. Pass a list of what it is compiled for."
        )
    kinds = {_kind(name, value) for value in values} - {None}
    if kinds == {"int", "float"}:
        kinds, values = {"float"}, [float(value) for value in values]
    if len(kinds) > 1 or (None in values and kinds - {"str", "type"}):
        raise InvalidInputError(
            f"`{name}` is {given!r}; its values need one type of int, bool, float, str or dtype "
            "(`None` goes with str and dtype, or alone). Encode the choice as one of them."
        )
    kind = next(iter(kinds)) or "str" if kinds else "str"
    plains = [plain(value) if kind == "type" and value is not None else value for value in values]
    if len(set(plains)) != len(plains):
        raise InvalidInputError(f"`{name}` is {given!r}; a value is there twice. Name each once.")
    if kind == "type":
        plains = [v if v is None else element_type(v, f"`{name}`") for v in plains]
    return kind, tuple(plains)


def _kind(name: str, value: Any) -> str | None:
    if value is None:
        return None
    if is_dtype(value):
        return "type"
    kind = type(value).__name__
    finite = kind != "float" or abs(value) < float("inf")
    if kind not in ("int", "bool", "float", "str") or not finite:
        raise InvalidInputError(
            f"a value of `{name}` is {value!r}; a constexpr can be an int, a bool, a finite float, "
            "a str, a dtype or `None`. Other parameters take `aot.Ptr`, `aot.Int`, `aot.Bool`, "
            "`aot.Float` or `aot.Descriptor`."
        )
    if kind == "int" and not -(1 << 63) <= value < 1 << 63:
        raise InvalidInputError(
            f"a value of `{name}` is {value}; a constexpr needs 64 bits at most. Use a smaller one."
        )
    return kind


def _type_name(value: Any, who: str) -> str:
    name = plain(value)
    if not isinstance(name, str) or not name:
        raise InvalidInputError(
            f"the type of a {who} is {value!r}; it needs an element type or a type variable. Pass "
            "its name."
        )
    return name


def _subset(given: Any, allowed: tuple[Any, ...], name: str, who: str) -> tuple[Any, ...]:
    """What was given, once each and in the order of what is allowed."""
    values = list(given) if isinstance(given, Iterable) and not isinstance(given, str) else [given]
    wrong = [value for value in values if type(value) is bool or value not in allowed]
    if wrong or not values:
        raise InvalidInputError(
            f"`{name}` of `aot.{who}` is {given!r}; it can be one or more of "
            f"{', '.join(map(str, allowed))}. Name those that callers pass."
        )
    return tuple(value for value in allowed if value in values)


def _set(self: Any, name: str, value: Any) -> None:
    object.__setattr__(self, name, value)
