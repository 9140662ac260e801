"""A matrix product as tutorials write it: a tile of the output a program, tiles of a group of rows
close together, for the sake of the L2 cache."""

import triton
import triton.language as tl


@triton.jit
def matmul_kernel(
    a_ptr,
    b_ptr,
    c_ptr,
    M,
    N,
    K,
    stride_am,
    stride_ak,
    stride_bk,
    stride_bn,
    stride_cm,
    stride_cn,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    GROUP_M: tl.constexpr,
):
    """`c = a @ b`: `a` is (M, K), `b` is (K, N), `c` is (M, N); strides are in elements. Products
    are summed in float32 and rounded once, to the element type of `c`."""
    tiles_m, tiles_n = tl.cdiv(M, BLOCK_M), tl.cdiv(N, BLOCK_N)
    tiles_of_group = GROUP_M * tiles_n
    program = tl.program_id(0)
    first_m = program // tiles_of_group * GROUP_M
    rows_of_group = min(tiles_m - first_m, GROUP_M)
    tile_m = first_m + program % tiles_of_group % rows_of_group
    tile_n = program % tiles_of_group // rows_of_group

    m = tile_m * BLOCK_M + tl.arange(0, BLOCK_M)
    n = tile_n * BLOCK_N + tl.arange(0, BLOCK_N)
    k = tl.arange(0, BLOCK_K)
    a_tile = a_ptr + (m % M)[:, None] * stride_am + k[None, :] * stride_ak
    b_tile = b_ptr + k[:, None] * stride_bk + (n % N)[None, :] * stride_bn
    total = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
    for start in range(0, K, BLOCK_K):
        left = K - start
        a = tl.load(a_tile, mask=k[None, :] < left, other=0.0)
        b = tl.load(b_tile, mask=k[:, None] < left, other=0.0)
        total = tl.dot(a, b, total)
        a_tile += BLOCK_K * stride_ak
        b_tile += BLOCK_K * stride_bk
    c_tile = c_ptr + m[:, None] * stride_cm + n[None, :] * stride_cn
    inside = (m[:, None] < M) & (n[None, :] < N)
    tl.store(c_tile, total.to(c_ptr.dtype.element_ty), mask=inside)
