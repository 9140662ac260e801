"""A softmax of your own: `@gristmill.autotune` in place of `@triton.autotune`, with a reference.

python examples/autotune_softmax.py                       # on a GPU
TRITON_INTERPRET=1 python examples/autotune_softmax.py    # in Triton's interpreter, smaller
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

import gristmill as gm

CONFIGS = [
    triton.Config({"ROWS": rows}, num_warps=warps) for rows in (1, 2, 4) for warps in (2, 4, 8)
]


@gm.autotune(
    configs=CONFIGS,
    key=["n_cols"],
    reference=lambda x_ptr: {"y_ptr": torch.softmax(x_ptr, dim=-1)},  # in float64
)
@triton.heuristics({"BLOCK": lambda args: triton.next_power_of_2(args["n_cols"])})
@triton.jit
def softmax_kernel(x_ptr, y_ptr, n_rows, n_cols, stride, ROWS: tl.constexpr, BLOCK: tl.constexpr):
    rows = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    cols = tl.arange(0, BLOCK)
    mask = (rows < n_rows)[:, None] & (cols < n_cols)[None, :]
    offsets = rows[:, None] * stride + cols[None, :]
    x = tl.load(x_ptr + offsets, mask=mask, other=float("-inf")).to(tl.float32)
    top = tl.max(x, axis=1)[:, None]
    top = tl.where(top == float("-inf"), 0.0, top)  # rows past the end
    numerator = tl.exp(x - top)
    total = tl.sum(numerator, axis=1)[:, None]
    y = numerator / tl.where(total == 0.0, 1.0, total)
    tl.store(y_ptr + offsets, y.to(y_ptr.dtype.element_ty), mask=mask)


def softmax(x: torch.Tensor) -> torch.Tensor:
    """`softmax(x)` along the last dimension of a contiguous matrix."""
    y = torch.empty_like(x)
    n_rows, n_cols = x.shape

    def grid(meta):
        return (triton.cdiv(n_rows, meta["ROWS"]),)

    softmax_kernel[grid](x, y, n_rows, n_cols, x.stride(0))
    return y


def main() -> None:
    """Tune for two widths, and show what was chosen and why."""
    on_gpu = torch.cuda.is_available()
    device, rows = ("cuda", 4096) if on_gpu else ("cpu", 8)
    for cols in (781, 4096) if on_gpu else (37, 64):
        x = torch.randn(rows, cols, device=device)
        torch.testing.assert_close(softmax(x), torch.softmax(x, dim=-1))
        print(f"{rows} x {cols}: {softmax_kernel.best_config}")
        print(f"    {softmax_kernel.best_plan.reason}")


if __name__ == "__main__":
    main()
