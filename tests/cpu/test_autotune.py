"""What `gristmill.autotune` does without a launch: spaces, the truth, keys, torch.compile, and what
a cached call costs the host."""

from __future__ import annotations

import gc
import json
import statistics
import time

import pytest
import torch
import triton
import triton.language as tl
import users_kernels as users

import gristmill as gm
from gristmill import settings
from gristmill.core.config import Config
from gristmill.core.problem import Problem
from gristmill.core.space import Space, choice
from gristmill.core.target import named_target
from gristmill.errors import InvalidConfigError
from gristmill.tuners.choices import Choices, as_space, keywords, label, triton_config
from gristmill.tuners.truth import judge

CONFIGS = [triton.Config({"BLOCK": b}, num_warps=w) for b in (64, 128) for w in (2, 4)]
PROBLEM, TARGET = Problem("kernel:test", ()), named_target("sm_90")


# -------------------------------------------------------------------------------------- choices


def test_a_list_of_configs_is_a_space_in_its_order():
    space = Choices([keywords(c) for c in (*CONFIGS, CONFIGS[0])])
    points = list(space.valid(PROBLEM, TARGET))
    assert [(p["BLOCK"], p["num_warps"]) for p in points] == [(64, 2), (64, 4), (128, 2), (128, 4)]
    stored = Config(json.loads(points[1].key))
    assert space.config(stored, PROBLEM, TARGET) == points[1]
    assert triton_config(space.values[points[1]]) == CONFIGS[1]
    with pytest.raises(InvalidConfigError, match="none of the 4 configs"):
        space.config({"BLOCK": 1}, PROBLEM, TARGET)


def test_values_that_are_no_scalars_are_named_by_their_text_and_passed_as_they_are():
    space = as_space({"DTYPE": [tl.float16, tl.float32], "BLOCK": [16]})
    assert isinstance(space, Choices)
    first = next(space.valid(PROBLEM, TARGET))
    assert first["DTYPE"] == repr(tl.float16)
    assert space.values[first]["DTYPE"] is tl.float16
    assert label({"DTYPE": tl.float16}) != label({"DTYPE": tl.float32})


def test_a_declared_space_is_taken_as_it_is():
    space = Space(choice("BLOCK", 1, 2))
    assert as_space(space) is space
    assert as_space({"A": [1, 2], "B": [True, None]}).size == 4


# -------------------------------------------------------------------------------------- the truth


def test_a_candidate_may_be_some_roundings_of_the_truths_size_away():
    truth = torch.randn(100, dtype=torch.float64)
    scale = float(truth.square().mean().sqrt())
    out = truth.to(torch.bfloat16)
    assert judge({"y": out}, {"y": truth}, None, 0.0).ok
    far = out.clone()
    far[3] += 40 * torch.finfo(torch.bfloat16).eps * scale
    verdict = judge({"y": far}, {"y": truth}, None, 0.0)
    assert not verdict.ok
    assert "`y` is wrong in 1 of 100" in verdict.reason
    assert judge({"y": far}, {"y": truth}, 0.5, 0.0).ok
    integers = torch.arange(5)
    assert judge({"i": integers}, {"i": integers.clone()}, None, 0.0).ok
    assert not judge({"i": integers + 1}, {"i": integers}, None, 0.0).ok
    assert judge({"i": integers + 1}, {"i": integers}, None, 1.0).ok
    assert not judge({}, {"i": integers}, None, 0.0).ok


# ------------------------------------------------------------------------------- the cached call


class Stub:
    """A kernel whose launch costs nothing."""

    arg_names = users.double.arg_names
    fn = users.double.fn

    @staticmethod
    def run(*args, **kwargs):
        return None


def cached(decorator):
    tuner = decorator(configs=CONFIGS, key=["n"])(users.double)
    tuner.fn = Stub
    tuner.cache[(5, "torch.float32", "torch.float32")] = CONFIGS[1]
    return tuner


def test_a_cached_launch_keeps_the_host_no_longer_than_tritons():
    """By the medians of 40 turns of 500 calls each, in alternation, the launch a stub."""
    x, y = torch.empty(5), torch.empty(5)
    tuners = [cached(triton.autotune), cached(gm.autotune)]
    grid = (1,)
    times = ([], [])
    gc.disable()
    try:
        for _ in range(40):
            for tuner, samples in zip(tuners, times, strict=True):
                start = time.perf_counter()
                for _ in range(500):
                    tuner[grid](x, y, 5, "none")
                samples.append(time.perf_counter() - start)
    finally:
        gc.enable()
    assert statistics.median(times[1]) <= statistics.median(times[0])


