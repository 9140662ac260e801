"""Tiles of rows and columns: the rules that every kernel on rows has, and the geometry, search
space and prior of element-wise ones.

An element-wise kernel walks `rows` rows of `width` values, by `row_offset` in every tensor; one
program a tile, tiles of a row side by side.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import triton
import triton.language as tl

from gristmill.core.config import Value
from gristmill.core.problem import Problem, TensorSpec
from gristmill.core.space import Requirement, Space, choice, derive, pow2, require
from gristmill.core.target import Target
from gristmill.kernels.device.rows import (
    MAX_ROWS,
    collapse_rows,
    leading_arguments,
    why_not_rows,
)
from gristmill.record import record

MAX_VALUES = 32  # of a tensor in a thread
VALUES = derive(
    "VALUES", lambda c, p, t: c["BLOCK_M"] * c["BLOCK_N"] // (c["num_warps"] * t.warp_size)
)
WHOLE_ACCESSES = require(
    "a thread holds less than one 16-byte access",
    lambda c, p, t: c["num_warps"] == 1 or c["VALUES"] * p["x"].itemsize >= 16,
)
RESIDENT = require(
    "the programs of a processor have more than 2,048 threads",
    lambda c, p, t: c.get("PROGRAMS_PER_SM", 1) * c["num_warps"] * t.warp_size <= 2048,
)

# The copy of the next tile is the last thing in a round, and with two stages the next round waits
# for it.
OVERLAPPING = require(
    "two stages copy nothing while a tile is computed",
    lambda c, p, t: c["STAGES"] != 2 or t.vendor != "cuda",
)


@triton.jit
def tile_at(pid, N, DENSE: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr):
    """Where the tile of a program of an element-wise kernel starts in its rows (int64: there may be
    one long one), and its rows."""
    if DENSE:
        start = pid.to(tl.int64) * BLOCK_N
        row = tl.arange(0, BLOCK_M).to(tl.int64)
    else:
        tiles_n = (N - 1) // BLOCK_N + 1  # `cdiv` adds first: past 32 bits just below 2**31
        start = (pid % tiles_n).to(tl.int64) * BLOCK_N
        row = (pid // tiles_n).to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    return start, row


def no_taller(rows: Callable[[Problem], int]) -> Requirement:
    """At most one tile, and less than half of one, outside the problem's rows."""
    return require(
        "a tile has more rows than the problem",
        lambda c, p, t: c["BLOCK_M"] < 2 * max(1, rows(p)),
    )


@record
class Grid:
    """What element-wise kernels walk.

    Attributes:
        rows, width: how many rows, and values of each.
        leading: `size_0, size_1`, then the leading strides of each tensor (see `rows.row_offset`).
        dims: how many of the leading dimensions there are.
        dense: one long row; then a tile that ends inside it needs no mask, which keeps 16-byte
            accesses where the length is no multiple of 16.
    """

    rows: int
    width: int
    leading: tuple[int, ...]
    dims: int
    dense: bool = False

    @classmethod
    def of(cls, rows: int, width: int, *specs: TensorSpec) -> Grid:
        """Over tensors of `rows` rows; over dense ones of that width, as one long row: it has one
        end, and all of it lies on 16 bytes."""
        if all(s.is_contiguous and s.numel == rows * width for s in specs):
            return cls(1, rows * width, (1, 1, *(0 for _ in range(3 * len(specs)))), 1, dense=True)
        return cls(rows, width, leading_arguments(*specs), len(collapse_rows(*specs)))

    def programs(self, block_m: int, block_n: int) -> int:
        """How many tiles of this size there are."""
        return triton.cdiv(self.rows, block_m) * triton.cdiv(self.width, block_n)


GridOf = Callable[[Problem], Grid]


def tile_space(grid: GridOf) -> Space:
    """The tiles of an element-wise kernel over these grids, and the hints of its accesses."""
    return Space(
        pow2("BLOCK_M", 1, 64),
        pow2("BLOCK_N", 16, 8192),
        pow2("num_warps", 1, 16),
        choice("EVICT", "", "evict_first"),
        choice("STREAM", "", ".cs"),
        VALUES,
        WHOLE_ACCESSES,
        no_taller(lambda p: grid(p).rows),
        require(
            "a thread holds more than 32 values of a tensor",
            lambda c, p, t: c["VALUES"] <= MAX_VALUES,
        ),
        require(
            "a tile is wider than a row, or narrower than a row and than 256 values",
            lambda c, p, t: (
                min(256, _power(grid(p).width)) <= c["BLOCK_N"] <= _power(grid(p).width)
            ),
        ),
        require(
            "there are more tiles than a grid can have",
            lambda c, p, t: grid(p).programs(c["BLOCK_M"], c["BLOCK_N"]) <= MAX_ROWS,
        ),
    )


def tile_prior(grid: Grid, target: Target) -> dict[str, Value]:
    """Tiles of 2,048 values, 16 a thread; of half or a quarter of the width where that leaves a
    sixteenth less outside the rows."""
    power = _power(grid.width)
    padded = {b: triton.cdiv(grid.width, b) * b for b in (2048, 1024, 512) if b <= power}
    least = min(padded.values(), default=0)
    block_n = max((b for b, size in padded.items() if 16 * size <= 17 * least), default=power)
    block_m = min(64, 2048 // block_n)
    while block_m > 1 and block_m >= 2 * grid.rows:
        block_m //= 2
    return {
        "BLOCK_M": block_m,
        "BLOCK_N": block_n,
        "num_warps": max(1, block_m * block_n // (16 * target.warp_size)),
        "EVICT": "",
        "STREAM": "",
    }


def tile_constexprs(grid: Grid, config: Mapping[str, Any]) -> dict[str, Any]:
    """What a kernel over a grid is compiled for."""
    return {
        "LEADING": grid.dims,
        "DENSE": grid.dense,
        **{name: config[name] for name in ("BLOCK_M", "BLOCK_N", "EVICT", "STREAM")},
    }


def why_not_tiles(grid: Grid, *specs: TensorSpec) -> str | None:
    """Why a grid cannot be walked in tiles, or `None`."""
    if grid.programs(64, 16) > MAX_ROWS // 64:
        return f"{grid.rows} x {grid.width} values are more than a grid of programs can walk"
    return why_not_rows(*specs)


def _power(width: int) -> int:
    return max(16, triton.next_power_of_2(width))
