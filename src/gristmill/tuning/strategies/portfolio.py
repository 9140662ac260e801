"""A portfolio: surrogates first, evolution beside them, and the neighbourhood of the best at the
end, because no strategy wins everywhere."""

from __future__ import annotations

from typing import Any

from gristmill.core.config import Config
from gristmill.core.plan import Outcome
from gristmill.errors import MissingExtraError
from gristmill.tuning.strategies._learned import Learner
from gristmill.tuning.strategies.bayesian import Bayesian
from gristmill.tuning.strategies.evolutionary import Evolutionary

FIRST = 16  # configs told before the neighbourhood of the best is looked at
NEIGHBOURS = 0.25  # of a batch from there on
EVOLVED = 0.25  # of a batch, once as many as `LATER` were told
LATER = 96


class Portfolio(Learner):
    """Proposes from Bayesian search, from the neighbours of the best so far (in the surrogate's
    order), and later from evolution too. What one is told, all learn.

    Without scikit-learn evolution takes the surrogates' place.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        problem = (self.space, self.problem, self.target, self.seed)
        self._evolution = Evolutionary(*problem, pool=self.pool)
        try:
            self._surrogate: Learner = Bayesian(*problem, pool=self.pool)
        except MissingExtraError:
            self._surrogate = self._evolution

    def tell(self, config: Config, outcome: Outcome) -> None:
        super().tell(config, outcome)
        for part in {id(p): p for p in (self._surrogate, self._evolution)}.values():
            part.tell(config, outcome)

    def ask(self, count: int) -> list[Config]:
        for part in (self._surrogate, self._evolution):
            part.seen = self.seen  # one memory: nothing is asked for twice
        new: list[Config] = []
        if len(self.times) >= FIRST:
            new += self._near(max(1, round(NEIGHBOURS * count)))
        if len(self.times) >= LATER:
            new += self._evolution.ask(min(count - len(new), round(EVOLVED * count)))
        return new + self._surrogate.ask(count - len(new))

    def _near(self, count: int) -> list[Config]:
        """Unseen neighbours of the fastest configs, of the fastest one first."""
        new: list[Config] = []
        for config in self.ranked[:3]:
            unseen = [n for n in self.pool.neighbours(config) if n not in self.seen]
            if unseen and isinstance(self._surrogate, Bayesian):
                scores = self._surrogate.scores(unseen)
                order = sorted(range(len(unseen)), key=lambda i: (-scores[i], i))
                unseen = [unseen[i] for i in order]
            new += self.take(unseen[: count - len(new)])
            if len(new) == count:
                break
        return new
