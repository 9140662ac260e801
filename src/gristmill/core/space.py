"""The language in which an implementation declares its search space.

    SPACE = Space(
        pow2("BLOCK_M", 64, 256),
        choice("num_warps", 4, 8),
        flag("PERSISTENT"),
        when(lambda c, p, t: c["PERSISTENT"], choice("WAVES", 1, 2)),
        require("the tile needs more registers than there are", lambda c, p, t: ...),
        derive("NUM_SMS", lambda c, p, t: t.num_sms),
    )

Every rule sees the config so far, the problem and the target. A knob whose `when` does not hold is
absent from the config, so that two points that differ only there are one. A point that breaks a
`require` is rejected with its reason: a value, not an exception, so that `explain` can show it.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from itertools import islice
from typing import Any

from gristmill.core.config import Config, Value
from gristmill.core.problem import Problem
from gristmill.core.target import Target
from gristmill.errors import InvalidConfigError, RegistrationError, did_you_mean
from gristmill.record import record

Rule = Callable[[Mapping[str, Any], Problem, Target], Any]


@record(eq=False)
class Knob:
    """One tuning constant: its name, its values in order, and the rule under which it is active."""

    name: str
    values: tuple[Value, ...]
    active: Rule | None = None


@record(eq=False)
class Requirement:
    """A constraint: the reason to give where `holds` is false."""

    reason: str
    holds: Rule


@record(eq=False)
class Derived:
    """A value computed from the knobs, the problem and the target; never searched, never stored."""

    name: str
    value: Rule


@record(eq=False)
class Rejection:
    """A point of the space that is not valid, and why."""

    point: Config
    reason: str


def choice(name: str, *values: Value) -> Knob:
    """A knob with the listed values."""
    return Knob(name, values)


def pow2(name: str, low: int, high: int) -> Knob:
    """A knob over the powers of two from `low` to `high`, both included."""
    if low < 1 or low & (low - 1) or high & (high - 1) or high < low:
        raise RegistrationError(
            f"pow2({name!r}, {low}, {high}): both ends must be powers of two, low end first."
        )
    return Knob(name, tuple(1 << i for i in range(low.bit_length() - 1, high.bit_length())))


def flag(name: str) -> Knob:
    """A knob that is on or off."""
    return Knob(name, (False, True))


def when(active: Rule, knob: Knob) -> Knob:
    """`knob`, searched only where `active` holds of the knobs declared before it; absent
    elsewhere."""
    return replace(knob, active=active)


def require(reason: str, holds: Rule) -> Requirement:
    """A constraint; `reason` says what is wrong with a point where `holds` is false."""
    return Requirement(reason, holds)


def derive(name: str, value: Rule) -> Derived:
    """A value that follows from the knobs, the problem and the target."""
    return Derived(name, value)


class Space:
    """The knobs, constraints and derived values of one implementation, in declaration order."""

    def __init__(self, *rules: Knob | Requirement | Derived) -> None:
        self.knobs = tuple(r for r in rules if isinstance(r, Knob))
        self.requirements = tuple(r for r in rules if isinstance(r, Requirement))
        self.derived = tuple(r for r in rules if isinstance(r, Derived))
        names = [r.name for r in rules if not isinstance(r, Requirement)]
        if len(names) != len(set(names)):
            raise RegistrationError(
                f"a space declares a name twice: {sorted(n for n in names if names.count(n) > 1)}."
            )

    @property
    def size(self) -> int:
        """Raw points, before conditions and constraints."""
        return math.prod(len(k.values) for k in self.knobs)

    def at(self, index: int, problem: Problem, target: Target) -> Config | Rejection:
        """The raw point of this index (mixed radix over the knobs), canonical, or its rejection."""
        values: dict[str, Value] = {}
        for knob in reversed(self.knobs):
            index, digit = divmod(index, len(knob.values))
            values[knob.name] = knob.values[digit]
        return self._judge({k.name: values[k.name] for k in self.knobs}, problem, target)

    def point(
        self, values: Mapping[str, Value], problem: Problem, target: Target
    ) -> Config | Rejection:
        """The point with these values, one for every knob, canonical, or its rejection."""
        return self._judge(values, problem, target)

    def points(self, problem: Problem, target: Target) -> Iterator[Config | Rejection]:
        """Every distinct canonical point, lazily: a `Config` where it is valid, a `Rejection` where
        it is not."""
        seen: set[Config] = set()
        for index in range(self.size):
            point = self.at(index, problem, target)
            config = point if isinstance(point, Config) else point.point
            if config not in seen:
                seen.add(config)
                yield point

    def valid(self, problem: Problem, target: Target) -> Iterator[Config]:
        """Every valid config, lazily, each once."""
        return (p for p in self.points(problem, target) if isinstance(p, Config))

    def rejections(
        self, problem: Problem, target: Target, points: int | None = None
    ) -> Counter[str]:
        """How many of the first `points` points (`None`: of all) each reason rejects."""
        judged = islice(self.points(problem, target), points)
        return Counter(p.reason for p in judged if isinstance(p, Rejection))

    def config(self, values: Mapping[str, Value], problem: Problem, target: Target) -> Config:
        """The config with these knob values, derived values included.

        Raises:
            InvalidConfigError: an unknown key, a missing key, a value outside its knob, or a broken
                constraint.
        """
        given = values.knobs if isinstance(values, Config) else dict(values)
        known = [k.name for k in self.knobs]
        for name in given:
            if name not in known:
                raise InvalidConfigError(
                    f"`config` has the key {name!r}; this implementation's keys are {known}. "
                    f"Remove or rename it."
                    f"{did_you_mean(str(name), known)}"
                )
        judged = self._judge(given, problem, target, strict=True)
        if isinstance(judged, Rejection):
            raise InvalidConfigError(
                f"`config` is {judged.point}, which is not valid for {problem} on {target.name}: "
                f"{judged.reason}. "
                "Change a value, or pass config=None for the default."
            )
        return judged

    def _judge(
        self, values: Mapping[str, Value], problem: Problem, target: Target, strict: bool = False
    ) -> Config | Rejection:
        chosen: dict[str, Value] = {}
        for knob in self.knobs:
            if knob.active is not None and not knob.active(chosen, problem, target):
                continue
            if strict and knob.name not in values:
                raise InvalidConfigError(
                    f"`config` lacks the key {knob.name!r}; it can be one of "
                    f"{list(knob.values)}. Add it."
                )
            value = values[knob.name]
            if strict and not any(value == v and type(value) is type(v) for v in knob.values):
                raise InvalidConfigError(
                    f"`config` sets {knob.name!r} to {value!r}; it can be one of "
                    f"{list(knob.values)}. Choose one."
                )
            chosen[knob.name] = value
        derived: dict[str, Value] = {}
        everything: dict[str, Value] = dict(chosen)
        for rule in self.derived:
            derived[rule.name] = everything[rule.name] = rule.value(everything, problem, target)
        for requirement in self.requirements:
            if not requirement.holds(everything, problem, target):
                return Rejection(Config(chosen), requirement.reason)
        return Config(chosen, derived)
