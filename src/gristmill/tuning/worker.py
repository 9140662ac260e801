"""The process that runs candidates, one for each device: run by `isolation.Child`, driven by
`measurer`."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any, Protocol

import torch

from gristmill import settings
from gristmill.core.plan import Candidate, Outcome
from gristmill.core.problem import Problem
from gristmill.errors import GristmillError
from gristmill.measure.conditions import Watch
from gristmill.measure.isolation import REASON_CHARS, Lines, connect, die_with_parent
from gristmill.measure.memory import Growth
from gristmill.tuning.describe import describe
from gristmill.tuning.timed import ContextLost, Effort, Samples
from gristmill.tuning.trial import Trials, candidate_from_json

RELEASE_AFTER_S = 5.0
LEAVE_AFTER_S = 60.0
IDENTITY = ("problem", "device", "seed", "effort", "l2")  # of trials, in a request


class Attempts(Protocol):
    """Tries candidates: `Trials`, and what other rooms try in workers of theirs."""

    watch: Watch

    def measure(self, candidate: Candidate, best_us: float | None) -> Outcome: ...

    def verify(self, candidates: Sequence[Candidate]) -> list[Outcome]: ...

    def race(self, candidates: Sequence[Candidate]) -> tuple[list[Outcome], list[Samples]]: ...


class Session:
    """The trials of the problem at hand; another problem drops them."""

    def __init__(self) -> None:
        self._key: Any = None
        self._trials: Attempts | None = None

    def make(self, request: Mapping[str, Any], device: torch.device) -> Attempts:
        """The trials that a request is about."""
        effort = Effort.from_json(request["effort"]) if request.get("effort") else None
        return Trials(Problem.from_json(request["problem"]), device, request["seed"], effort)

    def candidate(self, trials: Attempts, data: Mapping[str, Any]) -> Candidate:
        """A candidate as it crossed."""
        del trials
        return candidate_from_json(data)

    def trials(self, request: Mapping[str, Any]) -> Attempts:
        """The trials at hand where the request is about the same problem, else new ones."""
        key = tuple(request.get(name) for name in IDENTITY)
        if self._trials is None or key != self._key:
            self.release()  # the old problem's tensors first
            device = torch.device(request["device"])
            if device.type == "cuda":
                torch.cuda.set_device(device)
            self._trials = self.make(request, device)
            self._key = key
        return self._trials

    @property
    def at_hand(self) -> Attempts | None:
        """The trials that the last request was about."""
        return self._trials

    def release(self) -> None:
        """Free what the trials hold on the device."""
        self._trials = self._key = None
        if torch.cuda.is_initialized():
            torch.cuda.empty_cache()

    def answer(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """One request's answer; `error` where the request itself cannot be served (a reference that
        raises, no memory for the arguments)."""
        try:
            if request["do"] == "describe":
                return {"facts": describe(torch.device(request["device"]), request["ops"])}
            trials = self.trials(request)
            return {**self._tried(trials, request), "seen": trials.watch.drain()}
        except ContextLost:
            raise
        except Exception as error:  # what fails before a candidate is reached is nobody's row
            self.release()
            named = isinstance(error, GristmillError)
            text = str(error) if named else f"{type(error).__name__}: {error}"
            return {"error": text[:REASON_CHARS]}

    def _tried(self, trials: Attempts, request: Mapping[str, Any]) -> dict[str, Any]:
        """What was asked for."""
        if request["do"] == "roofline":
            known = isinstance(trials, Trials)  # what anything else computes is not known
            return {"roofline": asdict(trials.roofline()) if known else None}
        if request["do"] == "measure":
            candidate = self.candidate(trials, request["candidate"])
            return {"outcome": trials.measure(candidate, request["best_us"]).to_json()}
        candidates = [self.candidate(trials, c) for c in request["candidates"]]
        if request["do"] == "verify":
            return {"outcomes": [o.to_json() for o in trials.verify(candidates)]}
        outcomes, samples = trials.race(candidates)
        return {"outcomes": [o.to_json() for o in outcomes], "samples": samples}


def serve(session: Session) -> None:
    """Answer until the parent goes away, nobody asks any more, or a candidate has ruined the device
    context."""
    lines = connect()
    lines.send({"ready": True})
    growth = Growth()
    while (request := _next(lines, session)) is not None:
        torch.set_num_threads(request["threads"])
        if request.get("stopped_at_times"):
            die_with_parent()
        try:
            with settings.override(l2=request["l2"]):
                answer = session.answer(request)
        except ContextLost as lost:
            answer = {"outcome": Outcome("crash", str(lost)).to_json(), "lost": True}
        grown = growth.since(session.at_hand)
        lines.send({**answer, "grown": grown, "id": request["id"]})
        if answer.get("lost"):
            os._exit(1)  # tearing a poisoned CUDA context down in order can hang


def _next(lines: Lines, session: Session) -> dict[str, Any] | None:
    """The next request; gives the device's memory back while waiting long, and up at the end."""
    try:
        return lines.receive(RELEASE_AFTER_S)
    except TimeoutError:
        session.release()
    try:
        return lines.receive(LEAVE_AFTER_S)
    except TimeoutError:
        return None


if __name__ == "__main__":
    serve(Session())
