"""`gristmill.autotune` over kernels in Triton's interpreter, here and in the worker: what a drop-in
does, and what is checked."""

from __future__ import annotations

import pytest
import torch
import triton
import triton.language as tl
import users_kernels as users
from autotune_cases import CONFIGS, MARKS, N, faulty, grid, no_runs, statuses, tuned

import gristmill as gm
from gristmill import settings
from gristmill.errors import InvalidInputError, TuningError
from gristmill.tuners.answer import AutotuneWarning

pytestmark = MARKS
__all__ = ["no_runs"]  # a fixture


# -------------------------------------------------------------------------------- the drop-in


def test_it_gives_what_tritons_gives_and_is_one():
    x = torch.randn(N)
    outputs, tuners = [], []

    def once(call, quantiles):  # Triton's own needs a driver
        call()
        return [1.0, 1.0, 1.0]

    for decorator, options in ((triton.autotune, {"do_bench": once}), (gm.autotune, {})):
        tuner = decorator(configs=CONFIGS, key=["n"], **options)(users.double)
        y = torch.full((N,), torch.nan)
        tuner[grid](x, y, N, "none")
        tuner[grid](x, y, n=N, FAULT="none")
        outputs.append(y)
        tuners.append(tuner)
    theirs, ours = tuners
    assert torch.equal(*outputs)
    assert torch.equal(outputs[1], 2 * x)
    assert isinstance(ours, triton.runtime.autotuner.Autotuner)
    assert ours.cache.keys() == theirs.cache.keys()
    assert ours.best_config in CONFIGS
    assert set(ours.configs_timings) == set(CONFIGS)
    for name in ("arg_names", "keys", "fn", "base_fn", "configs"):
        assert getattr(ours, name) == getattr(theirs, name)


@pytest.mark.parametrize("isolate", [False, True])
def test_the_users_tensors_are_written_once_by_their_own_launch(isolate):
    x = torch.zeros(N)
    tuner = tuned(users.add_one, isolate=isolate)
    tuner[grid](x, N)
    assert torch.equal(x, torch.ones(N))
    tuner[grid](x, n=N)
    assert torch.equal(x, torch.full((N,), 2.0))


@pytest.mark.parametrize("isolate", [False, True])
def test_every_trial_finds_zero_or_the_old_value_where_it_is_told_to(isolate):
    x, total = torch.ones(N), torch.zeros(1)
    reset = {"reset_to_zero": ["total_ptr"], "outputs": ["total_ptr"]}
    tuner = tuned(
        users.count, reference=lambda x_ptr: x_ptr.sum().view(1), isolate=isolate, **reset
    )
    tuner[grid](x, total, N)
    assert total.item() == N
    assert tuner.best_plan.evidence.error == 0
    kept = tuned(
        users.add_one, reference=lambda x_ptr: {"x_ptr": x_ptr + 1}, restore_value=["x_ptr"]
    )
    kept[grid](x, N)
    assert torch.equal(x, torch.full((N,), 2.0))


def test_another_key_or_dtype_is_tuned_again_and_the_same_is_not(no_runs):
    tuner = tuned(users.double)
    x = torch.randn(2 * N)
    for n, dtype in ((N, torch.float32), (2 * N, torch.float32), (N, torch.float16)):
        y = torch.empty(n, dtype=dtype)
        tuner[grid](x[:n].to(dtype), y, n, "none")
    assert len(tuner.cache) == 3
    no_runs()
    tuner[grid](x[:N], torch.empty(N), N, "none")


def test_real_values_cross_overlapping_and_misaligned(monkeypatch):
    memory = torch.randn(3 * N + 1)
    x, y = memory[1 : N + 1], memory[N + 1 : 2 * N + 1]
    index = torch.randperm(N)
    tuner = tuned(
        users.gather,
        isolate=True,
        reference=lambda x_ptr, index_ptr: {"y_ptr": x_ptr[index_ptr]},
    )
    before = memory.clone()
    seen = statuses(lambda: tuner[grid](x, index, y, N), monkeypatch)
    assert {o.status for o in seen.values()} <= {"ok", "slow"}
    assert torch.equal(y, before[1 : N + 1][index])
    assert torch.equal(memory[2 * N + 1 :], before[2 * N + 1 :])


