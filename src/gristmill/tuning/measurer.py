"""The tuner's side of the worker: requests, time-outs, and a new worker after a crash."""

from __future__ import annotations

import atexit
import os
import threading
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import torch
from typing_extensions import Self

from gristmill import settings
from gristmill.core.plan import Candidate, Outcome
from gristmill.core.problem import Problem
from gristmill.core.registry import implementation
from gristmill.errors import TuningError, WorkerLostError
from gristmill.measure.conditions import Conditions, Sightings
from gristmill.measure.isolation import Child, ChildDied, ChildTimedOut, our_paths
from gristmill.measure.memory import too_large
from gristmill.measure.roofline import Roofline
from gristmill.tuning.children import WORKER
from gristmill.tuning.timed import Effort
from gristmill.tuning.trial import candidate_to_json

COMPILED_TIMEOUT_FACTOR = (
    6.0  # Inductor builds C++ or many kernels; a Triton candidate comes compiled
)
RACE_TIMEOUT_S = 60.0  # on top, for a race: every finalist on every variant, then all the pairs
FIRST_TIMEOUT_S = 60.0  # on top, for the first request of a worker: inputs, references, CUDA start


_idle: dict[tuple[str, ...], Child] = {}
_lock = threading.Lock()


def _key(module: str, device: torch.device) -> tuple[str, ...]:
    """What a worker is good for: what it runs, a device, and the folders that it imports plug-ins
    from."""
    return (module, str(device), *our_paths())


def _take(key: tuple[str, ...]) -> Child:
    """The worker that the last run on this device left behind, or a new one."""
    with _lock:
        return _idle.pop(key, None) or Child(key[0])


def _leave(key: tuple[str, ...], child: Child) -> None:
    """Keep a worker for the next run (it goes by itself when none comes)."""
    with _lock:
        spare = _idle.get(key)
        _idle[key] = child
    if spare is not None:
        spare.stop()


def stop_workers() -> None:
    """End the workers that wait for another run."""
    with _lock:
        children = list(_idle.values())
        _idle.clear()
    for child in children:
        child.stop()


def _after_fork() -> None:
    """A fork has no workers: they are its parent's."""
    global _lock
    _lock = threading.Lock()
    stop_workers()


atexit.register(stop_workers)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


