"""The gradients of `layer_norm`, alone or on top of another gradient of the same rows
(`add_layer_norm`), by persistent programs that hold whole rows in registers.

A program walks tiles of `BLOCK_M` rows: what is read is read once, `grad_x` is written once, and
the program's shares of `grad_weight` and `grad_bias` stay in float32 registers until its last row.
A second launch adds the shares of both up, in a fixed order and without atomics; it is set up while
the first one ends (`OVERLAP`). `STAGES - 2` tiles are on their way to shared memory while one is
computed. The mean is summed first, then in one exchange what is left, its squares, the gradients
and the products (`moments.py`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents

from gristmill.core.config import Config, Value
from gristmill.core.launch import Launch
from gristmill.core.problem import Problem, TensorSpec
from gristmill.core.space import Space, choice, derive, flag, pow2, require, when
from gristmill.core.target import Target
from gristmill.kernels.device.moments import pair_sums, slip_and_rstd
from gristmill.kernels.device.partial_sums import (
    can_overlap,
    overlaps,
    padded_width,
    share_width,
    sum_block,
    sum_partials,
)
from gristmill.kernels.device.row_blocks import max_registers, on_16_bytes, one_block
from gristmill.kernels.device.row_tiles import (
    OVERLAPPING,
    RESIDENT,
    VALUES,
    WHOLE_ACCESSES,
    no_taller,
)
from gristmill.kernels.device.rows import (
    collapse_rows,
    leading_arguments,
    offset_in,
    why_not_rows,
)
from gristmill.specs.layer_norm_backward import sums
from gristmill.specs.rms_norm import rows

MAX_WIDTH = 8192  # values of a row: with both shares in float32, 1,024 threads hold no more


@triton.jit
def _walk(
    x_ptr, g_ptr, h_ptr, sizes, strides_x, strides_g, strides_h,
    w_ptr, dx_ptr, partial_ptr, n_rows, N, eps,
    LEADING: tl.constexpr, WEIGHT_GRAD: tl.constexpr, BIAS_GRAD: tl.constexpr,
    STAGES: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, STREAM: tl.constexpr,
    OVERLAP: tl.constexpr,
):  # fmt: skip
    """A program's rows; `h`, where there is one, is another gradient of `x`, which is added."""
    eps = tl.cast(eps, tl.float32)
    first = tl.program_id(0).to(tl.int64)  # int64: row * N passes 2**31
    cols = tl.arange(0, BLOCK_N)
    col_mask = cols < N
    w = None
    if w_ptr is not None:
        w = tl.load(w_ptr + cols, mask=col_mask, other=0.0, eviction_policy="evict_last")
    if WEIGHT_GRAD:
        dw = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    if BIAS_GRAD:
        db = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    n_tiles = tl.cdiv(tl.cast(n_rows, tl.int64), BLOCK_M)  # `cdiv` adds before it divides
    for tile in tl.range(first, n_tiles, tl.num_programs(0), num_stages=STAGES):
        row = tile * BLOCK_M + tl.arange(0, BLOCK_M)
        row_mask = row < n_rows
        mask = row_mask[:, None] & col_mask[None, :]
        at_x = offset_in(row, sizes, strides_x, LEADING)
        at_g = offset_in(row, sizes, strides_g, LEADING)
        x = tl.load(x_ptr + at_x[:, None] + cols[None, :], mask=mask, other=0.0).to(tl.float32)
        g = tl.load(g_ptr + at_g[:, None] + cols[None, :], mask=mask, other=0.0).to(tl.float32)
        mean = tl.sum(x, axis=1) / N
        left = tl.where(col_mask[None, :], x - mean[:, None], 0.0)
        scaled = g if w is None else g * w[None, :].to(tl.float32)
        gaps, totals = pair_sums(tl.join(left, left * left), tl.join(scaled, scaled * left))
        gaps, squares = tl.split(gaps)
        totals, products = tl.split(totals)
        slip, rstd = slip_and_rstd(gaps, squares, N, eps)
        # A row past the end adds nothing to dw, also where eps = 0 makes its rstd infinite.
        rstd = tl.where(row_mask, rstd, 0.0)
        total = totals / N
        product = rstd * (products / N - slip * total)
        # Scaled before they are subtracted: a fused multiply-add each.
        normed = left * rstd[:, None] - (slip * rstd)[:, None]
        dx = scaled * rstd[:, None] - (total * rstd)[:, None] - normed * (product * rstd)[:, None]
        if h_ptr is not None:  # where no tile is in flight: no registers before this
            at_h = offset_in(row, sizes, strides_h, LEADING)
            h = tl.load(h_ptr + at_h[:, None] + cols[None, :], mask=mask, other=0.0)
            dx += h.to(tl.float32)
        out = dx_ptr + (row * N)[:, None] + cols[None, :]
        tl.store(out, dx.to(dx_ptr.dtype.element_ty), mask=mask, cache_modifier=STREAM)
        if WEIGHT_GRAD:
            dw += g * normed
        if BIAS_GRAD:
            db += g
    if partial_ptr is not None:
        if OVERLAP:
            gdc_launch_dependents()
        share = padded_width(N)  # the block reaches that far, with zeros
        partial = partial_ptr + first * (share * (WEIGHT_GRAD + BIAS_GRAD))
        if WEIGHT_GRAD:
            tl.store(partial + cols, tl.sum(dw, axis=0), mask=cols < share)
            partial += share
        if BIAS_GRAD:
            tl.store(partial + cols, tl.sum(db, axis=0), mask=cols < share)