def test_heuristics_above_and_below_see_what_they_see_in_triton():
    below = triton.heuristics({"FAULT": lambda a: "none" if a["BLOCK"] > 32 else "garbage"})
    tuner = tuned(below(users.double), reference=lambda x_ptr: {"y_ptr": 2 * x_ptr})
    above = triton.heuristics({"n": lambda a: a["x_ptr"].numel()})(tuner)
    x, y = torch.randn(N), torch.empty(N)
    above[grid](x, y)
    assert torch.equal(y, 2 * x)
    assert tuner.best_config.kwargs["BLOCK"] > 32


def test_pruning_is_tritons():
    pruned = {
        "early_config_prune": lambda configs, named, **kwargs: [
            c for c in configs if c.kwargs["BLOCK"] <= 64 and named["n"] == N
        ],
        "perf_model": lambda BLOCK, **rest: BLOCK,
        "top_k": 1,
    }
    tuner = tuned(users.double, prune_configs_by=pruned)
    tuner[grid](torch.randn(N), torch.empty(N), N, "none")
    assert tuner.best_config is CONFIGS[0]
    assert tuner.best_plan is None  # one is left: there was nothing to measure


def test_hooks_run_around_trials_on_copies_and_say_that_they_do_not_travel():
    x, seen = torch.zeros(N), []

    def pre(named, reset_only=False):
        seen.append(("pre", named["x_ptr"].data_ptr() == x.data_ptr(), named["BLOCK"]))

    def post(named, exception):
        seen.append(("post", named["x_ptr"].data_ptr() == x.data_ptr(), exception))

    tuner = tuned(users.add_one, pre_hook=pre, post_hook=post, isolate=True)
    with pytest.warns(AutotuneWarning, match="in this process, on copies .* a hook"):
        tuner[grid](x, N)
    assert {("pre", False, 32), ("pre", False, 128), ("post", False, None)} <= set(seen)
    assert not any(mine for _, mine, _ in seen)
    assert torch.equal(x, torch.ones(N))


def test_a_configs_own_hook_runs_before_its_launches():
    seen = []
    hooked = [
        triton.Config({"BLOCK": b}, pre_hook=lambda a, b=b: seen.append((b, a["n"])))
        for b in (32, 64)
    ]
    tuner = tuned(users.add_one, hooked)
    x = torch.zeros(N)
    tuner[grid](x, N)
    assert {(32, N), (64, N)} <= set(seen)
    seen.clear()
    tuner[grid](x, N)
    assert seen == [(tuner.best_config.kwargs["BLOCK"], N)]


def test_a_do_bench_of_the_users_decides():
    blocks = []

    def do_bench(call, quantiles):
        call()
        blocks.append(len(blocks))
        return [float(10 - len(blocks))] * 3  # the later, the faster

    tuner = tuned(users.double, do_bench=do_bench)
    tuner[grid](torch.randn(N), torch.empty(N), N, "none")
    assert len(blocks) == 2 * len(CONFIGS)  # once, and once as finalists
    assert tuner.best_plan.evidence.device_us == pytest.approx(4e3)


# --------------------------------------------------------------------------------- what is checked


def test_faulty_configs_are_rows_and_the_right_one_is_used(monkeypatch):
    x, y = torch.randn(N), torch.zeros(N)
    tuner = tuned(
        users.double,
        faulty(*users.FAULTS),
        isolate=True,
        reference=lambda x_ptr: {"y_ptr": 2 * x_ptr},
    )
    monkeypatch.setattr("gristmill.tuning.measurer.FIRST_TIMEOUT_S", 15.0)
    with settings.override(candidate_timeout_s=3.0):
        seen = statuses(lambda: tuner[grid](x, y, N), monkeypatch)
    assert {c["FAULT"]: o.status for c, o in seen.items()} == {
        "none": "ok",
        "garbage": "wrong",
        "overrun": "wrong",
        "partial": "wrong",
        "raise": "launch_error" if seen_raise(seen) == "launch_error" else "compile_error",
        "trap": "crash",
        "hang": "timeout",
    }
    assert torch.equal(y, 2 * x)
    assert tuner.best_config.kwargs["FAULT"] == "none"
    assert "not checked" not in tuner.best_plan.reason


def seen_raise(seen):
    return next(o.status for c, o in seen.items() if c["FAULT"] == "raise")


