"""The worker: candidates that trap, hang or return garbage are rows, and the tuner's process lives
on."""

from __future__ import annotations

import socket
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from triton.runtime.cache import triton_key

import gristmill as gm
from gristmill import settings
from gristmill.core.plan import Candidate
from gristmill.core.registry import implementation, implementations, load
from gristmill.core.target import named_target
from gristmill.errors import TuningError
from gristmill.measure.isolation import Child, ChildDied, Lines
from gristmill.measure.lease import device_lease
from gristmill.tuning.compiler import CompilePool, Server, compile_candidate
from gristmill.tuning.measurer import Measurer


@pytest.fixture
def problem(faulty):
    return load("twice").problem((torch.ones(64, 64),))


@pytest.fixture
def measurer(problem):
    with (
        settings.override(candidate_timeout_s=3.0),
        Measurer(problem, torch.device("cpu")) as measurer,
    ):
        yield measurer


@pytest.mark.parametrize(
    ("name", "status", "reason"),
    [
        ("right", "ok", ""),
        ("traps", "crash", "SIGSEGV"),
        ("hangs", "timeout", "no answer within"),
        ("garbage", "wrong", "output 0 is wrong"),
        ("unwritten", "wrong", "output 0 is wrong"),
        ("misshapen", "wrong", "shape"),
        ("raises", "launch_error", "does not feel like it"),
        ("mistyped", "wrong", "output 0 has dtype float64 where float32 is declared"),
        ("mutates", "wrong", "it changed its argument `x`"),
        ("strided", "wrong", "output 0 has strides (1, 64) where (64, 1) are declared"),
        ("in_place", "wrong", "it changed its argument `x`"),
    ],
)
def test_every_failure_is_a_row_with_its_class_and_reason(
    measurer, name, status, reason, monkeypatch
):
    monkeypatch.setattr(
        "gristmill.tuning.measurer.FIRST_TIMEOUT_S", 20.0 if name != "hangs" else 2.0
    )
    outcome = measurer.measure(Candidate(name), None)
    assert outcome.status == status
    assert reason in outcome.reason


def test_the_next_candidate_after_a_crash_gets_a_new_worker(measurer):
    assert measurer.measure(Candidate("traps"), None).status == "crash"
    assert measurer.measure(Candidate("right"), None).ok


def test_a_race_names_the_candidate_that_kills_it_and_times_the_others(measurer):
    outcomes, samples = measurer.race(
        [Candidate("right"), Candidate("traps"), Candidate("garbage")]
    )
    assert [o.status for o in outcomes] == ["ok", "crash", "wrong"]
    assert len(samples[0]["device"]) >= 5
    assert not samples[1]


def test_a_slow_candidate_is_given_up_early(measurer):
    outcome = measurer.measure(Candidate("right"), 1e-3)
    assert outcome.status == "slow"
    assert outcome.repeats == 1


def test_a_reference_that_raises_is_a_tuning_error_that_names_it(faulty):
    problem = load("twice").problem((torch.ones(4, 13),))
    with (
        Measurer(problem, torch.device("cpu")) as measurer,
        pytest.raises(TuningError, match=r"reference of `twice` raised .* thirteen is unlucky"),
    ):
        measurer.measure(Candidate("right"), None)


def test_the_worker_dies_with_its_parent():
    child = Child("gristmill.tuning.worker")
    child.start()
    process = child._process
    assert process is not None
    child._lines.connection.close()
    assert process.wait(timeout=20) is not None
    child.stop()


def test_a_worker_that_cannot_start_says_why():
    child = Child("gristmill.no_such_module")
    with pytest.raises(ChildDied, match="No module named"):
        child.start()


def test_a_compile_server_hashes_triton_once_for_its_forks(problem):
    triton_key.cache_clear()
    target = named_target("sm_90")
    request = {
        "problem": problem.to_json(),
        "target": asdict(target),
        "candidate": {"implementation": "triton_none"},
    }
    ours, theirs = socket.socketpair()
    with ours, theirs:
        Server(Lines(theirs)).warm(request)
    assert triton_key.cache_info().misses == 1
    config = implementation("twice", "triton_none").config(None, problem, target)
    assert compile_candidate(problem, target, Candidate("triton_none", config)).ok
    assert triton_key.cache_info().misses == 1
    assert triton_key.cache_info().hits >= 1


