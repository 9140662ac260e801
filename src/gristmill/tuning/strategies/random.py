"""Random search without replacement: uniform over the raw points, valid and unseen ones only."""

from __future__ import annotations

import random
from collections.abc import Iterator

from gristmill.core.config import Config
from gristmill.core.problem import Problem
from gristmill.core.space import Rejection, Space
from gristmill.core.target import Target
from gristmill.tuning.strategies._base import Strategy

# a larger space is sampled with replacement, repeats skipped, and ends after as many draws
SHUFFLED_POINTS = 1_000_000


class Random(Strategy):
    """Proposes valid configs in a random order that depends on the seed alone."""

    def __init__(self, space: Space, problem: Problem, target: Target, seed: int = 0) -> None:
        super().__init__(space, problem, target, seed)
        self._indices = self._draw(random.Random(seed))

    def ask(self, count: int) -> list[Config]:
        new: list[Config] = []
        while len(new) < count and (index := next(self._indices, None)) is not None:
            point = self.space.at(index, self.problem, self.target)
            if not isinstance(point, Rejection) and point not in self.seen:
                self.seen.add(point)
                new.append(point)
        return new

    def _draw(self, rng: random.Random) -> Iterator[int]:
        size = self.space.size
        if size <= SHUFFLED_POINTS:
            yield from rng.sample(range(size), size)
        else:
            for _ in range(SHUFFLED_POINTS):
                yield rng.randrange(size)
