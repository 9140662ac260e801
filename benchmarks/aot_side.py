"""One side of a comparison: the results of an example's cases, by their digests, from the JIT or
from an artifact in a process where importing Triton raises; and what a call costs.

    python benchmarks/aot_side.py vector_add jit|artifact FOLDER
    python benchmarks/aot_side.py vector_add times FOLDER         # both, in turns
    python benchmarks/aot_side.py pair calls FOLDER TENSORS       # over a driver that does nothing
"""

from __future__ import annotations

import hashlib
import itertools
import json
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

EXAMPLES = Path(__file__).parents[1] / "examples" / "aot"
BATCHES, CALLS = 41, 1000


def main() -> int:
    example, side, folder, *more = sys.argv[1:]
    if side == "artifact":
        sys.modules["triton"] = None  # type: ignore[assignment] - importing it raises from here on
    sys.path.insert(0, str(EXAMPLES / example))
    found = {"times": times, "calls": calls}.get(side)
    print(json.dumps(digests(example, side, folder) if found is None else found(folder, *more)))
    return 0


def digests(example: str, side: str, folder: str) -> list[str]:
    """Of each case's result."""
    import torch

    launch = {"vector_add": _vector_add, "matmul": _matmul}[example]
    run = launch(folder if side == "artifact" else None)
    found = []
    for case in CASES[example]():
        generator = torch.Generator("cuda").manual_seed(len(found))
        output = run(case, generator)
        found.append(hashlib.sha256(output.view(torch.uint8).cpu().numpy().tobytes()).hexdigest())
    return found


CASES: dict[str, Callable[[], Iterator[Any]]] = {
    "vector_add": lambda: itertools.product(
        ("float16", "bfloat16", "float32"), (1, 127, 1024, 100_003), (0, 1), (128, 1024)
    ),
    # M, N, K and what each row is longer by: patterns of alignment.
    "matmul": lambda: itertools.product((64, 200), (128, 77), (256, 100), (0, 1, 16)),
}


def _vector_add(folder: str | None) -> Callable[[Any, Any], Any]:
    import torch

    kernel = _kernel("add_kernel", folder)

    def run(case: tuple[str, int, int, int], generator: Any) -> Any:
        dtype, n, offset, block = case
        x, y = torch.randn(2, n + 16, device="cuda", generator=generator).to(getattr(torch, dtype))
        out = torch.zeros(n, dtype=x.dtype, device="cuda")
        kernel((-(-n // block), 1, 1), (x[offset:], y[offset:], out, n, block), 4, 3)
        return out

    return run


def _matmul(folder: str | None) -> Callable[[Any, Any], Any]:
    import torch

    kernel = _kernel("matmul_kernel", folder)

    def run(case: tuple[int, int, int, int], generator: Any) -> Any:
        m, n, k, gap = case
        a, b = (
            torch.randn(rows, columns + gap, device="cuda", generator=generator).half()[:, :columns]
            for rows, columns in ((m, k), (k, n))
        )
        c = torch.zeros(m, n, dtype=torch.float16, device="cuda")
        strides = (*a.stride(), *b.stride(), *c.stride())
        grid = (-(-m // 64) * -(-n // 64), 1, 1)
        kernel(grid, (a, b, c, m, n, k, *strides, 64, 64, 32, 8), 4, 3)
        return c

    return run


def _kernel(name: str, folder: str | None) -> Callable[..., None]:
    """`(grid, arguments, num_warps, num_stages)`: a launch, by the JIT or by an artifact."""
    if folder is not None:
        from gristmill import aot

        function = aot.load(folder)[name]
        return lambda grid, args, warps, stages: function(*args, warps, stages, *grid)
    import kernel as module  # type: ignore[import]

    jitted = getattr(module, name)

    def launch(grid: Any, args: Any, warps: int, stages: int) -> None:
        jitted[grid](*args, num_warps=warps, num_stages=stages, enable_fp_fusion=True)

    return launch


def times(folder: str) -> dict[str, list[float]]:
    """Microseconds of the host for a launch from Python: batches that take turns."""
    import torch
    from kernel import add_kernel  # type: ignore[import]

    from gristmill import aot

    function = aot.load(folder).add_kernel
    x, y = torch.randn(2, 1024, device="cuda")
    out = torch.empty_like(x)

    def artifact() -> None:
        function(x, y, out, 1024, 128, 4, 3, 8, 1, 1)

    def jit() -> None:
        add_kernel[(8,)](x, y, out, 1024, BLOCK_SIZE=128)

    taken: dict[str, list[float]] = {"artifact_us": [], "jit_us": []}
    for call in (artifact, jit):
        call()
    for _ in range(BATCHES):
        for key, call in zip(taken, (artifact, jit), strict=True):
            torch.cuda.synchronize()
            start = time.perf_counter()
            for _ in range(CALLS):
                call()
            taken[key].append((time.perf_counter() - start) * 1e6 / CALLS)
    torch.cuda.synchronize()
    return taken


def calls(folder: str, tensors: str) -> list[float]:
    """Nanoseconds of a call through the Python module, over a driver that does nothing and tensors
    that are free to read."""
    import ctypes

    from gristmill import aot
    from gristmill.native.building import loaded

    ctypes.CDLL("libcuda.so.1").fake_quiet(1)
    tensor = loaded("device_tensors", Path(tensors)).Tensor(0x1000)
    call = aot.load(folder).pair_add
    arguments = (tensor, tensor, tensor, 64, 1.0, 64, 4, 3, 1, 1, 1, 0)
    call(*arguments)
    taken = []
    for _ in range(BATCHES):
        start = time.perf_counter_ns()
        for _ in range(CALLS):
            call(*arguments)
        taken.append((time.perf_counter_ns() - start) / CALLS)
    return taken


if __name__ == "__main__":
    sys.exit(main())
