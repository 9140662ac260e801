"""Rows of a strided tensor: which dimensions merge (host), where a row starts (device)."""

from __future__ import annotations

import math

import triton
import triton.language as tl

from gristmill.core.problem import TensorSpec, merge_dims

MAX_LEADING = 3
MAX_ROWS = 2**31 - 1  # a program for each: the longest grid


def collapse_rows(spec: TensorSpec) -> tuple[tuple[int, int], ...]:
    """(size, stride) of every dimension but the last, merged where they can be, innermost first
    (`merge_dims`); never empty."""
    return merge_dims(spec.shape[:-1], spec.strides[:-1]) or ((1, 0),)


def why_not_rows(spec: TensorSpec) -> str | None:
    """Why the rows of `x` cannot be walked by `row_offset`, or `None`."""
    dims, n_rows = len(collapse_rows(spec)), math.prod(spec.shape[:-1])
    if dims > MAX_LEADING:
        return (
            f"the rows of `x` have {dims} dimensions that do not merge; at most {MAX_LEADING} "
            "can be walked"
        )
    return f"{n_rows} rows are more than {MAX_ROWS}" if n_rows > MAX_ROWS else None


def leading_arguments(spec: TensorSpec) -> tuple[int, ...]:
    """`size_0, size_1, stride_0, stride_1, stride_2` for `row_offset`, absent dimensions as size 1,
    stride 0."""
    pairs = (*collapse_rows(spec), (1, 0), (1, 0))[:MAX_LEADING]
    return (pairs[0][0], pairs[1][0], *(stride for _, stride in pairs))


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
