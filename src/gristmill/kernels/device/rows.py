"""Rows of a strided tensor: which dimensions merge (host), where a row starts (device)."""

from __future__ import annotations

import math

import triton
import triton.language as tl

from gristmill.core.problem import TensorSpec, merge_dims

MAX_LEADING = 3
MAX_ROWS = 2**31 - 1  # a program for each: the longest grid


def collapse_rows(spec: TensorSpec, *others: TensorSpec) -> tuple[tuple[int, ...], ...]:
    """(size, stride, strides of the `others` ...) of every dimension but the last, merged where
    they can be in every tensor, innermost first. The tensors have the same leading sizes.

    A merged dimension walks the rows in the same order as the dimensions it stands for; never
    empty.
    """
    specs = (spec, *others)
    merged = merge_dims(spec.shape[:-1], *(s.strides[:-1] for s in specs))
    return merged or ((1, *(0 for _ in specs)),)


def why_not_rows(spec: TensorSpec, *others: TensorSpec) -> str | None:
    """Why the rows of `x` (and of what lies beside it) cannot be walked by `row_offset`, or
    `None`."""
    dims, n_rows = len(collapse_rows(spec, *others)), math.prod(spec.shape[:-1])
    if dims > MAX_LEADING:
        return (
            f"the rows of `x` have {dims} dimensions that do not merge; at most {MAX_LEADING} "
            "can be walked"
        )
    return f"{n_rows} rows are more than {MAX_ROWS}" if n_rows > MAX_ROWS else None


def leading_arguments(spec: TensorSpec, *others: TensorSpec) -> tuple[int, ...]:
    """`size_0, size_1`, then `stride_0, stride_1, stride_2` of each tensor, for `row_offset`;
    absent dimensions as size 1, stride 0."""
    absent = (1, *(0 for _ in (spec, *others)))
    dims = (*collapse_rows(spec, *others), absent, absent)[:MAX_LEADING]
    sizes, *strides = zip(*dims, strict=True)
    return (*sizes[:2], *(stride for each in strides for stride in each))


@triton.jit
def row_offset(row, size_0, size_1, stride_0, stride_1, stride_2, LEADING: tl.constexpr):
    """Offset of a row (int64) in elements; `size_0` is the innermost leading dimension."""
    if LEADING == 1:
        return row * stride_0
    elif LEADING == 2:
        return (row // size_0) * stride_1 + (row % size_0) * stride_0
    else:
        outer = row // size_0
        offset = (row % size_0) * stride_0
        return offset + (outer // size_1) * stride_2 + (outer % size_1) * stride_1


@triton.jit
def offset_in(row, sizes, strides, LEADING: tl.constexpr):
    """`row_offset` of two sizes and three strides."""
    return row_offset(row, sizes[0], sizes[1], strides[0], strides[1], strides[2], LEADING)
