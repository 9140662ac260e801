"""Evolutionary search: children of the fastest configs, their knobs crossed and some of them
changed."""

from __future__ import annotations

from gristmill.core.config import Config, Value
from gristmill.tuning.strategies._learner import Learner

FIRST = 16  # random ones, before there are parents
PARENTS = 12
TOURNAMENT = 3
CHANGED_KNOBS = 1.0  # on average in a child
TRIES = 60  # for each child that is asked for


class Evolutionary(Learner):
    """Proposes children of pairs of fast configs (Goldberg, 1989: tournaments, uniform crossover,
    mutation), at random until there are some."""

    def ask(self, count: int) -> list[Config]:
        parents = self.ranked[:PARENTS]
        if len(self.times) < FIRST or len(parents) < 2:
            return self.any_of(self.unseen(), count)
        new: dict[Config, None] = {}
        for _ in range(TRIES * count):
            if len(new) == count:
                break
            child = self._child(self._parent(parents), self._parent(parents))
            if child is not None and child not in self.seen:
                new.setdefault(child)
        children = self.take(list(new))
        return children + self.any_of(self.unseen(), count - len(children))

    def _parent(self, parents: list[Config]) -> Config:
        return parents[min(self.random.randrange(len(parents)) for _ in range(TOURNAMENT))]

    def _child(self, mother: Config, father: Config) -> Config | None:
        values: dict[str, Value] = {}
        rate = CHANGED_KNOBS / max(1, len(self.pool.knobs))
        for knob in self.pool.knobs:
            if self.random.random() < rate:
                values[knob.name] = self.random.choice(knob.values)
            elif self.random.random() < 0.5 and knob.name in father.knobs:
                values[knob.name] = father.knobs[knob.name]
        return self.pool.changed(mother, values, None if self.pool.is_whole else self.random)
