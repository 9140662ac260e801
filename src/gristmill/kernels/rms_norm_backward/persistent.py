"""The gradients of `rms_norm` by persistent programs that hold whole rows in registers.

A program walks tiles of `BLOCK_M` rows: `x` and `grad_out` are read once, `grad_x` is written once,
and the program's share of `grad_weight` stays in float32 registers until its last row. A second
launch adds the shares up, in a fixed order and without atomics; it is set up while the first one
ends (`OVERLAP`). `STAGES - 2` tiles are on their way to shared memory while one is computed. Made
for rows that fit into registers; not measured yet.
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
from gristmill.core.registry import register
from gristmill.core.space import Space, choice, derive, flag, pow2, require, when
from gristmill.core.target import Target
from gristmill.kernels.device.partial_sums import can_overlap, overlaps, sum_block, sum_partials
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
    row_offset,
    why_not_rows,
)
from gristmill.kernels.device.widen import widened_again
from gristmill.specs.rms_norm import rows
from gristmill.specs.rms_norm_backward import OP, has_weight_grad

MAX_BYTES = 32_768  # of a row in registers: a processor has 256 KiB, and grad_weight is in float32
CONSTEXPRS = ("STAGES", "BLOCK_M", "BLOCK_N", "ONE_SUM", "STREAM")


@triton.jit(do_not_specialize=["n_rows", "size_0", "size_1"])
def _rms_norm_bwd_kernel(
    x_ptr, g_ptr, size_0, size_1, stride_x0, stride_x1, stride_x2, stride_g0, stride_g1, stride_g2,
    w_ptr, dx_ptr, partial_ptr, n_rows, N, eps,
    LEADING: tl.constexpr, PRELOAD: tl.constexpr, STAGES: tl.constexpr, ONE_SUM: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, STREAM: tl.constexpr, OVERLAP: tl.constexpr,
):  # fmt: skip
    eps = tl.cast(eps, tl.float32)
    cols = tl.arange(0, BLOCK_N)
    col_mask = cols < N
    w = None
    if PRELOAD:
        w = tl.load(w_ptr + cols, mask=col_mask, other=0.0, eviction_policy="evict_last")
    if partial_ptr is not None:
        dw = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    first = tl.program_id(0).to(tl.int64)  # int64: row * N passes 2**31
    n_tiles = tl.cdiv(tl.cast(n_rows, tl.int64), BLOCK_M)  # `cdiv` adds before it divides
    for tile in tl.range(first, n_tiles, tl.num_programs(0), num_stages=STAGES):
        row = tile * BLOCK_M + tl.arange(0, BLOCK_M)
        row_mask = row < n_rows
        mask = row_mask[:, None] & col_mask[None, :]
        at_x = row_offset(row, size_0, size_1, stride_x0, stride_x1, stride_x2, LEADING)
        at_g = row_offset(row, size_0, size_1, stride_g0, stride_g1, stride_g2, LEADING)
        x_held = tl.load(x_ptr + at_x[:, None] + cols[None, :], mask=mask, other=0.0)
        g_held = tl.load(g_ptr + at_g[:, None] + cols[None, :], mask=mask, other=0.0)
        x, g = x_held.to(tl.float32), g_held.to(tl.float32)
        products = g * x
        if w_ptr is not None:
            w1 = w
            if not PRELOAD:
                w1 = tl.load(w_ptr + cols, mask=col_mask, other=0.0, eviction_policy="evict_last")
            products = g * w1[None, :].to(tl.float32) * x
        if ONE_SUM:  # one exchange between the warps in place of two
            squares, products = tl.split(tl.sum(tl.join(x * x, products), axis=1))
        else:
            squares, products = tl.sum(x * x, axis=1), tl.sum(products, axis=1)
        # A row past the end adds nothing to dw, also where eps = 0 makes its rstd infinite.
        rstd = tl.where(row_mask, tl.rsqrt(squares / N + eps), 0.0)
        mean = rstd * (products / N)
        g = widened_again(g_held, n_rows >> 31)
        normed = widened_again(x_held, n_rows >> 31) * rstd[:, None]
        scaled = g
        if w_ptr is not None:
            w2 = w
            if not PRELOAD:
                w2 = tl.load(w_ptr + cols, mask=col_mask, other=0.0)
            scaled = g * w2[None, :].to(tl.float32)
        dx = rstd[:, None] * (scaled - normed * mean[:, None])
        out = dx_ptr + (row * N)[:, None] + cols[None, :]
        tl.store(out, dx.to(dx_ptr.dtype.element_ty), mask=mask, cache_modifier=STREAM)
        if partial_ptr is not None:
            dw += g * normed
    if partial_ptr is not None:
        if OVERLAP:
            gdc_launch_dependents()
        partial = partial_ptr + first * N + cols
        tl.store(partial, tl.sum(dw, axis=0), mask=col_mask)


def _width(problem: Problem) -> int:
    return max(16, triton.next_power_of_2(problem["x"].shape[-1]))


def _threads(config: Mapping[str, Any], target: Target) -> int:
    return config["num_warps"] * target.warp_size


def _max_values(threads: int, itemsize: int) -> int:
    """How many values of a tile a thread can hold without spilling: each takes a register of
    grad_weight and three of its own, or three halves (seen on sm_90)."""
    registers = min(255, 65_536 // threads) - 24
    return min(32, int(registers / (2.5 if itemsize == 2 else 4)))


def _programs(n_rows: int, config: Mapping[str, Any]) -> int:
    """As few as need no more rounds: each has a share of grad_weight to write and to add up."""
    tiles = triton.cdiv(n_rows, config["BLOCK_M"])
    return triton.cdiv(tiles, max(1, triton.cdiv(tiles, config["NUM_PROGRAMS"])))


SPACE = Space(
    pow2("BLOCK_M", 1, 64),
    pow2("num_warps", 1, 32),
    choice("PROGRAMS_PER_SM", 1, 2, 3, 4, 6, 8, 16),
    choice("STAGES", 1, 2, 3, 4),
    when(lambda c, p, t: p["weight"] is not None, flag("PRELOAD")),
    flag("ONE_SUM"),
    choice("STREAM", "", ".cs"),
    when(lambda c, p, t: can_overlap(t) and has_weight_grad(p), flag("OVERLAP")),
    derive("BLOCK_N", lambda c, p, t: _width(p)),
    VALUES,
    derive("NUM_PROGRAMS", lambda c, p, t: c["PROGRAMS_PER_SM"] * t.num_sms),
    derive("SUM_BLOCK", lambda c, p, t: sum_block(p["x"].shape[-1], t)),
    require("a program has more than 1,024 threads", lambda c, p, t: _threads(c, t) <= 1024),
    require(
        "a thread holds more values of the tile than there are registers for",
        lambda c, p, t: c["VALUES"] <= _max_values(_threads(c, t), p["x"].itemsize),
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
            or _bytes_in_flight(c, p) <= t.shared_memory_bytes - 2048 * c["PROGRAMS_PER_SM"]
        ),
    ),
)


def _bytes_in_flight(config: Mapping[str, Any], problem: Problem) -> int:
    """Shared memory of a processor that later tiles of `x` and `grad_out` are read into, and with
    them a weight that is loaded in the loop (twice)."""
    tile = 2 * (config["BLOCK_M"] + (not config.get("PRELOAD", True))) * config["BLOCK_N"]
    return (config["STAGES"] - 1) * tile * problem["x"].itemsize * config["PROGRAMS_PER_SM"]


def _on_16_bytes(problem: Problem) -> bool:
    """Whether Triton knows that every row starts on 16 bytes: it asks for multiples of 16."""
    specs = problem["x"], problem["grad_out"]
    steps = [stride for _, *strides in collapse_rows(*specs) for stride in strides]
    steps.append(problem["x"].shape[-1])
    return all(spec.aligned for spec in specs) and all(step % 16 == 0 for step in steps)


def _prior(problem: Problem, target: Target) -> dict[str, Value]:
    """Tiles of 2,048 values or a row, 16 values a thread; as many programs as there are registers
    for, with the next tile on its way while one is computed, and one more where a processor has one
    program. Rows off 16 bytes have addresses that leave no registers for that."""
    width, itemsize, n_rows = _width(problem), problem["x"].itemsize, max(1, rows(problem))
    block_m = min(64, max(1, 2048 // width))
    while block_m > 1 and block_m >= 2 * n_rows:
        block_m //= 2
    aligned = _on_16_bytes(problem)
    pipelined = target.vendor == "cuda" and aligned
    most = 1024 if pipelined else 512  # threads
    warps = max(1, min(block_m * width // 16, most) // target.warp_size)
    tile = block_m * width * itemsize
    registers = 168 if not aligned else 80 if itemsize == 2 else 112  # a thread's, on sm_90
    per_sm = max(1, 65_536 // (warps * target.warp_size * registers))
    if pipelined:
        per_sm = min(per_sm, max(1, target.shared_memory_bytes // (4 * tile + 2048)))
    spare = 6 * tile + 2048 <= target.shared_memory_bytes
    stages = 1 if not pipelined else 4 if per_sm == 1 and spare else 3
    return {
        "BLOCK_M": block_m,
        "num_warps": warps,
        "PROGRAMS_PER_SM": max(n for n in (1, 2, 3, 4, 6, 8) if n <= per_sm),
        "STAGES": stages,
        "PRELOAD": pipelined,
        "ONE_SUM": aligned,
        "STREAM": "",
        **({"OVERLAP": True} if can_overlap(target) and has_weight_grad(problem) else {}),
    }


def supports(problem: Problem, target: Target) -> str | None:
    del target
    x = problem["x"]
    if _width(problem) * x.itemsize > MAX_BYTES:
        return (
            f"rows of {x.shape[-1]} values of {x.itemsize} bytes are wider than {MAX_BYTES} bytes"
        )
    return why_not_rows(x, problem["grad_out"])


def _workspace(problem: Problem, config: Config) -> tuple[TensorSpec, ...]:
    """Every program's share of grad_weight."""
    if not has_weight_grad(problem):
        return ()
    shape = (_programs(rows(problem), config), problem["x"].shape[-1])
    return (TensorSpec.contiguous(shape, "float32"),)


