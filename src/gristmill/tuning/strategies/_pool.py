"""What the learning strategies share: the valid configs of a space, as configs and as numbers."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Sequence

import numpy as np

from gristmill.core.config import Config, Value
from gristmill.core.problem import Problem
from gristmill.core.space import Knob, Rejection, Space
from gristmill.core.target import Target

ENUMERATED_POINTS = 50_000  # raw points (some 20 us each); a larger space is sampled
SAMPLED_CONFIGS = 4096


class Pool:
    """Valid configs of a space: all of them, or a sample of a large one; and their neighbours."""

    def __init__(self, space: Space, problem: Problem, target: Target, seed: int) -> None:
        self.space, self.problem, self.target = space, problem, target
        self._random = random.Random(seed)
        self._known: dict[Config, np.ndarray] = {}
        self._columns = [_column(knob) for knob in space.knobs]
        for config in self._draw():
            self.add(config)

    def __len__(self) -> int:
        return len(self._known)

    def __iter__(self) -> Iterator[Config]:
        return iter(self._known)

    def add(self, config: Config) -> None:
        """Know one more config (a neighbour that was not sampled)."""
        if config not in self._known:
            self._known[config] = self._encode(config)

    def features(self, configs: Sequence[Config]) -> np.ndarray:
        """A row of numbers each: ordered knobs from 0 to 1, others one column a value, -1 where
        inactive; derived numbers as logarithms."""
        for config in configs:
            self.add(config)
        return np.stack([self._known[config] for config in configs])

    def neighbours(self, config: Config) -> Iterator[Config]:
        """Every valid config that differs in one knob."""
        for knob in self.space.knobs:
            if knob.name in config.knobs:
                for value in knob.values:
                    if value != config.knobs[knob.name]:
                        made = self.changed(config, {knob.name: value})
                        if made is not None:
                            yield made

    def changed(self, config: Config, changes: dict[str, Value]) -> Config | None:
        """`config` with other values; a knob that they switch on takes its first one. `None` where
        that is not valid."""
        first: dict[str, Value] = {knob.name: knob.values[0] for knob in self.space.knobs}
        point = self.space.point({**first, **config.knobs, **changes}, self.problem, self.target)
        return None if isinstance(point, Rejection) else point

    def _draw(self) -> Iterator[Config]:
        size = self.space.size
        if size <= ENUMERATED_POINTS:
            yield from self.space.valid(self.problem, self.target)
            return
        found: set[Config] = set()
        for _ in range(20 * SAMPLED_CONFIGS):
            index = self._random.randrange(size)
            point = self.space.at(index, self.problem, self.target)
            if not isinstance(point, Rejection) and point not in found:
                found.add(point)
                yield point
                if len(found) == SAMPLED_CONFIGS:
                    return

    def _encode(self, config: Config) -> np.ndarray:
        row: list[float] = []
        for knob, ordered in zip(self.space.knobs, self._columns, strict=True):
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
        return np.asarray(row, np.float32)


def _column(knob: Knob) -> bool:
    """Whether a knob's values have an order."""
    return all(isinstance(value, (int, float)) for value in knob.values)
