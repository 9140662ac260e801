"""Grid expressions as C that checks its arithmetic: a division by zero is a code, no signal."""

from __future__ import annotations

import re

from gristmill.errors import ArtifactError

TOKEN = re.compile(r"\s*(\d+|[^\W\d]\w*|//|[-+*/%(),?:<>])")
SUMS = {"+": "gm_add", "-": "gm_sub"}
PRODUCTS = {"*": "gm_mul", "/": "gm_div", "//": "gm_div", "%": "gm_mod"}
FUNCTIONS = ("cdiv", "min", "max")
MAX_DEPTH = 64


def checked(expression: str, names: dict[str, str]) -> tuple[str, set[str]]:
    """An expression of a manifest in C, and the names that it reads.

    Args:
        expression: C's integers: names, whole numbers, `+ - * / %`, `<`, `>`, `?:`, `cdiv`, `min`
            and `max`. A quotient is rounded down.
        names: what may be read: C's text by name.

    Raises:
        ArtifactError: it is something else.
    """
    made = _Parser(expression, names)
    text = made.choice(0)
    made.take("")
    return text, made.used


class _Parser:
    """Reads an expression from the left; each method returns the C text of what it read."""

    def __init__(self, expression: str, names: dict[str, str]) -> None:
        self._expression, self._names = expression, names
        self._tokens: list[str] = []
        self.used: set[str] = set()
        at = 0
        expression = expression.rstrip()
        while at < len(expression):
            token = TOKEN.match(expression, at)
            if token is None:
                raise self._wrong(f"`{expression[at:].strip()[0]}` is none of these")
            self._tokens.append(token[1])
            at = token.end()

    @property
    def _next(self) -> str:
        return self._tokens[0] if self._tokens else ""

    def take(self, *allowed: str) -> str:
        """The next token, which must be one of these; "" is the end."""
        if self._next not in allowed:
            found = f"`{self._next}`" if self._next else "the end"
            wanted = " or ".join(f"`{token}`" if token else "the end" for token in allowed)
            raise self._wrong(f"{found} stands where {wanted} must")
        return self._tokens.pop(0) if self._tokens else ""

    def choice(self, depth: int) -> str:
        """`a < b ? c : d`, or a sum."""
        if depth > MAX_DEPTH:
            raise self._wrong(f"it is more than {MAX_DEPTH} levels deep")
        left = self._sum(depth)
        if self._next not in ("<", ">"):
            return left
        condition = f"{left} {self.take('<', '>')} {self._sum(depth)}"
        self.take("?")
        yes = self.choice(depth + 1)
        self.take(":")
        return f"({condition} ? {yes} : {self.choice(depth + 1)})"

    def _sum(self, depth: int) -> str:
        text = self._product(depth)
        while self._next in SUMS:
            text = f"{SUMS[self.take(*SUMS)]}({text}, {self._product(depth)}, &gm_bad)"
        return text

    def _product(self, depth: int) -> str:
        text = self._atom(depth)
        while self._next in PRODUCTS:
            text = f"{PRODUCTS[self.take(*PRODUCTS)]}({text}, {self._atom(depth)}, &gm_bad)"
        return text

    def _atom(self, depth: int) -> str:
        token = self._next
        if token.isdecimal() and token.isascii() and int(token) < 1 << 63:
            return f"INT64_C({int(self.take(token))})"
        if token in FUNCTIONS and self._tokens[1:2] == ["("]:
            function, _ = self.take(token), self.take("(")
            first = self.choice(depth + 1)
            self.take(",")
            second = self.choice(depth + 1)
            self.take(")")
            return f"gm_{function}({first}, {second}, &gm_bad)"
        if token in self._names:
            self.used.add(token)
            return self._names[self.take(token)]
        self.take("(")
        text = self.choice(depth + 1)
        self.take(")")
        return text

    def _wrong(self, why: str) -> ArtifactError:
        return ArtifactError(
            f"the grid {self._expression!r} cannot be written in C: {why}; a grid is made of "
            f"{', '.join(self._names) or 'no names'}, whole numbers, `+ - * / %`, `<`, `>`, `?:`, "
            "and `cdiv`, `min` and `max` of two."
        )
