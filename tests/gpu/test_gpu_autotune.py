"""`gristmill.autotune` on a GPU: the worker, kernels that trap or hang, Triton's own beside it."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import time
from pathlib import Path

import autotune_cases
import pytest
import torch
import triton
import users_kernels as users
from autotune_cases import grid, statuses
from triton.backends.nvidia.compiler import get_ptxas_version

import gristmill as gm
from gristmill import settings
from gristmill.measure.statistics import median, never_slower
from gristmill.tuners import answer, task
from gristmill.tuners.answer import AutotuneWarning
from gristmill.tuning.measurer import stop_workers

pytestmark = pytest.mark.usefixtures("fresh_store")
CONFIGS = [triton.Config({"BLOCK": b}, num_warps=w) for b in (256, 1024) for w in (2, 8)]
N = 1_000_003


def tuned(kernel, configs=CONFIGS, **options):
    return autotune_cases.tuned(kernel, configs, **options)


def test_configs_are_tried_in_the_worker_and_the_users_tensor_is_written_once(cuda, monkeypatch):
    x = torch.zeros(N, device=cuda)
    tuner = tuned(users.add_one, restore_value=["x_ptr"])
    seen = statuses(lambda: tuner[grid](x, N), monkeypatch)
    assert torch.equal(x, torch.ones_like(x))
    assert len(seen) == len(CONFIGS)
    assert {o.status for o in seen.values()} <= {"ok", "slow"}
    evidence = tuner.best_plan.evidence
    assert evidence.registers
    assert evidence.device_us > 0
    tuner[grid](x, N)
    assert torch.equal(x, torch.full_like(x, 2))


def test_kernels_that_trap_or_hang_are_rows_and_this_process_lives_on(cuda, monkeypatch):
    monkeypatch.setattr("gristmill.tuning.measurer.FIRST_TIMEOUT_S", 40.0)
    configs = [triton.Config({"BLOCK": 256, "FAULT": fault}) for fault in users.FAULTS]
    x, y = torch.randn(N, device=cuda), torch.zeros(N, device=cuda)
    alive = torch.arange(8, device=cuda)
    tuner = tuned(users.double, configs, reference=lambda x_ptr: {"y_ptr": 2 * x_ptr})
    with settings.override(candidate_timeout_s=10.0):
        seen = statuses(lambda: tuner[grid](x, y, N), monkeypatch)
    by_fault = {c["FAULT"]: o for c, o in seen.items()}
    found = {fault: o.status for fault, o in by_fault.items()}
    assert found.pop("hang") in ("timeout", "crash")
    assert found == {
        "none": "ok",
        "garbage": "wrong",
        "overrun": "wrong",
        "partial": "wrong",
        "raise": "compile_error",
        "trap": "crash",
    }
    assert by_fault["overrun"].reason == "it wrote outside its arguments' memory"
    assert torch.equal(y, 2 * x)
    assert int((alive * 2).sum()) == 56


def test_it_gives_what_tritons_gives(cuda):
    theirs = triton.autotune(configs=CONFIGS, key=["n"])(users.double)
    ours = tuned(users.double)
    for n in (1, 257, N):
        for dtype in (torch.float32, torch.bfloat16):
            x = torch.randn(n + 1, device=cuda, dtype=dtype)[1:]  # off 16 bytes
            outputs = [torch.full_like(x, torch.nan) for _ in range(2)]
            for tuner, y in zip((theirs, ours), outputs, strict=True):
                tuner[grid](x, y, n, FAULT="none")
            assert torch.equal(*outputs)
    assert ours.cache.keys() == theirs.cache.keys()


def test_real_indices_cross_to_the_worker(cuda, monkeypatch):
    x, index = torch.randn(N, device=cuda), torch.randperm(N, device=cuda)
    y = torch.empty_like(x)
    tuner = tuned(users.gather, reference=lambda x_ptr, index_ptr: {"y_ptr": x_ptr[index_ptr]})
    seen = statuses(lambda: tuner[grid](x, index, y, N), monkeypatch)
    assert torch.equal(y, x[index])
    assert {o.status for o in seen.values()} <= {"ok", "slow"}


def test_every_trial_finds_zero_where_it_is_told_to(cuda):
    x, total = torch.ones(N, device=cuda), torch.zeros(1, device=cuda)
    tuner = tuned(
        users.count,
        reset_to_zero=["total_ptr"],
        reference=lambda x_ptr: {"total_ptr": x_ptr.sum().view(1)},
    )
    tuner[grid](x, total, N)
    assert total.item() == N


def test_the_worker_and_this_process_find_what_the_compile_server_made(cuda, tmp_path, monkeypatch):
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / "triton"))
    stop_workers()  # with the old cache folder
    # Inductor names another ptxas in the environment when it first compiles, and Triton keeps the
    # version of the one before for its keys: this process would compile anew what others have.
    get_ptxas_version.cache_clear()
    x, y = torch.randn(N, device=cuda), torch.empty(N, device=cuda)
    configs = [triton.Config({"BLOCK": b}, num_warps=4) for b in (128, 512, 2048)]
    tuned(users.double, configs)[grid](x, y, N, "none")
    stop_workers()
    # One folder a kernel; deeper ones are Triton's, of a process stopped while it wrote.
    assert len(list((tmp_path / "triton").glob("*/double.cubin"))) == len(configs)


def test_a_hook_or_too_much_memory_is_tuned_here_and_says_so(cuda, monkeypatch):
    monkeypatch.setattr(task, "TRAVEL_BYTES", 1 << 10)
    answer._said.clear()
    x = torch.zeros(N, device=cuda)
    with pytest.warns(AutotuneWarning, match="in this process.*memory is"):
        tuned(users.add_one)[grid](x, N)
    assert torch.equal(x, torch.ones_like(x))


def test_a_capture_is_not_tuned(cuda):
    answer._said.clear()
    x, y = torch.randn(N, device=cuda), torch.zeros(N, device=cuda)
    first = CONFIGS[0].all_kwargs()
    users.double[(triton.cdiv(N, first["BLOCK"]),)](x, y, N, "none", **first)  # loads it
    y.zero_()
    tuner, graph = tuned(users.double), torch.cuda.CUDAGraph()
    with pytest.warns(AutotuneWarning, match="during CUDA-graph capture"), torch.cuda.graph(graph):
        tuner[grid](x, y, N, "none")
    assert not tuner.cache
    graph.replay()
    assert torch.equal(y, 2 * x)


def test_inductor_takes_it_as_tritons(cuda):
    tuner = tuned(users.double)

    @torch.compile(fullgraph=True)
    def call(x):
        y = torch.empty_like(x)
        tuner[grid](x, y, x.numel(), "none")
        return y + 1

    x = torch.randn(4096, device=cuda)
    torch.testing.assert_close(call(x), 2 * x + 1)


def host_us(tuner, x, y, calls=200):
    torch.cuda.synchronize()
    start = time.perf_counter()
    for _ in range(calls):
        tuner[(1,)](x, y, 64, "none")
    elapsed = time.perf_counter() - start
    torch.cuda.synchronize()
    return elapsed / calls * 1e6


def test_a_cached_launch_keeps_the_host_no_longer_than_tritons(cuda, record_property):
    x, y = torch.randn(64, device=cuda), torch.empty(64, device=cuda)
    theirs, ours = triton.autotune(configs=CONFIGS, key=["n"])(users.double), tuned(users.double)
    for tuner in (theirs, ours):
        tuner[(1,)](x, y, 64, "none")
    ours.cache.update(dict.fromkeys(ours.cache, theirs.best_config))  # the very same kernel
    samples = ([], [])
    gc.disable()
    try:
        for _ in range(60):
            for tuner, times in zip((theirs, ours), samples, strict=True):
                times.append(host_us(tuner, x, y))
    finally:
        gc.enable()
    record_property("triton_us", median(samples[0]))
    record_property("gristmill_us", median(samples[1]))
    assert never_slower(samples[1], samples[0])


def test_the_tuner_measures_a_function_by_its_name(cuda):
    tuner = gm.TritonAutoTuner(
        users.doubled,
        {"BLOCK": [128, 1024]},
        flops=lambda n: n,
        size_bytes=lambda n: 8 * n,
        reference=lambda x: 2 * x,
    )
    result = tuner.tune(torch.randn(1 << 24, device=cuda), problem_size=1 << 24, device="cuda:0")
    assert [r.status for r in result.results] == ["ok", "ok"]
    assert 0 < result.metrics.bandwidth_utilization < 1.5
    assert tuner.get_cached_config(1 << 24, "cuda:0") == result.best_config


@pytest.mark.parametrize("name", ["autotune_softmax", "autotune_matmul"])
def test_kernels_of_a_script_travel_by_source(name, tmp_path):
    environment = {**os.environ, "GRISTMILL_CACHE_DIR": str(tmp_path)}
    command = [sys.executable, str(Path(__file__).parents[2] / "examples" / f"{name}.py")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "AutotuneWarning" not in done.stderr
