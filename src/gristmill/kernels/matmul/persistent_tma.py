"""`out = a @ b` by persistent programs that read and write tiles through host-made TMA descriptors.

One loop over output tiles per processor, so that the next tile's loads run under this tile's
epilogue; the epilogue stores the tile in pieces, so that its shared memory stays small. TMA clips
the ragged edges, of each matrix of a batch too (its tiles have three dimensions); a result whose
rows are off 16 bytes is stored through pointers. Made for large 16-bit problems on Hopper and
newer: 1.02x cuBLAS at 8192^3 on an H200, before it took batches (docs/performance/matmul.md).
float32 only as TF32.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

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
from gristmill.specs.matmul import OP, product, product_of, sizes, why_not_merged

MAX_SIZE = 2**31 - 1024  # coordinates and counts of tiles are int32


@triton.jit
def _halves(tile, ROWS: tl.constexpr, COLS: tl.constexpr):
    """The left and the right half of a tile."""
    return tl.split(tl.permute(tl.reshape(tile, (ROWS, 2, COLS // 2)), (0, 2, 1)))


@triton.jit
def _load(
    from_map, batch, row, col, IS_BATCHED: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr
):
    """A tile of a matrix, or of one of a batch."""
    if IS_BATCHED:
        return tl.reshape(from_map.load([batch, row, col]), (ROWS, COLS))
    else:
        return from_map.load([row, col])


@triton.jit
def _store_pieces(
    out_map, tile, batch, row, col, IS_BATCHED: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, PIECES: tl.constexpr,
):  # fmt: skip
    """Store a tile by columns, in 1, 2 or 4 pieces."""
    if PIECES > 1:
        left, right = _halves(tile, BLOCK_M, BLOCK_N)
        HALF: tl.constexpr = BLOCK_N // 2
        _store_pieces(out_map, left, batch, row, col, IS_BATCHED, BLOCK_M, HALF, PIECES // 2)
        right_col = col + HALF
        _store_pieces(out_map, right, batch, row, right_col, IS_BATCHED, BLOCK_M, HALF, PIECES // 2)
    elif IS_BATCHED:
        tile = tl.reshape(tile.to(out_map.dtype), (1, BLOCK_M, BLOCK_N))
        out_map.store([batch, row, col], tile)
    else:
        out_map.store([row, col], tile.to(out_map.dtype))


# `out` is a pointer where OUT_BY_TMA is not set.
@triton.jit(do_not_specialize=["batches", "M"])
def _matmul_fwd_persistent_tma_kernel(
    a_map, b_map, out, batches, M, N, K,
    A_IS_BATCHED: tl.constexpr, B_IS_BATCHED: tl.constexpr, IS_BATCHED: tl.constexpr,
    A_ALONG_M: tl.constexpr, B_ALONG_N: tl.constexpr, OUT_BY_TMA: tl.constexpr,
    FLATTEN: tl.constexpr, PIECES: tl.constexpr, WAITS: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, GROUP_M: tl.constexpr,
):  # fmt: skip
    if WAITS:  # for the launch before this one, which it may have overtaken
        tl.extra.cuda.gdc_wait()
    tiles_m, tiles_n, tiles_k = tl.cdiv(M, BLOCK_M), tl.cdiv(N, BLOCK_N), tl.cdiv(K, BLOCK_K)
    tiles = tiles_m * tiles_n  # of one product
    # The epilogue counts tiles by itself: in a flattened loop the other count would stay live
    # through the products.
    stored = tl.program_id(0) - tl.num_programs(0)
    total = batches * tiles if IS_BATCHED else tiles
    for tile in tl.range(tl.program_id(0), total, tl.num_programs(0), flatten=FLATTEN):
        batch, within = (tile // tiles, tile % tiles) if IS_BATCHED else (0, tile)
        pid_m, pid_n = grouped_tile(within, tiles_m, tiles_n, GROUP_M)
        acc = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
        for block_k in range(tiles_k):
            m, n, k = pid_m * BLOCK_M, pid_n * BLOCK_N, block_k * BLOCK_K
            if A_ALONG_M:
                x = _load(a_map, batch, k, m, A_IS_BATCHED, BLOCK_K, BLOCK_M).T
            else:
                x = _load(a_map, batch, m, k, A_IS_BATCHED, BLOCK_M, BLOCK_K)
            if B_ALONG_N:
                y = _load(b_map, batch, k, n, B_IS_BATCHED, BLOCK_K, BLOCK_N)
            else:
                y = _load(b_map, batch, n, k, B_IS_BATCHED, BLOCK_N, BLOCK_K).T
            acc = tl.dot(x, y, acc, input_precision="tf32")  # of no effect on 16-bit types
        stored += tl.num_programs(0)
        batch, within = (stored // tiles, stored % tiles) if IS_BATCHED else (0, stored)
        out_m, out_n = grouped_tile(within, tiles_m, tiles_n, GROUP_M)
        row, col = out_m * BLOCK_M, out_n * BLOCK_N
        if OUT_BY_TMA:
            _store_pieces(out, acc, batch, row, col, IS_BATCHED, BLOCK_M, BLOCK_N, PIECES)
        else:
            rows, cols = row + tl.arange(0, BLOCK_M), col + tl.arange(0, BLOCK_N)
            first = tl.cast(batch, tl.int64) * M * N
            pointers = out + first + rows.to(tl.int64)[:, None] * N + cols[None, :]
            mask = (rows < M)[:, None] & (cols < N)[None, :]
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
    m, n, k, batch = sizes(problem)
    tiles = [t for t in _TILES if m > 64 or t[:2] != (64, 128)]
    fitting = [t for t in tiles if fits(t[0], m, 64) and fits(t[1], n, 16)]
    enough = 0.7 * target.num_sms
    best = next(
        (t for t in fitting if batch * triton.cdiv(m, t[0]) * triton.cdiv(n, t[1]) >= enough),
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
    m, n, k, batch = sizes(problem)
    longest = max(m, n, k, batch * triton.cdiv(m, 64) * triton.cdiv(n, 16))
    if longest > MAX_SIZE:
        return f"a dimension or a number of tiles of {longest} is past {MAX_SIZE}"
    return why_not_merged(problem)


def supports(problem: Problem, target: Target) -> str | None:
    reason = why_not_gemm(problem, target)
    if reason is not None:
        return reason
    one = product(problem)
    assert one is not None
    for name, spec, step in (("a", one.a, one.stride_ab), ("b", one.b, one.stride_bb)):
        if spec.tma_dim is None or step * spec.itemsize % ALIGNMENT_BYTES:
            return (
                f"{name} with strides {problem[name].strides} has a start, a row or a matrix that "
                "is not on 16 bytes"
            )
    return None


class Operand(NamedTuple):
    """Matrices in a tensor: how the first one lies there, and the step to the next one of a batch
    (0: it is the same one)."""

    tensor: torch.Tensor
    spec: TensorSpec
    step: int = 0


def _tensor_map(operand: Operand, batch: int, rows: int, cols: int) -> tuple[TensorMap, bool]:
    """The descriptor of an operand in (rows, cols) tiles, its dimensions swapped where the first
    one is contiguous."""
    tensor, spec, step = operand
    swapped = spec.tma_dim == 0
    shape, strides, block = spec.shape, spec.strides, (rows, cols)
    if swapped:
        shape, strides, block = shape[::-1], strides[::-1], block[::-1]
    if step:
        shape, strides, block = (batch, *shape), (step, *strides), (1, *block)
    return TensorMap(tensor, shape, strides, block), swapped


def gemm(
    a: Operand,
    b: Operand,
    out: torch.Tensor,
    config: Config,
    *,
    batch: int = 1,
    waits: bool = False,
) -> Launch:
    """The launch for two operands, of `(M, K)` and `(K, N)` matrices.

    `waits`: it is started under the launch before it, and waits for its values by itself.
    """
    (m, k), n = a.spec.shape, b.spec.shape[1]
    block_m, block_n, block_k = config["BLOCK_M"], config["BLOCK_N"], config["BLOCK_K"]
    a_map, a_along_m = _tensor_map(a, batch, block_m, block_k)
    b_map, b_along_k = _tensor_map(b, batch, block_k, block_n)
    by_tma = "PIECES" in config  # absent where it has nothing to say
    pieces = config.get("PIECES", 1)
    step = m * n if batch > 1 else 0  # no `bool * m`: a symbolic `m` is not multiplied by one
    results = Operand(out, TensorSpec.contiguous((m, n), a.spec.dtype), step)
    out_map, _ = _tensor_map(results, batch, block_m, block_n // pieces)
    n_tiles = batch * triton.cdiv(m, block_m) * triton.cdiv(n, block_n)
    constants = ("BLOCK_M", "BLOCK_N", "BLOCK_K", "GROUP_M", "FLATTEN")
    return Launch(
        kernel=_matmul_fwd_persistent_tma_kernel,
        grid=(min(n_tiles, config["NUM_PROGRAMS"]),),
        args=(a_map, b_map, out_map if by_tma else out, batch, m, n, k),
        constexprs={
            "A_IS_BATCHED": a.step != 0,
            "B_IS_BATCHED": b.step != 0,
            "IS_BATCHED": batch > 1,
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
    operands = Operand(a, one.a, one.stride_ab), Operand(b, one.b, one.stride_bb)
    return (gemm(*operands, outputs[0], config, batch=one.batch),)


matmul = register(OP, "persistent_tma", _launch, space=SPACE, prior=prior, supports=supports)
