"""Valid configs of a space that is too large to enumerate: drawn at random, and repaired where a
draw breaks a constraint.

A draw is uniform over the raw points, so that what passes as it is is uniform over the valid ones.
Where little passes, a draw is repaired by local search (WalkSAT: Selman et al., 1994): of a broken
constraint's knobs one takes another value, the one that leaves the fewest constraints broken or,
now and then, any. Which knobs a rule reads is seen as it reads them, and only the rules that read
what has changed are asked again: a space may have thousands of knobs. What was repaired is near to
the borders of the constraints more often than chance would have it.
"""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from typing import Any

from gristmill.core.config import Config, Value
from gristmill.core.problem import Problem
from gristmill.core.space import Rejection, Requirement, Space
from gristmill.core.target import Target
from gristmill.errors import NoValidConfigError

DRAWS = 8  # uniform ones, before the last of them is repaired
RESTARTS = 8  # repairs from another draw, before it is said that there is no valid point
STEPS = 200  # of a repair, and as many more as it had broken constraints, six times
ASKED = 20_000  # constraints in a repair, one again and again, beside ten times each of them
ANY = 0.15  # of the steps take any value, so that no corner is final


class Sampler:
    """Draws valid configs of one space, for one problem on one target."""

    def __init__(self, space: Space, problem: Problem, target: Target) -> None:
        self.space, self.problem, self.target = space, problem, target
        self._repairs = 0  # one after another

    def draw(self, rng: random.Random) -> Config:
        """A valid config; the same draws for the same state of `rng`.

        Raises:
            NoValidConfigError: none was found in a bounded number of tries; the message has the
                reasons that rejected most.
        """
        reasons: Counter[str] = Counter()
        for _ in range(RESTARTS):
            values: dict[str, Value] = {}
            # where the last draws had to be repaired, this one will have to be too
            for _ in range(DRAWS if self._repairs < 4 else 1):
                values = {knob.name: rng.choice(knob.values) for knob in self.space.knobs}
                point = self.space.point(values, self.problem, self.target)
                if not isinstance(point, Rejection):
                    self._repairs = 0
                    return point
                reasons[point.reason] += 1
            found = self.repair(values, rng)
            if found is not None:
                self._repairs += 1
                return found
        most = "; ".join(f"{reason} ({count} times)" for reason, count in reasons.most_common(3))
        raise NoValidConfigError(
            f"no valid config was found for {self.problem} on {self.target.name}: "
            f"{reasons.total()} draws and {RESTARTS} repairs failed, most for: {most}. "
            "Loosen the constraints of the space, or declare its knobs so that fewer points break "
            "them."
        )

    def repair(self, values: Mapping[str, Value], rng: random.Random) -> Config | None:
        """A valid config near to these values (one for every knob), or `None` where none was
        reached."""
        state = _State(self.space, values, self.problem, self.target)
        for _ in range(STEPS + 6 * len(state.broken)):
            if not state.broken:
                point = self.space.point(state.raw, self.problem, self.target)
                return None if isinstance(point, Rejection) else point
            if state.asked > ASKED + 10 * len(self.space.requirements) or not state.step(rng):
                return None
        return None


class _State(Mapping[str, Any]):
    """A point under repair, as its own rules see it: it notes who reads what."""

    def __init__(
        self, space: Space, values: Mapping[str, Value], problem: Problem, target: Target
    ) -> None:
        self.space, self.problem, self.target = space, problem, target
        self.raw = dict(values)
        self._knobs = {knob.name: knob for knob in space.knobs}
        self._derived = {rule.name: rule for rule in space.derived}
        self._kept: dict[tuple[str, str], tuple[Any, set[str]]] = {}  # what rules gave, from what
        self._users: dict[str, set[tuple[str, str]]] = defaultdict(set)
        # In the order in which they were asked: a set's would differ from process to process.
        self._readers: dict[str, dict[Requirement, None]] = defaultdict(dict)
        self._reads: dict[Requirement, set[str]] = {}
        self._notes: list[set[str]] = []
        self.asked = 0  # constraints, again and again
        self.broken = {r: None for r in space.requirements if not self._holds(r)}

    def step(self, rng: random.Random) -> bool:
        """Change one knob of a broken constraint; whether it has one that can change."""
        requirement = rng.choice(list(self.broken))
        free = sorted(k for k in self._reads[requirement] if len(self._knobs[k].values) > 1)
        if not free:
            return False
        if rng.random() < ANY:
            name = rng.choice(free)
            self._change(name, _another(rng, self._knobs[name].values, self.raw[name]))
            return True
        best: tuple[int, str, Value] | None = None
        for name in rng.sample(free, min(len(free), 4)):
            before = self.raw[name]
            others = [v for v in self._knobs[name].values if v != before]
            for value in rng.sample(others, min(len(others), 4)):
                self._change(name, value)
                if best is None or len(self.broken) < best[0]:
                    best = (len(self.broken), name, value)
            self._change(name, before)
        assert best is not None
        self._change(*best[1:])
        return True

    def _change(self, name: str, value: Value) -> None:
        self.raw[name] = value
        for kept in self._users.pop(name, ()):
            self._kept.pop(kept, None)
        for requirement in list(self._readers[name]):
            if self._holds(requirement):
                self.broken.pop(requirement, None)
            else:
                self.broken[requirement] = None

    def _holds(self, requirement: Requirement) -> bool:
        """What a constraint says, and from which knobs."""
        self.asked += 1
        self._notes.append(set())
        held = bool(requirement.holds(self, self.problem, self.target))
        read = self._notes.pop()
        self._reads[requirement] = read
        for name in read:
            self._readers[name][requirement] = None
        return held

    def _ask(self, kind: str, name: str, rule: Any) -> Any:
        """What a rule gives here, remembered until a knob that it read has changed."""
        key = (kind, name)
        if key not in self._kept:
            self._notes.append(set())
            value = rule(self, self.problem, self.target)
            read = self._notes.pop()
            self._kept[key] = (value, read)
            for knob in read:
                self._users[knob].add(key)
        value, read = self._kept[key]
        if self._notes:
            self._notes[-1] |= read
        return value

    def _active(self, name: str) -> bool:
        rule = self._knobs[name].active
        return rule is None or bool(self._ask("active", name, rule))

    def __getitem__(self, name: str) -> Any:
        if name in self._derived:
            return self._ask("derived", name, self._derived[name].value)
        if name not in self._knobs or not self._active(name):
            raise KeyError(name)
        if self._notes:
            self._notes[-1].add(name)
        return self.raw[name]

    def __iter__(self) -> Iterator[str]:
        yield from (name for name in self._knobs if self._active(name))
        yield from self._derived

    def __len__(self) -> int:
        return sum(1 for _ in self)


def _another(rng: random.Random, values: tuple[Value, ...], but: Value) -> Value:
    """One of several values, other than this one."""
    return rng.choice([value for value in values if value != but])
