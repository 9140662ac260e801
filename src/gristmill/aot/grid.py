"""The language of grids: integer expressions of a kernel's parameters, checked and written as
C."""

from __future__ import annotations

import ast
from collections.abc import Collection

from gristmill.errors import InvalidInputError, did_you_mean

OPERATORS: dict[type[ast.operator], str] = {
    ast.Add: "+",
    ast.Sub: "-",
    ast.Mult: "*",
    ast.FloorDiv: "/",
    ast.Mod: "%",
}
FUNCTIONS = ("cdiv", "min", "max")
MAX_DEPTH = 32


def to_c(text: str, names: Collection[str]) -> str:
    """A grid's expression in C's syntax, with `cdiv(a, b)` (the quotient rounded up), `min(a, b)`
    and `max(a, b)`.

    Sizes are not negative, so C's quotient is Python's.

    Raises:
        InvalidInputError: it is no expression of `names`, whole numbers, `+ - * // %`, `cdiv`,
            `min` and `max`.
    """
    try:
        tree = ast.parse(text.strip(), mode="eval")
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise _wrong(text, f"it does not parse ({error})") from None
    return _written(tree.body, text, names, 0)


def _written(node: ast.expr, text: str, names: Collection[str], depth: int) -> str:
    if depth > MAX_DEPTH:
        raise _wrong(text, f"it is more than {MAX_DEPTH} levels deep")
    if isinstance(node, ast.Constant) and type(node.value) is int and 0 <= node.value < 1 << 31:
        return str(node.value)
    if isinstance(node, ast.Name):
        if node.id not in names:
            near = did_you_mean(node.id, names)
            known = ", ".join(names) or "none"
            raise _wrong(text, f"{node.id!r} is no integer of the kernel (those are {known})", near)
        return node.id
    if isinstance(node, ast.BinOp) and type(node.op) in OPERATORS:
        left, right = (_written(n, text, names, depth + 1) for n in (node.left, node.right))
        return f"({left} {OPERATORS[type(node.op)]} {right})"
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and not node.keywords:
        return _call(node.func.id, node.args, text, names, depth)
    raise _wrong(text, f"`{ast.unparse(node)}` is none of them")


def _call(
    function: str, args: list[ast.expr], text: str, names: Collection[str], depth: int
) -> str:
    if function not in FUNCTIONS or len(args) != 2:
        raise _wrong(text, f"`{function}` of {len(args)} is none of them")
    a, b = (_written(arg, text, names, depth + 1) for arg in args)
    return f"{function}({a}, {b})"


def _wrong(text: str, why: str, near: str = "") -> InvalidInputError:
    return InvalidInputError(
        f"the grid {text!r} is not understood: {why}; a grid is made of integer parameters, whole "
        f"numbers below 2^31, `+ - * // %`, and `cdiv`, `min` and `max` of two. Write it so.{near}"
    )
