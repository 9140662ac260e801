"""Latency of calls with and without idle tuning going on in the background.

    python benchmarks/idle.py --out idle.json [--device cuda] [--op matmul] [--seconds 120]

A foreground serves requests: a burst of calls of one op, each waited for, then a pause. The same
requests run first with no tuning (`before`), then with `tune="idle"` until the problem has its plan
or the time is up (`during`), then with the plan (`after`). Reported are the percentiles of a call's
time, the first call of a burst apart from the others (it is the one that may meet a trial), and how
many calls were made while a trial ran that was kept: the log of the tuning process and the times of
the calls are of one clock.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

import gristmill as gm
from gristmill import settings, tuning
from gristmill.bench.results import write_json
from gristmill.bench.stamp import Stamp
from gristmill.ops import idle

BURST = 40  # calls of a request
SHAPES: dict[str, Callable[[torch.device], tuple[Any, ...]]] = {
    "matmul": lambda d: tuple(
        torch.randn(1024, 1024, device=d, dtype=torch.bfloat16) for _ in range(2)
    ),
    "rms_norm": lambda d: (torch.randn(512, 4096, device=d), torch.ones(4096, device=d)),
}

Calls = list[tuple[float, float, bool]]  # when (s, monotonic), how long (us), first of its burst


def serve(call: Callable[[], Any], device: torch.device, pause_s: float, until: float) -> Calls:
    """Serve requests until a time, or until told that it is enough."""
    done: Calls = []
    while time.monotonic() < until:
        for i in range(BURST):
            start = time.monotonic()
            call()
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            done.append((start, (time.monotonic() - start) * 1e6, i == 0))
        time.sleep(pause_s)
    return done


def percentiles(calls: Calls) -> dict[str, Any]:
    """The figures of one phase."""

    def of(times: Sequence[float], prefix: str = "") -> dict[str, float]:
        if not times:
            return {}
        p50, p99, p999 = np.percentile(times, [50, 99, 99.9])
        worst = float(max(times))
        figures = {"p50_us": float(p50), "p99_us": float(p99), "p999_us": float(p999)}
        return {f"{prefix}{k}": v for k, v in {**figures, "max_us": worst}.items()}

    return {
        "calls": len(calls),
        **of([us for _, us, _ in calls]),
        **of([us for _, us, first in calls if first], "first_"),
        **of([us for _, us, first in calls if not first], "later_"),
    }


def kept_trials(answers: Sequence[dict[str, Any]]) -> list[tuple[float, float]]:
    """When the worker ran a trial that was kept."""
    spans: list[tuple[float, float]] = []
    for answer in answers:
        began = 0.0
        for at, event in answer.get("log", ()):
            if event == "trial":
                began = at
            elif event == "kept":
                spans.append((began, at))
    return spans


def beside(calls: Calls, spans: Sequence[tuple[float, float]]) -> int:
    """How many calls ran while one of these did."""
    return sum(any(a < at + us / 1e6 and at < b for a, b in spans) for at, us, _ in calls)


def main() -> None:
    """Measure, and write the JSON."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--op", choices=sorted(SHAPES), default="matmul")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--seconds", type=float, default=120.0, help="at most, of idle tuning")
    parser.add_argument("--pause", type=float, default=1.5, help="seconds between two requests")
    parser.add_argument("--commit", help="as for `gristmill bench --commit`")
    options = parser.parse_args()
    device = torch.device(options.device)
    args = SHAPES[options.op](device)
    function = getattr(gm, options.op)

    def call() -> Any:
        return function(*args)

    settle = time.monotonic
    with settings.override(tune="never"):
        serve(call, device, 0.0, settle() + 1.0)
        before = serve(call, device, options.pause, settle() + 20.0)
    with settings.override(tune="idle", budget_s=options.seconds / 2):
        operator = gm.get_op(options.op, args)
        tuner = tuning.idle_tuner(idle._allowed)  # noqa: SLF001 - its log is what is shown
        during: Calls = []
        end = settle() + options.seconds
        while settle() < end and operator.plan.wants_tuning:
            during += serve(call, device, options.pause, settle() + 1.0)
        answers = list(tuner.answers)
        tuning.stop_idle_tuner()
    with settings.override(tune="never"):
        serve(call, device, 0.0, settle() + 1.0)
        after = serve(call, device, options.pause, settle() + 20.0)
    events = [event for answer in answers for _, event in answer.get("log", ())]
    found = {
        "stamp": Stamp.of(device, options.commit).to_json(),
        "op": options.op,
        "problem": str(operator.problem),
        "plan": {"choice": str(operator.plan.candidate), "origin": operator.plan.origin},
        "before": percentiles(before),
        "during": percentiles(during),
        "after": percentiles(after),
        # unknown where the tuning process was ended before it told
        "calls_beside_a_kept_trial": beside(during, kept_trials(answers)) if events else None,
        "events": {name: events.count(name) for name in sorted(set(events))},
        "answers": [{k: v for k, v in a.items() if k != "log"} for a in answers],
    }
    write_json(options.out, found)
    print(json.dumps({k: found[k] for k in ("plan", "before", "during", "after")}, indent=1))


if __name__ == "__main__":
    main()
