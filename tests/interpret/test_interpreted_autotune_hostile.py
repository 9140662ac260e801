"""`gristmill.autotune` against kernels, references and calls that are out to mislead it."""

from __future__ import annotations

import gc
import weakref
from typing import NamedTuple

import pytest
import torch
import triton
import triton.language as tl
import users_kernels as users
from autotune_cases import CONFIGS, MARKS, N, faulty, grid, statuses, tuned
from triton.tools.tensor_descriptor import TensorDescriptor

import gristmill as gm
from gristmill.cache.store import store
from gristmill.errors import TuningError
from gristmill.tuners.trial import KernelTrials

pytestmark = MARKS


# ------------------------------------------------------------------------------------ references


def test_a_reference_that_writes_into_its_arguments_does_not_reach_the_users():
    x = torch.randn(N, dtype=torch.float64)  # `.double()` of it is itself
    y, before = torch.empty_like(x), x.clone()
    pair = (torch.zeros(2, dtype=torch.float64), 3)

    def reference(x_ptr, PAIR):
        PAIR[0].fill_(7)
        return {"y_ptr": x_ptr.mul_(2)}

    @triton.jit
    def kernel(x_ptr, y_ptr, n, PAIR, BLOCK: tl.constexpr):
        offsets = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
        mask = offsets < n
        tl.store(y_ptr + offsets, 2 * tl.load(x_ptr + offsets, mask=mask), mask=mask)

    tuned(kernel, reference=reference)[grid](x, y, N, pair)
    assert torch.equal(x, before)
    assert torch.equal(pair[0], torch.zeros(2, dtype=torch.float64))
    assert torch.equal(y, 2 * before)


@triton.jit
def with_scratch(x_ptr, y_ptr, scratch_ptr, lock_ptr, n, FAULT: tl.constexpr, BLOCK: tl.constexpr):
    """`y = 2 x` through scratch memory that a reference knows nothing of, and a lock left taken."""
    offsets = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mask = offsets < n
    x = tl.load(x_ptr + offsets, mask=mask)
    tl.store(scratch_ptr + offsets, x, mask=mask)
    held = tl.atomic_add(lock_ptr, 1)
    if FAULT == "garbage":
        held += 1
    factor = tl.where(held < tl.num_programs(0), 2.0, 0.0)  # 0: the lock was not zero
    tl.store(y_ptr + offsets, factor * tl.load(scratch_ptr + offsets, mask=mask), mask=mask)


def test_scratch_and_locks_may_be_written_beside_what_the_reference_knows(monkeypatch):
    x = torch.randn(N)
    y, scratch, lock = torch.empty(N), torch.zeros(N), torch.zeros(1, dtype=torch.int32)
    tuner = tuned(
        with_scratch,
        reference=lambda x_ptr: {"y_ptr": 2 * x_ptr},
        outputs=["scratch_ptr"],
        reset_to_zero=["lock_ptr"],
    )
    seen = statuses(lambda: tuner[grid](x, y, scratch, lock, N, FAULT="none"), monkeypatch)
    assert {o.status for o in seen.values()} <= {"ok", "slow"}
    assert torch.equal(y, 2 * x)


def test_every_call_of_a_users_do_bench_finds_zero():
    found = []

    def do_bench(call, quantiles):
        for _ in range(3):
            call()
            found.append(y.sum().item())
        return [1.0, 1.0, 1.0]

    x, y = torch.ones(N), torch.empty(N)
    scratch, lock = torch.zeros(N), torch.zeros(1, dtype=torch.int32)
    seen = []
    tuner = tuned(
        with_scratch,
        reset_to_zero=["lock_ptr"],
        do_bench=do_bench,
        pre_hook=lambda named, reset_only=False: seen.append(named["lock_ptr"].item()),
    )
    tuner[grid](x, y, scratch, lock, N, "none")
    assert set(seen) == {0}


@triton.jit
def relu(x_ptr, n, FAULT: tl.constexpr, BLOCK: tl.constexpr):
    """`x = max(x, 0)` in place, but for the last element where it is faulty."""
    offsets = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mask = offsets < (n - 1 if FAULT == "partial" else n)
    tl.store(x_ptr + offsets, tl.maximum(tl.load(x_ptr + offsets, mask=mask), 0.0), mask=mask)


