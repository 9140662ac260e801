"""Made-up landscapes to judge search strategies on, each with the cliffs, the failures and the
ruggedness of a product's kernel, and with none of its figures.

Every one has at least 1,000 valid points of which at most one in fifty is within 5% of the optimum.
What a compiler does and no model says (register allocation, bank conflicts, the order of
instructions) is stood for by chance: a part that depends on pairs of knobs, so that it can be
learned, and a small one of each config, that cannot.
"""

from __future__ import annotations

import functools
import itertools
import math
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from gristmill.core.config import Config
from gristmill.core.plan import Outcome
from gristmill.core.problem import Problem, TensorSpec
from gristmill.core.registry import implementation
from gristmill.core.space import Space, choice, derive, flag, pow2, require, when
from gristmill.core.target import Target, named_target
from gristmill.tuning.strategies import make_strategy

HOPPER = named_target("sm_90")
BATCH = 8


@dataclass(frozen=True, eq=False)
class Landscape:
    """A space, and what measuring each of its configs gives."""

    name: str
    space: Space
    problem: Problem
    measure: Callable[[Config], Outcome]
    target: Target = HOPPER

    @functools.cached_property
    def times_us(self) -> np.ndarray:
        """Of every valid config, infinite for those that fail."""
        outcomes = map(self.measure, self.space.valid(self.problem, self.target))
        return np.array([o.time_us("graph") for o in outcomes])

    @property
    def best_us(self) -> float:
        return float(self.times_us.min())

    def search(self, strategy: Any, seed: int, evaluations: int, **hints: Any) -> np.ndarray:
        """The share of the optimum reached after each evaluation, in batches."""
        search = make_strategy(strategy, self.space, self.problem, self.target, seed, **hints)
        reached: list[float] = []
        best = math.inf
        while len(reached) < evaluations and (asked := search.ask(BATCH)):
            for config in asked:
                outcome = self.measure(config)
                best = min(best, outcome.time_us("graph"))
                reached.append(self.best_us / best)
                search.tell(config, outcome)
        return np.array(reached[:evaluations])


def chance(*parts: Any) -> float:
    """A number in [0, 1) that these decide."""
    return zlib.crc32(repr(parts).encode()) / 2**32


def rough(config: Mapping[str, Any], pairs: float, alone: float) -> float:
    """A factor of at least 1: what pairs of knobs cost each other, and a config's own part."""
    knobs = sorted(config.items())
    cost = sum(chance(a, b) ** 3 for a, b in itertools.combinations(knobs, 2))
    cost /= math.comb(len(knobs), 2)
    return (1 + pairs * cost * 4) * (1 + alone * chance(knobs) ** 2)


