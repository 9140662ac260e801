"""The gradients of `partial_rotary_emb`, a program a tile of tokens that walks their heads.

What the heads' keys pass to the one `k_pe` is summed in registers, in float32 and always in the
same order, and turned back once. Written 16 bytes at a time where the parts of a head lie on 16
bytes. For every size.
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
from gristmill.specs.partial_rotary_emb_backward import OP, latent


@triton.jit(do_not_specialize=["n_tokens", "length"])
def _partial_rotary_bwd_kernel(
    q_ptr, kv_ptr, cos_ptr, sin_ptr, dq_ptr, dpe_ptr, dkv_ptr,
    stride_qb, stride_qs, stride_qh, stride_vb, stride_vs, stride_v2, stride_vh,
    stride_tb, stride_ts, n_tokens, length, n_heads,
    HEAD: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """`q` and `kv` are the gradients of what the forward pass returned; HEAD and TILE are its
    kernel's."""
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
    token = tl.program_id(0) * BLOCK_T + tl.arange(0, BLOCK_T)
    here = token < n_tokens
    batch = (token // length).to(tl.int64)
    position = (token % length).to(tl.int64)
    cos, sin = load_angles(
        cos_ptr, sin_ptr, batch * stride_tb + position * stride_ts, here, PAIRS, BLOCK_P, 1
    )
    cos, sin = cos[:, None, :], sin[:, None, :]
    at_q = q_ptr + (batch * stride_qb + position * stride_qs)[:, None]
    at_kv = kv_ptr + (batch * stride_vb + position * stride_vs)[:, None]
    first_sum = tl.zeros((BLOCK_T, 1, BLOCK_P), tl.float32)
    second_sum = tl.zeros((BLOCK_T, 1, BLOCK_P), tl.float32)
    for start in range(0, n_heads, BLOCK_H):
        head = start + tl.arange(0, BLOCK_H)
        mask = here[:, None] & (head < n_heads)[None, :]
        wide = head.to(tl.int64)
        q = at_q + (wide * stride_qh)[None, :]
        key = at_kv + (wide * stride_vh)[None, :]
        value = key + stride_v2
        row = (token.to(tl.int64) * n_heads)[:, None] + head[None, :]
        dq = dq_ptr + row * (NOPE + 2 * PAIRS)
        dkv = dkv_ptr + row * (NOPE + VALUE)
        first, second = load_pairs(q + NOPE, mask, PAIRS, BLOCK_P, False, EVICT)
        key_first, key_second = load_pairs(key + NOPE, mask, PAIRS, BLOCK_P, False, EVICT)
        first, second = turn(first, second, cos, sin, True)
        if NOPE > 0:
            q_nope = load_columns(q, mask, NOPE, BLOCK_N, EVICT)
            k_nope = load_columns(key, mask, NOPE, BLOCK_N, EVICT)
            store_columns(dq, q_nope, mask, NOPE, BLOCK_N, STREAM)
            store_columns(dkv, k_nope, mask, NOPE, BLOCK_N, STREAM)
        store_pairs(dq + NOPE, first, second, mask, PAIRS, BLOCK_P, INTERLEAVED, STREAM)
        if VALUE > 0:
            v = load_columns(value, mask, VALUE, BLOCK_V, EVICT)
            store_columns(dkv + NOPE, v, mask, VALUE, BLOCK_V, STREAM)
        # What lies outside a tile is undefined where it is loaded.
        inside = mask[:, :, None]
        first_sum += tl.sum(tl.where(inside, key_first, 0.0), axis=1, keep_dims=True)
        second_sum += tl.sum(tl.where(inside, key_second, 0.0), axis=1, keep_dims=True)
    first, second = turn(first_sum, second_sum, cos, sin, True)
    dpe = dpe_ptr + (token.to(tl.int64) * (2 * PAIRS))[:, None]
    store_pairs(dpe, first, second, here[:, None], PAIRS, BLOCK_P, INTERLEAVED, STREAM)


def _tiling(problem: Problem) -> HeadTiles:
    of, grad = latent(problem), problem["grad_q_out"]
    return HeadTiles(
        tokens=of.tokens,
        heads=(of.heads,),
        columns=2 * power(of.nope) + 4 * power(of.pairs) + power(of.value),
        part=power(of.pairs),
        itemsize=grad.itemsize,
        table_bytes=2 * of.pairs * (2 * problem["cos"].itemsize + grad.itemsize),
        looped=True,
    )


SPACE = tile_space(_tiling)


def _prior(problem: Problem, target: Target) -> dict[str, Value]:
    return tile_prior(_tiling(problem), target)


def supports(problem: Problem, target: Target) -> str | None:
    del target
    if latent(problem).pairs == 0:
        return "no column is turned"
    if latent(problem).heads == 0:
        return "no heads to sum over"
    return why_not_tiles(_tiling(problem)) or why_not_alike(problem["cos"], problem["sin"])


def _launch(
    args: tuple[Any, ...],
    outputs: tuple[torch.Tensor, ...],
    workspace: tuple[torch.Tensor, ...],
    config: Config,
) -> tuple[Launch, ...]:
    del workspace
    grad_q_out, grad_kv_out, cos, sin, _, _, interleaved = args
    if grad_q_out.numel() == 0:
        return ()
    problem = OP.problem(args)
    of = latent(problem)
    strides = (*grad_q_out.stride()[:3], *grad_kv_out.stride()[:4], *row_strides(problem["cos"]))
    sizes = (of.tokens, grad_q_out.shape[1], of.heads)
    return (
        Launch(
            kernel=_partial_rotary_bwd_kernel,
            grid=(_tiling(problem).programs(config["BLOCK_T"], config["BLOCK_H"]),),
            args=(grad_q_out, grad_kv_out, cos, sin, *outputs, *strides, *sizes),
            constexprs={
                "HEAD": packed(of.nope, of.pairs, of.value, interleaved),
                "TILE": tile_constant(config),
            },
            options={"num_warps": config["num_warps"]},
        ),
    )


# Untuned, it goes before the eager composition, which passes over the tensors some ten times.
partial_rotary_emb_backward = register(
    OP, "tokens", _launch, space=SPACE, prior=_prior, supports=supports, preference=1
)