class Measurer:
    """Measures candidates of one problem in an isolated worker. Use as a context manager.

    A worker outlives its run for a minute: importing torch and Triton and starting CUDA takes
    seconds. One that has grown too large is replaced after its answer, so nothing is lost.
    """

    worker = WORKER

    def __init__(
        self,
        problem: Problem,
        device: torch.device,
        seed: int = 0,
        effort: Effort | None = None,
    ) -> None:
        """`effort` is how much timing a candidate gets, where it is not the usual."""
        self.problem, self.device, self.seed = problem, device, seed
        self._child = Child(self.worker)
        self._base = {"problem": problem.to_json(), "device": str(device), "seed": seed}
        self._base["threads"] = torch.get_num_threads()
        self._base["l2"] = settings.current().l2
        if effort is not None:
            self._base["effort"] = asdict(effort)
        self._served: Any = 0
        self._interrupted = self._killed = False
        self._sightings = Sightings()

    def measure(self, candidate: Candidate, best_us: float | None) -> Outcome:
        """The outcome of one candidate, whatever it does to the worker.

        Raises:
            TuningError: the problem itself cannot be measured (its reference raises).
        """
        request = {"do": "measure", "candidate": self.encode(candidate), "best_us": best_us}
        answer = self._ask(request, self._timeout_s([candidate]))
        return answer if isinstance(answer, Outcome) else Outcome.from_json(answer["outcome"])

    def race(self, candidates: Sequence[Candidate]) -> tuple[list[Outcome], list[dict[str, Any]]]:
        """Outcomes and samples of finalists timed in turns. A finalist that ruins the race is
        found, failed and left out."""
        alive = list(candidates)
        failed: dict[Candidate, Outcome] = {}
        for attempt in range(2):
            request = {"do": "race", "candidates": [self.encode(c) for c in alive]}
            answer = self._ask(request, self._timeout_s(alive) + RACE_TIMEOUT_S)
            if isinstance(answer, dict) and "outcomes" in answer:
                pairs = zip(answer["outcomes"], answer["samples"], strict=True)
                done = dict(zip(alive, pairs, strict=True))
                outcomes = [
                    failed[c] if c in failed else Outcome.from_json(done[c][0]) for c in candidates
                ]
                return outcomes, [{} if c in failed else done[c][1] for c in candidates]
            lost = answer if isinstance(answer, Outcome) else Outcome.from_json(answer["outcome"])
            if len(alive) == 1 or attempt:
                failed.update(dict.fromkeys(alive, lost))
                break
            # The race was lost with its worker, which does not say by whom: each alone, then what
            # is left together.
            for candidate in alive:
                outcome = self.race([candidate])[0][0]
                if not outcome.ok:
                    failed[candidate] = outcome
            alive = [c for c in alive if c not in failed]
            if not alive:
                break
        return [failed[c] for c in candidates], [{} for _ in candidates]

    def verify(self, candidates: Sequence[Candidate]) -> list[Outcome]:
        """Outcomes of candidates checked on every value variant, not timed."""
        request = {"do": "verify", "candidates": [self.encode(c) for c in candidates]}
        answer = self._ask(request, self._timeout_s(candidates) + RACE_TIMEOUT_S)
        if isinstance(answer, dict) and "outcomes" in answer:
            return [Outcome.from_json(o) for o in answer["outcomes"]]
        lost = answer if isinstance(answer, Outcome) else Outcome.from_json(answer["outcome"])
        return [lost for _ in candidates]

    def roofline(self) -> Roofline | None:
        """The least time of the problem under the device's ceilings, or `None` where its cost is
        not known, or the worker was lost in measuring them."""
        answer = self._ask({"do": "roofline"}, settings.current().candidate_timeout_s)
        if isinstance(answer, Outcome) or answer.get("roofline") is None:
            return None
        return Roofline(**answer["roofline"])

    def conditions(self) -> Conditions:
        """What the device was like so far."""
        return self._sightings.conditions()

    def encode(self, candidate: Candidate) -> dict[str, Any]:
        """A candidate as it crosses to the worker."""
        return candidate_to_json(candidate)

    def _timeout_s(self, candidates: Sequence[Candidate]) -> float:
        timeout = settings.current().candidate_timeout_s
        kinds = [implementation(self.problem.op, c.implementation).kind for c in candidates]
        return timeout * (COMPILED_TIMEOUT_FACTOR if "compiled" in kinds else 1.0)

    def _ask(self, request: dict[str, Any], timeout_s: float) -> dict[str, Any] | Outcome:
        """The worker's answer, or the outcome of what it did to the worker."""
        try:
            answer = self._answer(request, timeout_s)
        except ChildTimedOut as error:
            return Outcome("timeout", str(error))
        except ChildDied as error:
            if self._interrupted:
                self._interrupted = False
                raise KeyboardInterrupt from error
            return Outcome("crash", str(error))
        if "error" in answer:
            raise TuningError(f"{self.problem} cannot be tuned: {answer['error']}")
        self._sightings.add(answer.get("seen", {}))
        if answer.get("lost") or too_large(answer.get("grown", {})):
            self._child.stop()  # between trials: the next one starts another
        return answer

    def kill(self, for_good: bool = True) -> None:
        """End the worker, from any thread: whoever waits for its answer is interrupted. `for_good`:
        whoever asks it later too."""
        self._interrupted = True
        self._killed = self._killed or for_good
        self._child.kill()

    def _answer(self, request: dict[str, Any], timeout_s: float) -> dict[str, Any]:
        if self._killed:
            raise KeyboardInterrupt
        fresh = self._start()
        try:
            message = {**self._base, **request}
            return self._exchange(message, timeout_s + FIRST_TIMEOUT_S * fresh)
        except ChildDied as error:
            if not error.left:
                raise
        # It had waited long enough for another run and left as this one began: once more.
        self._start()
        return self._exchange({**self._base, **request}, timeout_s + FIRST_TIMEOUT_S)

    def _exchange(self, message: Mapping[str, Any], timeout_s: float) -> dict[str, Any]:
        """A question to the worker and its answer."""
        return self._child.ask(message, timeout_s)

    def _start(self) -> bool:
        """Start the worker where there is none, or a worker that has not served this run; whether
        so.

        Raises:
            WorkerLostError: it does not start.
        """
        try:
            self._child.start()
        except (ChildDied, ChildTimedOut) as error:
            raise WorkerLostError(
                f"the measuring worker does not start: {error}. Run `gristmill doctor`."
            ) from error
        fresh = self._child.started != self._served
        self._served = self._child.started
        return fresh

    def __enter__(self) -> Self:
        self._child = _take(_key(self.worker, self.device))
        return self

    def __exit__(self, kind: type[BaseException] | None, *exc: object) -> None:
        if kind is None and self._child.alive:
            _leave(_key(self.worker, self.device), self._child)
        else:  # an answer may be on its way to a question that nobody waits for
            self._child.stop()
