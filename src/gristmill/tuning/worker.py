"""The process that runs candidates, one for each device: `python -m gristmill.tuning.worker FD`,
driven by `measurer`."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import torch

from gristmill.core.plan import Outcome
from gristmill.core.problem import Problem
from gristmill.errors import GristmillError
from gristmill.measure.isolation import connect
from gristmill.tuning.trial import ContextLost, Trials, candidate_from_json


class Session:
    """The trials of the problem at hand; another problem drops them."""

    def __init__(self) -> None:
        self._key: Any = None
        self._trials: Trials | None = None

    def trials(self, request: Mapping[str, Any]) -> Trials:
        key = (request["problem"], request["device"], request["seed"])
        if self._trials is None or key != self._key:
            self._trials = None  # free the old problem's tensors first
            device = torch.device(request["device"])
            if device.type == "cuda":
                torch.cuda.empty_cache()
                torch.cuda.set_device(device)
            self._trials = Trials(Problem.from_json(request["problem"]), device, request["seed"])
            self._key = key
        return self._trials

    def answer(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """One request's answer; `error` where the request itself cannot be served (a reference that
        raises)."""
        try:
            trials = self.trials(request)
            if request["do"] == "measure":
                outcome = trials.measure(
                    candidate_from_json(request["candidate"]), request["best_us"]
                )
                return {"outcome": outcome.to_json()}
            outcomes, samples = trials.race([candidate_from_json(c) for c in request["candidates"]])
            return {"outcomes": [o.to_json() for o in outcomes], "samples": samples}
        except GristmillError as error:
            return {"error": str(error)}


def main() -> None:
    """Answer until the parent goes away, or until a candidate has ruined the device context."""
    lines = connect()
    session = Session()
    lines.send({"ready": True})
    while (request := lines.receive(None)) is not None:
        if "threads" in request:
            torch.set_num_threads(request["threads"])
        try:
            lines.send(session.answer(request))
        except ContextLost as lost:
            lines.send({"outcome": Outcome("crash", str(lost)).to_json(), "lost": True})
            os._exit(1)  # tearing a poisoned CUDA context down in order can hang


if __name__ == "__main__":
    main()
