"""A fused mixture-of-experts product, with the arguments that MoE servers pass.

Each block of `sorted_token_ids` belongs to one expert (`moe_blocks.align_blocks` makes them), so
that one launch multiplies every token with its own expert's weights, with neither a gather before
nor a scatter after: rows of `a` are read, and rows of `c` written, through the token ids.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def fused_moe_kernel(
    a_ptr,
    b_ptr,
    c_ptr,
    a_scale_ptr,
    b_scale_ptr,
    topk_weights_ptr,
    sorted_token_ids_ptr,
    expert_ids_ptr,
    num_tokens_post_padded_ptr,
    N,
    K,
    EM,
    num_valid_tokens,
    stride_am,
    stride_ak,
    stride_be,
    stride_bk,
    stride_bn,
    stride_cm,
    stride_cn,
    stride_asm,
    stride_ask,
    stride_bse,
    stride_bsk,
    stride_bsn,
    group_n: tl.constexpr,
    group_k: tl.constexpr,
    BLOCK_SIZE_M: tl.constexpr,
    BLOCK_SIZE_N: tl.constexpr,
    BLOCK_SIZE_K: tl.constexpr,
    GROUP_SIZE_M: tl.constexpr,
    MUL_ROUTED_WEIGHT: tl.constexpr,
    top_k: tl.constexpr,
    compute_type: tl.constexpr,
    use_fp8_w8a8: tl.constexpr,
    use_int8_w8a16: tl.constexpr,
):
    """`c[t] = sum_k a[t // top_k, k] * b[expert(t), n, k]`, for each routed token `t`.

    a: `(M, K)`; b: `(E, N, K)` by its strides; c: `(M * top_k, N)` of `compute_type`.
    `sorted_token_ids` `(EM,)` int32: routed tokens `m * top_k + j`, in blocks of BLOCK_SIZE_M that
    have one expert each, padded by ids of `num_valid_tokens` (`M * top_k`) or more; `expert_ids`
    `(blocks,)` int32, -1 where the rank has no such expert (zeros are written).
    `use_fp8_w8a8`: a and b are FP8, `x ~ q * scale`. With `group_k > 0`, `a_scale` is
    `(M, K / group_k)` and `b_scale` `(E, N / group_n, K / group_k)`, float32, both rounded up, and
    BLOCK_SIZE_K divides group_k; else `a_scale` is one value and `b_scale` `(E,)`.
    `use_int8_w8a16`: b is int8 with `b_scale` `(E, N)`, and a has `compute_type`.
    Sums are float32, scaled and weighted there, and rounded once.
    """
    pid = tl.program_id(0)
    num_pid_m = tl.cdiv(EM, BLOCK_SIZE_M)
    num_pid_n = tl.cdiv(N, BLOCK_SIZE_N)
    # Columns of tiles inside a group of rows, so that the group's rows of `a` stay in the L2.
    group = pid // (GROUP_SIZE_M * num_pid_n)
    first_m = group * GROUP_SIZE_M
    rows_of_group = min(num_pid_m - first_m, GROUP_SIZE_M)
    within = pid % (GROUP_SIZE_M * num_pid_n)
    pid_m = first_m + within % rows_of_group
    pid_n = within // rows_of_group
    if pid_m * BLOCK_SIZE_M >= tl.load(num_tokens_post_padded_ptr):
        return

    token = tl.load(sorted_token_ids_ptr + pid_m * BLOCK_SIZE_M + tl.arange(0, BLOCK_SIZE_M))
    token = token.to(tl.int64)
    is_token = token < num_valid_tokens
    n = pid_n * BLOCK_SIZE_N + tl.arange(0, BLOCK_SIZE_N).to(tl.int64)
    is_column = n < N
    c_ptrs = c_ptr + token[:, None] * stride_cm + n[None, :] * stride_cn
    is_output = is_token[:, None] & is_column[None, :]
    expert = tl.load(expert_ids_ptr + pid_m).to(tl.int64)
    if expert == -1:
        zeros = tl.zeros((BLOCK_SIZE_M, BLOCK_SIZE_N), dtype=compute_type)
        tl.store(c_ptrs, zeros, mask=is_output)
        return

    k = tl.arange(0, BLOCK_SIZE_K)
    row = token // top_k
    a_ptrs = a_ptr + row[:, None] * stride_am + k[None, :] * stride_ak
    b_ptrs = b_ptr + expert * stride_be + k[:, None] * stride_bk + n[None, :] * stride_bn
    IS_BLOCKWISE: tl.constexpr = use_fp8_w8a8 and group_k > 0
    if IS_BLOCKWISE:
        a_scale_ptrs = a_scale_ptr + row * stride_asm
        b_scale_ptrs = b_scale_ptr + expert * stride_bse + (n // group_n) * stride_bsn

    acc = tl.zeros((BLOCK_SIZE_M, BLOCK_SIZE_N), dtype=tl.float32)
    for start in range(0, K, BLOCK_SIZE_K):
        is_k = k < K - start
        a = tl.load(a_ptrs, mask=is_token[:, None] & is_k[None, :], other=0.0)
        b = tl.load(b_ptrs, mask=is_k[:, None] & is_column[None, :], other=0.0)
        if use_int8_w8a16:
            acc = tl.dot(a, b.to(compute_type), acc)
        elif IS_BLOCKWISE:
            scale = start // group_k
            a_scale = tl.load(a_scale_ptrs + scale * stride_ask, mask=is_token, other=0.0)
            b_scale = tl.load(b_scale_ptrs + scale * stride_bsk, mask=is_column, other=0.0)
            acc += tl.dot(a, b) * a_scale[:, None] * b_scale[None, :]
        else:
            acc = tl.dot(a, b, acc)
        a_ptrs += BLOCK_SIZE_K * stride_ak
        b_ptrs += BLOCK_SIZE_K * stride_bk

    if use_int8_w8a16:
        columns = b_scale_ptr + expert * stride_bse + n * stride_bsn
        acc *= tl.load(columns, mask=is_column, other=0.0)[None, :]
    elif use_fp8_w8a8 and not IS_BLOCKWISE:
        acc *= tl.load(a_scale_ptr) * tl.load(b_scale_ptr + expert * stride_bse)
    if MUL_ROUTED_WEIGHT:
        acc *= tl.load(topk_weights_ptr + token, mask=is_token, other=0.0)[:, None]
    tl.store(c_ptrs, acc.to(compute_type), mask=is_output)