def test_a_changed_input_is_wrong(monkeypatch):
    @triton.jit
    def sly(x_ptr, y_ptr, n, FAULT: tl.constexpr, BLOCK: tl.constexpr):
        offsets = tl.arange(0, BLOCK)
        mask = offsets < n
        tl.store(y_ptr + offsets, 2 * tl.load(x_ptr + offsets, mask=mask), mask=mask)
        if FAULT == "change":
            tl.store(x_ptr, 0.0)

    configs = [triton.Config({"BLOCK": 128, "FAULT": f}) for f in ("change", "none")]
    x, y = torch.randn(N), torch.empty(N)
    tuner = tuned(sly, configs, reference=lambda x_ptr: 2 * x_ptr, outputs=["y_ptr"])
    seen = statuses(lambda: tuner[(1,)](x, y, N), monkeypatch)
    reasons = {c["FAULT"]: o.reason for c, o in seen.items()}
    assert reasons["change"] == "it changed its argument `x_ptr`"
    assert tuner.best_config.kwargs["FAULT"] == "none"


def test_a_kernel_that_works_in_place_is_checked_on_the_calls_values(monkeypatch):
    x = torch.randn(N)
    expected = x + 1
    tuner = tuned(users.add_one, reference=lambda x_ptr: {"x_ptr": x_ptr + 1})
    seen = statuses(lambda: tuner[grid](x, N), monkeypatch)
    assert {o.status for o in seen.values()} <= {"ok", "slow"}
    assert torch.equal(x, expected)


def test_outputs_that_were_right_before_do_not_hide_what_is_not_written(monkeypatch):
    x = torch.randn(N)
    tuner = tuned(
        users.double, faulty("partial", "none"), reference=lambda x_ptr: {"y_ptr": 2 * x_ptr}
    )
    seen = statuses(lambda: tuner[grid](x, 2 * x, N), monkeypatch)
    assert {c["FAULT"]: o.status for c, o in seen.items()} == {"partial": "wrong", "none": "ok"}


def test_without_a_reference_the_plan_says_that_nobody_looked():
    tuner = tuned(users.double)
    tuner[grid](torch.randn(N), torch.empty(N), N, "none")
    assert tuner.best_plan.reason.endswith("its outputs were not checked")
    assert tuner.best_plan.evidence.error is None


@pytest.mark.parametrize("isolate", [False, True])
def test_configs_that_disagree_with_the_first_are_wrong(monkeypatch, isolate):
    tuner = tuned(
        users.double,
        faulty("none", "garbage", "trap") if isolate else faulty("none", "garbage"),
        check="agree",
        isolate=isolate,
    )
    x, y = torch.randn(N), torch.empty(N)
    seen = statuses(lambda: tuner[grid](x, y, N), monkeypatch)
    by_fault = {c["FAULT"]: o for c, o in seen.items()}
    assert by_fault["garbage"].status == "wrong"
    assert by_fault["garbage"].reason.startswith("unlike the first candidate that ran: `y_ptr`")
    assert torch.equal(y, 2 * x)


def test_where_most_disagree_nobody_is_believed():
    configs = [
        triton.Config({"BLOCK": b, "FAULT": f})
        for b, f in ((32, "garbage"), (32, "none"), (64, "none"))
    ]
    tuner = tuned(users.double, configs, check="agree")
    with pytest.raises(TuningError, match="2 of 3 configs give other outputs than the first"):
        tuner[grid](torch.randn(N), torch.empty(N), N)


def test_where_nothing_is_right_the_first_reasons_are_in_the_error():
    tuner = tuned(
        users.double, faulty("garbage", "partial"), reference=lambda x_ptr: {"y_ptr": 2 * x_ptr}
    )
    with pytest.raises(TuningError, match=r"wrong \(`y_ptr` is wrong in 100 of 100"):
        tuner[grid](torch.randn(N), torch.empty(N), N)


def test_a_reference_that_answers_something_else_is_named():
    x, y = torch.randn(N), torch.empty(N)
    cases = [
        (lambda z_ptr: z_ptr, "`reference` has the parameter 'z_ptr'"),
        (lambda x_ptr: (x_ptr, x_ptr), r"returned 2 value\(s\) for the outputs \['y_ptr'\]"),
        (lambda x_ptr: x_ptr[1:], r"the shape \(99,\), where the argument has \(100,\)"),
        (lambda x_ptr: {"n": x_ptr}, "gives 'n' a Tensor, where the kernel has a int"),
    ]
    for reference, words in cases:
        tuner = tuned(users.double, reference=reference, outputs=["y_ptr"])
        with pytest.raises(InvalidInputError, match=words):
            tuner[grid](x, y, N, "none")