def test_work_in_place_that_changes_nothing_is_right_where_every_element_is_written(monkeypatch):
    x = torch.rand(N)
    before = x.clone()
    tuner = tuned(relu, faulty("partial", "none"), reference=lambda x_ptr: {"x_ptr": x_ptr.relu()})
    seen = statuses(lambda: tuner[grid](x, N), monkeypatch)
    assert {c["FAULT"]: o.status for c, o in seen.items()} == {"partial": "wrong", "none": "ok"}
    assert "belongs in `restore_value`" in next(iter(seen.values())).reason
    assert torch.equal(x, before)
    zeros = torch.zeros(N)  # a warm-up's
    tuned(users.double, reference=lambda x_ptr: {"y_ptr": 2 * x_ptr})[grid](zeros, zeros, N, "none")


def test_configs_that_differ_in_hooks_of_one_name_are_all_tried():
    seen = []

    def made(index):
        def hook(named):
            seen.append(index)

        return hook

    configs = [triton.Config({"BLOCK": 64}, pre_hook=made(index)) for index in range(3)]
    tuner = tuned(users.add_one, [*configs, configs[0]])
    tuner[grid](torch.zeros(N), N)
    assert set(seen) == {0, 1, 2}
    assert set(tuner.configs_timings) == set(configs)


# ------------------------------------------------------------------------------------ agreement


@triton.jit
def shift(x_ptr, n, FAULT: tl.constexpr, BLOCK: tl.constexpr):
    """`x += 1` in place, or another number where it is faulty."""
    offsets = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mask = offsets < n
    step = 5.0 if FAULT == "garbage" else 1.0
    tl.store(x_ptr + offsets, tl.load(x_ptr + offsets, mask=mask) + step, mask=mask)


@pytest.mark.parametrize("isolate", [False, True])
def test_kernels_that_work_in_place_have_to_agree_on_the_calls_values(monkeypatch, isolate):
    tuner = tuned(
        shift, faulty("none", "garbage"), check="agree", outputs=["x_ptr"], isolate=isolate
    )
    x = torch.zeros(N)
    seen = statuses(lambda: tuner[grid](x, N), monkeypatch)
    assert {c["FAULT"]: o.status for c, o in seen.items()} == {"none": "ok", "garbage": "wrong"}
    assert torch.equal(x, torch.ones(N))


@triton.jit
def tiles(x_desc, y_desc, pair, FAULT: tl.constexpr, BLOCK: tl.constexpr):
    """`y = 2 x`, through descriptors and into a tuple's tensor, unless it is faulty."""
    row = tl.program_id(0) * BLOCK
    x = x_desc.load([row, 0])
    if FAULT == "change":
        x_desc.store([row, 0], x + 1)
    y_desc.store([row, 0], x * (3 if FAULT == "garbage" else 2))
    tl.store(pair[0], 9.0 if FAULT == "other" else 4.0)


def tile_arguments():
    x, y = torch.randn(32, 16), torch.empty(32, 16)
    xd, yd = (TensorDescriptor.from_tensor(t, [32, 16]) for t in (x, y))
    return x, y, (xd, yd, (torch.zeros(1), 1))


FAULTY_TILES = [triton.Config({"BLOCK": 32, "FAULT": f}) for f in ("garbage", "other", "change")]
TILES = [triton.Config({"BLOCK": 32, "FAULT": "none"}, num_warps=w) for w in (1, 2, 4)]
TILES += FAULTY_TILES


def test_what_is_written_through_descriptors_and_tuples_has_to_agree(monkeypatch):
    x, y, args = tile_arguments()
    tuner = tuned(tiles, TILES, key=(), check="agree")
    seen = statuses(lambda: tuner[(1,)](*args), monkeypatch)
    found = {c["FAULT"]: o.reason for c, o in seen.items() if o.status == "wrong"}
    assert found.keys() == {"garbage", "other", "change"}
    assert "`pair[0]`" in found["other"]
    assert torch.equal(y, 2 * x)


