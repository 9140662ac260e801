"""The default: a portfolio of what is known before, surrogates, evolution and the neighbourhood of
the best, because no strategy wins everywhere."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from gristmill.core.config import Config
from gristmill.core.plan import Outcome
from gristmill.errors import MissingExtraError
from gristmill.tuning.strategies._learner import Learner
from gristmill.tuning.strategies.bayesian import FIRST, LEAST_TIMED, Bayesian, apart
from gristmill.tuning.strategies.evolutionary import Evolutionary

KNOWN = 0.25  # of all proposals, at most: what was fast elsewhere
ESTIMATED = 0.75  # of the first ones, where there is an estimate; the rest is even
BEST_ESTIMATED = 0.15  # of all configs, among which those are drawn: an estimate's very first ones
# are alike, and wrong together
DRAWN = 256  # configs, or as many as are wanted, among which those with new values are found
EVOLVED = 0.25  # of a batch, once as many as `LATER` were told
LATER = 96
NEAR = 0.25  # of a batch: neighbours of the fastest
FINISHED = 0.5  # the same, once the fastest has stood for `STALE` outcomes: all its neighbours
STALE = 12
NEAR_TO = 3  # of the fastest


class Portfolio(Learner):
    """Proposes, in this order of what is known:

    1. configs that were fast for other shapes, dtypes or devices, as a quarter of all proposals at
       the most: the best of them reaches .62 to .68 of the optimum elsewhere, the best 16 .87 to
       .95, so they are worth trials and no trust;
    2. before `FIRST` outcomes, some of the sixth that an analytic estimate puts first, and some
       whose values were had the least (without an estimate, all of them);
    3. then what a surrogate expects most of (`Bayesian`), and among that the neighbours of the
       fastest, all of which are looked at when nothing faster was found for a while;
    4. later, children of the fastest (`Evolutionary`).

    What one learns, all know. Without scikit-learn evolution takes the surrogates' place.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        search = (self.space, self.problem, self.target, self.seed, self.hints)
        self._evolution = Evolutionary(*search, memory=self.memory)
        try:
            self._surrogate: Bayesian | None = Bayesian(*search, memory=self.memory)
        except MissingExtraError:
            self._surrogate = None
        self._known = list(dict.fromkeys(self.hints.neighbours))
        self._asked = self._asked_known = 0
        self._best_us, self._best_at = float("inf"), 0

    def tell(self, config: Config, outcome: Outcome) -> None:
        super().tell(config, outcome)
        if self.times[config] < self._best_us:
            self._best_us, self._best_at = self.times[config], len(self.times)

    def ask(self, count: int) -> list[Config]:
        new = self._neighbours(count)
        if len(self.times) < FIRST or len(self.ranked) < LEAST_TIMED:
            new += self._first(count - len(new))
        else:
            new += self._learned(count - len(new))
        self._asked += len(new)
        return new

    def _neighbours(self, count: int) -> list[Config]:
        """What was fast elsewhere, while it is at most a quarter of everything."""
        room = min(count, int(KNOWN * (self._asked + count)) - self._asked_known)
        unseen = [config for config in self._known if config not in self.seen]
        self._known = unseen[max(0, room) :]
        new = self.take(unseen[: max(0, room)])
        self._asked_known += len(new)
        return new

    def _first(self, count: int) -> list[Config]:
        unseen = self.unseen()
        new: list[Config] = []
        if self.hints.estimate is not None:
            estimates = {config: self.hints.estimate(config) for config in unseen}
            told = sorted((us, c.key, c) for c, us in estimates.items() if us is not None)
            best = [config for *_, config in told[: math.ceil(BEST_ESTIMATED * len(told))]]
            new += self.any_of(best, round(ESTIMATED * count))
            unseen = [config for config in unseen if config not in self.seen]
        return new + self._even(unseen, count - len(new))

    def _even(self, configs: list[Config], count: int) -> list[Config]:
        """Configs that have every knob's values equally often, as a Latin hypercube has (McKay et
        al., 1979): each is, of some that are drawn, the one whose values were had the least.

        Those farthest from each other are corners of the space, where little is fast.
        """
        if len(configs) <= count:
            return self.take(configs)
        drawn = self.random.sample(configs, min(len(configs), max(DRAWN, count)))
        rows, knobs = self.pool.places(drawn), np.arange(len(self.pool.knobs))
        values = np.array([len(knob.values) for knob in self.pool.knobs])
        had = np.zeros((len(knobs), values.max() + 1))  # the last place: of what is not active
        for row in self.pool.places(list(self.seen)) if self.seen else ():
            had[knobs, row] += values
        left, new = np.ones(len(drawn), bool), []
        while len(new) < count:
            at = int(np.where(left, had[knobs, rows].sum(1), np.inf).argmin())
            had[knobs, rows[at]] += values
            left[at] = False
            new.append(drawn[at])
        return self.take(new)

    def _learned(self, count: int) -> list[Config]:
        stale = len(self.times) - self._best_at >= STALE
        near_count = round((FINISHED if stale else NEAR) * count)
        new: list[Config] = []
        if len(self.times) >= LATER:
            new += self._evolution.ask(round(EVOLVED * count))
        near = [c for parent in self.ranked[:NEAR_TO] for c in self.near(parent)]
        if self._surrogate is None:
            new += self.any_of(list(dict.fromkeys(near)), near_count)
            return new + self._evolution.ask(count - len(new))
        ranked = self._surrogate.in_order([*near, *self._surrogate.candidates()])
        neighbours, near_count = set(near), min(near_count, count - len(new))
        new += self.take([c for c in ranked if c in neighbours][:near_count])
        rest = [config for config in ranked if config not in self.seen]
        return new + self.take(apart(rest, count - len(new)))
