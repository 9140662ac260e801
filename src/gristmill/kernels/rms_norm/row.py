"""`out = x * rsqrt(mean(x**2) + eps) * weight` with one program, or a persistent one, per row.

The row stays in registers between the sum and the product (one read, one write: Zhang and Sennrich,
2019); rows wider than the block are read twice, in chunks, the second time from L2. Wins for rows
of about 1,000 values and more, and for few rows.
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
from gristmill.core.registry import register
from gristmill.core.space import Space, choice, derive, flag, pow2, require, when
from gristmill.core.target import Target
from gristmill.kernels.device.rows import (
    collapse_rows,
    leading_arguments,
    row_offset,
    why_not_rows,
)
from gristmill.specs.rms_norm import OP

MAX_BLOCK = (
    32_768  # values of a row held at once: a program of 1,024 threads has 64 registers a thread
)


@triton.jit
def _whole_row(
    x_ptr, w_ptr, preloaded, out_ptr, N, eps,
    BLOCK_N: tl.constexpr, EVICT: tl.constexpr, STREAM: tl.constexpr,
):  # fmt: skip
    """One row in registers; `preloaded` is the weight where it was loaded before, else None."""
    cols = tl.arange(0, BLOCK_N)
    mask = cols < N
    x = tl.load(x_ptr + cols, mask=mask, other=0.0, eviction_policy=EVICT).to(tl.float32)
    # The weight is asked for before the sum, so that both loads are in flight.
    if preloaded is not None:
        w = preloaded
    elif w_ptr is not None:
        w = tl.load(w_ptr + cols, mask=mask, other=0.0, eviction_policy="evict_last")
    y = x * tl.rsqrt(tl.sum(x * x, axis=0) / N + eps)
    if w_ptr is not None:
        y = y * w.to(tl.float32)
    tl.store(out_ptr + cols, y.to(out_ptr.dtype.element_ty), mask=mask, cache_modifier=STREAM)


@triton.jit
def _chunked_row(
    x_ptr, w_ptr, out_ptr, N, eps,
    BLOCK_N: tl.constexpr, EVICT: tl.constexpr, STREAM: tl.constexpr,
):  # fmt: skip
    """One row in two passes."""
    cols = tl.arange(0, BLOCK_N)
    squares = tl.zeros((BLOCK_N,), tl.float32)
    for start in range(0, N, BLOCK_N):
        x = tl.load(x_ptr + start + cols, mask=cols < N - start, other=0.0)
        squares += x.to(tl.float32) * x.to(tl.float32)
    scale = tl.rsqrt(tl.sum(squares, axis=0) / N + eps)
    for start in range(0, N, BLOCK_N):
        mask = cols < N - start
        x = tl.load(x_ptr + start + cols, mask=mask, other=0.0, eviction_policy=EVICT)
        y = x.to(tl.float32) * scale
        if w_ptr is not None:
            w = tl.load(w_ptr + start + cols, mask=mask, other=0.0, eviction_policy="evict_last")
            y = y * w.to(tl.float32)
        y = y.to(out_ptr.dtype.element_ty)
        tl.store(out_ptr + start + cols, y, mask=mask, cache_modifier=STREAM)


@triton.jit
def _one_row(
    x_ptr, w_ptr, preloaded, out_ptr, N, eps,
    BLOCK_N: tl.constexpr, WHOLE: tl.constexpr, EVICT: tl.constexpr, STREAM: tl.constexpr,
):  # fmt: skip
    if WHOLE:
        _whole_row(x_ptr, w_ptr, preloaded, out_ptr, N, eps, BLOCK_N, EVICT, STREAM)
    else:
        _chunked_row(x_ptr, w_ptr, out_ptr, N, eps, BLOCK_N, EVICT, STREAM)


@triton.jit(do_not_specialize=["n_rows", "size_0", "size_1"])
def _rms_norm_fwd_kernel(
    x_ptr, size_0, size_1, stride_0, stride_1, stride_2,
    w_ptr, out_ptr, n_rows, N, eps,
    LEADING: tl.constexpr, PERSISTENT: tl.constexpr, PRELOAD: tl.constexpr, STAGES: tl.constexpr,
    BLOCK_N: tl.constexpr, WHOLE: tl.constexpr, EVICT: tl.constexpr, STREAM: tl.constexpr,
):  # fmt: skip
    eps = tl.cast(eps, tl.float32)
    first = tl.program_id(0).to(tl.int64)
    w = None
    if PRELOAD:
        cols = tl.arange(0, BLOCK_N)
        w = tl.load(w_ptr + cols, mask=cols < N, other=0.0, eviction_policy="evict_last")
    if PERSISTENT:
        for row in tl.range(first, n_rows, tl.num_programs(0), num_stages=STAGES):
            x = x_ptr + row_offset(row, size_0, size_1, stride_0, stride_1, stride_2, LEADING)
            _one_row(x, w_ptr, w, out_ptr + row * N, N, eps, BLOCK_N, WHOLE, EVICT, STREAM)
    else:
        x = x_ptr + row_offset(first, size_0, size_1, stride_0, stride_1, stride_2, LEADING)
        _one_row(x, w_ptr, w, out_ptr + first * N, N, eps, BLOCK_N, WHOLE, EVICT, STREAM)


def _width(problem: Problem) -> int:
    return max(1, triton.next_power_of_2(problem["x"].shape[-1]))


def _block(config: Mapping[str, Any], problem: Problem, target: Target) -> int:
    del target
    return max(16, _width(problem) // config["CHUNKS"])


def _max_values(threads: int) -> int:
    """How many values of a row a thread can hold without spilling (seen: 64 spill with 1,024
    threads)."""
    return 64 if threads <= 512 else 32


def _threads(config: Mapping[str, Any], target: Target) -> int:
    return config["num_warps"] * target.warp_size


SPACE = Space(
    pow2("num_warps", 1, 32),
    choice("CHUNKS", 1, 2, 4, 8, 16, 32),
    choice("EVICT", "", "evict_first"),
    choice("STREAM", "", ".cs"),
    flag("PERSISTENT"),
    when(lambda c, p, t: c["PERSISTENT"], choice("PROGRAMS_PER_SM", 1, 2, 4, 8)),
    when(lambda c, p, t: c["PERSISTENT"], choice("STAGES", 1, 2, 3)),
    when(
        lambda c, p, t: c["PERSISTENT"] and c["CHUNKS"] == 1 and p["weight"] is not None,
        flag("PRELOAD"),
    ),
    derive("BLOCK_N", _block),
    derive("NUM_PROGRAMS", lambda c, p, t: c.get("PROGRAMS_PER_SM", 0) * t.num_sms),
    require(
        "a chunk is narrower than 1,024 values",
        lambda c, p, t: c["CHUNKS"] == 1 or c["BLOCK_N"] >= 1024,
    ),
    require(
        "a program has more than 1,024 threads",
        lambda c, p, t: _threads(c, t) <= 1024,
    ),
    require(
        "a thread holds more than 64 values of the row, or 32 with 1,024 threads",
        lambda c, p, t: c["BLOCK_N"] <= _max_values(_threads(c, t)) * _threads(c, t),
    ),
    require(
        "a thread holds less than one 16-byte access",
        lambda c, p, t: (
            c["num_warps"] == 1 or c["BLOCK_N"] * p["x"].itemsize >= 16 * _threads(c, t)
        ),
    ),
    require(
        "the programs of a processor have more than 2,048 threads",
        lambda c, p, t: c.get("PROGRAMS_PER_SM", 1) * _threads(c, t) <= 2048,
    ),
    require(
        "rows in flight need more shared memory than there is",
        lambda c, p, t: (
            c.get("STAGES", 1) == 1
            or not t.is_gpu
            or c["STAGES"] * c["BLOCK_N"] * p["x"].itemsize * c["PROGRAMS_PER_SM"]
            <= t.shared_memory_bytes
        ),
    ),
)


def _prior(problem: Problem, target: Target) -> dict[str, Value]:
    """One program a row: 32 bytes a thread for rows of up to 8 KiB, then 64 (2048 x 16384 bf16 on
    an H200: 34 us with 16 warps, 46 us with 32)."""
    width, itemsize = _width(problem), problem["x"].itemsize
    chunks = max(1, width // MAX_BLOCK)
    block = width // chunks
    bytes_per_thread = 32 if block * itemsize <= 8192 else 64
    warps = block * itemsize // (bytes_per_thread * target.warp_size)
    warps = max(warps, block // (32 * target.warp_size), 1)
    return {
        "num_warps": min(warps, 1024 // target.warp_size),
        "CHUNKS": chunks,
        "EVICT": "",
        "STREAM": "",
        "PERSISTENT": False,
    }


def supports(problem: Problem, target: Target) -> str | None:
    del target
    if problem["x"].shape[-1] > 32 * MAX_BLOCK:
        return f"rows of {problem['x'].shape[-1]} values are wider than {32 * MAX_BLOCK}"
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
    return (
        Launch(
            kernel=_rms_norm_fwd_kernel,
            grid=(min(n_rows, config["NUM_PROGRAMS"] or n_rows),),
            args=(x, *leading_arguments(spec), weight, outputs[0], n_rows, n, float(eps)),
            constexprs={
                "LEADING": len(collapse_rows(spec)),
                "PERSISTENT": config["PERSISTENT"],
                "PRELOAD": config.get("PRELOAD", False),
                "STAGES": config.get("STAGES", 1),
                "BLOCK_N": config["BLOCK_N"],
                "WHOLE": config["BLOCK_N"] >= n,
                "EVICT": config["EVICT"],
                "STREAM": config["STREAM"],
            },
            options={"num_warps": config["num_warps"]},
        ),
    )


# Untuned, it goes before the vendor call (docs/performance/rms_norm.md has both).
rms_norm = register(OP, "row", _launch, space=SPACE, prior=_prior, supports=supports, preference=1)
