"""A run's candidates at a compile server that other runs use too."""

from __future__ import annotations

import queue
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from typing import Any

from typing_extensions import Self

from gristmill.core.plan import Candidate, Outcome
from gristmill.core.problem import Problem
from gristmill.core.target import Target
from gristmill.measure.isolation import REASON_CHARS
from gristmill.tuning.compiler import compile_request
from gristmill.tuning.trial import candidate_to_json

Submit = Callable[[Mapping[str, Any]], "Future[dict[str, Any]]"]


class SharedPool:
    """A run's candidates at a compile server that others use too. Use as a context manager."""

    def __init__(self, submit: Submit, problem: Problem, target: Target, jobs: int) -> None:
        """`jobs`: how many the server compiles at once, of all the runs that it serves."""
        self._submit = submit
        self._base = compile_request(problem, target, jobs)
        self._done: queue.SimpleQueue[tuple[Candidate, Future[dict[str, Any]]] | None] = (
            queue.SimpleQueue()
        )
        self.pending = 0

    def submit(self, candidate: Candidate) -> None:
        """Start compiling a candidate."""
        self.pending += 1
        future = self._submit({**self._base, "candidate": candidate_to_json(candidate)})
        future.add_done_callback(lambda done: self._done.put((candidate, done)))

    def collect(self) -> tuple[Candidate, Outcome]:
        """The next candidate that is done, in any order (there must be one pending)."""
        found = self._done.get()
        if found is None:
            raise KeyboardInterrupt
        candidate, future = found
        self.pending -= 1
        error = future.exception()
        if error is not None:
            return candidate, Outcome("crash", str(error)[:REASON_CHARS])
        return candidate, Outcome.from_json(future.result()["outcome"])

    def interrupt(self) -> None:
        """From any thread: whoever waits for a candidate, now or later, is interrupted once."""
        self._done.put(None)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        """What is still being compiled is left to the server: its answers go to nobody."""
