"""`gristmill.TritonAutoTuner` over kernels in Triton's interpreter, and over Python functions."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import triton
import users_kernels as users
from autotune_cases import MARKS, N, grid

import gristmill as gm
from gristmill import settings
from gristmill.core.space import Space, choice, require
from gristmill.errors import InvalidInputError, TuningError
from gristmill.tuners.run import KernelRun

pytestmark = MARKS
BLOCKS = {"BLOCK": [32, 64, 128], "num_warps": [4]}
QUICK = {"warmup_runs": 0, "benchmark_runs": 3}


@pytest.fixture(autouse=True)
def small_copies(monkeypatch):
    """The ceiling of `bandwidth_utilization`, measured over less memory."""
    monkeypatch.setattr("gristmill.measure.ceilings.COPY_BYTES", {"cpu": 1 << 20})


def test_a_kernel_with_a_grid_gives_metrics_and_every_config():
    x, y = torch.randn(N), torch.zeros(N)
    tuner = gm.TritonAutoTuner(
        users.double, BLOCKS, grid=grid, flops=lambda size: size[0], size_bytes=8 * N, **QUICK
    )
    result = tuner.tune(x, y, N, "none", problem_size=(N,), device="cpu")
    assert not y.any()  # tuning writes to copies
    assert set(result.best_config) == {"BLOCK", "num_warps"}
    assert [r.status for r in result.results] == ["ok"] * 3
    latencies = [r.latency_ms for r in result.results]
    assert latencies == sorted(latencies)
    metrics, seconds = result.metrics, result.metrics.latency_ms / 1e3
    assert metrics.throughput_tflops == pytest.approx(N / seconds / 1e12)
    assert metrics.bandwidth_gbps == pytest.approx(8 * N / seconds / 1e9)
    assert 0 < metrics.bandwidth_utilization < 1
    assert result.checked == "none"


def test_results_are_kept_for_a_problem_size_and_a_kind():
    tuner = gm.TritonAutoTuner(users.double, BLOCKS, grid=grid, **QUICK)
    args = (torch.randn(N), torch.zeros(N), N, "none")
    assert tuner.get_cached_config((N,), "cpu") is None
    best = tuner.tune(*args, problem_size=(N,), kernel_type="first").best_config
    assert tuner.get_cached_config((N,), "cpu", "first") == best
    assert tuner.get_cached_config((N + 1,), "cpu", "first") is None
    assert tuner.get_cached_config((N,), "cpu") is None


def test_results_can_be_kept_in_a_folder_of_their_own(tmp_path):
    args = (torch.randn(N), torch.zeros(N), N, "none")
    tuner = gm.TritonAutoTuner(users.double, BLOCKS, cache_dir=tmp_path / "own", grid=grid, **QUICK)
    best = tuner.tune(*args, problem_size=N).best_config
    again = gm.TritonAutoTuner(users.double, BLOCKS, cache_dir=tmp_path / "own", grid=grid)
    assert again.get_cached_config(N, "cpu") == best


@pytest.mark.parametrize("isolate", [False, True])
def test_a_python_function_takes_its_config_as_keywords(isolate):
    space = {"scale": [1.0, 2.0], "fault": ["none", "garbage", "raise"]}
    tuner = gm.TritonAutoTuner(
        users.plain, space, reference=lambda x: 2 * x, isolate=isolate, **QUICK
    )
    result = tuner.tune(torch.randn(N), problem_size=(N,))
    assert result.best_config == {"scale": 1.0, "fault": "none"}
    assert result.checked == "reference"
    status = {(r.config["scale"], r.config["fault"]): r.status for r in result.results}
    assert status == {
        (1.0, "none"): "ok", (2.0, "none"): "wrong",
        (1.0, "garbage"): "wrong", (2.0, "garbage"): "wrong",
        (1.0, "raise"): "launch_error", (2.0, "raise"): "launch_error",
    }  # fmt: skip
    reasons = {r.reason for r in result.results if r.status == "launch_error"}
    assert reasons == {"ValueError: it does not feel like it"}


def test_a_lambda_is_tuned_here():
    tuner = gm.TritonAutoTuner(lambda x, times=1: x * times, {"times": [1, 2]}, **QUICK)
    assert tuner.tune(torch.randn(N)).best_config["times"] in (1, 2)


@pytest.mark.parametrize(
    "space",
    [
        [{"BLOCK": 32}, {"BLOCK": 64, "num_warps": 2}],
        [triton.Config({"BLOCK": 32}), triton.Config({"BLOCK": 64})],
        Space(
            choice("BLOCK", 32, 64, 256), require("too long", lambda c, p, t: c["BLOCK"] <= p["n"])
        ),
        {"BLOCK": (32, 64)},
    ],
    ids=["dicts", "configs", "space", "lists"],
)
def test_spaces_in_every_form(space):
    tuner = gm.TritonAutoTuner(users.double, space, grid=grid, **QUICK)
    result = tuner.tune(torch.randn(N), torch.empty(N), N, "none")
    assert sorted(r.config["BLOCK"] for r in result.results) == [32, 64]


def test_a_config_that_kills_the_worker_is_a_row(monkeypatch):
    monkeypatch.setattr("gristmill.tuning.measurer.FIRST_TIMEOUT_S", 15.0)
    space = [{"BLOCK": 64, "FAULT": f} for f in ("trap", "none", "hang")]
    tuner = gm.TritonAutoTuner(users.double, space, grid=grid, isolate=True, **QUICK)
    with settings.override(candidate_timeout_s=3.0):
        result = tuner.tune(torch.randn(N), torch.empty(N), N)
    assert {r.config["FAULT"]: r.status for r in result.results} == {
        "none": "ok", "trap": "crash", "hang": "timeout",
    }  # fmt: skip
    assert result.results[0].config == result.best_config


def test_an_interruption_reaches_the_caller_after_keeping(monkeypatch):
    monkeypatch.setattr(
        KernelRun, "_search", lambda self, pool: (_ for _ in ()).throw(KeyboardInterrupt)
    )
    tuner = gm.TritonAutoTuner(users.plain, {"scale": [1.0]})
    with pytest.raises(KeyboardInterrupt):
        tuner.tune(torch.randn(N))


@pytest.mark.parametrize(
    ("kernel", "space", "options", "words"),
    [
        (users.double, BLOCKS, {}, "kernel needs a grid"),
        (users.plain, BLOCKS, {"grid": (1,)}, "Leave `grid` out"),
        (users.plain, {}, {}, "is empty"),
        (users.plain, {"scale": []}, {}, "is empty"),
        (users.plain, {"scale": 1.0}, {}, r"`config_space\['scale'\]` is 1.0; it needs a list"),
        (users.plain, 3, {}, "`config_space` is int"),
        (users.plain, BLOCKS, {"benchmark_runs": 0}, "`benchmark_runs` is 0"),
        (users.plain, BLOCKS, {"outputs": ["y"]}, "`outputs` has the name 'y'"),
    ],
)
def test_mistakes_are_named_where_they_are_made(kernel, space, options, words):
    with pytest.raises(InvalidInputError, match=words):
        gm.TritonAutoTuner(kernel, space, **options)


def test_the_device_and_the_problem_size_are_checked():
    tuner = gm.TritonAutoTuner(users.plain, {"scale": [1.0]}, flops=lambda n: n, **QUICK)
    with pytest.raises(InvalidInputError, match="`device` is 'cuda:0'"):
        tuner.tune(torch.randn(N), device="cuda:0")
    with pytest.raises(InvalidInputError, match="Pass `problem_size=`"):
        tuner.tune(torch.randn(N))


def test_where_nothing_runs_the_reasons_are_in_the_error():
    tuner = gm.TritonAutoTuner(users.plain, {"fault": ["raise"]}, **QUICK)
    with pytest.raises(TuningError, match="it does not feel like it"):
        tuner.tune(torch.randn(N))


@pytest.mark.parametrize("name", ["autotune_softmax", "autotune_matmul"])
def test_the_examples_run_here(name, tmp_path):
    environment = {**os.environ, "GRISTMILL_CACHE_DIR": str(tmp_path)}
    command = [sys.executable, str(Path(__file__).parents[2] / "examples" / f"{name}.py")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "BLOCK" in done.stdout or "ROWS" in done.stdout


def test_the_documentation_runs(tmp_path):
    text = (Path(__file__).parents[2] / "docs" / "autotune.md").read_text()
    snippets = re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    assert len(snippets) == 3
    (tmp_path / "documented.py").write_text("\n".join(snippets))
    environment = {**os.environ, "GRISTMILL_CACHE_DIR": str(tmp_path)}
    command = [sys.executable, str(tmp_path / "documented.py")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("'BLOCK'") == 7
