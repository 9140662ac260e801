"""Bayesian search in batches, by two surrogates in turn: the expected improvement, and the
likelihood of being among the fastest."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice
from typing import Any

import numpy as np

from gristmill.core.config import Config
from gristmill.tuning.strategies._gaussian import gaussian_process
from gristmill.tuning.strategies._learner import Learner
from gristmill.tuning.strategies._surrogates import (
    forest,
    goals,
    improvement,
    likelihood,
    require_sklearn,
)

FIRST = 8  # outcomes before anything is learned,
LEAST_TIMED = 4  # and of them with a time
APART = 2  # knobs in which two configs of a batch differ, where there are enough
LOOKED_AT = 50  # configs for each that is wanted, in search of such
SCORED = 4096  # configs that a surrogate looks at, beside those near to the fastest
PARENTS = 5  # which those are near to
MUTANTS = 40  # of each of them, of up to three knobs;
FEW_MUTANTS = 4  # where there are thousands of knobs, and each takes milliseconds
GAUSSIAN_TOLD = 200  # outcomes, and
GAUSSIAN_COLUMNS = 128  # features at the most, for a process: it takes longer with their cube


class Bayesian(Learner):
    """Proposes what a surrogate of the outcomes so far expects most of.

    In turn, because neither wins everywhere: the expected improvement of the logarithm of time
    under a Gaussian process (`strategies/_gaussian.py`), or a random forest where there is too much
    for a process; and a gradient-boosted classifier of the fastest fifth
    (`strategies/_surrogates.py`). A failure is as slow as the slowest.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        require_sklearn("bayesian")
        self._turn = 0
        self._scales: np.ndarray | None = None  # of the process, with fewer outcomes

    def ask(self, count: int) -> list[Config]:
        if len(self.times) < FIRST or len(self.ranked) < LEAST_TIMED:
            return self.any_of(self.unseen(), count)
        return self.take(apart(self.in_order(self.candidates()), count))

    def candidates(self) -> list[Config]:
        """What is worth a look: unseen configs of the pool, and what is near to the fastest."""
        unseen = self.unseen()
        found = self.random.sample(unseen, SCORED) if len(unseen) > SCORED else unseen
        count = MUTANTS if self.pool.has_neighbourhoods else FEW_MUTANTS
        for parent in self.ranked[:PARENTS]:
            drawn = (self.pool.mutated(parent, self.random) for _ in range(count))
            found += [c for c in drawn if c is not None and c not in self.seen]
            found += self.near(parent)
        return found

    def in_order(self, configs: Iterable[Config]) -> list[Config]:
        """These, each once, by what the surrogate whose turn it is expects of them."""
        asked = list(dict.fromkeys(configs))
        if not asked:
            return []
        self._turn += 1
        told = list(self.times)
        goal = goals(np.asarray([self.times[config] for config in told]))
        surrogate = self._improvement if self._turn % 2 else self._likelihood
        scores = surrogate(self.pool.features(told), goal, self.pool.features(asked))
        return [asked[i] for i in np.argsort(-scores, kind="stable")]

    def _likelihood(self, known: np.ndarray, goal: np.ndarray, asked: np.ndarray) -> np.ndarray:
        return likelihood(known, goal, asked, self._turn_seed)

    def _improvement(self, known: np.ndarray, goal: np.ndarray, asked: np.ndarray) -> np.ndarray:
        if len(goal) > GAUSSIAN_TOLD or known.shape[1] > GAUSSIAN_COLUMNS:
            return improvement(goal, *forest(known, goal, asked, self._turn_seed))
        from threadpoolctl import threadpool_limits

        # Matrices this small gain nothing from threads, which wait in loops for each other where
        # compilers have the processors: of a batch of 70 ms that made 1.3 s of processor time.
        with threadpool_limits(limits=1, user_api="blas"):
            expected = gaussian_process(known, goal, asked, self._scales)
        self._scales = expected.scales
        return improvement(goal, expected.mean, expected.spread)

    @property
    def _turn_seed(self) -> int:
        return self.seed + 1000 * self._turn


def apart(configs: list[Config], count: int) -> list[Config]:
    """The first `count`, but for those too near to one before them, which come where there are no
    others."""
    chosen: list[Config] = []
    near: list[Config] = []
    for config in islice(configs, LOOKED_AT * count):
        if len(chosen) == count:
            break
        close = any(_distance(config, other) < APART for other in chosen)
        (near if close else chosen).append(config)
    return (chosen + near)[:count]


def _distance(a: Config, b: Config) -> int:
    names = a.knobs.keys() | b.knobs.keys()
    return sum(a.knobs.get(n) != b.knobs.get(n) for n in names)
