"""Gated activations and their gradients, a program a tile of rows and columns.

`out = activation(gate) * up`; `grad_gate = grad_out * up * slope(gate)` and
`grad_up = grad_out * activation(gate)`. All tensors are read and written at one offset from a base
each, 16 bytes at a time where the rows lie on 16 bytes, whether the halves lie in one tensor or in
two; dense tensors of one width are walked as one long row. For every size.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl

from gristmill.core.config import Config, Value
from gristmill.core.implementation import Launcher
from gristmill.core.launch import Launch
from gristmill.core.op import Op
from gristmill.core.problem import Problem, TensorSpec
from gristmill.core.target import Target
from gristmill.kernels.device.activations import activated, sides, slope
from gristmill.kernels.device.row_tiles import (
    Grid,
    tile_at,
    tile_constexprs,
    tile_prior,
    tile_space,
    why_not_tiles,
)
from gristmill.kernels.device.rows import row_offset
from gristmill.specs._activations import Choice
from gristmill.specs._gated import sizes


@triton.jit
def _fwd_tile(
    x_ptr, up_ptr, out_ptr, mask, ACTIVATION: tl.constexpr, EVICT: tl.constexpr,
    STREAM: tl.constexpr,
):  # fmt: skip
    gate = tl.load(x_ptr, mask=mask, eviction_policy=EVICT).to(tl.float32)
    up = tl.load(up_ptr, mask=mask, eviction_policy=EVICT).to(tl.float32)
    side, _ = sides(gate, ACTIVATION)
    y = (activated(gate, side, ACTIVATION) * up).to(out_ptr.dtype.element_ty)
    tl.store(out_ptr, y, mask=mask, cache_modifier=STREAM)


@triton.jit(do_not_specialize=["n_rows", "size_0", "size_1"])
def _gated_fwd_kernel(
    x_ptr, up_ptr, out_ptr, size_0, size_1,
    stride_x0, stride_x1, stride_x2, stride_u0, stride_u1, stride_u2,
    n_rows, N,
    ACTIVATION: tl.constexpr, LEADING: tl.constexpr, DENSE: tl.constexpr, BLOCK_M: tl.constexpr,
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
            _fwd_tile(x, u, out, None, ACTIVATION, EVICT, STREAM)
        else:
            _fwd_tile(x, u, out, mask, ACTIVATION, EVICT, STREAM)
    else:
        _fwd_tile(x, u, out, mask, ACTIVATION, EVICT, STREAM)


@triton.jit
def _bwd_tile(
    g_ptr, x_ptr, up_ptr, dx_ptr, dup_ptr, mask, ACTIVATION: tl.constexpr,
    EVICT: tl.constexpr, STREAM: tl.constexpr,
):  # fmt: skip
    grad = tl.load(g_ptr, mask=mask, eviction_policy=EVICT).to(tl.float32)
    gate = tl.load(x_ptr, mask=mask, eviction_policy=EVICT).to(tl.float32)
    up = tl.load(up_ptr, mask=mask, eviction_policy=EVICT).to(tl.float32)
    side, rest = sides(gate, ACTIVATION)
    dup = grad * activated(gate, side, ACTIVATION)
    dgate = grad * up * slope(gate, side, rest, ACTIVATION)
    dtype = dx_ptr.dtype.element_ty
    tl.store(dx_ptr, dgate.to(dtype), mask=mask, cache_modifier=STREAM)
    tl.store(dup_ptr, dup.to(dtype), mask=mask, cache_modifier=STREAM)


@triton.jit(do_not_specialize=["n_rows", "size_0", "size_1"])
def _gated_bwd_kernel(
    g_ptr, x_ptr, up_ptr, dx_ptr, dup_ptr, size_0, size_1,
    stride_g0, stride_g1, stride_g2, stride_x0, stride_x1, stride_x2,
    stride_u0, stride_u1, stride_u2, n_rows, N,
    ACTIVATION: tl.constexpr, LEADING: tl.constexpr, BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr, EVICT: tl.constexpr, STREAM: tl.constexpr,
):  # fmt: skip
    DENSE: tl.constexpr = LEADING == 0
    DIMS: tl.constexpr = 1 if DENSE else LEADING
    start, row = tile_at(tl.program_id(0), N, DENSE, BLOCK_M, BLOCK_N)
    cols = tl.arange(0, BLOCK_N)
    mask = (row < n_rows)[:, None] & (cols < N - start)[None, :]
    at_g = row_offset(row, size_0, size_1, stride_g0, stride_g1, stride_g2, DIMS)
    at_x = row_offset(row, size_0, size_1, stride_x0, stride_x1, stride_x2, DIMS)
    at_up = row_offset(row, size_0, size_1, stride_u0, stride_u1, stride_u2, DIMS)
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
            _bwd_tile(g, x, u, dx, dup, None, ACTIVATION, EVICT, STREAM)
        else:
            _bwd_tile(g, x, u, dx, dup, mask, ACTIVATION, EVICT, STREAM)
    else:
        _bwd_tile(g, x, u, dx, dup, mask, ACTIVATION, EVICT, STREAM)


def _specs(problem: Problem) -> tuple[TensorSpec, ...]:
    """What is read, in the kernels' order: `x` stands for both halves where there is no `up`."""
    given = tuple(problem.tensors.values())
    return given if problem["up"] is not None else (*given, problem["x"])


def _grid(problem: Problem) -> Grid:
    return Grid.of(*sizes(problem), *_specs(problem))


def _prior(problem: Problem, target: Target) -> dict[str, Value]:
    return tile_prior(_grid(problem), target)


def _supports(problem: Problem, target: Target) -> str | None:
    del target
    return why_not_tiles(_grid(problem), *_specs(problem))


# The fields of an implementation by these kernels. Untuned, it goes before the eager composition,
# which passes over the tensors some six times, ten in the backward pass.
GATED_TILES: dict[str, Any] = {
    "space": tile_space(_grid),
    "prior": _prior,
    "supports": _supports,
    "preference": 1,
}


def gated_launcher(op: Op, choice: Choice) -> Launcher:
    """The launcher of an op made by `specs/_gated.py`, or `specs/_gated_backward.py`."""
    first = op.names.index("x")
    kernel = _gated_bwd_kernel if first else _gated_fwd_kernel

    def _launch(
        args: tuple[Any, ...],
        outputs: tuple[torch.Tensor, ...],
        workspace: tuple[torch.Tensor, ...],
        config: Config,
    ) -> tuple[Launch, ...]:
        del workspace
        if outputs[0].numel() == 0:
            return ()
        grid, tensors, given = _grid(op.problem(args)), args[: first + 2], args[first + 2 :]
        # Without an `up` there is no gradient of it either: the kernel finds both in one tensor.
        written = outputs if tensors[-1] is not None else (outputs[0], None)[: len(outputs)]
        constexprs = {"ACTIVATION": choice.of(*given).name, **tile_constexprs(grid, config)}
        if first:  # its kernel has no room for another parameter: dense tensors lead by none
            constexprs["LEADING"] = 0 if constexprs.pop("DENSE") else grid.dims
        return (
            Launch(
                kernel=kernel,
                grid=(grid.programs(config["BLOCK_M"], config["BLOCK_N"]),),
                args=(*tensors, *written, *grid.leading, grid.rows, grid.width),
                constexprs=constexprs,
                options={"num_warps": config["num_warps"]},
            ),
        )

    return _launch