def test_a_reference_gives_what_a_descriptor_is_of(monkeypatch):
    x, y, args = tile_arguments()
    tuner = tuned(
        tiles,
        TILES,
        key=(),
        reference=lambda x_desc: {"y_desc": 2 * x_desc, "pair[0]": torch.full((1,), 4.0)},
    )
    seen = statuses(lambda: tuner[(1,)](*args), monkeypatch)
    found = {c["FAULT"]: o.reason for c, o in seen.items() if o.status == "wrong"}
    assert found.keys() == {"garbage", "other", "change"}
    assert found["change"] == "it changed its argument `x_desc`"
    assert torch.equal(y, 2 * x)


# ------------------------------------------------------------------------ what is measured again


def test_after_a_run_without_a_plan_everything_is_measured_again(monkeypatch):
    x, y = torch.randn(N), torch.empty(N)
    monkeypatch.setattr(
        users.double, "run", lambda *a, **k: (_ for _ in ()).throw(MemoryError("for now"))
    )
    tuner = tuned(users.double)
    with pytest.raises(TuningError, match="for now"):
        tuner[grid](x, y, N, "none")
    monkeypatch.undo()
    seen = statuses(lambda: tuner[grid](x, y, N, "none"), monkeypatch)
    assert len(seen) == len(CONFIGS)


def test_a_shorter_list_without_the_best_is_measured_whole(monkeypatch):
    many = [triton.Config({"BLOCK": b}) for b in (16, 1, 2, 4, 8, 32, 64, 128, 256)]
    x, y = torch.randn(N), torch.empty(N)
    tuned(users.double, many)[grid](x, y, N, "none")
    shorter = tuned(users.double, many[1:5])
    seen = statuses(lambda: shorter[grid](x, y, N, "none"), monkeypatch)
    assert len(seen) == 4
    assert shorter.best_config in many[3:5]


def test_the_tuner_measures_everything_every_time():
    tuner = gm.TritonAutoTuner(
        users.double,
        [{"BLOCK": b} for b in (16, 32, 64, 128, 256, 512, 1024)],
        warmup_runs=0,
        benchmark_runs=1,
        grid=grid,
    )
    x, y = torch.randn(N), torch.empty(N)
    for _ in range(2):
        assert len(tuner.tune(x, y, N, "none").results) == 7


def test_other_rules_and_other_promises_are_other_plans(monkeypatch):
    x, y = torch.randn(N), torch.empty(N)
    first = triton.heuristics({"FAULT": lambda a: "none"})(users.double)
    second = triton.heuristics({"FAULT": lambda a: "none" if a["BLOCK"] else "trap"})(users.double)
    for kernel, options in ((first, {}), (second, {}), (second, {"restore_value": ["y_ptr"]})):
        seen = statuses(lambda k=kernel, o=options: tuned(k, **o)[grid](x, y, N), monkeypatch)
        assert seen


# ------------------------------------------------------------------------------ strange arguments


def test_a_warm_up_through_heuristics_launches_nothing(monkeypatch):
    monkeypatch.setattr(KernelTrials, "measure", lambda *a: pytest.fail("it was tried"))
    tuner = tuned(users.double)
    ran = []
    monkeypatch.setattr(tuner.fn, "run", lambda *a, **k: ran.append(k), raising=False)
    above = triton.heuristics({"FAULT": lambda a: "none"})(tuner)
    above.warmup(torch.float32, torch.float32, N, grid=(1,))
    assert ran[0]["warmup"]
    assert not tuner.cache


class Pair(NamedTuple):
    x_ptr: torch.Tensor
    scale: float


@triton.jit
def in_pair(pair, n, BLOCK: tl.constexpr):
    offsets = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mask = offsets < n
    tl.store(pair[0] + offsets, tl.load(pair[0] + offsets, mask=mask) + pair[1], mask=mask)


def test_a_named_tuples_tensors_are_copied():
    x = torch.zeros(N)
    tuned(in_pair)[grid](Pair(x, 1.0), N)
    assert torch.equal(x, torch.ones(N))


def test_copies_end_with_the_run(monkeypatch):
    alive = []
    real = KernelTrials.__init__

    def made(self, *args, **kwargs):
        real(self, *args, **kwargs)
        alive.append(weakref.ref(self.copies))

    monkeypatch.setattr(KernelTrials, "__init__", made)
    gc.collect()
    gc.disable()
    try:
        tuned(users.add_one, restore_value=["x_ptr"])[grid](torch.zeros(N), N)
        assert [one() for one in alive] == [None]
    finally:
        gc.enable()
    assert store().plans()
