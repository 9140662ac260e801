"""Search strategies: one file each, behind one ask/tell interface."""

from __future__ import annotations

from collections.abc import Callable

from gristmill.core.problem import Problem
from gristmill.core.space import Space
from gristmill.core.target import Target
from gristmill.errors import InvalidInputError, did_you_mean
from gristmill.tuning.strategies._base import NO_HINTS, Hints, Strategy
from gristmill.tuning.strategies.bayesian import Bayesian
from gristmill.tuning.strategies.evolutionary import Evolutionary
from gristmill.tuning.strategies.exhaustive import Exhaustive
from gristmill.tuning.strategies.portfolio import Portfolio
from gristmill.tuning.strategies.random import Random

STRATEGIES: dict[str, Callable[..., Strategy]] = {
    "exhaustive": Exhaustive,
    "random": Random,
    "evolutionary": Evolutionary,
    "bayesian": Bayesian,
    "portfolio": Portfolio,
}


def make_strategy(
    name: str,
    space: Space,
    problem: Problem,
    target: Target,
    seed: int,
    hints: Hints = NO_HINTS,
) -> Strategy:
    """The strategy of this name over a space (`STRATEGIES` has the names)."""
    check_strategy(name)
    return STRATEGIES[name](space, problem, target, seed, hints)


def check_strategy(name: str) -> None:
    """Raise `InvalidInputError` for a strategy that there is not."""
    if name not in STRATEGIES:
        raise InvalidInputError(
            f"`strategy` is {name!r}; it can be {', '.join(STRATEGIES)} or auto. Choose one."
            f"{did_you_mean(name, [*STRATEGIES, 'auto'])}"
        )


__all__ = ["STRATEGIES", "Strategy", "check_strategy", "make_strategy"]
