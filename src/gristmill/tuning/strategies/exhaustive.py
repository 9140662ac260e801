"""Exhaustive search: every valid config, in the space's order."""

from __future__ import annotations

from itertools import islice
from typing import Any

from gristmill.core.config import Config
from gristmill.tuning.strategies._base import BuiltIn


class Exhaustive(BuiltIn):
    """Proposes every valid config once; the space is enumerated lazily."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._configs = self.space.valid(self.problem, self.target)

    def ask(self, count: int) -> list[Config]:
        new = list(islice((c for c in self._configs if c not in self.seen), count))
        self.seen.update(new)
        return new