def occupancy(config: Mapping[str, Any], registers: float, shared: int) -> int:
    """Programs that a processor holds."""
    threads = 32 * config["num_warps"]
    fits = (2048 // threads, int(65_536 // (threads * min(255.0, registers))), 32)
    return min((*fits, HOPPER.shared_memory_bytes // shared) if shared else fits)


def waves(programs: int, at_once: int) -> float:
    """The share of the last wave that is used, over all waves."""
    return programs / at_once / math.ceil(programs / at_once)


def _matrix_sizes(problem: Problem) -> tuple[int, int, int]:
    return (*problem["a"].shape, problem["b"].shape[1])


def wide_gemm_us(config: Config, problem: Problem) -> Outcome:
    """A large matrix product by persistent programs: intensity, pipelining, spills, waves."""
    m, k, n = _matrix_sizes(problem)
    block_m, block_n, block_k = (config[f"BLOCK_{axis}"] for axis in "MNK")
    stages, warps = config["num_stages"], config["num_warps"]
    held = config["ACCUMULATORS"] + 24 + 2 * stages + 24 * config["FLATTEN"]
    if block_m == 256 and config["FLATTEN"] and stages >= 5:
        return Outcome("compile_error", "no registers are left for the producer")
    if chance("traps", block_n, block_k, config.get("PIECES"), warps) < 0.06:
        return Outcome("launch_error", "an illegal instruction")
    tiles = math.ceil(m / block_m) * math.ceil(n / block_n)
    programs = HOPPER.num_sms * config["PROGRAMS_PER_SM"]
    share = 1 - math.exp(-block_m * block_n / (block_m + block_n) / 34)
    share *= 1 - 0.55 * math.exp(-(stages - 1) * block_k * (block_m + block_n) * 2 / 70e3)
    share /= 1 + max(0.0, held - 168) / 30 * (1 + (block_k == 128))  # spills in the loop
    share *= 0.72 if block_m * block_n < 64 * 64 * (warps // 4) else 1.0
    share *= {1: 0.84, 4: 0.93, 8: 1.0, 16: 0.97}[config["GROUP_M"]]
    share *= 1.0 if config["FLATTEN"] == (tiles > 2 * programs) else 0.94
    share *= {1: 0.93, 2: 1.0, 4: 0.97}[config.get("PIECES", 1)] if block_n == 256 else 1.0
    share *= waves(tiles, programs) ** 0.7
    knobs = {**config.knobs, "shape": (m, n)}
    return Outcome("ok", device_us=2 * m * n * k / 8e8 / share**1.8 * rough(knobs, 0.45, 0.05))


def skinny_gemm_us(config: Config, problem: Problem) -> Outcome:
    """A few rows against a large weight: reading it with enough in flight, and adding the parts."""
    m, k, n = _matrix_sizes(problem)
    block_n, block_k, split = config["BLOCK_N"], config["BLOCK_K"], config["SPLIT_K"]
    block_m, warps, stages = config["BLOCK_M"], config["num_warps"], config["num_stages"]
    if config["SWAP"] and block_n * block_k > 64 * 256 and warps == 1:
        return Outcome("timeout", "the compiler did not end in time")
    if stages >= 5 and chance("wrong", block_m, config["SWAP"], warps) < 0.15:
        return Outcome("wrong", "2 of 4 elements are off")
    shared = stages * (block_m + block_n) * block_k * 2
    held = (block_m * block_n + block_k * block_n / 4) / (32 * warps) + 30
    at_once = max(1, occupancy(config, held, shared)) * HOPPER.num_sms
    tiles = math.ceil(m / block_m) * math.ceil(n / block_n) * split
    flying = min(tiles, at_once) * max(1, stages - 1) * block_n * block_k * 2
    share = (1 - math.exp(-flying / 5e6)) * waves(tiles, at_once) ** 0.6
    share *= 0.55 if not config["SWAP"] and m < 64 <= block_m else 1.0
    share /= 1 + max(0.0, held - 128) / 40
    share *= 0.8 if block_k * 2 < 128 else 1.0  # less than a line of the cache
    extra_us = 2.0 + m * n * 4 * split * (split > 1) / 6e6 - 1.2 * config.get("PDL", False)
    read_us = k * n * 2 / 4.1e6 * (1 + 0.1 * (math.ceil(m / block_m) - 1))
    us = read_us / share**2.5 + extra_us
    return Outcome("ok", device_us=us * rough(config.knobs, 0.5, 0.05))


ROWS = Space(
    pow2("BLOCK_M", 1, 16),
    pow2("BLOCK_N", 128, 8192),
    pow2("num_warps", 1, 16),
    choice("EVICT", "", "evict_first", "evict_last"),
    choice("CACHE", "", ".cs"),
    flag("PERSISTENT"),
    when(lambda c, p, t: c["PERSISTENT"], choice("STAGES", 1, 2, 3, 4)),
    when(lambda c, p, t: c["PERSISTENT"], choice("PROGRAMS_PER_SM", 1, 2, 4, 8)),
    derive("VALUES", lambda c, p, t: c["BLOCK_M"] * c["BLOCK_N"] // (32 * c["num_warps"])),
    require("a thread holds more than 128 values", lambda c, p, t: c["VALUES"] <= 128),
    require("a thread holds less than 4 values", lambda c, p, t: c["VALUES"] >= 4),
)


def rows_us(config: Config, problem: Problem) -> Outcome:
    """A pass over rows: bytes in flight, whole waves, lines of the cache, what a hint spoils."""
    rows, width = problem["x"].shape
    block_m, block_n, values = config["BLOCK_M"], config["BLOCK_N"], config["VALUES"]
    stages = config.get("STAGES", 1)
    if config["PERSISTENT"] and stages * block_m * block_n * 2 > HOPPER.shared_memory_bytes:
        return Outcome("compile_error", "it needs more shared memory than there is")
    registers = 24 + 1.5 * values * (1 + 0.2 * (stages - 1))
    at_once = occupancy(config, registers, stages * block_m * block_n * 2 * config["PERSISTENT"])
    if not at_once:
        return Outcome("launch_error", "out of resources")
    programs = math.ceil(rows / block_m) * math.ceil(width / block_n)
    if config["PERSISTENT"]:
        at_once = min(at_once, config["PROGRAMS_PER_SM"])
    flying = at_once * block_m * block_n * 2 * (1 + 0.5 * (stages - 1))
    share = 1 - math.exp(-flying / 22e3)
    share *= waves(programs, at_once * HOPPER.num_sms) ** 0.5
    share /= 1 + max(0.0, registers - 140) / 50
    share /= 1 + 0.03 * (math.ceil(width / block_n) - 1)  # the sum of a row in parts
    share *= 0.85 if values < 8 else 1.0
    share *= {"": 1.0, "evict_first": 1.03 if stages == 1 else 0.97, "evict_last": 0.9}[
        config["EVICT"]
    ]
    share *= 0.97 if config["CACHE"] == ".cs" and block_m > 4 else 1.0
    return Outcome(
        "ok", device_us=rows * width * 4 / 4.1e6 / share**2 * rough(config.knobs, 0.5, 0.04)
    )


STENCIL = Space(
    choice("BLOCK_X", 16, 32, 48, 64),
    choice("BLOCK_Y", 1, 2, 4, 8, 16),
    choice("TILE_X", 1, 2, 3, 4),
    choice("TILE_Y", 1, 2, 3, 4, 5, 6),
    choice("LAYOUT", "rows", "columns", "swizzled"),
    choice("UNROLL", 0, 1, 3, 5),
    flag("SHARED"),
    when(lambda c, p, t: c["SHARED"], flag("PADDED")),
    derive("THREADS", lambda c, p, t: c["BLOCK_X"] * c["BLOCK_Y"]),
    require("more than 1,024 threads", lambda c, p, t: c["THREADS"] <= 1024),
    require("less than a warp", lambda c, p, t: c["THREADS"] >= 32),
)


def stencil_us(config: Config, problem: Problem) -> Outcome:
    """A convolution in the manner of CUDA: reuse against occupancy, bank conflicts, and more
    ruggedness than the others."""
    del problem
    x, y = config["BLOCK_X"] * config["TILE_X"], config["BLOCK_Y"] * config["TILE_Y"]
    area = (x + 16) * (y + 16)
    shared = area * 4 * config["SHARED"]
    if shared > 49_152:
        return Outcome("compile_error", "it needs more shared memory than there is")
    registers = 20 + 6 * config["TILE_X"] * config["TILE_Y"] * (1 + 0.25 * config["UNROLL"])
    if registers > 255 and config["THREADS"] > 512:
        return Outcome("launch_error", "out of resources")
    warps = math.ceil(config["THREADS"] / 32)
    resident = occupancy({"num_warps": warps}, registers, shared) * warps
    share = x * y / area if config["SHARED"] else 0.55 * min(1.0, x * y / area * 1.2)
    share *= 1 - math.exp(-max(1, resident) * config["TILE_X"] * config["TILE_Y"] / 60)
    share /= 1 + max(0.0, registers - 200) / 60
    if config["SHARED"] and config["BLOCK_X"] % 32 and not config["PADDED"]:
        share *= 0.6
    share *= {"rows": 1.0, "columns": 0.7, "swizzled": 0.96 if config["SHARED"] else 0.8}[
        config["LAYOUT"]
    ]
    share *= 0.9 + 0.1 * math.exp(-abs(config["UNROLL"] - 3))
    return Outcome("ok", device_us=100 / share * rough(config.knobs, 0.6, 0.06))


def _operands(m: int, n: int, k: int) -> Problem:
    problem = implementation("matmul", "persistent_tma").op.workloads[0].problem
    shapes = {"a": (m, k), "b": (k, n)}
    args = (
        (name, TensorSpec.contiguous(shapes[name], "bfloat16") if name in shapes else value)
        for name, value in problem.args
    )
    return Problem("matmul", tuple(args))


def _of(
    name: str, space: Space, problem: Problem, model: Callable[[Config, Problem], Outcome]
) -> Landscape:
    return Landscape(name, space, problem, lambda config: model(config, problem))


def wide_gemm(m: int = 4096, n: int = 4096, k: int = 4096) -> Landscape:
    """The landscape of a product of these sizes."""
    space = implementation("matmul", "persistent_tma").space
    return _of("wide_gemm", space, _operands(m, n, k), wide_gemm_us)


_X = TensorSpec.contiguous((8192, 8192), "bfloat16")
LANDSCAPES = {
    made.name: made
    for made in (
        wide_gemm(),
        _of(
            "skinny_gemm",
            implementation("matmul", "split_k").space,
            _operands(32, 6144, 4096),
            skinny_gemm_us,
        ),
        _of("rows", ROWS, Problem("rows", (("x", _X),)), rows_us),
        _of("stencil", STENCIL, Problem("stencil", (("x", _X),)), stencil_us),
    )
}