def test_the_compile_pool_reports_compiler_errors_and_timeouts(problem):
    target = named_target("sm_90")
    with CompilePool(problem, target, jobs=2) as pool:
        for name in ("triton_none", "triton_compile"):
            impl = next(i for i in _implementations() if i.name == name)
            pool.submit(Candidate(name, impl.config(None, problem, target)))
        done = {
            candidate.implementation: outcome
            for candidate, outcome in (pool.collect(), pool.collect())
        }
    assert done["triton_none"].ok
    assert done["triton_compile"].status == "compile_error"
    assert "it does not compile" in done["triton_compile"].reason
    with settings.override(candidate_timeout_s=1.0), CompilePool(problem, target, jobs=1) as pool:
        impl = next(i for i in _implementations() if i.name == "triton_stall")
        pool.submit(Candidate("triton_stall", impl.config(None, problem, target)))
        start = time.monotonic()
        assert pool.collect()[1].status == "timeout"
        assert time.monotonic() - start < 20


def _implementations():
    return implementations("twice")


def test_the_parent_keeps_its_signal_handlers_and_files(measurer):
    before = len(list(Path("/proc/self/fd").iterdir()))
    for _ in range(2):
        measurer.measure(Candidate("traps"), None)
    assert len(list(Path("/proc/self/fd").iterdir())) <= before + 2


SHADOWED = """
import sys, torch, gristmill as gm
print(gm.tune("rms_norm", (torch.randn(4, 16),), trials=1).plans["eager"].candidate.implementation)
"""


def test_files_beside_a_script_that_shadow_the_standard_library_do_not_reach_the_worker(tmp_path):
    # As a console script: the folder is the current one, and not on the parent's path first.
    for name in ("random.py", "token.py", "triton.py", "statistics.py"):
        (tmp_path / name).write_text("raise RuntimeError('shadowed')")
    code = f"import sys; sys.path.remove(''); sys.path.append({str(tmp_path)!r}){SHADOWED}"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() in ("aten", "inductor")


FORKED = """
import os, sys, torch, gristmill as gm
from gristmill.tuning import measurer
gm.tune("rms_norm", (torch.randn(4, 16),), trials=1)
(child,) = measurer._idle.values()
pid = os.fork()
if not pid:
    gm.tune("rms_norm", (torch.randn(4, 17),), trials=1)
    sys.exit(0)
_, status = os.waitpid(pid, 0)
print(os.waitstatus_to_exitcode(status), child.alive)
"""


def test_a_fork_leaves_its_parents_worker_alone():
    done = subprocess.run(
        [sys.executable, "-c", FORKED], capture_output=True, text=True, check=False
    )
    assert done.stdout.split() == ["0", "True"], done.stderr


def test_an_answer_that_comes_too_late_is_no_other_questions(problem):
    with Measurer(problem, torch.device("cpu")) as measurer:
        assert measurer.measure(Candidate("right"), None).ok
        late = {"do": "measure", "candidate": {"implementation": "garbage", "config": {}}}
        measurer._child.send({**measurer._base, **late, "best_us": None, "id": 0})
        assert measurer.measure(Candidate("right"), None).ok


def test_a_device_is_leased_to_one_at_a_time(tmp_path):
    device = torch.device("cpu")
    with (
        device_lease(device, tmp_path, 0.0) as first,
        device_lease(device, tmp_path, 0.2) as second,
    ):
        assert (first, second) == (True, False)
    with device_lease(device, tmp_path, 0.0) as again:
        assert again
    (tmp_path / "file").touch()
    with device_lease(device, tmp_path / "file", 0.0) as unseen:
        assert unseen


def test_no_tuning_beside_another_tuner(faulty, tmp_path, monkeypatch):
    cpu = torch.device("cpu")
    monkeypatch.setattr("gristmill.tuning.runner.DEVICE_WAIT_S", 0.3)
    values = (torch.ones(64, 63),)
    with settings.override(lock_dir=tmp_path), device_lease(cpu, tmp_path, 0.0):
        with pytest.raises(TuningError, match="another process is measuring on cpu"):
            gm.tune("twice", values)
        bound = gm.get_op("twice", values)
    assert bound.plan.origin == "vendor"
    assert "another process is measuring on cpu: ask again later" in bound.plan.reason


def test_what_a_lost_compile_server_was_asked_is_answered_at_once(problem):
    target = named_target("sm_90")
    impl = next(i for i in _implementations() if i.name == "triton_none")
    configs = [{"BLOCK": b, "ODD": False} for b in (256, 512, 1024)]
    candidates = [Candidate(impl.name, impl.config(c, problem, target)) for c in configs]
    with CompilePool(problem, target, jobs=1) as pool:
        pool.submit(candidates[0])
        pool.submit(candidates[1])
        pool._child._process.kill()
        pool._child._process.wait()
        pool.submit(candidates[2])
        start = time.monotonic()
        done = dict(pool.collect() for _ in range(3))
    assert [done[c].status for c in candidates] == ["crash", "crash", "ok"]
    assert time.monotonic() - start < 25
