"""What a search strategy is, to a tuning run and to whoever writes one."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from gristmill.core.config import Config
from gristmill.core.plan import Outcome
from gristmill.core.problem import Problem
from gristmill.core.space import Space
from gristmill.core.target import Target


@runtime_checkable
class Strategy(Protocol):
    """What `strategy=` takes beside a name: proposes configs, and hears what became of them.

        class Downhill:
            def __init__(self, space, problem, target, seed): ...
            def ask(self, count): ...
            def tell(self, config, outcome): ...

        gristmill.tune("matmul", (a, b), strategy=Downhill)

    A class (or any function of `(space, problem, target, seed)`) is called once for each
    implementation that is searched. An object is taken as it is, where there is one space to
    search.

    A run tells before it first asks: the prior, and the best of earlier runs. It compiles and
    measures several candidates at once, so that it may ask again before it has told of everything
    that it was given. `space.valid(problem, target)` lists the valid configs,
    `space.config(values, problem, target)` checks one.
    """

    def ask(self, count: int) -> Sequence[Mapping[str, Any]]:
        """Up to `count` configs to measure next: valid ones, as `Config` or as dicts of knobs, that
        were neither asked nor told before. An empty list ends this search.

        What it raises, or a proposal that breaks this, ends the search with a
        `StrategyError`; what was measured is kept.
        """
        ...

    def tell(self, config: Config, outcome: Outcome) -> None:
        """What measuring `config` gave: `outcome.time_us("graph")`, infinite for a failure, whose
        class is `outcome.status`."""
        ...


Factory = Callable[[Space, Problem, Target, int], Strategy]


@dataclass(frozen=True, slots=True)
class Hints:
    """What is known of a space before anything is measured; it orders proposals and excludes none.

    Attributes:
        estimate: a config's time by an analytic model, in any unit, or `None` where the model has
            nothing to say of it.
        neighbours: valid configs that were fast for other shapes, dtypes or devices, the most
            promising first.
    """

    estimate: Callable[[Config], float | None] | None = None
    neighbours: tuple[Config, ...] = ()


NO_HINTS = Hints()


class BuiltIn(ABC):
    """The base of gristmill's own strategies.

    The same seed and the same answers give the same proposals.
    """

    def __init__(
        self,
        space: Space,
        problem: Problem,
        target: Target,
        seed: int = 0,
        hints: Hints = NO_HINTS,
    ) -> None:
        self.space, self.problem, self.target, self.seed = space, problem, target, seed
        self.hints = hints
        self.seen: set[Config] = set()

    @abstractmethod
    def ask(self, count: int) -> list[Config]:
        """Up to `count` new configs to measure; none when there are no more."""

    def tell(self, config: Config, outcome: Outcome) -> None:
        """What measuring `config` gave (also of configs that came from elsewhere: a prior, a
        neighbour)."""
        del outcome
        self.seen.add(config)
