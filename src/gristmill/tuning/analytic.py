"""An analytic estimate of how long a config takes, to say which ones are measured first.

It knows a GEMM by the sizes `M`, `N`, `K` (and `B`, the batch) of the op's axes, a pass over rows
by `rows` and `N`, and a config's tile by the usual names: `BLOCK_M`, `BLOCK_N`, `BLOCK_K`,
`SPLIT_K`, `GROUP_M`, `num_warps`, `num_stages` (`STAGES`), `PROGRAMS_PER_SM`. Of anything else it
says nothing.
The unit is the time in which the device moves a byte from its memory. With S processors, P programs
on each, and what one program reads in a step of its loop, (BLOCK_M + BLOCK_N) BLOCK_K values:

    waves    = ceil(programs / (S P))          whole rounds: the last one takes as long as any
    flying   = P (stages - 1) bytes of a step  Little's law: rate = flying / latency
    compute  = waves P 2 BLOCK_M BLOCK_N K / SPLIT_K / (flops of a processor x efficiency)
    cache    = programs (BLOCK_M + BLOCK_N) K / SPLIT_K values through L2
    memory   = what a wave reads of A and B, if they do not stay in L2; at least the op's bytes
    estimate = the longest of these (roofline: Williams et al., 2009), and a tenth of the others

A pass over rows has `memory` alone, slowed by too few bytes in flight and by the part of the last
wave that idles. Registers bound P, and what a thread holds beyond them spills.

Waves and L2 traffic as in Tillet & Cox (2017) and NVIDIA's matrix multiplication guide. The ratios
are of the vendors' datasheets; nothing here is a measured time, and only the order of estimates
means anything.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from gristmill.core.op import Cost
from gristmill.core.target import Target

# 16-bit matrix operations for each byte from memory (dense; datasheets of A100 80 GB, H200, B200,
# MI300X)
FLOPS_PER_BYTE = {"sm_80": 153.0, "sm_90": 206.0, "sm_100": 281.0, "gfx942": 247.0}
USUAL_FLOPS_PER_BYTE = 200.0
L2_RATE = 2.5  # bytes from L2 in the time of one from memory
LATENCY_BYTES = 32_768  # in flight on a processor for the full rate: some 35 GB/s x 0.9 us
FULL_INTENSITY = (
    64.0  # BLOCK_M BLOCK_N / (BLOCK_M + BLOCK_N) that feeds the matrix units: 128 x 128
)
REGISTERS = 65_536  # of a processor
THREADS = 2048
OTHER_REGISTERS = 48  # of a thread, beside what it accumulates
HELD = 168  # registers of a thread, beyond which it spills
ACCESS_BYTES = 16  # of a thread at once
READ = (  # of a config; of values that are no sizes ("auto", 0 for what is off) it says nothing
    "BLOCK_M",
    "BLOCK_N",
    "BLOCK_K",
    "SPLIT_K",
    "GROUP_M",
    "num_warps",
    "num_stages",
    "STAGES",
    "PROGRAMS_PER_SM",
)


def estimate(
    config: Mapping[str, Any], sizes: Mapping[str, int], itemsize: int, cost: Cost, target: Target
) -> float | None:
    """The estimate for a config, or `None` where the model does not know it, or a value that it
    reads is no positive integer: the names are usual, what others mean by their values may differ.

    Args:
        sizes: the problem's sizes by axis name. itemsize: bytes of a value.
    """
    if not target.is_gpu or min(sizes.values(), default=0) < 1:
        return None
    if not all(_is_size(config[name]) for name in READ if name in config):
        return None
    if sizes.keys() >= {"M", "N", "K"} and {"BLOCK_N", "BLOCK_K"} <= config.keys():
        return _gemm(config, sizes, itemsize, cost, target)
    if sizes.keys() >= {"rows", "N"} and "num_warps" in config:
        return _rows(config, sizes, itemsize, cost, target)
    return None


def _gemm(
    config: Mapping[str, Any], sizes: Mapping[str, int], itemsize: int, cost: Cost, target: Target
) -> float:
    m, n, k, batch = sizes["M"], sizes["N"], sizes["K"], sizes.get("B", 1)
    block_m = config.get("BLOCK_M", m)  # a product with a vector has no tiles of rows
    block_n, block_k, split = config["BLOCK_N"], config["BLOCK_K"], config.get("SPLIT_K", 1)
    rows, cols = math.ceil(m / block_m), math.ceil(n / block_n)
    programs = batch * rows * cols * split
    depth = math.ceil(math.ceil(k / split) / block_k) * block_k  # of K, for each program
    step_bytes = (block_m + block_n) * block_k * itemsize
    stages = _stages(config)
    threads = config.get("num_warps", 4) * target.warp_size
    held = block_m * block_n / threads + OTHER_REGISTERS
    per_sm = _per_sm(config, target, threads, held, stages * step_bytes)
    waves = math.ceil(programs / (target.num_sms * per_sm))
    busy = min(1.0, programs / target.num_sms)
    flying = min(1.0, per_sm * max(1, stages - 1) * step_bytes / LATENCY_BYTES)

    intensity = block_m * block_n / (block_m + block_n)
    efficiency = min(1.0, intensity / FULL_INTENSITY) * flying / _spilling(held)
    rate = FLOPS_PER_BYTE.get(target.arch, USUAL_FLOPS_PER_BYTE) * 2 / itemsize / target.num_sms
    compute = waves * per_sm * 2 * block_m * block_n * depth / (rate * efficiency)
    cache = programs * (block_m + block_n) * depth * itemsize / L2_RATE
    in_rows = min(config.get("GROUP_M", rows), rows)  # of a wave's tiles
    in_cols = min(cols, math.ceil(target.num_sms * per_sm / in_rows))
    wave_bytes = (in_rows * block_m + in_cols * block_n) * depth * itemsize
    stays = (m * k + k * n) * itemsize <= target.l2_bytes / 2
    traffic = max(cost.size_bytes, 0 if stays else min(waves * wave_bytes, cache * L2_RATE))
    traffic += 2 * 4 * m * n * batch * split * (split > 1)  # float32 parts, written and read
    memory = traffic / (busy * flying) * _spilling(held)
    longest = max(compute, cache, memory)
    return longest + 0.1 * (compute + cache + memory - longest)


def _rows(
    config: Mapping[str, Any], sizes: Mapping[str, int], itemsize: int, cost: Cost, target: Target
) -> float:
    rows, width = sizes["rows"], sizes["N"]
    block_m = config.get("BLOCK_M", 1)
    block_n = config.get("BLOCK_N", 1 << (width - 1).bit_length())
    programs = math.ceil(rows / block_m) * math.ceil(width / block_n)
    threads = config["num_warps"] * target.warp_size
    values = block_m * block_n / threads
    held = values + OTHER_REGISTERS
    tile_bytes = block_m * block_n * itemsize
    stages = _stages(config)
    per_sm = _per_sm(config, target, threads, held, 0 if stages == 1 else stages * tile_bytes)
    slots = target.num_sms * per_sm
    flying = min(1.0, per_sm * max(1, stages - 1) * tile_bytes / LATENCY_BYTES)
    whole = programs / slots / math.ceil(programs / slots)
    access = min(1.0, values * itemsize / ACCESS_BYTES)
    return cost.size_bytes / (flying * whole * access**0.5) * _spilling(held)


def _is_size(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _stages(config: Mapping[str, Any]) -> int:
    return max(1, int(config.get("num_stages", config.get("STAGES", 1))))


def _per_sm(
    config: Mapping[str, Any], target: Target, threads: int, held: float, shared_bytes: int
) -> int:
    """Programs that a processor runs at once."""
    fitting = [THREADS // threads, int(REGISTERS / (threads * min(held, 255.0)))]
    if shared_bytes and target.shared_memory_bytes:
        fitting.append(target.shared_memory_bytes // shared_bytes)
    if "PROGRAMS_PER_SM" in config:
        fitting.append(int(config["PROGRAMS_PER_SM"]))
    return max(1, min(fitting))


def _spilling(held: float) -> float:
    """How many times longer a program takes whose threads hold so much."""
    return 1 + max(0.0, held - HELD) / 32
