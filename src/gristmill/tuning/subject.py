"""What a tuning run needs of what it tunes: an op with its implementations, or whatever else offers
the same."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol

from gristmill.core.config import Config, Value
from gristmill.core.implementation import Kind
from gristmill.core.plan import Candidate, Outcome
from gristmill.core.problem import Bucket, Problem
from gristmill.core.space import Space
from gristmill.core.target import Target
from gristmill.measure.conditions import Conditions
from gristmill.measure.roofline import Roofline


class Subject(Protocol):
    """What is tuned, as the store and the run know it; an `Op` is one."""

    # `Any`: an `Op` has it as a `cached_property`, which pyright takes for no `str`
    @property
    def name(self) -> Any: ...

    def bucket(self, problem: Problem) -> Bucket: ...

    @property
    def axes(self) -> Any: ...


class Tunable(Protocol):
    """Something with a space of configs; an `Implementation` is one."""

    @property
    def name(self) -> str: ...

    @property
    def kind(self) -> Kind: ...

    @property
    def space(self) -> Space: ...

    @property
    def source_hash(self) -> Any: ...  # as above

    def why_not(self, problem: Problem, target: Target) -> str | None: ...

    def config(
        self, values: Mapping[str, Value] | None, problem: Problem, target: Target
    ) -> Config: ...


class Measures(AbstractContextManager[Any], Protocol):
    """Gives candidates their outcomes; a `Measurer` does, in a worker."""

    def measure(self, candidate: Candidate, best_us: float | None) -> Outcome: ...

    def race(
        self, candidates: Sequence[Candidate]
    ) -> tuple[list[Outcome], list[dict[str, Any]]]: ...

    def verify(self, candidates: Sequence[Candidate]) -> list[Outcome]: ...

    def roofline(self) -> Roofline | None: ...

    def conditions(self) -> Conditions: ...


class Compiles(AbstractContextManager[Any], Protocol):
    """Compiles candidates ahead of their trial; a `CompilePool` does, many at once."""

    @property
    def pending(self) -> int: ...

    def submit(self, candidate: Candidate) -> None: ...

    def collect(self) -> tuple[Candidate, Outcome]: ...
