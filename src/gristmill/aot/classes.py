"""The classes that arguments are compiled for: what a variant may rely on, and in which order
variants are tried."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from gristmill.aot.elements import bits_of
from gristmill.aot.manifest import Argument, Parameter
from gristmill.aot.signature import Declared
from gristmill.aot.spec import WIDTHS, Bool, Descriptor, Float, Int, Ptr
from gristmill.errors import InvalidInputError
from gristmill.record import record


@record
class Choice:
    """One class of an argument: `what` as a specification has it (16, 1, `None`: null for a
    pointer, any for an integer), and the bits of an integer."""

    what: int | None = None
    bits: int = 0


def choices(parameter: Declared, spec: Any) -> tuple[Choice, ...]:
    """The classes that a specification asks for, the most specialised first, without those that
    the kernel forbids (`do_not_specialize`)."""
    aligned = parameter.specialise and parameter.aligned
    if isinstance(spec, Ptr):
        null = (Choice(None),) if spec.optional else ()
        aligns = tuple(align for align in spec.align if align == 1 or aligned) or (1,)
        return (*null, *(Choice(align) for align in aligns))
    if not isinstance(spec, Int):
        return (Choice(),)
    # Triton's JIT folds no value of an annotated integer.
    folds = parameter.specialise and not parameter.annotation
    widths = (bits_of(parameter.annotation),) if parameter.annotation else spec.widths or WIDTHS[:1]
    found = []
    for what in spec.classes:
        if what == 1:
            found += [Choice(1)] if folds else []
        elif what is None or aligned:
            found += [Choice(what, bits) for bits in widths]
    return tuple(found) or tuple(Choice(None, bits) for bits in widths)


def general(parameter: Declared, spec: Any, bits: int, null: bool) -> Choice:
    """The class that nothing is asked of, for integers of so many bits where the specification
    has them."""
    if isinstance(spec, Ptr):
        return Choice(None if null else 1)
    if not isinstance(spec, Int):
        return Choice()
    if parameter.annotation:
        return Choice(None, bits_of(parameter.annotation))
    widths = spec.widths or WIDTHS
    return Choice(None, bits if bits in widths else next(iter(widths)))


def argument(
    parameter: Declared, spec: Any, choice: Choice, types: Mapping[str, str], block: Sequence[int]
) -> Argument:
    """What a variant is compiled for at an argument that is no constexpr."""
    if isinstance(spec, Ptr):
        if choice.what is None:
            return Argument("constexpr", value=None)
        const = "k" if parameter.const else ""
        element = types.get(spec.type, spec.type)
        return Argument(f"*{const}{element}", choice.what == 16, small=spec.small)
    if isinstance(spec, Descriptor):
        sizes = ",".join(map(str, block))
        return Argument(f"tensordesc<{types.get(spec.type, spec.type)}[{sizes}]>")
    if isinstance(spec, Bool):
        return Argument("u1")
    if isinstance(spec, Float):
        return Argument(types.get(spec.type, spec.type))
    if choice.what == 1:
        return Argument("constexpr", value=1)
    return Argument(parameter.annotation or f"i{choice.bits}", choice.what == 16)


def specialisation(parameters: Sequence[Parameter], arguments: Sequence[Argument]) -> int:
    """How much a variant relies on; one whose conditions imply another's has more."""
    return sum(_relies(*pair) for pair in zip(parameters, arguments, strict=True))


def _relies(parameter: Parameter, argument: Argument) -> int:
    if parameter.kind not in ("pointer", "integer"):
        return 0
    if argument.type == "constexpr":
        return 4
    narrow = parameter.kind == "integer" and argument.type not in ("i64", "u64")
    return 2 * argument.divisible + narrow


def groups(names: Iterable[str], ties: Iterable[tuple[str, ...]]) -> list[list[str]]:
    """The names, tied ones together, in the order of their first."""
    of = {name: [name] for name in names}
    for tie in ties:
        for other in tie[1:]:
            first, second = of[tie[0]], of[other]
            if first is not second:
                first += second
                of.update((name, first) for name in second)
    return list({id(group): group for group in of.values()}.values())


def products(
    by_name: Mapping[str, tuple[Choice, ...]], ties: Iterable[tuple[str, ...]], limit: int
) -> list[dict[str, Choice]]:
    """Every choice of a class for each name, tied names taking the same one.

    Raises:
        InvalidInputError: tied names have different classes, or there are more than `limit`.
    """
    tied = groups(by_name, ties)
    count = 1
    for group in tied:
        count *= len(by_name[group[0]])
        for name in group[1:]:
            if by_name[name] != by_name[group[0]]:
                raise InvalidInputError(
                    f"`{group[0]}` and `{name}` are tied, and have different classes; tied "
                    "arguments take the same class at once. Give them the same specification."
                )
    if count > limit:
        sizes = " x ".join(f"{len(by_name[g[0]])} ({', '.join(g)})" for g in tied)
        raise InvalidInputError(
            f"the specification has {sizes} = {count} combinations of classes; at most {limit} "
            "are looked at. Name fewer classes, or tie arguments together."
        )
    lists = [by_name[group[0]] for group in tied]
    return [
        {name: choice for group, choice in zip(tied, row, strict=True) for name in group}
        for row in itertools.product(*lists)
    ]
