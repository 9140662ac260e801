"""The gradients of `rms_norm` in two passes: the sums of every row, then strips of columns.

The first launch sums `x**2` and `grad_out * weight * x` over parts of rows. In the second, a
program owns a strip of columns, walks rows with nothing to wait for, and keeps its strip of
`grad_weight` in registers; a third adds the programs' shares up, in a fixed order. Everything is
read twice, the second time from L2 where it fits. Made for rows that no processor can hold; for so
few rows that one program each leaves processors idle it is in the race.
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
from gristmill.core.space import Space, choice, derive, pow2, require, when
from gristmill.core.target import Target
from gristmill.kernels.device.partial_sums import sum_block, sum_partials
from gristmill.kernels.device.row_tiles import (
    OVERLAPPING,
    RESIDENT,
    VALUES,
    WHOLE_ACCESSES,
    no_taller,
)
from gristmill.kernels.device.rows import (
    MAX_ROWS,
    collapse_rows,
    leading_arguments,
    row_offset,
    why_not_rows,
)
from gristmill.specs.rms_norm import rows
from gristmill.specs.rms_norm_backward import OP, has_weight_grad

MAX_PARTS = 32
MAX_WIDTH = 1 << 24
MIN_BLOCK = 256


@triton.jit(do_not_specialize=["n_rows", "size_0", "size_1"])
def _rms_norm_bwd_sums_kernel(
    x_ptr, g_ptr, size_0, size_1, stride_x0, stride_x1, stride_x2, stride_g0, stride_g1, stride_g2,
    w_ptr, sums_ptr, n_rows, N,
    LEADING: tl.constexpr, PARTS: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """`sums[0]`: of the squares of a part of each row; `sums[1]`: of the products."""
    part = tl.program_id(0) % PARTS
    row = (tl.program_id(0) // PARTS).to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    row_mask = row < n_rows
    at_x = row_offset(row, size_0, size_1, stride_x0, stride_x1, stride_x2, LEADING)
    at_g = row_offset(row, size_0, size_1, stride_g0, stride_g1, stride_g2, LEADING)
    squares = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    products = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    span = tl.cdiv(tl.cdiv(N, PARTS), BLOCK_N) * BLOCK_N
    for start in range(part * span, min(N, (part + 1) * span), BLOCK_N):
        cols = start + tl.arange(0, BLOCK_N)
        col_mask = cols < N
        mask = row_mask[:, None] & col_mask[None, :]
        x = tl.load(x_ptr + at_x[:, None] + cols[None, :], mask=mask, other=0.0).to(tl.float32)
        g = tl.load(g_ptr + at_g[:, None] + cols[None, :], mask=mask, other=0.0).to(tl.float32)
        if w_ptr is not None:
            w = tl.load(w_ptr + cols, mask=col_mask, other=0.0, eviction_policy="evict_last")
            g = g * w[None, :].to(tl.float32)
        squares += x * x
        products += g * x
    sums = sums_ptr + row * PARTS + part
    tl.store(sums, tl.sum(squares, axis=1), mask=row_mask)
    tl.store(sums + tl.cast(n_rows, tl.int64) * PARTS, tl.sum(products, axis=1), mask=row_mask)


@triton.jit(do_not_specialize=["n_rows", "size_0", "size_1"])
def _rms_norm_bwd_strips_kernel(
    x_ptr, g_ptr, size_0, size_1, stride_x0, stride_x1, stride_x2, stride_g0, stride_g1, stride_g2,
    w_ptr, sums_ptr, dx_ptr, partial_ptr, n_rows, N, eps,
    LEADING: tl.constexpr, PARTS: tl.constexpr, STAGES: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, EVICT: tl.constexpr, STREAM: tl.constexpr,
):  # fmt: skip
    eps = tl.cast(eps, tl.float32)
    n_strips = tl.cdiv(N, BLOCK_N)
    group = (tl.program_id(0) // n_strips).to(tl.int64)  # int64: row * N passes 2**31
    cols = (tl.program_id(0) % n_strips) * BLOCK_N + tl.arange(0, BLOCK_N)
    col_mask = cols < N
    if w_ptr is not None:
        w = tl.load(w_ptr + cols, mask=col_mask, other=0.0, eviction_policy="evict_last")
        w = w.to(tl.float32)
    if partial_ptr is not None:
        dw = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    n_tiles, n_groups = tl.cdiv(n_rows, BLOCK_M), tl.num_programs(0) // n_strips
    for tile in tl.range(group, n_tiles, n_groups, num_stages=STAGES):
        row = tile * BLOCK_M + tl.arange(0, BLOCK_M)
        row_mask = row < n_rows
        mask = row_mask[:, None] & col_mask[None, :]
        at_x = row_offset(row, size_0, size_1, stride_x0, stride_x1, stride_x2, LEADING)
        at_g = row_offset(row, size_0, size_1, stride_g0, stride_g1, stride_g2, LEADING)
        x = tl.load(
            x_ptr + at_x[:, None] + cols[None, :], mask=mask, other=0.0, eviction_policy=EVICT
        ).to(tl.float32)
        g = tl.load(
            g_ptr + at_g[:, None] + cols[None, :], mask=mask, other=0.0, eviction_policy=EVICT
        ).to(tl.float32)
        sums = sums_ptr + (row * PARTS)[:, None] + tl.arange(0, PARTS)[None, :]
        squares = tl.sum(tl.load(sums, mask=row_mask[:, None], other=0.0), axis=1)
        sums += tl.cast(n_rows, tl.int64) * PARTS
        products = tl.sum(tl.load(sums, mask=row_mask[:, None], other=0.0), axis=1)
        # A row past the end adds nothing to dw, also where eps = 0 makes its rstd infinite.
        rstd = tl.where(row_mask, tl.rsqrt(squares / N + eps), 0.0)
        mean = rstd * (products / N)
        normed = x * rstd[:, None]
        scaled = g
        if w_ptr is not None:
            scaled = g * w[None, :]
        dx = rstd[:, None] * (scaled - normed * mean[:, None])
        out = dx_ptr + (row * N)[:, None] + cols[None, :]
        tl.store(out, dx.to(dx_ptr.dtype.element_ty), mask=mask, cache_modifier=STREAM)
        if partial_ptr is not None:
            dw += g * normed
    if partial_ptr is not None:
        tl.store(partial_ptr + group * N + cols, tl.sum(dw, axis=0), mask=col_mask)


def _width(problem: Problem) -> int:
    return max(16, triton.next_power_of_2(problem["x"].shape[-1]))


def _strips(problem: Problem, config: Mapping[str, Any]) -> int:
    return triton.cdiv(max(1, problem["x"].shape[-1]), config["BLOCK_N"])


def _groups(config: Mapping[str, Any], problem: Problem, target: Target) -> int:
    """Programs that share a strip: of as many rows as fill the processors, at most one a tile."""
    programs = config["PROGRAMS_PER_SM"] * target.num_sms
    n_tiles = triton.cdiv(rows(problem), config["BLOCK_M"])
    return max(1, min(n_tiles, programs // _strips(problem, config)))


SPACE = Space(
    pow2("BLOCK_M", 1, 16),
    pow2("BLOCK_N", 16, 4096),
    pow2("num_warps", 1, 16),
    pow2("PARTS", 1, MAX_PARTS),
    choice("PROGRAMS_PER_SM", 1, 2, 4, 6, 8),
    choice("STAGES", 1, 2, 3),
    when(lambda c, p, t: c["STAGES"] == 1, choice("EVICT", "", "evict_first")),
    choice("STREAM", "", ".cs"),
    derive("GROUPS", _groups),
    derive("SUM_BLOCK", lambda c, p, t: sum_block(p["x"].shape[-1], t)),
    VALUES,
    require("a thread holds more than 32 values of the tile", lambda c, p, t: c["VALUES"] <= 32),
    WHOLE_ACCESSES,
    no_taller(rows),
    require(
        "a tile is wider than a row, or narrower than a row and than 256 values",
        lambda c, p, t: min(MIN_BLOCK, _width(p)) <= c["BLOCK_N"] <= _width(p),
    ),
    require(
        "a part is narrower than 1,024 values",
        lambda c, p, t: c["PARTS"] == 1 or 1024 * c["PARTS"] <= p["x"].shape[-1],
    ),
    OVERLAPPING,
    RESIDENT,
    require(
        "tiles in flight need more shared memory than there is",
        lambda c, p, t: (
            c["STAGES"] == 1
            or not t.is_gpu
            or c["PROGRAMS_PER_SM"] * _bytes_in_flight(c, p) <= t.shared_memory_bytes
        ),
    ),
)


def _bytes_in_flight(config: Mapping[str, Any], problem: Problem) -> int:
    """Shared memory that a program's later tiles are read into, and 2 KiB for what else it
    needs."""
    tile = config["BLOCK_M"] * (config["BLOCK_N"] * problem["x"].itemsize + 4 * config["PARTS"])
    return 2 * (config["STAGES"] - 1) * tile + 2048


def _prior(problem: Problem, target: Target) -> dict[str, Value]:
    """16 values a thread in tiles of 2,048; rows in so many parts that every processor has four."""
    n_rows, width = max(1, rows(problem)), problem["x"].shape[-1]
    block_n = min(1024, _width(problem))
    block_m = min(16, 2048 // block_n)
    while block_m > 1 and block_m >= 2 * n_rows:
        block_m //= 2
    warps = max(1, block_m * block_n // (16 * target.warp_size))
    parts = 1
    while parts < MAX_PARTS and 2048 * parts <= width and n_rows * parts < 4 * target.num_sms:
        parts *= 2
    return {
        "BLOCK_M": block_m,
        "BLOCK_N": block_n,
        "num_warps": warps,
        "PARTS": parts,
        "PROGRAMS_PER_SM": 4,
        "STAGES": 1,
        "EVICT": "",
        "STREAM": "",
    }


def supports(problem: Problem, target: Target) -> str | None:
    del target
    n_rows, width = rows(problem), problem["x"].shape[-1]
    if width > MAX_WIDTH:
        return f"rows of {width} values are wider than {MAX_WIDTH}"
    if n_rows > MAX_ROWS // MAX_PARTS:
        return f"{n_rows} rows are more than {MAX_ROWS // MAX_PARTS}"
    return why_not_rows(problem["x"], problem["grad_out"])


def _workspace(problem: Problem, config: Config) -> tuple[TensorSpec, ...]:
    """The rows' sums, and every program's share of grad_weight."""
    n_rows = rows(problem)
    sums = TensorSpec.contiguous((2, n_rows, config["PARTS"]), "float32")
    if not has_weight_grad(problem):
        return (sums,)
    groups = config["GROUPS"] if n_rows else 0
    return (sums, TensorSpec.contiguous((groups, problem["x"].shape[-1]), "float32"))


def _launch(
    args: tuple[Any, ...],
    outputs: tuple[torch.Tensor, ...],
    workspace: tuple[torch.Tensor, ...],
    config: Config,
) -> tuple[Launch, ...]:
    grad_out, x, weight, eps, _ = args
    sums, *shares = workspace
    partials = shares[0] if shares else None
    specs = TensorSpec.of(x), TensorSpec.of(grad_out)
    n_rows, n = math.prod(x.shape[:-1]), x.shape[-1]
    launches = []
    if x.numel():
        head = (x, grad_out, *leading_arguments(*specs), weight, sums)
        tile = {k: config[k] for k in ("PARTS", "BLOCK_M", "BLOCK_N")}
        tile["LEADING"] = len(collapse_rows(*specs))
        loop = {"EVICT": config.get("EVICT", ""), **{k: config[k] for k in ("STAGES", "STREAM")}}
        launches += [
            Launch(
                kernel=_rms_norm_bwd_sums_kernel,
                grid=(triton.cdiv(n_rows, config["BLOCK_M"]) * config["PARTS"],),
                args=(*head, n_rows, n),
                constexprs=tile,
                options={"num_warps": config["num_warps"]},
            ),
            Launch(
                kernel=_rms_norm_bwd_strips_kernel,
                grid=(config["GROUPS"] * triton.cdiv(n, config["BLOCK_N"]),),
                args=(*head, outputs[0], partials, n_rows, n, float(eps)),
                constexprs={**tile, **loop},
                options={"num_warps": config["num_warps"]},
            ),
        ]
    if partials is not None:
        launches.append(sum_partials(partials, outputs[1], config["SUM_BLOCK"]))
    return tuple(launches)


rms_norm_backward = register(
    OP, "strips", _launch, space=SPACE, prior=_prior, supports=supports, workspace=_workspace
)
