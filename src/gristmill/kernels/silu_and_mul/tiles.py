"""`out = silu(gate) * up`, a program a tile of rows and columns.

The two halves of a packed `x` are read at one offset from two bases, each 16 bytes at a time where
the rows lie on 16 bytes; gate and up in dense tensors of their own are walked as one long row.
For every size.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl

from gristmill.core.config import Config, Value
from gristmill.core.launch import Launch
from gristmill.core.problem import Problem
from gristmill.core.registry import register
from gristmill.core.target import Target
from gristmill.kernels.device.activations import sigmoids
from gristmill.kernels.device.row_tiles import (
    Grid,
    tile_at,
    tile_constexprs,
    tile_prior,
    tile_space,
    why_not_tiles,
)
from gristmill.kernels.device.rows import row_offset
from gristmill.specs.silu_and_mul import OP, sizes


@triton.jit
def _tile(x_ptr, up_ptr, out_ptr, mask, EVICT: tl.constexpr, STREAM: tl.constexpr):
    gate = tl.load(x_ptr, mask=mask, eviction_policy=EVICT).to(tl.float32)
    up = tl.load(up_ptr, mask=mask, eviction_policy=EVICT).to(tl.float32)
    sigmoid, _ = sigmoids(gate)
    y = (gate * sigmoid * up).to(out_ptr.dtype.element_ty)
    tl.store(out_ptr, y, mask=mask, cache_modifier=STREAM)


@triton.jit(do_not_specialize=["n_rows", "size_0", "size_1"])
def _silu_and_mul_fwd_kernel(
    x_ptr, up_ptr, out_ptr, size_0, size_1,
    stride_x0, stride_x1, stride_x2, stride_u0, stride_u1, stride_u2,
    n_rows, N,
    LEADING: tl.constexpr, DENSE: tl.constexpr, BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr, EVICT: tl.constexpr, STREAM: tl.constexpr,
):  # fmt: skip
    start, row = tile_at(tl.program_id(0), N, DENSE, BLOCK_M, BLOCK_N)
    cols = tl.arange(0, BLOCK_N)
    mask = (row < n_rows)[:, None] & (cols < N - start)[None, :]
    at_x = row_offset(row, size_0, size_1, stride_x0, stride_x1, stride_x2, LEADING)
    at_up = row_offset(row, size_0, size_1, stride_u0, stride_u1, stride_u2, LEADING)
    if up_ptr is None:
        up_ptr = x_ptr + N
    x = x_ptr + start + at_x[:, None] + cols[None, :]
    u = up_ptr + start + at_up[:, None] + cols[None, :]
    at_out = row * 0 if DENSE else row * N  # the one row starts on 16 bytes, whatever N
    out = out_ptr + start + at_out[:, None] + cols[None, :]
    if DENSE:
        if start + BLOCK_N <= N:
            _tile(x, u, out, None, EVICT, STREAM)
        else:
            _tile(x, u, out, mask, EVICT, STREAM)
    else:
        _tile(x, u, out, mask, EVICT, STREAM)


def _grid(problem: Problem) -> Grid:
    x, up = problem["x"], problem["up"]
    return Grid.of(*sizes(problem), x, up or x)


SPACE = tile_space(_grid)


def _prior(problem: Problem, target: Target) -> dict[str, Value]:
    return tile_prior(_grid(problem), target)


def supports(problem: Problem, target: Target) -> str | None:
    del target
    return why_not_tiles(_grid(problem), problem["x"], problem["up"] or problem["x"])


def _launch(
    args: tuple[Any, ...],
    outputs: tuple[torch.Tensor, ...],
    workspace: tuple[torch.Tensor, ...],
    config: Config,
) -> tuple[Launch, ...]:
    del workspace
    x, up = args
    if outputs[0].numel() == 0:
        return ()
    grid = _grid(OP.problem(args))
    return (
        Launch(
            kernel=_silu_and_mul_fwd_kernel,
            grid=(grid.programs(config["BLOCK_M"], config["BLOCK_N"]),),
            args=(x, up, outputs[0], *grid.leading, grid.rows, grid.width),
            constexprs=tile_constexprs(grid, config),
            options={"num_warps": config["num_warps"]},
        ),
    )


# Untuned, it goes before the eager composition, which passes over the tensors some six times.
silu_and_mul = register(
    OP, "tiles", _launch, space=SPACE, prior=_prior, supports=supports, preference=1
)
