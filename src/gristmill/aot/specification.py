"""What a kernel is compiled for: the words of its specification, one method each."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from typing_extensions import Self

from gristmill.aot.elements import element_type
from gristmill.aot.signature import check_names, declared, jitted, option_names
from gristmill.aot.spec import Bool, Descriptor, Float, Int, Ptr, Type
from gristmill.errors import InvalidInputError, did_you_mean

NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]*")


@dataclass(frozen=True)
class TunedChoice:
    """A row of `.choose`: which constexprs, warps and stages, where."""

    arch: str
    types: Mapping[str, str]
    when: Mapping[str, tuple[int, int]]
    values: Mapping[str, Any]


@dataclass(frozen=True)
class Specification:
    """A kernel and what it is compiled for; every method returns a new one (see `Kernel`)."""

    fn: Any
    name: str = ""
    given: Mapping[str, Any] = field(default_factory=dict)
    variables: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    ties: tuple[tuple[str, ...], ...] = ()
    predicates: tuple[Callable[[Any], bool], ...] = ()
    grid_text: tuple[str, ...] = ()
    choices: tuple[TunedChoice, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "fn", jitted(self.fn))
        object.__setattr__(self, "name", self.name or self.fn.fn.__name__)
        check_name(self.name, "the kernel's name")

    def spec(self, **given: Any) -> Self:
        """Say what the kernel's parameters are, and its compile options.

        Args:
            given: for each argument `aot.Ptr`, `aot.Int`, `aot.Bool`, `aot.Float` or
                `aot.Descriptor`; for each constexpr a list of values (one variant each), or
                `aot.Type`; and lists of compile options (`num_warps`, `num_stages`, `num_ctas`,
                `maxnreg`, ...).

        Raises:
            InvalidInputError: a name is no parameter of the kernel and no option, or its value is
                of the wrong kind.
        """
        check_names(self.fn, given)
        return replace(self, given={**self.given, **given})

    def types(self, **variables: Any) -> Self:
        """Declare type variables: `types(T=["fp16", "bf16"])` compiles for each.

        Raises:
            InvalidInputError: there is no such element type, or a variable has the name of one.
        """
        found = dict(self.variables)
        for name, types in variables.items():
            check_name(name, "a type variable")
            values = types if isinstance(types, (list, tuple)) else [types]
            if not values:
                raise InvalidInputError(
                    f"the type variable `{name}` has no types; it needs one or more. List them."
                )
            one_each = dict.fromkeys(element_type(v, f"a type of `{name}`") for v in values)
            found[name] = tuple(one_each)
        return replace(self, variables=found)

    def tie(self, *names: str) -> Self:
        """Let arguments take the same class at once: `tie("x", "y")` compiles for both aligned and
        for neither.

        Raises:
            InvalidInputError: a name is no argument with classes of the specification.
        """
        able = [name for name, value in self.given.items() if isinstance(value, (Ptr, Int))]
        for name in names:
            if name not in able:
                raise InvalidInputError(
                    f"{name!r} cannot be tied; pointers and integers of the specification can: "
                    f"{', '.join(able) or 'none'}. Call `.spec` first.{did_you_mean(name, able)}"
                )
        kinds = {type(self.given[name]) for name in names}
        if len(set(names)) < 2 or len(kinds) > 1:
            raise InvalidInputError(
                f"{', '.join(names) or 'nothing'} is tied; a tie needs two or more pointers, or "
                "two or more integers. Name them."
            )
        return replace(self, ties=(*self.ties, names))

    def where(self, predicate: Callable[[Any], bool]) -> Self:
        """Keep the combinations that `predicate` is true of.

        Args:
            predicate: of a `View`: `v.T`, `v.BLOCK_M`, `v.num_warps`, `v.arch`, and of pointers and
                integers the class (16, 1 or `None`, as in the specification).
        """
        if not callable(predicate):
            raise InvalidInputError(
                f"`where` got {predicate!r}; it needs a function of a combination. Pass one."
            )
        return replace(self, predicates=(*self.predicates, predicate))

    def grid(self, *expressions: str) -> Self:
        """Let callers leave out the grid: one to three expressions of integer parameters and
        constexprs, with `+ - * // %`, `cdiv`, `min` and `max` (`"cdiv(n, BLOCK)"`)."""
        if not 1 <= len(expressions) <= 3 or not all(isinstance(e, str) for e in expressions):
            raise InvalidInputError(
                f"`grid` got {expressions!r}; it needs one to three expressions as text. Pass them."
            )
        return replace(self, grid_text=expressions)

    def choose(
        self,
        arch: str,
        when: Mapping[str, tuple[int, int]] | None = None,
        types: Mapping[str, Any] | None = None,
        **values: Any,
    ) -> Self:
        """Add a tuned choice, which callers take that pass 0 warps and stages; the first whose
        conditions hold counts.

        Args:
            arch: the architecture that it was measured on.
            when: of integer parameters the smallest and largest value, both included.
            types: of type variables, the element type.
            values: constexprs, `num_warps` and `num_stages`.
        """
        named = {name: element_type(t, f"`{name}`") for name, t in (types or {}).items()}
        row = TunedChoice(arch, named, dict(when or {}), values)
        return replace(self, choices=(*self.choices, row))

    def unused_names(self) -> list[str]:
        """Type variables that nothing is of."""
        used = set()
        for value in self.given.values():
            if isinstance(value, (Ptr, Float, Descriptor)):
                used.add(value.type)
            elif isinstance(value, Type):
                used.update(value.names)
        return [name for name in self.variables if name not in used]

    def options(self) -> dict[str, Any]:
        """What `.spec` says of compile options."""
        known = option_names()
        return {name: value for name, value in self.given.items() if name in known}

    def classed(self) -> dict[str, Ptr | Int | Bool | Float | Descriptor]:
        """What `.spec` says of arguments, in the kernel's order."""
        names = (p.name for p in declared(self.fn) if not p.constexpr)
        return {name: self.given[name] for name in names}


def check_name(name: Any, what: str, do: str = "Pass such a `name=`.") -> None:
    """A name that C, file systems and build systems take; `do` is what to do about another."""
    if not isinstance(name, str) or not NAME.fullmatch(name):
        raise InvalidInputError(
            f"{what} is {name!r}; it needs ASCII letters, digits and underscores, a letter first. "
            f"{do}"
        )
