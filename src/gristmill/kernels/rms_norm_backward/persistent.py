"""The gradients of `rms_norm` by persistent programs that hold whole rows in registers.

A program walks tiles of `BLOCK_M` rows: `x` and `grad_out` are read once, `grad_x` is written once,
and the program's share of `grad_weight` stays in float32 registers until its last row. A second
launch adds the shares up, in a fixed order and without atomics; it is set up while the first one
ends (`OVERLAP`). `STAGES - 2` tiles are on their way to shared memory while one is computed. A row
whose width is no power of two, or that starts off 16 bytes, can be held in two blocks of columns
(`TAIL`, `EDGES`: `device/row_blocks.py`). Made for rows that fit into registers.
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
from gristmill.kernels.device.partial_sums import (
    can_overlap,
    overlaps,
    padded_width,
    share_width,
    sum_block,
    sum_partials,
    zero_past,
)
from gristmill.kernels.device.row_blocks import (
    access_values,
    edge_columns,
    edge_period,
    have_edges,
    held_columns,
    in_two_blocks,
    main_block,
    max_registers,
    next_access,
    on_16_bytes,
    one_block,
    with_tail,
)
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
MIN_BLOCKS = 1024  # values: narrower rows go several to a program, which second blocks make dear
CONSTEXPRS = ("STAGES", "BLOCK_M", "BLOCK_N", "ONE_SUM", "STREAM")


@triton.jit
def _weighted(g, w_ptr, w, cols, mask, EVICT: tl.constexpr):
    """`g` times the weight, if there is one: `w`, or loaded where that is `None`."""
    if w_ptr is None:
        return g
    elif w is None:
        again = tl.load(w_ptr + cols, mask=mask, other=0.0, eviction_policy=EVICT)
        return g * again[None, :].to(tl.float32)
    else:
        return g * w[None, :].to(tl.float32)


@triton.jit
def _sum_block(x_held, g_held, w_ptr, w, cols, mask, ONE_SUM: tl.constexpr):
    """Of every row of a block: the sums of the squares, and of the products."""
    x = x_held.to(tl.float32)
    products = _weighted(g_held.to(tl.float32), w_ptr, w, cols, mask, "evict_last") * x
    if ONE_SUM:  # one exchange between the warps in place of two
        squares, products = tl.split(tl.sum(tl.join(x * x, products), axis=1))
    else:
        squares, products = tl.sum(x * x, axis=1), tl.sum(products, axis=1)
    return squares, products


@triton.jit
def _grad_block(x_held, g_held, w_ptr, w, cols, mask, rstd, mean, zero):
    """Of a block: `grad_x`, and every row's terms of `grad_weight`."""
    g = widened_again(g_held, zero)
    normed = widened_again(x_held, zero) * rstd[:, None]
    # Another hint than for the sums: the compiler would make one load of two that are alike.
    scaled = _weighted(g, w_ptr, w, cols, mask, "")
    return rstd[:, None] * (scaled - normed * mean[:, None]), g * normed


