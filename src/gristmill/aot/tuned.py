"""Tuned choices: rows of `Kernel.choose`, held against what is compiled."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

from gristmill.aot.elements import plain
from gristmill.aot.expand import Combination
from gristmill.aot.manifest import Choice, Parameter, Value
from gristmill.aot.specification import Specification, TunedChoice
from gristmill.core.target import compile_target
from gristmill.errors import InvalidInputError, did_you_mean

OPTIONS = ("num_warps", "num_stages")


class UnusedChoiceWarning(UserWarning):
    """Tuned choices that no call will take, or that decide less than they say."""


def rows(
    kernel: Specification, parameters: Sequence[Parameter], combinations: Sequence[Combination]
) -> tuple[Choice, ...]:
    """The choices of a kernel for the architectures that it is compiled for, in their order.

    Raises:
        InvalidInputError: a choice names what the kernel does not have, or a variant that is not
            among the combinations.
    """
    archs = {one.arch for one in combinations}
    found: list[Choice] = []
    for row in kernel.choices:
        compile_target(row.arch)
        if row.arch in archs:
            found += _rows(kernel, parameters, combinations, row)
    return tuple(found)


def warn_of_unused(kernel: Specification, combinations: Sequence[Combination]) -> None:
    """Say which choices have no effect, or less than they say."""
    archs = dict.fromkeys(one.arch for one in combinations)
    others = dict.fromkeys(row.arch for row in kernel.choices if row.arch not in archs)
    if others:
        warnings.warn(
            f"{kernel.name} has tuned choices for {', '.join(others)}, and is compiled for "
            f"{', '.join(archs)}: no call will take them. Add the target, or leave them out.",
            UnusedChoiceWarning,
            stacklevel=2,
        )
    chosen = dict.fromkeys(
        name for row in kernel.choices if row.arch in archs for name in row.values
    )
    names = [name for name in chosen if name not in OPTIONS]
    if names and not kernel.grid_text:
        warnings.warn(
            f"{kernel.name} has tuned choices and no grid, so there is no `{kernel.name}_tuned` "
            f"that decides {', '.join(names)}: they decide the warps and stages of calls that pass "
            "these values. Add `.grid(...)`.",
            UnusedChoiceWarning,
            stacklevel=2,
        )


def _rows(
    kernel: Specification,
    parameters: Sequence[Parameter],
    combinations: Sequence[Combination],
    row: TunedChoice,
) -> Iterator[Choice]:
    constexprs = [p.name for p in parameters if p.kind == "constexpr"]
    _known(row.values, [*constexprs, *OPTIONS], "a constexpr or option")
    _known(row.types, list(kernel.variables), "a type variable")
    limits = _limits(row.when, [p.name for p in parameters if p.type == "int"])
    for types in _types(kernel, row):
        variants = [
            one
            for one in combinations
            if one.arch == row.arch and (not types or one.types == types)
        ]
        left = {}
        for name in (*constexprs, *OPTIONS):
            index = [p.name for p in parameters].index(name) if name in constexprs else None
            left[name] = _value(row, name, index, variants)
            variants = [v for v in variants if _same(_of(v, name, index), left[name])]
        warps, stages = left.pop("num_warps"), left.pop("num_stages")
        yield Choice(row.arch, types, limits, left, warps, stages)


def _types(kernel: Specification, row: TunedChoice) -> Iterator[tuple[str, ...]]:
    """The element types that a row is about; none where it names none."""
    if not row.types:
        yield ()
        return
    lists = [(row.types[n],) if n in row.types else ts for n, ts in kernel.variables.items()]
    yield from itertools.product(*lists)


def _value(row: TunedChoice, name: str, index: int | None, variants: Sequence[Combination]) -> Any:
    """A constexpr or an option of a choice: as given, else the only one that there is."""
    there = [_of(one, name, index) for one in variants]
    if name in row.values:
        given = plain(row.values[name])
        if not any(_same(given, value) for value in there):
            raise InvalidInputError(
                f"a choice for {row.arch} has `{name}={given!r}`, of which no variant is compiled; "
                f"there are {', '.join(map(repr, dict.fromkeys(there))) or 'none'} with what "
                "stands before it. Add it to `.spec`, or choose another."
            )
        return given
    different = list({(type(value), value): value for value in there}.values())
    if len(different) != 1:
        raise InvalidInputError(
            f"a choice for {row.arch} leaves `{name}` open, of which there are "
            f"{', '.join(map(repr, different)) or 'none'}. Name one."
        )
    return different[0]


def _of(one: Combination, name: str, index: int | None) -> Value:
    return getattr(one, name) if index is None else one.arguments[index].value


def _same(a: Any, b: Any) -> bool:
    return type(a) is type(b) and a == b


def _known(given: Mapping[str, Any], known: Collection[str], what: str) -> None:
    for name in given:
        if name not in known:
            raise InvalidInputError(
                f"a choice names `{name}`, which is not {what} of the kernel; there are "
                f"{', '.join(known) or 'none'}. Name one of them.{did_you_mean(name, known)}"
            )


def _limits(
    when: Mapping[str, tuple[int, int]], integers: Collection[str]
) -> tuple[tuple[str, int, int], ...]:
    _known(when, integers, "an integer parameter")
    for name, pair in when.items():
        fits = isinstance(pair, (tuple, list)) and len(pair) == 2
        if not fits or any(type(n) is not int for n in pair) or pair[0] > pair[1]:
            raise InvalidInputError(
                f"a choice has `{name}: {pair!r}`; it needs the smallest and the largest value. "
                "Pass two whole numbers."
            )
    return tuple((name, low, high) for name, (low, high) in when.items())
