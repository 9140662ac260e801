"""Exhaustive search: every valid config, in the space's order."""

from __future__ import annotations

from itertools import islice

from gristmill.core.config import Config
from gristmill.core.problem import Problem
from gristmill.core.space import Space
from gristmill.core.target import Target
from gristmill.tuning.strategies._base import NO_HINTS, BuiltIn, Hints


class Exhaustive(BuiltIn):
    """Proposes every valid config once; the space is enumerated lazily."""

    def __init__(
        self,
        space: Space,
        problem: Problem,
        target: Target,
        seed: int = 0,
        hints: Hints = NO_HINTS,
    ) -> None:
        super().__init__(space, problem, target, seed, hints)
        self._configs = space.valid(problem, target)

    def ask(self, count: int) -> list[Config]:
        new = list(islice((c for c in self._configs if c not in self.seen), count))
        self.seen.update(new)
        return new
