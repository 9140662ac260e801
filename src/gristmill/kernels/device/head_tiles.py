"""Tiles of tokens and heads: the geometry, search space and prior of kernels that walk tensors
`(batch, positions, heads, columns)` of one number of tokens, all columns of a head at once."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import triton

from gristmill.core.config import Value
from gristmill.core.problem import Problem
from gristmill.core.space import Space, choice, derive, pow2, require
from gristmill.core.target import Target
from gristmill.kernels.device.rows import MAX_ROWS
from gristmill.record import record

MAX_TOKENS = 2**31 - 2**15  # the end of the last tile is an int32
MAX_COLUMNS = 4096  # of a head: 128 a thread of a warp
MAX_VALUES = 64  # of a tile in a thread; above, the compiler spills
THREAD_BYTES = 64  # of a tile in a thread, by the prior: four 16-byte loads on their way
MAX_WARPS = 16
ACCESS_BYTES = 16
PRIOR_WARPS = 4
PRIOR_HEADS = 16


def power(width: int) -> int:
    """The columns of a block that holds so many; none for none."""
    return triton.next_power_of_2(width) if width else 0


@record
class HeadTiles:
    """What a kernel walks.

    Attributes:
        tokens: positions of all sequences.
        heads: how many each tensor has; a tile is of one tensor.
        columns: of a head, those that a tile has room for: each part is a power of two.
        part: the columns of the narrowest block that is read at once.
        itemsize: bytes of a value.
        table_bytes: what a program reads beside its heads, for each token.
        looped: a program walks all heads of its tokens, block by block.
    """

    tokens: int
    heads: tuple[int, ...]
    columns: int
    part: int
    itemsize: int
    table_bytes: int
    looped: bool = False

    @property
    def most_heads(self) -> int:
        return max(1, *self.heads)

    def blocks(self, block_h: int) -> int:
        """Blocks of so many heads in all tensors."""
        return sum(triton.cdiv(count, block_h) for count in self.heads)

    def programs(self, block_t: int, block_h: int) -> int:
        """How many there are of tiles of this size."""
        blocks = self.blocks(block_h)
        return triton.cdiv(self.tokens, block_t) * (min(1, blocks) if self.looped else blocks)

    def traffic(self, block_h: int) -> int:
        """Bytes that the programs of a token read and write, empty heads too."""
        tile = 2 * block_h * max(1, self.columns) * self.itemsize
        return self.blocks(block_h) * (tile + self.table_bytes)


TilesOf = Callable[[Problem], HeadTiles]


def tile_space(tiles: TilesOf) -> Space:
    """The tiles of such a kernel, and the hints of its accesses."""
    return Space(
        pow2("BLOCK_T", 1, 64),
        pow2("BLOCK_H", 1, 64),
        pow2("num_warps", 1, MAX_WARPS),
        choice("EVICT", "", "evict_first"),
        choice("STREAM", "", ".cs"),
        derive(
            "VALUES",
            lambda c, p, t: (
                c["BLOCK_T"] * c["BLOCK_H"] * tiles(p).columns // (c["num_warps"] * t.warp_size)
            ),
        ),
        require(
            "a thread holds more than 64 values of a tile",
            lambda c, p, t: c["VALUES"] <= MAX_VALUES,
        ),
        require(
            "a thread holds less than one 16-byte access",
            lambda c, p, t: c["num_warps"] == 1 or c["VALUES"] * tiles(p).itemsize >= ACCESS_BYTES,
        ),
        require(
            "a tile has more tokens than the problem",
            lambda c, p, t: c["BLOCK_T"] < 2 * max(1, tiles(p).tokens),
        ),
        require(
            "a tile has more heads than any tensor",
            lambda c, p, t: c["BLOCK_H"] < 2 * tiles(p).most_heads,
        ),
        require(
            "there are more tiles than a grid can have",
            lambda c, p, t: tiles(p).programs(c["BLOCK_T"], c["BLOCK_H"]) <= MAX_ROWS,
        ),
    )


def tile_prior(of: HeadTiles, target: Target) -> dict[str, Value]:
    """Up to 16 heads, such that few of a tile are empty and tables are read seldom; tokens for 128
    threads of 64 bytes, or as many as leave every processor a program."""
    columns, values = max(1, of.columns), THREAD_BYTES // of.itemsize
    most = PRIOR_WARPS * target.warp_size * values
    blocks = [1]
    while 2 * blocks[-1] <= PRIOR_HEADS and blocks[-1] < of.most_heads:
        blocks.append(2 * blocks[-1])
    block_h = min(reversed(blocks), key=of.traffic)
    while block_h > 1 and block_h * columns > most:
        block_h //= 2
    block_t = 1
    while (
        2 * block_t * block_h * columns <= most
        and block_t < min(64, of.tokens)
        and of.programs(2 * block_t, block_h) >= target.num_sms
    ):
        block_t *= 2
    warps, tile = 1, block_t * block_h
    while warps < MAX_WARPS and tile * columns > warps * target.warp_size * MAX_VALUES:
        warps *= 2
    # More of them where even the narrowest block has an access for each thread.
    while (
        warps < MAX_WARPS
        and tile * columns > warps * target.warp_size * values
        and tile * of.part * of.itemsize >= 2 * warps * target.warp_size * ACCESS_BYTES
    ):
        warps *= 2
    return {"BLOCK_T": block_t, "BLOCK_H": block_h, "num_warps": warps, "EVICT": "", "STREAM": ""}


def packed(*constants: int | str) -> str:
    """Constants of a kernel as one, in text: that, and no tuple, an ahead-of-time artifact can
    hold. `rotary.number` and `rotary.word` read it."""
    return ",".join(c if isinstance(c, str) else str(int(c)) for c in constants)


def tile_constant(config: Mapping[str, Any]) -> str:
    """A config, `packed`: tokens and heads of a tile, and the hints of its accesses."""
    return packed(config["BLOCK_T"], config["BLOCK_H"], config["EVICT"], config["STREAM"])


def why_not_tiles(of: HeadTiles) -> str | None:
    """Why such tensors cannot be walked in tiles, or `None`."""
    if of.columns > MAX_COLUMNS:
        return f"heads of more than {MAX_COLUMNS} columns, each part rounded up to a power of two"
    if of.tokens > MAX_TOKENS or of.programs(1, 1) > MAX_ROWS:
        return f"{of.tokens} tokens of {sum(of.heads)} heads are more than a grid can have"
    return None
