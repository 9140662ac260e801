"""Expressions of sizes: sympy's in the language of grids."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import sympy
from torch.utils._sympy import functions as torch_functions

from gristmill.aot.functions import Condition, Relation

RELATIONS: dict[type, tuple[Relation, bool]] = {  # and whether the sides change places
    sympy.Eq: ("==", False),
    sympy.Ne: ("!=", False),
    sympy.Lt: ("<", False),
    sympy.Le: ("<=", False),
    sympy.Gt: ("<", True),
    sympy.Ge: ("<=", True),
}
_QUOTIENTS = (torch_functions.FloorDiv, torch_functions.CleanDiv)
_REMAINDERS = (torch_functions.Mod, torch_functions.PythonMod)
_EXTREMES = {torch_functions.Max: "max", torch_functions.Min: "min"}


class UntraceableError(Exception):
    """A launcher does something that no expression says; the message names it."""


def text(expression: Any, names: Mapping[Any, str]) -> str:
    """A sympy expression in the language of grids.

    Args:
        names: of symbols.

    Raises:
        UntraceableError: the language does not have it.
    """
    if isinstance(expression, int) or expression.is_Integer:
        number = int(expression)
        return str(number) if number >= 0 else f"0 - {-number}"
    if expression.is_Symbol and expression in names:
        return names[expression]
    write = functools.partial(text, names=names)
    if expression.is_Add:
        return _sum(expression.args, write)
    if expression.is_Mul and all(not a.is_Rational or a.is_Integer for a in expression.args):
        factors = sorted(map(write, expression.args), key=lambda f: (not f.isdecimal(), f))
        return " * ".join(map(_grouped, factors))
    if expression.is_Pow and expression.exp.is_Integer and 0 < int(expression.exp) <= 4:
        return " * ".join([_grouped(write(expression.base))] * int(expression.exp))
    if isinstance(expression, _QUOTIENTS):
        return " // ".join(map(_grouped, map(write, expression.args)))
    if isinstance(expression, _REMAINDERS):
        return " % ".join(map(_grouped, map(write, expression.args)))
    if isinstance(expression, torch_functions.CeilDiv):
        return f"cdiv({', '.join(map(write, expression.args))})"
    for kind, name in _EXTREMES.items():
        if isinstance(expression, kind):
            parts = sorted(map(write, expression.args))
            return functools.reduce(lambda a, b: f"{name}({a}, {b})", parts)
    raise UntraceableError(f"the expression `{expression}` has no form in a grid's language")


def _sum(terms: Iterable[Any], write: Callable[[Any], str]) -> str:
    """A sum with what is taken away at its end, so that sizes stay at 0 or above."""
    signed = [(term.could_extract_minus_sign(), term) for term in terms]
    added = [write(term) for minus, term in signed if not minus]
    taken = [_grouped(write(-term)) for minus, term in signed if minus]
    return " - ".join([" + ".join(sorted(added)) or "0", *sorted(taken)])


def _grouped(written: str) -> str:
    return written if written.isidentifier() or written.isdecimal() else f"({written})"


def conditions(guard: Any, names: Mapping[Any, str]) -> list[Condition]:
    """What a guard of torch's asks for.

    Raises:
        UntraceableError: it is no conjunction of comparisons.
    """
    if guard == sympy.true:
        return []
    if isinstance(guard, sympy.And):
        parts = sorted(guard.args, key=str)
        return [one for part in parts for one in conditions(part, names)]
    if type(guard) not in RELATIONS:
        raise UntraceableError(f"the launcher asked for `{guard}`, which is no comparison")
    relation, swapped = RELATIONS[type(guard)]
    left, right = (text(side, names) for side in guard.args)
    return [Condition(right, relation, left) if swapped else Condition(left, relation, right)]
