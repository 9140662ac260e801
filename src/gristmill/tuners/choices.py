"""The forms in which users give configs, as spaces of ours: lists of configs, dicts of lists, and
declared spaces."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import triton

from gristmill.core.config import Config
from gristmill.core.problem import Problem
from gristmill.core.space import Rejection, Space, choice
from gristmill.core.target import Target
from gristmill.errors import InvalidConfigError, InvalidInputError

# what `triton.Config` has beside its keywords; any other option of a compiler is a keyword
OPTIONS = ("num_warps", "num_stages", "num_ctas", "maxnreg", "ir_override")
SCALARS = (bool, int, float, str, type(None))


class Choices(Space):
    """A space that is a list of configs, in the list's order; each once."""

    def __init__(
        self, configs: Iterable[Mapping[str, Any]], names: Iterable[Config] | None = None
    ) -> None:
        """`names`: of the configs, where their labels do not tell them apart."""
        super().__init__()
        self.values: dict[Config, Mapping[str, Any]] = {}
        listed = list(configs)
        for name, values in zip(names or map(label, listed), listed, strict=True):
            self.values.setdefault(name, values)
        self._listed = tuple(self.values)

    @property
    def size(self) -> int:
        """The configs in the list."""
        return len(self._listed)

    def at(self, index: int, problem: Problem, target: Target) -> Config | Rejection:
        """The config of this index."""
        del problem, target
        return self._listed[index]

    def points(self, problem: Problem, target: Target) -> Iterator[Config | Rejection]:
        """Every config."""
        del problem, target
        return iter(self._listed)

    def config(self, values: Mapping[str, Any], problem: Problem, target: Target) -> Config:
        """The config of the list that has these values.

        Raises:
            InvalidConfigError: there is none.
        """
        del problem, target
        wanted = values if isinstance(values, Config) else label(values)
        if wanted not in self.values:
            raise InvalidConfigError(
                f"`config` is {wanted}; it is none of the {len(self._listed)} configs that were "
                "given. Choose one of them."
            )
        return wanted


def label(values: Mapping[str, Any]) -> Config:
    """The name of a config among others: its values where they are scalars, else their text."""
    return Config({n: v if type(v) in SCALARS else repr(v) for n, v in values.items()})


def keywords(config: triton.Config) -> dict[str, Any]:
    """What a `triton.Config` adds to a launch; a hook of its own is part of its name."""
    values = dict(config.all_kwargs())
    if config.pre_hook is not None:
        values["pre_hook"] = getattr(config.pre_hook, "__qualname__", repr(config.pre_hook))
    return values


def told_apart(configs: Iterable[triton.Config]) -> dict[Config, triton.Config]:
    """Configs by their names; those that differ in nothing but hooks of one name are numbered."""
    found: dict[Config, triton.Config] = {}
    for config in configs:
        values, count = keywords(config), 1
        while found.get(name := label(values), config) != config:
            count += 1
            values["pre_hook"] = f"{keywords(config)['pre_hook']} {count}"
        found.setdefault(name, config)
    return found


def triton_config(values: Mapping[str, Any]) -> triton.Config:
    """The `triton.Config` of these keywords and options."""
    options = {name: values[name] for name in OPTIONS if name in values}
    return triton.Config({n: v for n, v in values.items() if n not in options}, **options)


def as_space(given: Any) -> Space:
    """`config_space` in any of its forms, as a space.

    A dict of lists is the product of its lists; a list has dicts or `triton.Config` values; a
    `Space` is taken as it is.

    Raises:
        InvalidInputError: it has none of these forms, or is empty.
    """
    space: Space | None = None
    if isinstance(given, Space):
        space = given
    elif isinstance(given, Mapping):
        space = _product(given)
    elif isinstance(given, Sequence) and not isinstance(given, str):
        kinds = {triton.Config: keywords, dict: dict}
        if all(type(entry) in kinds for entry in given):
            space = Choices(kinds[type(entry)](entry) for entry in given)
    if space is None:
        raise InvalidInputError(
            f"`config_space` is {type(given).__name__}; it can be a dict of lists, a list of dicts "
            "or of `triton.Config`, or a `Space`. Pass one of these."
        )
    if not space.size or (isinstance(given, Mapping) and not given):
        raise InvalidInputError(
            "`config_space` is empty; it needs at least one config. Add values to its lists."
        )
    return space


def _product(lists: Mapping[str, Any]) -> Space:
    for name, values in lists.items():
        if isinstance(values, (str, bytes)) or not isinstance(values, Sequence):
            raise InvalidInputError(
                f"`config_space[{name!r}]` is {values!r}; it needs a list of values. Write "
                f"[{values!r}] for one."
            )
    if all(type(v) in SCALARS for values in lists.values() for v in values):
        return Space(*(choice(name, *values) for name, values in lists.items()))
    points = itertools.product(*lists.values())
    return Choices(dict(zip(lists, point, strict=True)) for point in points)