def test_keys_are_tritons_for_positions_keywords_and_defaults():
    seen = []
    tuner = gm.autotune(configs=CONFIGS[:1], key=["n", "FAULT"])(users.double)
    tuner.fn = Stub
    theirs = triton.autotune(configs=CONFIGS, key=["n", "FAULT"], do_bench=lambda f, quantiles: [1])
    theirs = theirs(users.double)
    theirs.fn = Stub
    x, y = torch.empty(5), torch.empty(5, dtype=torch.float16)
    for args, kwargs in (
        ((x, y, 5, "none"), {}),
        ((x,), {"y_ptr": y, "n": 5, "FAULT": "none"}),
        ((), {"n": 5, "y_ptr": y, "x_ptr": x}),
        ((x, None, 6), {"FAULT": None}),
    ):
        for one in (tuner, theirs):
            one[(1,)](*args, **kwargs)
            seen.append(list(one.cache)[-1])
    assert seen[::2] == seen[1::2]


def test_it_is_compiled_by_torch_as_tritons_own(monkeypatch):
    monkeypatch.setattr("torch.utils._triton.has_triton", lambda: True)
    with_rule = triton.heuristics({"FAULT": lambda a: "none"})(users.double)
    tuner = gm.autotune(configs=CONFIGS, key=["n"])(with_rule)
    graphs = []

    def backend(module, inputs):
        graphs.append(module.code)
        return lambda *args: (args[0],)

    @torch.compile(backend=backend, fullgraph=True)
    def call(x):
        y = torch.empty_like(x)
        tuner[lambda meta: (triton.cdiv(meta["n"], meta["BLOCK"]),)](x, y, x.numel())
        return y

    call(torch.randn(128))
    assert "triton_kernel_wrapper_mutation" in graphs[0]
    assert "grid = [(2, 1, 1), (2, 1, 1), (1, 1, 1), (1, 1, 1)]" in graphs[0]
    assert not tuner.cache


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_a_kernel_is_refused_by_that_name():
    @triton.jit
    def double(x, y, n, BLOCK: tl.constexpr):
        i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
        tl.store(y + i, 2 * tl.load(x + i, mask=i < n), mask=i < n)

    x = torch.randn(100)
    tuned = gm.autotune(configs=CONFIGS, key=["n"])(double)
    with pytest.raises(gm.UnsupportedProblemError, match=r"on cpu.*needs one.*TRITON_INTERPRET=1"):
        tuned[(1,)](x, torch.empty_like(x), 100)
    tuner = gm.TritonAutoTuner(double, {"BLOCK": [64, 128]}, grid=(1,))
    with pytest.raises(gm.UnsupportedProblemError, match="no GPU is there"):
        tuner.tune(x, torch.empty_like(x), 100)


# ------------------------------------------------------------------------------------ the worker


@pytest.mark.usefixtures("fresh_store")
def test_functions_that_trap_hang_or_change_their_arguments_are_rows(monkeypatch):
    monkeypatch.setattr("gristmill.tuning.measurer.FIRST_TIMEOUT_S", 20.0)
    x = torch.randn(100)
    before = x.clone()
    tuner = gm.TritonAutoTuner(
        users.plain,
        {"fault": ["trap", "garbage", "change", "none", "raise", "hang"]},
        warmup_runs=0,
        benchmark_runs=3,
        reference=lambda x: 2 * x,
        isolate=True,
    )
    with settings.override(candidate_timeout_s=3.0):
        result = tuner.tune(x)
    assert {r.config["fault"]: r.status for r in result.results} == {
        "none": "ok",
        "trap": "crash",
        "hang": "timeout",
        "raise": "launch_error",
        "garbage": "wrong",
        "change": "wrong",
    }
    reasons = {r.config["fault"]: r.reason for r in result.results}
    assert reasons["change"] == "it changed its argument `x`"
    assert "SIGSEGV" in reasons["trap"]
    assert torch.equal(x, before)
    assert result.best_config == {"fault": "none"}
