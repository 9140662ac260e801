"""The base of the strategies that learn from outcomes."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from gristmill.core.config import Config
from gristmill.core.plan import Outcome
from gristmill.core.problem import Problem
from gristmill.core.space import Space
from gristmill.core.target import Target
from gristmill.tuning.strategies._base import BuiltIn
from gristmill.tuning.strategies._pool import Pool

TIMED = ("ok", "slow")  # a candidate that was given up early has a time of few repeats
GROWN = 64  # configs that a sampled pool gains with each look at it, and at most a sixteenth


@dataclass(eq=False)
class Memory:
    """What is known of a search; strategies that work together share one."""

    space: Space
    problem: Problem
    target: Target
    seed: int
    seen: set[Config] = field(default_factory=set)
    times: dict[Config, float] = field(default_factory=dict)

    @cached_property
    def pool(self) -> Pool:
        """The configs to choose from; made at the first look, which takes up to a second."""
        return Pool(self.space, self.problem, self.target, self.seed)


class Learner(BuiltIn):
    """Keeps what it was told as times, infinite for what failed."""

    def __init__(self, *args: Any, memory: Memory | None = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.memory = memory or Memory(self.space, self.problem, self.target, self.seed)
        self.seen, self.times = self.memory.seen, self.memory.times
        self.random = random.Random(self.seed)

    @property
    def pool(self) -> Pool:
        """The configs to choose from."""
        return self.memory.pool

    def tell(self, config: Config, outcome: Outcome) -> None:
        super().tell(config, outcome)
        # Of a space's configs the host times are alike: the device decides under any objective.
        us = outcome.device_us if outcome.status in TIMED else None
        self.times[config] = float("inf") if us is None else us

    @property
    def ranked(self) -> list[Config]:
        """What has a time, fastest first."""
        timed = [c for c, us in self.times.items() if us < float("inf")]
        return sorted(timed, key=lambda c: (self.times[c], c.key))

    def unseen(self) -> list[Config]:
        """What the pool has and was neither asked nor told."""
        if not self.pool.is_whole:
            self.pool.grow(min(GROWN, 1 + len(self.pool) // 16))
        return [config for config in self.pool if config not in self.seen]

    def near(self, config: Config) -> list[Config]:
        """The unseen neighbours of a config, where they are few enough to look at all."""
        if not self.pool.has_neighbourhoods:
            return []
        return [other for other in self.pool.neighbours(config) if other not in self.seen]

    def any_of(self, configs: list[Config], count: int) -> list[Config]:
        """Some of these, at random, marked as seen."""
        return self.take(self.random.sample(configs, min(count, len(configs))))

    def take(self, configs: list[Config]) -> list[Config]:
        self.seen.update(configs)
        return configs
