"""`out = a @ b` by persistent programs that read and write tiles through host-made TMA descriptors.

One loop over output tiles per processor, so that the next tile's loads run under this tile's
epilogue; the epilogue stores the tile in pieces, so that its shared memory stays small. TMA clips
the ragged edges; a result whose rows are off 16 bytes is stored through pointers. Wins for large
16-bit problems on Hopper and newer (1.02x cuBLAS at 8192^3 on an H200); float32 only as TF32.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import triton
import triton.language as tl

from gristmill.core.config import Config, Value
from gristmill.core.launch import Launch, TensorMap
from gristmill.core.problem import ALIGNMENT_BYTES, Problem, TensorSpec
from gristmill.core.registry import register
from gristmill.core.space import Space, choice, derive, flag, pow2, require, when
from gristmill.core.target import Target
from gristmill.kernels.device.tiles import fits, grouped_tile
from gristmill.specs.matmul import OP, product, product_of, sizes, why_not_one_product

MAX_SIZE = 2**31 - 1024  # coordinates and counts of tiles are int32


@triton.jit
def _halves(tile, ROWS: tl.constexpr, COLS: tl.constexpr):
    """The left and the right half of a tile."""
    return tl.split(tl.permute(tl.reshape(tile, (ROWS, 2, COLS // 2)), (0, 2, 1)))


@triton.jit
def _store_pieces(
    out_map, tile, row, col,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, PIECES: tl.constexpr,
):  # fmt: skip
    """Store a tile by columns, in 1, 2 or 4 pieces."""
    if PIECES == 1:
        out_map.store([row, col], tile.to(out_map.dtype))
    else:
        left, right = _halves(tile, BLOCK_M, BLOCK_N)
        HALF: tl.constexpr = BLOCK_N // 2
        _store_pieces(out_map, left, row, col, BLOCK_M, HALF, PIECES // 2)
        _store_pieces(out_map, right, row, col + HALF, BLOCK_M, HALF, PIECES // 2)


# `out` is a pointer where OUT_BY_TMA is not set.
@triton.jit(do_not_specialize=["M"])
def _matmul_fwd_persistent_tma_kernel(
    a_map, b_map, out, M, N, K,
    A_ALONG_M: tl.constexpr, B_ALONG_N: tl.constexpr, OUT_BY_TMA: tl.constexpr,
    FLATTEN: tl.constexpr, PIECES: tl.constexpr, WAITS: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, GROUP_M: tl.constexpr,
):  # fmt: skip
    if WAITS:  # for the launch before this one, which it may have overtaken
        tl.extra.cuda.gdc_wait()
    tiles_m, tiles_n, tiles_k = tl.cdiv(M, BLOCK_M), tl.cdiv(N, BLOCK_N), tl.cdiv(K, BLOCK_K)
    # The epilogue counts tiles by itself: in a flattened loop the other count would stay live
    # through the products.
    stored = tl.program_id(0) - tl.num_programs(0)
    for tile in tl.range(tl.program_id(0), tiles_m * tiles_n, tl.num_programs(0), flatten=FLATTEN):
        pid_m, pid_n = grouped_tile(tile, tiles_m, tiles_n, GROUP_M)
        acc = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
        for k in range(tiles_k):
            if A_ALONG_M:
                x = a_map.load([k * BLOCK_K, pid_m * BLOCK_M]).T
            else:
                x = a_map.load([pid_m * BLOCK_M, k * BLOCK_K])
            if B_ALONG_N:
                y = b_map.load([k * BLOCK_K, pid_n * BLOCK_N])
            else:
                y = b_map.load([pid_n * BLOCK_N, k * BLOCK_K]).T
            acc = tl.dot(x, y, acc, input_precision="tf32")  # of no effect on 16-bit types
        stored += tl.num_programs(0)
        out_m, out_n = grouped_tile(stored, tiles_m, tiles_n, GROUP_M)
        row, col = out_m * BLOCK_M, out_n * BLOCK_N
        if OUT_BY_TMA:
            _store_pieces(out, acc, row, col, BLOCK_M, BLOCK_N, PIECES)
        else:
            m, n = row + tl.arange(0, BLOCK_M), col + tl.arange(0, BLOCK_N)
            pointers = out + m.to(tl.int64)[:, None] * N + n[None, :]
            mask = (m < M)[:, None] & (n < N)[None, :]
            tl.store(pointers, acc.to(out.dtype.element_ty), mask=mask)


def _shared_bytes(config: Mapping[str, Any], problem: Problem, target: Target) -> int:
    """Of one program: the stages, and a piece of the output; 1 KiB for barriers and alignment."""
    m, n, k = config["BLOCK_M"], config["BLOCK_N"], config["BLOCK_K"]
    stages = config["num_stages"] * (m + n) * k
    pieces = config.get("PIECES", 1)
    if target.capability >= 100 and config["FLATTEN"]:
        pieces = 1  # each has memory of its own there (seen: Triton 3.6)
    return (stages + m * n // pieces) * problem["a"].itemsize + 1024


def _out_by_tma(problem: Problem) -> bool:
    """Whether the rows of the (contiguous, aligned) output are on 16 bytes."""
    return sizes(problem)[1] * problem["a"].itemsize % ALIGNMENT_BYTES == 0


# What tunes this GEMM, on whatever its operands are kept in.
RULES = (
    pow2("BLOCK_M", 64, 256),
    pow2("BLOCK_N", 16, 256),
    pow2("BLOCK_K", 32, 128),
    choice("GROUP_M", 1, 4, 8, 16),
    when(lambda c, p, t: _out_by_tma(p), choice("PIECES", 1, 2, 4)),
    flag("FLATTEN"),
    choice("num_warps", 4, 8),
    choice("num_stages", 2, 3, 4, 5, 6),
    choice("PROGRAMS_PER_SM", 1, 2),
    derive("NUM_PROGRAMS", lambda c, p, t: c["PROGRAMS_PER_SM"] * t.num_sms),
    derive(
        "ACCUMULATORS",
        lambda c, p, t: c["BLOCK_M"] * c["BLOCK_N"] // (c["num_warps"] * t.warp_size),
    ),
    require(
        "the stages and the epilogue need more shared memory than there is",
        lambda c, p, t: (
            not t.is_gpu or _shared_bytes(c, p, t) * c["PROGRAMS_PER_SM"] <= t.shared_memory_bytes
        ),
    ),
    require(
        "a thread holds more than 128 accumulators",
        lambda c, p, t: c["ACCUMULATORS"] <= 128,
    ),
    require(
        "two programs a processor need more registers than there are",
        lambda c, p, t: (
            c["PROGRAMS_PER_SM"] == 1
            or c["num_warps"] * t.warp_size * (c["ACCUMULATORS"] + 64) * 2 <= 65_536
        ),
    ),
    require(
        "a warpgroup has less than one 64 x 16 product",
        lambda c, p, t: c["BLOCK_M"] * c["BLOCK_N"] >= 64 * 16 * (c["num_warps"] // 4),
    ),
    require(
        "a piece of the epilogue is narrower than 32 columns",
        lambda c, p, t: c.get("PIECES", 1) == 1 or c["BLOCK_N"] // c["PIECES"] >= 32,
    ),
    require(
        "BLOCK_M is twice M or more",
        lambda c, p, t: fits(c["BLOCK_M"], sizes(p)[0], 64),
    ),
    require(
        "BLOCK_N is twice N or more",
        lambda c, p, t: fits(c["BLOCK_N"], sizes(p)[1], 16),
    ),
    require(
        "BLOCK_K is twice K or more",
        lambda c, p, t: fits(c["BLOCK_K"], sizes(p)[2], 32),
    ),
)
SPACE = Space(*RULES)

# Widest first; 128 x 256, 128 x 128 and 64 x 64 were measured on an H200 (1.02x cuBLAS at 8192^3,
# .98x and 1.0x at M = 512 and 64); 64 x 128 was not: it makes one wave of 1024^2, and is left out
# where 64 x 64 was measured.
_TILE = ("BLOCK_M", "BLOCK_N", "BLOCK_K", "num_warps", "num_stages", "PIECES", "GROUP_M")
_TILES = (
    (128, 256, 64, 8, 3, 2, 16),
    (128, 128, 64, 8, 6, 1, 8),
    (64, 128, 64, 4, 6, 1, 8),
    (64, 64, 128, 8, 6, 1, 8),
    (64, 32, 128, 4, 6, 1, 8),
    (64, 16, 128, 4, 6, 1, 8),
)


def prior(problem: Problem, target: Target) -> dict[str, Value]:
    """The widest tile that keeps seven in ten processors busy."""
    m, n, k, _ = sizes(problem)
    tiles = [t for t in _TILES if m > 64 or t[:2] != (64, 128)]
    fitting = [t for t in tiles if fits(t[0], m, 64) and fits(t[1], n, 16)]
    enough = 0.7 * target.num_sms
    best = next(
        (t for t in fitting if triton.cdiv(m, t[0]) * triton.cdiv(n, t[1]) >= enough),
        fitting[-1],
    )
    config = dict(zip(_TILE, best, strict=True))
    while not fits(config["BLOCK_K"], k, 32):
        config["BLOCK_K"] //= 2
    if problem["a"].dtype == "float32":  # as wide a row of a stage as of a 16-bit type
        config["BLOCK_K"] = max(32, config["BLOCK_K"] // 2)
    if not _out_by_tma(problem):
        del config["PIECES"]
    config = {**config, "FLATTEN": True, "PROGRAMS_PER_SM": 1}
    limit = target.shared_memory_bytes
    while config["num_stages"] > 2 and _shared_bytes(config, problem, target) > limit:
        config["num_stages"] -= 1
    return config


def why_not_gemm(problem: Problem, target: Target) -> str | None:
    """Why this GEMM cannot compute the problem, wherever its operands lie, or `None`."""
    if not target.has_tma and target.is_gpu:
        return f"{target.arch} has no TMA (NVIDIA sm_90 and newer have)"
    if problem["a"].dtype == "float32" and not problem["tf32"]:
        return "IEEE float32 products do not run on matrix units"
    for name, spec in problem.tensors.items():
        if spec.numel == 0:
            return f"{name} is empty"
    longest = max(sizes(problem)[:3])
    if longest > MAX_SIZE:
        return f"a dimension of {longest} is past {MAX_SIZE}"
    return why_not_one_product(problem)


def supports(problem: Problem, target: Target) -> str | None:
    reason = why_not_gemm(problem, target)
    if reason is not None:
        return reason
    one = product(problem)
    assert one is not None
    for name, spec in (("a", one.a), ("b", one.b)):
        if spec.tma_dim is None:
            return (
                f"{name} with strides {spec.strides} has a start or a row that is not on 16 bytes"
            )
    return None


Operand = tuple[torch.Tensor, TensorSpec]


def _tensor_map(operand: Operand, rows: int, cols: int) -> tuple[TensorMap, bool]:
    """The descriptor of an operand in (rows, cols) tiles, its dimensions swapped where the first
    one is contiguous."""
    tensor, spec = operand
    if spec.tma_dim == 0:
        return TensorMap(tensor, spec.shape[::-1], spec.strides[::-1], (cols, rows)), True
    return TensorMap(tensor, spec.shape, spec.strides, (rows, cols)), False


def gemm(
    a: Operand, b: Operand, out: torch.Tensor, config: Config, *, waits: bool = False
) -> Launch:
    """The launch for two operands: tensors, and how an (M, K) and a (K, N) matrix lie in them.

    `waits`: it is started under the launch before it, and waits for its values by itself.
    """
    (m, k), n = a[1].shape, b[1].shape[1]
    block_m, block_n, block_k = config["BLOCK_M"], config["BLOCK_N"], config["BLOCK_K"]
    a_map, a_along_m = _tensor_map(a, block_m, block_k)
    b_map, b_along_k = _tensor_map(b, block_k, block_n)
    by_tma = "PIECES" in config  # absent where it has nothing to say
    pieces = config.get("PIECES", 1)
    out_map = TensorMap(out, (m, n), (n, 1), (block_m, block_n // pieces))
    n_tiles = triton.cdiv(m, block_m) * triton.cdiv(n, block_n)
    constants = ("BLOCK_M", "BLOCK_N", "BLOCK_K", "GROUP_M", "FLATTEN")
    return Launch(
        kernel=_matmul_fwd_persistent_tma_kernel,
        grid=(min(n_tiles, config["NUM_PROGRAMS"]),),
        args=(a_map, b_map, out_map if by_tma else out, m, n, k),
        constexprs={
            "A_ALONG_M": a_along_m,
            "B_ALONG_N": not b_along_k,
            "OUT_BY_TMA": by_tma,
            "PIECES": pieces,
            "WAITS": waits,
            **{name: config[name] for name in constants},
        },
        options={
            "num_warps": config["num_warps"],
            "num_stages": config["num_stages"],
            **({"launch_pdl": True} if waits else {}),
        },
    )


def _launch(
    args: tuple[Any, ...],
    outputs: tuple[torch.Tensor, ...],
    workspace: tuple[torch.Tensor, ...],
    config: Config,
) -> tuple[Launch, ...]:
    del workspace
    a, b, _ = args
    one = product_of(TensorSpec.of(a), TensorSpec.of(b))
    assert one is not None
    return (gemm((a, one.a), (b, one.b), outputs[0], config),)


matmul = register(OP, "persistent_tma", _launch, space=SPACE, prior=prior, supports=supports)
