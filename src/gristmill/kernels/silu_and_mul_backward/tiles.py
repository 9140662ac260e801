"""The gradients of `silu_and_mul`, a program a tile of rows and columns.

Three reads and two writes at one offset from five bases, each 16 bytes at a time where the rows lie
on 16 bytes, whether the halves lie in one tensor or in two; dense tensors of one width are walked
as one long row. For every size.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl

from gristmill.core.config import Config, Value
from gristmill.core.launch import Launch
from gristmill.core.problem import Problem, TensorSpec
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
from gristmill.specs.silu_and_mul import sizes
from gristmill.specs.silu_and_mul_backward import OP


@triton.jit
def _tile(
    g_ptr, x_ptr, up_ptr, dx_ptr, dup_ptr, mask, EVICT: tl.constexpr, STREAM: tl.constexpr
):  # fmt: skip
    grad = tl.load(g_ptr, mask=mask, eviction_policy=EVICT).to(tl.float32)
    gate = tl.load(x_ptr, mask=mask, eviction_policy=EVICT).to(tl.float32)
    up = tl.load(up_ptr, mask=mask, eviction_policy=EVICT).to(tl.float32)
    sigmoid, rest = sigmoids(gate)
    dup = grad * (gate * sigmoid)
    dgate = grad * up * (sigmoid * (1 + gate * rest))
    dtype = dx_ptr.dtype.element_ty
    tl.store(dx_ptr, dgate.to(dtype), mask=mask, cache_modifier=STREAM)
    tl.store(dup_ptr, dup.to(dtype), mask=mask, cache_modifier=STREAM)


@triton.jit(do_not_specialize=["n_rows", "size_0", "size_1"])
def _silu_and_mul_bwd_kernel(
    g_ptr, x_ptr, up_ptr, dx_ptr, dup_ptr, size_0, size_1,
    stride_g0, stride_g1, stride_g2, stride_x0, stride_x1, stride_x2,
    stride_u0, stride_u1, stride_u2, n_rows, N,
    LEADING: tl.constexpr, DENSE: tl.constexpr, BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr, EVICT: tl.constexpr, STREAM: tl.constexpr,
):  # fmt: skip
    start, row = tile_at(tl.program_id(0), N, DENSE, BLOCK_M, BLOCK_N)
    cols = tl.arange(0, BLOCK_N)
    mask = (row < n_rows)[:, None] & (cols < N - start)[None, :]
    at_g = row_offset(row, size_0, size_1, stride_g0, stride_g1, stride_g2, LEADING)
    at_x = row_offset(row, size_0, size_1, stride_x0, stride_x1, stride_x2, LEADING)
    at_up = row_offset(row, size_0, size_1, stride_u0, stride_u1, stride_u2, LEADING)
    at_out = row * 0 if DENSE else row * N  # the one row starts on 16 bytes, whatever N
    if up_ptr is None:
        up_ptr, dup_ptr, at_out = x_ptr + N, dx_ptr + N, 2 * at_out
    g = g_ptr + start + at_g[:, None] + cols[None, :]
    x = x_ptr + start + at_x[:, None] + cols[None, :]
    u = up_ptr + start + at_up[:, None] + cols[None, :]
    at_out = start + at_out[:, None] + cols[None, :]
    dx, dup = dx_ptr + at_out, dup_ptr + at_out
    if DENSE:
        if start + BLOCK_N <= N:
            _tile(g, x, u, dx, dup, None, EVICT, STREAM)
        else:
            _tile(g, x, u, dx, dup, mask, EVICT, STREAM)
    else:
        _tile(g, x, u, dx, dup, mask, EVICT, STREAM)


def _specs(problem: Problem) -> tuple[TensorSpec, ...]:
    x = problem["x"]
    return problem["grad_out"], x, problem["up"] or x


def _grid(problem: Problem) -> Grid:
    return Grid.of(*sizes(problem), *_specs(problem))


SPACE = tile_space(_grid)


def _prior(problem: Problem, target: Target) -> dict[str, Value]:
    return tile_prior(_grid(problem), target)


def supports(problem: Problem, target: Target) -> str | None:
    del target
    return why_not_tiles(_grid(problem), *_specs(problem))


def _launch(
    args: tuple[Any, ...],
    outputs: tuple[torch.Tensor, ...],
    workspace: tuple[torch.Tensor, ...],
    config: Config,
) -> tuple[Launch, ...]:
    del workspace
    if outputs[0].numel() == 0:
        return ()
    grid = _grid(OP.problem(args))
    grad_up = outputs[1] if args[2] is not None else None
    return (
        Launch(
            kernel=_silu_and_mul_bwd_kernel,
            grid=(grid.programs(config["BLOCK_M"], config["BLOCK_N"]),),
            args=(*args, outputs[0], grad_up, *grid.leading, grid.rows, grid.width),
            constexprs=tile_constexprs(grid, config),
            options={"num_warps": config["num_warps"]},
        ),
    )


# Untuned, it goes before the eager composition, which passes over the tensors some ten times.
silu_and_mul_backward = register(
    OP, "tiles", _launch, space=SPACE, prior=_prior, supports=supports, preference=1
)
