"""From a specification to what is compiled: the product, pruned, in the order that variants are
tried, with a variant for what none of the classes fits."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from gristmill.aot.classes import (
    Choice,
    argument,
    choices,
    general,
    groups,
    products,
    specialisation,
)
from gristmill.aot.manifest import Argument, Parameter, Value
from gristmill.aot.signature import (
    declared,
    option_defaults,
    parameters_of,
    target_options,
)
from gristmill.aot.spec import WIDTHS, Int, Ptr, Spec, Type, constexpr_values
from gristmill.aot.specification import Specification
from gristmill.core.target import compile_target
from gristmill.errors import InvalidInputError, did_you_mean
from gristmill.record import record

MAX_COMBINATIONS = 1 << 17
MAX_NAMED = 8


class MissingFallbackWarning(UserWarning):
    """Calls that no specialised variant fits will fail: `where` removed the one that fits all."""


@record
class Combination:
    """One variant to compile: its architecture, the element type of each variable, what it is
    compiled for at each parameter, and its options. `unspecialised`: no class is relied on."""

    arch: str
    types: tuple[str, ...]
    arguments: tuple[Argument, ...]
    num_warps: int
    num_stages: int
    options: Mapping[str, Value]
    unspecialised: bool = False

    @property
    def selector(self) -> tuple[Any, ...]:
        """What a call distinguishes it by."""
        values = tuple((a, type(a.value)) for a in self.arguments)
        return self.arch, self.types, values, self.num_warps, self.num_stages

    def text(self, parameters: Sequence[Parameter]) -> str:
        """It in words, for messages."""
        words = [self.arch]
        for parameter, one in zip(parameters, self.arguments, strict=True):
            if one.type == "constexpr":
                words.append(f"{parameter.name}={one.value!r}")
            else:
                words.append(f"{parameter.name}:{one.type}{':16' * one.divisible}")
        words += [f"num_warps={self.num_warps}", f"num_stages={self.num_stages}"]
        return " ".join([*words, *(f"{name}={value!r}" for name, value in self.options.items())])


@record
class _Group:
    """What variants share that differ in the classes of their arguments alone."""

    arch: str
    types: Mapping[str, str]
    constexprs: Mapping[str, Value]
    options: Mapping[str, Any]


class View:
    """A combination as predicates see it: every name of the specification, `arch`, `widths` (bits
    of each integer) and `unspecialised`, as attributes and as items."""

    def __init__(self, values: dict[str, Any]) -> None:
        self._values = values

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_") and name not in self._values:
            raise AttributeError(name)
        return self[name]

    def __getitem__(self, name: str) -> Any:
        if name not in self._values:
            known = ", ".join(self._values)
            near = did_you_mean(name, self._values)
            raise AttributeError(f"a combination has no {name!r}; it has {known}.{near}")
        return self._values[name]


class Expansion:
    """A kernel's combinations for some architectures.

    Raises:
        InvalidInputError: the specification is incomplete, contradicts itself, or leaves nothing.
    """

    def __init__(self, kernel: Specification, archs: Sequence[str]) -> None:
        self.kernel = kernel
        self.parameters = parameters_of(kernel.fn, kernel.given, kernel.variables)
        for name in kernel.unused_names():
            raise InvalidInputError(
                f"the type variable `{name}` is the type of nothing in the specification. Use it "
                "in an `aot.Ptr`, or leave it out of `.types(...)`."
            )
        self._by_name = {p.name: p for p in declared(kernel.fn)}
        self._classed = kernel.classed()
        self._rows = self._classes()
        self._unfit: dict[str, None] = {}
        self.combinations = tuple(itertools.chain.from_iterable(map(self._of_arch, archs)))
        self._check()

    def _classes(self) -> dict[tuple[Choice, ...], bool]:
        """The rows of classes, and whether each is one of those that are always there."""
        by_name = self._by_name
        lists = {n: choices(by_name[n], spec) for n, spec in self._classed.items()}
        found = {
            tuple(row[name] for name in self._classed): False
            for row in products(lists, self.kernel.ties, MAX_COMBINATIONS)
        }
        for nulls in self._null_patterns():
            for bits in WIDTHS:
                row = tuple(
                    general(by_name[name], spec, bits, name in nulls)
                    for name, spec in self._classed.items()
                )
                found[row] = True
        return found

    def _null_patterns(self) -> Iterator[set[str]]:
        """Which of the optional pointers are null, each way that ties allow."""
        optional = [n for n, s in self._classed.items() if isinstance(s, Ptr) and s.optional]
        ties = [t for t in self.kernel.ties if t[0] in optional]
        tied = groups(optional, ties)
        for chosen in itertools.product((False, True), repeat=len(tied)):
            yield {n for group, null in zip(tied, chosen, strict=True) if null for n in group}

    def _of_arch(self, arch: str) -> Iterator[Combination]:
        options = self._options(arch)
        variables = self.kernel.variables
        for types in itertools.product(*variables.values()):
            named = dict(zip(variables, types, strict=True))
            constexprs = {
                p.name: self._values(p, named) for p in self.parameters if p.kind == "constexpr"
            }
            for values in itertools.product(*constexprs.values()):
                compiled_in = dict(zip(constexprs, values, strict=True))
                for picked in itertools.product(*options.values()):
                    chosen = dict(zip(options, picked, strict=True))
                    yield from self._of_group(_Group(arch, named, compiled_in, chosen))

    def _options(self, arch: str) -> dict[str, tuple[Value, ...]]:
        """The values of the options, warps and stages first."""
        given = self.kernel.options()
        defaults = option_defaults(arch)
        found: dict[str, tuple[Value, ...]] = {}
        for name in ("num_warps", "num_stages"):
            kind, values = constexpr_values(name, given.get(name, [defaults[name]]))
            if kind != "int" or any(value < 1 for value in values):  # type: ignore[operator]
                raise InvalidInputError(
                    f"`{name}` is {list(values)}; it needs positive whole numbers. Pass such."
                )
            found[name] = values
        for name, values in sorted(target_options(compile_target(arch), given).items()):
            if name not in found:
                found[name] = constexpr_values(name, values)[1]
        return found

    def _values(self, parameter: Parameter, types: Mapping[str, str]) -> tuple[Value, ...]:
        given = self.kernel.given.get(parameter.name)
        if isinstance(given, Type):
            return tuple(dict.fromkeys(types.get(name, name) for name in given.names))
        if parameter.name not in self.kernel.given:
            (given,) = self._by_name[parameter.name].default
        return constexpr_values(parameter.name, given)[1]

    def _of_group(self, group: _Group) -> list[Combination]:
        """The variants that differ in their classes alone, most specialised first."""
        found, kept_nulls = [], set()
        removed: list[tuple[tuple[bool, ...], Combination]] = []
        for row, always in self._rows.items():
            one = self._combination(group, row, always)
            nulls = tuple(
                isinstance(spec, Ptr) and choice.what is None
                for spec, choice in zip(self._classed.values(), row, strict=True)
            )
            if self._wanted(group, one, row):
                found.append(one)
                kept_nulls.add(nulls)
            elif always:
                removed.append((nulls, one))
        for nulls, one in removed:
            if nulls in kept_nulls:
                self._unfit[one.text(self.parameters)] = None
        return sorted(found, key=lambda c: -specialisation(self.parameters, c.arguments))

    def _combination(self, group: _Group, row: tuple[Choice, ...], always: bool) -> Combination:
        picked = dict(zip(self._classed, row, strict=True))
        arguments = []
        for parameter in self.parameters:
            name = parameter.name
            if parameter.kind == "constexpr":
                arguments.append(Argument("constexpr", value=group.constexprs[name]))
                continue
            spec = self._classed[name]
            block = self._block(name, spec, group.constexprs)
            declared_as = self._by_name[name]
            arguments.append(argument(declared_as, spec, picked[name], group.types, block))
        rest = dict(group.options)
        warps, stages = rest.pop("num_warps"), rest.pop("num_stages")
        types = tuple(group.types.values())
        return Combination(group.arch, types, tuple(arguments), warps, stages, rest, always)

    def _block(self, name: str, spec: Spec, constexprs: Mapping[str, Value]) -> list[int]:
        found = []
        for size in getattr(spec, "block", ()):
            value = constexprs.get(size) if isinstance(size, str) else size
            if type(value) is not int or value < 1:
                raise InvalidInputError(
                    f"the block of `{name}` has {size!r}, which is {value!r}; it needs positive "
                    "sizes, or names of constexprs that are. Correct it."
                )
            found.append(value)
        return found

    def _wanted(self, group: _Group, one: Combination, row: tuple[Choice, ...]) -> bool:
        if not self.kernel.predicates:
            return True
        picked = list(zip(self._classed.items(), row, strict=True))
        values: dict[str, Any] = {"arch": one.arch, "unspecialised": one.unspecialised}
        values["widths"] = {n: c.bits for (n, spec), c in picked if isinstance(spec, Int)}
        values.update(group.options, **group.types, **group.constexprs)
        for (name, spec), choice in picked:
            classed = isinstance(spec, (Ptr, Int))
            values[name] = choice.what if classed else group.types.get(getattr(spec, "type", ""))
        try:
            return all(predicate(View(values)) for predicate in self.kernel.predicates)
        except Exception as error:
            raise InvalidInputError(
                f"`where` raised {type(error).__name__} for {one.text(self.parameters)}: {error}"
            ) from error

    def _check(self) -> None:
        """Warn of what has no fall-back, refuse what no caller could tell apart, and nothing."""
        if not self.combinations:
            raise InvalidInputError(
                f"`where` leaves no variant of {self.kernel.name}. Let it be true of some."
            )
        seen: dict[tuple[Any, ...], Combination] = {}
        for one in self.combinations:
            other = seen.setdefault(one.selector, one)
            if other is not one:
                raise InvalidInputError(
                    f"two variants of {self.kernel.name} differ in {dict(other.options)} and "
                    f"{dict(one.options)} alone, which no call can choose between; options other "
                    "than num_warps and num_stages need one value each. Let `where` keep one."
                )
        if self._unfit:
            named = "; ".join(list(self._unfit)[:MAX_NAMED])
            more = len(self._unfit) - MAX_NAMED
            warnings.warn(
                f"`where` removed variants of {self.kernel.name} that fit calls which no other "
                f"does; such calls will fail: {named}{f'; and {more} more' if more > 0 else ''}. "
                "Let it be true where `unspecialised` is.",
                MissingFallbackWarning,
                stacklevel=2,
            )