@triton.jit(do_not_specialize=["n_rows", "size_0", "size_1"])
def _layer_norm_bwd_kernel(
    x_ptr, g_ptr, size_0, size_1, stride_x0, stride_x1, stride_x2, stride_g0, stride_g1, stride_g2,
    w_ptr, dx_ptr, partial_ptr, n_rows, N, eps,
    LEADING: tl.constexpr, WEIGHT_GRAD: tl.constexpr, BIAS_GRAD: tl.constexpr,
    STAGES: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, STREAM: tl.constexpr,
    OVERLAP: tl.constexpr,
):  # fmt: skip
    strides_x, strides_g = (stride_x0, stride_x1, stride_x2), (stride_g0, stride_g1, stride_g2)
    _walk(
        x_ptr, g_ptr, None, (size_0, size_1), strides_x, strides_g, None,
        w_ptr, dx_ptr, partial_ptr, n_rows, N, eps,
        LEADING, WEIGHT_GRAD, BIAS_GRAD, STAGES, BLOCK_M, BLOCK_N, STREAM, OVERLAP,
    )  # fmt: skip


@triton.jit(do_not_specialize=["n_rows"])
def _add_layer_norm_bwd_kernel(
    x_ptr, g_ptr, h_ptr, stride_x, stride_g, stride_h,
    w_ptr, dx_ptr, partial_ptr, n_rows, N, eps,
    WEIGHT_GRAD: tl.constexpr, BIAS_GRAD: tl.constexpr,
    STAGES: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, STREAM: tl.constexpr,
    OVERLAP: tl.constexpr,
):  # fmt: skip
    """Three tensors have a stride each: for more a kernel has too many parameters."""
    _walk(
        x_ptr, g_ptr, h_ptr, (1, 1), (stride_x, 0, 0), (stride_g, 0, 0), (stride_h, 0, 0),
        w_ptr, dx_ptr, partial_ptr, n_rows, N, eps,
        1, WEIGHT_GRAD, BIAS_GRAD, STAGES, BLOCK_M, BLOCK_N, STREAM, OVERLAP,
    )  # fmt: skip


def _read(problem: Problem) -> tuple[TensorSpec, ...]:
    """`x`, `grad_out`, and a gradient to add, if there is one."""
    more = problem.tensors.get("grad_new_residual")
    return (problem["x"], problem["grad_out"], *([more] if more else []))


def _width(problem: Problem) -> int:
    return one_block(problem["x"].shape[-1])


def _max_values(registers: int, problem: Problem) -> int:
    """How many values of a tile a thread can hold without spilling: each takes a register of every
    share, three of its own (or three halves) and half a one of the weight."""
    return min(32, int((registers - 24) / (sums(problem) + problem["x"].itemsize)))


def _programs(n_rows: int, config: Mapping[str, Any]) -> int:
    """As few as need no more rounds: each has shares to write and to add up."""
    tiles = triton.cdiv(n_rows, config["BLOCK_M"])
    return triton.cdiv(tiles, max(1, triton.cdiv(tiles, config["NUM_PROGRAMS"])))


SPACE = Space(
    pow2("BLOCK_M", 1, 64),
    pow2("num_warps", 1, 32),
    choice("PROGRAMS_PER_SM", 1, 2, 3, 4, 6, 8, 16),
    choice("STAGES", 1, 2, 3, 4),
    choice("STREAM", "", ".cs"),
    when(lambda c, p, t: t.vendor == "cuda", flag("FIT")),
    when(lambda c, p, t: can_overlap(t) and sums(p) > 0, flag("OVERLAP")),
    derive("BLOCK_N", lambda c, p, t: _width(p)),
    VALUES,
    derive("MAX_REGISTERS", max_registers),
    derive("NUM_PROGRAMS", lambda c, p, t: c["PROGRAMS_PER_SM"] * t.num_sms),
    derive("SUM_BLOCK", lambda c, p, t: sum_block(sums(p) * p["x"].shape[-1], t)),
    require(
        "a program has more than 1,024 threads",
        lambda c, p, t: c["num_warps"] * t.warp_size <= 1024,
    ),
    require(
        "a thread holds more values of the tile than there are registers for",
        lambda c, p, t: c["VALUES"] <= _max_values(c["MAX_REGISTERS"], p),
    ),
    OVERLAPPING,
    WHOLE_ACCESSES,
    no_taller(rows),
    RESIDENT,
    require(
        "tiles in flight need more shared memory than there is",
        lambda c, p, t: (
            c["STAGES"] == 1
            or not t.is_gpu
            or (c["STAGES"] - 1) * _tile_bytes(c, p) * c["PROGRAMS_PER_SM"]
            <= t.shared_memory_bytes - 2048 * c["PROGRAMS_PER_SM"]
        ),
    ),
)


