"""Rotary embeddings: the rotation of a tile (device functions for whoever fuses it), and the kernel
that turns two tensors of heads in one launch.

A tile is `(tokens, heads, columns)`. Cosines and sines are read once a token and serve all heads of
the tile. Pairs half a head apart are two tiles of half the width, each read 16 bytes at a time;
pairs of neighbours are one tile, read as widely, and taken apart in registers (`tl.split`).
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl

from gristmill.core.config import Config, Value
from gristmill.core.launch import Launch
from gristmill.core.problem import Problem, TensorSpec
from gristmill.core.target import Target
from gristmill.kernels.device.head_tiles import (
    HeadTiles,
    packed,
    power,
    tile_constant,
    tile_prior,
    tile_space,
    why_not_tiles,
)
from gristmill.specs.apply_rotary_pos_emb import heads


@triton.jit
def turn(first, second, cos, sin, INVERSE: tl.constexpr):
    """Pairs turned by angles of these cosines and sines, or by minus them; float32."""
    if INVERSE:
        sin = -sin
    return first * cos - second * sin, second * cos + first * sin


@triton.jit
def load_angles(
    cos_ptr, sin_ptr, at, known,
    PAIRS: tl.constexpr, BLOCK_P: tl.constexpr, STEP: tl.constexpr,
):  # fmt: skip
    """Cosines and sines, float32 `(tokens, BLOCK_P)`, of table rows that start `at`. `STEP`:
    columns from a pair to the next. Rows that are not `known` are NaN, and are not read."""
    pair = tl.arange(0, BLOCK_P)
    mask = known[:, None] & (pair < PAIRS)[None, :]
    at = at[:, None] + (pair * STEP)[None, :]
    nan = float("nan")
    cos = tl.load(cos_ptr + at, mask=mask, other=nan, eviction_policy="evict_last")
    sin = tl.load(sin_ptr + at, mask=mask, other=nan, eviction_policy="evict_last")
    return cos.to(tl.float32), sin.to(tl.float32)


@triton.jit
def load_columns(at, mask, WIDTH: tl.constexpr, BLOCK: tl.constexpr, EVICT: tl.constexpr):
    """`WIDTH` columns of heads that start at the pointers `at`, `(tokens, heads, BLOCK)`."""
    col = tl.arange(0, BLOCK)
    mask = mask[:, :, None]
    if WIDTH != BLOCK:
        mask = mask & (col < WIDTH)[None, None, :]
    return tl.load(at[:, :, None] + col[None, None, :], mask=mask, eviction_policy=EVICT)


@triton.jit
def store_columns(at, x, mask, WIDTH: tl.constexpr, BLOCK: tl.constexpr, STREAM: tl.constexpr):
    """What `load_columns` reads."""
    col = tl.arange(0, BLOCK)
    mask = mask[:, :, None]
    if WIDTH != BLOCK:
        mask = mask & (col < WIDTH)[None, None, :]
    out = at[:, :, None] + col[None, None, :]
    tl.store(out, x.to(at.dtype.element_ty), mask=mask, cache_modifier=STREAM)


@triton.jit
def load_pairs(
    at, mask, PAIRS: tl.constexpr, BLOCK_P: tl.constexpr, INTERLEAVED: tl.constexpr,
    EVICT: tl.constexpr,
):  # fmt: skip
    """First and second values of the pairs of heads that start at the pointers `at`, float32
    `(tokens, heads, BLOCK_P)` each: neighbours where they are interleaved, else half a width
    apart."""
    if INTERLEAVED:
        x = load_columns(at, mask, 2 * PAIRS, 2 * BLOCK_P, EVICT)
        first, second = tl.split(tl.reshape(x, (x.shape[0], x.shape[1], BLOCK_P, 2)))
    else:
        first = load_columns(at, mask, PAIRS, BLOCK_P, EVICT)
        second = load_columns(at + PAIRS, mask, PAIRS, BLOCK_P, EVICT)
    return first.to(tl.float32), second.to(tl.float32)


@triton.jit
def store_pairs(
    at, first, second, mask, PAIRS: tl.constexpr, BLOCK_P: tl.constexpr,
    INTERLEAVED: tl.constexpr, STREAM: tl.constexpr,
):  # fmt: skip
    """What `load_pairs` reads, rounded to the dtype of `at`."""
    if INTERLEAVED:
        dtype = at.dtype.element_ty
        both = tl.join(first.to(dtype), second.to(dtype))
        x = tl.reshape(both, (first.shape[0], first.shape[1], 2 * BLOCK_P))
        store_columns(at, x, mask, 2 * PAIRS, 2 * BLOCK_P, STREAM)
    else:
        store_columns(at, first, mask, PAIRS, BLOCK_P, STREAM)
        store_columns(at + PAIRS, second, mask, PAIRS, BLOCK_P, STREAM)


@triton.constexpr_function
def number(constants: str, index: int) -> int:
    """A number among constants that are `packed`."""
    return int(constants.split(",")[index])


@triton.constexpr_function
def word(constants: str, index: int) -> str:
    """A text among constants that are `packed`."""
    return constants.split(",")[index]


@triton.constexpr_function
def block_of(width: int) -> int:
    """The columns of a block that holds so many; none for none."""
    return 1 << (width - 1).bit_length() if width else 0


@triton.jit
def _turn_heads(
    x_ptr, out_ptr, at_token, token, here, cos, sin, stride_h, first_head, n_heads,
    HEAD: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """A tile of heads, all of it read before any is written: `out` may be `x`."""
    PAIRS: tl.constexpr = number(HEAD, 0)
    REST: tl.constexpr = number(HEAD, 1)
    INTERLEAVED: tl.constexpr = number(HEAD, 3)
    EVICT: tl.constexpr = word(TILE, 2)
    STREAM: tl.constexpr = word(TILE, 3)
    BLOCK_P: tl.constexpr = block_of(PAIRS)
    BLOCK_E: tl.constexpr = block_of(REST)
    head = first_head + tl.arange(0, number(TILE, 1))
    mask = here[:, None] & (head < n_heads)[None, :]
    at = x_ptr + (at_token[:, None] + (head.to(tl.int64) * stride_h)[None, :])
    row = (token.to(tl.int64) * n_heads)[:, None] + head[None, :]
    out = out_ptr + row * (2 * PAIRS + REST)
    first, second = load_pairs(at, mask, PAIRS, BLOCK_P, INTERLEAVED, EVICT)
    if REST > 0:
        rest = load_columns(at + 2 * PAIRS, mask, REST, BLOCK_E, EVICT)
    first, second = turn(first, second, cos[:, None, :], sin[:, None, :], number(HEAD, 4))
    store_pairs(out, first, second, mask, PAIRS, BLOCK_P, INTERLEAVED, STREAM)
    if REST > 0:
        store_columns(out + 2 * PAIRS, rest, mask, REST, BLOCK_E, STREAM)


@triton.jit(do_not_specialize=["n_tokens", "length", "n_rows", "stride_ib", "stride_is"])
def _rotary_kernel(
    q_ptr, k_ptr, cos_ptr, sin_ptr, ids_ptr, q_out_ptr, k_out_ptr,
    stride_qb, stride_qs, stride_qh, stride_kb, stride_ks, stride_kh,
    stride_tb, stride_ts, stride_ib, stride_is,
    n_tokens, length, n_rows, q_heads, k_heads,
    HEAD: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """A tile of heads of `q` or of `k`.

    HEAD, `packed`: what a head is made of and what is done with it: its pairs, the columns behind
    them, the step from a pair's column in a table to the next one's, whether pairs are neighbours,
    and whether they are turned back. Constants: half a head is where the second values start, and
    of a constant alone does Triton know multiples of 8. TILE: tokens, heads, and the hints of loads
    and stores.
    """
    BLOCK_T: tl.constexpr = number(TILE, 0)
    BLOCK_H: tl.constexpr = number(TILE, 1)
    PAIRS: tl.constexpr = number(HEAD, 0)
    q_blocks = (q_heads + BLOCK_H - 1) // BLOCK_H
    blocks = q_blocks + (k_heads + BLOCK_H - 1) // BLOCK_H
    pid = tl.program_id(0)
    block = pid % blocks
    token = pid // blocks * BLOCK_T + tl.arange(0, BLOCK_T)
    here = token < n_tokens
    batch = (token // length).to(tl.int64)
    position = (token % length).to(tl.int64)
    row, known = position, here
    if ids_ptr is not None:
        at_id = batch * stride_ib + position * stride_is
        row = tl.load(ids_ptr + at_id, mask=here, other=0).to(tl.int64)
        known = here & (row >= 0) & (row < n_rows)
    at = batch * stride_tb + row * stride_ts
    cos, sin = load_angles(cos_ptr, sin_ptr, at, known, PAIRS, block_of(PAIRS), number(HEAD, 2))
    if block < q_blocks:
        at_token = batch * stride_qb + position * stride_qs
        _turn_heads(
            q_ptr, q_out_ptr, at_token, token, here, cos, sin, stride_qh,
            block * BLOCK_H, q_heads, HEAD, TILE,
        )  # fmt: skip
    else:
        at_token = batch * stride_kb + position * stride_ks
        _turn_heads(
            k_ptr, k_out_ptr, at_token, token, here, cos, sin, stride_kh,
            (block - q_blocks) * BLOCK_H, k_heads, HEAD, TILE,
        )  # fmt: skip


def tiling(problem: Problem) -> HeadTiles:
    """What the kernel walks."""
    of, interleaved = heads(problem), problem["interleaved"]
    return HeadTiles(
        tokens=of.tokens,
        heads=(of.q.shape[2], of.k.shape[2]),
        columns=2 * power(of.pairs) + power(of.rest),
        part=power(of.pairs) * (2 if interleaved else 1),
        itemsize=of.q.itemsize,
        table_bytes=4 * power(of.pairs) * problem["cos"].itemsize,
    )


SPACE = tile_space(tiling)


def prior(problem: Problem, target: Target) -> dict[str, Value]:
    return tile_prior(tiling(problem), target)


def why_not(problem: Problem, target: Target) -> str | None:
    """Why the kernel cannot turn these heads, or `None`."""
    del target
    if heads(problem).pairs == 0:
        return "no column is turned"
    return why_not_tiles(tiling(problem)) or why_not_alike(problem["cos"], problem["sin"])


def why_not_alike(cos: TensorSpec, sin: TensorSpec) -> str | None:
    """Why the tables cannot be walked as one, or `None`."""
    return None if row_strides(cos) == row_strides(sin) else "`cos` and `sin` have other strides"


def row_strides(table: TensorSpec) -> tuple[int, int]:
    """From a sequence's rows to the next one's, and from a row to the next."""
    many = len(table.shape) == 3 and table.shape[0] > 1
    return table.strides[0] if many else 0, table.strides[-2] if table.shape[-2] > 1 else 0


def _id_strides(ids: torch.Tensor | None) -> tuple[int, int]:
    if ids is None:
        return 0, 0
    many = ids.dim() == 2 and ids.shape[0] > 1
    return ids.stride(0) if many else 0, ids.stride(-1)


def turn_both(
    problem: Problem,
    args: tuple[Any, ...],
    outputs: tuple[torch.Tensor, ...],
    config: Config,
    inverse: bool,
) -> tuple[Launch, ...]:
    """The launch that turns the first two arguments by the tables' angles, or back."""
    of = heads(problem)
    q, k, cos, sin, ids, interleaved, _ = args
    programs = tiling(problem).programs(config["BLOCK_T"], config["BLOCK_H"])
    if programs == 0:
        return ()
    sizes = (of.tokens, q.shape[1], cos.shape[-2], q.shape[2], k.shape[2])
    strides = (*q.stride()[:3], *k.stride()[:3], *row_strides(problem["cos"]), *_id_strides(ids))
    step = 2 if interleaved and cos.shape[-1] == 2 * of.pairs else 1
    return (
        Launch(
            kernel=_rotary_kernel,
            grid=(programs,),
            args=(q, k, cos, sin, ids, *outputs, *strides, *sizes),
            constexprs={
                "HEAD": packed(of.pairs, of.rest, step, interleaved, inverse),
                "TILE": tile_constant(config),
            },
            options={"num_warps": config["num_warps"]},
        ),
    )
