"""`out = x * rsqrt(mean(x**2) + eps) * weight` with several rows per program.

A two-dimensional tile stays in registers between the sums and the product, so that short rows
(heads of 128, say) still fill whole programs with 16-byte accesses. Wins for many rows of up to
about 1,000 values.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import triton
import triton.language as tl

from gristmill.core.config import Config, Value
from gristmill.core.launch import Launch
from gristmill.core.problem import Problem, TensorSpec
from gristmill.core.registry import register
from gristmill.core.space import Space, choice, derive, flag, pow2, require, when
from gristmill.core.target import Target
from gristmill.kernels.device.row_tiles import RESIDENT, VALUES, WHOLE_ACCESSES, no_taller
from gristmill.kernels.device.rows import (
    collapse_rows,
    leading_arguments,
    row_offset,
    why_not_rows,
)
from gristmill.specs.rms_norm import OP, rows

MAX_VALUES_PER_THREAD = 64  # float32 registers that hold the tile; above, the compiler spills
MAX_WIDTH = 4096
MAX_TILED_ROWS = 2**31 - 2**15  # the end of the last tile and a step past it are int32


@triton.jit(do_not_specialize=["n_rows", "size_0", "size_1"])
def _rms_norm_fwd_tile_kernel(
    x_ptr, size_0, size_1, stride_0, stride_1, stride_2,
    w_ptr, out_ptr, n_rows, N, eps,
    LEADING: tl.constexpr, PERSISTENT: tl.constexpr, STAGES: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, EVICT: tl.constexpr, STREAM: tl.constexpr,
):  # fmt: skip
    eps = tl.cast(eps, tl.float32)
    cols = tl.arange(0, BLOCK_N)
    col_mask = cols < N
    if w_ptr is not None:
        w = tl.load(w_ptr + cols, mask=col_mask, other=0.0, eviction_policy="evict_last")
        w = w.to(tl.float32)
    first = tl.program_id(0)
    n_tiles = tl.cdiv(n_rows, BLOCK_M) if PERSISTENT else first + 1
    for tile in tl.range(first, n_tiles, tl.num_programs(0), num_stages=STAGES):
        row = tl.cast(tile, tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
        mask = (row < n_rows)[:, None] & col_mask[None, :]
        offset = row_offset(row, size_0, size_1, stride_0, stride_1, stride_2, LEADING)
        x = tl.load(
            x_ptr + offset[:, None] + cols[None, :], mask=mask, other=0.0, eviction_policy=EVICT
        ).to(tl.float32)
        rms = tl.rsqrt(tl.sum(x * x, axis=1) / N + eps)
        y = x * rms[:, None]
        if w_ptr is not None:
            y = y * w[None, :]
        out = out_ptr + (row * N)[:, None] + cols[None, :]
        tl.store(out, y.to(out_ptr.dtype.element_ty), mask=mask, cache_modifier=STREAM)


def _width(problem: Problem) -> int:
    return max(16, triton.next_power_of_2(problem["x"].shape[-1]))


SPACE = Space(
    pow2("BLOCK_M", 1, 128),
    pow2("num_warps", 1, 16),
    choice("EVICT", "", "evict_first"),
    choice("STREAM", "", ".cs"),
    flag("PERSISTENT"),
    when(lambda c, p, t: c["PERSISTENT"], choice("PROGRAMS_PER_SM", 1, 2, 4, 8, 16)),
    when(lambda c, p, t: c["PERSISTENT"], choice("STAGES", 1, 2, 3)),
    derive("BLOCK_N", lambda c, p, t: _width(p)),
    VALUES,
    derive("NUM_PROGRAMS", lambda c, p, t: c.get("PROGRAMS_PER_SM", 0) * t.num_sms),
    require(
        "a thread holds more than 64 values of the tile",
        lambda c, p, t: c["VALUES"] <= MAX_VALUES_PER_THREAD,
    ),
    WHOLE_ACCESSES,
    no_taller(rows),
    RESIDENT,
    require(
        "tiles in flight need more shared memory than there is",
        lambda c, p, t: (
            c.get("STAGES", 1) == 1
            or not t.is_gpu
            or c["STAGES"] * c["BLOCK_M"] * c["BLOCK_N"] * p["x"].itemsize * c["PROGRAMS_PER_SM"]
            <= t.shared_memory_bytes
        ),
    ),
)


def _prior(problem: Problem, target: Target) -> dict[str, Value]:
    """Tiles of 32 bytes a thread, with fewer warps where that keeps every processor busy."""
    n_rows, width, itemsize = max(1, rows(problem)), _width(problem), problem["x"].itemsize
    warps = 4
    while warps > 1 and warps * target.warp_size * 32 * target.num_sms > n_rows * width * itemsize:
        warps //= 2
    tile = warps * target.warp_size * 32 // itemsize
    block_m = max(1, tile // width)
    while block_m > 1 and block_m >= 2 * n_rows:
        block_m //= 2
    while block_m * width > MAX_VALUES_PER_THREAD * warps * target.warp_size:
        warps *= 2
    while warps > 1 and block_m * width * itemsize < 16 * warps * target.warp_size:
        warps //= 2
    return {
        "BLOCK_M": min(block_m, 128),
        "num_warps": warps,
        "EVICT": "",
        "STREAM": "",
        "PERSISTENT": False,
    }


def supports(problem: Problem, target: Target) -> str | None:
    del target
    width = problem["x"].shape[-1]
    if width > MAX_WIDTH:
        return f"rows of {width} values are wider than {MAX_WIDTH}"
    if rows(problem) > MAX_TILED_ROWS:
        return f"{rows(problem)} rows are more than {MAX_TILED_ROWS}"
    return why_not_rows(problem["x"])


def _launch(
    args: tuple[Any, ...],
    outputs: tuple[torch.Tensor, ...],
    workspace: tuple[torch.Tensor, ...],
    config: Config,
) -> tuple[Launch, ...]:
    del workspace
    x, weight, eps = args
    if x.numel() == 0:
        return ()
    spec = TensorSpec.of(x)
    n_rows, n = math.prod(x.shape[:-1]), x.shape[-1]
    n_tiles = triton.cdiv(n_rows, config["BLOCK_M"])
    return (
        Launch(
            kernel=_rms_norm_fwd_tile_kernel,
            grid=(min(n_tiles, config["NUM_PROGRAMS"] or n_tiles),),
            args=(x, *leading_arguments(spec), weight, outputs[0], n_rows, n, float(eps)),
            constexprs={
                "LEADING": len(collapse_rows(spec)),
                "PERSISTENT": config["PERSISTENT"],
                "STAGES": config.get("STAGES", 1),
                "BLOCK_M": config["BLOCK_M"],
                "BLOCK_N": config["BLOCK_N"],
                "EVICT": config["EVICT"],
                "STREAM": config["STREAM"],
            },
            options={"num_warps": config["num_warps"]},
        ),
    )


rms_norm = register(OP, "multi_row", _launch, space=SPACE, prior=_prior, supports=supports)
