"""What the learning strategies share: the valid configs of a space, as configs and as numbers."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from gristmill.core.config import Config, Value
from gristmill.core.problem import Problem
from gristmill.core.sampling import Sampler
from gristmill.core.space import Knob, Rejection, Space
from gristmill.core.target import Target

ENUMERATED_POINTS = 100_000  # raw points (some 15 us each); a larger space is sampled
SAMPLED_CONFIGS = 4096
SAMPLED_VALUES = 200_000  # in all of them: of a space with thousands of knobs, fewer configs
PAIRED_KNOBS = 10  # at most, for a column of each pair


class Pool:
    """Valid configs of a space: all of them, or a sample of a large one that grows; and their
    neighbours."""

    def __init__(self, space: Space, problem: Problem, target: Target, seed: int) -> None:
        self.space, self.problem, self.target = space, problem, target
        self.random = random.Random(seed)
        self._is_list = not space.knobs  # of configs: what they differ in are its knobs
        self.is_whole = self._is_list or space.size <= ENUMERATED_POINTS
        listed = list(space.valid(problem, target)) if self._is_list else []
        self.knobs = space.knobs or _knobs_of(listed)
        self._sampler = Sampler(space, problem, target)
        self._index: dict[Config, int] = {}
        self._near: dict[Config, list[Config]] = {}
        self._ordered = [_is_ordered(knob) for knob in self.knobs]
        numbers = [k for k in self.knobs if _is_size(k)]
        few = numbers if len(numbers) <= PAIRED_KNOBS else []
        self._pairs = list(itertools.combinations([k.name for k in few], 2))
        self._rows: list[np.ndarray] = []
        if self.is_whole:
            self.add(listed or space.valid(problem, target))
        else:
            wanted = SAMPLED_VALUES // len(self.knobs)
            self.grow(max(32, min(SAMPLED_CONFIGS, wanted)))

    def __len__(self) -> int:
        return len(self._index)

    def __iter__(self) -> Iterator[Config]:
        return iter(self._index)

    def add(self, configs: Iterable[Config]) -> None:
        """Know more configs (neighbours that were not sampled)."""
        for config in configs:
            if config not in self._index:
                self._index[config] = len(self._rows)
                self._rows.append(self._encode(config))

    def grow(self, count: int) -> None:
        """Draw as many more configs of a space that is not held as a whole.

        Raises:
            NoValidConfigError: there is no valid config to be found.
        """
        if not self.is_whole:
            self.add([self._sampler.draw(self.random) for _ in range(count)])

    def features(self, configs: Sequence[Config]) -> np.ndarray:
        """A row of numbers each: ordered knobs from 0 to 1, others one column a value, -1 where
        inactive; logarithms of what is derived, and of the products of pairs of sizes (tiles, bytes
        in flight), which a tree would have to approach in steps."""
        self.add(configs)
        return np.stack([self._rows[self._index[config]] for config in configs])

    def places(self, configs: Sequence[Config]) -> np.ndarray:
        """A row each: of every knob, the place of its value among the knob's, -1 where inactive."""
        return np.array(
            [
                [k.values.index(c.knobs[k.name]) if k.name in c.knobs else -1 for k in self.knobs]
                for c in configs
            ]
        )

    def neighbours(self, config: Config) -> list[Config]:
        """Every valid config that differs in one knob."""
        if config not in self._near:
            found = (
                self.changed(config, {knob.name: value})
                for knob in self.knobs
                if knob.name in config.knobs
                for value in knob.values
                if value != config.knobs[knob.name]
            )
            self._near[config] = [other for other in found if other is not None]
        return self._near[config]

    @property
    def has_neighbourhoods(self) -> bool:
        """Whether a config's neighbours are few enough to look at all of them."""
        return sum(len(knob.values) for knob in self.knobs) <= SAMPLED_VALUES // 1000

    def mutated(self, config: Config, rng: random.Random) -> Config | None:
        """`config` with one to three knobs changed, mended where that breaks a constraint of a
        space that is sampled."""
        changes = {
            knob.name: rng.choice(knob.values)
            for knob in rng.sample(self.knobs, min(rng.randint(1, 3), len(self.knobs)))
        }
        return self.changed(config, changes, None if self.is_whole else rng)

    def changed(
        self, config: Config, changes: dict[str, Value], rng: random.Random | None = None
    ) -> Config | None:
        """`config` with other values; a knob that they switch on takes its first one. `None` where
        that is not valid, or (with `rng`) cannot be mended."""
        if self._is_list:
            listed = Config({**config.knobs, **changes})
            return listed if listed in self._index else None
        first: dict[str, Value] = {knob.name: knob.values[0] for knob in self.knobs}
        values = {**first, **config.knobs, **changes}
        point = self.space.point(values, self.problem, self.target)
        if not isinstance(point, Rejection):
            return point
        return None if rng is None else self._sampler.repair(values, rng)

    def _encode(self, config: Config) -> np.ndarray:
        row: list[float] = []
        for knob, ordered in zip(self.knobs, self._ordered, strict=True):
            value = config.knobs.get(knob.name)
            at = knob.values.index(value) if knob.name in config.knobs else -1
            if ordered:
                row.append(at / max(len(knob.values) - 1, 1) if at >= 0 else -1.0)
            else:
                row += [float(at == i) for i in range(len(knob.values))]
        for rule in self.space.derived:
            value = config.derived.get(rule.name)
            if isinstance(value, (int, float)) and math.isfinite(value):
                row.append(math.copysign(math.log2(1 + abs(value)), value))
            else:
                row.append(-1.0)
        for a, b in self._pairs:
            both = a in config.knobs and b in config.knobs
            row.append(math.log2(float(config[a]) * float(config[b])) if both else -1.0)
        return np.asarray(row, np.float32)


def _knobs_of(configs: Sequence[Config]) -> tuple[Knob, ...]:
    """What the configs of a list differ in."""
    values: dict[str, set[Value]] = {}
    for config in configs:
        for name, value in config.knobs.items():
            values.setdefault(name, set()).add(value)
    return tuple(
        Knob(name, tuple(sorted(found, key=lambda v: (str(type(v)), v if v is not None else 0))))
        for name, found in sorted(values.items())
    )


def _is_ordered(knob: Knob) -> bool:
    """Whether a knob's values have an order."""
    return all(isinstance(value, (int, float)) for value in knob.values)


def _is_size(knob: Knob) -> bool:
    """Whether a knob's values are positive numbers, more than two of them."""
    numbers = [v for v in knob.values if isinstance(v, (int, float)) and not isinstance(v, bool)]
    return len(numbers) == len(knob.values) > 2 and min(numbers) > 0
