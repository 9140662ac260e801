"""Bayesian search in batches, by two surrogates in turn: the likelihood of being among the fastest,
and the expected improvement."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from gristmill.core.config import Config
from gristmill.errors import MissingExtraError
from gristmill.tuning.strategies._learned import Learner

FIRST = 12  # random ones, before anything is learned
FASTEST = 0.2  # of what has a time: the class that the classifier learns
APART = 2  # knobs in which two configs of a batch differ, where there are enough
TREES = 64


class Bayesian(Learner):
    """Proposes what a surrogate of the outcomes so far expects most of.

    In turn, because neither wins everywhere: a gradient-boosted classifier of the fastest fifth
    (LFBO: Song et al., 2022), and the expected improvement (Jones et al., 1998) of the logarithm of
    time under a random forest (SMAC: Hutter et al., 2011), whose trees' spread is its uncertainty.
    A failure is as slow as the slowest.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        try:
            from sklearn.ensemble import GradientBoostingClassifier, RandomForestRegressor
        except ImportError as error:
            raise MissingExtraError(
                "`strategy` is 'bayesian', which learns with scikit-learn; that is not installed. "
                "Install `gristmill[tune]`, or ask for 'evolutionary'."
            ) from error
        self._classifier, self._forest = GradientBoostingClassifier, RandomForestRegressor
        self._batches = 0

    def ask(self, count: int) -> list[Config]:
        candidates = self.unseen()
        if len(self.times) < FIRST or len(self.ranked) < 4:
            return self.any_of(candidates, count)
        if not candidates:
            return []
        self._batches += 1
        score = self.scores(candidates)
        best = np.argsort(-score, kind="stable")
        return self.take(_apart([candidates[i] for i in best], count))

    def scores(self, candidates: list[Config]) -> np.ndarray:
        """What the surrogate whose turn it is expects of these; more is better."""
        told = list(self.times)
        times = np.asarray([self.times[config] for config in told])
        timed = times[np.isfinite(times)]
        goal = np.log(np.where(np.isfinite(times), times, timed.max()))
        known, asked = self.pool.features(told), self.pool.features(candidates)
        if self._batches % 2:
            return self._likelihood(known, goal, asked)
        return self._improvement(known, goal, asked)

    def _likelihood(self, known: np.ndarray, goal: np.ndarray, asked: np.ndarray) -> np.ndarray:
        fast = goal <= np.quantile(goal, FASTEST)
        if fast.all():
            return np.zeros(len(asked))
        # An example of the fast ones counts by how much faster than the limit it is.
        weight = np.where(fast, np.quantile(goal, FASTEST) - goal + 0.05, 1.0)
        weight[fast] *= (~fast).sum() / weight[fast].sum() / 4
        model = self._classifier(
            n_estimators=60, max_depth=4, subsample=0.8, random_state=self.seed + self._batches
        )
        return model.fit(known, fast, weight).predict_proba(asked)[:, 1]

    def _improvement(self, known: np.ndarray, goal: np.ndarray, asked: np.ndarray) -> np.ndarray:
        model = self._forest(
            n_estimators=TREES,
            min_samples_leaf=1,
            max_features=0.6,
            random_state=self.seed + self._batches,
        ).fit(known, goal)
        votes = np.stack([tree.predict(asked) for tree in model.estimators_])
        mean, spread = votes.mean(0), votes.std(0) + 1e-6
        gap = (goal.min() - mean) / spread
        density = np.exp(-0.5 * gap**2) / math.sqrt(2 * math.pi)
        below = 0.5 * (1 + np.vectorize(math.erf)(gap / math.sqrt(2)))
        return spread * (gap * below + density)


def _apart(configs: list[Config], count: int) -> list[Config]:
    """The first `count`, but for those too near to one before them, which come where there are no
    others."""
    chosen: list[Config] = []
    near: list[Config] = []
    for config in configs:
        if len(chosen) == count:
            break
        close = any(_distance(config, other) < APART for other in chosen)
        (near if close else chosen).append(config)
    return (chosen + near)[:count]


def _distance(a: Config, b: Config) -> int:
    names = {*a.knobs, *b.knobs}
    return sum(a.knobs.get(n) != b.knobs.get(n) for n in names)
