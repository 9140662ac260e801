"""Replay: search strategies raced on recorded spaces, where every answer is known and none costs a
GPU.

A strategy gets the recorded configs as its space, the problem, the target and a seed, and nothing
else: no prior, no plan, no neighbour, no measurement of this problem. It proposes and hears as in a
tuning run: implementation after implementation, a batch at a time, a candidate that trails the best
given up as in the worker. A failure is an evaluation like any other.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from gristmill.core.config import Config
from gristmill.core.plan import Candidate, Outcome
from gristmill.errors import InvalidInputError
from gristmill.tuning.recorded import Recording
from gristmill.tuning.searches import Turns
from gristmill.tuning.strategies import check_strategy, make_strategy
from gristmill.tuning.timed import trailing

BATCH = 8  # proposals at a time, told of before the next ones
MILESTONES = (25, 50, 100, 200)  # evaluations
WITHHELD = "the prior, packs, plans and measurements of the problem"


@dataclass(frozen=True)
class Curve:
    """How a strategy came near to the optimum on one recording.

    Attributes:
        seeds: for each seed, the optimum's time over that of the best so far, after every
            evaluation; 0 where nothing was right yet.
        ask_s: seconds that the strategy itself took for a search, on average.
    """

    strategy: str
    seeds: tuple[tuple[float, ...], ...]
    ask_s: float = 0.0

    @property
    def evaluations(self) -> int:
        """How many evaluations a search had."""
        return len(self.seeds[0])

    @cached_property
    def mean(self) -> tuple[float, ...]:
        """The mean of the seeds after every evaluation."""
        return tuple(sum(shares) / len(shares) for shares in zip(*self.seeds, strict=True))

    @cached_property
    def worst(self) -> tuple[float, ...]:
        """The worst of the seeds after every evaluation."""
        return tuple(map(min, zip(*self.seeds, strict=True)))

    @cached_property
    def best(self) -> tuple[float, ...]:
        """The best of the seeds after every evaluation."""
        return tuple(map(max, zip(*self.seeds, strict=True)))


@dataclass
class Search:
    """One strategy's search of a recording: what was evaluated, and the shares of the optimum."""

    candidates: list[Candidate] = field(default_factory=list)
    shares: list[float] = field(default_factory=list)
    ask_s: float = 0.0


class Replay:
    """The searches of one recording."""

    def __init__(self, recording: Recording) -> None:
        """A replay of this recording.

        Raises:
            InvalidInputError: nothing in it was right.
        """
        self.recording = recording
        self.times = recording.times()
        if not self.times:
            raise InvalidInputError(
                f"the recording of {recording.problem} has {len(recording.points)} configs of "
                "which none was right; a replay needs some. Record it further."
            )
        self.optimum = min(self.times, key=lambda c: (self.times[c], c.implementation))
        named = {c.implementation for c in recording.points}
        self.spaces = {s.name: recording.space(s) for s in recording.sources if s.name in named}

    @property
    def optimum_us(self) -> float:
        """The time of the fastest recorded config."""
        return self.times[self.optimum]

    def chance(self, evaluations: int) -> tuple[float, ...]:
        """The expected share of the optimum after each of so many uniform draws, without
        replacement, from all recorded configs of all implementations. A failure is a draw too.

        Exact, from order statistics: of N configs, n draws miss the r fastest with probability
        `comb(N - r, n) / comb(N, n)`. Where the space ends, its optimum stays.
        """
        count = len(self.recording.points)
        shares = self.optimum_us / np.sort(np.fromiter(self.times.values(), float))
        # What one more rank in reach adds, from the slowest to the fastest.
        steps = shares - np.append(shares[1:], 0.0)
        left = count - np.arange(len(shares))  # configs that are not among the r fastest
        expected = []
        for drawn in range(1, evaluations + 1):
            misses = np.cumprod(np.maximum(0.0, 1 - drawn / left))
            expected.append(float(steps @ (1 - misses)))
        return tuple(expected)

    def race(
        self, strategy: str, seeds: Sequence[int], evaluations: int, batch: int = BATCH
    ) -> Curve:
        """A strategy's curve, a search for each seed.

        Raises:
            InvalidInputError: there is no such strategy.
            StrategyError: it raises, or proposes what it must not.
        """
        check_strategy(strategy)
        searches = [self.search(strategy, seed, evaluations, batch) for seed in seeds]
        ask_s = sum(search.ask_s for search in searches) / len(searches)
        return Curve(strategy, tuple(tuple(search.shares) for search in searches), ask_s)

    def search(self, strategy: str, seed: int, evaluations: int, batch: int = BATCH) -> Search:
        """One search; where the space ends before the evaluations do, its last share stays."""
        recording, search = self.recording, Search()
        began = time.perf_counter()
        searched = {
            name: make_strategy(strategy, space, recording.problem, recording.target, seed)
            for name, space in self.spaces.items()
        }
        turns, best = Turns(list(searched)), math.inf
        while turns.active and len(search.shares) < evaluations:
            name = turns.next()
            room = turns.room(name, batch)
            asked = searched[name].ask(min(room, evaluations - len(search.shares)))
            turns.asked(name, len(asked))
            answers: list[tuple[Config, Outcome]] = []
            for config in asked:
                candidate = Candidate(name, config)
                outcome = self.outcome(candidate, best)
                best = min(best, self.times.get(candidate, math.inf))
                answers.append((candidate.config, outcome))
                search.candidates.append(candidate)
                search.shares.append(self.optimum_us / best)
            for config, outcome in answers:
                searched[name].tell(config, outcome)
                turns.told(Candidate(name, config), outcome)
        search.ask_s = time.perf_counter() - began
        last = search.shares[-1] if search.shares else 0.0
        search.shares += [last] * (evaluations - len(search.shares))
        return search

    def outcome(self, candidate: Candidate, best_us: float) -> Outcome:
        """What the worker would have said of a candidate, the best so far being this."""
        point = self.recording.points[candidate]
        us = self.times.get(candidate)
        if us is None:
            return point.outcome
        slow = trailing(us, 1, best_us) or trailing(us, 5, best_us)
        return slow or Outcome(
            "ok",
            device_us=us,
            error=point.outcome.error,
            repeats=max(point.pairs, point.outcome.repeats),
            registers=point.outcome.registers,
            spills=point.outcome.spills,
            shared_bytes=point.outcome.shared_bytes,
        )
