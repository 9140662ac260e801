"""Rows held as one block of columns, a power of two; or as two, where that is fewer or lies better.

Registers are allotted by powers of two: a row of 5,120 values in one block takes those of 8,192, in
a block of 4,096 and a *tail* of 1,024 those of 5,120. And 16 bytes are read at once only where they
start on 16: a row that does not start there has a middle that does, and at most 15 bytes on either
side of it, its *edges*; the middle is the first block, both edges together the second. What is read
and written is the row and nothing beside it.

A kernel gets how many columns it holds, `BLOCK_N`, and takes it apart: the largest power of two in
it, and the rest, which may be none; fewer than `MIN_TAIL` are edges.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import triton
import triton.language as tl

from gristmill.core.problem import Problem, TensorSpec
from gristmill.core.target import Target
from gristmill.kernels.device.rows import collapse_rows

ACCESS_BYTES = 16
REGISTERS = 65_536  # of a processor
MIN_BLOCK = 16
MIN_TAIL = 32  # columns, so that fewer are edges
MIN_MIDDLE = 64  # values: narrower rows have a middle that is not worth its edges


def one_block(width: int) -> int:
    """The columns of the narrowest block that holds a row."""
    return max(MIN_BLOCK, triton.next_power_of_2(width))


def with_tail(width: int) -> int:
    """The columns of the narrowest block and tail that hold a row; those of `one_block` where they
    are no fewer."""
    block = one_block(width)
    main = block // 2
    return min(block, main + max(MIN_TAIL, one_block(max(1, width - main))))


def held_columns(config: Mapping[str, Any], spec: TensorSpec) -> int:
    """The columns held of a row: of its middle and its edges, of a block and a tail, of a block."""
    width, values = spec.shape[-1], ACCESS_BYTES // spec.itemsize
    if config.get("EDGES", False):
        return one_block(width // values * values) + 2 * values
    return with_tail(width) if config.get("TAIL", False) else one_block(width)


def in_two_blocks(config: Mapping[str, Any]) -> bool:
    """Whether a config holds rows in two blocks."""
    return config.get("EDGES", False) or config.get("TAIL", False)


def max_registers(config: Mapping[str, Any], problem: Problem, target: Target) -> int:
    """A thread's, where a program has a processor to itself, or (`FIT`) its share of one."""
    del problem
    programs = config["PROGRAMS_PER_SM"] if config.get("FIT", False) else 1
    threads = programs * config["num_warps"] * target.warp_size
    return min(255, REGISTERS // threads // 8 * 8)


def edge_period(spec: TensorSpec) -> int:
    """After how many rows, at most, a row of a dense tensor starts as far from 16 bytes again: rows
    of a program that are so far apart have the same edges."""
    values = ACCESS_BYTES // spec.itemsize
    return 1 if spec.shape[-1] % values == 0 else values


def have_edges(spec: TensorSpec, *others: TensorSpec) -> bool:
    """Whether each row starts as far from 16 bytes in all of these tensors as in a dense one, and
    has a middle. Rows whose every start Triton knows to be on 16 bytes have no edges."""
    specs, width = (spec, *others), spec.shape[-1]
    values = ACCESS_BYTES // spec.itemsize
    if width < MIN_MIDDLE or spec.itemsize > 4 or not all(s.aligned for s in specs):
        return False
    dense = width
    for size, *strides in collapse_rows(*specs):
        if size > 1 and any((stride - dense) % values for stride in strides):
            return False
        dense *= size
    return not on_16_bytes(*specs)


def on_16_bytes(spec: TensorSpec, *others: TensorSpec) -> bool:
    """Whether Triton knows that every row starts on 16 bytes, in these tensors and in a dense one:
    it asks for multiples of 16 values."""
    specs = (spec, *others)
    steps = [stride for _, *strides in collapse_rows(*specs) for stride in strides]
    steps.append(spec.shape[-1])
    return all(s.aligned for s in specs) and all(step % 16 == 0 for step in steps)


@triton.constexpr_function
def main_block(BLOCK_N: int) -> int:
    """The first block's columns, of all that are held."""
    return 1 << (BLOCK_N.bit_length() - 1)


@triton.constexpr_function
def access_values(BLOCK_N: int) -> int:
    """How many values an access of a row with edges has, of all columns that are held; 1 where rows
    have none."""
    rest = BLOCK_N - (1 << (BLOCK_N.bit_length() - 1))
    return rest // 2 if 0 < rest < MIN_TAIL else 1


@triton.jit
def next_access(offset, VALUES: tl.constexpr):
    """The first offset from here on where an access of `VALUES` values may start, such that Triton
    knows it."""
    return (offset + (VALUES - 1)) // VALUES * VALUES


@triton.jit
def edge_columns(head, middle, N, VALUES: tl.constexpr):
    """Of a row that starts `head` values before its middle: the columns of both edges, and which of
    them there are."""
    at = tl.arange(0, 2 * VALUES)
    behind = at + (head + middle - VALUES)
    return tl.where(at < VALUES, at, behind), tl.where(at < VALUES, at < head, behind < N)
