"""Frozen plans of users' kernels (`gristmill.autotune`), in Triton's interpreter."""

from __future__ import annotations

import pytest
import torch
import triton
import users_kernels as users
from autotune_cases import CONFIGS, MARKS, N, grid, no_runs, tuned

import gristmill as gm
from gristmill import settings
from gristmill.cache.lockfile import Lock, read_lock
from gristmill.cache.store import store
from gristmill.selection.frozen import FrozenWarning

pytestmark = MARKS
__all__ = ["no_runs"]  # a fixture


@pytest.fixture
def call():
    """A call of a tuner's kernel; the config that it then has."""
    x, y = torch.randn(N), torch.empty(N)

    def call(tuner, n=N):
        tuner[grid](x, y, n, "none")
        assert torch.equal(y[:n], 2 * x[:n])
        return tuner.best_config

    return call


def test_a_frozen_kernel_runs_its_plan_whatever_the_store_has(tmp_path, call, no_runs):
    config = call(tuned(users.double))
    gm.freeze(tmp_path / "lock.json")
    (entry,) = read_lock(tmp_path / "lock.json").plans
    assert entry.plan.op == "kernel:users_kernels.double"
    store().prune(everything=True)
    no_runs()
    assert call(tuned(users.double)) == config


def test_a_kernel_that_a_lock_has_no_plan_for_runs_its_first_config(tmp_path, call, no_runs):
    call(tuned(users.double))
    gm.freeze(tmp_path / "lock.json")
    no_runs()
    with pytest.warns(FrozenWarning, match="has no plan for kernel:users_kernels.double"):
        assert call(tuned(users.double), n=N - 1) == CONFIGS[0]
    lock = read_lock(tmp_path / "lock.json")
    Lock(lock.path, lock.plans, strict=True).write()
    gm.freeze(lock.path, plans="file")
    with pytest.raises(gm.FrozenError, match="it is strict"):
        call(tuned(users.double), n=N - 2)


def test_a_kernel_that_ran_untuned_is_frozen_to_its_first_config(tmp_path, call, no_runs):
    no_runs()
    with settings.override(tune="never"):
        call(tuned(users.double))
    gm.freeze(tmp_path / "lock.json", strict=True)
    (entry,) = read_lock(tmp_path / "lock.json").plans
    assert (entry.plan.op, entry.plan.origin) == ("kernel:users_kernels.double", "prior")
    assert call(tuned(users.double)) == CONFIGS[0]
    assert call(tuned(users.double, CONFIGS[::-1])) == CONFIGS[0]  # the lock's, not the list's
    with pytest.raises(gm.FrozenError, match="as it was in another version"):
        call(tuned(users.double, CONFIGS[1:]))


def test_of_two_plans_of_a_kernel_a_strict_lock_takes_the_one_that_it_can_run(
    tmp_path, call, no_runs
):
    with settings.override(tune="never"):
        call(tuned(users.double))
    best = call(tuned(users.double, CONFIGS[1:]))
    gm.freeze(tmp_path / "lock.json", strict=True)
    assert [p.plan.origin for p in read_lock(tmp_path / "lock.json").plans] == ["tuned", "prior"]
    no_runs()
    assert call(tuned(users.double)) == best
    assert call(tuned(users.double, [c for c in CONFIGS if c != best])) == CONFIGS[0]


def test_a_kernel_that_no_lock_can_have_runs_with_a_warning(tmp_path, call, monkeypatch):
    call(tuned(users.double))
    gm.freeze(tmp_path / "lock.json", strict=True)
    monkeypatch.setattr("gristmill.tuners.launching.identity", lambda *kernel: "")
    with pytest.warns(FrozenWarning, match=r"double runs its first config.*Define the kernel"):
        assert call(tuned(users.double)) == CONFIGS[0]


def test_a_config_that_is_no_longer_offered_does_not_run(tmp_path, call, no_runs):
    config = call(tuned(users.double))
    gm.freeze(tmp_path / "lock.json")
    no_runs()
    others = [c for c in CONFIGS if c != config]
    with pytest.warns(FrozenWarning):
        assert call(tuned(users.double, others)) == others[0]


def test_a_tuner_of_functions_is_refused(tmp_path, call):
    call(tuned(users.double))
    gm.freeze(tmp_path / "lock.json")
    tuner = gm.TritonAutoTuner(
        users.double, {"BLOCK": [32, 64]}, grid=lambda m: (triton.cdiv(N, m["BLOCK"]),)
    )
    with pytest.raises(gm.FrozenError, match="is not tuned: plans are frozen"):
        tuner.tune(torch.randn(N), torch.empty(N), N, "none")
