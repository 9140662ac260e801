"""What a call of an artifact's Python module costs the host, over a driver that does nothing: a
program, no test. Minima of batches, for machines that others use too.

PYTHONPATH=src:tests:tests/cpu python tests/aot_call_cost.py

docs/performance/aot.md has what it said.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import aot_module_process as process

import aot_c_cases as cases

BATCHES, CALLS = 400, 1000
REST = (1024, 1.5, 64, 4, 3, 16, 1, 1, 7)
NAMES = ("n", "alpha", "BLOCK", "num_warps", "num_stages", "grid_x", "grid_y", "grid_z", "stream")


def nanoseconds(call: Callable[..., Any], *args: Any, **named: Any) -> float:
    """The least that a call took, with what a loop and unpacking cost (about 15 ns)."""
    best = float("inf")
    for _ in range(BATCHES):
        start = time.perf_counter_ns()
        if named:
            for _ in range(CALLS):
                call(*args, **named)
        else:
            for _ in range(CALLS):
                call(*args)
        best = min(best, time.perf_counter_ns() - start)
    return best / CALLS


def measure(folder: Path) -> None:
    """In a process whose driver is the fake one."""
    import torch

    module = process.Module(folder / "pair", folder / "device_tensors.so")
    module.fake.fake_quiet(1)
    call = module.artifact.pair_add
    torch.Tensor.__dlpack_c_exchange_api__ = module.tensors.wrap(
        torch.Tensor.__dlpack_c_exchange_api__
    )
    mine = [torch.zeros(1024, dtype=torch.float16) for _ in range(3)]
    free = [module.tensor(0x1000 * (i + 1)) for i in range(3)]
    told = [("len('x')", nanoseconds(len, "x"))]
    told.append(("three tensors, free to read", nanoseconds(call, *free, *REST)))
    told.append(("three of torch", nanoseconds(call, *mine, *REST)))
    named = dict(zip(NAMES, REST, strict=True))
    told.append(("three of torch, the rest by name", nanoseconds(call, *mine, **named)))
    torch.Tensor._cdata = property(lambda self: 0)  # type: ignore[assignment] - a lie: not trusted
    shutil.copytree(folder / "pair", folder / "other")  # another library: looks at classes anew
    other = process.Module(folder / "other", folder / "device_tensors.so").artifact.pair_add
    module.fake.fake_quiet(1)
    told.append(("three of torch, by the exchange table", nanoseconds(other, *mine, *REST)))
    lines = [f"{cost:6.0f} ns  {what}\n" for what, cost in told]
    sys.stdout.write(f"torch {torch.__version__}, Python {sys.version.split()[0]}\n")
    sys.stdout.writelines(lines)


def main() -> None:
    """Builds an artifact, and measures it in a process of its own."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        process.build(folder / "pair", "pair", [cases.add_entry("pair_add")])
        process.compiled(folder / "pair", "pair", "-fno-lto")
        process.device_tensors(folder)
        cases.fake_driver(folder)
        paths = os.pathsep.join(filter(None, sys.path))
        environment = cases.child_environment(folder) | {"PYTHONPATH": paths}
        subprocess.run([sys.executable, __file__, str(folder)], env=environment, check=True)


if __name__ == "__main__":
    measure(Path(sys.argv[1])) if sys.argv[1:] else main()
