"""What a strategy is: it proposes valid configs that were not proposed before, and hears what
became of them."""

from __future__ import annotations

from abc import ABC, abstractmethod

from gristmill.core.config import Config
from gristmill.core.plan import Outcome
from gristmill.core.problem import Problem
from gristmill.core.space import Space
from gristmill.core.target import Target


class Strategy(ABC):
    """Proposes configs of one implementation's space for one problem on one target.

    `ask` never returns an invalid config or one that was asked or told before; fewer than were
    asked for, or none, when there are no more. The same seed and the same answers give the same
    proposals.
    """

    def __init__(self, space: Space, problem: Problem, target: Target, seed: int = 0) -> None:
        self.space, self.problem, self.target, self.seed = space, problem, target, seed
        self.seen: set[Config] = set()

    @abstractmethod
    def ask(self, count: int) -> list[Config]:
        """Up to `count` new configs to measure."""

    def tell(self, config: Config, outcome: Outcome) -> None:
        """What measuring `config` gave (also of configs that came from elsewhere: a prior, a
        neighbour)."""
        del outcome
        self.seen.add(config)
