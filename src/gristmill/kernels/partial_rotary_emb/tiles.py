"""Queries turned, and keys and values packed, in one launch: a program a tile of tokens and heads.

A program reads its heads of `q` and `kv` and its tokens of `k_pe` and of the tables, once, and
writes every column of both results: the padding too. Read 16 bytes at a time where the parts of a
head lie on 16 bytes. For every size.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl

from gristmill.core.config import Config, Value
from gristmill.core.launch import Launch
from gristmill.core.problem import Problem
from gristmill.core.registry import register
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
from gristmill.kernels.device.rotary import (
    block_of,
    load_angles,
    load_columns,
    load_pairs,
    number,
    row_strides,
    store_columns,
    store_pairs,
    turn,
    why_not_alike,
    word,
)
from gristmill.specs.partial_rotary_emb import OP, latent


@triton.jit(do_not_specialize=["n_tokens", "length"])
def _partial_rotary_fwd_kernel(
    q_ptr, pe_ptr, kv_ptr, cos_ptr, sin_ptr, q_out_ptr, kv_out_ptr,
    stride_qb, stride_qs, stride_qh, stride_pb, stride_ps, stride_vb, stride_vs, stride_vh,
    stride_tb, stride_ts, n_tokens, length, n_heads,
    HEAD: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """HEAD, `packed`: what a head is made of: the columns without a position, the pairs with one,
    the columns of a value, and whether pairs are neighbours. TILE: tokens, heads, and the hints of
    loads and stores."""
    NOPE: tl.constexpr = number(HEAD, 0)
    PAIRS: tl.constexpr = number(HEAD, 1)
    VALUE: tl.constexpr = number(HEAD, 2)
    INTERLEAVED: tl.constexpr = number(HEAD, 3)
    BLOCK_T: tl.constexpr = number(TILE, 0)
    BLOCK_H: tl.constexpr = number(TILE, 1)
    EVICT: tl.constexpr = word(TILE, 2)
    STREAM: tl.constexpr = word(TILE, 3)
    BLOCK_N: tl.constexpr = block_of(NOPE)
    BLOCK_P: tl.constexpr = block_of(PAIRS)
    BLOCK_V: tl.constexpr = block_of(VALUE)
    BLOCK_Z: tl.constexpr = block_of(NOPE + 2 * PAIRS - VALUE)
    WIDTH: tl.constexpr = NOPE + 2 * PAIRS
    blocks = (n_heads + BLOCK_H - 1) // BLOCK_H
    pid = tl.program_id(0)
    head = pid % blocks * BLOCK_H + tl.arange(0, BLOCK_H)
    token = pid // blocks * BLOCK_T + tl.arange(0, BLOCK_T)
    here = token < n_tokens
    mask = here[:, None] & (head < n_heads)[None, :]
    batch = (token // length).to(tl.int64)
    position = (token % length).to(tl.int64)
    wide = head.to(tl.int64)
    cos, sin = load_angles(
        cos_ptr, sin_ptr, batch * stride_tb + position * stride_ts, here, PAIRS, BLOCK_P, 1
    )
    cos, sin = cos[:, None, :], sin[:, None, :]
    q = q_ptr + (batch * stride_qb + position * stride_qs)[:, None] + (wide * stride_qh)[None, :]
    kv = kv_ptr + (batch * stride_vb + position * stride_vs)[:, None] + (wide * stride_vh)[None, :]
    pe = pe_ptr + (batch * stride_pb + position * stride_ps)[:, None]
    row = (token.to(tl.int64) * n_heads)[:, None] + head[None, :]
    q_out = q_out_ptr + row * WIDTH
    row += (token.to(tl.int64) * n_heads)[:, None]  # values lie between two tokens' keys
    key_out = kv_out_ptr + row * WIDTH
    value_out = kv_out_ptr + (row + n_heads) * WIDTH

    first, second = load_pairs(q + NOPE, mask, PAIRS, BLOCK_P, INTERLEAVED, EVICT)
    first, second = turn(first, second, cos, sin, False)
    if NOPE > 0:
        q_nope = load_columns(q, mask, NOPE, BLOCK_N, EVICT)
        k_nope = load_columns(kv, mask, NOPE, BLOCK_N, EVICT)
        store_columns(q_out, q_nope, mask, NOPE, BLOCK_N, STREAM)
        store_columns(key_out, k_nope, mask, NOPE, BLOCK_N, STREAM)
    store_pairs(q_out + NOPE, first, second, mask, PAIRS, BLOCK_P, False, STREAM)
    first, second = load_pairs(pe, here[:, None], PAIRS, BLOCK_P, INTERLEAVED, "evict_last")
    first, second = turn(first, second, cos, sin, False)
    first = tl.broadcast_to(first, (BLOCK_T, BLOCK_H, BLOCK_P))
    second = tl.broadcast_to(second, (BLOCK_T, BLOCK_H, BLOCK_P))
    store_pairs(key_out + NOPE, first, second, mask, PAIRS, BLOCK_P, False, STREAM)
    if VALUE > 0:
        value = load_columns(kv + NOPE, mask, VALUE, BLOCK_V, EVICT)
        store_columns(value_out, value, mask, VALUE, BLOCK_V, STREAM)
    if VALUE < WIDTH:
        zeros = tl.zeros((BLOCK_T, BLOCK_H, BLOCK_Z), tl.float32)
        store_columns(value_out + VALUE, zeros, mask, WIDTH - VALUE, BLOCK_Z, STREAM)


def _tiling(problem: Problem) -> HeadTiles:
    of = latent(problem)
    return HeadTiles(
        tokens=of.tokens,
        heads=(of.heads,),
        # All that is read of a head; each part is written at once, and forgotten.
        columns=2 * power(of.nope) + 2 * power(of.pairs) + power(of.value),
        part=power(of.pairs) * (2 if problem["interleaved"] else 1),
        itemsize=problem["q"].itemsize,
        table_bytes=2 * of.pairs * (2 * problem["cos"].itemsize + problem["q"].itemsize),
    )


SPACE = tile_space(_tiling)


def _prior(problem: Problem, target: Target) -> dict[str, Value]:
    return tile_prior(_tiling(problem), target)


def supports(problem: Problem, target: Target) -> str | None:
    del target
    if latent(problem).pairs == 0:
        return "no column is turned"
    return why_not_tiles(_tiling(problem)) or why_not_alike(problem["cos"], problem["sin"])


def _launch(
    args: tuple[Any, ...],
    outputs: tuple[torch.Tensor, ...],
    workspace: tuple[torch.Tensor, ...],
    config: Config,
) -> tuple[Launch, ...]:
    del workspace
    q, k_pe, kv, cos, sin, interleaved = args
    if q.numel() == 0:
        return ()
    problem = OP.problem(args)
    of = latent(problem)
    strides = (*q.stride()[:3], *k_pe.stride()[:2], *kv.stride()[:3])
    sizes = (of.tokens, q.shape[1], of.heads)
    return (
        Launch(
            kernel=_partial_rotary_fwd_kernel,
            grid=(_tiling(problem).programs(config["BLOCK_T"], config["BLOCK_H"]),),
            args=(
                *(q, k_pe, kv, cos, sin, *outputs, *strides),
                *(*row_strides(problem["cos"]), *sizes),
            ),
            constexprs={
                "HEAD": packed(of.nope, of.pairs, of.value, interleaved),
                "TILE": tile_constant(config),
            },
            options={"num_warps": config["num_warps"]},
        ),
    )


# Untuned, it goes before the eager composition, which passes over the tensors some ten times.
partial_rotary_emb = register(
    OP, "tiles", _launch, space=SPACE, prior=_prior, supports=supports, preference=1
)
