"""What a process pays before its first call: `import gristmill`, and a `get_op` that has a plan."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass

import torch

from gristmill import settings
from gristmill.bench.kept_plan import kept_plan
from gristmill.bench.tree import PACKAGE
from gristmill.core.registry import load
from gristmill.measure.isolation import our_paths
from gristmill.measure.statistics import median

PROCESSES = 10
TIMEOUT_S = 120.0

_IMPORT = """
import time, torch
start = time.perf_counter()
import gristmill
print((time.perf_counter() - start) * 1e3)
"""

_GET_OP = """
import json, sys, time, torch, triton
rows, width, device = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
x = torch.randn(rows, width, device=device, dtype=torch.bfloat16)
weight = torch.randn(width, device=device, dtype=torch.bfloat16)
if x.is_cuda:
    triton.runtime.driver.active.get_current_device()
    torch.cuda.synchronize()
start = time.perf_counter()
import gristmill as gm
op = gm.get_op("rms_norm", (x, weight), tune="never")
got = time.perf_counter()
op(x, weight)
called = time.perf_counter()
print(json.dumps([(got - start) * 1e3, (called - got) * 1e3, op.implementation, op.plan.origin]))
"""


@dataclass(frozen=True, slots=True)
class CachedGetOp:
    """A `get_op` of rms_norm in new processes (ms, medians).

    Attributes:
        get_op_ms: `import gristmill` and `get_op`, after importing torch and triton and starting
            the device.
        first_call_ms: the first call after it.
        implementation, origin: what `get_op` chose, and whether from the store (`tuned`).
    """

    rows: int
    width: int
    processes: int
    get_op_ms: float
    first_call_ms: float
    implementation: str
    origin: str


def import_ms(processes: int = PROCESSES) -> float:
    """`import gristmill` after `import torch`: the median over new processes."""
    return median([float(_run(_IMPORT)) for _ in range(processes)])


def cached_get_op(
    device: torch.device, rows: int, width: int, processes: int = PROCESSES
) -> CachedGetOp:
    """`get_op` of rms_norm on `(rows, width)` bfloat16, whose plan is in the store: a Triton kernel
    on a GPU, `aten` elsewhere."""
    op = load("rms_norm")
    assert op.sized is not None
    problem = op.sized({"rows": rows, "N": width}, "bfloat16")
    with kept_plan(problem, "row" if device.type == "cuda" else "aten", device):
        arguments = (str(rows), str(width), str(device))
        _run(_GET_OP, *arguments)  # fills the compilers' disk caches
        answers = [json.loads(_run(_GET_OP, *arguments)) for _ in range(processes)]
    get_op_ms, first_call_ms = (median([a[i] for a in answers]) for i in range(2))
    return CachedGetOp(rows, width, processes, get_op_ms, first_call_ms, *answers[0][2:])


def _run(code: str, *arguments: str) -> str:
    environment = settings.child_environment(
        PYTHONPATH=os.pathsep.join([str(PACKAGE.parent), *our_paths()]),
        GRISTMILL_CACHE_DIR=str(settings.current().cache_dir),
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        env=environment,
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(
            f"a start-up process ended with {done.returncode}: {done.stderr.strip()[-300:]}"
        )
    return done.stdout.strip().splitlines()[-1]
