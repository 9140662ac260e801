"""The process that runs candidates of users' kernels, one for each device: the worker of `tuning`
with other trials."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import triton

from gristmill.core.plan import Candidate
from gristmill.tuners.arguments import Arguments, copies_of
from gristmill.tuners.travel import unpack
from gristmill.tuners.trial import Call, KernelTrials, Terms, load_truth
from gristmill.tuning.timed import Effort
from gristmill.tuning.trial import candidate_from_json
from gristmill.tuning.worker import Attempts, Session, serve

TASK = "task.json"


def _workspace(size: int, alignment: int, stream: int | None) -> torch.Tensor:
    """Memory that a kernel asks for at its launch: descriptors made on the device."""
    del alignment, stream  # the allocator's blocks are on 512 bytes, and of the current stream
    return torch.empty(size, dtype=torch.int8, device="cuda")


class KernelSession(Session):
    """Trials of the kernel and the values that lie in the request's folder."""

    def make(self, request: Mapping[str, Any], device: torch.device) -> Attempts:
        """Read the task; its memory goes to the device that it came from."""
        triton.set_allocator(_workspace)  # a user's own does not travel
        folder = Path(request["folder"])
        task = json.loads((folder / TASK).read_text())
        return KernelTrials(
            unpack(task["function"], folder),
            copies_of(Arguments.load(folder, task["arguments"]), owned=True),
            load_truth(folder, task["truth"]),
            Terms.from_json(task["terms"]),
            device,
            Effort.from_json(task["effort"]),
            folder,
        )

    def candidate(self, trials: Attempts, data: Mapping[str, Any]) -> Candidate:
        """A candidate, and how it is called."""
        assert isinstance(trials, KernelTrials)
        candidate = candidate_from_json(data)
        trials.calls[candidate] = Call.from_json(data["call"])
        return candidate


if __name__ == "__main__":
    serve(KernelSession())
