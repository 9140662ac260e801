"""A strategy as a run uses it: what it proposes is checked, and what it raises is said in one way.

Users write strategies: one that raises, or proposes what cannot be measured, must not cost the run
what was measured before.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from gristmill.core.config import Config
from gristmill.core.plan import Outcome
from gristmill.core.problem import Problem
from gristmill.core.space import Space
from gristmill.core.target import Target
from gristmill.errors import InvalidConfigError, NoValidConfigError, StrategyError
from gristmill.tuning.strategies._base import Strategy

DOCUMENTED = "docs/strategies.md has an example"


class Checked:
    """Asks a strategy, and takes valid and unseen configs only."""

    def __init__(
        self, strategy: Strategy, name: str, space: Space, problem: Problem, target: Target
    ) -> None:
        self.name = name
        self._strategy = strategy
        self._space, self._problem, self._target = space, problem, target
        self.seen: set[Config] = set()

    def ask(self, count: int) -> list[Config]:
        """Up to `count` configs; none is the end.

        Raises:
            StrategyError: it raised, or gave something that is not a list of at most `count` valid
                configs that were neither asked nor told before.
            NoValidConfigError: the space has no valid config that could be found.
        """
        if count < 1:
            return []
        try:
            asked: Any = self._strategy.ask(count)
        except NoValidConfigError:
            raise
        except Exception as error:
            raise self._raised("ask", error) from error
        if not isinstance(asked, Sequence) or isinstance(asked, str):
            raise StrategyError(
                f"`ask({count})` of {self.name} gave {type(asked).__name__}; it needs a list of "
                f"configs, empty where there are no more. Return one ({DOCUMENTED})."
            )
        if len(asked) > count:
            raise StrategyError(
                f"`ask({count})` of {self.name} gave {len(asked)} configs; it can give {count} at "
                "the most. Keep the others for the next call."
            )
        return [self._config(values) for values in asked]

    def tell(self, config: Config, outcome: Outcome) -> None:
        """Pass on what measuring a config gave.

        Raises:
            StrategyError: it raised.
        """
        if not config.knobs and self._space.knobs:
            return  # no point of the space: a row that says why there is none
        self.seen.add(config)
        try:
            self._strategy.tell(config, outcome)
        except Exception as error:
            raise self._raised("tell", error) from error

    def _config(self, values: Any) -> Config:
        if not isinstance(values, Mapping):
            raise StrategyError(
                f"`ask` of {self.name} gave {values!r} for a config; a config is a `Config` or a "
                f"dict from knob to value. Give such ({DOCUMENTED})."
            )
        try:
            config = self._space.config(values, self._problem, self._target)
        except InvalidConfigError as error:
            raise StrategyError(
                f"`ask` of {self.name} gave a config that is not valid: {error} A strategy "
                "proposes valid configs only: check them with `space.config(values, problem, "
                "target)`."
            ) from error
        if config in self.seen:
            raise StrategyError(
                f"`ask` of {self.name} gave `{config}` again; a config is measured once. Remember "
                "what was asked and told, and propose others, or an empty list to end the search."
            )
        self.seen.add(config)
        return config

    def _raised(self, method: str, error: Exception) -> StrategyError:
        said = f"{type(error).__name__}: {str(error).rstrip('.')}"
        return StrategyError(
            f"`{method}` of {self.name} raised {said}. A strategy answers "
            "`ask` and `tell` without raising. The cause is chained below; what was measured is "
            "kept."
        )