def _launch(
    args: tuple[Any, ...],
    outputs: tuple[torch.Tensor, ...],
    workspace: tuple[torch.Tensor, ...],
    config: Config,
) -> tuple[Launch, ...]:
    grad_out, x, weight, eps, _ = args
    grad_x, grad_weight = outputs
    specs = TensorSpec.of(x), TensorSpec.of(grad_out)
    n_rows, n = math.prod(x.shape[:-1]), x.shape[-1]
    partials = workspace[0] if workspace else None
    overlap = overlaps(config)
    launches = []
    if x.numel():
        sizes_and_strides = leading_arguments(*specs)
        tail = (weight, grad_x, partials, n_rows, n, float(eps))
        launches.append(
            Launch(
                kernel=_rms_norm_bwd_kernel,
                grid=(_programs(n_rows, config),),
                args=(x, grad_out, *sizes_and_strides, *tail),
                constexprs={
                    "LEADING": len(collapse_rows(*specs)),
                    "PRELOAD": weight is not None and config.get("PRELOAD", True),
                    "OVERLAP": overlap,
                    **{k: config[k] for k in CONSTEXPRS},
                },
                options={"num_warps": config["num_warps"]},
            )
        )
    if partials is not None:
        launches.append(sum_partials(partials, grad_weight, config["SUM_BLOCK"], overlap))
    return tuple(launches)


# Untuned, it goes before the eager composition, which passes over the rows some ten times.
rms_norm_backward = register(
    OP,
    "persistent",
    _launch,
    space=SPACE,
    prior=_prior,
    supports=supports,
    workspace=_workspace,
    preference=1,
)
