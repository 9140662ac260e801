"""The base of the strategies that learn from outcomes."""

from __future__ import annotations

import random

from gristmill.core.config import Config
from gristmill.core.plan import Outcome
from gristmill.core.problem import Problem
from gristmill.core.space import Space
from gristmill.core.target import Target
from gristmill.tuning.strategies._base import Strategy
from gristmill.tuning.strategies._pool import Pool

TIMED = ("ok", "slow")  # a candidate that was given up early has a time of few repeats


class Learner(Strategy):
    """Keeps what it was told as times, infinite for what failed."""

    def __init__(
        self,
        space: Space,
        problem: Problem,
        target: Target,
        seed: int = 0,
        pool: Pool | None = None,
    ) -> None:
        super().__init__(space, problem, target, seed)
        self.pool = Pool(space, problem, target, seed) if pool is None else pool
        self.random = random.Random(seed)
        self.times: dict[Config, float] = {}

    def tell(self, config: Config, outcome: Outcome) -> None:
        super().tell(config, outcome)
        # Of a space's configs the host times are alike: the device decides under any objective.
        us = outcome.device_us if outcome.status in TIMED else None
        self.times[config] = float("inf") if us is None else us
        self.pool.add(config)

    @property
    def ranked(self) -> list[Config]:
        """What has a time, fastest first."""
        timed = [c for c, us in self.times.items() if us < float("inf")]
        return sorted(timed, key=lambda c: (self.times[c], c.key))

    def unseen(self) -> list[Config]:
        return [config for config in self.pool if config not in self.seen]

    def any_of(self, configs: list[Config], count: int) -> list[Config]:
        """Some of these, at random, marked as seen."""
        return self.take(self.random.sample(configs, min(count, len(configs))))

    def take(self, configs: list[Config]) -> list[Config]:
        self.seen.update(configs)
        return configs
