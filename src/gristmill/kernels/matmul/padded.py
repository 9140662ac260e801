"""`out = a @ b` for operands whose rows are off 16 bytes: copied to rows that are on them, then
multiplied by the persistent TMA GEMM.

One launch copies the operands that need it, row by row as they lie in memory, into workspace with
rows of whole 128-byte lines: read element by element, coalesced, and written 16 bytes at a time.
The second launch is `persistent_tma`'s, on descriptors of the copies; with PDL (programmatic
dependent launch) it is set up while the first one runs. The copy moves M K + K N
elements twice, the product computes M N K: made for odd sizes from some hundreds on, where a GEMM
that loads off 16 bytes runs at a fraction of its speed (docs/performance/matmul.md).
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl

from gristmill import settings
from gristmill.core.config import Config, Value
from gristmill.core.launch import Launch
from gristmill.core.problem import Problem, TensorSpec
from gristmill.core.registry import register
from gristmill.core.space import Space, choice, derive, flag
from gristmill.core.target import Target
from gristmill.kernels.matmul import persistent_tma
from gristmill.kernels.matmul.persistent_tma import Operand
from gristmill.specs.matmul import OP, Product, product, product_of, why_not_one_product

ROW_BYTES = 128  # rows of the copies are whole lines of memory
COPY_WARPS = 4


@triton.jit
def _copy_block(
    block, source_ptr, stride, copy_ptr, copy_stride, rows, cols,
    BLOCK_ROWS: tl.constexpr, BLOCK_COLS: tl.constexpr,
):  # fmt: skip
    """Copy a block of a matrix, with zeros up to the end of its copy's rows."""
    blocks_across = tl.cdiv(copy_stride, BLOCK_COLS)
    first_row, first_col = block // blocks_across * BLOCK_ROWS, block % blocks_across * BLOCK_COLS
    rows_in, cols_in = tl.arange(0, BLOCK_ROWS).to(tl.int64), tl.arange(0, BLOCK_COLS)
    # Loads and stores of one shape get one layout: a lane would read its 16 bytes in pieces. In
    # three dimensions the last one is a warp's, and its lanes read neighbouring elements.
    row = (first_row + rows_in)[:, None, None]
    warps, lanes = tl.arange(0, BLOCK_COLS // 32)[None, :, None], tl.arange(0, 32)[None, None, :]
    col = first_col + warps * 32 + lanes
    values = tl.load(source_ptr + row * stride + col, mask=(row < rows) & (col < cols), other=0.0)
    row, col = (first_row + rows_in)[:, None], (first_col + cols_in)[None, :]
    tl.store(
        copy_ptr + row * copy_stride + col,
        tl.reshape(values, (BLOCK_ROWS, BLOCK_COLS)),
        mask=(row < rows) & (col < copy_stride),
    )


@triton.jit(do_not_specialize=["one_rows", "one_blocks", "two_rows"])
def _matmul_fwd_pad_kernel(
    one_ptr, stride_one, one_copy_ptr, one_copy_stride, one_rows, one_cols, one_blocks,
    two_ptr, stride_two, two_copy_ptr, two_copy_stride, two_rows, two_cols,
    BLOCK_ROWS: tl.constexpr, BLOCK_COLS: tl.constexpr, OVERLAPS: tl.constexpr,
):  # fmt: skip
    if OVERLAPS:
        tl.extra.cuda.gdc_launch_dependents()
    block = tl.program_id(0)
    if two_ptr is None or block < one_blocks:
        _copy_block(
            block, one_ptr, stride_one, one_copy_ptr, one_copy_stride, one_rows, one_cols,
            BLOCK_ROWS, BLOCK_COLS,
        )  # fmt: skip
    else:
        _copy_block(
            block - one_blocks, two_ptr, stride_two, two_copy_ptr, two_copy_stride,
            two_rows, two_cols, BLOCK_ROWS, BLOCK_COLS,
        )  # fmt: skip


SPACE = Space(
    *persistent_tma.RULES,
    choice("COPY_ROWS", 4, 8, 16, 32),
    choice("COPY_COLS", 128, 256, 512),
    flag("PDL"),
    derive("OVERLAPS", lambda c, p, t: c["PDL"] and t.is_gpu and not settings.current().interpret),
)


def _prior(problem: Problem, target: Target) -> dict[str, Value]:
    """The GEMM's, and sixteen elements a thread for the copy."""
    return {**persistent_tma.prior(problem, target), "COPY_ROWS": 8, "COPY_COLS": 256, "PDL": True}


def supports(problem: Problem, target: Target) -> str | None:
    reason = persistent_tma.why_not_gemm(problem, target) or why_not_one_product(problem)
    if reason is not None:
        return reason
    one = product(problem)
    assert one is not None
    if not _copied(one):
        return "every row is on 16 bytes: `persistent_tma` reads it where it lies"
    for spec in _copied(one):
        if _contiguous_dim(spec) is None:
            return f"an operand with strides {spec.strides} has no unit stride"
    return None


def _contiguous_dim(spec: TensorSpec) -> int | None:
    """The dimension along which a matrix lies in rows, the last one first."""
    dims = (d for d in (1, 0) if spec.strides[d] == 1 or spec.shape[d] == 1)
    return next(dims, None)


def _copy(spec: TensorSpec) -> TensorSpec:
    """Where the copy of a matrix lies: the same matrix in rows of whole lines."""
    dim = _contiguous_dim(spec)
    assert dim is not None
    line = ROW_BYTES // spec.itemsize
    stride = triton.cdiv(spec.shape[dim], line) * line
    return TensorSpec(spec.shape, (stride, 1) if dim == 1 else (1, stride), spec.dtype)


def _rows(copy: TensorSpec) -> TensorSpec:
    """A copy as contiguous rows, their ends included."""
    dim = 1 if copy.strides[1] == 1 else 0
    return TensorSpec.contiguous((copy.shape[1 - dim], copy.strides[1 - dim]), copy.dtype)


def _copied(one: Product) -> tuple[TensorSpec, ...]:
    return tuple(spec for spec in (one.a, one.b) if spec.tma_dim is None)


def _workspace(problem: Problem, config: Config) -> tuple[TensorSpec, ...]:
    del config
    one = product(problem)
    assert one is not None
    return tuple(_rows(_copy(spec)) for spec in _copied(one))


def _launch(
    args: tuple[Any, ...],
    outputs: tuple[torch.Tensor, ...],
    workspace: tuple[torch.Tensor, ...],
    config: Config,
) -> tuple[Launch, ...]:
    a, b, _ = args
    one = product_of(TensorSpec.of(a), TensorSpec.of(b))
    assert one is not None
    operands, copies, spare = [], [], iter(workspace)
    for tensor, spec in ((a, one.a), (b, one.b)):
        if spec.tma_dim is None:
            operands.append(Operand(next(spare), _copy(spec)))
            copies.append((tensor, spec, *operands[-1][:2]))
        else:
            operands.append(Operand(tensor, spec))
    multiply = persistent_tma.gemm(*operands, outputs[0], config, waits=config["OVERLAPS"])
    return _pad(copies, config), multiply


def _pad(
    copies: list[tuple[torch.Tensor, TensorSpec, torch.Tensor, TensorSpec]], config: Config
) -> Launch:
    """The launch that makes these copies: (tensor, what it is, workspace, what that is)."""
    arguments, blocks = [], []
    for tensor, spec, space, copy in copies:
        dim = 1 if copy.strides[1] == 1 else 0
        (rows, cols), stride = (spec.shape[1 - dim], spec.shape[dim]), copy.strides[1 - dim]
        across = triton.cdiv(stride, config["COPY_COLS"])
        blocks.append(triton.cdiv(rows, config["COPY_ROWS"]) * across)
        arguments.append((tensor, spec.strides[1 - dim], space, stride, rows, cols))
    second = arguments[1] if len(copies) > 1 else (None,) * 6
    return Launch(
        kernel=_matmul_fwd_pad_kernel,
        grid=(sum(blocks),),
        args=(*arguments[0], blocks[0], *second),
        constexprs={
            "BLOCK_ROWS": config["COPY_ROWS"],
            "BLOCK_COLS": config["COPY_COLS"],
            "OVERLAPS": config["OVERLAPS"],
        },
        options={"num_warps": COPY_WARPS},
    )


matmul = register(
    OP, "padded", _launch, space=SPACE, prior=_prior, supports=supports, workspace=_workspace
)
