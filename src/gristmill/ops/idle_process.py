"""The process that tunes while another one is idle: run by `isolation.Child`, driven by
`tuning.background`. Its worker and its compile server are its own children, of its priority."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from gristmill import settings, tuning
from gristmill.core.problem import Problem
from gristmill.core.registry import load
from gristmill.measure.isolation import REASON_CHARS, connect
from gristmill.ops.tune import tune_wanted
from gristmill.tuning.gate import Gate, GaveWayError
from gristmill.tuning.yielding import idle_run


def answer(request: Mapping[str, Any]) -> dict[str, Any]:
    """Tune what is asked for. `tuned`: there are plans now; else `skipped` or `error` says why."""
    own = {k: Path(v) if k.endswith("_dir") else v for k, v in request["settings"].items()}
    gate = Gate(request["flag"])
    start = time.monotonic()
    said: dict[str, Any] = {"tuned": False}
    with settings.override(**own, tune="never", progress=False, compile_jobs=1):
        torch.set_num_threads(request["threads"])
        try:
            problem, device = Problem.from_json(request["problem"]), torch.device(request["device"])
            budget = tuning.Budget(request["budget_s"])
            said = tune_wanted(load(problem.op), problem, device, budget, idle_run(gate))
        except GaveWayError as error:
            said["skipped"] = str(error)
        except Exception as error:  # noqa: BLE001 - of an op or a candidate: nobody waits for it
            said["error"] = f"{type(error).__name__}: {error}"[:REASON_CHARS]
    spent_s = max(0.0, time.monotonic() - start - gate.waited_s)
    return {**said, "spent_s": spent_s, "waited_s": gate.waited_s, "log": gate.log}


def main() -> None:
    """Answer until the parent goes away."""
    lines = connect()
    lines.send({"ready": True})
    while (request := lines.receive(None)) is not None:
        lines.send({**answer(request), "id": request["id"]})


if __name__ == "__main__":
    main()
