"""Grid expressions as C that checks its arithmetic: a division by zero is a code, no signal."""

from __future__ import annotations

import ast

from gristmill.errors import ArtifactError

OPERATORS: dict[type[ast.operator], str] = {
    ast.Add: "gm_add",
    ast.Sub: "gm_sub",
    ast.Mult: "gm_mul",
    ast.Div: "gm_div",
    ast.FloorDiv: "gm_div",
    ast.Mod: "gm_mod",
}
FUNCTIONS = ("cdiv", "min", "max")


def checked(expression: str, names: dict[str, str]) -> tuple[str, set[str]]:
    """An expression of a manifest in C, and the parameters that it reads.

    Args:
        expression: `cdiv(n, BLOCK)`: names, whole numbers, `+ - * / %`, `cdiv`, `min`, `max`.
        names: what may be read: C's text by name.

    Raises:
        ArtifactError: it is something else.
    """
    try:
        tree = ast.parse(expression, mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise _wrong(expression, str(error), names) from None
    used: set[str] = set()

    def written(node: ast.expr) -> str:
        if isinstance(node, ast.Constant) and type(node.value) is int and node.value < 1 << 63:
            return f"INT64_C({node.value})"
        if isinstance(node, ast.Name) and node.id in names:
            used.add(node.id)
            return names[node.id]
        if isinstance(node, ast.BinOp) and type(node.op) in OPERATORS:
            function, operands = OPERATORS[type(node.op)], [node.left, node.right]
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in FUNCTIONS:
            function, operands = f"gm_{ast.unparse(node.func)}", node.args
        else:
            raise _wrong(expression, f"`{ast.unparse(node)}` is none of these", names)
        if len(operands) != 2:
            raise _wrong(expression, f"`{ast.unparse(node)}` takes two operands", names)
        return f"{function}({written(operands[0])}, {written(operands[1])}, &gm_bad)"

    return written(tree), used


def _wrong(expression: str, why: str, names: dict[str, str]) -> ArtifactError:
    return ArtifactError(
        f"the grid {expression!r} cannot be written in C: {why}; a grid is made of "
        f"{', '.join(names) or 'no names'}, whole numbers, `+ - * / %`, and `cdiv`, `min` and "
        "`max` of two."
    )
