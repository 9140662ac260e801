"""compute-sanitizer over every Triton kernel of ours: memcheck, racecheck, initcheck, on problems
that no tile divides.

    python benchmarks/sanitize.py --out "$OUT" [--only matmul/tiled ...] [--tools memcheck]

Each tool watches one process that runs every kernel, each allocation by itself, so that a read past
the end of a tensor is one outside of memory. Writes `sanitizer.json`. Without the tool, or where
the machine's runtime does not let it see the device, says so and ends with 3.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

from gristmill.bench.stamp import Stamp
from gristmill.core import registry
from gristmill.core.implementation import Implementation
from gristmill.core.problem import Problem
from gristmill.core.target import Target, device_target
from gristmill.testing import Case, configs, fitted, judge

TOOLS = ("memcheck", "racecheck", "initcheck")
SIZES = (37, 131, 101, 3)  # by axis, in order
CONFIGS = 2  # of the space, beside the prior
UNAVAILABLE = 3
SUMMARY = re.compile(r"(?:ERROR|RACECHECK) SUMMARY: (\d+)")


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, help="folder for sanitizer.json")
    parser.add_argument("--only", nargs="+", help="implementations, as op/name")
    parser.add_argument("--tools", nargs="+", default=TOOLS, choices=TOOLS)
    parser.add_argument("--timeout", type=float, default=240.0, help="seconds a tool")
    parser.add_argument("--commit")
    parser.add_argument("--run", action="store_true", help="run the kernels here, with no tool")
    arguments = parser.parse_args()
    wanted = [i for i in triton() if not arguments.only or i.id in arguments.only]
    if arguments.run:
        return run(wanted)
    tool = shutil.which("compute-sanitizer") or "/usr/local/cuda/bin/compute-sanitizer"
    if not Path(tool).exists():
        print("compute-sanitizer is not on this machine")
        return UNAVAILABLE
    found = {name: watched(tool, name, wanted, arguments.timeout) for name in arguments.tools}
    for name, result in found.items():
        print(f"{name}: {result['verdict']}")
    if arguments.out is not None:
        arguments.out.mkdir(parents=True, exist_ok=True)
        stamp = Stamp.of(torch.device("cuda", 0), arguments.commit).to_json()
        data = {"stamp": stamp, "implementations": [i.id for i in wanted], "tools": found}
        (arguments.out / "sanitizer.json").write_text(json.dumps(data, indent=1) + "\n")
    if any(result["verdict"] == "unavailable" for result in found.values()):
        return UNAVAILABLE
    return 0 if all(result["verdict"] == "clean" for result in found.values()) else 1


def triton() -> list[Implementation]:
    names = [name for name in registry.op_names() if name != "twice"]
    return [i for op in names for i in registry.implementations(op) if i.kind == "triton"]


def watched(
    tool: str, name: str, implementations: list[Implementation], timeout: float
) -> dict[str, Any]:
    """What a tool says of one process that runs these: `clean`, `errors`, `failed` or
    `unavailable`, with the end of its output."""
    command = [tool, "--tool", name, "--error-exitcode", "9", sys.executable, __file__, "--run"]
    command += ["--only", *(i.id for i in implementations)]
    variables = {**os.environ, "PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    try:
        done = subprocess.run(
            command, env=variables, capture_output=True, text=True, timeout=timeout, check=False
        )
    except subprocess.TimeoutExpired:
        return {"verdict": "failed", "output": f"no end within {timeout:.0f} s"}
    output = done.stdout + done.stderr
    counts = [int(count) for count in SUMMARY.findall(output)]
    if "Device not supported" in output or "not supported on this" in output:
        verdict = "unavailable"
    elif done.returncode == 9 or sum(counts):
        verdict = "errors"
    else:
        verdict = "clean" if done.returncode == 0 and counts else "failed"
    return {"verdict": verdict, "errors": sum(counts), "output": output[-4000:]}


def run(implementations: list[Implementation]) -> int:
    """Every kernel on its problems, each judged as the conformance suite does."""
    device = torch.device("cuda", 0)
    target = device_target(device)
    wrong = 0
    for implementation in implementations:
        for problem in problems(implementation, target):
            for config in (None, *configs(implementation, problem, target, CONFIGS)):
                verdict = judge(Case(implementation, problem, "normal", config), device)
                wrong += not verdict.ok
                if not verdict.ok:
                    print(f"{implementation.id} {problem} {config}: {verdict.reason}")
    return 1 if wrong else 0


def problems(implementation: Implementation, target: Target) -> list[Problem]:
    """What no tile divides, in every form that the implementation takes; else what it takes."""
    op = implementation.op
    assert op.sized is not None
    axes = op.axis_names
    found = []
    for sizes in (SIZES, (64, 128, 96, 2)):
        chosen = dict(zip(axes, sizes, strict=False))
        base = op.sized(fitted(implementation, chosen, "bfloat16", target), "bfloat16")
        found += [base, *op.forms(base).values()]
    return [p for p in found if implementation.why_not(p, target) is None]


if __name__ == "__main__":
    sys.exit(main())