def _tile_bytes(config: Mapping[str, Any], problem: Problem) -> int:
    """Of a tile of everything that is read."""
    return len(_read(problem)) * config["BLOCK_M"] * config["BLOCK_N"] * problem["x"].itemsize


def prior(problem: Problem, target: Target) -> dict[str, Value]:
    """Tiles of 2,048 values or a row, 16 values a thread; as many programs as there are registers
    for, with the next tiles on their way while one is computed."""
    width, itemsize, n_rows = _width(problem), problem["x"].itemsize, max(1, rows(problem))
    block_m = min(64, max(1, 2048 // width))
    while block_m > 1 and block_m >= 2 * n_rows:
        block_m //= 2
    pipelined = target.vendor == "cuda" and on_16_bytes(*_read(problem))
    warps = max(1, block_m * width // (16 * target.warp_size))
    registers = 128 if pipelined else 168
    per_sm = max(1, 65_536 // (warps * target.warp_size * registers))
    tile = len(_read(problem)) * block_m * width * itemsize
    if pipelined:
        per_sm = min(per_sm, max(1, target.shared_memory_bytes // (2 * tile + 2048)))
    spare = (3 * tile + 2048) * per_sm <= target.shared_memory_bytes
    return {
        "BLOCK_M": block_m,
        "num_warps": warps,
        "PROGRAMS_PER_SM": max(n for n in (1, 2, 3, 4, 6, 8) if n <= per_sm),
        "STAGES": 1 if not pipelined else 4 if spare else 3,
        "STREAM": "",
        **({"FIT": True} if target.vendor == "cuda" else {}),
        **({"OVERLAP": True} if can_overlap(target) and sums(problem) else {}),
    }


def supports(problem: Problem, target: Target) -> str | None:
    del target
    read = _read(problem)
    width = problem["x"].shape[-1]
    if width > MAX_WIDTH:
        return f"rows of {width} values are wider than {MAX_WIDTH}"
    if len(read) > 2 and len(collapse_rows(*read)) > 1:
        return "the rows of `x` and the gradients have dimensions that do not merge"
    return why_not_rows(*read)


def workspace(problem: Problem, config: Config) -> tuple[TensorSpec, ...]:
    """Every program's shares of grad_weight and grad_bias, one after the other."""
    if not sums(problem):
        return ()
    width = sums(problem) * share_width(problem["x"].shape[-1])
    return (TensorSpec.contiguous((_programs(rows(problem), config), width), "float32"),)


def gradients(
    args: tuple[Any, ...],
    outputs: tuple[torch.Tensor, ...],
    shares: tuple[torch.Tensor, ...],
    config: Config,
) -> tuple[Launch, ...]:
    """The launches of `layer_norm_backward`, and of `add_layer_norm_backward`, which has one more
    gradient."""
    *grads, x, weight, eps, weight_grad, bias_grad = args
    read = (x, *grads)
    weight_grad = weight is not None and weight_grad
    partials, overlap = shares[0] if shares else None, overlaps(config)
    specs = [TensorSpec.of(tensor) for tensor in read]
    dims = collapse_rows(*specs)
    n_rows, n = math.prod(x.shape[:-1]), x.shape[-1]
    launches = []
    if x.numel():
        alone = len(read) == 2
        walked = leading_arguments(*specs) if alone else dims[0][1:]
        launches.append(
            Launch(
                kernel=_layer_norm_bwd_kernel if alone else _add_layer_norm_bwd_kernel,
                grid=(_programs(n_rows, config),),
                args=(*read, *walked, weight, outputs[0], partials, n_rows, n, float(eps)),
                constexprs={
                    **({"LEADING": len(dims)} if alone else {}),
                    "WEIGHT_GRAD": weight_grad,
                    "BIAS_GRAD": bias_grad,
                    "OVERLAP": overlap,
                    **{k: config[k] for k in ("STAGES", "BLOCK_M", "BLOCK_N", "STREAM")},
                },
                options={
                    "num_warps": config["num_warps"],
                    **({"maxnreg": config["MAX_REGISTERS"]} if config.get("FIT") else {}),
                },
            )
        )
    if partials is not None:
        pairs = zip(outputs[1:], (weight_grad, bias_grad), strict=True)
        first, *other = [out for out, wanted in pairs if wanted]
        launches.append(sum_partials(partials, first, config["SUM_BLOCK"], overlap, *other))
    return tuple(launches)
