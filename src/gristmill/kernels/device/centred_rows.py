"""Rows less their mean, over their standard deviation, scaled and shifted: `layer_norm`, and
`add_layer_norm`, which adds another tensor first.

A tile stays in registers from its one read to its one write, through the mean, the variance and
the result (`moments.py`); rows wider than that are read twice, in chunks, the second time from L2
where it has them, and each lane keeps a mean and a variance of its own until the row ends.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
import triton
import triton.language as tl

from gristmill.core.config import Config, Value
from gristmill.core.launch import Launch
from gristmill.core.problem import Problem, TensorSpec
from gristmill.core.space import Space, choice, derive, pow2, require, when
from gristmill.core.target import Target
from gristmill.kernels.device.moments import lane_moments, row_moments, welford
from gristmill.kernels.device.row_blocks import one_block
from gristmill.kernels.device.row_tiles import RESIDENT, VALUES, WHOLE_ACCESSES, no_taller
from gristmill.kernels.device.rows import (
    collapse_rows,
    leading_arguments,
    offset_in,
    why_not_rows,
)
from gristmill.specs.rms_norm import rows

MAX_BLOCK = 16_384  # values of a row held at once; above, weight and bias leave no registers
CHUNK = 8192  # values of a wider row, of which each lane keeps two numbers
MAX_WIDTH = 128 * CHUNK


@triton.jit
def _load(ptr, cols, mask):
    """A weight or bias, in its own dtype."""
    return tl.load(ptr + cols, mask=mask, other=0.0, eviction_policy="evict_last")


@triton.jit
def _affine(y, w, b):
    if w is not None:
        y = y * w[None, :].to(tl.float32)
    if b is not None:
        y = y + b[None, :].to(tl.float32)
    return y


@triton.jit
def _added(x_ptr, r_ptr, sum_ptr, mask, EVICT: tl.constexpr, STREAM: tl.constexpr):
    """A tile of `x` in float32; with an `r`, of their sum, rounded as it is kept."""
    x = tl.load(x_ptr, mask=mask, other=0.0, eviction_policy=EVICT)
    if r_ptr is not None:
        r = tl.load(r_ptr, mask=mask, other=0.0, eviction_policy=EVICT)
        x = (x.to(tl.float32) + r.to(tl.float32)).to(sum_ptr.dtype.element_ty)
        tl.store(sum_ptr, x, mask=mask, cache_modifier=STREAM)
    return x.to(tl.float32)


@triton.jit
def _whole_rows(
    x_ptr, r_ptr, sum_ptr, w, b, out_ptr, mask, N, eps, EVICT: tl.constexpr, STREAM: tl.constexpr,
):  # fmt: skip
    """A tile of whole rows, in registers."""
    x = _added(x_ptr, r_ptr, sum_ptr, mask, EVICT, STREAM)
    mean, slip, rstd = row_moments(x, mask, N, eps)
    y = _affine((x - mean[:, None] - slip[:, None]) * rstd[:, None], w, b)
    tl.store(out_ptr, y.to(out_ptr.dtype.element_ty), mask=mask, cache_modifier=STREAM)


@triton.jit
def _chunked_rows(
    x_ptr, r_ptr, sum_ptr, w_ptr, b_ptr, out_ptr, row_mask, N, eps,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, EVICT: tl.constexpr, STREAM: tl.constexpr,
):  # fmt: skip
    """A tile of rows in two passes; the pointers are to their first columns."""
    cols = tl.arange(0, BLOCK_N)
    lane_mean = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    squares = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for start in range(0, N, BLOCK_N):
        mask = row_mask[:, None] & (cols < N - start)[None, :]
        if r_ptr is None:
            x = _added(x_ptr + start, None, None, mask, "", "")
        else:
            x = _added(x_ptr + start, r_ptr + start, sum_ptr + start, mask, "", "")
        lane_mean, squares = welford(x, mask, start // BLOCK_N + 1, lane_mean, squares)
    count = ((N - 1 - cols) // BLOCK_N + 1).to(tl.float32)  # 1 or more: a row is wider than a chunk
    mean, slip, rstd = lane_moments(lane_mean, squares, count[None, :], N, eps)
    if r_ptr is not None:
        tl.debug_barrier()  # what other threads of the program have stored
        x_ptr = sum_ptr
    for start in range(0, N, BLOCK_N):
        col_mask = cols < N - start
        mask = row_mask[:, None] & col_mask[None, :]
        x = _added(x_ptr + start, None, None, mask, EVICT, "")
        y = (x - mean[:, None] - slip[:, None]) * rstd[:, None]
        if w_ptr is not None:
            y = _affine(y, _load(w_ptr, start + cols, col_mask), None)
        if b_ptr is not None:
            y = _affine(y, None, _load(b_ptr, start + cols, col_mask))
        y = y.to(out_ptr.dtype.element_ty)
        tl.store(out_ptr + start, y, mask=mask, cache_modifier=STREAM)


@triton.jit
def _tile(
    tile, x_ptr, r_ptr, sizes, strides_x, strides_r, sum_ptr, w_ptr, b_ptr, w, b, out_ptr,
    n_rows, N, eps,
    LEADING: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, WHOLE: tl.constexpr,
    EVICT: tl.constexpr, STREAM: tl.constexpr,
):  # fmt: skip
    row = tile * BLOCK_M + tl.arange(0, BLOCK_M)
    row_mask = row < n_rows
    cols = tl.arange(0, BLOCK_N)
    x_ptr += offset_in(row, sizes, strides_x, LEADING)[:, None] + cols[None, :]
    at_out = (row * N)[:, None] + cols[None, :]
    out_ptr += at_out
    if r_ptr is not None:
        r_ptr += offset_in(row, sizes, strides_r, LEADING)[:, None] + cols[None, :]
        sum_ptr += at_out
    if WHOLE:
        mask = row_mask[:, None] & (cols < N)[None, :]
        _whole_rows(x_ptr, r_ptr, sum_ptr, w, b, out_ptr, mask, N, eps, EVICT, STREAM)
    else:
        _chunked_rows(
            x_ptr, r_ptr, sum_ptr, w_ptr, b_ptr, out_ptr, row_mask, N, eps, BLOCK_M, BLOCK_N,
            EVICT, STREAM,
        )  # fmt: skip


@triton.jit(do_not_specialize=["n_rows", "size_0", "size_1"])
def _layer_norm_fwd_kernel(
    x_ptr, r_ptr, size_0, size_1,
    stride_x0, stride_x1, stride_x2, stride_r0, stride_r1, stride_r2,
    w_ptr, b_ptr, out_ptr, sum_ptr, n_rows, N, eps,
    LEADING: tl.constexpr, STAGES: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
    WHOLE: tl.constexpr, EVICT: tl.constexpr, STREAM: tl.constexpr,
):  # fmt: skip
    """`STAGES` of 0: a program a tile; of more: persistent programs, and tiles in flight."""
    eps = tl.cast(eps, tl.float32)
    sizes = (size_0, size_1)
    strides_x, strides_r = (stride_x0, stride_x1, stride_x2), (stride_r0, stride_r1, stride_r2)
    w, b = None, None
    if WHOLE:  # before the rows' sums, so that all loads are in flight
        cols = tl.arange(0, BLOCK_N)
        if w_ptr is not None:
            w = _load(w_ptr, cols, cols < N)
        if b_ptr is not None:
            b = _load(b_ptr, cols, cols < N)
    first = tl.program_id(0).to(tl.int64)  # int64: row * N passes 2**31
    if STAGES:
        n_tiles = tl.cdiv(tl.cast(n_rows, tl.int64), BLOCK_M)  # `cdiv` adds before it divides
        for tile in tl.range(first, n_tiles, tl.num_programs(0), num_stages=STAGES):
            _tile(
                tile, x_ptr, r_ptr, sizes, strides_x, strides_r, sum_ptr, w_ptr, b_ptr, w, b,
                out_ptr, n_rows, N, eps, LEADING, BLOCK_M, BLOCK_N, WHOLE, EVICT, STREAM,
            )  # fmt: skip
    else:  # without a loop the compiler keeps weight and bias in 16 bits: 32 registers fewer
        _tile(
            first, x_ptr, r_ptr, sizes, strides_x, strides_r, sum_ptr, w_ptr, b_ptr, w, b,
            out_ptr, n_rows, N, eps, LEADING, BLOCK_M, BLOCK_N, WHOLE, EVICT, STREAM,
        )  # fmt: skip


def _width(problem: Problem) -> int:
    return one_block(problem["x"].shape[-1])


def _max_values(config: Mapping[str, Any], problem: Problem, target: Target) -> int:
    """How many values of a tile a thread can hold beside the weight and bias, of which each value
    of its columns takes half a register in 16 bits, and one in 32."""
    threads = config["num_warps"] * target.warp_size
    most = 64 if threads <= 256 else 32 if threads <= 512 else 16
    return most if problem["x"].itemsize == 2 or threads > 256 else most // 2


SPACE = Space(
    pow2("BLOCK_M", 1, 128),
    choice("CHUNKS", *(1 << n for n in range(8))),
    pow2("num_warps", 1, 32),
    choice("EVICT", "", "evict_first"),
    choice("STREAM", "", ".cs"),
    choice("STAGES", 0, 1, 2, 3),
    when(lambda c, p, t: c["STAGES"] > 0, choice("PROGRAMS_PER_SM", 1, 2, 4, 8, 16)),
    derive("BLOCK_N", lambda c, p, t: max(16, _width(p) // c["CHUNKS"])),
    VALUES,
    derive("NUM_PROGRAMS", lambda c, p, t: c.get("PROGRAMS_PER_SM", 0) * t.num_sms),
    require(
        "a chunk is narrower than 1,024 values",
        lambda c, p, t: c["CHUNKS"] == 1 or c["BLOCK_N"] >= 1024,
    ),
    require(
        "several chunked rows a tile",
        lambda c, p, t: c["CHUNKS"] == 1 or c["BLOCK_M"] == 1,
    ),
    require(
        "a program has more than 1,024 threads",
        lambda c, p, t: c["num_warps"] * t.warp_size <= 1024,
    ),
    require(
        "a thread holds more values of the tile than there are registers for",
        lambda c, p, t: c["VALUES"] <= _max_values(c, p, t),
    ),
    WHOLE_ACCESSES,
    no_taller(rows),
    RESIDENT,
    require(
        "tiles in flight need more shared memory than there is",
        lambda c, p, t: (
            c["STAGES"] < 2 or not t.is_gpu or _bytes_in_flight(c, p) <= t.shared_memory_bytes
        ),
    ),
)


def _bytes_in_flight(config: Mapping[str, Any], problem: Problem) -> int:
    """Shared memory of a processor that tiles are read into."""
    tile = config["BLOCK_M"] * config["BLOCK_N"] * problem["x"].itemsize
    tensors = 1 + ("residual" in problem.tensors)
    return config["STAGES"] * tensors * tile * config["PROGRAMS_PER_SM"]


def prior(problem: Problem, target: Target) -> dict[str, Value]:
    """32 bytes a thread, 64 of rows above 8 KiB, in tiles of one row or of 128 threads' worth, with
    fewer warps where that keeps every processor busy."""
    width, itemsize, n_rows = _width(problem), problem["x"].itemsize, max(1, rows(problem))
    chunks = width // CHUNK if width > MAX_BLOCK else 1
    block_n = width // chunks
    bytes_a_thread = 32 if chunks > 1 or block_n * itemsize <= 8192 else 64
    warp = target.warp_size * bytes_a_thread // itemsize  # values
    warps = max(1, min(block_n // warp, 1024 // target.warp_size))
    block_m = 1
    if warps <= 2:  # short rows
        warps = 4
        while warps > 1 and warps * warp * target.num_sms > n_rows * width:
            warps //= 2
        block_m = max(1, min(128, warps * warp // block_n))
    while block_m > 1 and block_m >= 2 * n_rows:
        block_m //= 2
    while warps > 1 and block_m * block_n * itemsize < 16 * warps * target.warp_size:
        warps //= 2
    return {
        "BLOCK_M": block_m,
        "CHUNKS": chunks,
        "num_warps": warps,
        "EVICT": "",
        "STREAM": "",
        "STAGES": 0,
    }


def supports(problem: Problem, target: Target) -> str | None:
    del target
    if problem["x"].shape[-1] > MAX_WIDTH:
        return f"rows of {problem['x'].shape[-1]} values are wider than {MAX_WIDTH}"
    residual = problem.tensors.get("residual")
    return why_not_rows(problem["x"], *([residual] if residual else []))


def normalise(
    args: tuple[Any, ...],
    outputs: tuple[torch.Tensor, ...],
    workspace: tuple[torch.Tensor, ...],
    config: Config,
) -> tuple[Launch, ...]:
    """The launch of `layer_norm`, and of `add_layer_norm`, which has one more argument and
    result."""
    del workspace
    x, *residual, weight, bias, eps = args
    if x.numel() == 0:
        return ()
    specs = [TensorSpec.of(tensor) for tensor in (x, *residual)]
    n_rows, n = math.prod(x.shape[:-1]), x.shape[-1]
    n_tiles = triton.cdiv(n_rows, config["BLOCK_M"])
    if residual:
        head = (x, *residual, *leading_arguments(*specs), weight, bias, *outputs)
    else:
        no_strides = (None, None, None)
        head = (x, None, *leading_arguments(*specs), *no_strides, weight, bias, *outputs, None)
    return (
        Launch(
            kernel=_layer_norm_fwd_kernel,
            grid=(min(n_tiles, config["NUM_PROGRAMS"] or n_tiles),),
            args=(*head, n_rows, n, float(eps)),
            constexprs={
                "LEADING": len(collapse_rows(*specs)),
                "WHOLE": config["CHUNKS"] == 1,
                **{k: config[k] for k in ("STAGES", "BLOCK_M", "BLOCK_N", "EVICT", "STREAM")},
            },
            options={"num_warps": config["num_warps"]},
        ),
    )