@triton.jit(do_not_specialize=["n_rows", "size_0", "size_1"])
def _rms_norm_bwd_kernel(
    x_ptr, g_ptr, size_0, size_1, stride_x0, stride_x1, stride_x2, stride_g0, stride_g1, stride_g2,
    w_ptr, dx_ptr, partial_ptr, n_rows, N, eps,
    LEADING: tl.constexpr, PRELOAD: tl.constexpr, STAGES: tl.constexpr, ONE_SUM: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, STREAM: tl.constexpr, OVERLAP: tl.constexpr,
):  # fmt: skip
    """Columns are held in a block, and a second one of the rest: a tail, or both edges."""
    eps = tl.cast(eps, tl.float32)
    MAIN: tl.constexpr = main_block(BLOCK_N)
    REST: tl.constexpr = BLOCK_N - MAIN
    ACCESS: tl.constexpr = access_values(BLOCK_N)
    first = tl.program_id(0).to(tl.int64)  # int64: row * N passes 2**31
    # The first block starts `head` values into each of the program's rows.
    head = 0
    cols = tl.arange(0, MAIN)
    middle = N
    if ACCESS > 1:
        head = next_access(first * BLOCK_M * N, ACCESS) - first * BLOCK_M * N
        middle = (N - head) // ACCESS * ACCESS
        rest, rest_mask = edge_columns(head, middle, N, ACCESS)
    elif REST:
        middle = MAIN
        rest = MAIN + tl.arange(0, REST)
        rest_mask = rest < N
    col_mask = cols < middle
    w, w_rest = None, None
    if PRELOAD:
        w = tl.load(w_ptr + head + cols, mask=col_mask, other=0.0, eviction_policy="evict_last")
        if REST:
            w_rest = tl.load(w_ptr + rest, mask=rest_mask, other=0.0, eviction_policy="evict_last")
    dw = tl.zeros((BLOCK_M, MAIN), tl.float32)
    if REST:
        dw_rest = tl.zeros((BLOCK_M, REST), tl.float32)
    n_tiles = tl.cdiv(tl.cast(n_rows, tl.int64), BLOCK_M)  # `cdiv` adds before it divides
    for tile in tl.range(first, n_tiles, tl.num_programs(0), num_stages=STAGES):
        row = tile * BLOCK_M + tl.arange(0, BLOCK_M)
        row_mask = row < n_rows
        mask = row_mask[:, None] & col_mask[None, :]
        at_x = row_offset(row, size_0, size_1, stride_x0, stride_x1, stride_x2, LEADING)
        at_g = row_offset(row, size_0, size_1, stride_g0, stride_g1, stride_g2, LEADING)
        from_x, from_g = next_access(at_x, ACCESS), next_access(at_g, ACCESS)
        x = tl.load(x_ptr + from_x[:, None] + cols[None, :], mask=mask, other=0.0)
        g = tl.load(g_ptr + from_g[:, None] + cols[None, :], mask=mask, other=0.0)
        if REST:
            mask_rest = row_mask[:, None] & rest_mask[None, :]
            x_rest = tl.load(x_ptr + at_x[:, None] + rest[None, :], mask=mask_rest, other=0.0)
            g_rest = tl.load(g_ptr + at_g[:, None] + rest[None, :], mask=mask_rest, other=0.0)
        squares, products = _sum_block(x, g, w_ptr, w, cols, col_mask, ONE_SUM)
        if REST:
            more = _sum_block(x_rest, g_rest, w_ptr, w_rest, rest, rest_mask, ONE_SUM)
            squares, products = squares + more[0], products + more[1]
        # A row past the end adds nothing to dw, also where eps = 0 makes its rstd infinite.
        rstd = tl.where(row_mask, tl.rsqrt(squares / N + eps), 0.0)
        mean = rstd * (products / N)
        zero = n_rows >> 31
        dx, terms = _grad_block(x, g, w_ptr, w, cols, col_mask, rstd, mean, zero)
        out = dx_ptr + next_access(row * N, ACCESS)[:, None] + cols[None, :]
        tl.store(out, dx.to(dx_ptr.dtype.element_ty), mask=mask, cache_modifier=STREAM)
        dw += terms
        if REST:
            dx, terms = _grad_block(
                x_rest, g_rest, w_ptr, w_rest, rest, rest_mask, rstd, mean, zero
            )
            out = dx_ptr + (row * N)[:, None] + rest[None, :]
            tl.store(out, dx.to(dx_ptr.dtype.element_ty), mask=mask_rest, cache_modifier=STREAM)
            dw_rest += terms
    if partial_ptr is not None:
        if OVERLAP:
            gdc_launch_dependents()
        share = padded_width(N)
        partial = partial_ptr + first * share
        held = cols < share
        if ACCESS > 1:  # elsewhere blocks reach that far, with zeros
            held = col_mask
            zero_past(partial, N, share)
        tl.store(partial + head + cols, tl.sum(dw, axis=0), mask=held)
        if REST:
            held = rest_mask if ACCESS > 1 else rest < share
            tl.store(partial + rest, tl.sum(dw_rest, axis=0), mask=held)


def _width(problem: Problem) -> int:
    return one_block(problem["x"].shape[-1])


def _held(problem: Problem) -> int:
    return with_tail(problem["x"].shape[-1])


def _edges(problem: Problem) -> bool:
    return have_edges(problem["x"], problem["grad_out"])


def _step(config: Mapping[str, Any], problem: Problem, target: Target) -> int:
    """What the number of programs is a multiple of: all rows of a program have the same edges."""
    del target
    return edge_period(problem["x"]) if config.get("EDGES", False) else 1


def _max_values(registers: int, itemsize: int) -> int:
    """How many values of a tile a thread can hold without spilling: each takes a register of
    grad_weight and three of its own, or three halves (seen on sm_90)."""
    return min(32, int((registers - 24) / (2.5 if itemsize == 2 else 4)))


