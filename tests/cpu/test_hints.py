"""What a run knows before it measures: the analytic estimate, neighbours, what a compiler says."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import pytest

from gristmill.cache.store import store
from gristmill.core.config import Config
from gristmill.core.op import Cost
from gristmill.core.plan import Candidate, Measurement, Outcome, Plan
from gristmill.core.registry import implementation, load
from gristmill.core.target import named_target
from gristmill.tuning.analytic import estimate
from gristmill.tuning.compiler import compile_candidate
from gristmill.tuning.hints import hints_of
from gristmill.tuning.peers import against_peers, fitting
from landscapes import LANDSCAPES

HOPPER = named_target("sm_90")
AMPERE = named_target("sm_80")
SIZES = {"M": 4096, "N": 4096, "K": 4096, "B": 1}
SQUARE = Cost(2 * 4096**3, 3 * 4096 * 4096 * 2)
TILE = {"BLOCK_M": 128, "BLOCK_N": 256, "BLOCK_K": 64, "num_warps": 8, "num_stages": 4}


def gemm(**knobs):
    us = estimate({**TILE, **knobs}, SIZES, 2, SQUARE, HOPPER)
    assert us is not None
    assert 0 < us < math.inf
    return us


def test_the_estimate_knows_what_makes_a_gemm_slow():
    assert gemm(BLOCK_M=16, BLOCK_N=16) > 3 * gemm()  # the cache cannot feed such tiles
    assert gemm(BLOCK_M=256, num_warps=4) > 2 * gemm()  # 512 sums a thread spill
    assert gemm(SPLIT_K=16) > gemm()  # parts are written and read
    sizes = {**SIZES, "M": 128, "N": 128}
    few = Cost(2 * 128 * 128 * 4096, 2 * 128 * 4096 * 2)
    split = [estimate({**TILE, "SPLIT_K": s}, sizes, 2, few, HOPPER) for s in (1, 8)]
    assert split[1] < split[0] / 4  # one program reads alone
    whole = replace(HOPPER, num_sms=512)
    assert estimate(TILE, SIZES, 2, SQUARE, whole) < gemm()


def test_the_estimate_knows_what_makes_a_pass_over_rows_slow():
    sizes, cost = {"rows": 8192, "N": 8192}, Cost(0, 4 * 8192 * 8192)

    def us(rows=1, warps=8):
        return estimate({"BLOCK_M": rows, "num_warps": warps}, sizes, 2, cost, HOPPER)

    assert us() >= cost.size_bytes
    assert us(rows=16, warps=4) > 2 * us()  # a thread holds 1,024 values
    assert us(warps=32) > us()  # accesses of less than 16 bytes


@pytest.mark.parametrize(
    ("config", "sizes", "target"),
    [
        (TILE, {"rows": 8, "heads": 4}, HOPPER),
        ({"TILE": 3}, SIZES, HOPPER),
        (TILE, SIZES, replace(HOPPER, vendor="cpu")),
        (TILE, {**SIZES, "M": 0}, HOPPER),
        ({**TILE, "GROUP_M": 0}, SIZES, HOPPER),
        ({**TILE, "SPLIT_K": 0}, SIZES, HOPPER),
        ({**TILE, "BLOCK_M": None}, SIZES, HOPPER),
        ({**TILE, "BLOCK_K": "full"}, SIZES, HOPPER),
        ({**TILE, "BLOCK_N": True}, SIZES, HOPPER),
        ({**TILE, "num_warps": "auto"}, {"rows": 8, "N": 8}, HOPPER),
        ({**TILE, "num_warps": 4, "num_stages": -1}, {"rows": 8, "N": 8}, HOPPER),
    ],
)
def test_of_what_it_does_not_know_the_estimate_says_nothing(config, sizes, target):
    assert estimate(config, sizes, 2, SQUARE, target) is None


@pytest.mark.parametrize("name", ["wide_gemm", "skinny_gemm"])
def test_the_sixth_that_the_estimate_puts_first_is_better_than_chance(name):
    landscape = LANDSCAPES[name]
    op = load("matmul")
    (hints,) = hints_of(
        op, [implementation("matmul", "tiled")], landscape.problem, landscape.target, store()
    ).values()
    assert hints.estimate is not None
    valid = list(landscape.space.valid(landscape.problem, landscape.target))
    order = np.argsort([hints.estimate(config) for config in valid], kind="stable")
    first = landscape.times_us[order[: len(valid) * 15 // 100]]
    assert np.median(first) < 0.7 * np.median(landscape.times_us)
    assert first.min() <= 1.1 * landscape.best_us


@pytest.mark.usefixtures("fresh_store")
def test_neighbours_are_the_best_of_the_nearest_buckets_and_valid_here():
    op, impl = load("matmul"), implementation("matmul", "tiled")
    problem = op.workload("square-4096").problem
    configs = list(impl.space.valid(problem, HOPPER))[:60]

    def keep(m, target, us, config, source_hash=impl.source_hash):
        axes = f"M={m},N=4096,K=4096,B=1"
        bucket = f"{axes}|{op.bucket(problem).rest}"
        candidate = Candidate("tiled", config)
        plan = Plan("matmul", candidate, bucket, target.key, "graph", "tuned", source_hash)
        store().save_plan(plan, "family", {})
        outcome = Outcome("ok", device_us=us)
        row = Measurement("matmul", candidate, source_hash, bucket, target.key, "p", outcome)
        store().record([row])

    keep(4096, HOPPER, 1.0, configs[0])  # this very bucket: the run has it already
    keep(2048, HOPPER, 9.0, configs[1])
    keep(2048, HOPPER, 3.0, configs[2])
    keep(2048, HOPPER, 2.0, configs[9], source_hash="of another source")
    keep(4096, AMPERE, 1.0, configs[3])
    keep(64, HOPPER, 5.0, configs[4])
    keep(2048, HOPPER, 1.5, Config({"BLOCK_M": 3}))  # no config of this space
    found = hints_of(op, [impl], problem, HOPPER, store())["tiled"].neighbours
    assert found == (configs[2], configs[3], configs[4], configs[1])


def _missing(*args, **kwargs):
    raise FileNotFoundError(args[0][0])


def test_the_compiler_tells_registers_spills_and_what_cannot_be_launched(monkeypatch):
    op, impl = load("matmul"), implementation("matmul", "tiled")
    problem = op.workload("square-4096").problem
    config = impl.config(None, problem, HOPPER)
    outcome = compile_candidate(problem, HOPPER, Candidate("tiled", config))
    assert outcome.ok
    assert 32 <= outcome.registers <= 255
    assert outcome.spills is not None
    assert outcome.spills < 64
    assert 0 < outcome.shared_bytes <= HOPPER.shared_memory_bytes
    with monkeypatch.context() as patch:
        patch.setattr("subprocess.run", _missing)
        blind = compile_candidate(problem, HOPPER, Candidate("tiled", config))
    assert blind.ok
    assert (blind.registers, blind.spills) == (
        None,
        None,
    )  # what is not known is held against nobody
    small = replace(HOPPER, shared_memory_bytes=1024)  # the space's own rule is asked before
    found = compile_candidate(problem, small, Candidate("tiled", config))
    assert found.status == "compile_error"
    assert "shared memory" in found.reason


class Compiled(NamedTuple):
    """What the compiler says of a kernel."""

    shared_bytes: int = 1024
    num_warps: int = 4
    registers: int | None = 64
    spills: int | None = 16


@pytest.mark.parametrize(
    ("compiled", "words"),
    [
        (Compiled(shared_bytes=300_000), ("300000 bytes of shared memory", "has 232448")),
        (Compiled(num_warps=64, registers=16), ("2048 threads", "1024 at most")),
        (Compiled(num_warps=16, registers=168), ("86016 registers", "has 65536")),
    ],
)
def test_what_cannot_be_launched_is_a_compile_error_with_what_it_needs(compiled, words):
    outcome = fitting([Compiled(), compiled], HOPPER)
    assert outcome.status == "compile_error"
    assert outcome.spills == 4  # words
    for word in words:
        assert word in outcome.reason
    assert fitting([Compiled(), Compiled(num_warps=8, registers=None)], HOPPER).ok


def test_spills_are_held_against_the_fast_ones_of_the_same_kernel():
    def named(index, name="one"):
        return Candidate(name, Config({"A": index}))

    def timed(spills, us=1.0):
        return Outcome("ok", device_us=us, spills=spills)

    spilling = Outcome("ok", spills=300, registers=255)
    fast = {named(i): timed(0) for i in range(5)}
    rejected = against_peers(named(9), spilling, fast)
    assert (rejected.status, rejected.registers) == ("slow", 255)
    assert "300 words a thread, the 5 fastest at most 0" in rejected.reason
    few = dict(list(fast.items())[:4])
    assert against_peers(named(9), spilling, few) is spilling
    others = {named(i, "two"): timed(0) for i in range(5)}
    assert against_peers(named(9), spilling, others) is spilling
    alike = {**few, named(5): timed(80)}
    assert against_peers(named(9), spilling, alike) is spilling  # all of them spill
    slower = {**fast, named(6): timed(300, us=9.0)}
    assert against_peers(named(9), spilling, slower).status == "slow"
    little = Outcome("ok", spills=64)
    assert against_peers(named(9), little, fast) is little
