"""Search strategies: one file each, behind one ask/tell interface."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from itertools import islice
from typing import Any

from typing_extensions import TypeIs

from gristmill.core.problem import Problem
from gristmill.core.space import Space
from gristmill.core.target import Target
from gristmill.errors import InvalidInputError, StrategyError, did_you_mean
from gristmill.tuning.strategies._base import NO_HINTS, Factory, Hints, Strategy
from gristmill.tuning.strategies._checked import Checked
from gristmill.tuning.strategies._pool import ENUMERATED_POINTS
from gristmill.tuning.strategies.bayesian import Bayesian
from gristmill.tuning.strategies.evolutionary import Evolutionary
from gristmill.tuning.strategies.exhaustive import Exhaustive
from gristmill.tuning.strategies.optuna import Optuna
from gristmill.tuning.strategies.portfolio import Portfolio
from gristmill.tuning.strategies.random import Random

STRATEGIES: dict[str, Callable[..., Strategy]] = {
    "exhaustive": Exhaustive,
    "random": Random,
    "evolutionary": Evolutionary,
    "bayesian": Bayesian,
    "optuna": Optuna,
    "portfolio": Portfolio,
}
SMALL_SPACE = 64  # valid configs that `auto` searches exhaustively, whatever the budget

StrategyLike = str | Strategy | Factory  # what `strategy=` takes


def make_strategy(
    strategy: StrategyLike,
    space: Space,
    problem: Problem,
    target: Target,
    seed: int,
    hints: Hints = NO_HINTS,
    trials: int | None = None,
) -> Checked:
    """What was asked for as `strategy=`, over a space, its proposals checked.

    A name (`STRATEGIES` has them, and `auto`: exhaustive where the space has at most `trials` or 64
    valid configs and at most 100,000 points, else the portfolio), a function of
    `(space, problem, target, seed)` such as a class, or an object with `ask` and `tell`.

    Raises:
        InvalidInputError: none of these.
        StrategyError: the function raised, or gave no strategy.
        MissingExtraError: what it needs is not installed.
    """
    check_strategy(strategy)
    if isinstance(strategy, str):
        if strategy == "auto":
            limit = max(SMALL_SPACE, trials or 0)
            strategy = "exhaustive" if _fits(space, problem, target, limit) else "portfolio"
        made = STRATEGIES[strategy](space, problem, target, seed, hints)
        return Checked(made, f"the strategy {strategy!r}", space, problem, target)
    if is_object(strategy):
        return Checked(strategy, f"{strategy!r}", space, problem, target)
    name = getattr(strategy, "__qualname__", repr(strategy))
    try:
        made = strategy(space, problem, target, seed)
    except Exception as error:
        raise StrategyError(
            f"`strategy` is {name}, which raised {type(error).__name__}: {error}; it is called "
            "with (space, problem, target, seed) and gives an object with `ask` and `tell`. "
            "Correct it (docs/strategies.md has an example)."
        ) from error
    if not isinstance(made, Strategy):
        raise StrategyError(
            f"`strategy` is {name}, which gave {type(made).__name__}; it needs to give an object "
            "with the methods `ask(count)` and `tell(config, outcome)`. Return one."
        )
    return Checked(made, name, space, problem, target)


def check_strategy(strategy: Any) -> None:
    """Raise `InvalidInputError` for what is no strategy: a name that there is not, an object that
    cannot ask and tell."""
    if isinstance(strategy, str):
        known = [*STRATEGIES, "auto"]
        if strategy not in known:
            raise InvalidInputError(
                f"`strategy` is {strategy!r}; it can be {', '.join(STRATEGIES)} or auto, or a "
                f"strategy of yours. Choose one.{did_you_mean(strategy, known)}"
            )
    elif not (callable(strategy) or is_object(strategy)):
        raise InvalidInputError(
            f"`strategy` is {type(strategy).__name__}; it can be a name ({', '.join(STRATEGIES)} "
            "or auto), a class that is made with (space, problem, target, seed), or an object with "
            "`ask` and `tell`. Pass one of these."
        )


def is_object(strategy: Any) -> TypeIs[Strategy]:
    """Whether this is a strategy itself, and not what makes one."""
    return isinstance(strategy, Strategy) and not inspect.isclass(strategy)


def _fits(space: Space, problem: Problem, target: Target, limit: int) -> bool:
    """Whether a space has no more valid configs than this. Whatever the limit, one with too many
    points to look at is not counted: that would take minutes before anything is measured."""
    if space.size > ENUMERATED_POINTS:
        return False
    return sum(1 for _ in islice(space.valid(problem, target), limit + 1)) <= limit


__all__ = [
    "NO_HINTS",
    "STRATEGIES",
    "Checked",
    "Hints",
    "Strategy",
    "StrategyLike",
    "check_strategy",
    "is_object",
    "make_strategy",
]