def _programs(n_rows: int, config: Mapping[str, Any]) -> int:
    """As few as need no more rounds: each has a share of grad_weight to write and to add up."""
    tiles, step = triton.cdiv(n_rows, config["BLOCK_M"]), config["STEP"]
    most = max(step, config["NUM_PROGRAMS"] // step * step)
    programs = triton.cdiv(tiles, max(1, triton.cdiv(tiles, most)))
    return triton.cdiv(programs, step) * step


SPACE = Space(
    pow2("BLOCK_M", 1, 64),
    pow2("num_warps", 1, 32),
    choice("PROGRAMS_PER_SM", 1, 2, 3, 4, 6, 8, 16),
    choice("STAGES", 1, 2, 3, 4),
    when(lambda c, p, t: _edges(p), flag("EDGES")),
    when(lambda c, p, t: _held(p) < _width(p) and not _edges(p), flag("TAIL")),
    when(lambda c, p, t: p["weight"] is not None and not c.get("EDGES", False), flag("PRELOAD")),
    when(lambda c, p, t: t.vendor == "cuda" and in_two_blocks(c), flag("FIT")),
    flag("ONE_SUM"),
    choice("STREAM", "", ".cs"),
    when(lambda c, p, t: can_overlap(t) and has_weight_grad(p), flag("OVERLAP")),
    derive("BLOCK_N", lambda c, p, t: held_columns(c, p["x"])),
    derive("STEP", _step),
    VALUES,
    derive("MAX_REGISTERS", max_registers),
    derive("NUM_PROGRAMS", lambda c, p, t: c["PROGRAMS_PER_SM"] * t.num_sms),
    derive("SUM_BLOCK", lambda c, p, t: sum_block(p["x"].shape[-1], t)),
    require(
        "a program has more than 1,024 threads",
        lambda c, p, t: c["num_warps"] * t.warp_size <= 1024,
    ),
    require(
        "a thread holds more values of the tile than there are registers for",
        lambda c, p, t: c["VALUES"] <= _max_values(c["MAX_REGISTERS"], p["x"].itemsize),
    ),
    require(
        "rows side by side have other edges",
        lambda c, p, t: c["BLOCK_M"] == 1 or c["STEP"] == 1,
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


def _blocks(problem: Problem, target: Target) -> dict[str, Value]:
    """How the prior holds a row: edges where a row's middle is worth them, a tail where it saves
    registers."""
    x = problem["x"]
    if _edges(problem):
        worth = edge_period(x) == 1 or x.shape[-1] >= MIN_BLOCKS
        blocks: dict[str, Value] = {"EDGES": worth}
    else:
        saves = _held(problem) < _width(problem)
        blocks = {"TAIL": x.shape[-1] >= MIN_BLOCKS} if saves else {}
    return {**blocks, "FIT": True} if target.vendor == "cuda" and in_two_blocks(blocks) else blocks


def _prior(problem: Problem, target: Target) -> dict[str, Value]:
    """Tiles of 2,048 values or a row, 16 values a thread, or half of it where there is a tail; as
    many programs as there are registers for, with the next tile on its way while one is computed,
    and one more where a processor has one program. Rows off 16 bytes and without edges have
    addresses that leave no registers for that."""
    itemsize, n_rows = problem["x"].itemsize, max(1, rows(problem))
    blocks = _blocks(problem, target)
    edges, tail = blocks.get("EDGES", False), blocks.get("TAIL", False)
    held = held_columns(blocks, problem["x"])
    block_m = min(64, max(1, 2048 // (main_block(held) if edges else _width(problem))))
    most_m = 1 if _step(blocks, problem, target) > 1 else 2 * n_rows - 1
    while block_m > most_m:
        block_m //= 2
    aligned = edges or on_16_bytes(problem["x"], problem["grad_out"])
    pipelined = target.vendor == "cuda" and aligned
    most = 1024 if pipelined else 512  # threads
    threads = min(main_block(block_m * held * (2 if tail else 1) // 16), most)
    warps = max(1, threads // target.warp_size)
    tile = block_m * held * itemsize
    registers = _usual_registers(itemsize, aligned, blocks, block_m)
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
        **blocks,
        **({} if edges else {"PRELOAD": pipelined}),
        "ONE_SUM": aligned,
        "STREAM": "",
        **({"OVERLAP": True} if can_overlap(target) and has_weight_grad(problem) else {}),
    }


def _usual_registers(itemsize: int, aligned: bool, blocks: Mapping[str, Any], block_m: int) -> int:
    """A thread's, with 16 values (8 to 12 and a tail), as the compiler has them on sm_90."""
    if not aligned:
        return 168
    if blocks.get("EDGES", False):
        return 128 if itemsize == 2 or block_m == 1 else 168
    if blocks.get("TAIL", False):
        return 64 if itemsize == 2 else 80
    return 80 if itemsize == 2 else 112


def supports(problem: Problem, target: Target) -> str | None:
    del target
    x, size = problem["x"], problem["x"].itemsize
    if _width(problem) * size > MAX_BYTES:
        return f"rows of {x.shape[-1]} values of {size} bytes are wider than {MAX_BYTES} bytes"
    return why_not_rows(x, problem["grad_out"])


def _workspace(problem: Problem, config: Config) -> tuple[TensorSpec, ...]:
    """Every program's share of grad_weight."""
    if not has_weight_grad(problem):
        return ()
    shape = (_programs(rows(problem), config), share_width(problem["x"].shape[-1]))
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
        tail = (weight, grad_x, partials, n_rows, n, float(eps))
        launches.append(
            Launch(
                kernel=_rms_norm_bwd_kernel,
                grid=(_programs(n_rows, config),),
                args=(x, grad_out, *leading_arguments(*specs), *tail),
                constexprs={
                    "LEADING": len(collapse_rows(*specs)),
                    "PRELOAD": weight is not None and config.get("PRELOAD", True),
                    "OVERLAP": overlap,
                    **{k: config[k] for k in CONSTEXPRS},
                },
                options={
                    "num_warps": config["num_warps"],
                    **({"maxnreg": config["MAX_REGISTERS"]} if config.get("FIT") else {}),
                },
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
