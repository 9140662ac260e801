"""Element-wise activations and their gradients, a program a tile of rows and columns.

`out = activation(x)`; `grad_x = grad_out * slope(x)`. 16 bytes at a time where the rows lie on 16
bytes; dense tensors are walked as one long row. Tensors of any strides with a unit stride in the
last dimension.
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
from gristmill.specs._elementwise import sizes


@triton.jit
def _tile(
    g_ptr, x_ptr, out_ptr, mask, ACTIVATION: tl.constexpr, EVICT: tl.constexpr,
    STREAM: tl.constexpr,
):  # fmt: skip
    x = tl.load(x_ptr, mask=mask, eviction_policy=EVICT).to(tl.float32)
    side, rest = sides(x, ACTIVATION)
    if g_ptr is None:
        y = activated(x, side, ACTIVATION)
    else:
        grad = tl.load(g_ptr, mask=mask, eviction_policy=EVICT).to(tl.float32)
        y = grad * slope(x, side, rest, ACTIVATION)
    tl.store(out_ptr, y.to(out_ptr.dtype.element_ty), mask=mask, cache_modifier=STREAM)


@triton.jit(do_not_specialize=["n_rows", "size_0", "size_1"])
def _elementwise_kernel(
    g_ptr, x_ptr, out_ptr, size_0, size_1,
    stride_g0, stride_g1, stride_g2, stride_x0, stride_x1, stride_x2,
    n_rows, N,
    ACTIVATION: tl.constexpr, LEADING: tl.constexpr, DENSE: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, EVICT: tl.constexpr, STREAM: tl.constexpr,
):  # fmt: skip
    start, row = tile_at(tl.program_id(0), N, DENSE, BLOCK_M, BLOCK_N)
    cols = tl.arange(0, BLOCK_N)
    mask = (row < n_rows)[:, None] & (cols < N - start)[None, :]
    at_x = row_offset(row, size_0, size_1, stride_x0, stride_x1, stride_x2, LEADING)
    x = x_ptr + start + at_x[:, None] + cols[None, :]
    if g_ptr is None:
        g = None
    else:
        at_g = row_offset(row, size_0, size_1, stride_g0, stride_g1, stride_g2, LEADING)
        g = g_ptr + start + at_g[:, None] + cols[None, :]
    at_out = row * 0 if DENSE else row * N  # the one row starts on 16 bytes, whatever N
    out = out_ptr + start + at_out[:, None] + cols[None, :]
    if DENSE:
        if start + BLOCK_N <= N:
            _tile(g, x, out, None, ACTIVATION, EVICT, STREAM)
        else:
            _tile(g, x, out, mask, ACTIVATION, EVICT, STREAM)
    else:
        _tile(g, x, out, mask, ACTIVATION, EVICT, STREAM)


def _specs(problem: Problem) -> tuple[TensorSpec, ...]:
    """A gradient, or `x` in its place, and `x`."""
    given = tuple(problem.tensors.values())
    return given[0], given[-1]


def _grid(problem: Problem) -> Grid:
    return Grid.of(*sizes(problem), *_specs(problem))


def _prior(problem: Problem, target: Target) -> dict[str, Value]:
    return tile_prior(_grid(problem), target)


def _supports(problem: Problem, target: Target) -> str | None:
    del target
    for name, spec in problem.tensors.items():
        if spec.numel and spec.shape and spec.shape[-1] > 1 and spec.strides[-1] != 1:
            return f"`{name}` has stride {spec.strides[-1]} along its last dimension"
    return why_not_tiles(_grid(problem), *_specs(problem))


# The fields of an implementation by this kernel.
ELEMENTWISE_TILES: dict[str, Any] = {
    "space": tile_space(_grid),
    "prior": _prior,
    "supports": _supports,
}


def elementwise_launcher(op: Op, choice: Choice) -> Launcher:
    """The launcher of an op of one tensor, or of the gradient of one."""
    count = op.names.index("x") + 1

    def _launch(
        args: tuple[Any, ...],
        outputs: tuple[torch.Tensor, ...],
        workspace: tuple[torch.Tensor, ...],
        config: Config,
    ) -> tuple[Launch, ...]:
        del workspace
        if outputs[0].numel() == 0:
            return ()
        grid, tensors, given = _grid(op.problem(args)), args[:count], args[count:]
        grad = tensors[0] if count > 1 else None
        return (
            Launch(
                kernel=_elementwise_kernel,
                grid=(grid.programs(config["BLOCK_M"], config["BLOCK_N"]),),
                args=(grad, tensors[-1], outputs[0], *grid.leading, grid.rows, grid.width),
                constexprs={
                    "ACTIVATION": choice.of(*given).name,
                    **tile_constexprs(grid, config),
                },
                options={"num_warps": config["num_warps"]},
            ),
        )

    return _launch
