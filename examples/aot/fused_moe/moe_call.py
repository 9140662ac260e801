"""Quantisation, arguments and a reference for the fused MoE kernel: shared by the JIT's calls and
by those of the artifact, which take the same arguments in the same order."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from moe_blocks import align_blocks

FP8 = torch.float8_e4m3fn
FP8_MAX = torch.finfo(FP8).max


@dataclass(frozen=True)
class Config:
    """The kernel's tuning constants."""

    BLOCK_SIZE_M: int = 64
    BLOCK_SIZE_N: int = 128
    BLOCK_SIZE_K: int = 128
    GROUP_SIZE_M: int = 8
    num_warps: int = 4
    num_stages: int = 3


@dataclass(frozen=True)
class Call:
    """The kernel's arguments in its order, constexprs included, with the grid.

    `compute_type` is last but two among them, as a torch dtype: the JIT wants Triton's.
    """

    arguments: tuple[Any, ...]
    grid: tuple[int, int, int]
    output: torch.Tensor


def quantize_groups(x: torch.Tensor, group: int) -> tuple[torch.Tensor, torch.Tensor]:
    """`x` `(M, K)` as FP8, with a float32 scale for each `group` values of a row."""
    m, k = x.shape
    groups = -(-k // group)
    padded = torch.zeros(m, groups * group, dtype=torch.float32, device=x.device)
    padded[:, :k] = x
    tiles = padded.view(m, groups, group)
    scale = (tiles.abs().amax(2) / FP8_MAX).clamp_min(torch.finfo(torch.float32).tiny)
    q = (tiles / scale[:, :, None]).clamp(-FP8_MAX, FP8_MAX).to(FP8)
    return q.view(m, groups * group)[:, :k].contiguous(), scale


def quantize_blocks(w: torch.Tensor, block: int) -> tuple[torch.Tensor, torch.Tensor]:
    """`w` `(E, N, K)` as FP8, with a float32 scale for each `block` x `block` of a matrix."""
    e, n, k = w.shape
    rows, columns = -(-n // block), -(-k // block)
    padded = torch.zeros(e, rows * block, columns * block, dtype=torch.float32, device=w.device)
    padded[:, :n, :k] = w
    tiles = padded.view(e, rows, block, columns, block)
    scale = (tiles.abs().amax((2, 4)) / FP8_MAX).clamp_min(torch.finfo(torch.float32).tiny)
    q = (tiles / scale[:, :, None, :, None]).clamp(-FP8_MAX, FP8_MAX).to(FP8)
    q = q.view(e, rows * block, columns * block)[:, :n, :k].contiguous()
    return q, scale


def arrange(
    a: torch.Tensor,
    b: torch.Tensor,
    topk_weights: torch.Tensor,
    topk_ids: torch.Tensor,
    *,
    a_scale: torch.Tensor | None = None,
    b_scale: torch.Tensor | None = None,
    group: tuple[int, int] = (0, 0),
    multiply_weights: bool = True,
    out_dtype: torch.dtype = torch.bfloat16,
    config: Config = Config(),
) -> Call:
    """The arguments of one launch.

    Args:
        a: `(M, K)`, FP8 with `a_scale`, or fp16/bf16.
        b: `(E, N, K)`, FP8 or int8 with `b_scale`, or as `a`.
        topk_weights, topk_ids: `(M, top_k)`, float32 and integers.
        group: (group_n, group_k) of block scales; (0, 0): a scale of `a` and one an expert.

    Returns:
        the call; `output` is `(M * top_k, N)`, uninitialised.
    """
    (m, k), (experts, n, _) = a.shape, b.shape
    top_k = topk_ids.shape[1]
    token_ids, expert_ids, used = align_blocks(topk_ids, config.BLOCK_SIZE_M, experts)
    c = torch.empty(m * top_k, n, dtype=out_dtype, device=a.device)
    fp8, int8 = a.dtype is FP8, b.dtype is torch.int8
    blockwise = fp8 and group[1] > 0
    scale_strides = (
        *(a_scale.stride() if blockwise and a_scale is not None else (0, 0)),
        *_scale_strides(b_scale, blockwise, int8),
    )
    em = token_ids.numel()
    arguments = (
        a, b, c, a_scale, b_scale, topk_weights, token_ids, expert_ids, used,
        n, k, em, m * top_k,
        *a.stride(), b.stride(0), b.stride(2), b.stride(1), *c.stride(), *scale_strides,
        *group, config.BLOCK_SIZE_M, config.BLOCK_SIZE_N, config.BLOCK_SIZE_K,
        config.GROUP_SIZE_M, multiply_weights, top_k, out_dtype, fp8, int8,
    )  # fmt: skip
    programs = em // config.BLOCK_SIZE_M * -(-n // config.BLOCK_SIZE_N)
    return Call(arguments, (programs, 1, 1), c)


def _scale_strides(scale: torch.Tensor | None, blockwise: bool, int8: bool) -> tuple[int, int, int]:
    """Of `b_scale`: by expert, by k, by n."""
    if scale is None:
        return (0, 0, 0)
    if blockwise:
        return (scale.stride(0), scale.stride(2), scale.stride(1))
    return (scale.stride(0), 0, scale.stride(1) if int8 else 0)


def reference(
    a: torch.Tensor,
    b: torch.Tensor,
    topk_weights: torch.Tensor,
    topk_ids: torch.Tensor,
    *,
    a_scale: torch.Tensor | None = None,
    b_scale: torch.Tensor | None = None,
    group: tuple[int, int] = (0, 0),
    multiply_weights: bool = True,
) -> torch.Tensor:
    """What the kernel computes, `(M * top_k, N)` in float64 from the quantised values."""
    x, w = a.double(), b.double()
    if a_scale is not None and b_scale is not None and group[1] > 0:
        x = x * a_scale.double().repeat_interleave(group[1], 1)[:, : x.shape[1]]
        spread = b_scale.double().repeat_interleave(group[0], 1).repeat_interleave(group[1], 2)
        w = w * spread[:, : w.shape[1], : w.shape[2]]
    elif b_scale is not None:
        w = w * b_scale.double().reshape(w.shape[0], -1, 1)
        x = x if a_scale is None else x * a_scale.double()
    out = torch.einsum("mk,mjnk->mjn", x, w[topk_ids.long()])
    if multiply_weights:
        out = out * topk_weights.double()[:, :, None]
    return out.flatten(0, 1)
