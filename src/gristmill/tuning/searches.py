"""The strategies of a run, one for each implementation that is searched, and what ends them before
the budget does."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from gristmill.core.config import Config
from gristmill.core.plan import Candidate, Outcome
from gristmill.core.problem import Problem
from gristmill.core.target import Target
from gristmill.errors import (
    InvalidInputError,
    NoValidConfigError,
    StrategyError,
    TuningError,
)
from gristmill.measure.roofline import Roofline
from gristmill.tuning.strategies import (
    NO_HINTS,
    Checked,
    Hints,
    StrategyLike,
    is_object,
    make_strategy,
)
from gristmill.tuning.subject import Tunable

FIRST = 4  # configs of an implementation before it is judged
POWER = 8  # at the most, of the ratio of bests: 0.9 is worth 0.43 of a turn, 0.8 a sixth
LEAST = 0.1


class Turns:
    """Whose turn it is to propose, among the implementations of a run: each as often as what it has
    found is near the best of all.

    An implementation counts in full until `FIRST` of its configs were told, and proposes no more
    than that at once; then with `(best of all / its best) ** power`, at least `LEAST`. The power is
    how many of its configs were told, at most `POWER`: the fewer, the less a verdict is worth.
    """

    def __init__(self, names: Sequence[str]) -> None:
        self.active = list(names)
        self._asked = dict.fromkeys(names, 0)
        self._told = dict.fromkeys(names, 0)
        self._best_us: dict[str, float] = {}

    def next(self) -> str:
        """The implementation that is the farthest behind its share."""
        return min(self.active, key=lambda name: self._asked[name] / self._share(name))

    def room(self, name: str, count: int) -> int:
        """How many of `count` configs an implementation may propose at once."""
        judged = self._told[name] >= FIRST or len(self._told) == 1
        return count if judged else min(count, FIRST)

    def asked(self, name: str, count: int) -> None:
        """It has proposed so many; none is its end."""
        self._asked[name] += count
        if not count:
            self.active.remove(name)

    def told(self, candidate: Candidate, outcome: Outcome) -> None:
        """What one of its configs gave."""
        name, us = candidate.implementation, outcome.device_us
        if name in self._told:
            self._told[name] += 1
            if us is not None and outcome.status in ("ok", "slow"):
                self._best_us[name] = min(us, self._best_us.get(name, us))

    def _share(self, name: str) -> float:
        if self._told[name] < FIRST or not self._best_us:
            return 1.0
        mine = self._best_us.get(name)
        near = min(self._best_us.values()) / mine if mine else 0.0
        return max(LEAST, near ** min(POWER, self._told[name]))


class Searches(Mapping[str, Checked]):
    """The strategies by implementation.

    Attributes:
        turns: whose turn it is to be asked.
        fault: what a strategy did wrong: the search is over.
    """

    def __init__(
        self,
        strategy: StrategyLike,
        searched: Sequence[Tunable],
        problem: Problem,
        target: Target,
        seed: int,
        hints: Mapping[str, Hints],
        trials: int | None,
    ) -> None:
        if len(searched) > 1 and is_object(strategy):
            names = ", ".join(i.name for i in searched)
            raise InvalidInputError(
                f"`strategy` is one {type(strategy).__name__}, and {problem} has {len(searched)} "
                f"spaces to search ({names}); each needs a strategy of its own. Pass the class, or "
                "a function of (space, problem, target, seed)."
            )
        self.turns = Turns([i.name for i in searched])
        self.fault: StrategyError | None = None
        self._by_name = {
            i.name: make_strategy(
                strategy, i.space, problem, target, seed, hints.get(i.name, NO_HINTS), trials
            )
            for i in searched
        }

    def ask(self, name: str, count: int) -> tuple[list[Config], Outcome | None]:
        """What an implementation's strategy wants next, `count` at most, and why it wants nothing
        more where its space has no valid point to be found."""
        asked: list[Config] = []
        why_none: Outcome | None = None
        try:
            asked = self._by_name[name].ask(self.turns.room(name, count))
        except StrategyError as error:
            self.fault = error
        except NoValidConfigError as error:
            why_none = Outcome("unsupported", str(error))
        self.turns.asked(name, len(asked))
        return asked, why_none

    def tell(self, candidate: Candidate, outcome: Outcome) -> None:
        """Tell the candidate's strategy, if it has one."""
        self.turns.told(candidate, outcome)
        if candidate.implementation in self._by_name:
            try:
                self._by_name[candidate.implementation].tell(candidate.config, outcome)
            except StrategyError as error:
                self.fault = error

    def __getitem__(self, name: str) -> Checked:
        return self._by_name[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._by_name)

    def __len__(self) -> int:
        return len(self._by_name)


def at_roofline(best_us: float | None, roofline: Roofline | None, share: float | None) -> str:
    """Why there is no more to gain: the best is within `share` of the roofline; else an empty
    string."""
    if share is None or roofline is None or best_us is None:
        return ""
    if best_us > roofline.time_us * (1 + share):
        return ""
    return (
        f"{best_us:.2f} us is within {share:.1%} of the roofline ({roofline.time_us:.2f} us, "
        f"{roofline.limit})"
    )


def no_plan(problem: Problem, outcomes: Mapping[Candidate, Outcome]) -> TuningError:
    """The error where no candidate ran and gave right results."""
    rows = "; ".join(f"{c}: {o.status} ({o.reason})" for c, o in list(outcomes.items())[:5])
    advice = "Run `gristmill doctor`, which tries the worker by itself."
    if all(o.status == "wrong" for o in outcomes.values()):
        advice = "All of them ran: look at the kernels, the reference and the error bounds."
    return TuningError(
        f"{problem} has no plan: no candidate ran and gave right results. The first ones: {rows}. "
        f"{advice}"
    )
