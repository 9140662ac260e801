"""Random search without replacement: valid and unseen configs, with the same chance each; of a
space that is too large to enumerate, what is drawn."""

from __future__ import annotations

import random
from collections.abc import Iterator
from itertools import islice
from typing import Any

from gristmill.core.config import Config
from gristmill.core.sampling import Sampler
from gristmill.core.space import Rejection
from gristmill.tuning.strategies._base import BuiltIn

SHUFFLED_POINTS = 1_000_000  # a larger space is drawn from (`core/sampling.py`)
REPEATS = 200  # draws in a row that were drawn before: the end of such a space


class Random(BuiltIn):
    """Proposes valid configs in a random order that depends on the seed alone."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._configs = self._draw(random.Random(self.seed))

    def ask(self, count: int) -> list[Config]:
        new: list[Config] = []
        for config in islice(self._configs, count):
            self.seen.add(config)
            new.append(config)
        return new

    def _draw(self, rng: random.Random) -> Iterator[Config]:
        size = self.space.size
        if size <= SHUFFLED_POINTS:
            for index in rng.sample(range(size), size):
                point = self.space.at(index, self.problem, self.target)
                if not isinstance(point, Rejection) and point not in self.seen:
                    yield point
            return
        sampler, repeats = Sampler(self.space, self.problem, self.target), 0
        while repeats < REPEATS:
            config = sampler.draw(rng)
            repeats = repeats + 1 if config in self.seen else 0
            if not repeats:
                yield config
