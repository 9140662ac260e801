"""A matmul of your own: a declared space in `@gristmill.autotune`, then `TritonAutoTuner` over it.

python examples/autotune_matmul.py                       # on a GPU
TRITON_INTERPRET=1 python examples/autotune_matmul.py    # in Triton's interpreter, smaller
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

import gristmill as gm
from gristmill.core.space import Space, choice, pow2, require

ON_GPU = torch.cuda.is_available()
LARGEST = 256 if ON_GPU else 32

SPACE = Space(
    pow2("BLOCK_M", 16, LARGEST),
    pow2("BLOCK_N", 16, LARGEST),
    pow2("BLOCK_K", 16, 64 if ON_GPU else 16),
    choice("num_warps", 4, 8),
    choice("num_stages", 2, 3, 4) if ON_GPU else choice("num_stages", 2),
    require(
        "a thread holds more than 128 values of the tile",
        lambda c, p, t: c["BLOCK_M"] * c["BLOCK_N"] <= 128 * 32 * c["num_warps"],
    ),
    require(
        "the stages need more shared memory than there is",
        lambda c, p, t: (
            not t.is_gpu
            or 2 * c["num_stages"] * c["BLOCK_K"] * (c["BLOCK_M"] + c["BLOCK_N"])
            <= t.shared_memory_bytes
        ),
    ),
    require("a tile is wider than the matrix", lambda c, p, t: c["BLOCK_N"] <= max(16, p["N"])),
)


@triton.jit
def matmul_kernel(
    a_ptr, b_ptr, c_ptr, M, N, K, stride_am, stride_bk, stride_cm,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    rows = tl.program_id(0).to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    cols = tl.program_id(1).to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    acc = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
    for start in range(0, K, BLOCK_K):
        depth = start + tl.arange(0, BLOCK_K)
        a_mask = (rows < M)[:, None] & (depth < K)[None, :]
        b_mask = (depth < K)[:, None] & (cols < N)[None, :]
        a = tl.load(a_ptr + rows[:, None] * stride_am + depth[None, :], mask=a_mask, other=0.0)
        b = tl.load(b_ptr + depth[:, None] * stride_bk + cols[None, :], mask=b_mask, other=0.0)
        acc = tl.dot(a, b, acc)
    c_mask = (rows < M)[:, None] & (cols < N)[None, :]
    c = acc.to(c_ptr.dtype.element_ty)
    tl.store(c_ptr + rows[:, None] * stride_cm + cols[None, :], c, mask=c_mask)


tuned_matmul_kernel = gm.autotune(
    space=SPACE,
    key=["M", "N", "K"],
    reference=lambda a_ptr, b_ptr: {"c_ptr": a_ptr @ b_ptr},  # in float64
    budget_s=30.0,
    trials=None if ON_GPU else 4,
)(matmul_kernel)


def grid(meta):
    """One program a tile."""
    return (triton.cdiv(meta["M"], meta["BLOCK_M"]), triton.cdiv(meta["N"], meta["BLOCK_N"]))


def matmul(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """`a @ b` of contiguous matrices."""
    c = torch.empty(a.shape[0], b.shape[1], device=a.device, dtype=a.dtype)
    sizes, strides = (*a.shape[:1], b.shape[1], a.shape[1]), (a.stride(0), b.stride(0), c.stride(0))
    tuned_matmul_kernel[grid](a, b, c, *sizes, *strides)
    return c


def main() -> None:
    """Tune the decorated kernel, then measure some configs by name."""
    device, dtype, size = ("cuda", torch.float16, 4096) if ON_GPU else ("cpu", torch.float32, 48)
    a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    torch.testing.assert_close(matmul(a, b), a @ b, rtol=1e-2, atol=1e-2 * size**0.5)
    print(f"autotune: {tuned_matmul_kernel.best_config}")
    print(f"    {tuned_matmul_kernel.best_plan.reason}")

    tuner = gm.TritonAutoTuner(
        matmul_kernel,
        {"BLOCK_M": [16, LARGEST], "BLOCK_N": [LARGEST // 2], "BLOCK_K": [16]},
        warmup_runs=1,
        benchmark_runs=100 if ON_GPU else 3,
        grid=grid,
        flops=lambda n: 2 * n**3,
        size_bytes=lambda n: 3 * n * n * dtype.itemsize,
        reference=lambda a_ptr, b_ptr: {"c_ptr": a_ptr @ b_ptr},
    )
    strides = (a.stride(0), b.stride(0), size)
    result = tuner.tune(a, b, torch.empty_like(a), size, size, size, *strides, problem_size=size)
    print(f"TritonAutoTuner: {result.best_config}, {result.metrics.latency_ms:.3f} ms,")
    print(f"    {result.metrics.throughput_tflops:.3g} TFLOP/s; {len(result.results)} configs:")
    for row in result.results:
        time = "-" if row.latency_ms is None else f"{row.latency_ms:.3f} ms"
        print(f"    {row.config}: {row.status} {time} {row.reason}")


if __name__ == "__main__":
    main()
