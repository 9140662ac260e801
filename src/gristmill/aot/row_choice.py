"""Which row of an operator a call takes: the rule that every dispatcher follows, in Python."""

from __future__ import annotations

import ast
import functools
import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from gristmill.aot.functions import Condition, OpForm, OpFunction, Relation, Row
from gristmill.errors import ArtifactError

_OPERATORS: dict[type, Callable[[int, int], int]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
}
_FUNCTIONS: dict[str, Callable[[int, int], int]] = {
    "cdiv": lambda a, b: -(-a // b),
    "min": min,
    "max": max,
}
_COMPARISONS: dict[Relation, Callable[[int, int], bool]] = {
    "==": operator.eq,
    "!=": operator.ne,
    "<": operator.lt,
    "<=": operator.le,
}


def value(expression: str, sizes: Mapping[str, int]) -> int:
    """An expression's value.

    Raises:
        ArtifactError: it is none of the language, names what is not among `sizes`, or divides by 0.
    """
    try:
        return _value(_parsed(expression), sizes)
    except (SyntaxError, KeyError, ZeroDivisionError, TypeError, ValueError) as error:
        raise ArtifactError(
            f"the expression {expression!r} has no value: {type(error).__name__}: {error}. Build "
            "the artifact again."
        ) from None


@functools.lru_cache(maxsize=4096)
def _parsed(expression: str) -> ast.expr:
    return ast.parse(expression, mode="eval").body


def _value(node: ast.expr, sizes: Mapping[str, int]) -> int:
    if isinstance(node, ast.Constant) and type(node.value) is int:
        return node.value
    if isinstance(node, ast.Name):
        return sizes[node.id]
    if isinstance(node, ast.BinOp):
        return _OPERATORS[type(node.op)](_value(node.left, sizes), _value(node.right, sizes))
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
        a, b = (_value(arg, sizes) for arg in node.args)
        return _FUNCTIONS[node.func.id](a, b)
    raise TypeError(f"`{ast.unparse(node)}` is none of the language")


def holds(condition: Condition, sizes: Mapping[str, int]) -> bool:
    """Whether a condition holds for these sizes."""
    left, right = value(condition.left, sizes), value(condition.right, sizes)
    return _COMPARISONS[condition.relation](left, right)


def unmet(row: Row, sizes: Mapping[str, int]) -> Condition | None:
    """The first of a row's conditions that does not hold for these sizes."""
    return next((c for c in row.conditions if not holds(c, sizes)), None)


def opposite(condition: Condition) -> Condition:
    """What holds where this does not."""
    left, relation, right = condition.left, condition.relation, condition.right
    if relation in ("==", "!="):
        return Condition(left, "!=" if relation == "==" else "==", right)
    return Condition(right, "<=" if relation == "<" else "<", left)


def row_of(form: OpForm, arch: str, sizes: Mapping[str, int]) -> Row | None:
    """The row that a call takes, or `None`: nothing was made for such sizes.

    Args:
        arch: whose rows are looked at; that of the binaries which the device runs.
        sizes: of each tensor `<name>_size_<d>`, `<name>_stride_<d>` and `<name>_address`.
    """
    rows = [r for r in form.rows if r.arch == arch and unmet(r, sizes) is None]
    fitting = (row for row in rows if all(holds(limit, sizes) for limit in row.limits))
    return next(fitting, rows[-1] if rows else None)


def complete(functions: Sequence[OpFunction], kernels: Sequence[Any]) -> tuple[OpFunction, ...]:
    """Operators without the rows whose kernels (`KernelEntry`) were not compiled."""
    built = {(kernel.name, variant.arch) for kernel in kernels for variant in kernel.variants}

    def whole(row: Row) -> bool:
        return all((launch.kernel, row.arch) in built for launch in row.launches)

    return tuple(
        replace(  # type: ignore[type-var]
            function,
            forms=tuple(
                replace(form, rows=tuple(filter(whole, form.rows)))  # type: ignore[type-var]
                for form in function.forms
            ),
        )
        for function in functions
    )
