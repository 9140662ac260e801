"""Surrogates: what the outcomes so far let expect of configs that were not measured."""

from __future__ import annotations

import math

import numpy as np

from gristmill.errors import MissingExtraError

FASTEST = 0.2  # of what was told: the class that the classifier learns
BOOSTED_TREES = 40
FOREST_TREES = 32
COLUMNS = 0.6  # of the features that a split of the forest may use
MOST_COLUMNS = 48


def require_sklearn(strategy: str) -> None:
    """Raise `MissingExtraError` where scikit-learn is not installed."""
    try:
        import sklearn.ensemble  # noqa: F401
    except ImportError as error:
        raise MissingExtraError(
            f"`strategy` is {strategy!r}, which learns with scikit-learn; that is not installed. "
            "Install `gristmill[tune]`, or ask for 'evolutionary'."
        ) from error


def goals(times: np.ndarray) -> np.ndarray:
    """Logarithms of times; a failure is as slow as the slowest."""
    timed = times[np.isfinite(times)]
    return np.log(np.where(np.isfinite(times), times, timed.max()))


def likelihood(known: np.ndarray, goal: np.ndarray, asked: np.ndarray, seed: int) -> np.ndarray:
    """How likely each of `asked` is among the fastest fifth (LFBO: Song et al., 2022): a
    gradient-boosted classifier, for which an example counts by how fast it is."""
    from sklearn.ensemble import GradientBoostingClassifier

    limit = np.quantile(goal, FASTEST)
    fast = goal <= limit
    if fast.all():
        return np.zeros(len(asked))
    weight = np.where(fast, limit - goal + 0.05, 1.0)
    weight[fast] *= (~fast).sum() / weight[fast].sum() / 4
    model = GradientBoostingClassifier(
        n_estimators=BOOSTED_TREES,
        max_depth=4,
        subsample=0.8,
        max_features=_columns(known),
        random_state=seed,
    )
    return model.fit(known, fast, weight).predict_proba(asked)[:, 1]


def improvement(goal: np.ndarray, mean: np.ndarray, spread: np.ndarray) -> np.ndarray:
    """The expected improvement (Jones et al., 1998) on the least goal, of configs of which these
    are the expected means and their spreads."""
    gap = (goal.min() - mean) / spread
    density = np.exp(-0.5 * gap**2) / math.sqrt(2 * math.pi)
    below = 0.5 * (1 + np.vectorize(math.erf)(gap / math.sqrt(2)))
    return spread * (gap * below + density)


def forest(
    known: np.ndarray, goal: np.ndarray, asked: np.ndarray, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation of the trees of a random forest (Breiman, 2001), whose spread is
    its uncertainty (SMAC: Hutter et al., 2011).

    Bagged here and not by scikit-learn, whose forest takes twice as long at a few hundred examples.
    """
    from sklearn.tree import DecisionTreeRegressor

    rng = np.random.default_rng(seed)
    votes = []
    for tree in range(FOREST_TREES):
        drawn = np.bincount(rng.integers(0, len(goal), len(goal)), minlength=len(goal))
        model = DecisionTreeRegressor(max_features=_columns(known), random_state=seed + tree)
        model.fit(known, goal, sample_weight=drawn.astype(np.float64), check_input=False)
        votes.append(model.predict(asked, check_input=False))
    stacked = np.stack(votes)
    return stacked.mean(0), stacked.std(0) + 1e-6


def _columns(known: np.ndarray) -> int:
    """How many features a split looks at."""
    return max(1, min(MOST_COLUMNS, round(COLUMNS * known.shape[1])))
